"""When a run ends or goes back because learning has gone wrong, and where it goes on.

Whole runs: tests/test_train.py.
"""

import errno
import json
import os
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pirl_jax.core import endings
from pirl_jax.core import mesh as meshes
from pirl_jax.envs.pool import queue
from pirl_jax.monitor import log
from pirl_jax.recipes import probe as recipe
from pirl_jax.run import config, divergence, hosts, pages, training
from pirl_jax.weights import folders, store

GOOD = {"actor/updates": 8.0, "actor/skipped_updates": 3.0, "actor/nonfinite_updates": 3.0}
NO_SIGNAL = {"actor/updates": 8.0, "actor/skipped_updates": 8.0, "actor/nonfinite_updates": 0.0}
NOT_FINITE = {"actor/updates": 8.0, "actor/skipped_updates": 8.0, "actor/nonfinite_updates": 1.0}


class Envs:
    """Three slots that have been asked."""

    num_pending = 3

    def get(self, batch):
        self.num_pending -= batch


class Run:
    """A run on disk: rows and checkpoints are real, nothing is learned."""

    def __init__(self, path, *, resume_at=None, tensorboard=False, **fields):
        page = recipe.get_config()
        page.run.update(dict(max_skipped_iterations=2, max_rollbacks=2) | fields)
        page.optim.update(lr=1.0, value_lr=2.0)
        backends = ("tensorboard",) if tensorboard else ()
        directory = log.RunDir(path, {}, resume_at, backends)
        self.run = training.Run(
            settings=config.settings(page),
            key=jax.random.key(0),
            mesh=None,
            envs=Envs(),
            playable=None,
            directory=directory,
            page=pages.Page(path, 0),
            store=store.Store(path / "checkpoints", keep=1),
            timers=None,
            first_iteration=resume_at or 0,
            stream="simulators that work on the next rollout",
        )
        self.guard = divergence.Guard(self.run)
        if resume_at is None:
            self.run.directory.write(0, {"eval/return": 0.5})
            self.save(0)

    def save(self, iteration):
        self.run.store.save(iteration, {"w": np.float32([iteration])})
        self.run.store.wait()

    def play(self, iteration, row):
        """One iteration, with its checkpoint, as train.py has them."""
        written = self.run.directory.write(iteration, {"actor/approx_kl": 0.1} | row)
        self.guard.watch(iteration, written)
        self.save(iteration + 1)

    def end(self):
        self.run.store.close()
        self.run.directory.close()

    @property
    def standing(self):
        return folders.standing(self.run.store.directory)

    @property
    def rows(self):
        return [row["iteration"] for row in log.read(self.run.directory.path)]


@pytest.fixture
def start(tmp_path):
    runs = []

    def make(**fields):
        runs.append(Run(tmp_path / "run", **fields))
        return runs[-1]

    yield make
    for run in runs:
        run.end()


def test_the_last_healthy_checkpoint_is_never_removed(start):
    """keep=1: it stays beside the newest, however many are saved, until another one is healthy."""
    run = start()
    seen = [run.standing]
    for iteration, row in enumerate((GOOD, NO_SIGNAL, NO_SIGNAL, GOOD, NOT_FINITE, GOOD)):
        run.play(iteration, row)
        seen.append(run.standing)
    # Iteration 3 learned from a rollout of the policy of checkpoint 3, and so on.
    assert seen == [[0], [0, 1], [0, 2], [0, 3], [3, 4], [3, 5], [5, 6]]


def test_a_checkpoint_that_is_still_being_written_is_protected_in_time(start, monkeypatch):
    """keep=1 on a slow disk: the first iteration is over before the start is on it."""
    run = start()
    with monkeypatch.context() as patch:
        patch.setattr(divergence.folders, "standing", lambda directory: [])
        run.guard.watch(0, GOOD | {"actor/approx_kl": 0.1})
    run.save(1)
    run.guard.watch(1, NOT_FINITE | {"actor/approx_kl": 0.1})
    run.save(2)
    assert run.standing == [0, 2]


def test_iterations_without_a_finite_gradient_end_a_run(start):
    """In a row; a rollout without a signal is no fault, and forgives none."""
    run = start()
    for iteration, row in enumerate((NOT_FINITE, GOOD, NOT_FINITE, NO_SIGNAL)):
        run.play(iteration, row)
    with pytest.raises(endings.Diverged, match="no gradient of the last 2 iterations was finite"):
        run.play(4, NOT_FINITE)


def test_updates_that_leave_nothing_of_the_policy_end_a_run(start):
    run = start()
    run.play(0, GOOD | {"actor/approx_kl": 1e5})
    run.play(1, GOOD | {"actor/approx_kl": float("nan")})
    with pytest.raises(endings.Diverged, match=r"updates of iteration 2 .* by 2e\+08 nats"):
        run.play(2, GOOD | {"actor/approx_kl": 2e8})
    assert run.standing == [1, 2], "and what they made of it is not saved"


def test_a_run_that_stops_leaves_its_last_healthy_checkpoint_as_the_newest(start):
    run = start()
    for iteration, row in enumerate((GOOD, GOOD, NOT_FINITE)):
        run.play(iteration, row)
    with pytest.raises(endings.Failure) as ending:
        run.guard.roll_back("the policy acts absurdly")
    said = str(ending.value)
    assert said.startswith("the policy acts absurdly; the last healthy checkpoint is that of ")
    assert "of iteration 1: --resume auto goes on from there, with a smaller step" in said
    assert "optim.lr=1, optim.value_lr=2" in said and "run.on_divergence=rollback" in said
    assert run.standing == [1] and ending.value.code == 2
    assert not (run.run.directory.path / divergence.FILE).exists()


def test_a_run_without_a_healthy_checkpoint_stops(start):
    run = start(on_divergence="rollback")
    run.play(0, NOT_FINITE)
    with pytest.raises(endings.Failure, match=r"no checkpoint of .* has proven healthy: start"):
        run.guard.roll_back("no gradient was finite")


def test_a_rollback(start, capsys):
    """To the last healthy checkpoint, with 0.3 times the step and other draws; said loudly."""
    run = start(on_divergence="rollback", tensorboard=True)
    for iteration, row in enumerate((GOOD, GOOD, NOT_FINITE)):
        run.play(iteration, row)
    key = run.run.iteration_key(1)
    assert run.rows == [0, 0, 1, 2] and run.standing == [1, 3]
    run.guard.roll_back("the policy acts absurdly")
    said = capsys.readouterr().out
    assert "ROLLBACK 1 of at most 2: the policy acts absurdly; back to the checkpoint of" in said
    assert "of iteration 1, with other draws and a step of 0.3 times the configured one" in said
    assert run.standing == [1] and run.rows == [0, 0], "as a resume there finds it"
    this = run.run
    assert (this.first_iteration, this.rollbacks) == (1, 1)
    assert this.stream is None and this.envs.num_pending == 0
    optim = this.settings.raw.optim
    np.testing.assert_allclose([optim.lr, optim.value_lr], [0.3, 0.6])
    assert (key != this.iteration_key(1)).all()
    saved = json.loads((this.directory.path / divergence.FILE).read_text())
    assert saved == [{"iteration": 1, "cause": "the policy acts absurdly", "step": 0.3}]
    run.play(1, GOOD)
    run.guard.roll_back("again")
    np.testing.assert_allclose(this.settings.raw.optim.lr, 0.09)
    run.play(1, GOOD)
    with pytest.raises(endings.Failure, match=r"again, after 2 rollbacks \(run.max_rollbacks\); "):
        run.guard.roll_back("again")


def test_a_rollback_to_the_start_keeps_what_was_measured_before(start):
    run = start(on_divergence="rollback", tensorboard=True)
    run.play(0, GOOD | {"actor/skipped_updates": 8.0})
    run.run.directory.write(1, {"eval/return": 0.1})
    run.guard.watch(0, GOOD | {"actor/approx_kl": 0.1})
    run.guard.roll_back("the policy acts absurdly")
    (row,) = log.read(run.run.directory.path)
    assert row == {"iteration": 0, "eval/return": 0.5} and run.standing == [0]


def test_a_save_that_failed_is_in_no_rollbacks_way(start, monkeypatch):
    """Nor does it hide the cause; the next iteration is saved instead."""
    run = start(on_divergence="rollback")
    run.play(0, GOOD)

    def full(folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(folders, "seal", full)
        run.run.store.save(2, {"w": np.float32([2])})
        run.guard.roll_back("the policy acts absurdly")
    assert run.run.first_iteration == 0 and run.standing == [0]
    assert run.run.store.failed()
    run.play(0, GOOD)
    assert not run.run.store.failed()


def test_a_resumed_run_knows_what_was_before(start, capsys):
    """Rollbacks, the step, the draws, iterations without a gradient, what is healthy."""
    first = start(on_divergence="rollback")
    for iteration, row in enumerate((GOOD, GOOD, NOT_FINITE)):
        first.play(iteration, row)
    first.guard.roll_back("the policy acts absurdly")
    first.play(1, GOOD)
    first.play(2, NOT_FINITE)
    first.end()
    second = start(on_divergence="rollback", resume_at=3)
    assert (
        "gone back 1 times (rollbacks.json); its step is 0.3 times the" in capsys.readouterr().out
    )
    assert second.run.rollbacks == 1 and second.run.settings == first.run.settings
    assert (second.run.iteration_key(5) == first.run.iteration_key(5)).all()
    with pytest.raises(endings.Diverged, match="no gradient of the last 2 iterations"):
        second.play(3, NOT_FINITE)
    assert second.standing == [1, 3]
    second.save(4)
    assert second.standing == [1, 4], "the healthy one is protected again"


def test_a_kill_in_the_middle_of_a_rollback_loses_nothing(start, monkeypatch):
    """The same cause comes again, and leads to the same place."""
    first = start(on_divergence="rollback")
    for iteration, row in enumerate((GOOD, GOOD, NOT_FINITE)):
        first.play(iteration, row)

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(divergence.atomic, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        first.guard.roll_back("the policy acts absurdly")
    monkeypatch.undo()
    assert first.standing == [1]
    first.end()
    second = start(on_divergence="rollback", resume_at=1)
    assert second.run.rollbacks == 0
    second.play(1, GOOD)
    second.guard.roll_back("the policy acts absurdly")
    assert second.run.first_iteration == 1 and second.run.rollbacks == 1


def test_a_file_of_rollbacks_that_is_none(start):
    run = start().run
    (run.directory.path / divergence.FILE).write_text("[{")
    with pytest.raises(ValueError, match=r"rollbacks.json is no JSON .* remove it, and the run"):
        divergence.Guard(run)


@pytest.mark.parametrize("place", ["params", "moments", "ema"])
def test_what_is_not_finite_is_never_saved(place):
    state = {name: jnp.ones(2) for name in ("params", "moments", "ema")} | {"step": jnp.int32(3)}
    assert divergence.checked(state, 4) is state
    state[place] = jnp.array([1.0, jnp.inf])
    with pytest.raises(endings.Diverged, match="are not finite after 4 iterations"):
        divergence.checked(state, 4)


@pytest.mark.parametrize("elsewhere", [None, endings.Diverged("there"), queue.Interrupted()])
@pytest.mark.parametrize("here", [None, endings.Diverged("here"), queue.Interrupted()])
def test_hosts_decide_together(monkeypatch, here, elsewhere):
    """What one of two hosts meets ends the block on both; a signal goes first."""
    monkeypatch.setattr(meshes, "gather", lambda mine: [mine, elsewhere])
    kinds = {type(here), type(elsewhere)} - {types.NoneType}
    if not kinds:
        with hosts.together():
            pass
        return
    expected = queue.Interrupted if queue.Interrupted in kinds else endings.Diverged
    with pytest.raises(expected), hosts.together():
        if here:
            raise here
