"""Policies out of settings and checkpoints: transform, statistics, parameters, and the actor that decides with them."""

import dataclasses
import functools
import logging
import pathlib

import jax
import numpy as np

from pirl_jax.core import mesh as meshes
from pirl_jax.core import rng, rows, spec
from pirl_jax.policy import flow, noise, normalize, observation, tokenizer
from pirl_jax.rollout import collector
from pirl_jax.run import hosts, steps
from pirl_jax.weights import assets, sources, store

PROMPT_BUCKET = 16  # tokens: the lengths that prompts are padded to are multiples of it


log = logging.getLogger(__name__)


def transform(
    settings, stats: normalize.NormStats, instructions, *, only_these: bool = False
) -> observation.Transform:
    """Raw observations <-> model inputs, checked against the prompts of the suite.

    only_these: no other prompt will come, so prompts are padded to the shortest bucket that holds these.
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
    return dataclasses.replace(
        result, max_token_len=min(model.max_token_len, longest + -longest % PROMPT_BUCKET)
    )


def identity_stats(settings) -> normalize.NormStats:
    """Leaves states and actions as they are."""
    return normalize.identity(state_dim=8, action_dim=settings.policy.model.action_env_dim)


def given_stats(settings) -> normalize.NormStats:
    """Statistics named by the recipe; "identity" is for suites whose states and actions lie in [-1, 1]."""
    path = settings.raw.model.norm_stats
    if not path:
        raise ValueError(
            "a fresh model without SFT needs model.norm_stats: the path of a norm_stats.json, or 'identity'"
        )
    stats = identity_stats(settings) if path == "identity" else normalize.load(path)
    assets.check(
        stats, settings.raw.model.norm_mode, action_dim=settings.policy.model.action_env_dim
    )
    return stats


def actor(settings, on_mesh, to_model: observation.Transform, instructions) -> collector.Actor:
    """The policy as the rollout sees it; with a frozen VLM `explore` hands out the prefix it computed.  On its first observations
    it prints how well the normalisation statistics fit.  It decides on this process's own part of the mesh."""
    explore, exploit = steps.decisions(settings.policy, settings.keep_prefix)
    own = meshes.local(on_mesh)
    return collector.Actor(
        transform=to_model,
        instructions=instructions,
        action_chunk=settings.policy.model.action_chunk,
        explore=explore,
        exploit=exploit,
        put=functools.partial(meshes.put_batch, mesh=own),
        at_first=[
            lambda state_BS: print(assets.report(to_model.stats, to_model.norm_mode, state_BS))
        ],
        buffer=rows.Buffer(own) if settings.prefix_cache == "device" else None,
        share=hosts.share(),
    )


def evaluation_key(settings, on_mesh) -> jax.Array:
    """Where the start noise of evaluations and of the policy server comes from."""
    return meshes.replicate(
        rng.named(jax.random.key(settings.raw.seed), "evaluation"), meshes.local(on_mesh)
    )


def at_iteration(the_actor: collector.Actor, settings, iteration: int, on_mesh) -> collector.Actor:
    """The actor with the noise level of an iteration."""
    model = settings.raw.model
    if not model.noise_anneal:
        return the_actor
    start, end, iterations = model.noise_params
    level = meshes.replicate(
        np.float32(noise.annealed(start, end, iterations, iteration)), meshes.local(on_mesh)
    )
    return dataclasses.replace(the_actor, explore=lambda *args: the_actor.explore(*args, level))


def fresh_params(settings, on_mesh, key) -> dict:
    """Random parameters, created where they will live."""
    declared = flow.specs(settings.policy)
    return spec.init(key, declared, spec.shardings(declared, on_mesh, meshes.RULES))


def load_policy(settings, path, iteration: int, on_mesh):
    """(params, NormStats) of a checkpoint of any known format; iteration -1 is the newest, others exist in runs of ours.

    Heads and adapters that it lacks start fresh from the seed; what was left out or started fresh is logged.
    """
    path = (
        pathlib.Path(path)
        if iteration < 0
        else run_directory(path) / "checkpoints" / str(iteration)
    )
    source = sources.open_source(path, settings.policy.network)
    declared = flow.specs(settings.policy)
    layout = spec.shardings(declared, on_mesh, meshes.RULES)
    given = settings.raw.model.norm_stats
    found = (given_stats(settings), given) if given else assets.find(source.location)
    if found is None:
        raise ValueError(f"no norm_stats.json lies near {source.location}; give model.norm_stats")
    assets.check(
        found[0], settings.raw.model.norm_mode, action_dim=settings.policy.model.action_env_dim
    )
    params, notes = sources.load(
        source, declared, layout, rng.named(jax.random.key(settings.raw.seed), "params")
    )
    for name, reason in notes.items():
        log.info("%s: %s", name, reason)
    return params, found[0]


def checkpoint_identity(run_dir, iteration: int) -> dict:
    """What names a checkpoint: its place, its iteration and when it was written, which a copy of a run keeps."""
    run_dir = run_directory(run_dir)
    if not (run_dir / "checkpoints").is_dir():  # not a run of ours
        location = sources.open_source(run_dir).location
        return {"run": str(location), "iteration": None, "written_ns": location.stat().st_mtime_ns}
    source = store.Store(run_dir / "checkpoints", create=False)
    try:
        return {"run": str(run_dir)} | source.identity(None if iteration < 0 else iteration)
    finally:
        source.close()


def run_directory(path) -> pathlib.Path:
    """A run is named by its directory or by the checkpoints in it."""
    path = pathlib.Path(path)
    return path.parent if path.name == "checkpoints" else path


def norm_stats_path(run_dir) -> pathlib.Path:
    """Statistics travel with the weights."""
    return pathlib.Path(run_dir) / "assets" / "norm_stats.json"
