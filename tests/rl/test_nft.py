"""NFT's loss on arrays by hand, and the schedule of the average that plays against RLinf's."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_files

from pirl_jax.rl import nft

TAU = reference_files.having("rlinf2/nft.npz", ("tau/list", "tau/scalar", "tau/same"))


def test_by_hand():
    e_pos = jnp.array([[1.0, 2.0], [3.0, 1.0]])
    e_neg = jnp.array([[2.0, 2.0], [1.0, 3.0]])
    label = jnp.array([1.0, 0.25])
    weight = jnp.array([1.0, 3.0])
    loss, metrics = nft.nft(e_pos, e_neg, label, weight, form="dpo", dpo_beta=2.0)
    # logits y (E+ - E-): -1 and 0; with y = -1/2 then -1 and 1
    soft = np.log1p(np.exp([-1.0, 0.0, -1.0, 1.0]))
    np.testing.assert_allclose(loss, (soft[:2].mean() + 3 * soft[2:].mean()) / 4, rtol=1e-6)
    found = {name: float(x) for name, x in nft.over_parts(metrics).items()}
    assert found["pref_acc"] == 0.5 and found["delta_E_mean"] == -0.25
    assert (found["E_pos_mean"], found["E_neg_mean"]) == (1.75, 2.0)
    assert (found["E_pos_positive"], found["E_neg_negative"]) == (1.5, 2.0)
    loss, _ = nft.nft(e_pos, e_neg, label, weight, form="mse", scale=0.5)
    want = 0.5 * (1.5 + 3 * (0.25 * 2 + 0.75 * 2)) / 4
    np.testing.assert_allclose(loss, want, rtol=1e-6)


@pytest.mark.parametrize("form", ("dpo", "mse"))
def test_rows_without_weight_are_nothing(form):
    label = jnp.array([1.0, jnp.nan])
    weight = jnp.array([2.0, 0.0])

    def loss(e_pos):
        return nft.nft(e_pos, 2 * e_pos, label, weight, form=form)

    (value, metrics), grad = jax.value_and_grad(loss, has_aux=True)(jnp.array([3.0, jnp.inf]))
    (alone, _), slope = jax.value_and_grad(
        lambda e_pos: nft.nft(e_pos, 2 * e_pos, label[:1], weight[:1], form=form), has_aux=True
    )(jnp.array([3.0]))
    assert value == alone and grad[0] == slope[0] and grad[1] == 0
    assert np.isfinite(list(map(float, metrics.values()))).all()
    assert metrics["E_pos_mean"] == 3


def test_labels():
    advantage = np.array([-2.0, -0.5, 0.0, 0.25, 9.0], np.float32)
    np.testing.assert_allclose(nft.labels(advantage, 0.5), [0, 0, 0.5, 0.75, 1])
    np.testing.assert_allclose(nft.labels(jnp.asarray(advantage), 2.0), [0, 0.375, 0.5, 0.5625, 1])


@pytest.mark.parametrize("name", TAU)
def test_share_of_the_policy(vectors, name):
    with np.load(vectors / "rlinf2" / "nft.npz") as arrays:
        theirs = json.loads(str(arrays["meta"]))[name]
        want = arrays[f"{name}/out"]
        iterations = arrays[f"{name}/steps"]
    theirs = theirs["nft_tau"] if isinstance(theirs, dict) else theirs
    schedule = (theirs, theirs, 0, 1) if isinstance(theirs, float) else tuple(theirs)
    found = [nft.share(schedule, "linear", int(i)) for i in iterations]
    np.testing.assert_allclose(found, want, rtol=1e-6)


def test_share_of_the_authors():
    """What they keep of the average: target - (target - base) (1 + cos(pi progress)) / 2."""
    base, target, total = 0.1, 0.995, 400
    schedule = (1 - base, 1 - target, 0, total)
    for iteration in (0, 1, 100, 200, 399, 400, 1000):
        progress = min(iteration / total, 1)
        keep = target - (target - base) * 0.5 * (1 + np.cos(np.pi * progress))
        found = nft.share(schedule, "cosine", iteration)
        np.testing.assert_allclose(found, 1 - keep, rtol=1e-5)


def test_a_row_without_a_preference_still_holds_the_policy_back():
    """form=mse is a policy gradient and a KL: at r = 1/2 the KL is left, away from the old one."""

    def loss(delta, label):
        e_pos, e_neg = ((delta - 1) ** 2, (delta + 1) ** 2)
        return nft.nft(e_pos, e_neg, label, np.ones(1, np.float32), form="mse")[0]

    gradient = jax.grad(loss)(np.full((1, 1), 0.3, np.float32), np.full(1, 0.5, np.float32))
    np.testing.assert_allclose(gradient, 0.6, rtol=1e-5)
