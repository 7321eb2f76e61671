import re

import pytest

from pirl_jax.monitor import timeline


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_seconds_accumulate_by_name_and_reset():
    clock = Clock()
    timers = timeline.Timers(clock)
    for _ in range(2):
        with timers.measure("env"):
            clock.now += 1.5
    with timers.measure("update"):
        clock.now += 0.5
    timers.add("save", 0.25)
    clock.now += 1.0  # of which 0.25 are the save
    assert timers.take() == {
        "time/env": 3.0,
        "time/inference": 0.0,
        "time/update": 0.5,
        "time/transfer": 0.0,
        "time/idle": 0.75,
        "time/save": 0.25,
        "time/iteration": 4.5,
    }
    clock.now += 2.0
    assert timers.take()["time/iteration"] == 2.0 and timers.age_s() == 6.5


def test_time_counts_when_the_work_raises():
    clock = Clock()
    timers = timeline.Timers(clock)
    with pytest.raises(RuntimeError), timers.measure("env"):
        clock.now += 1.0
        raise RuntimeError
    assert timers.take()["time/env"] == 1.0


@pytest.mark.parametrize(
    "parts, expected",
    [
        (
            {"env": 78.0, "update": 20.0},
            "simulation-bound: 78 % of the time waits for environments; add CPU cores",
        ),
        ({"update": 60.0, "env": 40.0}, "learning-bound: 60 %"),
        (
            {"transfer": 50.0, "env": 20.0},
            "transfer-bound: 50 % .* set rollout.prefix_cache=device",
        ),
        (
            {"env": 30.0, "inference": 30.0, "update": 35.0},
            r"balanced: the largest part \(update\) takes 35 %",
        ),
        (
            {"env": 50.0, "gate_wait": 31.0, "learner_wait": 2.0},
            "learner-bound: 31 % of the time simulators wait .*; use more devices to learn",
        ),
        (
            {"env": 50.0, "gate_wait": 29.0, "learner_wait": 45.0},
            "environment-bound: 45 % of the time the learner waits .*; use more simulators",
        ),
    ],
)
def test_verdict_names_the_largest_part(parts, expected):
    metrics = {f"time/{name}": value for name, value in parts.items()} | {"time/iteration": 100.0}
    assert re.match(expected, timeline.verdict(metrics))
    wait = next((name for name in timeline.WAITS if parts.get(name, 0) > 30), None)
    assert wait is None or timeline.bound(metrics) == wait


def test_what_rounds_to_nothing_has_no_sign():
    row = {"env/return": -0.001, "actor/approx_kl3": -3e-9}
    assert "kl 0.0000" in timeline.learning(row)
    assert "return 0.00" in timeline.learning(row)


def test_the_kl_of_a_line_is_the_one_that_bounds_are_given_for():
    """target_kl, diagnose and the pages speak of approx_kl3, which is never negative."""
    row = {"env/return": 0.5, "actor/approx_kl": -0.01, "actor/approx_kl3": 0.02}
    assert "kl 0.0200" in timeline.learning(row)
