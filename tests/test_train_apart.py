"""Whole runs of two threads: one plays on devices of its own while the other learns."""

import logging
import threading
import time
import traceback
import types

import jax
import pytest

from pirl_jax.core import endings
from pirl_jax.core import mesh as meshes
from pirl_jax.learner import update
from pirl_jax.recipes import probe as recipe
from pirl_jax.rollout import stream as streams
from pirl_jax.run import apart, candidates, config, exchange, overlap, schedule
from tests import test_train, test_train_overlap

ask = test_train.ask  # a fixture: a signal to this process
no_orphan = test_train_overlap.no_orphan
learned = test_train_overlap.learned
ITERATIONS = 3
FIELDS = {
    "rollout__max_staleness": 1,
    "rollout__lockstep": False,
    "placement__rollout": "0-3",
    "placement__actor": "4-7",
    "run__save_every": ITERATIONS,
    "eval__every": 0,
}


def run(directory, *arguments, **fields):
    return test_train.probe(directory, ITERATIONS, *arguments, **(FIELDS | fields))


def no_thread_is_left():
    return not [thread for thread in threading.enumerate() if thread.name == "rollout"]


@pytest.mark.slow
def test_who_plays_and_who_learns_do_so_at_one_time(tmp_path, monkeypatch):
    """No row is staler than asked for, every batch is learned, and both sides end.

    What decides and what learns are different threads.
    """
    threads = {"play": set(), "learn": set()}

    def noting(holder, name, side):
        whole = getattr(holder, name)

        def noted(*args, **kwargs):
            threads[side].add(threading.current_thread().name)
            return whole(*args, **kwargs)

        monkeypatch.setattr(holder, name, noted)

    noting(overlap.Work, "decide", "play")
    noting(update.Updater, "step", "learn")
    noting(overlap.Work, "publish", "learn")
    with no_orphan():
        rows = learned(run(tmp_path))
    assert threads == {"play": {"rollout"}, "learn": {"MainThread"}}
    assert [row["iteration"] for row in rows] == list(range(ITERATIONS))
    for row in rows:
        assert row["async/staleness_max"] <= min(1, row["iteration"])
        assert row["env/num_trajectories"] == rows[0]["env/num_trajectories"]
        assert 0 <= row["rollout/slot_use"] <= 1 and row["time/publish"] > 0
        assert row["time/gate_wait"] <= row["time/iteration"] + 0.3, "a wait of its own iteration"
        assert row["actor/first_ratio_max_dev"] < 1e-4
    assert rows[0]["async/ess"] == 1 and no_thread_is_left()


@pytest.mark.slow
@pytest.mark.parametrize(
    "owner, name, number",
    [(update.Updater, "step", 2), (overlap.Work, "publish", 2), (streams.Stream, "send", 8)],
    ids=["learner", "publish", "rollout"],
)
def test_the_first_error_of_either_side_ends_the_run(tmp_path, monkeypatch, owner, name, number):
    """With where it happened; soon, and nothing is left of either."""
    failed_s = []

    def breaks():
        failed_s.append(time.monotonic())
        raise RuntimeError("the first cause")

    monkeypatch.setattr(apart.exchanges, "both", noting_the_end := Noting(apart.exchanges.both))
    test_train.before_call(monkeypatch, owner, name, number, breaks)
    with no_orphan(), pytest.raises(RuntimeError, match="the first cause") as raised:
        run(tmp_path)
    assert noting_the_end.at_s - failed_s[0] < 10
    assert "breaks" in [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]
    assert no_thread_is_left()


class Noting:
    """A function, and when it has ended last."""

    def __init__(self, whole):
        self.at_s = 0.0
        self._whole = whole

    def __call__(self, *args):
        try:
            return self._whole(*args)
        finally:
            self.at_s = time.monotonic()


@pytest.mark.slow
def test_asked_to_end_it_saves_what_is_learned(tmp_path, monkeypatch, ask, capsys):
    """The update that is under way ends first."""
    with monkeypatch.context() as patch:
        test_train.before_call(patch, update.Updater, "step", 2, ask)
        with no_orphan(), pytest.raises(SystemExit) as exit_:
            run(tmp_path)
    assert exit_.value.code == 75 and no_thread_is_left()
    # One more where the other side waited for parameters, and not for simulators.
    saved = len(learned(tmp_path))
    assert saved in (1, 2)
    assert f"iteration {saved} is saved" in capsys.readouterr().err
    run(tmp_path, "--resume", "auto")
    assert [row["iteration"] for row in learned(tmp_path)] == list(range(ITERATIONS))


@pytest.mark.slow
@pytest.mark.parametrize("side", ["learner", "rollout"])
def test_either_thread_goes_back_where_it_diverges(tmp_path, monkeypatch, capsys, side):
    """To the last barrier, and both begin again from there; also where one has to be woken up."""
    both = exchange.both

    def waking(*sides):
        *_, wake = sides
        try:
            return both(*sides)
        except endings.Diverged:
            wake()
            raise

    monkeypatch.setattr(exchange, "both", waking)
    with test_train_overlap.diverging(monkeypatch, side, 1), no_orphan():
        whole = run(tmp_path, run__on_divergence="rollback")
    assert "the policy is gone; back to the checkpoint of iteration 0" in capsys.readouterr().out
    rows = learned(whole)
    assert [row["iteration"] for row in rows] == list(range(ITERATIONS))
    assert [row["run/rollbacks"] for row in rows] == [1] * ITERATIONS
    assert all(row["async/staleness_max"] <= min(1, row["iteration"]) for row in rows)
    assert no_thread_is_left()


class Compiled(logging.Handler):
    """What is compiled while a thread plays: names of functions, by thread."""

    def __init__(self):
        super().__init__()
        self.while_playing = []

    def emit(self, record):
        said = record.getMessage()
        if said.startswith("Compiling ") and not no_thread_is_left():
            self.while_playing.append((record.threadName, said.split()[1]))


@pytest.fixture
def compiled():
    handler = Compiled()
    logger = logging.getLogger("jax")
    logger.addHandler(handler)
    logger.propagate = False
    before = jax.config.jax_log_compiles
    jax.config.update("jax_log_compiles", True)
    yield handler.while_playing
    jax.config.update("jax_log_compiles", before)
    logger.propagate = True
    logger.removeHandler(handler)


# Without a network in them: milliseconds each.
TINY = {"jit(_stacked)", "jit(zeros)", "jit(_increment)"}


@pytest.mark.slow
def test_everything_is_compiled_before_there_are_two_threads(tmp_path, compiled):
    """A thread that traces or compiles holds up the other one."""
    rows = learned(run(tmp_path))
    assert rows[-1]["async/staleness_max"] == 1, "what looks at older rows again was called"
    assert [(thread, name) for thread, name in compiled if name not in TINY] == []


# ---- what is not for two threads ----------------------------------------------------------------


def settings_of(**changes):
    page = recipe.get_config()
    for name, value in (FIELDS | changes).items():
        section, field = name.split("__")
        page[section][field] = value
    return config.settings(page)


def test_rows_may_not_lie_where_others_play():
    """A learner that reads them would start programs on devices of another thread."""
    with pytest.raises(ValueError, match=r"prefix_cache='device' keeps rows on placement.*'host'"):
        schedule.require(settings_of(rollout__prefix_cache="device").raw)
    for allowed in ("host", "recompute", "auto"):
        schedule.require(settings_of(rollout__prefix_cache=allowed).raw)
    shared = dict(placement__rollout="all", placement__actor="all")
    schedule.require(settings_of(rollout__prefix_cache="device", **shared).raw)
    in_turns = dict(rollout__max_staleness=0)
    schedule.require(settings_of(rollout__prefix_cache="device", **in_turns).raw)


def test_the_plan_leaves_rows_where_nobody_plays():
    gpu = types.SimpleNamespace(platform="gpu")
    mesh = types.SimpleNamespace(devices=types.SimpleNamespace(flat=[gpu]))
    assert candidates._caches(settings_of(), mesh) == ("host", "recompute")
    assert candidates._caches(settings_of(rollout__max_staleness=0), mesh)[0] == "device"
    shared = dict(placement__rollout="all", placement__actor="all")
    assert candidates._caches(settings_of(**shared), mesh)[0] == "device"


def test_two_threads_are_for_separate_devices_without_an_order():
    plays = meshes.make_mesh(devices=jax.devices()[:4])
    learns = meshes.make_mesh(devices=jax.devices()[4:])

    def applies(mesh, **changes):
        settings = settings_of(**changes)
        return apart.applies(types.SimpleNamespace(settings=settings, plays=plays, mesh=mesh))

    assert applies(learns) and not applies(plays)
    assert not applies(learns, rollout__lockstep=True)
    assert not applies(learns, rollout__max_staleness=0)
