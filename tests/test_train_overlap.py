"""Whole runs whose episodes are played while earlier ones are learned: they repeat, they resume,
and no row is staler than asked for."""

import jax
import pytest

from pirl_jax.core import mesh as meshes
from pirl_jax.monitor import log
from tests import test_train

MAKE_MESH = meshes.make_mesh


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meshes, "make_mesh", lambda *args: MAKE_MESH(*args, jax.devices()[:1]))
        yield


def apart(directory, num_iterations, *arguments, **fields):
    """A barrier before iterations 3 and 6."""
    fields = dict(rollout__max_staleness=1, run__save_every=3, eval__every=3) | fields
    return test_train.probe(directory, num_iterations, *arguments, **fields)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return apart(tmp_path_factory.mktemp("whole"), 6)


def learned(directory):
    return [row for row in log.read(directory, timing=False) if "actor/loss" in row]


def test_rows_lag_as_far_as_the_schedule_says(whole):
    """In lockstep a batch is played by one version: the last but one, or that of the barrier."""
    lags = [row["async/staleness_max"] for row in learned(whole)]
    assert lags == [0, 1, 1, 0, 1, 1]
    assert lags == [row["async/staleness_mean"] for row in learned(whole)]
