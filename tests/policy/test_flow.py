"""The heart: sampling and re-evaluation go through one denoise step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pirl_jax.core import spec
from pirl_jax.core import types
from pirl_jax.models import pi0
from pirl_jax.models import variants
from pirl_jax.policy import flow

B = 6


def _config(pi05=False, **changes):
    model = variants.pi0_config("tiny_pi05" if pi05 else "tiny")
    return flow.PolicyConfig(model=model, action_chunk=3, value_hidden=(16, 8), **changes)


def _observation(cfg, seed=0):
    rng = np.random.default_rng(seed)
    size, length = cfg.model.image_size, cfg.model.max_token_len
    return types.Observation(
        images=jnp.asarray(rng.integers(0, 256, (B, 2, *size, 3), np.uint8)), image_mask=jnp.ones((B, 2), bool),
        state=jnp.asarray(rng.normal(size=(B, cfg.model.action_dim)).astype(np.float32)),
        tokens=jnp.asarray(rng.integers(1, 200, (B, length)).astype(np.int32)),
        token_mask=jnp.asarray(np.arange(length)[None] < rng.integers(3, length, (B, 1))),
    )


@pytest.fixture(scope="module", params=[False, True], ids=["pi0", "pi05"])
def setup(request):
    cfg = _config(pi05=request.param)
    params = spec.init(jax.random.key(0), flow.specs(cfg))
    # The published initialisation starts several kernels at zero; noise on every leaf makes each of them matter.
    keys = jax.random.split(jax.random.key(1), len(jax.tree.leaves(params)))
    leaves, tree = jax.tree.flatten(params)
    params = jax.tree.unflatten(tree, [x + 0.05 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)])
    obs = _observation(cfg)
    sample = jax.jit(lambda params, key_B, obs: _sample(params, key_B, obs, cfg))
    return cfg, params, obs, sample


def _sample(params, key_B, obs, cfg):
    prefix = pi0.prefill(params, obs, cfg.model)
    return *flow.sample_chain(params, key_B, prefix, cfg), prefix


def test_the_ratio_right_after_a_rollout_is_one(setup):
    cfg, params, obs, sample = setup
    evaluate = jax.jit(lambda params, chain, context: flow.chain_log_prob(params, chain, context, cfg))
    deviations = []
    for seed in range(4):
        chain, _, prefix = sample(params, jax.random.split(jax.random.key(seed), B), obs)
        for context in (obs, prefix):
            log_prob_B, _, value_B = evaluate(params, chain, context)
            deviations.append(np.abs(np.expm1(log_prob_B - chain.log_prob)).max())
            np.testing.assert_allclose(value_B, chain.value, atol=1e-5)
    assert max(deviations) < 1e-5


def test_the_stochastic_index_is_drawn_per_row(setup):
    cfg, params, obs, sample = setup
    drawn = [sample(params, jax.random.split(jax.random.key(seed), B), obs)[0].j for seed in range(8)]
    assert any(len(np.unique(j)) > 1 for j in drawn)
    assert set(np.unique(drawn)) == set(range(cfg.num_steps))


def test_a_row_does_not_depend_on_its_batch(setup):
    cfg, params, obs, sample = setup
    key_B = jax.random.split(jax.random.key(3), B)
    chain, actions, _ = sample(params, key_B, obs)
    flip = lambda tree: jax.tree.map(lambda leaf: leaf[::-1], tree)
    other, flipped_actions, _ = sample(params, key_B[::-1], flip(obs))
    np.testing.assert_array_equal(flip(other).j, chain.j)
    np.testing.assert_allclose(flipped_actions[::-1], actions, atol=1e-5)


def test_only_the_executed_entries_are_scored(setup):
    cfg, params, obs, sample = setup
    chain, *_ = sample(params, jax.random.split(jax.random.key(0), B), obs)
    mean, std_B = jnp.zeros_like(chain.x), jnp.full(B, 0.5)
    score = lambda x: flow.gaussian_log_prob(x, mean, std_B, cfg)
    outside = chain.x_next.at[:, cfg.action_chunk :].add(1.0).at[:, :, cfg.action_env_dim :].add(1.0)
    np.testing.assert_array_equal(score(chain.x_next), score(outside))
    z = np.asarray(chain.x_next)[:, :3, :7] / 0.5
    by_hand = -0.5 * (z**2).sum((1, 2)) - 21 * (np.log(0.5) + 0.5 * np.log(2 * np.pi))
    np.testing.assert_allclose(score(chain.x_next), by_hand, rtol=1e-5)


def test_flow_ode_is_the_euler_sampler(setup):
    """With the deterministic method a chain is plain Euler integration, its log-prob 0."""
    cfg, params, obs, _ = setup
    ode = _config(cfg.model.pi05, noise_method="flow_ode")
    key_B = jax.random.split(jax.random.key(5), B)
    chain, actions, prefix = jax.jit(lambda params, key_B, obs: _sample(params, key_B, obs, ode))(params, key_B, obs)
    np.testing.assert_array_equal(chain.log_prob, np.zeros(B))
    shape = (cfg.model.action_horizon, cfg.model.action_dim)
    start = jax.vmap(lambda key: jax.random.normal(jax.random.split(key, 3)[0], shape))(key_B)
    expected = pi0.sample(params, start, obs, cfg.model, cfg.num_steps)
    np.testing.assert_allclose(actions, expected, atol=1e-4)


def test_kept_prefix_survives_the_row_layout(setup):
    _, params, obs, sample = setup
    _, _, prefix = sample(params, jax.random.split(jax.random.key(0), B), obs)
    rows = flow.prefix_to_rows(prefix)
    assert rows.k.shape[0] == B
    jax.tree.map(np.testing.assert_array_equal, flow.prefix_from_rows(rows), prefix)
