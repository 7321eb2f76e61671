"""Rollout and update of the real policy (tiny): the VLM frozen, its prefix kept."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pirl_jax.core import mesh as meshes
from pirl_jax.core import page, spec, types
from pirl_jax.learner import objective, optimizer, update
from pirl_jax.learner import state as states
from pirl_jax.models import pi0, variants
from pirl_jax.policy import flow
from tests import at_once

ROWS = 24
POLICY = flow.Policy(
    variants.pi0_config("tiny"),
    page.Model(num_steps=3, action_chunk=3, value_hidden=(16, 8), detach_critic_input=False),
)
# eps: otherwise a gradient that is rounding noise makes a step of full size, in a direction of its
# own
OPTIM = page.Optim(lr=1e-3, value_lr=1e-3, eps=1e-3)
CFG = page.Algorithm(update_epochs=1, minibatch_size=16, microbatch_size=8)
TRAINABLE = optimizer.trainable(POLICY.network, train_expert_only=True)


def log_prob_fn(params, chain, rows, anchor):
    return *flow.chain_log_prob(params, chain, flow.prefix_from_rows(rows), POLICY), 0.0


@jax.jit
def play(key):
    """Parameters, and the rows of a rollout with random observations and outcomes."""
    names = jax.random.split(key, 8)
    params = spec.init(names[0], flow.specs(POLICY))
    cfg, normal = POLICY.network, jax.random.normal
    obs = types.Observation(
        images=jax.random.uniform(names[1], (ROWS, 2, *cfg.image_size, 3), minval=-1.0),
        image_mask=jnp.ones((ROWS, 2), bool),
        state=normal(names[2], (ROWS, cfg.action_dim)),
        tokens=jnp.ones((ROWS, 5), jnp.int32),
        token_mask=jnp.ones((ROWS, 5), bool),
    )
    prefix = pi0.prefill(params, obs, cfg)
    chain, _ = flow.sample_chain(params, jax.random.split(names[3], ROWS), prefix, POLICY)
    advantage, return_ = normal(names[4], (ROWS,)), normal(names[5], (ROWS,))
    return params, objective.Minibatch(
        flow.prefix_to_rows(prefix), chain, advantage, return_, jnp.ones(ROWS)
    )


def learn(params, data, mesh):
    layout = spec.shardings(flow.specs(POLICY), mesh, meshes.RULES)
    state = states.create(jax.device_put(params, layout), OPTIM, TRAINABLE, mesh)
    cfg = dataclasses.replace(CFG, microbatch_size=CFG.microbatch_size // mesh.size)
    updater = update.Updater(log_prob_fn, cfg, OPTIM, TRAINABLE, mesh)
    return jax.device_get(at_once.learn(updater, state, data, jax.random.key(0)))


@pytest.fixture
def played(fast_compile):
    return jax.device_get(play(jax.random.key(7)))


@pytest.mark.slow
def test_sharded_update_of_the_policy(played):
    params, data = played
    (state, metrics), (one, metrics_one) = (
        learn(params, data, meshes.make_mesh(*shape, jax.devices()[: np.prod(shape)]))
        for shape in ((4, 2), (1, 1))
    )
    # the test of the whole design: right after a rollout the ratio is 1 up to rounding, and
    # learning moves it
    assert metrics["actor/first_ratio_max_dev"] < 1e-4 < metrics["actor/ratio_max_dev"]
    for path, x in spec.flatten(state.params).items():
        before = spec.flatten(params)[path]
        assert TRAINABLE(path) or (x == before).all(), f"{path} is frozen but moved"
        np.testing.assert_allclose(
            x, spec.flatten(one.params)[path], rtol=1e-4, atol=1e-6, err_msg=path
        )
    np.testing.assert_allclose(
        list(metrics.values()), list(metrics_one.values()), rtol=1e-3, atol=1e-4
    )
    assert (state.params["value_head"]["out"]["bias"] != params["value_head"]["out"]["bias"]).all()
