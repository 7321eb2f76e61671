"""Whole runs of the command, in this process: what they leave behind, and that they repeat and
resume bit for bit."""

import concurrent.futures
import errno
import functools
import json
import os
import pathlib
import shutil
import signal
import threading
import types

import jax
import numpy as np
import pytest

from pirl_jax import train
from pirl_jax.core import endings, locks
from pirl_jax.core import mesh as meshes
from pirl_jax.envs import child
from pirl_jax.learner import update
from pirl_jax.monitor import log
from pirl_jax.rollout import stream as streams
from pirl_jax.run import evaluation, learning, preemption, simulators, teach
from pirl_jax.weights import folders, store
from tests import faulty

ROOT = pathlib.Path(__file__).parents[1]
SMALL = {
    "rollout.num_envs": 8,
    "rollout.num_groups": 2,
    "rollout.lockstep": True,
    "rollout.episodes_per_iteration": 12,
    "env.num_workers": 2,
    "algorithm.minibatch_size": 8,
    "algorithm.microbatch_size": 4,
    "run.compilation_cache": "",
}
FAULTY = functools.partial(faulty.Faulty, 20)
MAKE_MESH = meshes.make_mesh


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """A user's machine, not the eight virtual devices of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meshes, "make_mesh", lambda *args: MAKE_MESH(*args, jax.devices()[:1]))
        yield


def start(recipe, directory, *arguments, **fields):
    fields = (
        SMALL
        | {"run.directory": directory}
        | {name.replace("__", "."): value for name, value in fields.items()}
    )
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    train.main(["train", "--config", str(ROOT / "configs" / recipe), *overrides, *arguments])
    return directory


def probe(directory, num_iterations, *arguments, **fields):
    return start(
        "probe.py",
        directory,
        *arguments,
        num_iterations=num_iterations,
        **(dict(env__suite="probe_delayed", run__save_every=2, eval__every=2) | fields),
    )


def saved(directory, iteration):
    """Every array of a checkpoint by its path."""
    source = store.Store(directory / "checkpoints", create=False)
    like = {
        name: np.zeros(leaf.shape, leaf.dtype)
        for name, leaf in source.saved_leaves(iteration).items()
    }
    state, _ = source.restore(like, iteration)
    source.close()
    return state


def assert_equal_states(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Four iterations without a break."""
    return probe(tmp_path_factory.mktemp("whole"), 4)


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """The first two."""
    return probe(tmp_path_factory.mktemp("half"), 2)


@pytest.mark.slow
def test_a_run_on_four_devices_is_that_on_one(half, tmp_path, monkeypatch):
    monkeypatch.setattr(meshes, "make_mesh", lambda *_: MAKE_MESH(2, 2, jax.devices()[:4]))
    rows, expected = (log.read(path, timing=False) for path in (probe(tmp_path, 2), half))
    for row, like in zip(rows, expected, strict=True):
        for name in row:
            exact = name.startswith(("env/", "eval/"))
            np.testing.assert_allclose(
                row[name],
                like[name],
                rtol=0 if exact else 1e-2,
                atol=0 if exact else 1e-4,
                err_msg=name,
            )


def test_the_same_seed_gives_the_same_run(whole, half):
    rows, first_rows = log.read(whole, timing=False), log.read(half, timing=False)
    assert [row["iteration"] for row in rows] == [
        0,
        0,
        1,
        2,
        2,
        3,
        4,
    ]  # before, two, evaluation, two, after
    assert first_rows[:3] == rows[:3] and len(rows[1]) > 30
    before, after = saved(whole, 2), saved(whole, 4)
    moved = [name for name in after if (before[name] != after[name]).any()]
    assert any(name.startswith("params/") for name in moved) and "step" in moved


def test_a_resumed_run_equals_the_uninterrupted_one(whole, half, tmp_path):
    resumed = shutil.copytree(half, tmp_path / "run")
    probe(resumed, 4, "--resume", "auto")
    assert log.read(resumed, timing=False) == log.read(whole, timing=False)
    assert_equal_states(saved(resumed, 4), saved(whole, 4))
    assert [
        entry["first_iteration"] for entry in json.loads((resumed / "environment.json").read_text())
    ] == [0, 2]
    with pytest.raises(SystemExit):  # what it has cannot be undone
        probe(resumed, 3, "--resume", "auto")


def test_neither_where_prefixes_lie_nor_when_simulators_start_changes_a_run(half, tmp_path):
    """An evaluation before every iteration: the simulators cannot start on the next rollout while
    the learner works."""
    run = probe(tmp_path, 2, rollout__prefix_cache="device", eval__every=1)
    rows = [
        [row for row in log.read(path, timing=False) if "actor/loss" in row] for path in (run, half)
    ]
    # Success of the evaluation before it, less that of the rollout.
    evaluated = [row for row in log.read(run) if "eval/success_once" in row]
    gap = rows[0][1].pop("rollout/exploration_gap")
    (rate,) = [row["eval/success_once"] for row in evaluated if row["iteration"] == 1]
    assert gap == rate - rows[0][1]["env/success_once"]
    assert rows[0] == rows[1] and len(rows[0]) == 2
    assert_equal_states(saved(run, 2), saved(half, 2))


def test_a_run_killed_before_its_first_checkpoint_starts_over(half, tmp_path):
    killed = shutil.copytree(half, tmp_path / "run")
    shutil.rmtree(killed / "checkpoints")
    probe(killed, 2, "--resume", "auto")
    assert log.read(killed, timing=False) == log.read(half, timing=False)
    assert_equal_states(saved(killed, 2), saved(half, 2))


# ---- asked to end ----


@pytest.fixture
def ask(monkeypatch):
    """Sends this process a signal, and returns when the thread that listens has acted on it.

    The process goes on after the command, with its own handlers.
    """
    before = {number: signal.getsignal(number) for number in child.ENDING}
    monkeypatch.setattr(preemption.Watch, "_limit", lambda self, code: None)
    heard = threading.Event()
    begin = preemption.Watch._begin

    def begun(self, number):
        begin(self, number)
        heard.set()

    monkeypatch.setattr(preemption.Watch, "_begin", begun)

    def kill(number=signal.SIGTERM):
        if not heard.is_set():
            os.kill(os.getpid(), number)
            assert heard.wait(10)

    yield kill
    for number, handler in before.items():
        signal.signal(number, handler)
    signal.set_wakeup_fd(-1)


def before_call(monkeypatch, owner, name, number, action):
    """`action` before the call of this number, from 1, of a function of the program."""
    function = getattr(owner, name)
    count = iter(range(1, 10**6))

    def called(*args, **kwargs):
        if next(count) == number:
            action()
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, called)


# what is called when the signal comes: owner, name, which call -> iteration that is saved
PLACES = {
    # One call each in the evaluation before and in its other episodes.
    "rollout": (streams.Stream, "send", 8, 0),
    "end of a rollout": (update, "learn_in_parts", 1, 1),
    "update": (update.Updater, "step", 3, 1),
    "row": (log.RunDir, "write", 3, 2),
    "evaluation": (evaluation.Evaluation, "play", 2, 2),
    "last update": (update, "learn_in_parts", 4, 4),
}
ALL_BUT_ONE = [pytest.param(place, marks=pytest.mark.slow) for place in list(PLACES)[1:]]


@pytest.mark.parametrize("place", ["rollout", *ALL_BUT_ONE])
def test_a_run_that_is_asked_to_end_goes_on_as_if_nothing_had_been(
    whole, tmp_path, monkeypatch, capsys, ask, place
):
    owner, name, number, iteration = PLACES[place]
    with monkeypatch.context() as patch:
        before_call(patch, owner, name, number, ask)
        with pytest.raises(SystemExit) as exit_:
            probe(tmp_path, 4)
    assert exit_.value.code == 75
    said = capsys.readouterr().err.strip()
    assert said.startswith("SIGTERM: ") and "\n" not in said and said.endswith("--resume auto")
    saved_iterations = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert max(saved_iterations) == iteration
    assert sum("actor/loss" in row for row in log.read(tmp_path)) == iteration
    probe(tmp_path, 4, "--resume", "auto")
    assert log.read(tmp_path, timing=False) == log.read(whole, timing=False)
    assert_equal_states(saved(tmp_path, 4), saved(whole, 4))


# ---- nothing is lost -----------------------------------------------------------------------------


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def files(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_damaged_checkpoint_is_passed_over_and_the_run_equals_the_undisturbed(
    whole, tmp_path, capsys
):
    run = shutil.copytree(whole, tmp_path / "run")
    blobs = [path for path in (run / "checkpoints" / "4" / "state").rglob("*") if path.is_file()]
    flip(max(blobs, key=lambda path: path.stat().st_size))
    probe(run, 4, "--resume", "auto")
    said = capsys.readouterr().out
    assert said.count("has another checksum) and set aside as 4.damaged; going on from 2\n") == 1
    assert log.read(run, timing=False) == log.read(whole, timing=False)
    assert_equal_states(saved(run, 4), saved(whole, 4))
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"2", "4", "4.damaged"}


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", pytest.param("config.json", marks=pytest.mark.slow)]
)
def test_no_fragile_file_decides_about_checkpoints(whole, tmp_path, name, capsys):
    run = shutil.copytree(whole, tmp_path / "run")
    (run / name).write_bytes(b"")
    checkpoints = files(run / "checkpoints")
    with pytest.raises(SystemExit) as exit_:
        probe(run, 4)
    assert exit_.value.code == 2 and "already holds a run" in capsys.readouterr().err
    probe(run, 4, "--resume", "auto")
    assert "damaged since the last start: " in capsys.readouterr().out
    assert files(run / "checkpoints") == checkpoints
    assert log.read(run, timing=False)[-1] == log.read(whole, timing=False)[-1]


def test_a_second_start_changes_nothing(whole, tmp_path, capsys):
    run = shutil.copytree(whole, tmp_path / "run")
    with locks.writing(run, ""):
        before = files(run)
        for resume in ("never", "auto"):
            with pytest.raises(SystemExit) as exit_:
                probe(run, 6, "--resume", resume)
            said = capsys.readouterr().err
            assert exit_.value.code == 2 and said.count("\n") == 1
            assert f"{run} is in use by process {os.getpid()} on host " in said
        assert files(run) == before


def test_a_wrong_start_leaves_nothing_behind(half, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        start("probe.py", tmp_path / "new" / "run", model__checkpoint=tmp_path / "absent")
    assert exit_.value.code == 2 and "there is no checkpoint at" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    run = shutil.copytree(half, tmp_path / "run")
    flip(run / "checkpoints" / "2" / "state" / "manifest.ocdbt")
    before = files(run)
    with pytest.raises(SystemExit):
        probe(run, 2, "--resume", "auto", model__checkpoint=tmp_path / "absent")
    assert files(run) == before


def test_a_conversion_is_no_run_to_go_on_with(half, tmp_path, capsys):
    shutil.copytree(half / "checkpoints" / "2", tmp_path / "checkpoints" / "0")
    before = files(tmp_path)
    with pytest.raises(SystemExit):
        probe(tmp_path, 2, "--resume", "auto")
    assert "start from it with model.checkpoint=" in capsys.readouterr().err
    assert files(tmp_path) == before


def test_a_save_that_fails_is_made_good_an_iteration_later(half, tmp_path, monkeypatch, caplog):
    seal, left = folders.seal, [2]

    def full(folder):
        if folder.name.partition(".")[0] in ("0", "1") and left:
            left.pop()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        seal(folder)

    def settled(checkpoints):  # a save may take longer than a probe's iteration
        concurrent.futures.wait([future for future in (checkpoints._saving,) if future])
        return failed(checkpoints)

    monkeypatch.setattr(folders, "seal", full)
    failed = store.Store.failed
    monkeypatch.setattr(store.Store, "failed", settled)
    run = probe(tmp_path, 2)
    assert "checkpoints/0 could not be written (No space left on device)" in caplog.text
    assert log.read(run, timing=False) == log.read(half, timing=False)
    assert_equal_states(saved(run, 2), saved(half, 2))
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"1", "2"}


@pytest.mark.slow
def test_saves_that_go_on_failing_end_the_run(tmp_path, monkeypatch, capsys):
    def full(folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(folders, "seal", full)
    monkeypatch.setattr(store, "PAUSE_S", 0.0)
    with pytest.raises(SystemExit) as exit_:
        probe(tmp_path, 2)
    assert exit_.value.code == 2
    assert "(No space left on device), 3 times in a row; it holds []" in capsys.readouterr().err


@pytest.mark.slow
def test_grpo_with_learned_noise_an_anchor_and_an_average(tmp_path, capsys):
    """Everything that a run without a critic has, and what it has not."""
    run = start(
        "probe.py",
        tmp_path,
        num_iterations=2,
        env__suite="probe_action",
        eval__episodes_per_task=1,
        model__add_value_head=False,
        model__noise_method="reinflow",
        model__noise_steps="all",
        algorithm__adv_type="grpo",
        algorithm__group_size=4,
        algorithm__anchor_coef=0.1,
        optim__lr=1e-4,
        algorithm__ema_decay=0.5,
    )
    said = capsys.readouterr().out
    assert said.count("norm stats: zscore, state 8 dims, actions 7 dims\nnorm stats: ") == 1, (
        "once, with evaluations"
    )
    assert "state values lie outside q01..q99 (by dim: " in said
    _, first, second, _ = log.read(run)
    assert first["rollout/advantages_max"] > 0 > first["rollout/advantages_min"], (
        "groups of 4, not of 1"
    )
    assert (
        first["actor/anchor"] > 0 < second["actor/anchor"]
        and first["actor/first_ratio_max_dev"] < 1e-3
    )
    assert not [name for name in first if name.startswith("critic/") or "value_loss" in name]
    names = saved(run, 2)
    assert any(name.startswith("ema/") for name in names) and any(
        "noise_head" in name for name in names
    )
    assert not [name for name in names if "value_head" in name]
    assert list(json.loads((run / "table.json").read_text())["rows"]) == ["before", "GRPO"]


def test_grpo_learns(tmp_path):
    """Without a critic, in groups of 8: the mean reward of the probe of the policy gradient goes
    from about 0 towards 1."""
    run = start(
        "probe.py",
        tmp_path,
        num_iterations=15,
        env__suite="probe_action",
        eval__baseline=False,
        run__save_every=15,
        model__add_value_head=False,
        algorithm__adv_type="grpo",
        algorithm__group_size=8,
        rollout__num_envs=32,
        rollout__episodes_per_iteration=64,
        algorithm__minibatch_size=32,
        algorithm__microbatch_size=32,
    )
    return_ = [row["env/return"] for row in log.read(run) if "env/return" in row]
    assert abs(return_[0]) < 0.3 and np.mean(return_[-3:]) > 0.4, np.round(return_, 2)


def dynamic(directory, num_iterations, *arguments, **fields):
    """Three groups of 4 per iteration, and up to three to replace those whose mean reward is below
    0."""
    return start(
        "probe.py",
        directory,
        *arguments,
        num_iterations=num_iterations,
        run__save_every=1,
        eval__baseline=False,
        **dict(
            env__suite="probe_action",
            model__add_value_head=False,
            algorithm__adv_type="grpo",
            algorithm__group_size=4,
            algorithm__filter_rewards=True,
            algorithm__rewards_lower_bound=0.0,
            algorithm__rewards_upper_bound=2.0,
            algorithm__max_episodes_per_iteration=24,
        )
        | fields,
    )


CLONE = dict(
    algorithm__loss="clone",
    algorithm__adv_type="raw",
    model__add_value_head=False,
    model__noise_method="flow_ode",
    eval__every=0,
)


def test_a_clone_with_its_replay_resumes_bit_for_bit(tmp_path, monkeypatch, capsys):
    """What the killed run kept after its checkpoint is kept again, and nothing is missing."""
    fields = CLONE | dict(algorithm__clone_rollouts=0)
    whole = probe(tmp_path / "whole", 3, **fields)
    kept = ["0.0", "1.0", "2.0"]
    assert sorted(path.name for path in (whole / "replay").iterdir()) == kept
    _, first, *_ = rows = log.read(whole, timing=False)
    assert first["rollout/moved"] < 1e-5 and first["actor/loss"] > 0
    assert not {"actor/approx_kl", "rollout/groups", "actor/ratio_max_dev"} & first.keys()
    assert list(json.loads((whole / "table.json").read_text())["rows"])[1] == "filtered cloning"
    resumed = probe(tmp_path / "resumed", 2, **fields)
    shutil.rmtree(resumed / "checkpoints" / "2", ignore_errors=True)
    probe(resumed, 3, "--resume", "auto", **fields)
    assert log.read(resumed, timing=False) == rows
    assert_equal_states(saved(resumed, 3), saved(whole, 3))
    # What is missing is told before simulators start; a run that has ended needs none of it.
    (resumed / "replay" / "1.0").rename(resumed / "replay" / "gone")
    capsys.readouterr()
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as exit_:
        patch.setattr(simulators, "open_envs", None)
        probe(resumed, 4, "--resume", "auto", **fields)
    said = capsys.readouterr().err
    assert exit_.value.code == 2 and said.count("\n") == 1 and "algorithm.clone_rollouts=1" in said
    probe(resumed, 3, "--resume", "auto", **fields)


@pytest.mark.slow
def test_a_clone_on_four_devices_is_that_on_one(tmp_path, monkeypatch):
    """Also beside PPO, where another loss and a critic are added up too.  What is drawn depends on
    the rows of a microbatch, which are as many."""
    beside = dict(algorithm__clone_coef=0.5, algorithm__clone_rollouts=0, eval__every=0)
    for number, fields in enumerate((CLONE, beside)):
        monkeypatch.setattr(meshes, "make_mesh", lambda *_: MAKE_MESH(1, 1, jax.devices()[:1]))
        expected = log.read(probe(tmp_path / f"one{number}", 2, **fields), timing=False)
        monkeypatch.setattr(meshes, "make_mesh", lambda *_: MAKE_MESH(2, 2, jax.devices()[:4]))
        each = fields.get("algorithm__microbatch_size", 4) // 4
        fields = fields | {"algorithm__microbatch_size": each}
        rows = log.read(probe(tmp_path / f"four{number}", 2, **fields), timing=False)
        for row, like in zip(rows, expected, strict=True):
            assert row.keys() == like.keys()
            for name in row:
                np.testing.assert_allclose(
                    row[name], like[name], rtol=1e-2, atol=1e-4, err_msg=name
                )


@pytest.mark.parametrize("prefix_cache", ["host", "device"])
def test_a_clone_learns_from_kept_prefixes_what_it_would_without(tmp_path, prefix_cache):
    rows = []
    for place in ("recompute", prefix_cache):
        run = probe(tmp_path / place, 1, **CLONE, rollout__prefix_cache=place)
        (row,) = [row for row in log.read(run, timing=False) if "actor/loss" in row]
        rows.append(row)
    np.testing.assert_allclose(rows[0]["actor/loss"], rows[1]["actor/loss"], rtol=1e-4)


@pytest.mark.slow
def test_groups_without_a_signal_are_replaced(tmp_path):
    """Dynamic sampling, and a resumed run plays the same groups, here with prefixes that stay on
    the device."""
    rows = log.read(dynamic(tmp_path / "whole", 4), timing=False)[:4]
    played, kept, dropped = (
        [row[f"rollout/groups{end}"] for row in rows] for end in ("", "_kept", "_dropped")
    )
    assert max(played) > 3, "some were replaced"
    assert [k == 3 or p == 6 for k, p in zip(kept, played, strict=True)] == [True] * 4
    for row, p, k, d in zip(rows, played, kept, dropped, strict=True):
        assert p == k + d and row["env/num_trajectories"] == row["rollout/decisions"] == 4 * p
        assert not k or (
            row["rollout/returns_mean"] > 0 and row["actor/updates"] == 4 * -(-4 * k // 8)
        )
    run = dynamic(tmp_path / "resumed", 2, rollout__prefix_cache="device")
    shutil.rmtree(run / "checkpoints" / "2")
    dynamic(run, 4, "--resume", "auto", rollout__prefix_cache="device")
    assert log.read(run, timing=False)[:4] == rows
    assert_equal_states(saved(run, 4), saved(tmp_path / "whole", 4))


def test_the_budget_ends_the_search_for_a_signal(tmp_path):
    """Every episode of this probe has reward 1 or -1 by its start state: all scores of a group are
    equal."""
    run = dynamic(tmp_path, 1, env__suite="probe_observed", algorithm__rewards_lower_bound=-2.0)
    row, _ = log.read(run)
    assert [row[f"rollout/groups{end}"] for end in ("", "_kept", "_dropped")] == [6, 0, 6]
    assert (
        row["env/num_trajectories"] == 24
        and row["actor/skipped_updates"] == row["actor/updates"] > 0
    )
    assert -1 < row["env/return"] < 1, "fresh start states"
    before, after = saved(run, 0), saved(run, 1)
    for name in before:
        if name.startswith("params/"):
            np.testing.assert_array_equal(after[name], before[name], err_msg=name)


def test_a_checkpoint_of_another_size_does_not_fit(half, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        start(
            "probe.py",
            tmp_path / "run",
            model__checkpoint=half / "checkpoints",
            model__value_hidden="16,16",
        )
    said = capsys.readouterr().err
    assert exit_.value.code == 2 and said.count("\n") == 1
    assert "does not fit this configuration (5 of" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("value_hidden", "16,16", "does not fit this configuration ("),
        ("dtype", "bfloat16", "stores frozen weights as model.dtype=float32 does; resume with"),
    ],
)
def test_a_resume_that_does_not_fit_changes_nothing(half, tmp_path, capsys, field, value, said):
    run = shutil.copytree(half, tmp_path / "run")
    files = sorted(path.name for path in run.iterdir())
    page = (run / "config.json").read_text()
    with pytest.raises(SystemExit) as exit_:
        start("probe.py", run, "--resume", "auto", **{f"model__{field}": value})
    assert exit_.value.code == 2 and said in capsys.readouterr().err
    assert sorted(path.name for path in run.iterdir()) == files
    assert (run / "config.json").read_text() == page


@pytest.mark.parametrize("resume", ["never", "auto"])
def test_a_run_starts_from_the_checkpoint_of_another(half, tmp_path, resume):
    run = start(
        "probe.py",
        tmp_path,
        "--resume",
        resume,
        num_iterations=1,
        model__checkpoint=half,
        eval__every=0,
    )
    assert_equal_states(
        *(
            {name: value for name, value in saved(*place).items() if name.startswith("params/")}
            for place in ((run, 0), (half, 2))
        )
    )


@pytest.fixture(scope="module")
def tabletop(tmp_path_factory):
    """Tabletop in small: SFT from demonstrations, two iterations, in MuJoCo with cameras."""
    return start(
        "tabletop_small.py",
        tmp_path_factory.mktemp("runs") / "tabletop",
        num_iterations=2,
        model__size="tiny",
        model__image_size_px=16,
        env__image_size_px=32,
        sft__demonstrations=2,
        sft__steps=4,
        sft__batch_size=8,
        eval__episodes_per_task=2,
        eval__num_videos=1,
        eval__every=0,
        algorithm__update_epochs=1,
        algorithm__minibatch_size=32,
        algorithm__microbatch_size=32,
        algorithm__sft_loss_weight=0.1,
    )


def test_what_a_run_leaves_behind(tabletop):
    for name in (
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "table.json",
        "table.txt",
        "learning_curve.png",
        "report.html",
        "assets/norm_stats.json",
        "evaluation/before/evaluation.json",
        "evaluation/after/evaluation.json",
        "evaluation/after/table.txt",
        "evaluation/after/videos",
    ):
        assert (tabletop / name).stat().st_size > 0, name
    assert list((tabletop / "tensorboard").glob("events*"))
    page = (tabletop / "report.html").read_text()
    assert "lift the red cube" in page and '"ended":true' in page and '"data":"AAAA' in page
    assert "2" in {path.name for path in (tabletop / "checkpoints").iterdir()}
    table = json.loads((tabletop / "table.json").read_text())
    assert list(table["rows"]) == ["SFT", "PPO"] and table["rows"]["PPO"]["total"]["episodes"] == 2
    assert len(list((tabletop / "evaluation/after/videos").glob("task_0_init_800_*.mp4"))) == 1


def test_metrics_have_the_names_that_users_look_for(tabletop):
    rows = log.read(tabletop)
    sft, _, first, second, after = rows
    assert (
        "sft/loss" in sft
        and {"eval/success_once", "eval/return", "eval/episode_len"} <= after.keys()
    )
    names = """actor/loss actor/value_loss actor/grad_norm actor/approx_kl actor/pg_clipfrac
        actor/value_clip_ratio actor/ratio_max_dev actor/first_ratio_max_dev
        critic/explained_variance rollout/returns_mean rollout/advantages_mean
        env/episode_len env/success_once env/return env/restarts env/lost_episodes
        time/env time/inference time/update time/transfer time/idle time/iteration"""
    assert first["actor/sft_loss"] > 0, "demonstrations go on teaching"
    assert (
        set(names.split())
        <= first.keys() - {"time/to_first_update"}
        == second.keys() - {"time/save"} | {"time/eval"} & first.keys()
    )
    assert first["time/to_first_update"] > first["time/iteration"]
    assert (
        first["actor/first_ratio_max_dev"] < 1e-4
    )  # the strict bound, and what it depends on: rollout/test_collector.py


@pytest.mark.slow
def test_demonstrations_that_all_fail(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        start("tabletop_small.py", tmp_path, env__max_episode_steps=5, sft__demonstrations=1)
    assert exit_.value.code == 2
    assert (
        "none of 1 demonstrations per task succeeded; raise env.max_episode_steps=5"
        in capsys.readouterr().err
    )


def test_a_process_of_demonstrations_that_dies(tmp_path, capfd, monkeypatch):
    dying = types.SimpleNamespace(env_factory=lambda settings: faulty.dying)
    monkeypatch.setattr(teach, "simulators", dying)
    with pytest.raises(SystemExit) as exit_:
        start("tabletop_small.py", tmp_path, sft__demonstrations=1)
    assert exit_.value.code == 2
    assert "error: a process that plays demonstrations died (" in capfd.readouterr().err


# ---- guards: counters that decide what is drawn, fields of an evaluation ------------------------


def still(directory, seed, num_iterations):
    """A policy that does not move; what differs between iterations was drawn."""
    return start(
        "probe.py",
        directory,
        num_iterations=num_iterations,
        seed=seed,
        env__suite="probe_observed",
        rollout__start_order="ordered",
        optim__lr=1e-12,
        optim__value_lr=1e-12,
        algorithm__update_epochs=1,
        eval__baseline=False,
        eval__every=1,
        eval__episodes_per_task=2,
        eval__episodes_during_training=1,
        run__save_every=1,
        run__keep=3,
        run__report_every=1,
        video__train=2,
    )


@pytest.fixture(scope="module")
def noises(tmp_path_factory):
    """Of three rollouts, two with one seed: chains, episodes, keys of their shuffles; and a run."""
    drawn, played, keys = [], [], []
    play, learn = train.rollouts.play, learning.update.learn_in_parts

    def collected(*args, **kwargs):
        rollout, results = play(*args, **kwargs)
        drawn.append(np.concatenate([x.ravel() for x in (rollout.chain.x, rollout.chain.j)]))
        played.append(tuple(result.episode for result in results))
        return rollout, results

    def learned(updater, state, data, key, *args):
        keys.append(np.asarray(jax.device_get(jax.random.key_data(key))))
        return learn(updater, state, data, key, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.rollouts, "play", collected)
        patch.setattr(learning.update, "learn_in_parts", learned)
        run = still(tmp_path_factory.mktemp("seed_1"), 1, 2)
        still(tmp_path_factory.mktemp("seed_2"), 2, 1)
    return drawn, played, keys, run


def test_every_iteration_and_seed_draws_anew(noises):
    drawn, played, keys, _ = noises
    assert len(drawn) == 3 == len({x.tobytes() for x in drawn}), "exploration"
    assert len(set(played)) == 3, "start states"
    for episodes in played:  # in order: each of the two as often
        assert sorted(episode.init_state for episode in episodes) == [0] * 6 + [1] * 6
    assert len({x.tobytes() for x in keys}) == 3, "shuffles"


def test_fields_of_evaluations_and_checkpoints(noises):
    *_, run = noises
    counts = {
        path.parent.name: json.loads(path.read_text())["num_episodes"]
        for path in run.glob("evaluation/*/evaluation.json")
    }
    assert counts == {"iteration_1": 1, "after": 2}
    kept = {path.name for path in (run / "checkpoints").iterdir() if path.name.isdigit()}
    assert kept == {"0", "1", "2"}
    timed = [row for row in log.read(run) if "time/iteration" in row]
    assert all("time/video" in row for row in timed)
    filmed = [path.name.partition("_task")[0] for path in (run / "video" / "train").iterdir()]
    wanted = [f"iteration_{k}_episode_{e}" for k in (0, 1) for e in (0, 1)]
    assert sorted(filmed) == wanted, "the first two of each"
    assert ["time/report" in row for row in timed] == [False, True], "the page after the first"


# ---- a run that diverges ------------------------------------------------------------------------


def untrained_after(iteration, times, patch):
    """The first `times` rollouts of an iteration end as if the policy acted non-finite."""
    play = train.rollouts.play
    left = [times]
    keys = []

    def played(settings, playable, now, *args):
        if now == iteration:
            keys.append(jax.random.key_data(args[3]).tolist())
            if left[0]:
                left[0] -= 1
                raise endings.Diverged("the policy acts non-finite")
        return play(settings, playable, now, *args)

    patch.setattr(train.rollouts, "play", played)
    return keys


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["after the next save", "before the next save"])
def test_a_run_that_went_back_resumes_bit_for_bit(tmp_path, monkeypatch, capsys, killed):
    """Rolled back from iteration 3 to 2; the draws and the step of what follows are others."""
    run = tmp_path / "run"
    fields = dict(run__on_divergence="rollback", run__save_every=1, eval__every=0)
    with monkeypatch.context() as patch:
        keys = untrained_after(3, 1, patch)
        whole = probe(tmp_path / "whole", 5, **fields)
    assert len(keys) == 2 and keys[0] != keys[1]
    assert "ROLLBACK 1 of at most 3: the policy acts non-finite" in capsys.readouterr().out
    rows = [row for row in log.read(whole, timing=False) if "actor/lr" in row]
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row.get("run/rollbacks", 0) for row in rows] == [0, 0, 1, 1, 1]
    np.testing.assert_allclose([row["actor/lr"] for row in rows], [1e-3] * 2 + [3e-4] * 3)
    with monkeypatch.context() as patch:
        untrained_after(3, 1, patch)
        if killed == "after the next save":
            probe(run, 4, **fields)
        else:
            watch = train.divergence.Guard.watch

            def dies(guard, iteration, metrics):
                if guard._run.rollbacks:
                    raise KeyboardInterrupt
                watch(guard, iteration, metrics)

            patch.setattr(train.divergence.Guard, "watch", dies)
            with pytest.raises(KeyboardInterrupt):
                probe(run, 5, **fields)
    probe(run, 5, "--resume", "auto", **fields)
    assert log.read(run, timing=False) == log.read(whole, timing=False)
    assert_equal_states(saved(run, 5), saved(whole, 5))


DIVERGING = {
    "PPO": dict(optim__lr=10),
    "parameters that overflow": dict(optim__lr=10, optim__weight_decay=1e4),
    "critic": dict(optim__lr=1e-9, optim__value_lr=10, optim__weight_decay=1e4),
    "learned noise": dict(optim__lr=10, model__noise_method="flow_noise"),
    "GRPO": dict(
        optim__lr=10,
        env__suite="probe_action",
        model__add_value_head=False,
        algorithm__adv_type="grpo",
        algorithm__group_size=4,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", DIVERGING)
def test_a_run_that_diverges_says_so_and_keeps_its_last_healthy_checkpoint(tmp_path, capsys, kind):
    with pytest.raises(SystemExit) as exit_:
        probe(tmp_path, 8, run__save_every=1, run__keep=1, eval__every=0, **DIVERGING[kind])
    said = capsys.readouterr().err
    assert exit_.value.code == 2
    (sentence,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "the last healthy checkpoint is that of iteration 0: --resume auto goes on" in sentence
    assert folders.standing(tmp_path / "checkpoints") == [0]
    assert all(np.isfinite(value).all() for value in saved(tmp_path, 0).values())


@pytest.mark.slow
def test_sft_that_diverges_says_so(tmp_path, capsys):
    fields = dict(sft__steps=30, sft__lr=10, sft__demonstrations=1, sft__batch_size=8)
    sizes = dict(model__size="tiny", model__image_size_px=16, env__image_size_px=32)
    with pytest.raises(SystemExit) as exit_:
        start("tabletop_small.py", tmp_path, num_iterations=1, **fields, **sizes)
    assert exit_.value.code == 2
    assert "SFT has diverged: its loss went from " in capsys.readouterr().err


@pytest.mark.slow
def test_faulty_numbers_lose_no_update(tmp_path, monkeypatch):
    """5 % of the states are not finite; every update lost its gradient to them."""
    monkeypatch.setattr(train.training.simulators, "env_factory", lambda settings: FAULTY)
    run = probe(tmp_path, 2, rollout__episodes_per_iteration=48, eval__every=0)
    rows = [row for row in log.read(run) if "actor/updates" in row]
    assert sum(row["env/lost_episodes"] for row in rows) > 0 == rows[0]["env/restarts"]
    assert [row["actor/skipped_updates"] for row in rows] == [0, 0]
    for name, value in rows[-1].items():
        assert np.isfinite(float(value)) or name == "critic/explained_variance", name
