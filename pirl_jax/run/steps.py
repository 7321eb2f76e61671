"""What is compiled: the functions that decide and the function that learns, made once from the settings.

The memory plan compiles them from shapes; a run that asks for them again gets the same ones.
"""

import functools

import jax

from pirl_jax.learner import optimizer, sft, update
from pirl_jax.learner import state as states
from pirl_jax.models import pi0
from pirl_jax.policy import flow


@functools.lru_cache(maxsize=4)
def decisions(cfg: flow.Policy, keep_prefix: bool):
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
            params, row_keys(key, id_B), pi0.prefill(params, obs, cfg.network), cfg
        )

    return explore, exploit


def train_state(settings, params, on_mesh, make=states.create) -> states.TrainState:
    """State of reinforcement learning around parameters, or its shapes around shapes (make=states.abstract)."""
    return make(
        params,
        settings.raw.optim,
        trainable(settings),
        on_mesh,
        ema=settings.raw.algorithm.ema_decay > 0,
        anchor=settings.raw.algorithm.anchor_coef > 0,
        frozen_dtype=settings.raw.model.frozen_dtype,
    )


def trainable(settings):
    """Predicate on paths: what reinforcement learning trains."""
    return optimizer.trainable(settings.policy.network, settings.raw.model.train_expert_only)


@functools.lru_cache(maxsize=4)
def updater(settings, on_mesh):
    """The update of one minibatch (learner/update.py make_update).  What the memory plan compiled is used."""
    return update.make_update(
        log_prob_fn(settings),
        settings.raw.algorithm,
        settings.raw.optim,
        trainable(settings),
        on_mesh,
        sft_loss=sft.make_loss(settings.sft, settings.raw.seed),
    )


def log_prob_fn(settings):
    """What the learner sees of the policy: (params, chain, context rows, anchor parameters or None) -> log_prob_BIA, entropy_B,
    value_B, distance_B to the anchor."""
    cfg = settings.policy

    def log_prob(params, chain, context, anchor=None):
        context = flow.prefix_from_rows(context) if isinstance(context, pi0.Prefix) else context
        steps, distance_B = flow.chain_steps(params, chain, context, cfg), 0.0
        if anchor is not None:
            others = flow.chain_steps(jax.lax.stop_gradient(anchor), chain, context, cfg)
            distance_B = flow.distance(steps, others, settings.raw.algorithm.anchor, cfg)
        return *flow.score(chain, steps, cfg), distance_B

    return log_prob
