"""The mirrored policies against RLinf's and the authors' programs (rlinf2/*.npz: loss, gradient and
metrics of every setting), and against the policy gradient and the KL that PPO knows."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_files

from pirl_jax.core import page, types
from pirl_jax.policy import flow, mirror, noise
from pirl_jax.rl import nft

RLINF = (
    "paper_dpo",
    "dpo_default",
    "dpo_beta_half",
    "dpo_chunk",
    "dpo_grpo",
    "mse_sigma",
    "mse_sigma_beta",
    "mse_clip",
    "recipe",
    "x0_adaptive_chunk",
    "x0_constant",
    "x0_sde_sigma",
    "weight_t",
    "weight_1mt",
    "weight_inv_t2",
    "weight_inv_t3",
)
AUTHORS = ("published", "no_kl", "beta_half", "wide_drift", "weighted", "x0_target")
SEEDS = (0, 1)
# Ours -> theirs.  They take these over all rows, those that do not exist included.
RLINF_METRICS = {
    "delta_v_norm": "delta_v_norm",
    "clip_frac": "clip_frac",
    "E_pos_mean": "E_pos_mean",
    "E_neg_mean": "E_neg_mean",
    "delta_E_mean": "delta_E_mean",
}
AUTHORS_METRICS = RLINF_METRICS | {
    "delta_v_norm": "delta_v_norm_mean",
    "pref_acc": "pref_acc",
    "z_squared": "z2_mean",
}


def policy(num_steps=4, method="flow_sde", entries=8, **fields):
    """What mirrored() reads of a policy whose chunks are [10, 8]."""
    model = dataclasses.replace(
        page.Model(),
        num_steps=num_steps,
        noise_method=method,
        action_chunk=5,
        action_env_dim=entries,
        action_dim=8,
        action_horizon=10,
        **fields,
    )
    return flow.Policy(None, model)


def named(file, names):
    cases = [f"{name}/{seed}" for name in names for seed in SEEDS]
    return reference_files.having(f"rlinf2/{file}.npz", cases)


def case_of(vectors, file, name):
    with np.load(vectors / "rlinf2" / f"{file}.npz") as arrays:
        settings = json.loads(str(arrays["meta"]))[name]
        start = f"{name}/"
        keys = [key for key in arrays.files if key.startswith(start)]
        found = {key.removeprefix(start): arrays[key] for key in keys}
    return settings, found


def chain_of(found):
    return types.Chain(
        x=found["in/x"][:, None],
        x_next=found["in/x_next"][:, None],
        j=found["in/step"][:, None],
        level=found["in/level"],
        log_prob=None,
        value=None,
        velocity=found["in/v_old"][:, None],
        actions=found["in/x0"],
    )


def loss_of(velocity, chain, label_B, weight_B, cfg, options, scale):
    """Loss with the drift term, and every metric."""
    pair = mirror.mirrored([velocity], chain, cfg, options)
    loss, metrics = nft.nft(
        pair.e_pos,
        pair.e_neg,
        label_B,
        weight_B,
        form=options.form,
        dpo_beta=options.dpo_beta,
        scale=scale,
        held=(pair.held_pos, pair.held_neg) if options.clip_ratio else None,
    )
    metrics |= {
        "delta_v_norm": nft.mean(pair.drift, weight_B),
        "clip_frac": nft.mean(pair.is_held, weight_B),
        "z_squared": nft.mean(pair.z_squared, weight_B),
    }
    drift = (
        pair.squared_drift.reshape(len(weight_B), -1).mean(1) * weight_B
    ).sum() / weight_B.sum()
    return loss + options.drift_coef * drift, nft.over_parts(metrics) | {"nft_loss": loss}


def check(found, chain, label_B, cfg, options, scale, metrics):
    """Loss and gradient of the rows that exist, these metrics of all rows."""
    weight_B = found["in/mask"][:, 0].astype(np.float32)
    settings = label_B, weight_B, cfg, options, scale
    (loss, masked), grad = jax.value_and_grad(loss_of, has_aux=True)(
        found["in/v_theta"], chain, *settings
    )
    np.testing.assert_allclose(loss, found["out/loss"], rtol=1e-5)
    np.testing.assert_allclose(masked["nft_loss"], found["out/metric/nft_loss"], rtol=1e-5)
    want = found["out/grad_v_theta"]
    np.testing.assert_allclose(grad, want, rtol=0, atol=1e-5 * np.abs(want).max())
    ones = np.ones_like(weight_B)
    _, whole = loss_of(found["in/v_theta"], chain, label_B, ones, cfg, options, scale)
    for ours, theirs in metrics.items():
        want = found[f"out/metric/{theirs}"]
        np.testing.assert_allclose(whole[ours], want, rtol=1e-5, atol=2e-6, err_msg=ours)
    return masked


def pair_of(scale):
    return tuple(scale) if isinstance(scale, list) else (scale, scale)


@pytest.mark.parametrize("name", named("nft", RLINF))
def test_rlinf(vectors, name):
    settings, found = case_of(vectors, "nft", name)
    theirs = settings["algorithm"]
    is_ode = settings["noise_level"] == 0
    target = theirs.get("nft_target_space", "xnext")
    clip = theirs.get("adv_clip_max", 1.0)
    is_chunk = theirs.get("nft_gather_type") == "chunk_level"
    options = page.Nft(
        form=theirs["nft_loss_form"],
        target="x0_sde" if target == "x0" and not is_ode else target,
        weight=theirs.get("nft_weight_mode", "auto"),
        weight_scale=pair_of(theirs.get("nft_weight_scale", 1.0)),
        reduction=theirs.get("nft_energy_reduction", "mean"),
        level="chunk" if is_chunk else "action",
        beta=theirs.get("nft_beta", 1.0),
        dpo_beta=theirs.get("dpo_beta", 1.0),
        clip_ratio=theirs.get("nft_clip_ratio", 0.0),
        max_drift=0.0,
    )
    cfg = policy(settings["num_steps"], "flow_ode" if is_ode else "flow_sde")
    label_B = found["in/advantage"][:, 0]
    if theirs["adv_type"] != "raw":
        label_B = nft.labels(label_B, clip)
    scale = clip / options.beta
    masked = check(found, chain_of(found), label_B, cfg, options, scale, RLINF_METRICS)
    for ours, metric in (
        ("E_pos_positive", "E_pos_mean_pos_only"),
        ("E_neg_negative", "E_neg_mean_neg_only"),
        ("clip_loss_frac", "clip_loss_frac"),
    ):
        if f"out/metric/{metric}" in found:
            np.testing.assert_allclose(masked[ours], found[f"out/metric/{metric}"], rtol=1e-5)


@pytest.mark.parametrize("name", named("nft_original", AUTHORS))
def test_authors(vectors, name):
    settings, found = case_of(vectors, "nft_original", name)
    theirs = {"kl_beta": 1e-4} | settings["kwargs"]
    options = page.Nft(
        form="mse" if theirs.get("loss_form") == "weighted" else "dpo",
        target="x0" if theirs.get("use_x0_target") else "xnext",
        beta=theirs.get("beta", 1.0),
        dpo_beta=theirs.get("dpo_beta", 1.0),
        max_drift=theirs.get("max_drift", 0.5),
        drift_coef=theirs["kl_beta"],
    )
    cfg = policy(settings["num_steps"])
    label_B = nft.labels(found["in/advantage"][:, 0], theirs.get("adv_clip_max", 1.0))
    check(found, chain_of(found), label_B, cfg, options, 1.0, AUTHORS_METRICS)


# ---- what it is ----------------------------------------------------------------------------------

METHODS = ("flow_sde", "flow_noise", "flow_cps")
OPTIONS = page.Nft(beta=0.7, dpo_beta=1.3, max_drift=0.0)


@dataclasses.dataclass
class Stored:
    """Two noisy steps of four decisions, how far the policy has moved since, and labels."""

    cfg: flow.Policy
    chain: types.Chain
    delta: np.ndarray  # [4,2,10,8]
    label: np.ndarray  # [4]

    @property
    def sign(self):
        return (2 * self.label - 1)[:, None, None, None]

    def velocity(self, delta):
        return [self.chain.velocity[:, u] + delta[:, u] for u in range(2)]

    def steps(self, velocity):
        """As the network would have made them."""
        found = []
        for u, velocity_BHA in enumerate(velocity):
            scale = self.chain.level[:, None, None] if self.chain.std is None else None
            scale = self.chain.std[:, u] if scale is None else scale
            t_B = flow.flow_time(self.chain.j[:, u], self.cfg)
            dt = 1 / self.cfg.model.num_steps
            args = self.chain.x[:, u], velocity_BHA, t_B, dt, scale
            mean, std = noise.step(self.cfg.model.noise_method, *args)
            std = jnp.broadcast_to(std, mean.shape)
            found.append(flow.Step(velocity=velocity_BHA, mean=mean, std=std, value=0.0))
        return found

    def shrink(self):
        """std^2 / (std^2 + 1e-4), which both programs have and the formulas have not [4,2,10,8]."""
        steps = self.steps(self.velocity(np.zeros_like(self.delta)))
        std = np.stack([step.std for step in steps], 1)
        return std**2 / (std**2 + mirror.SMALLEST_VARIANCE)

    def score(self):
        """d log pi / d v, at the policy that played."""

        def log_prob(delta):
            steps = self.steps(self.velocity(delta))
            return flow.score(self.chain, steps, self.cfg)[0].sum()

        return jax.grad(log_prob)(jnp.zeros_like(self.delta))

    def loss(self, delta, options=OPTIONS, scale=1.0):
        """Sum over rows, steps and actions."""
        pair = mirror.mirrored(self.velocity(delta), self.chain, self.cfg, options)
        loss, _ = nft.nft(
            pair.e_pos,
            pair.e_neg,
            self.label,
            np.ones(4, np.float32),
            form=options.form,
            dpo_beta=options.dpo_beta,
            scale=scale,
            normalizer=1 / pair.e_pos[0].size,
        )
        return loss


def stored(method):
    draw = np.random.default_rng(7)

    def normal(*shape):
        return draw.normal(size=shape).astype(np.float32)

    std = 0.1 + 0.2 * draw.random((4, 2, 10, 8)).astype(np.float32)
    chain = types.Chain(
        x=normal(4, 2, 10, 8),
        x_next=normal(4, 2, 10, 8),
        j=np.array([[0, 1], [1, 2], [2, 0], [0, 2]], np.int32),
        level=np.array([0.5, 0.3, 0.8, 0.5], np.float32),
        log_prob=None,
        value=None,
        velocity=normal(4, 2, 10, 8),
        std=std if method == "flow_noise" else None,
        actions=normal(4, 10, 8),
    )
    label = np.array([1.0, 0.0, 0.8, 0.35], np.float32)
    return Stored(policy(4, method, 7, noise_steps="all"), chain, 0.3 * normal(4, 2, 10, 8), label)


@pytest.mark.parametrize("method", METHODS)
def test_the_first_gradient_of_dpo_is_the_policy_gradient(method):
    """-b beta y score: REINFORCE with advantage y; and the first loss is log 2."""
    case = stored(method)
    nothing = jnp.zeros_like(case.delta)
    loss, grad = jax.value_and_grad(case.loss)(nothing)
    want = -OPTIONS.dpo_beta * OPTIONS.beta * case.sign * case.score() * case.shrink()
    assert np.abs(want).max() > 0.1
    np.testing.assert_allclose(grad, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
    np.testing.assert_allclose(loss, 4 * 2 * 5 * np.log(2), rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_mse_is_policy_gradient_with_a_kl_penalty(method):
    """c (const - 2 y <score, delta> + 2 beta KL), in its gradient at any delta."""
    case = stored(method)
    options = dataclasses.replace(OPTIONS, form="mse")
    clip = 0.4
    grad = jax.grad(case.loss)(jnp.asarray(case.delta), options, clip / options.beta)
    old = case.steps(case.velocity(np.zeros_like(case.delta)))

    def distance(delta):
        return flow.distance(case.steps(case.velocity(delta)), old, "kl", case.cfg).sum()

    kl = jax.grad(distance)(jnp.asarray(case.delta))
    want = clip * (-2 * case.sign * case.score() + 2 * options.beta * kl) * case.shrink()
    np.testing.assert_allclose(grad, want, rtol=1e-3, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("method", METHODS)
def test_the_difference_of_the_energies_is_linear(method):
    case = stored(method)

    def difference(factor):
        pair = mirror.mirrored(case.velocity(factor * case.delta), case.chain, case.cfg, OPTIONS)
        return pair.e_pos - pair.e_neg

    one = difference(1.0)
    assert np.abs(one).min() > 0
    tolerance = 1e-4 * np.abs(one).max()
    np.testing.assert_allclose(difference(-0.5), -0.5 * one, rtol=1e-4, atol=tolerance)
    np.testing.assert_allclose(difference(3.0), 3 * one, rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize("method", METHODS)
def test_the_distance_is_that_of_an_anchor(method):
    """KL of the chunk at the std that was played, as flow.distance has it."""
    case = stored(method)
    pair = mirror.mirrored(case.velocity(case.delta), case.chain, case.cfg, OPTIONS)
    old = case.steps(case.velocity(np.zeros_like(case.delta)))
    want = flow.distance(case.steps(case.velocity(case.delta)), old, "kl", case.cfg)
    np.testing.assert_allclose(pair.kl.sum((1, 2)), want, rtol=1e-3)


def test_only_executed_entries_are_seen():
    case = stored("flow_sde")
    grad = np.array(jax.grad(case.loss)(jnp.asarray(case.delta)))
    assert (grad[:, :, :5, :7] != 0).all()
    grad[:, :, :5, :7] = 0
    assert (grad == 0).all()


@pytest.mark.parametrize("level", mirror.LEVELS)
def test_limits_have_a_gradient_where_nothing_has_moved(level):
    """The norm of a change of 0 has no slope, and the loss still has its own."""
    case = stored("flow_sde")
    options = page.Nft(level=level, form="mse", max_drift=0.5, clip_ratio=0.1)
    free = page.Nft(level=level, form="mse", max_drift=0.0)
    nothing = jnp.zeros_like(case.delta)
    limited = jax.grad(case.loss)(nothing, options)
    np.testing.assert_array_equal(limited, jax.grad(case.loss)(nothing, free))
    assert (limited[:, :, :5, :7] != 0).all()


def test_no_change_beyond_the_drift_limit_is_seen():
    case = stored("flow_sde")
    options = page.Nft(max_drift=0.05)
    near = mirror.mirrored(case.velocity(case.delta), case.chain, case.cfg, options)
    far = mirror.mirrored(case.velocity(9 * case.delta), case.chain, case.cfg, options)
    np.testing.assert_allclose(near.e_pos, far.e_pos, rtol=1e-4)
    assert near.is_held.all() and (far.drift > 5 * near.drift).all()


def test_without_noise_the_error_sets_the_weight():
    def kind(method, **fields):
        return mirror.weight_kind(policy(method=method), page.Nft(**fields))

    assert kind("flow_ode") == "adaptive"
    assert {kind(method) for method in METHODS} == {"sigma"}
    assert kind("flow_ode", weight="t") == "t"


# ---- resampled points ----------------------------------------------------------------------------


@pytest.mark.parametrize("noise_steps", ("one", "all"))
def test_resampled_points_lie_between_noise_and_the_chunk(monkeypatch, noise_steps):
    """x_j = (1 - t) chunk + t noise, at steps that are uniform over the grid; velocities there."""
    cfg = policy(4, "flow_ode", noise_steps=noise_steps)
    B = 400
    U = 4 if noise_steps == "all" else 1
    chain = types.Chain(
        x=jnp.zeros((B, U, 10, 8)),
        x_next=jnp.zeros((B, U, 10, 8)),
        j=jnp.zeros((B, U), jnp.int32),
        level=jnp.zeros(B),
        log_prob=None,
        value=None,
        velocity=jnp.zeros((B, U, 10, 8)),
        actions=jnp.full((B, 10, 8), 5.0),
    )

    def chain_steps(params, chain, context, cfg):
        steps = []
        for u in range(U):
            steps.append(flow.Step(velocity=params + chain.x[:, u], mean=0.0, std=0.0, value=0.0))
        return steps

    monkeypatch.setattr(flow, "chain_steps", chain_steps)
    key_B = jax.random.split(jax.random.key(0), B)
    found = jax.jit(lambda key_B: mirror.resampled(2.0, key_B, None, chain, cfg))(key_B)
    np.testing.assert_allclose(found.velocity, 2 + found.x)
    assert (found.x_next == 5).all()
    counts = np.bincount(np.asarray(found.j).ravel(), minlength=4)
    assert counts.sum() == B * U and counts.min() > 0.8 * counts.mean()
    t = 1 - np.asarray(found.j)[..., None, None] / 4
    noise = (found.x - (1 - t) * 5) / t
    np.testing.assert_allclose(np.mean(noise, (0, 2, 3)), 0, atol=0.03)
    np.testing.assert_allclose(np.std(noise, (0, 2, 3)), 1, atol=0.03)
