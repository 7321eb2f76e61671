"""Whole runs whose episodes are played while earlier ones are learned: they repeat, they resume,
no row is staler than asked for, and one error ends them."""

import concurrent.futures
import contextlib
import errno
import os
import shutil

import jax
import numpy as np
import psutil
import pytest

from pirl_jax import train
from pirl_jax.core import endings
from pirl_jax.learner import update
from pirl_jax.monitor import log
from pirl_jax.rollout import stream as streams
from pirl_jax.run import overlap
from pirl_jax.weights import folders, store
from tests import faulty, test_train, test_train_nft
from tests.test_train import one_device  # noqa: F401

ask = test_train.ask  # a fixture: a signal to this process


def apart(directory, num_iterations, *arguments, **fields):
    """Barriers before iterations 3 and 6."""
    fields = dict(rollout__max_staleness=1, run__save_every=3, eval__every=3) | fields
    return test_train.probe(directory, num_iterations, *arguments, **fields)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return apart(tmp_path_factory.mktemp("whole"), 6)


def learned(directory):
    return [row for row in log.read(directory) if "actor/loss" in row]


def repeated(directory):
    """Rows without what is measured in seconds."""
    rows = log.read(directory, timing=False)
    return [{name: x for name, x in row.items() if name != "rollout/slot_use"} for row in rows]


def test_rows_lag_as_far_as_the_schedule_says(whole):
    """In lockstep a batch is played by one version: the last but one, or that of the barrier."""
    rows = learned(whole)
    lags = [row["async/staleness_max"] for row in rows]
    assert lags == [0, 1, 1, 0, 1, 1]
    assert lags == [row["async/staleness_mean"] for row in rows]
    for row in rows:
        assert 0 <= row["rollout/slot_use"] <= 1 and row["time/publish"] > 0
        assert row["time/gate_wait"] >= 0 and row["time/learner_wait"] > 0
        assert row["actor/first_ratio_max_dev"] < 1e-4, "the loss begins where its update does"
        # What a version played itself counts in full, and exactly so.
        assert (row["async/ess"] == 1) == (row["async/staleness_max"] == 0)


@pytest.mark.slow
def test_a_run_that_is_resumed_at_a_barrier_is_the_uninterrupted_one(whole, tmp_path):
    half = apart(tmp_path, 3)
    rows = [row for row in repeated(whole) if row["iteration"] < 3]
    assert [row for row in repeated(half) if row["iteration"] < 3] == rows, "it repeats"
    test_train.assert_equal_states(
        test_train.saved(half, 3),
        test_train.saved(whole, 3),
    )
    apart(half, 6, "--resume", "auto")
    assert repeated(half)[-4:] == repeated(whole)[-4:]
    test_train.assert_equal_states(test_train.saved(half, 6), test_train.saved(whole, 6))


@pytest.mark.slow
@pytest.mark.parametrize(
    "owner, name, number, iteration, is_dropped",
    [
        (update.Updater, "step", 2, 1, True),  # in the first update
        (update.Updater, "step", 30, 3, False),  # in the last one before a barrier
    ],
    ids=["between barriers", "at a barrier"],
)
def test_asked_to_end_it_saves_what_is_learned(
    whole, tmp_path, monkeypatch, capsys, ask, owner, name, number, iteration, is_dropped
):
    with monkeypatch.context() as patch:
        if not is_dropped:
            number = 2 * steps_of(whole) + 2
        test_train.before_call(patch, owner, name, number, ask)
        with pytest.raises(SystemExit) as exit_:
            apart(tmp_path, 6)
    said = capsys.readouterr().err
    assert exit_.value.code == 75
    assert ("not bit for bit as it would have" in said) == is_dropped
    saved = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert max(saved) == iteration and len(learned(tmp_path)) == iteration
    apart(tmp_path, 6, "--resume", "auto")
    said = capsys.readouterr().err
    assert (f"iteration {iteration} was saved while later ones were played" in said) == is_dropped
    assert len(learned(tmp_path)) == 6
    if not is_dropped:
        test_train.assert_equal_states(test_train.saved(tmp_path, 6), test_train.saved(whole, 6))


def steps_of(run):
    return int(learned(run)[0]["actor/updates"])


# ---- what goes wrong between barriers ------------------------------------------------------------


@contextlib.contextmanager
def diverging(monkeypatch, side, iteration):
    """Once, between two barriers, while a later batch is played: by what is learned of an
    iteration, or by what parameters of the next version decide."""
    left = [True]

    def once(applies):
        if left[0] and applies:
            left.clear()
            left.append(False)
            raise endings.Diverged("the policy is gone")

    watch = train.divergence.Guard.watch
    decide = overlap.Work.decide

    def watched(guard, now, metrics):
        once(side == "learner" and now == iteration)
        watch(guard, now, metrics)

    def decided(work):
        once(side == "rollout" and work._showing.newest == iteration)
        decide(work)

    with monkeypatch.context() as patch:
        patch.setattr(train.divergence.Guard, "watch", watched)
        patch.setattr(overlap.Work, "decide", decided)
        yield


@pytest.mark.slow
def test_a_run_goes_back_from_between_barriers(whole, tmp_path, monkeypatch, capsys):
    """To the last barrier, with nothing of what was played ahead; and it repeats and resumes bit
    for bit from there.  From either side of two threads: tests/test_train_apart.py."""
    fields = dict(run__on_divergence="rollback")
    with diverging(monkeypatch, "rollout", 4), no_orphan():
        run = apart(tmp_path / "run", 6, **fields)
    said = capsys.readouterr().out
    assert "ROLLBACK 1 of at most 3: the policy is gone; back to the checkpoint of" in said
    assert folders.standing(run / "checkpoints")[-2:] == [3, 6]
    rows = learned(run)
    assert [row["iteration"] for row in rows] == list(range(6))
    assert [row.get("run/rollbacks", 0) for row in rows] == [0, 0, 0, 1, 1, 1]
    assert [row["async/staleness_max"] for row in rows] == [0, 1, 1, 0, 1, 1]
    lr = [row["actor/lr"] for row in rows]
    np.testing.assert_allclose(lr[3:], 0.3 * np.array(lr[:3]))
    before = [row for row in repeated(whole) if row["iteration"] < 3]
    assert [row for row in repeated(run) if row["iteration"] < 3] == before
    # Killed before its last save: the next start makes of it what this one did.
    expected = repeated(run)
    state = test_train.saved(run, 6)
    shutil.rmtree(run / "checkpoints" / "6")
    apart(run, 6, "--resume", "auto", **fields)
    assert repeated(run)[-4:] == expected[-4:]
    test_train.assert_equal_states(test_train.saved(run, 6), state)


@pytest.mark.slow
def test_a_checkpoint_that_failed_is_made_good_at_the_next_barrier(
    whole, tmp_path, monkeypatch, caplog
):
    """Not sooner: in between something of a later iteration has been played, which no checkpoint
    holds.  The barrier here is an evaluation, and no checkpoint is due."""
    seal = folders.seal
    refused = []

    def full(folder):
        if folder.name.partition(".")[0] == "0":
            refused.append(folder)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        seal(folder)

    monkeypatch.setattr(folders, "seal", full)
    saving = []
    test_train.before_call(monkeypatch, store.Store, "failed", 1, lambda: settled(saving))
    save = store.Store.save

    def noted(checkpoints, iteration, state):
        saving.append((checkpoints, iteration))
        save(checkpoints, iteration, state)

    monkeypatch.setattr(store.Store, "save", noted)
    run = apart(tmp_path, 6, run__save_every=6)
    assert len(refused) == 1 and "checkpoints/0 could not be written" in caplog.text
    assert [iteration for _, iteration in saving] == [0, 3, 6]
    assert folders.standing(run / "checkpoints") == [3, 6]
    assert repeated(run) == repeated(whole)
    for iteration in (3, 6):
        test_train.assert_equal_states(
            test_train.saved(run, iteration), test_train.saved(whole, iteration)
        )


def settled(saving):
    """A save may take longer than a probe's iterations."""
    checkpoints, _ = saving[-1]
    concurrent.futures.wait([checkpoints._saving])


# ---- whoever is ready is served -----------------------------------------------------------------

AS_READY = dict(rollout__lockstep=False, run__save_every=10, eval__every=0)
VARIANTS = {
    "decision": {},
    "batch, two ahead": dict(rollout__max_staleness=2, rollout__weight_switch="batch"),
    "prefixes on the devices": dict(rollout__prefix_cache="device"),
    "annealed noise": dict(model__noise_anneal=True, video__train=1),
    "replaced groups": dict(
        algorithm__adv_type="grpo",
        algorithm__group_size=2,
        algorithm__filter_rewards=True,
        algorithm__max_episodes_per_iteration=24,
        model__add_value_head=False,
    ),
    "early end of the epochs": dict(algorithm__target_kl=1e-9),
    "replay": dict(algorithm__clone_coef=0.1, algorithm__clone_rollouts=2),
    "nft": test_train_nft.OURS,
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in list(VARIANTS)[1:]]


@pytest.mark.parametrize("variant", ["decision", *SLOW])
def test_no_row_is_staler_than_asked_for(tmp_path, variant):
    fields = AS_READY | VARIANTS[variant]
    rows = learned(apart(tmp_path, 3, **fields))
    ahead = fields.get("rollout__max_staleness", 1)
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    for row in rows:
        assert row["async/staleness_max"] <= min(ahead, row["iteration"])
        shares = [row[f"async/lag_{lag}"] for lag in range(ahead + 1)]
        mean = sum(lag * share for lag, share in enumerate(shares))
        assert abs(sum(shares) - 1) < 1e-6 and abs(mean - row["async/staleness_mean"]) < 1e-6
        assert row["env/num_trajectories"] >= 12
    if variant == "early end of the epochs":
        assert [row["actor/epochs"] for row in rows] == [1, 1, 1]


# ---- one error ends it --------------------------------------------------------------------------


@contextlib.contextmanager
def no_orphan():
    """Whatever happens in the block, the simulators are gone after it."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    left = [each for each in psutil.Process().children(True) if each.pid not in before]
    _, alive = psutil.wait_procs(left, timeout=10)
    assert not alive


@pytest.mark.slow
@pytest.mark.parametrize(
    "owner, name, number",
    [(update.Updater, "step", 2), (overlap.Work, "publish", 2), (streams.Stream, "send", 30)],
    ids=["learner", "publish", "rollout"],
)
def test_what_fails_is_the_one_error(tmp_path, monkeypatch, owner, name, number):
    def fails():
        raise RuntimeError("the first cause")

    test_train.before_call(monkeypatch, owner, name, number, fails)
    with no_orphan(), pytest.raises(RuntimeError, match="the first cause"):
        apart(tmp_path, 6, **AS_READY)


@pytest.mark.slow
def test_simulators_that_die_end_the_run_with_their_cause(tmp_path, monkeypatch, capfd):
    """One after another, until the budget of restarts is spent."""
    monkeypatch.setattr(
        train.training.simulators, "env_factory", lambda settings: faulty.dying_later
    )
    with no_orphan(), pytest.raises(SystemExit) as exit_:
        apart(tmp_path, 6, env__restarts_per_hour=1, **AS_READY)
    assert exit_.value.code == 2
    assert capfd.readouterr().err.count("raise env.restarts_per_hour") == 1


def test_the_copies_that_play_outlive_the_update(whole):
    """What trains is copied, the rest is shared: a step takes its arguments away."""
    tree = {"a": jax.numpy.arange(3.0), "b": {"c": jax.numpy.ones(2)}}
    copied = overlap._copied(tree)
    jax.tree.map(lambda x: x.delete(), tree)
    np.testing.assert_array_equal(copied["a"], np.arange(3.0))
