"""What is compiled: the functions that decide and the learner, made once from the settings.

The memory plan compiles them from shapes; a run that asks for them again gets the same ones.
"""

from collections.abc import Callable
import dataclasses
import functools

import jax

from pirl_jax.core import mesh as meshes
from pirl_jax.core import rng, spec, types
from pirl_jax.learner import offload as offloading
from pirl_jax.learner import optimizer, sft, update
from pirl_jax.learner import state as states
from pirl_jax.models import pi0
from pirl_jax.policy import flow, mirror
from pirl_jax.run import config


@functools.lru_cache(maxsize=4)
def decisions(
    cfg: flow.Policy, keep_prefix: bool, mesh: jax.sharding.Mesh
) -> tuple[Callable, Callable]:
    """The two jitted functions that decide: explore and exploit of actor.Actor.

    mesh: where they run, a process's own part.

    Rows of several batches name their key, among those of all, by index_B, and have a level each.
    """

    def row_keys(key: jax.Array, id_B: jax.Array) -> jax.Array:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, id_B)

    def row_keys_of(key_B: jax.Array, id_B: jax.Array) -> jax.Array:
        return jax.vmap(jax.random.fold_in)(key_B, id_B)

    @jax.jit
    @meshes.target(mesh)
    def explore(
        params: dict,
        key: jax.Array,
        id_B: jax.Array,
        obs: types.Observation,
        level: jax.Array | None = None,
        index_B: jax.Array | None = None,
    ) -> tuple[types.Chain, jax.Array, object]:
        prefix = flow.prefill(params, obs, cfg)
        key_B = row_keys(key, id_B) if index_B is None else row_keys_of(key[index_B], id_B)
        chain, actions_BHA = flow.sample_chain(params, key_B, prefix, cfg, level)
        if cfg.nft and cfg.nft.rows == "resample":
            chain = mirror.resampled(params, key_B, prefix, chain, cfg)
        return chain, actions_BHA, flow.prefix_to_rows(prefix) if keep_prefix else None

    @jax.jit
    @meshes.target(mesh)
    def exploit(params: dict, key: jax.Array, id_B: jax.Array, obs: types.Observation) -> jax.Array:
        prefix = pi0.prefill(params, obs, cfg.network)
        return flow.sample_actions(params, row_keys(key, id_B), prefix, cfg)

    return explore, exploit


def train_state(
    settings: config.Settings,
    params: dict,
    mesh: jax.sharding.Mesh,
    make: Callable = states.create,
) -> states.TrainState:
    """State of reinforcement learning around parameters.

    With make=states.abstract: its shapes around shapes.
    """
    return make(
        params,
        settings.raw.optim,
        trainable(settings),
        mesh,
        ema=settings.raw.algorithm.ema_decay > 0 or settings.plays_average,
        anchor=settings.raw.algorithm.anchor_coef > 0,
        frozen_dtype=functools.partial(frozen_dtype, settings),
    )


def offload(settings: config.Settings) -> offloading.Offload:
    """Where the training state lies while episodes are played."""
    return offloading.Offload(
        enabled=settings.raw.placement.offload == "optimizer",
        keeps_average=settings.plays_average,
    )


def frozen_dtype(settings: config.Settings, path: str) -> str:
    """Type in which a parameter that does not train is stored: what it is cast to, if it is."""
    used = used_dtype(settings, path)
    return settings.raw.model.frozen_dtype if used == "float32" else used


def used_dtype(settings: config.Settings, path: str) -> str:
    """Type to which a parameter is cast before every use."""
    is_rounded = pi0.is_rounded(path) and settings.raw.model.dtype == "bfloat16"
    return "bfloat16" if is_rounded else "float32"


def rounded(settings: config.Settings, params: dict) -> dict:
    """The parameters that `train_state` stores in another type than they have, by their paths."""
    trains = trainable(settings)
    changed = {}
    for path, x in spec.flatten(params).items():
        if not trains(path) and x.dtype != frozen_dtype(settings, path):
            changed[path] = x
    return spec.unflatten(changed)


def acting_specs(settings: config.Settings) -> dict:
    """Declarations of parameters of which none trains, for evaluation and serving."""
    specs = spec.flatten(flow.specs(settings.policy))
    stored = {}
    for path, leaf in specs.items():
        is_rounded = pi0.is_rounded(path)
        stored[path] = (
            dataclasses.replace(leaf, dtype=settings.raw.model.dtype) if is_rounded else leaf
        )
    return spec.unflatten(stored)


def trainable(settings: config.Settings) -> Callable[[str], bool]:
    """Predicate on paths: what reinforcement learning trains."""
    return optimizer.trainable(settings.policy.network, settings.raw.model.train_expert_only)


@functools.lru_cache(maxsize=4)
def updater(settings: config.Settings, mesh: jax.sharding.Mesh) -> update.Updater:
    """The learner."""
    return update.Updater(
        log_prob_fn(settings),
        settings.raw.algorithm,
        settings.raw.optim,
        trainable(settings),
        mesh,
        sft_loss=sft.make_loss(settings.sft, settings.raw.seed),
        nft=settings.policy.nft,
        used_dtype=functools.partial(used_dtype, settings),
        imitation_fn=imitation_fn(settings),
    )


@functools.lru_cache(maxsize=4)
def proximal(settings: config.Settings, mesh: jax.sharding.Mesh) -> Callable:
    """What rows of older parameters are looked at again with (learner/proximal.py): jitted
    (params, chain, context rows) -> log_prob_BIa, value_B; whole on every host."""
    log_prob = log_prob_fn(settings)

    @meshes.target(mesh)
    def evaluate(params: dict, chain: types.Chain, context: object) -> tuple[jax.Array, jax.Array]:
        log_prob_BIa, _, value_B, _ = log_prob(params, chain, context)
        return log_prob_BIa, value_B

    return jax.jit(evaluate, out_shardings=meshes.replicated(mesh))


def measures_displacement(settings: config.Settings) -> bool:
    """Not where the rows of a rollout are no longer the steps that were played."""
    nft = settings.policy.nft
    return not (nft and nft.rows == "resample")


@functools.lru_cache(maxsize=4)
def displacement(cfg: flow.Policy, mesh: jax.sharding.Mesh) -> Callable:
    """What learner/exploration.py measures with: jitted (params, chain, context rows) ->
    displacement [B], stochastic steps [B,U]; whole on every host."""

    @meshes.target(mesh)
    def moved(params: dict, chain: types.Chain, context: object) -> tuple[jax.Array, jax.Array]:
        return flow.displacement(params, chain, _as_context(context), cfg), chain.j

    return jax.jit(moved, out_shardings=meshes.replicated(mesh))


def _as_context(rows: object) -> object:
    """Rows of a rollout, as the policy takes them."""
    return flow.prefix_from_rows(rows) if isinstance(rows, pi0.Prefix) else rows


def imitation_fn(settings: config.Settings) -> Callable:
    """What the learner imitates its own successes by.

    (params, actions_BHA, context rows, optimiser step, number of the microbatch) -> error_B.
    """

    def imitation(
        params: dict, actions_BHA: jax.Array, context: object, step: jax.Array, number: jax.Array
    ) -> jax.Array:
        key = rng.named(jax.random.key(settings.raw.seed), "clone")
        key = jax.random.fold_in(jax.random.fold_in(key, step), number)
        return flow.imitation_error(params, actions_BHA, _as_context(context), key, settings.policy)

    return imitation


def log_prob_fn(settings: config.Settings) -> Callable:
    """What the learner sees of the policy.

    (params, chain, context rows, anchor parameters or None) -> log_prob_BIa, entropy_B, value_B,
    distance_B to the anchor.  Of NFT the first is mirror.Mirrored.
    """
    cfg = settings.policy

    def log_prob(
        params: dict, chain: types.Chain, context: object, anchor: dict | None = None
    ) -> tuple[jax.Array, ...]:
        context = _as_context(context)
        steps = flow.chain_steps(params, chain, context, cfg)
        distance_B = 0.0
        if anchor is not None:
            others = flow.chain_steps(jax.lax.stop_gradient(anchor), chain, context, cfg)
            distance_B = flow.distance(steps, others, settings.raw.algorithm.anchor, cfg)
        log_prob_BIa, entropy_B, value_B = flow.score(chain, steps, cfg)
        if cfg.nft is None:
            return log_prob_BIa, entropy_B, value_B, distance_B
        velocities = [step.velocity for step in steps]
        pair = mirror.mirrored(velocities, chain, cfg, cfg.nft)
        return pair, entropy_B, value_B, distance_B

    return log_prob
