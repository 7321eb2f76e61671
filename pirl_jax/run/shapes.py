"""The programs of a run, lowered from shapes: nothing is allocated, nothing is compiled.

The memory plan compiles those that a run on this machine uses; run/outlook.py compiles all of them
for devices that are not there.
"""

import math

import jax
import jax.numpy as jnp

from pirl_jax.core import mesh as meshes
from pirl_jax.core import rows as context_rows
from pirl_jax.core import spec, types
from pirl_jax.envs import base
from pirl_jax.learner import objective, preference, proximal, publish
from pirl_jax.learner import state as states
from pirl_jax.policy import flow
from pirl_jax.rl import losses
from pirl_jax.rollout import actor as actors
from pirl_jax.run import config, devices, hosts, steps

Lowered = jax.stages.Lowered


def size(tree: object) -> int:
    """Bytes on one device of arrays or shapes with shardings."""
    total = 0
    for x in jax.tree.leaves(tree):
        total += math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return total


def params(settings: config.Settings, mesh: jax.sharding.Mesh, *, acts: bool = False) -> dict:
    """Shapes of the parameters as a checkpoint brings them; acts: where nothing will train."""
    declared = steps.acting_specs(settings) if acts else flow.specs(settings.policy)
    return spec.abstract(declared, spec.shardings(declared, mesh, meshes.RULES))


def state(settings: config.Settings, mesh: jax.sharding.Mesh) -> tuple[dict, states.TrainState]:
    """Shapes of the parameters as the rollout sees them, and of the training state."""
    result = steps.train_state(settings, params(settings, mesh), mesh, make=states.abstract)
    return result.params, result


def published(settings: config.Settings, mesh: jax.sharding.Mesh, params: dict) -> int:
    """Bytes of one device that plays with copies of these parameters; 0: it needs none.

    Frozen ones that lie whole on it already are seen there.  Where it plays while something learns,
    it plays with a copy of what trains.
    """
    own = devices.playing(settings, mesh)
    publisher = publish.Publisher(steps.trainable(settings), mesh, own)
    learned, frozen = states.partition(params, steps.trainable(settings))
    if not publisher.copies:
        return size(learned) if settings.raw.rollout.max_staleness else 0
    is_there = set(own.devices.flat) <= set(mesh.devices.flat)
    copied = jax.tree.leaves(learned)
    for x in jax.tree.leaves(frozen):
        if not (is_there and x.sharding.is_fully_replicated):
            copied.append(x)
    return size(publisher.abstract(copied))


def batch_size(settings: config.Settings) -> int:
    """Rows of one decision."""
    return config.decision_batch(settings.raw, settings.raw.rollout.num_envs)


def kept_rows(settings: config.Settings, mesh: jax.sharding.Mesh, env_spec: base.EnvSpec) -> int:
    """Decisions of one iteration on a host, and of those that are played ahead of it, at most."""
    raw = settings.raw
    limit = actors.max_decisions(env_spec, settings.policy.model.action_chunk)
    # A buffer on the devices has room for replaced groups, too (train.py).
    on_device = settings.prefix_cache == "device"
    episodes_of = hosts.most_episodes if on_device else hosts.episodes_per_iteration
    episodes = episodes_of(raw, meshes.hosts(mesh))
    return episodes * limit * (raw.rollout.max_staleness + 1)


def decision(
    settings: config.Settings,
    mesh: jax.sharding.Mesh,
    prompt_tokens: int,
    env_spec: base.EnvSpec,
    params: dict,
    rows: int = 0,
) -> tuple[tuple, object]:
    """Shapes of one call of the sampler: its arguments; the context rows that it leaves.

    rows: 0: those of the rollout.
    """
    raw = settings.raw
    own = devices.playing(settings, mesh)
    rows = rows or batch_size(settings)
    sharding = meshes.batch_sharding(own)
    cameras = len(env_spec.cameras)
    pixels = raw.model.image_size_px if raw.model.resize == "host" else env_spec.image_size_px

    def array(dtype: jnp.dtype, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=sharding)

    obs = types.Observation(
        images=array(jnp.uint8, cameras, pixels, pixels, 3),
        image_mask=array(bool, cameras),
        state=array(jnp.float32, settings.policy.network.action_dim),
        tokens=array(jnp.int32, prompt_tokens),
        token_mask=array(bool, prompt_tokens),
    )
    published = publish.Publisher(steps.trainable(settings), mesh, own).abstract(params)
    open_batches = raw.rollout.max_staleness + 1
    if open_batches > 1:  # rows of several, each with a key and a level of its own
        level = array(jnp.float32) if raw.model.noise_anneal else None
        args = published, _key(own, open_batches), array(jnp.int32), obs, level, array(jnp.int32)
    else:
        args = published, _key(own), array(jnp.int32), obs
        if raw.model.noise_anneal:
            args += (jax.ShapeDtypeStruct((), jnp.float32, sharding=meshes.replicated(own)),)
    explore, _ = steps.decisions(settings.policy, settings.keep_prefix, own)
    _, _, context = jax.eval_shape(explore, *args)
    return args, obs if context is None else with_rows(context, rows, own)


def _key(mesh: jax.sharding.Mesh, *shape: int) -> jax.ShapeDtypeStruct:
    """Of a decision's noise, or of several batches."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.ShapeDtypeStruct(shape, key.dtype, sharding=meshes.replicated(mesh))


def with_rows(tree: object, count: int, mesh: jax.sharding.Mesh) -> object:
    """The same with another number of rows."""
    sharding = meshes.batch_sharding(mesh)

    def resized(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype, sharding=sharding)

    return jax.tree.map(resized, tree)


def update(
    settings: config.Settings,
    mesh: jax.sharding.Mesh,
    state: states.TrainState,
    args: tuple,
    context: object,
) -> tuple[dict[str, Lowered], objective.Minibatch]:
    """The programs of the learner, {"microbatch", "step"}, and the shapes of one microbatch.

    args, context: the shapes of `decision`.
    """
    updater = steps.updater(settings, mesh)
    count = settings.raw.algorithm.microbatch_rows(mesh.size)
    chain = _chain(settings, mesh, args, count, draws_steps=updater.draws_steps)
    context = with_rows(context, count, mesh)
    clone_weight = chain.value if settings.raw.algorithm.clone_coef else None
    batch = objective.Minibatch(context, chain, chain.value, chain.value, chain.value, clone_weight)
    return updater.lower(state, batch), batch


def _chain(
    settings: config.Settings,
    mesh: jax.sharding.Mesh,
    args: tuple,
    count: int,
    draws_steps: bool = False,
) -> types.Chain:
    """So many rows of a rollout where they are learned from, with what they count for."""
    explore, _ = steps.decisions(
        settings.policy, settings.keep_prefix, devices.playing(settings, mesh)
    )
    chain, _, _ = jax.eval_shape(explore, *args)
    if draws_steps:
        chain = jax.eval_shape(preference.one_step, chain, jnp.zeros(chain.level.shape, jnp.int32))
    chain = with_rows(chain, count, mesh)
    cfg = settings.raw.algorithm
    if not (settings.raw.rollout.max_staleness and proximal.applies(cfg)):
        return chain
    importance = jax.eval_shape(
        lambda x: losses.reduce_log_prob(x, cfg.logprob_type), chain.log_prob
    )
    return chain.replace(importance=with_rows(importance, count, mesh))


def sample_rows(settings: config.Settings, mesh: jax.sharding.Mesh) -> int:
    """Of the sample that learner/exploration.py measures on.

    As many as a device takes at once, whatever the number of devices: the sample is the same.
    """
    playing = devices.playing(settings, mesh).size * meshes.hosts(mesh)
    divisor = math.lcm(mesh.size, playing)
    return -(-settings.raw.algorithm.microbatch_size // divisor) * divisor


def looked_at(
    settings: config.Settings,
    mesh: jax.sharding.Mesh,
    state: states.TrainState,
    args: tuple,
    context: object,
) -> dict[str, Lowered]:
    """The programs that look at rows before anything is learned from them, those that a run has of
    {"proximal", "displacement"}.

    args, context: the shapes of `decision`.
    """
    programs = {}
    cfg = settings.raw.algorithm
    if settings.raw.rollout.max_staleness and proximal.applies(cfg):
        count = cfg.microbatch_rows(mesh.size)
        chain = _chain(settings, mesh, args, count).replace(importance=None)
        rows = with_rows(context, count, mesh)
        programs["proximal"] = steps.proximal(settings, mesh).lower(state.params, chain, rows)
    if steps.measures_displacement(settings):
        count = sample_rows(settings, mesh)
        params = states.acting_params(state) if settings.plays_average else state.params
        programs["displacement"] = steps.displacement(settings.policy, mesh).lower(
            params, _chain(settings, mesh, args, count), with_rows(context, count, mesh)
        )
    return programs


def rollout(settings: config.Settings, mesh: jax.sharding.Mesh, args: tuple) -> Lowered:
    """The program of a decision with exploration noise.  args: the shapes of `decision`."""
    explore, _ = steps.decisions(
        settings.policy, settings.keep_prefix, devices.playing(settings, mesh)
    )
    return explore.lower(*args)


def evaluation(settings: config.Settings, mesh: jax.sharding.Mesh, args: tuple) -> Lowered:
    """The program of a decision without.  args: the shapes of `decision`."""
    own = devices.playing(settings, mesh)
    _, exploit = steps.decisions(settings.policy, settings.keep_prefix, own)
    params, _, id_B, obs, *_ = args
    return exploit.lower(params, _key(own), id_B, obs)


def kept(
    settings: config.Settings, mesh: jax.sharding.Mesh, env_spec: base.EnvSpec, context: object
) -> dict[str, Lowered]:
    """The programs that keep prefixes on the devices of a host, {"write", "read"}."""
    own = devices.playing(settings, mesh)
    batch = settings.raw.algorithm.microbatch_rows(mesh.size) // meshes.hosts(mesh)
    return context_rows.Buffer(own).lower(context, kept_rows(settings, mesh, env_spec), batch)
