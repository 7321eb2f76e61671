"""The policy gradient theorem on the whole sampler.

The mean of (reward times gradient of the chain's log-probability) is the gradient of the mean
reward, which automatic differentiation gives through the sampler itself.
"""

import dataclasses

import analytic_network
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pirl_jax.core import page, spec
from pirl_jax.models import heads, pi0, variants
from pirl_jax.policy import flow

ROWS, H, A, WIDTH = 2**17, 2, 2, 6


def make_params():
    """An analytic network (analytic_network.py) of arbitrary weights.

    The std of its noise head is not constant.
    """
    rng = np.random.default_rng(0)

    def normal(*shape):
        return (0.5 * rng.normal(size=shape)).astype(np.float32)

    declared = heads.noise_specs(WIDTH, A, hidden=(8,))["noise_head"]
    return {
        "Wx": normal(A, WIDTH),
        "wt": normal(WIDTH),
        "Ws": normal(3, WIDTH),
        "pos": normal(H, WIDTH),
        "action_out_proj": {"kernel": normal(WIDTH, A), "bias": normal(A)},
        "noise_head": jax.tree.map(
            lambda s: normal(*s.shape), declared, is_leaf=lambda s: isinstance(s, spec.Spec)
        ),
    }


@pytest.mark.parametrize("method", ["flow_noise", "flow_sde"])
def test_the_score_is_the_gradient_of_the_mean_reward(monkeypatch, method):
    analytic_network.install(monkeypatch)
    network = variants.pi0_config("tiny", action_dim=A, action_horizon=H)
    model = page.Model(
        num_steps=2,
        noise_method=method,
        noise_level=0.4,
        noise_logvar_range=(0.3, 0.7),
        noise_steps="all",
        action_chunk=H,
        action_env_dim=A,
        add_value_head=False,
    )
    cfg = flow.Policy(network, model)
    none = jnp.zeros((ROWS, 0))
    prefix = pi0.Prefix(
        k=none,
        v=none,
        mask=none,
        state=jax.random.normal(jax.random.key(1), (ROWS, 3)),
        pooled=None,
    )
    draws = flow.draw(jax.random.split(jax.random.key(2), ROWS), cfg)
    level = jnp.full(ROWS, cfg.model.noise_level)

    def play(params, draws):
        chain, actions_BHA = flow.integrate(params, *draws, prefix, level, cfg)
        return chain, -((actions_BHA - prefix.state[:, :1, None]) ** 2).sum((1, 2))

    def surrogate(params, chain, advantage_B, cfg):
        return (advantage_B * flow.chain_log_prob(params, chain, prefix, cfg)[0].sum((1, 2))).mean()

    params = make_params()
    want = jax.jit(jax.grad(lambda params, draws: play(params, draws)[1].mean()))(params, draws)
    chain, reward_B = jax.jit(play)(params, draws)
    score = jax.jit(jax.grad(surrogate), static_argnums=3)
    got = score(params, chain, reward_B - reward_B.mean(), cfg)

    def flat(tree):
        return np.concatenate([x.reshape(-1) for x in jax.tree.leaves(tree)])

    names = ["Wx", "action_out_proj"] + ["noise_head"] * (method == "flow_noise")
    for name in names:
        error = np.linalg.norm(flat(got[name]) - flat(want[name])) / np.linalg.norm(
            flat(want[name])
        )
        assert error < 0.05, name
    mean = score(
        params,
        chain,
        reward_B - reward_B.mean(),
        flow.Policy(network, dataclasses.replace(model, joint_mean=True)),
    )
    np.testing.assert_allclose(
        flat(mean), flat(got) / 3, rtol=1e-4, atol=1e-6
    )  # RLinf's: J + 1 terms
