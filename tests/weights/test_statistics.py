import dataclasses

import numpy as np
import pytest

from pirl_jax.weights import statistics
from tests.weights import conftest


@pytest.mark.parametrize(
    "change, mode, line",
    [
        (
            {"state_dim": 7},
            "zscore",
            "state.mean has 7 dims and the robot has 8; state.std has 7 dims and the robot has 8",
        ),
        ({"action_dim": 6}, "quantile", "actions.q01 has 6 dims and the robot has 7"),
        ({"scale": np.nan}, "zscore", "state.mean is not finite; actions.mean is not finite"),
    ],
)
def test_a_mismatch_is_an_error(change, mode, line):
    with pytest.raises(ValueError, match=line):
        statistics.check(conftest.make_stats(**change), mode)


@pytest.mark.parametrize("mode", ["zscore", "quantile"])
@pytest.mark.parametrize(
    "state, actions, wrong",
    [
        (14, 7, "state.* has 14 dims and the robot has 8"),
        (8, 14, "actions.* has 14 dims and the robot has 7"),
        (9, 8, "state.* has 9 dims .*; actions.* has 8 dims"),
        (32, 32, ""),
        (8, 7, ""),
    ],
)
def test_more_dims_than_the_robots_are_another_robots(state, actions, wrong, mode):
    stats = conftest.make_stats(state, actions)
    if not wrong:
        statistics.check(stats, mode)
        return
    with pytest.raises(ValueError, match=wrong):
        statistics.check(stats, mode)
    for quantity, dim in ((stats.state, 8), (stats.actions, 7)):
        quantity.std[dim:] = 0
        quantity.q99[dim:] = quantity.q01[dim:]
    statistics.check(stats, mode)  # dims that never moved are padding


def test_quantiles_must_exist_where_they_are_used():
    stats = conftest.make_stats()
    actions = dataclasses.replace(stats.actions, q01=None, q99=None)
    without = dataclasses.replace(stats, actions=actions)
    statistics.check(without, "zscore")
    needed = "actions has no q01 and q99, which norm_mode='quantile' needs"
    with pytest.raises(ValueError, match=needed):
        statistics.check(without, "quantile")
    state = dataclasses.replace(stats.state, q01=stats.state.q99, q99=stats.state.q01)
    swapped = dataclasses.replace(stats, state=state)
    with pytest.raises(ValueError, match=r"state.q99 lies below q01"):
        statistics.check(swapped, "quantile")


def test_the_report_counts_what_lies_outside():
    stats = conftest.make_stats()
    stats.state.q99[3] = -1.0 + 1e-6
    state_BQ = np.zeros((4, 8))
    state_BQ[0, :2] = 9.0
    text = statistics.report(stats, "quantile", state_BQ)
    assert "quantile, state 8 dims, actions 7 dims" in text
    assert "state dims [3] hardly move" in text
    assert "actions dims" not in text
    # 2 values of the first row, and the 4 of the dimension whose q99 is now below 0.
    assert "18.8% of 32 state values lie outside q01..q99" in text
    assert "(by dim: 25%, 25%, 0%, 100%, 0%, 0%, 0%, 0%)" in text
    assert "the furthest lies 2.3 of these ranges away: are they of this robot" in text
    with pytest.raises(ValueError, match=r"state.q01 has 8 dims and the robot has 9"):
        statistics.report(stats, "quantile", np.zeros((1, 9)))


def test_a_dimension_that_begins_at_its_edge_is_no_alarm():
    """100 % of it lie outside, by a little."""
    stats = conftest.make_stats()
    state_BQ = np.zeros((4, 8))
    state_BQ[:, 2] = stats.state.q99[2] + 0.03 * (stats.state.q99[2] - stats.state.q01[2])
    text = statistics.report(stats, "quantile", state_BQ)
    assert "(by dim: 0%, 0%, 100%, 0%" in text
    assert "the furthest lies 0.03 of its range away, which is no fault" in text
    assert "furthest" not in statistics.report(stats, "quantile", np.zeros((4, 8)))
