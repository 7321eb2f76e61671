"""The PPO objective against hand-computed numbers and against c_ppo_loss.npz.

Families of c_ppo_loss.npz that are not compared, and why:
  kl_penalty           KL to a reference policy: never used for embodied policies, not implemented.
  reshape_entropy_*    the reference's tensor plumbing; entropies arrive per row here.
  micro_* with meta.raises, or with chunk_level entropy and a mask (README Q4: a sum where the mean
                       was meant).
  metric critic/value_clip_ratio (README Q3: compares the clamped value with the bound).  Ours is
                       tested by hand.
Where the reference divides by the count of an un-broadcast mask (README Q1, Q2), the test asks for
that divisor through `normalizer`; by default this repository divides by the weight that is really
there.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_files

from pirl_jax.rl import importance, losses

TOLERANCE = dict(rtol=1e-4, atol=1e-5)
LEVEL = {"chunk_level": "chunk", "action_level": "action", "token_level": "token"}


# ---- by hand -------------------------------------------------------------------------------------


def test_clipped_surrogate_by_hand():
    ratio = jnp.array([1.5, 0.5, 1.5, 0.5, 1.0])
    advantage = jnp.array([1.0, 1.0, -1.0, -1.0, 2.0])
    loss, metrics = losses.clipped_surrogate(
        jnp.log(ratio) + 3.0,
        jnp.full(5, 3.0),
        advantage,
        jnp.array([1.0, 1, 1, 1, 2]),
        clip_low=0.2,
        clip_high=0.3,
    )
    # max(-Ar, -A clip r): -1.3 (clipped), -0.5, 1.5, 0.8 (clipped), and -2 with weight 2
    np.testing.assert_allclose(loss, (-1.3 - 0.5 + 1.5 + 0.8 - 4.0) / 6, rtol=1e-5)
    np.testing.assert_allclose(metrics["pg_clipfrac"], 2 / 5, rtol=1e-6)
    np.testing.assert_allclose(metrics["ratio"], 1.0, rtol=1e-5)
    np.testing.assert_allclose(metrics["ratio_max_dev"], 0.5, rtol=1e-5)
    np.testing.assert_allclose(metrics["approx_kl"], -np.log(0.5625) / 5, rtol=1e-4)
    np.testing.assert_allclose(
        metrics["approx_kl3"], metrics["approx_kl"], rtol=1e-4
    )  # because the mean ratio is 1


def test_dual_clip_bounds_bad_actions():
    args = (
        jnp.log(jnp.array([10.0, 10.0])),
        jnp.zeros(2),
        jnp.array([-1.0, 1.0]),
        jnp.ones(2),
        0.2,
        0.2,
    )
    assert losses.clipped_surrogate(*args)[0] == pytest.approx((10 - 1.2) / 2, rel=1e-5)
    loss, metrics = losses.clipped_surrogate(*args, dual_clip=3.0)
    assert loss == pytest.approx((3 - 1.2) / 2)
    assert metrics["dual_clipfrac"] == 0.5


def test_clipped_value_by_hand():
    # moves 0.1 (kept), 0.5 (clipped to 0.2, the worse of 0.5*0.5^2 and 0.5*0.8^2), 3 (huber: delta
    # 1)
    value, return_ = jnp.array([0.1, 0.5, 3.0]), jnp.array([0.0, 1.0, 0.0])
    loss, metrics = losses.clipped_value(
        value, jnp.zeros(3), return_, jnp.ones(3), value_clip=0.2, huber_delta=1.0
    )
    np.testing.assert_allclose(loss, (0.005 + 0.32 + 2.5) / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics["value_clip_ratio"], 2 / 3, rtol=1e-6)


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf, 500.0])
def test_rows_without_weight_are_nothing(junk):
    weight = jnp.array([1.0, 0.0, 0.5])
    x = jnp.array([0.1, junk, -0.2])

    def total(log_prob, value, entropy):
        policy, policy_metrics = losses.clipped_surrogate(
            log_prob, jnp.zeros(3), x, weight, 0.2, 0.2, dual_clip=3.0
        )
        critic, value_metrics = losses.clipped_value(value, jnp.zeros(3), x, weight, 0.2, 10.0)
        sums = losses.explained_variance_sums(value, x, weight)
        return policy + critic - losses.mean_entropy(entropy, weight), (
            policy_metrics,
            value_metrics,
            sums,
        )

    (loss, metrics), grads = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(x, x, x)
    short, short_grads = jax.value_and_grad(
        lambda a, b, c: total_of_two(a, b, c), argnums=(0, 1, 2)
    )(*[x[::2]] * 3)
    assert np.isfinite(jax.tree.leaves(jax.tree.map(lambda m: np.sum(m), metrics))).all()
    np.testing.assert_allclose(loss, short, rtol=1e-6)
    for g, g_short in zip(grads, short_grads, strict=True):
        assert g[1] == 0
        np.testing.assert_allclose(g[::2], g_short, rtol=1e-6)


def total_of_two(log_prob, value, entropy):
    weight, zero, x = jnp.array([1.0, 0.5]), jnp.zeros(2), jnp.array([0.1, -0.2])
    policy, _ = losses.clipped_surrogate(log_prob, zero, x, weight, 0.2, 0.2, dual_clip=3.0)
    critic, _ = losses.clipped_value(value, zero, x, weight, 0.2, 10.0)
    return policy + critic - losses.mean_entropy(entropy, weight)


def test_no_weight_at_all():
    loss, metrics = losses.clipped_surrogate(*[jnp.full(3, jnp.nan)] * 3, jnp.zeros(3), 0.2, 0.2)
    assert loss == 0 and all(m == 0 for m in metrics.values())


def test_reduce_log_prob():
    x = jnp.arange(2 * 3 * 4.0).reshape(2, 3, 4)
    assert losses.reduce_log_prob(x, "chunk").shape == (2,)
    np.testing.assert_array_equal(losses.reduce_log_prob(x, "action"), x.sum(-1))
    np.testing.assert_array_equal(losses.reduce_log_prob(x, "token"), x)
    with pytest.raises(
        ValueError, match=r"'joint' does not exist; choose one of: chunk, action, token"
    ):
        losses.reduce_log_prob(x, "joint")


# ---- against the reference -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def cases(vectors):
    z = np.load(vectors / "rlinf" / "c_ppo_loss.npz")
    out = {}
    for case in map(str, z["__cases__"]):
        arrays = {
            k[len(case) + 1 :]: z[k]
            for k in z.files
            if k.startswith(f"{case}/") and not k.endswith("/meta")
        }
        out[case] = json.loads(str(z[f"{case}/meta"])), arrays
    return out


@jax.jit
def objective(log_prob, value, fixed, knob):
    """Policy + value loss, its metrics and its gradients.

    One compilation per shape: every knob is traced.
    """

    def total(log_prob, value):
        loss, metrics = losses.clipped_surrogate(
            log_prob,
            fixed["old_log_prob"],
            fixed["advantage"],
            fixed["weight"],
            knob["clip_ratio_low"],
            knob["clip_ratio_high"],
            knob["clip_ratio_c"],
            (knob["clip_log_ratio_min"], knob["clip_log_ratio_max"]),
            fixed["normalizer"],
            fixed.get("importance"),
        )
        value_loss, _ = losses.clipped_value(
            value,
            fixed["old_value"],
            fixed["return_"],
            fixed["value_weight"],
            knob["value_clip"],
            knob["huber_delta"],
            fixed["value_normalizer"],
        )
        return loss * (1 - knob["critic_warmup"]) + value_loss, metrics | {"value_loss": value_loss}

    return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(log_prob, value)


NO_KNOB = {"clip_ratio_c": 1e30, "clip_log_ratio_min": -np.inf, "clip_log_ratio_max": np.inf}
KNOBS = (
    *NO_KNOB,
    "clip_ratio_low",
    "clip_ratio_high",
    "value_clip",
    "huber_delta",
    "critic_warmup",
)


def expand(x, shape):
    """Broadcast over trailing axes, as the reference does.

    One number per row or per action -> one per entry.
    """
    x = np.asarray(x)
    x = x[..., 0] if len(shape) < x.ndim else x
    return np.broadcast_to(x.reshape(x.shape + (1,) * (len(shape) - x.ndim)), shape)


def weights(meta, a, shape):
    """The reference's two aggregations of an array of `shape` as (weight, normalizer)."""
    mask, mask_sum = a.get("in/loss_mask", np.ones(shape, bool)), a.get("in/loss_mask_sum")
    if mask_sum is None or meta["max_episode_steps"] is None:
        return np.float32(expand(mask, shape)), np.float32(mask.sum())
    weight = np.where(mask, meta["max_episode_steps"] / np.maximum(mask_sum, 1), 0.0)
    return np.float32(expand(weight, shape)), np.float32(np.prod(shape))


def run_case(meta, a, proximal=None):
    """(loss, metrics), gradients of one case; without a critic its rows have no weight.

    proximal: log-probs of the policy that the ratio is to, where another one played.
    """
    level = LEVEL[meta["logprob_type"]]
    log_prob, old = (
        losses.reduce_log_prob(a[f"in/{k}"], level) for k in ("logprobs", "old_logprobs")
    )
    fixed = {"old_log_prob": old, "advantage": expand(a["in/advantages"], log_prob.shape)}
    fixed["weight"], fixed["normalizer"] = weights(meta, a, log_prob.shape)
    if proximal is not None:
        cap = meta.get("behave_weight_threshold", np.inf)
        log_weight = importance.log_weights(proximal, a["in/old_logprobs"], level)
        fixed["importance"] = importance.masked(log_weight, cap)
        fixed["old_log_prob"] = losses.reduce_log_prob(proximal, level)
        if a.get("in/loss_mask_sum") is None:  # a mean over what is left, else over everything
            fixed["normalizer"] = fixed["weight"][fixed["importance"] > 0].sum()
    if "critic" in meta["loss_type"]:
        value = a["in/values"]
        fixed["old_value"], fixed["return_"] = (
            expand(a[f"in/{k}"], value.shape) for k in ("prev_values", "returns")
        )
        fixed["value_weight"], fixed["value_normalizer"] = weights(meta, a, value.shape)
    else:
        value = zero = np.zeros(len(log_prob), np.float32)
        fixed |= {
            "old_value": zero,
            "return_": zero,
            "value_weight": zero,
            "value_normalizer": np.float32(0),
        }
    given = {k: v for k, v in meta.items() if k in KNOBS and v is not None}
    return objective(
        log_prob, value, fixed, {k: np.float32(v) for k, v in (NO_KNOB | given).items()}
    )


GRID = ["chunk_level", "action_level", "token_level"]


@pytest.mark.parametrize("level", GRID)
def test_reference_grid(cases, level):
    """Loss, both gradients and the metrics of every case of the grid.

    Of the LIBERO settings and of ratio 1.
    """
    compared = 0
    for case, (meta, a) in cases.items():
        grid = (case[0] == "c" and case[1:].isdigit()) or case.startswith(
            ("libero_ppo_cfg", "ratio_one")
        )
        if not grid or meta["logprob_type"] != level:
            continue
        (loss, metrics), (grad_log_prob, grad_value) = run_case(meta, a)
        factor = (
            grad_log_prob.size / a.get("in/loss_mask", grad_log_prob).size
        )  # of the metrics' wrong divisor
        np.testing.assert_allclose(loss, a["out/loss"], err_msg=case, **TOLERANCE)
        want = a["out/grad_logprobs"]
        np.testing.assert_allclose(
            expand(grad_log_prob, want.shape), want, err_msg=case, **TOLERANCE
        )
        if "critic" in meta["loss_type"]:
            np.testing.assert_allclose(grad_value, a["out/grad_values"], err_msg=case, **TOLERANCE)
            want = a["out/metric:critic/value_loss"]
            np.testing.assert_allclose(metrics["value_loss"], want, err_msg=case, **TOLERANCE)
        for ours, theirs in (("approx_kl", "approx_kl"), ("pg_clipfrac", "clip_fraction")):
            want = a[f"out/metric:actor/{theirs}"]
            np.testing.assert_allclose(
                metrics[ours] * factor, want, err_msg=f"{case} {ours}", **TOLERANCE
            )
        compared += 1
    assert compared >= reference_files.enough(30)


def interpolated(meta, a):
    """The reference's stand-in for the log-probs of the policy that an update begins with: between
    behaviour and current policy by their versions; ours are computed."""
    if "in/proximal_logprobs" in a:
        return a["in/proximal_logprobs"]
    old = a["in/old_logprobs"]
    if "in/versions" not in a:
        return old
    lag = meta["current_version"] - a["in/versions"]
    share = np.where(lag > 0, (lag - 1) / np.where(lag > 0, lag, 1), 0.0).clip(0, 1)
    share = np.where(a["in/versions"] < 0, 0.0, share)
    return np.float32(old + share * (a["in/logprobs"] - old))


def test_reference_decoupled(cases):
    """Loss, both gradients and metrics where older policies played: with and without a cap, a mask,
    a dual clip, at every level."""
    compared = 0
    for case, (meta, a) in cases.items():
        if not case.startswith("decoupled_"):
            continue
        proximal = interpolated(meta, a)
        (loss, _), (grad_log_prob, grad_value) = run_case(meta, a, proximal)
        np.testing.assert_allclose(loss, a["out/loss"], err_msg=case, **TOLERANCE)
        want = a["out/grad_logprobs"]
        np.testing.assert_allclose(
            expand(grad_log_prob, want.shape), want, err_msg=case, **TOLERANCE
        )
        np.testing.assert_allclose(grad_value, a["out/grad_values"], err_msg=case, **TOLERANCE)
        level = LEVEL[meta["logprob_type"]]
        log_weight = importance.log_weights(proximal, a["in/old_logprobs"], level)
        found = importance.metrics(
            log_weight, meta.get("behave_weight_threshold", np.inf), lambda x: [x]
        )
        want = a["out/metric:actor/behav_clip_fraction"]
        np.testing.assert_allclose(
            found["async/importance_masked_share"], want, err_msg=case, **TOLERANCE
        )
        compared += 1
    assert compared >= reference_files.enough(8)


def test_reference_aggregations(cases):
    """loss_agg_func variants, expressed as weights.

    Token-mean, sequence mean of token sums, of token means.
    """
    for case, (_, a) in cases.items():
        if not case.startswith("agg_"):
            continue
        mask = np.float32(a.get("in/loss_mask", np.ones(a["in/logprobs"].shape)))
        rows = mask.any(1).sum()
        aggregation = case.split("_")[1]
        weight, normalizer = {
            "token-mean": (mask, mask.sum()),
            "seq-mean-token-sum": (mask, rows),
            "seq-mean-token-mean": (mask / np.maximum(mask.sum(1, keepdims=True), 1), rows),
        }[aggregation]
        loss, grad = jax.value_and_grad(
            lambda lp, a=a, w=weight, n=normalizer: losses.clipped_surrogate(
                lp, a["in/old_logprobs"], a["in/advantages"], w, 0.2, 0.28, 3.0, normalizer=n
            )[0]
        )(jnp.asarray(a["in/logprobs"]))
        np.testing.assert_allclose(loss, a["out/loss"], err_msg=case, **TOLERANCE)
        np.testing.assert_allclose(grad, a["out/grad_logprobs"], err_msg=case, **TOLERANCE)


def test_reference_micro(cases):
    """Complete micro-batches: (policy + value - bonus * entropy) / gradient_accumulation."""
    compared = 0
    for case, (meta, a) in cases.items():
        masked = "in/loss_mask" in a
        if not case.startswith("micro_") or "raises" in meta:
            continue
        if meta["entropy_bonus"] and masked and meta["entropy_type"] == "chunk_level":
            continue
        scale = 1.0 / meta["gradient_accumulation"]
        coefficient = 0.0 if meta["critic_warmup"] else meta["entropy_bonus"]
        (loss, _), (grad_log_prob, grad_value) = run_case(meta, a)
        entropy = jnp.asarray(a["in/entropy"]) if coefficient else jnp.zeros(())
        weight = (
            jnp.asarray(np.float32(a.get("in/loss_mask", np.ones(entropy.shape))))
            if entropy.ndim
            else entropy
        )
        bonus, grad_entropy = jax.value_and_grad(lambda e, w=weight: losses.mean_entropy(e, w))(
            entropy
        )
        total = (loss - coefficient * bonus) * scale
        np.testing.assert_allclose(
            total, a["out/metric:actor/total_loss"], err_msg=case, **TOLERANCE
        )
        if coefficient:
            want = a["out/grad_entropy"]
            np.testing.assert_allclose(
                -coefficient * grad_entropy * scale, want, err_msg=case, **TOLERANCE
            )
        want = a["out/grad_logprobs"]
        np.testing.assert_allclose(
            expand(grad_log_prob, want.shape) * scale, want, err_msg=case, **TOLERANCE
        )
        if "critic" in meta["loss_type"]:
            np.testing.assert_allclose(
                grad_value * scale, a["out/grad_values"], err_msg=case, **TOLERANCE
            )
        compared += 1
    assert compared >= reference_files.enough(10)


def test_reference_huber(cases):
    meta, a = cases["huber"]
    value, grad = jax.vmap(jax.value_and_grad(lambda e: losses.huber(e, meta["delta"])))(
        jnp.asarray(a["in/error"])
    )
    np.testing.assert_allclose(value, a["out/loss"], **TOLERANCE)
    np.testing.assert_allclose(grad, a["out/grad"], **TOLERANCE)


@pytest.mark.parametrize("name", ["none", "partial", "const_returns", "single"])
def test_reference_explained_variance(cases, name):
    _, a = cases[f"explained_variance_{name}"]
    weight = jnp.asarray(np.float32(a.get("in/loss_mask", np.ones(a["in/values"].shape))))
    value, return_ = jnp.asarray(a["in/values"]), jnp.asarray(a["in/returns"])
    sums = losses.explained_variance_sums(value, return_, weight)
    want = [
        a[f"out/{k}"]
        for k in ("count", "returns_sum", "returns_sq_sum", "errors_sum", "errors_sq_sum")
    ]
    np.testing.assert_allclose(sums, want, **TOLERANCE)
    np.testing.assert_allclose(
        losses.explained_variance(np.asarray(sums)), a["out/explained_variance"], **TOLERANCE
    )
    # the sums of two halves, added, are the same thing
    halves = sum(
        losses.explained_variance_sums(value[s], return_[s], weight[s])
        for s in (slice(0, 9), slice(9, None))
    )
    np.testing.assert_allclose(
        losses.explained_variance(np.asarray(halves)), a["out/explained_variance"], **TOLERANCE
    )
