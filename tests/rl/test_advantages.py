import json

import numpy as np
import pytest
import reference_files

from pirl_jax.rl import advantages


def grid(*rows):
    return np.array(rows, np.float64)


def test_gae_by_hand_termination():
    # One column, gamma 0.5, lambda 0.5, success in the last decision: its successor (NaN) must not
    # be looked at.  delta_2 = 1 - 0.5 = 0.5;  delta_1 = 0 + 0.5*0.5 - 0.4 = -0.15;  delta_0 =
    # 0.5*0.4 - 0.2 = 0 A_2 = 0.5;  A_1 = -0.15 + 0.25*0.5 = -0.025;  A_0 = 0 + 0.25*-0.025 =
    # -0.00625
    advantage, return_ = advantages.gae(
        reward_CE=grid([0], [0], [1]),
        value_CE=grid([0.2], [0.4], [0.5]),
        next_value_CE=grid([0.4], [0.5], [np.nan]),
        terminated_CE=np.array([[False], [False], [True]]),
        truncated_CE=np.zeros((3, 1), bool),
        gamma=0.5,
        gae_lambda=0.5,
    )
    np.testing.assert_allclose(advantage[:, 0], [-0.00625, -0.025, 0.5], atol=1e-7)
    np.testing.assert_allclose(return_[:, 0], [0.19375, 0.375, 1.0], atol=1e-7)


def test_gae_by_hand_truncation_bootstraps_and_cuts():
    # The time limit strikes in decision 1: its delta bootstraps the final observation's value 0.8,
    # and the trace of the next trajectory (decision 2) does not leak into it.  delta_0 = 0.9*0.5 -
    # 0.1 = 0.35;  delta_1 = 0.9*0.8 - 0.5 = 0.22;  delta_2 = 1 - 0.3 = 0.7
    advantage, return_ = advantages.gae(
        reward_CE=grid([0], [0], [1]),
        value_CE=grid([0.1], [0.5], [0.3]),
        next_value_CE=grid([0.5], [0.8], [7.0]),
        terminated_CE=np.array([[False], [False], [True]]),
        truncated_CE=np.array([[False], [True], [False]]),
        gamma=0.9,
        gae_lambda=0.5,
    )
    np.testing.assert_allclose(advantage[:, 0], [0.35 + 0.45 * 0.22, 0.22, 0.7], atol=1e-7)
    np.testing.assert_allclose(return_[:, 0], [0.549, 0.72, 1.0], atol=1e-7)


def test_gae_both_flags_count_as_termination():
    true = np.ones((1, 1), bool)
    advantage, _ = advantages.gae(grid([1]), grid([0.25]), grid([9]), true, true, 0.9, 0.9)
    np.testing.assert_allclose(advantage, [[0.75]])


def test_gae_invalid_rows_reach_nothing():
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(6, 2)) for _ in range(3)]
    flags = np.zeros((6, 2), bool)
    valid = np.array([[1, 1], [1, 1], [1, 0], [0, 0], [1, 1], [1, 1]], bool)
    expected = advantages.gae(*arrays, flags, flags, 0.99, 0.95, valid)
    for x in arrays:
        x[~valid] = np.nan
    got = advantages.gae(*arrays, flags, flags, 0.99, 0.95, valid)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.all(a[~valid] == 0)
    short = advantages.gae(*[x[:2, 1:] for x in arrays], flags[:2, 1:], flags[:2, 1:], 0.99, 0.95)
    np.testing.assert_array_equal(got[0][:2, 1:], short[0])


def test_normalize():
    out = advantages.normalize([1.0, 2.0, 3.0, 100.0], np.array([True, True, True, False]), eps=0.0)
    np.testing.assert_allclose(out, [-1, 0, 1, 0])
    assert np.all(advantages.normalize([5.0, np.nan], np.array([True, False])) == 0)
    assert np.all(advantages.normalize([5.0, np.inf], np.array([False, False])) == 0)
    # float32 would lose the spread on top of the large mean
    large = advantages.normalize(1e6 + np.array([0.0, 1.0, 2.0]))
    np.testing.assert_allclose(large, [-1, 0, 1], atol=1e-4)


def test_group_relative_by_hand():
    score = [1, 0, 0, 1, 1, 1, 0.1, 0.1, 0.1]
    group = [0, 0, 5, 5, 5, 2, 7, 7, 7]
    out = advantages.group_relative(score, group)
    third = np.array([-2, 1, 1]) / 3 / np.sqrt(1 / 3)
    np.testing.assert_allclose(out[:2], [np.sqrt(0.5), -np.sqrt(0.5)], rtol=1e-5)
    np.testing.assert_allclose(out[2:5], third, rtol=1e-5)
    assert np.all(np.abs(out[5:]) < 1e-6)  # a group of one, and a group of equal scores


def test_group_baselines_by_hand():
    score, group = [0.0, 1.0, 5.0, 3.0], [0, 0, 0, 1]
    rloo = advantages.group_relative(score, group, "rloo")
    np.testing.assert_allclose(
        rloo, [0 - 3, 1 - 2.5, 5 - 0.5, 0]
    )  # against the mean of the others; nobody: 0
    np.testing.assert_allclose(advantages.group_relative(score, group, "dr_grpo"), [-2, -1, 3, 0])
    # a lost episode is no member of its group
    lost = advantages.group_relative(
        [0.0, 1.0, np.nan, 3.0], group, "rloo", valid_E=[True, True, False, True]
    )
    np.testing.assert_allclose(lost, [-1, 1, 0, 0])
    with pytest.raises(
        ValueError, match="adv_type='mean' does not exist; choose one of: grpo, rloo, dr_grpo"
    ):
        advantages.group_relative(score, group, "mean")


def reference_cases(vectors, name):
    z = np.load(vectors / "rlinf" / f"{name}.npz")
    for case in z["__cases__"]:
        prefix = f"{case}/"
        arrays = {
            k[len(prefix) :]: z[k]
            for k in z.files
            if k.startswith(prefix) and not k.endswith("/meta")
        }
        yield str(case), json.loads(str(z[f"{case}/meta"])), arrays


def flat_inputs(meta, a):
    """The reference's reward types as flat [C,E] grids.

    One row per chunk, or one row per control step.
    """
    reward, done, value, mask = (
        a.get(f"in/{k}") for k in ("rewards", "dones", "values", "loss_mask")
    )
    if meta.get("flat"):
        return reward, done, value, mask
    C, E, chunk = reward.shape
    if meta["reward_type"] == "chunk_level":
        return reward.sum(-1), done.any(-1), value[..., 0], None if mask is None else mask[..., 0]

    def by_step(x):
        return np.swapaxes(x, 1, 2).reshape(-1, E)

    return (
        by_step(reward),
        by_step(done)[-(C * chunk + 1) :],
        by_step(value)[: C * chunk + 1],
        (None if mask is None else by_step(mask)),
    )


def test_gae_reference(vectors):
    """All of a_gae.

    The reference knows one `done` (a time limit is an end without bootstrap), so terminated = done;
    it also fills masked rows, which we refuse: only valid rows are compared.  Its NaN for one valid
    row is a 0 here.
    """
    compared = 0
    for case, meta, a in reference_cases(vectors, "a_gae"):
        reward, done, value, mask = flat_inputs(meta, a)
        gamma, gae_lambda = meta["gamma"], meta["gae_lambda"]
        if value is None:  # without a critic: advantage = return = sum of the rewards
            value, gamma, gae_lambda = np.zeros((len(reward) + 1, reward.shape[1])), 1.0, 1.0
        valid = np.ones(reward.shape, bool) if mask is None else mask
        advantage, return_ = advantages.gae(
            reward, value[:-1], value[1:], done[1:], np.zeros_like(done[1:]), gamma, gae_lambda
        )
        if meta["normalize_advantages"]:
            advantage = advantages.normalize(advantage, valid)
        if meta["normalize_returns"]:
            return_ = advantages.normalize(return_, valid)
        want = [a["out/advantages"], a["out/returns"]]
        if not meta.get("flat"):
            want = [np.swapaxes(x, 1, 2).reshape(reward.shape) for x in want]
        if meta.get("nan_expected"):
            assert np.isnan(want[0][valid]).all() and np.all(advantage == 0), case
            continue
        for got, expected in zip((advantage, return_), want, strict=True):
            np.testing.assert_allclose(
                got[valid], expected[valid], rtol=1e-4, atol=1e-5, err_msg=case
            )
        compared += 1
    assert compared > reference_files.enough(100)


def test_gae_reference_valid_rows_do_not_need_the_others(vectors):
    """With the mask given to gae itself every row of a trajectory that ends is as before."""
    for case, meta, a in reference_cases(vectors, "a_gae"):
        if meta.get("done_mode") != "noreset" or meta["normalize_advantages"]:
            continue
        reward, done, value, mask = flat_inputs(meta, a)
        spoiled_reward = np.where(mask, reward, np.nan)
        spoiled_value = np.where(mask, value[:-1], np.nan)
        done = done[1:]
        next_value, knobs = np.where(done, np.nan, value[1:]), (meta["gamma"], meta["gae_lambda"])
        grids = spoiled_reward, spoiled_value, next_value, done, np.zeros_like(done)
        advantage, return_ = advantages.gae(*grids, *knobs, mask)
        want = np.swapaxes(a["out/advantages"], 1, 2).reshape(reward.shape)
        np.testing.assert_allclose(advantage[mask], want[mask], rtol=1e-4, atol=1e-5, err_msg=case)
        assert np.isfinite(advantage).all() and np.isfinite(return_).all()


def test_group_relative_reference(vectors):
    """b_grpo: scores and their advantages on the rows that the reference leaves unmasked."""
    compared = 0
    for case, meta, a in reference_cases(vectors, "b_grpo"):
        if (
            "out/scores" not in a or meta["group_size"] == 1
        ):  # the reference gives NaN for a group of one
            continue
        score = a["out/scores"]
        group = np.repeat(np.arange(len(score)), score.shape[1])
        advantage = advantages.group_relative(score.reshape(-1), group)
        mask = a.get("out/loss_mask", np.ones_like(a["out/advantages"], bool))
        want = a["out/advantages"]
        got = np.broadcast_to(advantage[None, :, None], want.shape)
        # float32 noise of equal scores divided by 1e-6 (README, Q20) is an exact 0 here
        equal = np.ptp(score, axis=1)[group] < 1e-6
        keep = mask & ~np.broadcast_to(equal[None, :, None], want.shape)
        np.testing.assert_allclose(got[keep], want[keep], atol=1e-3, err_msg=case)
        compared += 1
    assert compared > reference_files.enough(10)


@pytest.mark.parametrize("shape", [(0, 3), (1, 1)])
def test_gae_small_grids(shape):
    zero, no = np.zeros(shape), np.zeros(shape, bool)
    advantage, return_ = advantages.gae(zero, zero, zero, no, no, 0.99, 0.95)
    assert advantage.shape == return_.shape == shape
