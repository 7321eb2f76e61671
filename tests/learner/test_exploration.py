"""How far exploration moves what is executed, against chunks that are denoised again by hand."""

import jax
import numpy as np
import pytest

from pirl_jax.core import mesh as meshes
from pirl_jax.learner import exploration, objective
from pirl_jax.policy import flow
from tests.learner.conftest import SAMPLED as B

SAMPLERS = [
    dict(noise_steps="one"),
    dict(noise_steps="last", noise_level=0.8, num_steps=2),
    dict(noise_steps="all", noise_level=0.3),
    dict(noise_steps="one", noise_method="flow_cps"),
    dict(noise_steps="all", noise_method="flow_noise"),
    dict(noise_steps="last", noise_method="flow_noise", noise_logvar_range=(0.4, 0.4)),
]


@pytest.mark.parametrize("fields", SAMPLERS)
def test_the_displacement_is_that_from_the_noiseless_chunk(sampled, fields):
    cfg, params, chain, prefix, expected = sampled(**fields)
    found = flow.displacement(params, chain, prefix, cfg)
    assert expected.min() > 0
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_the_last_step_with_a_fixed_std_moves_by_that(sampled):
    """Euler mean, no drift correction: nothing but the scored noise moves an entry."""
    *_, expected = sampled(**SAMPLERS[-1])
    assert np.sqrt((expected**2).mean()) == pytest.approx(0.4, rel=0.1)


def test_the_last_step_is_always_the_stochastic_one(sampled):
    _, _, chain, _, _ = sampled(**SAMPLERS[1])
    assert (np.asarray(chain.j) == 1).all() and chain.j.shape == (B, 1)


@pytest.mark.parametrize("fields", [SAMPLERS[0], SAMPLERS[2]])
def test_metrics_over_the_steps(sampled, fields):
    """As root mean squares; a sample larger than the rollout has every row equally often."""
    cfg, params, chain, prefix, expected = sampled(**fields)
    ones = np.ones(B, np.float32)
    data = objective.Minibatch(
        context=prefix, chain=chain, advantage=ones, return_=ones, weight=ones
    )

    def displacement(params, chain, context):
        return flow.displacement(params, chain, context, cfg), chain.j

    found = exploration.metrics(
        displacement,
        params,
        data,
        2 * B,
        jax.random.key(1),
        meshes.make_mesh(1, 1, jax.devices()[:1]),
    )
    j_B = np.asarray(chain.j[:, 0])
    steps = np.unique(j_B) if cfg.model.noise_steps == "one" else []
    wanted = {"rollout/moved": np.sqrt((expected**2).mean())}
    for j in steps:
        wanted[f"rollout/moved_step_{j}"] = np.sqrt((expected[j_B == j] ** 2).mean())
    assert found == pytest.approx(wanted, rel=1e-4)
