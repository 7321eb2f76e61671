"""Mean, std and log-prob of every denoise step against the reference sampler (d_flow.npz)."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pirl_jax.policy import flow
from pirl_jax.policy import noise

METHODS = ("flow_ode", "flow_sde")
CASES = [f"{method}_nl{level}_N{n}" for method, levels in (("flow_ode", (0.5,)), ("flow_sde", (0.1, 0.3, 0.5, 0.7)))
         for level in levels for n in (3, 4, 5, 10)]


@pytest.fixture(scope="module")
def d_flow(vectors):
    return np.load(vectors / "rlinf" / "d_flow.npz")


def _step(method, level, num_steps, index, x, v):
    t_B = ((num_steps - index) / num_steps).astype(np.float32)
    return noise.step(method, x, v, jnp.asarray(t_B), 1 / num_steps, level)


@pytest.mark.parametrize("case", CASES)
def test_mean_and_std(d_flow, case):
    method, level, num_steps = case.rsplit("_", 2)
    num_steps, level = int(num_steps[1:]), float(level[2:])
    for i, (x, v) in enumerate(zip(d_flow[f"{case}/in/x_t"], d_flow[f"{case}/in/v_t"])):
        mean, std_B = _step(method, level, num_steps, np.full(len(x), i), x, v)
        np.testing.assert_allclose(mean, d_flow[f"{case}/out/mean"][i], rtol=1e-4, atol=1e-5)
        std = np.broadcast_to(np.asarray(std_B)[:, None, None], x.shape)
        np.testing.assert_allclose(std, d_flow[f"{case}/out/std"][i], rtol=1e-4, atol=1e-6)
        eps, sample = d_flow[f"{case}/in/eps"][i], d_flow[f"{case}/out/sample"][i]
        np.testing.assert_allclose(mean + std * eps, sample, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_rows_at_different_steps_and_their_gradient(d_flow, method):
    case = f"mixed_{method}"
    meta = json.loads(str(d_flow[f"{case}/meta"]))
    get = {name: d_flow[f"{case}/in/{name}"] for name in ("x_t", "v_t", "idx", "x_next", "cotangent")}

    def log_prob(v):
        mean, std_B = _step(method, meta["noise_level"], meta["num_steps"], get["idx"], get["x_t"], v)
        return jax.vmap(_elementwise)(get["x_next"], mean, std_B)

    result, pullback = jax.vjp(log_prob, jnp.asarray(get["v_t"]))
    np.testing.assert_allclose(result, d_flow[f"{case}/out/logprob"], rtol=1e-4, atol=1e-4)
    gradient = pullback(jnp.asarray(get["cotangent"]))[0]
    np.testing.assert_allclose(gradient, d_flow[f"{case}/out/grad_v_t"], rtol=1e-4, atol=1e-4)


def _elementwise(x_HA, mean_HA, std):
    """Per-entry log-prob through the public function: one entry at a time is a 1 x 1 chunk."""
    cfg = flow.PolicyConfig(model=None, action_chunk=1, action_env_dim=1)
    one = lambda x, mean: flow.gaussian_log_prob(x[None, None, None], mean[None, None, None], std[None], cfg)[0]
    return jax.vmap(jax.vmap(one))(x_HA, mean_HA)


def test_unknown_method_lists_the_choices():
    with pytest.raises(ValueError, match="noise_method='reinforce'.*flow_ode, flow_sde"):
        noise.step("reinforce", None, None, None, 0.25, 0.5)
