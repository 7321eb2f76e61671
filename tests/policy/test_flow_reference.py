"""Whole decisions against the reference (d_sampler.npz).

Sampling, re-evaluation, other weights, gradients.

Not compared: sde_safe_* (a squared error in the
place of the log-probability, no likelihood; not implemented), and the entropy of methods without a
learned std (the reference reports 0, we report the entropy that the drawn step has).
"""

import dataclasses
import json

import analytic_network
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_files

from pirl_jax.core import page, spec, types
from pirl_jax.policy import flow, noise

FILE = "rlinf/d_sampler.npz"
TOLERANCE = dict(rtol=1e-4, atol=1e-5)
TRAIN = [
    f"{name}_N{n}"
    for n in (3, 4)
    for name in (
        "sde",
        "sde_ignore_last",
        "sde_anneal",
        "sde_joint",
        "sde_chunkcritic_detach",
        "sde_vlm",
        "sde_novalue",
        "cps",
        "ode",
        "noise_joint",
        "noise_single",
    )
]
EVAL = [f"{name}_N{n}" for n in (3, 4) for name in ("sde_eval", "noise_eval")]


@pytest.fixture
def recorded(vectors, monkeypatch):
    """recorded(case) -> get, Policy, params, prefix, level, fixed.

    The policy's network is the analytic one.
    """
    analytic_network.install(monkeypatch)
    z = np.load(vectors / FILE)

    def load(case):
        meta = json.loads(str(z[f"{case}/meta"]))
        cfg = analytic_network.policy(meta)
        params, fixed = analytic_network.weights(z, f"{case}/in/w.")
        level = (
            noise.annealed(*meta["noise_params"], meta["global_step"])
            if meta["noise_anneal"]
            else meta["noise_level"]
        )
        prefix = analytic_network.prefix(z[f"{case}/in/state"], fixed, cfg)
        return (
            (lambda name: z[f"{case}/{name}"]),
            cfg,
            params,
            prefix,
            jnp.full(meta["B"], level, jnp.float32),
            z,
        )

    return load


@pytest.mark.parametrize("case", reference_files.having(FILE, TRAIN))
def test_sampling(recorded, case):
    get, cfg, params, prefix, level_B, _ = recorded(case)
    start, j_BU, eps = analytic_network.randomness(get("in/noise"), get("in/denoise_inds"), cfg)
    chain, actions = flow.integrate(params, start, jnp.asarray(j_BU), eps, prefix, level_B, cfg)
    chains = get("out/rollout_chains")
    np.testing.assert_allclose(actions, get("out/rollout_actions"), **TOLERANCE)
    for x, shift in ((chain.x, 0), (chain.x_next, 1)):
        want = np.take_along_axis(chains, (j_BU + shift)[:, :, None, None], axis=1)
        np.testing.assert_allclose(x, want, **TOLERANCE)
    np.testing.assert_allclose(
        chain.log_prob, get("out/rollout_prev_logprobs"), rtol=1e-4, atol=1e-4
    )
    # README Q11: the reference stores the mean of the values of all steps, and trains the value of
    # one.
    every = np.broadcast_to(np.arange(cfg.model.num_steps), (len(start), cfg.model.num_steps))
    values = [
        flow.denoise_step(
            params, prefix, None, chains[:, k], jnp.asarray(every[:, k]), level_B, cfg
        ).value
        for k in range(cfg.model.num_steps)
    ]
    np.testing.assert_allclose(
        np.mean(values, axis=0), get("out/rollout_prev_values")[:, 0], **TOLERANCE
    )


NFT = ("sde_joint_N3", "noise_joint_N3")


@pytest.mark.parametrize("case", reference_files.having(FILE, NFT))
def test_what_nft_keeps_of_a_chain(recorded, case):
    """The velocities that learning finds at the same points, and the std where it is learned; the
    rest is the same as without."""
    get, cfg, params, prefix, level_B, _ = recorded(case)
    start, j_BU, eps = analytic_network.randomness(get("in/noise"), get("in/denoise_inds"), cfg)
    args = params, start, jnp.asarray(j_BU), eps, prefix, level_B
    plain, _ = flow.integrate(*args, cfg)
    assert plain.velocity is None and plain.std is None
    cfg = dataclasses.replace(cfg, nft=page.Nft())
    chain, _ = flow.integrate(*args, cfg)
    steps = flow.chain_steps(params, chain, prefix, cfg)
    for u, step in enumerate(steps):
        np.testing.assert_allclose(chain.velocity[:, u], step.velocity, rtol=1e-5, atol=1e-6)
        if case.startswith("noise"):
            np.testing.assert_allclose(chain.std[:, u], step.std, rtol=1e-5)
    assert (chain.std is None) == (not case.startswith("noise"))
    rest = chain.replace(velocity=None, std=None)
    jax.tree.map(np.testing.assert_array_equal, rest, plain)


@pytest.mark.parametrize("case", reference_files.having(FILE, TRAIN))
def test_learning(recorded, case):
    """Log-prob, value and entropy of the stored chain under the same and other weights.

    Then the gradients of a mixture.
    """
    get, cfg, params, prefix, level_B, z = recorded(case)
    _, j_BU, _ = analytic_network.randomness(get("in/noise"), get("in/denoise_inds"), cfg)
    chains = get("out/rollout_chains")
    x, x_next = (
        np.take_along_axis(chains, (j_BU + shift)[:, :, None, None], axis=1) for shift in (0, 1)
    )
    chain = types.Chain(x=x, x_next=x_next, j=j_BU, level=level_B, log_prob=None, value=None)
    other = analytic_network.weights(z, f"{case}/in/w2.")[0]

    def compare(result, name):
        log_prob, entropy, value = result
        np.testing.assert_allclose(log_prob, get(f"out/{name}_logprobs"), rtol=1e-4, atol=1e-4)
        if cfg.model.add_value_head:
            np.testing.assert_allclose(value, get(f"out/{name}_values"), **TOLERANCE)
        if cfg.model.noise_method == "flow_noise":
            np.testing.assert_allclose(entropy, get(f"out/{name}_entropy")[:, 0], **TOLERANCE)

    def mixture(params):
        log_prob, entropy, value = result = flow.chain_log_prob(params, chain, prefix, cfg)
        parts = (log_prob, "logprobs"), (value, "values"), (entropy[:, None], "entropy")
        return sum((x * get(f"in/cot_{name}")).sum() for x, name in parts), result

    compare(flow.chain_log_prob(params, chain, prefix, cfg), "recompute")
    grads, result = jax.grad(mixture, has_aux=True)(other)
    compare(result, "new")
    want = spec.flatten(analytic_network.weights(z, f"{case}/out/grad.")[0])
    for path, gradient in spec.flatten(grads).items():
        np.testing.assert_allclose(gradient, want[path], rtol=1e-3, atol=1e-4, err_msg=path)


@pytest.mark.parametrize("case", reference_files.having(FILE, EVAL))
def test_evaluation(recorded, case):
    """Without exploration every step is an ODE step."""
    get, cfg, params, prefix, level_B, _ = recorded(case)
    start = get("in/noise")[0]
    never = jnp.full((len(start), 1), -1)
    _, actions = flow.integrate(
        params, start, never, jnp.zeros((len(start), 1, *start.shape[1:])), prefix, level_B, cfg
    )
    np.testing.assert_allclose(actions, get("out/rollout_actions"), **TOLERANCE)


def test_the_reductions_of_the_reference(vectors):
    """The reference's default_forward_reduction_*.

    Mean over the steps (the start noise is one of them in the joint mode).
    """
    z = np.load(vectors / "rlinf" / "d_heads.npz")
    for joint in (0, 1):
        case = f"default_forward_reduction_joint{joint}"
        cfg = flow.Policy(None, page.Model(noise_steps="all" if joint else "one", joint_mean=True))
        for name in ("log_probs", "entropy"):
            terms = [flow.executed(x, cfg) for x in np.moveaxis(z[f"{case}/in/{name}"], 1, 0)]
            got = (
                flow._over_steps(terms[1:], terms[0], cfg)
                if joint
                else flow._over_steps(terms, 0.0, cfg)
            )
            if name == "log_probs":
                np.testing.assert_allclose(got, z[f"{case}/out/logprobs"], **TOLERANCE)
            else:
                np.testing.assert_allclose(
                    got.mean((1, 2)), z[f"{case}/out/entropy"][:, 0], **TOLERANCE
                )
