import json

import numpy as np
import pytest
import reference_files

from pirl_jax.rl import groups


def test_groups_are_consecutive():
    np.testing.assert_array_equal(groups.of_episodes(6, 3), [0, 0, 0, 1, 1, 1])


def test_the_filter_keeps_both_bounds_and_ignores_lost_episodes():
    group = groups.of_episodes(8, 2)
    score = np.array([0, 0.2, 0, 0, 1, 0.8, 1, np.nan])
    valid = np.arange(8) < 7
    kept = groups.within(score, group, 0.1, 0.9, valid)
    np.testing.assert_array_equal(kept, [1, 1, 0, 0, 1, 1, 0, 0])


def test_informative_groups_have_unequal_scores():
    score, valid = np.array([1, 1, 0, 1, 0, 1, 5]), np.array([1, 1, 1, 1, 1, 0, 0], bool)
    informative = groups.informative(score, [0, 0, 1, 1, 2, 2, 3], valid)
    np.testing.assert_array_equal(informative, [0, 0, 1, 1, 0, 0, 0])


@pytest.mark.parametrize(
    "wanted, usable, played, budget, want",
    [(8, 5, 8, 24, 3), (8, 5, 22, 24, 2), (8, 8, 8, 24, 0), (8, 0, 24, 24, 0), (8, 9, 30, 24, 0)],
)
def test_fresh_groups_until_enough_or_the_budget_is_spent(wanted, usable, played, budget, want):
    assert groups.fresh(wanted, usable, played, budget) == want


def test_filter_reference(vectors):
    """b_grpo.

    The mask that the reward filter leaves, on every chunk that the episode really played.
    """
    compared = 0
    z = np.load(vectors / "rlinf" / "b_grpo.npz")
    for case in map(str, z["__cases__"]):
        meta = json.loads(str(z[f"{case}/meta"]))
        if not meta.get("filter_rewards") or meta["auto_reset"] or meta["ignore_terminations"]:
            continue
        reward, done = z[f"{case}/out/merged_rewards"], z[f"{case}/out/merged_dones"]
        played = before_the_end(done)
        # per chunk the reference counts rewards after the end, too; our simulators stop at it
        mask = played if meta["reward_type"] == "action_level" else played.any(-1, keepdims=True)
        score, group = (
            (reward * mask).sum((0, 2)),
            groups.of_episodes(reward.shape[1], meta["group_size"]),
        )
        kept = groups.within(score, group, meta["rewards_lower_bound"], meta["rewards_upper_bound"])
        np.testing.assert_array_equal(
            mask & kept[None, :, None], z[f"{case}/out/loss_mask"], err_msg=case
        )
        compared += 1
    assert compared > reference_files.enough(10)


def before_the_end(done_CEI):
    """Control steps up to and including the first that ends the episode.

    Row 0 of the flags belongs to the reset.
    """
    C, E, chunk = done_CEI.shape
    flat = np.swapaxes(done_CEI, 1, 2).reshape(-1, E)[-((C - 1) * chunk + 1) :]
    valid = ~np.logical_or.accumulate(flat, axis=0)[:-1]
    return np.swapaxes(valid.reshape(C - 1, chunk, E), 1, 2)
