"""Policies out of settings and checkpoints: transform, statistics, parameters, and the actor that
decides with them."""

from collections.abc import Sequence
import dataclasses
import functools
import logging
import pathlib

import jax
import numpy as np

from pirl_jax.core import mesh as meshes
from pirl_jax.core import outside, rng, rows, spec
from pirl_jax.policy import flow, noise, normalize, observation, tokenizer
from pirl_jax.rollout import actor as actors
from pirl_jax.run import checkpoints, config, hosts, steps
from pirl_jax.weights import assets, frozen, resolve, sources, statistics, store

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
    with outside.named(path):
        statistics.check(
            stats, settings.raw.model.norm_mode, action_dim=settings.policy.model.action_env_dim
        )
    return stats


def actor(
    settings: config.Settings,
    mesh: jax.sharding.Mesh,
    to_model: observation.Transform,
    instructions: Sequence[str],
    *,
    is_apart: bool = False,
) -> actors.Actor:
    """The policy as the rollout sees it, on this process's own part of the mesh.

    With a frozen VLM `explore` hands out the prefix it computed.  On its first observations the
    actor prints how well the normalisation statistics fit.

    is_apart: other devices than these learn.
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
        buffer=rows.Buffer(own, is_apart) if settings.prefix_cache == "device" else None,
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
    level = noise_level(settings, iteration)
    if level is None:
        return actor
    level = meshes.replicate(level, meshes.local(mesh))
    return dataclasses.replace(actor, explore=lambda *args: actor.explore(*args, level))


def noise_level(settings: config.Settings, iteration: int) -> np.float32 | None:
    """Of an iteration; None: the configured one, always."""
    model = settings.raw.model
    if not model.noise_anneal:
        return None
    start, end, iterations = model.noise_params
    return np.float32(noise.annealed(start, end, iterations, iteration))


def fresh_params(settings: config.Settings, mesh: jax.sharding.Mesh, key: jax.Array) -> dict:
    """Random parameters, created where they will live."""
    declared = flow.specs(settings.policy)
    return spec.init(key, declared, spec.shardings(declared, mesh, meshes.RULES))


@dataclasses.dataclass(frozen=True)
class Opened:
    """A checkpoint that fits, of which only headers were read."""

    source: sources.Source
    stats: normalize.NormStats | None  # None: those of the demonstrations that teach it
    record: checkpoints.Record


def look(settings: config.Settings, place: resolve.Place, *, to_teach: bool = False) -> Opened:
    """Open a checkpoint and say what it is, before its weights are read.

    to_teach: SFT comes next, so that sft.dataset may bring the statistics.

    Raises:
      ValueError: weights or statistics that do not fit the settings.
    """
    opened = _opened(settings, place, to_teach)
    print(opened.record)
    return opened


def _opened(settings: config.Settings, place: resolve.Place, to_teach: bool) -> Opened:
    source = sources.open_source(place, settings.policy.network)
    stats, where = _stats_of(settings, place, to_teach)
    if stats is not None:
        with outside.named(where):
            statistics.check(
                stats, settings.raw.model.norm_mode, action_dim=settings.policy.model.action_env_dim
            )
    return Opened(source, stats, checkpoints.record(source, where, settings.raw.model))


def check_start(settings: config.Settings) -> checkpoints.Record | None:
    """What a fresh run starts from, before anything is written: that it is there.

    None: from nothing.

    Raises:
      ValueError: a checkpoint or statistics that do not exist, or that do not fit.
    """
    if settings.raw.model.checkpoint:
        with checkpoints.held(settings.raw.model.checkpoint) as place:
            opened = look(settings, place, to_teach=settings.raw.sft.by_dataset)
            sources.require_fit(opened.source, flow.specs(settings.policy))
            if opened.source.trained is not None:
                frozen.find(place.folder)
            return opened.record
    if not settings.raw.sft.has_demonstrations:
        given_stats(settings)
    return None


def load_policy(
    settings: config.Settings,
    path: str | pathlib.Path,
    iteration: int,
    mesh: jax.sharding.Mesh,
    *,
    acts: bool = False,
    to_teach: bool = False,
) -> tuple[dict, normalize.NormStats | None]:
    """Parameters and statistics of a checkpoint of any known format.

    Args:
      iteration: -1 is the newest.
      acts: as in load.
      to_teach: as in look; only then there may be no statistics.

    Raises:
      ValueError: nothing known lies there, it does not fit, or a run removed it meanwhile.
    """
    # A run that still trains would remove it meanwhile.
    with checkpoints.held(path, iteration) as place:
        opened = _opened(settings, place, to_teach)
        return load(settings, opened, mesh, acts=acts), opened.stats


def load(
    settings: config.Settings, opened: Opened, mesh: jax.sharding.Mesh, *, acts: bool = False
) -> dict:
    """Its parameters.

    Heads and adapters that it lacks start fresh from the seed; what was left out or started fresh
    is logged.

    acts: nothing will train; what is cast to the compute dtype before every use is stored in it,
      and what a run rounded is what it trained with.
    """
    source = (acts and opened.source.trained) or opened.source
    declared = steps.acting_specs(settings) if acts else flow.specs(settings.policy)
    layout = spec.shardings(declared, mesh, meshes.RULES)
    key = rng.named(jax.random.key(settings.raw.seed), "params")
    params, notes = sources.load(source, declared, layout, key)
    for name, reason in notes.items():
        log.info("%s: %s", name, reason)
    return params


def _stats_of(
    settings: config.Settings, place: resolve.Place, to_teach: bool
) -> tuple[normalize.NormStats | None, str]:
    """The recipe's statistics, else those of the checkpoint -> (statistics, where they lie).

    None where the demonstrations that come next bring them.
    """
    if settings.raw.model.norm_stats:
        return given_stats(settings), settings.raw.model.norm_stats
    section = settings.raw.sft
    found = None
    if not to_teach or section.dataset_statistics == "auto":
        found = assets.find(place)
    if found is None and to_teach:
        return None, section.dataset
    if found is None:
        raise ValueError(
            f"{place.folder} holds no statistics of its own; give the norm_stats.json of its data "
            f"set with {assets.FLAG}=FILE"
        )
    return found


def norm_stats_path(run_dir: str | pathlib.Path) -> pathlib.Path:
    """Statistics travel with the weights."""
    return pathlib.Path(run_dir) / "assets" / "norm_stats.json"


def keep_exact(settings: config.Settings, params: dict, directory: pathlib.Path) -> None:
    """Write what the training state will hold rounded, once for all checkpoints of a run."""
    changed = steps.rounded(settings, params)
    if not changed:
        return
    place = store.Store(directory / frozen.FOLDER)
    try:
        place.save(0, {"params": changed})
        place.wait()
    finally:
        place.close()
