"""Comparisons on equal start states: against numbers computed another way."""

import math

import pytest

from pirl_jax.monitor import pairs, report


def outcomes(words, steps=10):
    """One letter per episode: s(uccess) or f(ailure)."""
    return {k: pairs.Outcome(letter == "s", steps) for k, letter in enumerate(words)}


def test_only_equal_episodes_are_compared():
    first = outcomes("ssff") | {"other": pairs.Outcome(True, 1)}
    found = pairs.compared(first, outcomes("sfss") | {"another": pairs.Outcome(False, 1)})
    assert found["pairs"] == 4 and (found["gained"], found["lost"]) == (2, 1)
    assert found["rate"] == pytest.approx(0.25), "of the second less the first"
    direct = report.paired_difference(
        {(True, True): 1, (True, False): 2, (False, True): 1, (False, False): 0}
    )
    assert (found["low"], found["high"]) == (direct["low"], direct["high"])
    assert pairs.compared(first, {}) is None


def test_mcnemar_is_the_binomial_of_what_changed():
    # Two-sided: both tails of 9 fair coins that fall at least as unevenly as 8 to 1.
    tail = sum(math.comb(9, k) for k in (0, 1)) / 2**9
    assert pairs.mcnemar(8, 1) == pytest.approx(2 * tail)
    assert pairs.mcnemar(1, 8) == pairs.mcnemar(8, 1)
    assert pairs.mcnemar(0, 0) == 1.0


def test_lengths_are_those_of_episodes_that_both_solve():
    first = {k: pairs.Outcome(k != 3, 20) for k in range(4)}
    second = {k: pairs.Outcome(True, 20 - k) for k in range(4)}
    found = pairs.compared(first, second)
    assert found["steps"] == -1.0 and found["steps_low"] < -1 < found["steps_high"]
    assert found == pairs.compared(first, second), "the same interval every time"
    equal = pairs.compared(first, first)
    assert (equal["steps"], equal["steps_low"], equal["steps_high"]) == (0, 0, 0)
    assert "steps" not in pairs.compared(outcomes("ff"), outcomes("ff"))
