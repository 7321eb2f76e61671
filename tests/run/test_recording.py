"""A run's own durations: what a recorder keeps, what a model gets of it, and how near it comes."""

import dataclasses
import json
import pathlib
import statistics
import threading
import time
import types

import pytest

from pirl_jax.monitor import timeline
from pirl_jax.recipes import quickstart
from pirl_jax.run import config, loop_model, recording

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "bench"
SCHEDULE = recording.schedule(config.settings(quickstart.get_config()).raw) | {
    "slots": 2,
    "workers": 2,
    "num_groups": 1,
    "lockstep": False,
    "episodes": 2,
    "epochs": 1,
    "minibatch_rows": 8,
    "microbatch_rows": 4,
    "cores": 2,
}


def line(number: int, **seconds: float) -> dict:
    """Two slots play an episode of two chunks each: 10 s of simulators, 2 of decisions, 4 of update
    on two cores."""
    start = 20.0 * number
    answers = []
    for at, is_reset in ((2.0, True), (6.0, False), (10.0, False)):
        for slot in (0, 1):
            answers.append((slot, is_reset, 2.0 if is_reset else 4.0, 1.0, start + at))
    return {
        "schedule": SCHEDULE,
        "seconds": {"time/iteration": 20.0, "time/env": 10.0} | seconds,
        "intervals": [
            *(("inference", 0.5, 0.5, 0.0) for _ in range(4)),
            ("env", 10.0, 0.5, 0.0),
            ("update", 20.0, 8.0, 4.0),
        ],
        "answers": answers,
        "until": start + 20.0,
        "cpu_s": {"own": 11.5, "children": 7.0, "all": 28.5},
    }


def write(folder: pathlib.Path, rows: list[dict]) -> pathlib.Path:
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    (folder / recording.FILE).write_text(text)
    return folder


def test_a_recorder_keeps_every_interval_and_answer(tmp_path):
    """And is the stopwatches of the run as before."""
    recorder = recording.Recorder(tmp_path / recording.FILE)
    recorder.describe(config.settings(quickstart.get_config()).raw)
    for _ in range(2):
        with recorder.measure("inference"):
            sum(range(1000))
    recorder.answered(types.SimpleNamespace(slot=3, env_s=0.25, cpu_s=0.125, memory_bytes=0))
    recorder.answered(types.SimpleNamespace(slot=3, env_s=0.5, cpu_s=0.25, memory_bytes=7))
    seconds = recorder.take()
    assert set(seconds) == set(timeline.Timers().take())
    recorder.take()
    first, second = (
        json.loads(row) for row in (tmp_path / recording.FILE).read_text().splitlines()
    )
    assert first["schedule"]["slots"] == 64 and first["schedule"]["workers"] == 2
    assert [name for name, *_ in first["intervals"]] == ["inference", "inference"]
    assert sum(row[1] for row in first["intervals"]) == pytest.approx(
        seconds["time/inference"], abs=1e-4
    )
    assert [row[:4] for row in first["answers"]] == [[3, False, 0.25, 0.125], [3, True, 0.5, 0.25]]
    assert second["intervals"] == [] and second["answers"] == []
    assert min(first["cpu_s"].values()) >= 0


def test_a_recorder_knows_how_many_threads_an_update_keeps_busy(tmp_path):
    """On a machine that is busy, too: their time on the cores is compared, not the clock's."""
    recorder = recording.Recorder(tmp_path / recording.FILE)
    begun = threading.Event()
    done = threading.Event()

    def compute():
        begun.wait()
        while time.thread_time() < 0.05:
            pass
        done.set()

    threading.Thread(target=compute).start()
    with recorder.measure("update"):
        begun.set()
        started_s = time.thread_time()
        while time.thread_time() - started_s < 0.05:
            pass
        done.wait()
    recorder.take()
    row = json.loads((tmp_path / recording.FILE).read_text())
    ((_, _, cpu_s, busiest),) = row["intervals"]
    assert 0.05 <= busiest < cpu_s
    assert cpu_s / busiest == pytest.approx(2.0, abs=0.6)


def test_a_model_gets_the_work_of_an_iteration(tmp_path):
    """The first line is what was before the loop, the second compiles, the last one evaluates."""
    rows = [line(0), line(1), line(2), line(3), line(4, **{"time/eval": 3.0})]
    kept = recording.of_run(write(tmp_path, rows))
    assert len(kept.iterations) == 2
    # 7 s of the workers less 6 of their envs, and 0.5 s of this process, over 6 answers.
    assert set(kept.chunk_s) == set(kept.reset_s) == {1.25}
    assert set(kept.decisions) == {2}
    assert (kept.decision_s, kept.decision_threads) == (1.0, 1.0)
    assert (kept.update_s, kept.update_threads) == (8.0, 2.0)
    assert kept.rest_s == pytest.approx(11.5 - 2.0 - 0.5 - 8.0)
    assert kept.iterations[0]["others"] == pytest.approx(10.0 / 20.0)
    found = recording.modelled(kept)
    # Two slots with a core each: two chunks of 1.25 s; the reset happens during the update.
    assert found["env"] == pytest.approx(2 * 1.25)
    assert found["inference"] == pytest.approx(2 * 1.0)


def test_others_take_their_time(tmp_path):
    """As many threads of theirs as had so many cores."""
    kept = recording.of_run(write(tmp_path, [line(number) for number in range(4)]))
    alone = recording.modelled(kept)
    shared = recording.modelled(kept, others=1.0)
    assert 1.5 * alone["iteration"] < shared["iteration"] < 2.5 * alone["iteration"]


def test_workers_without_a_request(tmp_path):
    """Of 20 s each worker has 10 s of work; what lies outside of the window does not count."""
    folder = write(tmp_path, [line(number) for number in range(5)])
    assert recording.workers_idle(folder, skip=1, tail=1) == pytest.approx(0.5)


def test_a_run_without_iterations_that_count_is_refused(tmp_path):
    write(tmp_path, [line(0), line(1)])
    with pytest.raises(ValueError, match="no iteration after the first one"):
        recording.of_run(tmp_path)


def test_a_recording_is_read_back_and_nothing_else_is(tmp_path):
    kept = recording.of_run(write(tmp_path, [line(number) for number in range(4)]))
    file = tmp_path / "recording.json"
    file.write_text(json.dumps({"result": {"recording": recording.as_dict(kept)}}))
    assert recording.read(file) == kept
    with pytest.raises(ValueError, match="holds no recording"):
        recording.read(DOCS / "plan.json")


@pytest.mark.parametrize(
    "name, row",
    [("loop_cpu", "alone"), ("loop_cpu_busy", "beside others")],
)
def test_the_model_reproduces_recorded_iterations(name, row):
    """Of the quickstart on two cores, which it has alone, or others want too.

    The page says the same numbers.
    """
    kept = recording.read(DOCS / f"{name}.json")
    others = statistics.mean(iteration["others"] for iteration in kept.iterations)
    assert others < 0.1 if row == "alone" else others > 1.5
    measured = statistics.mean(iteration["iteration"] for iteration in kept.iterations)
    modelled = recording.modelled(kept, others)["iteration"]
    assert modelled == pytest.approx(measured, rel=0.1)
    page = (DOCS.parent / "placement.md").read_text(encoding="utf-8")
    (line,) = (line for line in page.splitlines() if line.startswith(f"| {row}"))
    assert line.endswith(f"| {measured:.1f} | {modelled:.1f} |")


def test_a_recording_beside_others_foretells_the_time_alone():
    """And another day's, of which nothing but the whole was kept."""
    modelled = recording.modelled(recording.read(DOCS / "loop_cpu_busy.json"))["iteration"]
    kept = recording.read(DOCS / "loop_cpu.json")
    end2end = json.loads((DOCS / "end2end_cpu.json").read_text(encoding="utf-8"))
    alone = statistics.mean(iteration["iteration"] for iteration in kept.iterations)
    for measured in (alone, end2end["result"]["ours"]["iteration"]):
        assert modelled == pytest.approx(measured, rel=0.1)


def test_iterations_that_are_stale_leave_no_worker_without_a_request():
    """By the model, of the recorded durations; what the page of benchmarks says."""
    kept = recording.read(DOCS / "loop_cpu.json")
    idle = []
    for staleness in (0, 1):
        schedule = dataclasses.replace(kept.loop(), max_staleness=staleness)
        outcome = loop_model.run(kept.simulators(), kept.programs(), schedule, iterations=2)
        idle.append(outcome.workers_idle)
    assert idle[0] > 0.15 and idle[1] < 0.05
    page = (DOCS.parent / "benchmarks.md").read_text(encoding="utf-8")
    assert f"from {idle[0]:.0%} to {idle[1]:.0%}".replace("%", " %") in page


@pytest.mark.parametrize("recipe", ["quickstart", "libero_small"])
def test_measured_iterations_that_are_stale_keep_simulators_at_work(recipe):
    """And take no longer; as the page of benchmarks says."""
    kept = json.loads((DOCS / f"async_{recipe}_cpu.json").read_text(encoding="utf-8"))
    rows = kept["result"][recipe]
    in_turns, stale = rows["in turns"], rows["stale by 1"]
    assert stale["workers idle"] < 0.5 * in_turns["workers idle"] and stale["workers idle"] < 0.1
    assert stale["iteration"] < 1.02 * in_turns["iteration"]
    page = (DOCS.parent / "benchmarks.md").read_text(encoding="utf-8")
    for name, row in rows.items():
        seconds = [f"{row[part]:.1f}" for part in ("iteration", "env", "inference", "update")]
        idle = f"{100 * row['workers idle']:.0f} %"
        assert f"| {recipe}, {name} | {' | '.join(seconds)} | {idle} |" in page
