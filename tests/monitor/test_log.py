import importlib.util
import json
import pathlib
import signal
import struct
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import storage
from tensorboardX.proto import event_pb2

from pirl_jax.monitor import events, log

ROOT = pathlib.Path(__file__).parents[2]

CONFIG = {"suite": "tabletop", "learner": {"lr": 0.1, "betas": (0.9, 0.95)}}


def test_rows_are_numbers_by_iteration(tmp_path):
    run = log.RunDir(tmp_path, CONFIG)
    loss = jnp.float32(0.1)
    with jax.transfer_guard("disallow"):
        row = run.write(0, {"actor/loss": loss, "time/env": 1.5})
    run.write(0, {"eval/success_once": 1})
    run.close()
    assert row == {"actor/loss": float(jnp.float32(0.1)), "time/env": 1.5}
    assert log.read(tmp_path, timing=False) == [
        {"iteration": 0, "actor/loss": float(jnp.float32(0.1))},
        {"iteration": 0, "eval/success_once": 1.0},
    ]


def test_resume_leaves_no_iteration_twice_and_survives_a_half_written_line(tmp_path):
    def play(first, last, directory):
        run = log.RunDir(directory, CONFIG, resume_at=first or None)
        for iteration in range(first, last):
            metrics = {
                "actor/loss": 1.0 / (iteration + 1),
                "actor/kl": float("nan"),
                "time/env": first + 0.5,
            }
            run.write(iteration, metrics)
        run.close()

    play(0, 4, tmp_path / "whole")
    play(0, 3, tmp_path / "parts")
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 3, "actor/lo')
    play(2, 4, tmp_path / "parts")
    parts = log.read(tmp_path / "parts", timing=False)
    assert parts == log.read(tmp_path / "whole", timing=False)
    assert [row["iteration"] for row in parts] == [0, 1, 2, 3]
    assert parts[0]["actor/kl"] == "nan"  # JSON has no NaN; a string compares with ==


def test_a_standing_run_is_never_overwritten(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "checkpoints" / "foo").mkdir(parents=True)  # nothing to lose
    run = log.RunDir(tmp_path, CONFIG)
    run.write(0, {"actor/loss": 1.0})
    run.close()
    assert run.changed == []
    with pytest.raises(ValueError, match="already holds a run; continue it with --resume auto"):
        log.RunDir(tmp_path, CONFIG)
    with pytest.raises(ValueError, match="holds no run to continue"):
        log.RunDir(tmp_path / "typo", CONFIG, resume_at=3)


def test_a_run_killed_before_its_first_checkpoint_starts_over(tmp_path):
    run = log.RunDir(tmp_path, CONFIG)
    run.write(0, {"actor/loss": 1.0})
    run.close()
    log.RunDir(tmp_path, CONFIG, resume_at=0).close()
    assert log.read(tmp_path) == []


def test_a_changed_configuration_is_named_and_the_old_one_kept(tmp_path):
    log.RunDir(tmp_path, CONFIG).close()
    run = log.RunDir(tmp_path, CONFIG | {"learner": {"lr": 0.2, "betas": (0.9, 0.95)}}, resume_at=5)
    run.close()
    assert run.changed == ["learner.lr: 0.1 -> 0.2"]
    assert json.loads((tmp_path / "config_before_5.json").read_text())["learner"]["lr"] == 0.1
    assert json.loads((tmp_path / "config.json").read_text())["learner"]["lr"] == 0.2
    log.RunDir(tmp_path, CONFIG, resume_at=5).close()
    assert json.loads((tmp_path / "config_before_5.json").read_text())["learner"]["lr"] == 0.1
    assert json.loads((tmp_path / "config_before_5_2.json").read_text())["learner"]["lr"] == 0.2


def test_environment_names_revision_versions_and_devices(tmp_path):
    log.RunDir(tmp_path, CONFIG).close()
    (start,) = json.loads((tmp_path / "environment.json").read_text())
    assert start["packages"]["mujoco"] and start["packages"]["jax"] == jax.__version__
    assert start["devices"][0] == "cpu:cpu"
    assert log.git_revision(tmp_path) is None


def scalars(path):
    """(iteration, name, number) of all event files of a run."""
    found = []
    for file in sorted((path / "tensorboard").iterdir()):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = event_pb2.Event.FromString(content[12 : 12 + length])
            numbers = [one for one in event.summary.value if one.HasField("simple_value")]
            found += [(event.step, value.tag, value.simple_value) for value in numbers]
            content = content[16 + length :]
    return found


KILLED = """
import os, signal, sys
from pirl_jax.monitor import log
run = log.RunDir(sys.argv[1], {"seed": 1})
for iteration in range(20):
    run.write(iteration, {"env/return": iteration / 4, "actor/kl": float("nan")} | {
        f"actor/metric_{i}": float(i) for i in range(30)
    })
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_tensorboard_has_every_row_after_a_kill(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    expected = []
    for row in log.read(tmp_path):
        iteration = row.pop("iteration")
        expected += [(iteration, name, float(value)) for name, value in row.items()]
    assert len(expected) == 20 * 32
    np.testing.assert_equal(scalars(tmp_path), expected)


def test_tensorboard_hides_what_runs_again(tmp_path):
    run = log.RunDir(tmp_path, CONFIG)
    run.write(0, {"env/return": 0.5})
    run.write(1, {"env/return": 0.75})
    run.close()
    run = log.RunDir(tmp_path, CONFIG, resume_at=1)
    run.write(1, {"env/return": 1.0})
    run.close()
    assert [row[2] for row in scalars(tmp_path)] == [0.5, 0.75, 1.0]
    files = sorted((tmp_path / "tensorboard").iterdir())
    assert b"brain.Event:2" in files[1].read_bytes()


def test_tensorboard_has_an_overview_of_metrics_that_exist(tmp_path):
    log.RunDir(tmp_path, CONFIG).close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    kept = file.read_bytes()
    assert b"custom_scalars__config__" in kept
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    documented = "".join(page.read_text(encoding="utf-8") for page in pages)
    for names in events.OVERVIEW.values():
        for name in names:
            assert name.encode() in kept
            assert f"`{name}`" in documented, name


def test_tensorboard_can_be_left_out(tmp_path):
    run = log.RunDir(tmp_path, CONFIG, backends=())
    run.write(0, {"env/return": 0.75})
    run.close()
    assert not (tmp_path / "tensorboard").exists()


def test_names_without_group_are_refused(tmp_path):
    run = log.RunDir(tmp_path, CONFIG)
    with pytest.raises(ValueError, match="no group: kl, loss"):
        run.write(0, {"loss": 1.0, "kl": 1.0, "a/b": 1.0})
    run.close()


def test_wandb_asked_for_but_absent_is_a_sentence(tmp_path):
    if importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed here")
    with pytest.raises(ValueError, match="pip install wandb"):
        log.RunDir(tmp_path, CONFIG, backends=("wandb",))


# ---- damaged files -------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """Asking git and the packages takes longer than a test."""
    monkeypatch.setattr(log, "environment", dict)


def played(path, iterations=4):
    run = log.RunDir(path, CONFIG)
    for iteration in range(iterations):
        run.write(iteration, {"actor/loss": float(iteration)})
    run.close()
    return run


def resumed(path, iteration):
    run = log.RunDir(path, CONFIG, resume_at=iteration)
    run.close()
    return run


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json", "checkpoints/3/state"])
def test_whatever_stands_makes_a_run(tmp_path, name):
    assert not log.holds_run(tmp_path)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("x")
    assert log.holds_run(tmp_path)
    with pytest.raises(ValueError, match="already holds a run"):
        log.RunDir(tmp_path, CONFIG)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [name.split("/")[-1]]


@pytest.mark.parametrize(
    "damage", [b"\0" * 40 + b"\n", b'{"iteration": 1, "actor/lo\n', b"[1]\n", b'{"a": 1}\n', b"\n"]
)
def test_a_damaged_row_takes_no_other_along(quick, tmp_path, damage):
    played(tmp_path)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    damaged = b"".join([whole[0], damage, *whole[2:]])
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"line 2 of .*metrics.jsonl.*; --resume auto leaves it"):
        log.read(tmp_path)
    run = resumed(tmp_path, 3)
    assert path.read_bytes() == b"".join([whole[0], whole[2]])
    first, second, third = run.lost
    assert "line 2 of" in first and second.endswith("kept as metrics_before_3.jsonl")
    assert third == f"{path} has no rows of iterations 1"
    assert (tmp_path / "metrics_before_3.jsonl").read_bytes() == damaged
    assert resumed(tmp_path, 3).lost == [third]


def test_rows_that_are_missing_are_named(quick, tmp_path):
    played(tmp_path, 6)
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 3, "a/b": 1.0}\n')
    assert resumed(tmp_path, 6).lost == [
        f"{tmp_path}/metrics.jsonl has no rows of iterations 0-2, 4-5"
    ]
    (tmp_path / "metrics.jsonl").unlink()
    assert resumed(tmp_path, 6).lost == [f"{tmp_path}/metrics.jsonl has no rows of iterations 0-5"]


def test_rows_without_a_checkpoint_are_kept(quick, tmp_path):
    played(tmp_path)
    rows = (tmp_path / "metrics.jsonl").read_bytes()
    (lost,) = resumed(tmp_path, 0).lost
    assert "metrics_before_0.jsonl" in lost and log.read(tmp_path) == []
    assert (tmp_path / "metrics_before_0.jsonl").read_bytes() == rows
    # Killed again before its first checkpoint.
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 0, "a/b": 1.0}\n')
    (lost,) = resumed(tmp_path, 0).lost
    assert "metrics_before_0_2.jsonl" in lost
    assert (tmp_path / "metrics_before_0.jsonl").read_bytes() == rows


BROKEN = [b"", b"{", b"\0\0", b"\xff", b"[1, 2"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("config.json", content) for content in [*BROKEN, b"[]"]),
        *(("environment.json", content) for content in [*BROKEN, b'{"a": 1}']),
    ],
)
def test_a_json_file_that_does_not_parse_is_written_anew(quick, tmp_path, name, content):
    played(tmp_path)
    (tmp_path / name).write_bytes(content)
    run = resumed(tmp_path, 4)
    (lost,) = run.lost
    assert name in lost and lost.endswith(f"kept as {name}.damaged, written anew")
    assert (tmp_path / f"{name}.damaged").read_bytes() == content
    assert json.loads((tmp_path / "config.json").read_text())["suite"] == "tabletop"
    assert json.loads((tmp_path / "environment.json").read_text())[-1]["first_iteration"] == 4
    assert run.changed == [] and len(log.read(tmp_path)) == 4


FULL = """
import logging
from pirl_jax.monitor import log
run = log.RunDir(place + "/run", {"seed": 1})
run.write(0, {"env/return": 0.5})
fill()
for iteration in range(1, 1000):
    try:
        run.write(iteration, {f"env/metric_{i}": 0.1 for i in range(100)})
    except OSError as error:
        print(error.strerror, error.filename)
        break
run.close()
try:
    log.RunDir(place + "/run", {"seed": 2}, resume_at=1)
except OSError as error:
    print(error.strerror, error.filename)
make_room()
assert [row["iteration"] for row in log.read(place + "/run")] == list(range(iteration))
log.RunDir(place + "/run", {"seed": 1}, resume_at=1).close()
"""


def test_a_full_disk_is_named_and_damages_nothing(tmp_path):
    done = storage.on_small_disk(FULL, tmp_path)
    assert done.returncode == 0, done.stderr
    row, start = done.stdout.splitlines()
    assert row.startswith(f"No space left on device {tmp_path}/run/")
    assert start.startswith(f"No space left on device {tmp_path}/run/")
