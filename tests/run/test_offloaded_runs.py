"""Runs whose optimiser, average and anchor lie on the host while episodes are played."""

import pytest

from pirl_jax.learner import offload
from pirl_jax.monitor import log
from pirl_jax.rollout import stream as streams
from tests import test_train
from tests.test_train import ask, one_device  # noqa: F401

ALL_PARTS = {
    "eval__every": 1,  # the average acts while it is away
    "run__save_every": 1,
    "algorithm__ema_decay": 0.5,
    "algorithm__anchor_coef": 0.1,
}
SECOND_ROLLOUT = 14  # a call in it: one in the evaluation before, eight in each rollout


@pytest.mark.slow
def test_it_changes_nothing_and_a_run_goes_on_from_where_it_was_away(
    tmp_path,
    monkeypatch,
    ask,  # noqa: F811
):
    plain = test_train.probe(tmp_path / "plain", 2, **ALL_PARTS)
    run = tmp_path / "offloaded"
    fields = ALL_PARTS | {"placement__offload": "optimizer"}
    moved = []
    away = offload.Offload.away

    def watched(self, state):
        moved.append(self.enabled)
        return away(self, state)

    monkeypatch.setattr(offload.Offload, "away", watched)
    with monkeypatch.context() as patch:
        test_train.before_call(patch, streams.Stream, "send", SECOND_ROLLOUT, ask)
        with pytest.raises(SystemExit):
            test_train.probe(run, 2, **fields)
    assert moved == [True, True], "the second rollout was interrupted"
    test_train.probe(run, 2, "--resume", "auto", **fields)
    assert log.read(run, timing=False) == log.read(plain, timing=False)
    for iteration in (1, 2):
        test_train.assert_equal_states(
            test_train.saved(run, iteration), test_train.saved(plain, iteration)
        )
