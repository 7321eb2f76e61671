"""Several processes that train together, each with devices and simulators of its own, as the hosts
of a cluster do."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from pirl_jax.monitor import log
from pirl_jax.run import hosts, preemption, results
from tests import test_train
from tests.learner import test_two_hosts

ROOT = pathlib.Path(__file__).parents[2]
# One minibatch holds all decisions, so that it does not matter which host shuffles which.
SAME = {
    "env.suite": "probe_delayed",
    "rollout.num_envs": 8,
    "rollout.num_groups": 2,
    "rollout.lockstep": True,
    "rollout.episodes_per_iteration": 16,
    "algorithm.minibatch_size": 64,
    "run.save_every": 1,
    "run.compilation_cache": ROOT / ".jax_cache",
}

# Where nothing is tested that optimised code would change.
QUICKLY_COMPILED = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


@pytest.mark.parametrize(
    "place", ["127.0.0.1:1,2,1", "nobody.invalid:80,2,1", "localhost:99999,2,0"]
)
def test_a_first_host_that_is_not_there(place, monkeypatch):
    """JAX itself would end the process after minutes, with its stack and exit code 134."""
    monkeypatch.setattr(hosts, "MEETING_S", 0.1)
    said = f"^--hosts={place} cannot be used .*; start the same command with INDEX from 0 to 1, or"
    with pytest.raises(ValueError, match=said):
        hosts._require_first_host(place, *hosts._address(place))


def test_a_first_host_whose_port_is_taken_or_that_comes_later(monkeypatch):
    with socket.create_server(("", 0)) as taken:
        place = f"localhost:{taken.getsockname()[1]}"
        with pytest.raises(ValueError, match="Address already in use"):
            hosts._require_first_host(f"{place},2,0", place, 2, 0)
        hosts._require_first_host(f"{place},2,1", place, 2, 1)
    hosts._require_first_host(f"{place},2,0", place, 2, 0)


def start(directory, count, *arguments, devices=1, of_host=None, flags="", **fields):
    """Processes of one training, each with so many devices."""
    address = f"localhost:{test_two_hosts.free_port()}"
    # As many rows of a microbatch for any number of devices: what is drawn is the same.
    each = 16 // (count * devices)
    fields = (
        SAME
        | {"run.directory": directory, "algorithm.microbatch_size": each}
        | {name.replace("__", "."): value for name, value in fields.items()}
    )
    command = [sys.executable, "-m", "pirl_jax.train", "--config", "configs/probe.py", *arguments]
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    flags += f" --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    started = []
    for host in range(count):
        where = "auto" if "SLURM_JOB_ID" in environment else f"{address},{count},{host}"
        more = ([f"--hosts={where}"] if count > 1 else []) + (of_host or {}).get(host, [])
        own = environment | {"SLURM_PROCID": str(host)}
        started.append(
            subprocess.Popen(
                [*command, *more], cwd=ROOT, env=own, stderr=subprocess.PIPE, text=True
            )
        )
    return started


def finish(started, expected=None, timeout_s=240):
    """-> their exit codes, which may be checked, and what they complained of."""
    try:
        complaints = [process.communicate(timeout=timeout_s)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    codes = [process.returncode for process in started]
    assert expected in (None, codes), complaints
    return codes, complaints


def without_samples(rows):
    """Each host samples its own decisions for rollout/moved, so that they depend on the hosts."""
    left = [{n: x for n, x in row.items() if not n.startswith("rollout/moved")} for row in rows]
    assert left != rows
    return left


@pytest.mark.slow
@pytest.mark.parametrize(
    "prefix_cache, devices, fsdp, of_one",
    [("host", 1, 1, 1), ("device", 2, 2, 1), ("device", 2, 4, 4)],  # the last: over both hosts
)
def test_two_hosts_train_as_one_and_resume(tmp_path, prefix_cache, devices, fsdp, of_one):
    """of_one: devices of the one, which share weights."""
    fields = {"num_iterations": 2, "rollout__prefix_cache": prefix_cache}
    if fsdp > devices:  # programs that take long to compile
        fields["flags"] = QUICKLY_COMPILED
    together = fields | {"devices": devices, "mesh__fsdp": fsdp}
    finish(start(tmp_path / "two", 2, **together), [0, 0])
    finish(start(tmp_path / "one", 1, **fields, devices=of_one, mesh__fsdp=of_one), [0])
    two, one = (without_samples(log.read(tmp_path / n, timing=False)) for n in ("two", "one"))
    assert [row["iteration"] for row in two] == [row["iteration"] for row in one]
    for row, expected in zip(two, one, strict=True):
        assert row.keys() == expected.keys()
        for name in row:
            exact = name.startswith(("env/", "eval/", "rollout/groups")) or name in (
                "iteration",
                "rollout/decisions",
            )
            rtol, atol = (0, 0) if exact else (1e-3, 1e-5)
            np.testing.assert_allclose(
                row[name], expected[name], rtol=rtol, atol=atol, err_msg=name
            )
    two, one = (test_train.saved(tmp_path / name, 2) for name in ("two", "one"))
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-5, err_msg=name)
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "2")
    finish(start(tmp_path / "two", 2, "--resume", "auto", **together), [0, 0])
    test_train.assert_equal_states(test_train.saved(tmp_path / "two", 2), two)


@pytest.mark.slow
def test_two_hosts_clone_and_resume(tmp_path):
    """Each keeps its own successes.  A row's noise goes by its place in the batch of all hosts, so
    that the numbers are not those of one host."""
    fields = {
        "num_iterations": 3,
        "eval__every": 0,
        "algorithm__loss": "clone",
        "algorithm__adv_type": "raw",
        "algorithm__group_size": 1,
        "algorithm__clone_rollouts": 0,
        "model__add_value_head": False,
    }
    run = tmp_path / "two"
    finish(start(run, 2, **fields), [0, 0])
    rows = log.read(run, timing=False)
    kept = sorted(path.name for path in (run / "replay").iterdir())
    assert kept == [f"{iteration}.{host}" for iteration in range(3) for host in range(2)]
    state = test_train.saved(run, 3)
    shutil.rmtree(run / "checkpoints" / "3")
    finish(start(run, 2, "--resume", "auto", **fields), [0, 0])
    test_train.assert_equal_states(test_train.saved(run, 3), state)
    assert log.read(run, timing=False) == rows


# Barriers before iterations 3 and 6.
AHEAD = {"rollout__max_staleness": 1, "run__save_every": 3, "eval__every": 3}


def measured_alike(directory):
    """Rows of a run without what is counted in seconds."""
    rows = log.read(directory, timing=False)
    return [{name: x for name, x in row.items() if name != "rollout/slot_use"} for row in rows]


@pytest.mark.slow
def test_hosts_that_play_while_they_learn_repeat_and_resume(tmp_path):
    """In lockstep bit for bit, however long either takes; and as one host."""
    fields = AHEAD | {"num_iterations": 5}
    two = tmp_path / "two"
    finish(start(two, 2, **fields), [0, 0])
    finish(start(tmp_path / "one", 1, **fields), [0])
    rows = measured_alike(two)
    lags = [row["async/staleness_max"] for row in rows if "async/staleness_max" in row]
    assert lags == [0, 1, 1, 0, 1]
    one = measured_alike(tmp_path / "one")
    assert len(one) == len(rows)
    # Later ones go apart with the order of sums.
    for row, expected in zip(without_samples(rows[:3]), without_samples(one[:3]), strict=True):
        assert row.keys() == expected.keys()
        for name in row:
            np.testing.assert_allclose(
                row[name], expected[name], rtol=1e-3, atol=1e-5, err_msg=name
            )
    state = test_train.saved(two, 5)
    shutil.rmtree(two / "checkpoints" / "5")
    finish(start(two, 2, "--resume", "auto", **fields), [0, 0])
    test_train.assert_equal_states(test_train.saved(two, 5), state)
    assert measured_alike(two) == rows


@pytest.mark.slow
@pytest.mark.parametrize("placed", ["shared", "separate"])
def test_hosts_that_play_while_they_learn_end_together(tmp_path, placed):
    """Whoever is ready is served; a signal to either, and all go on from the same update."""
    fields = AHEAD | {"num_iterations": 9, "run__save_every": 4, "rollout__lockstep": False}
    fields |= {"flags": QUICKLY_COMPILED}
    if placed == "separate":
        fields |= {"devices": 2, "placement__rollout": "0", "placement__actor": "1"}
    for host, rows in [(1, 1), (0, 5)]:
        started = start(tmp_path, 2, "--resume", "auto", **fields)
        wait_for_rows(tmp_path, rows)
        started[host].send_signal(signal.SIGTERM)
        _, complaints = finish(started, [75, 75])
        assert all("--resume auto" in complaint for complaint in complaints), complaints
    finish(start(tmp_path, 2, "--resume", "auto", **fields), [0, 0])
    rows = [row for row in log.read(tmp_path) if "actor/loss" in row]
    assert [row["iteration"] for row in rows] == list(range(9))
    for row in rows:
        assert row["async/staleness_max"] <= min(1, row["iteration"])
        assert row["env/num_trajectories"] == rows[0]["env/num_trajectories"]


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["none", "slurm"])
def test_no_host_waits_for_one_that_failed(tmp_path, cluster, monkeypatch):
    if cluster == "slurm":  # as srun tells its tasks; the process number follows in `start`
        for name, value in {
            "JOB_ID": 77,
            "STEP_NODELIST": "localhost",
            "NTASKS": 2,
            "LOCALID": 0,
        }.items():
            monkeypatch.setenv(f"SLURM_{name}", str(value))
    (first, second), (_, complaint) = finish(
        start(tmp_path, 2, num_iterations=1, of_host={1: ["--config.env.tasks=7"]})
    )
    assert first != 0 and second == 2
    assert "env.tasks has 7" in complaint


@pytest.mark.slow
def test_hosts_without_common_storage_are_refused(tmp_path):
    apart = {1: [f"--config.run.directory={tmp_path / 'disk of the other'}"]}
    _, complaints = finish(
        start(tmp_path / "disk of the first", 2, num_iterations=1, of_host=apart), [2, 2]
    )
    assert all("must lie on storage that all hosts share" in complaint for complaint in complaints)


def wait_for_rows(directory, count, timeout_s=300):
    """Until so many iterations are done."""
    metrics = directory / "metrics.jsonl"  # the first thing that a run writes
    deadline_s = time.monotonic() + timeout_s
    while not metrics.exists() or metrics.read_text().count("actor/loss") < count:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@pytest.mark.slow
def test_no_host_waits_for_one_that_died(tmp_path):
    started = start(tmp_path, 2, num_iterations=1000)
    wait_for_rows(tmp_path, 1)
    started[1].kill()
    (first, second), (complaint, _) = finish(started, timeout_s=2 * hosts.HEARTBEAT_S)
    assert first != 0 and second == -signal.SIGKILL, complaint


@pytest.mark.slow
def test_a_signal_to_one_host_ends_all_with_the_same_iteration(tmp_path):
    """At any moment, to either; what they saved goes on as if nothing had been."""
    fields = {"num_iterations": 8, "run__save_every": 100, "eval__every": 2}
    fields["flags"] = QUICKLY_COMPILED
    whole = tmp_path / "whole"
    finish(start(whole, 2, **fields), [0, 0])
    directory = tmp_path / "interrupted"
    # Before anything is saved, and in the middle.
    for number, (host, rows) in enumerate([(1, 0), (0, 2), (1, 4)]):
        started = start(directory, 2, "--resume", "auto", **fields)
        wait_for_rows(directory, rows)
        time.sleep(0.02 * number)
        started[host].send_signal(signal.SIGTERM)
        _, complaints = finish(started, [75, 75])
        assert all("--resume auto" in complaint for complaint in complaints), complaints
    finish(start(directory, 2, "--resume", "auto", **fields), [0, 0])
    assert log.read(directory, timing=False) == log.read(whole, timing=False)
    saved = [test_train.saved(path, 8) for path in (directory, whole)]
    test_train.assert_equal_states(*saved)


@pytest.mark.parametrize("kind", [ValueError, jax.errors.JaxRuntimeError])
@pytest.mark.parametrize(
    "text, number, expected",
    [
        ("UNKNOWN: Gloo AllGather failed: Connection closed by peer", "15", 75),
        ("UNKNOWN: Gloo AllGather failed: Connection closed by peer", None, 1),  # a failure
        ("shapes (3,) and (4,) do not fit", "15", 1),  # a mistake is none the less one
    ],
)
def test_who_loses_another_host_ends_as_that_one_was_asked_to(
    kind, text, number, expected, monkeypatch, capsys
):
    codes = []
    monkeypatch.setattr(hosts, "_read", lambda name: number)
    monkeypatch.setattr(hosts, "_leave_in_order", lambda seconds: None)
    monkeypatch.setattr(hosts.os, "_exit", codes.append)
    watch = preemption.Watch("to go on, the same command", 75)
    monkeypatch.setattr(watch, "_limit", lambda code: None)
    hosts._leave(kind(text), watch)
    assert codes == [expected]
    assert ("to go on" in capsys.readouterr().err) == (expected == 75)


@pytest.mark.parametrize("wrong", ["cluster", "localhost,2,0", "localhost:1234,2,2"])
def test_an_address_is_checked(wrong):
    with (
        pytest.raises(
            ValueError, match=f"--hosts={wrong} is no address; give ADDRESS:PORT,COUNT,INDEX"
        ),
        hosts.joined(wrong, preemption.Watch("", None)),
    ):
        pass


@pytest.mark.slow
def test_the_launch_script_teaches_and_trains_on_two_hosts(tmp_path):
    ssh = tmp_path / "ssh"  # HOST COMMAND, without leaving this machine
    ssh.write_text('#!/usr/bin/env bash\nexec bash -c "$2"\n')
    ssh.chmod(0o755)
    fields = {
        "run.directory": tmp_path / "a run",
        "num_iterations": 1,
        "sft.steps": 2,
        "sft.demonstrations": 2,
        "env.num_workers": 1,
        "rollout.num_envs": 4,
        "rollout.episodes_per_iteration": 4,
        "eval.episodes_per_task": 3,
        "eval.num_videos": 2,
        "algorithm.minibatch_size": 32,
        "algorithm.microbatch_size": 16,
        "run.compilation_cache": ROOT / ".jax_cache",
    }
    command = [
        "bash",
        "launch/hosts.sh",
        "localhost,127.0.0.1",
        "--config",
        "configs/tabletop_small.py",
    ]
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    port = str(test_two_hosts.free_port())
    environment = os.environ | {
        "XLA_FLAGS": "",
        "JAX_PLATFORMS": "cpu",
        "PIRL_SSH": str(ssh),
        "PIRL_PORT": port,
    }
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "[localhost] success rate" in done.stdout and "[127.0.0.1] success rate" not in done.stdout
    )
    (rates,) = results.read_successes(tmp_path / "a run" / "evaluation" / "after").values()
    assert rates[1] == 3
    assert len(list((tmp_path / "a run").glob("evaluation/after/videos/*.mp4"))) == 2


def test_the_first_host_outwaits_the_end_of_any_other():
    """A host that is asked to end in a compilation ends within its grace; the first one, which
    takes all others with it, must not be gone by then."""
    watch = preemption.Watch("to go on", None)
    assert watch.grace_s < hosts.LEAVE_S


@pytest.mark.parametrize("left, waits", [([0], True), ([0, 1], False)])
@pytest.mark.parametrize("code", [2, 75])
def test_the_first_host_leaves_last(left, waits, code, monkeypatch):
    """Also with an error of the user's, which all may have; not forever, where it is alone."""
    times = iter(range(1000))
    codes = []

    class Client:
        def key_value_set(self, name, word, allow_overwrite):
            assert name == "pirl/left/0" and allow_overwrite

        def key_value_dir_get(self, name):
            return [(f"{name}/{index}", "") for index in left]

    monkeypatch.setattr(hosts, "_store", Client)
    monkeypatch.setattr(hosts.jax, "process_count", lambda: 2)
    monkeypatch.setattr(hosts.time, "monotonic", lambda: next(times))
    monkeypatch.setattr(hosts.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(hosts.os, "_exit", codes.append)
    hosts._leave(SystemExit(code), preemption.Watch("to go on", None))
    limit_s = hosts.REFUSED_S if code == 2 else hosts.LEAVE_S
    assert codes == [code]
    assert (next(times) > limit_s) == waits
