"""Cells are played in order, each once, with what is left counted; a stub stands for training.

The whole thing, with real trainings of a probe, interrupted and continued, runs at the end.
"""

import os
import pathlib
import shutil
import signal
import sys
import threading
import time
import types

import pytest

from pirl_jax.core import atomic, endings
from pirl_jax.evidence import __main__ as evidence
from pirl_jax.evidence import cells, gather, perturbed, play, programs, tables
from pirl_jax.monitor import log, report
from pirl_jax.run import preemption, records
from tests import run_folders

CRITIC_FREE = {"one": {"optim.lr": 0.1}, "other": {"optim.lr": 0.2}}
START = cells.Start(
    "start", "quickstart", {"optim.lr": 0.5}, ({"sft.steps": 1},), (0.2, 0.4), {"seed": 7}
)
CELLS = (
    cells.Cell("a", "one", "quickstart", {"num_iterations": 4}, seeds=(0, 1)),
    cells.Cell("a", "other", "quickstart", {}, seeds=(0, 1)),
    cells.Cell("c", "started", "quickstart", {}, "start", final={"seed": 9}, perturbed=True),
    cells.Cell("e", "best", "quickstart", {}, start="start", best_of=CRITIC_FREE),
    cells.Cell("g", "later", "quickstart", {"rollout.of_a_later_version": 1}),
)
TABLE = cells.Table({"start": START}, CELLS)


class Stub(programs.Programs):
    """Leaves what a training or an evaluation leaves."""

    def __init__(self, notes):
        super().__init__(notes)
        self.commands = []
        self.after = {}  # name of a run -> successes of ten, of each of two tasks
        self.bad = ()
        self.late = ()  # names of runs that need more time than they have

    def run(self, name, command, limit_s=None):
        self.commands.append((name, *command))
        if name in self.bad:
            raise programs.Unfinished("it ended with exit code 2")
        flags = dict(word.partition("=")[::2] for word in command)
        self._note(name, 60.0, 90.0, 0)
        if command[0] == "pirl_jax.evaluate":
            solved = 8 if flags["--checkpoint"].endswith("started_0") else 3
            played = run_folders.outcomes(solved)
            run_folders.evaluation(
                pathlib.Path(flags["--output"]), played, trained_on_init_states=[0, 8]
            )
            return True
        folder = pathlib.Path(flags["--config.run.directory"])
        iterations = int(flags.get("--config.num_iterations", 4))
        is_late = name in self.late
        shutil.rmtree(folder, ignore_errors=True)
        after = self.after.get(folder.name, 6)
        run_folders.run(folder, after=after, iterations=iterations, finished=not is_late)
        played = run_folders.outcomes(after)
        run_folders.evaluation(
            folder / "evaluation" / "after", played, trained_on_init_states=[0, 8]
        )
        if is_late:
            (folder / "checkpoints" / "2").mkdir(parents=True)
            return False
        atomic.write_json(folder / "table.json", {})
        return True


@pytest.fixture
def places(tmp_path):
    return play.Places(tmp_path / "runs", tmp_path / "results")


@pytest.fixture
def stub(places):
    return Stub(places.runs / "costs")


def play_rows(places, stub, rows=(), seeds=()):
    player = play.Player(TABLE, places, stub)
    wanted = play.chosen(TABLE, rows, seeds)
    return play.play_all(player, wanted, play.to_perturb(TABLE, rows, seeds), places)


def result(places, name):
    return gather.outside.read_json(places.result(name))


def test_rows_in_order_and_in_a_row_seed_by_seed():
    names = [play.name_of(*one) for one in play.chosen(TABLE)]
    assert names == ["one_0", "other_0", "one_1", "other_1", "started_0", "best_0", "later_0"]
    assert [play.name_of(*one) for one in play.chosen(TABLE, ("c", "a"), (1,))] == [
        "one_1",
        "other_1",
    ]
    with pytest.raises(ValueError, match="'x' is no row of the table; there are a, b"):
        play.chosen(TABLE, ("x",))
    order = [cell.row for cell, _ in play.chosen(cells.TABLE)]
    assert order == sorted(order)


def test_a_cell_is_trained_from_its_start_evaluated_and_written_down(places, stub):
    assert play_rows(places, stub, "c") == []
    taught, tried, trained, *finals = stub.commands
    assert taught[:3] == ("start_0", "pirl_jax.train", "--config=quickstart")
    assert "--config.num_iterations=0" in taught and "--config.sft.steps=1" in taught
    start = places.runs / "start_0_0"
    assert tried[1:3] == ("pirl_jax.evaluate", "--config=quickstart")
    assert {f"--checkpoint={start}", "--config.seed=7", "--config.optim.lr=0.5"} <= {*tried}
    assert f"--config.model.checkpoint={start}" in trained and trained[-1] == "--resume=auto"
    for final, folder in zip(finals, (start, places.runs / "started_0"), strict=True):
        assert f"--checkpoint={folder}" in final and "--config.seed=9" in final
    found = result(places, "started_0")
    assert found["state"] == "complete" and found["start"]["trials"][0]["rate"]["rate"] == 0.3
    assert found["before"]["all"] == report.rate(6, 20)
    assert found["after"]["all"] == report.rate(16, 20)
    # The first eight start states of each task were trained on, and solved.
    assert found["after"]["held_out"] == report.rate(0, 4)
    assert found["change"]["gained"] == 10 and found["change"]["pairs"] == 20
    assert found["wall_s"] == 60.0 and found["cpu_s"] == 90.0 and found["episodes"] == 32
    assert found["settings"]["model.checkpoint"] == "RUNS/start_0_0"
    assert str(places.runs) not in places.result("started_0").read_text()
    assert found["success"] == [0.25] * 4 and found["evaluations"][0]["iteration"] == 0
    assert len(found["diagnosis"]) > 5 and found["revisions"] == ["abc"]


def test_what_has_results_is_not_played_again(places, stub):
    play_rows(places, stub, "a", (0,))
    assert len(stub.commands) == 2
    play_rows(places, stub, "a")
    assert [command[0] for command in stub.commands[2:]] == ["one_1", "other_1"]
    places.result("one_1").unlink()  # it has ended, but nobody has written it down
    play_rows(places, stub, "a")
    assert len(stub.commands) == 4 and places.result("one_1").exists()


def test_a_cell_that_fails_is_left_and_tried_again(places, stub, capsys):
    stub.bad = ("one_0",)
    assert play_rows(places, stub, "a", (0,)) == ["one_0"]
    assert not places.result("one_0").exists() and places.result("other_0").exists()
    assert "one_0 failed: it ended with exit code 2" in capsys.readouterr().out
    stub.bad = ()
    assert play_rows(places, stub, "a", (0,)) == [] and places.result("one_0").exists()


def test_a_cell_that_is_not_ready_is_told(places, stub, capsys):
    assert play_rows(places, stub, ("e", "g")) == []
    said = capsys.readouterr().out
    assert "later_0 is not run: this version has no rollout.of_a_later_version" in said
    assert "best_0 is not run: it follows from one, whose seed 0 has not been played" in said
    assert stub.commands == []


def test_the_best_of_others_gives_the_settings(places, stub):
    stub.after = {"one_0": 9, "one_1": 2, "other_0": 6, "other_1": 6}
    play_rows(places, stub, ("a", "e"))
    assert result(places, "best_0")["settings"]["optim.lr"] == 0.2
    assert any("--config.optim.lr=0.2" in command for command in stub.commands)


def test_perturbed_tasks_come_last_and_once(places, stub, monkeypatch, capsys):
    kinds = {"pro": ({"seed": 5}, ["--pro=all"])}
    monkeypatch.setattr(perturbed, "evaluations", lambda cell: kinds)
    monkeypatch.setattr(perturbed, "result", lambda *_: {"dimensions": {}})
    assert play_rows(places, stub, "h") == [] and not stub.commands
    assert "started_0 is not run: started_0 has not been played in" in capsys.readouterr().out
    play_rows(places, stub, ("c", "h"))
    for command, name in zip(stub.commands[-2:], ("start_0_0", "started_0"), strict=True):
        assert {"--pro=all", "--config.seed=5", f"--checkpoint={places.runs / name}"} <= {*command}
    assert places.result("started_0.perturbed").exists()
    count = len(stub.commands)
    play_rows(places, stub, "h")
    assert len(stub.commands) == count


def test_a_cell_ends_at_its_bound_with_its_state_and_says_so(places, stub):
    stub.late = ("one_0",)
    play_rows(places, stub, "a", (0,))
    late, end, _ = stub.commands
    assert late[0] == "one_0" and end[0] == "one_0.end"
    assert "--config.num_iterations=2" in end and "--resume=auto" in end
    found = result(places, "one_0")
    assert found["state"] == "ended at its bound of 150 minutes"
    assert found["settings"]["num_iterations"] == 2


def test_a_cell_without_an_iteration_within_its_bound_has_failed(tmp_path):
    (tmp_path / "checkpoints" / "0").mkdir(parents=True)
    with pytest.raises(programs.Unfinished, match="no iteration within its time"):
        gather.newest(tmp_path)


def test_the_hours_that_are_left(places, stub, capsys):
    wanted = play.chosen(TABLE, "a")
    assert play.remaining_s(wanted, places) is None
    play_rows(places, stub, "a", (0,))
    # 60 s for 32 episodes; two cells of 8,000 episodes are left, longer than their bound.
    assert play.remaining_s(wanted, places) == 2 * 150 * 60
    play.say_remaining(wanted, places)
    assert "2 of 4 cells done; about 5.0 hours of training left" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["play", "x"], "'x' is no row of the table; there are a, b"),
        (["play", "--seeds=one"], "'one' must be numbers like 0,1,2"),
        (["play", "--runs={file}/runs"], "--runs={file}/runs"),
        (["play", "--results={file}/results"], "--results={file}/results"),
        (["tables", "--page={file}"], "{file} has no lines <!-- evidence: begin"),
        (["tables", "--page={file}.md"], "{file}.md is no file; give --page the page of results"),
        ([], "arguments are required: what"),
    ],
)
def test_command_lines_that_cannot_be_meant(tmp_path, arguments, sentence, capsys):
    file = tmp_path / "file"
    file.write_text("notes")
    with pytest.raises(SystemExit) as ending:
        evidence.main(["evidence", *(word.format(file=file) for word in arguments)])
    said = capsys.readouterr().err
    assert ending.value.code == 2 and said.count("\n") == 1
    assert sentence.format(file=file) in said


def test_without_a_checkout_results_need_a_place(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evidence, "ROOT", tmp_path)
    with pytest.raises(SystemExit) as ending:
        evidence.main(["evidence", "tables"])
    assert ending.value.code == 2 and "give --results DIR" in capsys.readouterr().err
    page = tmp_path / "page.md"
    page.write_text(f"{tables.BEGIN}\n{tables.END}\n")
    results = tmp_path.parent / "results"
    evidence.main(["evidence", "tables", f"--results={results}", f"--page={page}"])
    assert "not run" in page.read_text()


# ---- processes ---------------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A program of these lines -> its name for -m."""

    def write(text):
        (tmp_path / "of_a_test.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return "of_a_test"

    return write


WAITS = """
import signal, sys, time
def end(*_):
    sys.exit(75)
signal.signal(signal.SIGTERM, end)
open(sys.argv[1], "w").close()
time.sleep(60)
"""


def test_costs_add_up_and_a_bad_end_is_told(tmp_path, module):
    name = module("import sys, time; time.sleep(0.2); sys.exit(int(sys.argv[1]))")
    started = programs.Programs(tmp_path / "costs")
    assert started.run("a", [name, "0"])
    with pytest.raises(programs.Unfinished, match="of a ended with exit code 3"):
        started.run("a", [name, "3"])
    cost = programs.Programs(tmp_path / "costs").cost("a")
    assert cost.starts == 2 and cost.wall_s > 0
    assert started.cost("b") == programs.Cost(0, 0, 0)


def test_a_process_ends_at_its_limit_and_is_not_started_beyond_it(tmp_path, module, monkeypatch):
    began = tmp_path / "began"
    # An hour passes as soon as the program can hear of its end.
    clock = types.SimpleNamespace(monotonic=lambda: 3600.0 * began.exists())
    monkeypatch.setattr(programs, "time", clock)
    started = programs.Programs(tmp_path / "costs")
    name = module(WAITS)
    assert not started.run("a", [name, str(began)], 1800)
    assert began.exists() and started.cost("a").wall_s == 3600
    began.unlink()
    assert not started.run("a", [name, str(began)], 1800) and not began.exists()
    assert not started.run("a", [name, str(began)], 3600), "what it has cost counts"


def test_who_is_asked_to_end_passes_it_on_and_starts_nothing_more(tmp_path, module):
    started = programs.Programs(tmp_path / "costs")
    name = module(WAITS)
    began = tmp_path / "began"

    def interrupt():
        while not began.exists():
            time.sleep(0.02)
        started.interrupt()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(endings.Preempted):
        started.run("a", [name, str(began)])
    thread.join()
    began.unlink()
    with pytest.raises(endings.Preempted):
        started.run("a", [name, str(began)])
    assert not began.exists() and started.cost("a").starts == 1


# ---- the whole thing ---------------------------------------------------------------------------

PROBE = {
    "env.suite": "probe_delayed",
    "rollout.num_envs": 8,
    "rollout.episodes_per_iteration": 16,
    "rollout.lockstep": True,
    "run.save_every": 100,
}
PROBES = cells.Table(
    {
        "probe_start": cells.Start(
            "probe_start", "probe", PROBE, ({"optim.lr": 1e-3},), (0.0, 1.0), {"eval.num_envs": 8}
        )
    },
    (
        cells.Cell("a", "alone", "probe", PROBE | {"num_iterations": 1}),
        cells.Cell("b", "taught", "probe", PROBE | {"num_iterations": 300}, start="probe_start"),
    ),
)


@pytest.mark.slow
def test_two_cells_interrupted_and_continued(tmp_path, monkeypatch):
    """Asked to end in the middle of the second cell; the same command ends with what a run without
    a break shows."""
    monkeypatch.setattr(cells, "TABLE", PROBES)
    # This process goes on.
    monkeypatch.setattr(preemption.Watch, "_limit", lambda *_: None)
    # The trainings' own: one device, and what they compile is kept.
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    monkeypatch.setenv("PYTHONPATH", str(evidence.ROOT))
    taught = PROBES.cells[1]
    for settings in (PROBES.cells[0].settings, taught.settings):
        monkeypatch.setitem(settings, "run.compilation_cache", str(tmp_path / "cache"))
    runs = tmp_path / "runs"
    argv = ["evidence", "play", f"--runs={runs}", f"--results={tmp_path / 'results'}"]

    def ask_to_end():
        metrics = runs / "taught_0" / "metrics.jsonl"
        while not metrics.exists() or len(log.read(metrics)) < 3:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=ask_to_end, daemon=True)
    thread.start()
    with pytest.raises(SystemExit) as ending:
        evidence.main(argv)
    assert ending.value.code == 75
    thread.join()
    results = tmp_path / "results"
    assert [path.name for path in results.iterdir()] == ["alone_0.json"]
    done = len(log.read(runs / "taught_0"))
    monkeypatch.setitem(taught.settings, "num_iterations", done + 1)
    evidence.main(argv)
    found = gather.outside.read_json(results / "taught_0.json")
    assert found["iterations"] == done + 1 and found["state"] == "complete"
    assert found["starts"] == 2 and len(records.read(runs / "taught_0").starts) == 2
    assert found["start"]["trials"] and found["after"]["all"]["episodes"] == 1
    assert sys.executable not in (results / "taught_0.json").read_text()
