"""Whole runs of two threads: one plays on devices of its own while the other learns."""

import threading

import pytest

from pirl_jax.monitor import log
from tests import test_train

ITERATIONS = 5


def run(directory, **fields):
    fields = {
        "rollout__max_staleness": 1,
        "rollout__lockstep": False,
        "placement__rollout": "0-3",
        "placement__actor": "4-7",
        "run__save_every": ITERATIONS,
        "eval__every": 0,
    } | fields
    return test_train.probe(directory, ITERATIONS, **fields)


def no_thread_is_left():
    return not [thread for thread in threading.enumerate() if thread.name == "rollout"]


@pytest.mark.slow
def test_who_plays_and_who_learns_do_so_at_one_time(tmp_path):
    """No row is staler than asked for, every batch is learned, and both sides end."""
    rows = [row for row in log.read(run(tmp_path)) if "actor/loss" in row]
    assert [row["iteration"] for row in rows] == list(range(ITERATIONS))
    assert all(row["async/staleness_max"] <= 1 for row in rows)
    assert rows[0]["async/staleness_max"] == 0 and rows[0]["async/ess"] == 1
    for row in rows:
        assert row["env/num_trajectories"] == rows[0]["env/num_trajectories"]
        assert 0 <= row["rollout/slot_use"] <= 1 and row["time/publish"] > 0
        assert row["actor/first_ratio_max_dev"] < 1e-4
    assert no_thread_is_left()
