"""Puts the parts together from the settings; shared by the commands.  The only place that knows which suite is which class."""

import contextlib
import dataclasses
import functools
import logging
import os
import pathlib

import jax
import numpy as np

from pirl_jax import config, doctor
from pirl_jax.core import mesh as meshes
from pirl_jax.core import rng, rows, spec
from pirl_jax.envs import gl, probes, queue
from pirl_jax.envs import pool as pools
from pirl_jax.learner import optimizer, sft, update
from pirl_jax.learner import state as states
from pirl_jax.models import pi0
from pirl_jax.policy import flow, noise, normalize, observation, tokenizer
from pirl_jax.rollout import collector, starts
from pirl_jax.weights import assets, sources, store

PROMPT_BUCKET = 16  # tokens: the lengths that prompts are padded to are multiples of it

log = logging.getLogger(__name__)


def env_factory(settings):
    """Picklable zero-argument constructor of one simulator of the configured suite."""
    env = settings.raw.env
    limit = env.max_episode_steps or None
    if env.suite.startswith("probe_"):
        name = env.suite.removeprefix("probe_")
        return functools.partial(
            probes.make, name, image_size_px=env.image_size_px, chunk=settings.policy.action_chunk
        )
    gl.require(os.environ.get("MUJOCO_GL", "egl"))
    # Not at the top: importing mujoco without that library fails in words that do not name it.
    from pirl_jax.envs import libero, tabletop

    if env.suite == "tabletop":
        return functools.partial(
            tabletop.make,
            image_size_px=env.image_size_px,
            max_episode_steps=limit,
            render_quality=env.render_quality,
            spread=env.spread,
        )
    return functools.partial(
        libero.make,
        env.suite,
        assets=env.assets or None,
        image_size_px=env.image_size_px,
        max_episode_steps=limit,
        protocol=env.protocol,
        render_quality=env.render_quality,
        cached_tasks=env.cached_tasks,
    )


def expert_factory(settings):
    """Like env_factory, but the simulator plays its scripted expert, whatever actions it is sent."""
    suite, make_env = settings.raw.env.suite, env_factory(settings)
    from pirl_jax.envs import experts  # brings mujoco, which env_factory has checked

    if not experts.available(suite):
        raise ValueError(
            f"env.suite={suite!r} has no scripted expert; evaluate --policy=random or a --checkpoint"
        )
    return functools.partial(experts.driven, make_env)


@contextlib.contextmanager
def open_envs(settings, num_envs: int, make_env=None):
    """Start the simulators (make_env: None is env_factory's) -> ReadyQueue before their pool; both end with the context."""
    env, num_workers = settings.raw.env, min(settings.raw.env.num_workers, num_envs)
    draws = not env.suite.startswith("probe_")
    backend = os.environ.get("MUJOCO_GL", "egl") if draws else None
    os.environ.update(
        _check_machine(num_envs, num_workers, env.image_size_px, backend, tuple(env.render_devices))
    )
    pool = pools.EnvPool(
        make_env or env_factory(settings),
        num_envs,
        num_workers,
        timeout_s=env.timeout_s,
        restarts_per_hour=env.restarts_per_hour,
        recycle_episodes=env.recycle_episodes,
        recycle_growth_gb=env.recycle_growth_gb,
        render_devices=env.render_devices,
    )
    with pool, queue.ReadyQueue(pool) as ready:
        yield ready


@functools.cache
def _check_machine(num_envs, num_workers, image_size_px, backend, devices) -> dict[str, str]:
    """Once per process, before anything loads mujoco -> environment variables of the GL backend that works here."""
    backend = doctor.cheap(num_envs, num_workers, image_size_px, backend, devices)
    return gl.variables(backend) if backend else {}


def renderer(settings) -> str | None:
    """What draws the images; part of every result.  None: nothing does."""
    env = settings.raw.env
    if env.suite.startswith("probe_"):
        return None
    return gl.describe(os.environ.get("MUJOCO_GL", "egl"), *env.render_devices[:1])


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
    return normalize.identity(state_dim=8, action_dim=settings.policy.action_env_dim)


def given_stats(settings) -> normalize.NormStats:
    """Statistics named by the recipe; "identity" is for suites whose states and actions lie in [-1, 1]."""
    path = settings.raw.model.norm_stats
    if not path:
        raise ValueError(
            "a fresh model without SFT needs model.norm_stats: the path of a norm_stats.json, or 'identity'"
        )
    stats = identity_stats(settings) if path == "identity" else normalize.load(path)
    assets.check(stats, settings.raw.model.norm_mode, action_dim=settings.policy.action_env_dim)
    return stats


def actor(settings, on_mesh, to_model: observation.Transform, instructions) -> collector.Actor:
    """The policy as the rollout sees it; with a frozen VLM `explore` hands out the prefix it computed.  On its first observations
    it prints how well the normalisation statistics fit.  It decides on this process's own part of the mesh."""
    explore, exploit = decisions(settings.policy, settings.keep_prefix)
    own = meshes.local(on_mesh)
    return collector.Actor(
        transform=to_model,
        instructions=instructions,
        action_chunk=settings.policy.action_chunk,
        explore=explore,
        exploit=exploit,
        put=functools.partial(meshes.put_batch, mesh=own),
        at_first=[
            lambda state_BS: print(assets.report(to_model.stats, to_model.norm_mode, state_BS))
        ],
        buffer=rows.Buffer(own) if settings.prefix_cache == "device" else None,
        share=share(),
    )


def share() -> starts.Share:
    """Which episodes this process plays."""
    return starts.Share(jax.process_index(), jax.process_count())


def episodes_of_host(raw) -> tuple[int, int]:
    """How many episodes this process plays in an iteration; how many at most, where groups without a signal are replaced."""
    count = raw.rollout.episodes_per_iteration
    return count // jax.process_count(), max(
        count, raw.algorithm.max_episodes_per_iteration
    ) // jax.process_count()


@functools.lru_cache(maxsize=4)
def decisions(cfg: flow.PolicyConfig, keep_prefix: bool):
    """The two jitted functions that decide: explore and exploit of collector.Actor.  What the memory plan compiled is used."""

    def row_keys(key, id_B):
        return jax.vmap(jax.random.fold_in, (None, 0))(key, id_B)

    @jax.jit
    def explore(params, key, id_B, obs, level=None):
        prefix = flow.prefill(params, obs, cfg)
        chain, actions_BHA = flow.sample_chain(params, row_keys(key, id_B), prefix, cfg, level)
        return chain, actions_BHA, flow.prefix_to_rows(prefix) if keep_prefix else None

    @jax.jit
    def exploit(params, key, id_B, obs):
        return flow.sample_actions(
            params, row_keys(key, id_B), pi0.prefill(params, obs, cfg.model), cfg
        )

    return explore, exploit


def train_state(settings, params, on_mesh, make=states.create) -> states.TrainState:
    """State of reinforcement learning around parameters, or its shapes around shapes (make=states.abstract)."""
    return make(
        params,
        settings.optim,
        trainable(settings),
        on_mesh,
        ema=settings.update.ema_decay > 0,
        anchor=settings.update.anchor_coef > 0,
        frozen_dtype=settings.raw.model.frozen_dtype,
    )


def trainable(settings):
    """Predicate on paths: what reinforcement learning trains."""
    return optimizer.trainable(settings.policy.model, settings.raw.model.train_expert_only)


@functools.lru_cache(maxsize=4)
def updater(settings, on_mesh):
    """The update of one minibatch (learner/update.py make_update).  What the memory plan compiled is used."""
    return update.make_update(
        log_prob_fn(settings),
        settings.update,
        settings.optim,
        trainable(settings),
        on_mesh,
        sft_loss=sft.make_loss(settings.sft, settings.raw.seed),
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


def setup_jax(settings) -> None:
    """Persistent compilation cache: the second start of a run does not compile."""
    folder = settings.raw.run.compilation_cache
    if folder:
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(folder).expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def mesh(settings) -> jax.sharding.Mesh:
    """All devices, as the recipe splits them."""
    result = meshes.make_mesh(settings.raw.mesh.data, settings.raw.mesh.fsdp)
    config.check_batches(settings.raw, result.size, jax.process_count())
    meshes.local(result)  # whole parameters on every host, or an error
    return result


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
    source = sources.open_source(path, settings.policy.model)
    declared = flow.specs(settings.policy)
    layout = spec.shardings(declared, on_mesh, meshes.RULES)
    given = settings.raw.model.norm_stats
    found = (given_stats(settings), given) if given else assets.find(source.location)
    if found is None:
        raise ValueError(f"no norm_stats.json lies near {source.location}; give model.norm_stats")
    assets.check(found[0], settings.raw.model.norm_mode, action_dim=settings.policy.action_env_dim)
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


def log_prob_fn(settings):
    """What the learner sees of the policy: (params, chain, context rows, anchor parameters or None) -> log_prob_BIA, entropy_B,
    value_B, distance_B to the anchor."""
    cfg = settings.policy

    def log_prob(params, chain, context, anchor=None):
        context = flow.prefix_from_rows(context) if isinstance(context, pi0.Prefix) else context
        steps, distance_B = flow.chain_steps(params, chain, context, cfg), 0.0
        if anchor is not None:
            others = flow.chain_steps(jax.lax.stop_gradient(anchor), chain, context, cfg)
            distance_B = flow.distance(steps, others, settings.update.anchor, cfg)
        return *flow.score(chain, steps, cfg), distance_B

    return log_prob
