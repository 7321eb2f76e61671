"""Rows that an older policy sampled: their weights, and the loss with them, in numpy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pirl_jax.rl import importance, losses

LOW, HIGH, CAP = 0.2, 0.3, 2.0


def test_weights_off_their_neutral_value():
    """Sums over the entries of a chunk or an action; above the cap 0; not a number stays so."""
    old = np.zeros((2, 2, 2), np.float32)
    new = np.log(np.array([[[1.5, 1.0], [0.5, 1.0]], [[1.5, 1.5], [1.0, 1.0]]], np.float32))
    wanted = {
        "token": [[[1.5, 1], [0.5, 1]], [[1.5, 1.5], [1, 1]]],
        "action": [[1.5, 0.5], [0, 1]],
        "chunk": [0.75, 0],
    }
    for level, want in wanted.items():
        found = importance.masked(importance.log_weights(new, old, level), CAP)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, want, rtol=1e-6)
    same = importance.masked(importance.log_weights(new, new, "chunk"), CAP)
    np.testing.assert_array_equal(same, 1.0)  # to the bit
    new[0, 0, 0] = np.nan
    found = importance.masked(importance.log_weights(new, old, "chunk"), CAP)
    assert np.isnan(found[0]) and found[1] == 0


@pytest.mark.parametrize("log_weight", [-500.0, 500.0, np.inf])
def test_policies_far_apart_have_finite_weights(log_weight):
    new = np.full((1, 1, 1), log_weight, np.float32)
    found = importance.log_weights(new, np.zeros_like(new), "chunk")
    weight = importance.masked(found, CAP)
    # One that is hardly played by today's policy is kept and weighs next to nothing.
    assert (weight == 0) == (log_weight > 0) and np.isfinite(weight)
    assert all(np.isfinite(list(importance.metrics(found, CAP, lambda x: [x]).values())))


def test_metrics_by_hand_over_two_hosts():
    weight = np.array([0.5, 1.0, 2.0, 4.0])  # the last one is masked
    log_weight = np.log(weight)

    def gather(of_first):
        return [of_first, others[0]]

    others = []
    importance.metrics(log_weight[2:], CAP, lambda x: others.append(x) or [x])
    found = importance.metrics(log_weight[:2], CAP, gather)
    used = weight[:3]
    want = {
        "async/importance_mean": used.mean(),
        "async/importance_max": 4.0,
        "async/importance_masked_share": 0.25,
        "async/ess": used.sum() ** 2 / (4 * (used**2).sum()),
        "async/behavior_kl": (weight - 1 - log_weight).mean(),
    }
    assert found == pytest.approx(want)
    equal = importance.metrics(np.zeros(5), CAP, lambda x: [x])
    assert equal == dict(zip(want, [1.0, 1.0, 0.0, 1.0, 0.0], strict=True))
    nothing = importance.metrics(np.full(3, 9.0), CAP, lambda x: [x])
    assert nothing["async/importance_masked_share"] == 1 and nothing["async/ess"] == 0


def by_hand(log_prob, proximal, behavior, advantage, weight, dual):
    """Loss and its gradient by log_prob: sums over the kept ratios."""
    u, w = np.exp(log_prob - proximal), np.exp(proximal - behavior)
    keep = w <= CAP
    plain = -advantage * u
    clipped = -advantage * np.clip(u, 1 - LOW, 1 + HIGH)
    loss = np.maximum(plain, clipped)
    moves = (plain > clipped) | (np.clip(u, 1 - LOW, 1 + HIGH) == u)
    if dual:
        moves &= loss <= dual * abs(advantage)
        loss = np.minimum(loss, dual * abs(advantage))
    share = keep * weight / (keep * weight).sum()
    return (share * w * loss).sum(), share * w * plain * moves, keep


@pytest.mark.parametrize("dual", [None, 1.4])
@pytest.mark.parametrize("shape", [(64,), (16, 5), (8, 3, 7)], ids=["chunk", "action", "token"])
def test_decoupled_loss_and_its_gradient_by_the_formula(shape, dual):
    rng = np.random.default_rng(0)
    behavior, advantage = rng.normal(size=(2, *shape))
    proximal = behavior + 0.5 * rng.normal(size=shape)
    log_prob = proximal + 0.4 * rng.normal(size=shape)
    weight = rng.uniform(0.5, 2.0, shape) * (rng.uniform(size=shape) > 0.2)
    want, want_grad, keep = by_hand(log_prob, proximal, behavior, advantage, weight, dual)
    assert 0 < (~keep).sum() < keep.sum()
    factor = importance.masked(proximal - behavior, CAP)

    def loss(log_prob):
        return losses.clipped_surrogate(
            log_prob,
            jnp.float32(proximal),
            jnp.float32(advantage),
            jnp.float32(weight),
            LOW,
            HIGH,
            dual,
            importance=factor,
        )

    (found, metrics), grad = jax.value_and_grad(loss, has_aux=True)(jnp.float32(log_prob))
    np.testing.assert_allclose(found, want, rtol=1e-5)
    np.testing.assert_allclose(grad, want_grad, rtol=1e-3, atol=1e-7)
    # A masked ratio has not moved.
    unmoved = np.where(keep, np.exp(log_prob - proximal), 1.0)[weight > 0]
    np.testing.assert_allclose(metrics["ratio"], unmoved.mean(), rtol=1e-5)


def test_whatever_a_masked_row_holds_reaches_nothing():
    factor = jnp.array([1.5, 0.0, 0.0, 0.5])
    junk = jnp.array([0.1, jnp.nan, jnp.inf, -0.2])

    def loss(log_prob):
        return losses.clipped_surrogate(
            log_prob, jnp.zeros(4), junk, jnp.ones(4), LOW, HIGH, importance=factor
        )

    (found, metrics), grad = jax.value_and_grad(loss, has_aux=True)(junk)
    assert np.isfinite([found, *metrics.values()]).all()
    assert grad[1] == grad[2] == 0 and (grad[0] != 0) and (grad[3] != 0)


def test_importance_that_is_not_a_number_is_no_mask():
    """The loss has it, so that the update is counted as not finite."""
    args = (jnp.zeros(2), jnp.zeros(2), jnp.ones(2), jnp.ones(2), LOW, HIGH)
    found, _ = losses.clipped_surrogate(*args, importance=jnp.array([1.0, jnp.nan]))
    assert np.isnan(found)
