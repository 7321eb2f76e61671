"""What recomputation saves and costs, by the compiled loss and gradient of all weights."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from pirl_jax.core import types
from pirl_jax.models import pi0, remat, variants
from pirl_jax.run import hlo

LAYERS = 8  # a loop, as at full size: few layers are unrolled


def _network(policy):
    parts = {}
    for part, table, name in (
        ("paligemma", variants.GEMMA, "tiny"),
        ("expert", variants.GEMMA, "tiny_expert"),
        ("siglip", variants.SIGLIP, "tiny"),
    ):
        parts[part] = dataclasses.replace(table[name], depth=LAYERS)
    return variants.pi0_config("tiny", image_size=(64, 64), remat=policy, **parts)


def _compiled(policy):
    cfg = _network(policy)
    rows = 4

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct((rows, *shape), dtype)

    obs = types.Observation(
        images=array(jnp.uint8, 2, *cfg.image_size, 3),
        image_mask=array(bool, 2),
        state=array(jnp.float32, cfg.action_dim),
        tokens=array(jnp.int32, cfg.max_token_len),
        token_mask=array(bool, cfg.max_token_len),
    )
    actions = array(jnp.float32, cfg.action_horizon, cfg.action_dim)
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), pi0.specs(cfg)
    )

    def loss(*inputs):
        return pi0.flow_matching_loss(*inputs, cfg).mean()

    lowered = jax.jit(jax.value_and_grad(loss)).lower(
        params, obs, actions, actions, array(jnp.float32)
    )
    return lowered.compile()


@pytest.mark.slow
def test_each_policy_takes_less_memory_at_the_arithmetic_that_the_plan_counts_with():
    memory = {}
    flops = {}
    for policy in remat.POLICIES:
        executable = _compiled(policy)
        memory[policy] = executable.memory_analysis().temp_size_in_bytes
        flops[policy] = hlo.Program(executable.as_text()).totals().flops
    assert memory["dots"] < 0.35 * memory["none"]
    assert memory["full"] < 0.2 * memory["none"]
    assert flops["dots"] == pytest.approx(flops["none"], rel=0.03)
    assert flops["full"] / flops["dots"] == pytest.approx(remat.COST["full"], abs=0.06)
