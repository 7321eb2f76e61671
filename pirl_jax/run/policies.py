"""Policies out of settings and checkpoints: transform, statistics, parameters, and the actor that
decides with them."""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import functools
import logging
import pathlib
import time

import jax
import numpy as np

from pirl_jax.core import mesh as meshes
from pirl_jax.core import rng, rows, spec
from pirl_jax.policy import flow, noise, normalize, observation, tokenizer
from pirl_jax.rollout import actor as actors
from pirl_jax.run import config, hosts, steps
from pirl_jax.weights import assets, folders, sources, statistics, store

REMOVAL_S = 2.0  # a checkpoint that is being removed is gone by then
PROMPT_BUCKET = 16  # tokens: the lengths that prompts are padded to are multiples of it

log = logging.getLogger(__name__)


def transform(
    settings: config.Settings,
    stats: normalize.NormStats,
    instructions: Sequence[str],
    *,
    only_these: bool = False,
) -> observation.Transform:
    """Raw observations <-> model inputs, checked against the prompts of the suite.

    only_these: no other prompt will come, so prompts are padded to the shortest bucket that holds
    these.
    """
    model = settings.raw.model
    result = observation.Transform(
        tokenizer=tokenizer.load(model.tokenizer),
        stats=stats,
        norm_mode=model.norm_mode,
        delta_actions=model.delta_actions,
        discrete_state=model.discrete_state,
        image_size_px=model.image_size_px,
        resize=model.resize,
        max_token_len=model.max_token_len,
        action_dim=model.action_dim,
        env_action_dim=model.action_env_dim,
    )
    longest = observation.check(result, instructions)
    if not only_these:
        return result
    bucket = longest + -longest % PROMPT_BUCKET
    return dataclasses.replace(result, max_token_len=min(model.max_token_len, bucket))


def transform_for(
    settings: config.Settings,
    stats: normalize.NormStats,
    instructions: Sequence[str],
    tasks: Sequence[int],
) -> observation.Transform:
    """For these tasks of a suite alone."""
    prompts = [instructions[task] for task in tasks]
    return transform(settings, stats, prompts, only_these=True)


def identity_stats(settings: config.Settings) -> normalize.NormStats:
    """Leaves states and actions as they are."""
    return normalize.identity(state_dim=8, action_dim=settings.policy.model.action_env_dim)


def given_stats(settings: config.Settings) -> normalize.NormStats:
    """Statistics named by the recipe.

    "identity" is for suites whose states and actions lie in [-1, 1].

    Raises:
      ValueError: none are named, or they are of another robot.
    """
    path = settings.raw.model.norm_stats
    if not path:
        raise ValueError(
            "a fresh model without SFT needs model.norm_stats: the path of a norm_stats.json, "
            "or 'identity'"
        )
    stats = identity_stats(settings) if path == "identity" else normalize.load(path)
    statistics.check(
        stats, settings.raw.model.norm_mode, action_dim=settings.policy.model.action_env_dim
    )
    return stats


def actor(
    settings: config.Settings,
    mesh: jax.sharding.Mesh,
    to_model: observation.Transform,
    instructions: Sequence[str],
) -> actors.Actor:
    """The policy as the rollout sees it, on this process's own part of the mesh.

    With a frozen VLM `explore` hands out the prefix it computed.  On its first observations the
    actor prints how well the normalisation statistics fit.
    """
    own = meshes.local(mesh)
    explore, exploit = steps.decisions(settings.policy, settings.keep_prefix, own)

    def say_how_statistics_fit(state_BQ: np.ndarray) -> None:
        print(statistics.report(to_model.stats, to_model.norm_mode, state_BQ))

    return actors.Actor(
        transform=to_model,
        instructions=instructions,
        action_chunk=settings.policy.model.action_chunk,
        explore=explore,
        exploit=exploit,
        put=functools.partial(meshes.put_batch, mesh=own),
        at_first=[say_how_statistics_fit],
        buffer=rows.Buffer(own) if settings.prefix_cache == "device" else None,
        share=hosts.share(),
    )


def evaluation_key(settings: config.Settings, mesh: jax.sharding.Mesh) -> jax.Array:
    """Where the start noise of evaluations and of the policy server comes from."""
    key = rng.named(jax.random.key(settings.raw.seed), "evaluation")
    return meshes.replicate(key, meshes.local(mesh))


def at_iteration(
    actor: actors.Actor, settings: config.Settings, iteration: int, mesh: jax.sharding.Mesh
) -> actors.Actor:
    """The actor with the noise level of an iteration."""
    model = settings.raw.model
    if not model.noise_anneal:
        return actor
    start, end, iterations = model.noise_params
    level = np.float32(noise.annealed(start, end, iterations, iteration))
    level = meshes.replicate(level, meshes.local(mesh))
    return dataclasses.replace(actor, explore=lambda *args: actor.explore(*args, level))


def fresh_params(settings: config.Settings, mesh: jax.sharding.Mesh, key: jax.Array) -> dict:
    """Random parameters, created where they will live."""
    declared = flow.specs(settings.policy)
    return spec.init(key, declared, spec.shardings(declared, mesh, meshes.RULES))


def check_start(settings: config.Settings) -> None:
    """What a fresh run starts from, before anything is written: that it is there.

    Raises:
      ValueError: a checkpoint or statistics that do not exist, or that do not fit.
    """
    if settings.raw.model.checkpoint:
        path = pathlib.Path(settings.raw.model.checkpoint)
        with folders.holding(path) as place:
            folders.require_intact(place)
            source = sources.open_source(place, settings.policy.network)
            _checked_stats(settings, source.location)
    elif not settings.raw.sft.demonstrations:
        given_stats(settings)


def load_policy(
    settings: config.Settings,
    path: str | pathlib.Path,
    iteration: int,
    mesh: jax.sharding.Mesh,
    *,
    acts: bool = False,
) -> tuple[dict, normalize.NormStats]:
    """Parameters and statistics of a checkpoint of any known format.

    Heads and adapters that it lacks start fresh from the seed; what was left out or started fresh
    is logged.

    Args:
      iteration: -1 is the newest, others exist in runs of ours.
      acts: nothing will train; what is cast to the compute dtype before every use is stored in it.

    Raises:
      ValueError: nothing known lies there, it does not fit, or a run removed it meanwhile.
    """
    path = pathlib.Path(path)
    if iteration >= 0:
        path = run_directory(path) / "checkpoints" / str(iteration)
    # A run that still trains would remove it meanwhile.
    with folders.holding(path) as place, _while_it_is_there(place):
        folders.require_intact(place)
        declared = steps.acting_specs(settings) if acts else flow.specs(settings.policy)
        source = sources.open_source(place, settings.policy.network)
        return _loaded(settings, source, declared, mesh)


@contextlib.contextmanager
def held(path: str | pathlib.Path, iteration: int) -> Iterator[int]:
    """-> the iteration that is the newest now, which stays until the block ends; others as given.

    Foreign checkpoints have none: -1.
    """
    path = pathlib.Path(path)
    with folders.holding(path, iteration) as place:
        yield iteration if place == path else int(place.name)


@contextlib.contextmanager
def _while_it_is_there(path: pathlib.Path) -> Iterator[None]:
    """Where storage has no locks, a run that still trains removes what somebody reads."""
    was_there = path.exists()
    try:
        yield
    except Exception as error:
        # Removing takes a while, too.
        deadline_s = time.monotonic() + REMOVAL_S
        while was_there and path.exists() and time.monotonic() < deadline_s:
            time.sleep(0.1)
        if not was_there or path.exists():
            raise
        raise ValueError(
            f"checkpoint {path} went away while it was read; its run still trains:"
            f" run the same command again, or raise run.keep there"
        ) from error


def _loaded(
    settings: config.Settings, source: sources.Source, declared: dict, mesh: jax.sharding.Mesh
) -> tuple[dict, normalize.NormStats]:
    layout = spec.shardings(declared, mesh, meshes.RULES)
    stats = _checked_stats(settings, source.location)
    key = rng.named(jax.random.key(settings.raw.seed), "params")
    params, notes = sources.load(source, declared, layout, key)
    for name, reason in notes.items():
        log.info("%s: %s", name, reason)
    return params, stats


def _checked_stats(settings: config.Settings, location: pathlib.Path) -> normalize.NormStats:
    """Statistics for the weights at a place, if they fit the robot."""
    stats = _stats_near(settings, location)
    statistics.check(
        stats, settings.raw.model.norm_mode, action_dim=settings.policy.model.action_env_dim
    )
    return stats


def _stats_near(settings: config.Settings, location: pathlib.Path) -> normalize.NormStats:
    """The recipe's statistics, else those that lie with a checkpoint."""
    if settings.raw.model.norm_stats:
        return given_stats(settings)
    found = assets.find(location)
    if found is None:
        raise ValueError(f"no norm_stats.json lies near {location}; give model.norm_stats")
    stats, _ = found
    return stats


def checkpoint_identity(run_dir: str | pathlib.Path, iteration: int) -> dict:
    """What names a checkpoint: its place, its iteration and when it was written.

    A copy of a run keeps that time.
    """
    run_dir = run_directory(run_dir)
    if not (run_dir / "checkpoints").is_dir():  # not a run of ours
        location = sources.open_source(run_dir).location
        return {"run": str(location), "iteration": None, "written_ns": location.stat().st_mtime_ns}
    source = store.Store(run_dir / "checkpoints", create=False)
    try:
        return {"run": str(run_dir)} | source.identity(None if iteration < 0 else iteration)
    finally:
        source.close()


def run_directory(path: str | pathlib.Path) -> pathlib.Path:
    """A run is named by its directory or by the checkpoints in it."""
    path = pathlib.Path(path)
    return path.parent if path.name == "checkpoints" else path


def norm_stats_path(run_dir: str | pathlib.Path) -> pathlib.Path:
    """Statistics travel with the weights."""
    return pathlib.Path(run_dir) / "assets" / "norm_stats.json"
