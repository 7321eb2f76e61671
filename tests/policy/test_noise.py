"""Mean, std and log-prob of every denoise step against the reference sampler (d_flow.npz)."""

import json

import analytic_network
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_files

from pirl_jax.models import heads
from pirl_jax.policy import gaussian, noise

METHODS = ("flow_ode", "flow_sde", "flow_cps", "flow_noise")
LEVELS = {
    "flow_ode": (0.5,),
    "flow_sde": (0.1, 0.3, 0.5, 0.7),
    "flow_cps": (0.1, 0.3, 0.5, 0.7),
    "flow_noise": (0.5,),
}
CASES = [
    f"{method}_nl{level}_N{n}"
    for method in METHODS
    for level in LEVELS[method]
    for n in (3, 4, 5, 10)
]


@pytest.fixture(scope="module")
def d_flow(vectors):
    with np.load(vectors / "rlinf" / "d_flow.npz") as opened:
        yield opened


def _step(d_flow, case, method, level, num_steps, index, x, v, feature):
    t_B = ((num_steps - index) / num_steps).astype(np.float32)
    if method == "flow_noise":
        head, _ = analytic_network.weights(d_flow, f"{case}/in/")
        scale = heads.noise_std(head, feature, (0.08, 0.16))
    else:
        scale = jnp.full((len(x), 1, 1), level, jnp.float32)
    mean, std = noise.step(method, x, v, jnp.asarray(t_B), 1 / num_steps, scale)
    return mean, jnp.broadcast_to(std, mean.shape)


@pytest.mark.parametrize("case", reference_files.having("rlinf/d_flow.npz", CASES))
def test_a_step(d_flow, case):
    """Mean, std, sample, log-prob and entropy of every denoise index."""
    method, level, num_steps = case.rsplit("_", 2)
    num_steps, level = int(num_steps[1:]), float(level[2:])
    inputs = (d_flow[f"{case}/in/{name}"] for name in ("x_t", "v_t", "suffix_out", "eps"))
    for i, (x, v, feature, eps) in enumerate(zip(*inputs, strict=True)):
        want = {
            name: d_flow[f"{case}/out/{name}"][i]
            for name in ("mean", "std", "sample", "logprob", "entropy")
        }
        mean, std = _step(d_flow, case, method, level, num_steps, np.full(len(x), i), x, v, feature)
        np.testing.assert_allclose(mean, want["mean"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(std, want["std"], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(mean + std * eps, want["sample"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            gaussian.log_prob(want["sample"], mean, std), want["logprob"], rtol=1e-4, atol=1e-4
        )
        entropy = np.where(
            std > 0, gaussian.entropy(std), gaussian.entropy(1.0)
        )  # the reference says 1.42 at std 0
        np.testing.assert_allclose(entropy, want["entropy"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_rows_at_different_steps_and_their_gradient(d_flow, method):
    case = f"mixed_{method}"
    meta = json.loads(str(d_flow[f"{case}/meta"]))
    get = {
        name: d_flow[f"{case}/in/{name}"]
        for name in ("x_t", "v_t", "idx", "x_next", "cotangent", "suffix_out")
    }

    def log_prob(v, feature):
        at = meta["noise_level"], meta["num_steps"], get["idx"], get["x_t"]
        return gaussian.log_prob(get["x_next"], *_step(d_flow, case, method, *at, v, feature))

    result, pullback = jax.vjp(log_prob, jnp.asarray(get["v_t"]), jnp.asarray(get["suffix_out"]))
    np.testing.assert_allclose(result, d_flow[f"{case}/out/logprob"], rtol=1e-4, atol=1e-4)
    gradients = pullback(jnp.asarray(get["cotangent"]))
    for gradient, name in zip(gradients, ("v_t", "suffix_out"), strict=True):
        if f"{case}/out/grad_{name}" in d_flow.files:
            np.testing.assert_allclose(
                gradient, d_flow[f"{case}/out/grad_{name}"], rtol=1e-4, atol=1e-4
            )


def test_log_prob_and_entropy_of_any_gaussian(d_flow):
    get = {
        name: jnp.asarray(d_flow[f"logprob_norm_safe0/in/{name}"])
        for name in ("sample", "mu", "sigma", "cotangent")
    }
    result, pullback = jax.vjp(gaussian.log_prob, get["sample"], get["mu"], get["sigma"])
    np.testing.assert_allclose(
        result, d_flow["logprob_norm_safe0/out/logprob"], rtol=1e-4, atol=1e-4
    )
    for gradient, name in zip(pullback(get["cotangent"]), ("sample", "mu", "sigma"), strict=True):
        np.testing.assert_allclose(
            gradient, d_flow[f"logprob_norm_safe0/out/grad_{name}"], rtol=1e-4, atol=1e-4
        )
    std = d_flow["gaussian_entropy/in/sigma"]
    ours = np.where(std > 0, gaussian.entropy(std), gaussian.entropy(1.0))
    np.testing.assert_allclose(ours, d_flow["gaussian_entropy/out/entropy"], rtol=1e-5, atol=1e-5)


def test_times(d_flow):
    """t_j = 1 - j / J, as denoise_step forms it."""
    for num_steps in range(1, 13):
        ours = (num_steps - np.arange(num_steps + 1)).astype(np.float32) * (1 / num_steps)
        np.testing.assert_allclose(ours, d_flow[f"timesteps/out/N{num_steps}"], atol=1e-6)


def test_annealing(d_flow):
    for case in (name for name in d_flow["__cases__"] if name.startswith("noise_level_anneal1")):
        meta = json.loads(str(d_flow[f"{case}/meta"]))
        ours = [
            noise.annealed(*meta["noise_params"], int(step))
            for step in d_flow[f"{case}/in/global_step"]
        ]
        np.testing.assert_allclose(ours, d_flow[f"{case}/out/flow_sde"], rtol=1e-6)


def test_cps_turns_old_noise_into_fresh_noise():
    """With x1 of unit variance the state keeps the flow's noise level t - dt at every angle.

    The last step is clean.
    """
    one = jnp.ones((5, 1, 1))
    t_B = jnp.asarray((5 - np.arange(5)) / 5, jnp.float32)
    mean_of_noise, std = noise.step(
        "flow_cps", one * 0 + t_B[:, None, None], one, t_B, 1 / 5, 0.3 * one
    )  # x = t, v = 1: x1 = 1, x0 = 0
    np.testing.assert_allclose(
        mean_of_noise**2 + std**2, ((t_B - 1 / 5) ** 2)[:, None, None], atol=1e-6
    )
    assert std[-1] == 0 and (std[:-1] > 0).all()


def test_unknown_method_lists_the_choices():
    with pytest.raises(ValueError, match=r"noise_method='reinforce'.*flow_ode, flow_sde"):
        noise.step("reinforce", None, None, None, 0.25, None)
