"""The worker's world: no jax, one thread, no main module of the parent, and no life after it."""

import functools
import os
import pathlib
import subprocess
import sys
import textwrap
import time
import types

import psutil
import pytest
import troubled

from pirl_jax.envs import child, probes
from pirl_jax.envs.pool import worker
from tests import pools

ROOT = pathlib.Path(__file__).parents[3]


class Spy(probes.Constant):
    """Reports what it finds in its process through the state."""

    def reset(self, task, init_state):
        step = super().reset(task, init_state)
        step.state[:] = [
            "jax" in sys.modules,
            hasattr(sys.modules["__main__"], "__file__"),
            os.environ["OMP_NUM_THREADS"] == os.environ["NUMBA_NUM_THREADS"] == "1",
            os.environ["JAX_PLATFORMS"] == "cpu",
            os.environ["MUJOCO_GL"] == "egl",
            os.environ["PYOPENGL_PLATFORM"] == "egl",
            os.environ.get("MUJOCO_EGL_DEVICE_ID") == "0",
            "mujoco" in sys.modules,
        ]
        return step


def test_world_of_a_worker(monkeypatch, tmp_path):
    """The parent's main module imports jax; it hides its accelerators and has no GL choice."""
    command = types.ModuleType("__main__")
    command.__file__ = str(tmp_path / "train.py")
    pathlib.Path(command.__file__).write_text("import jax")
    monkeypatch.setitem(sys.modules, "__main__", command)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv("PYOPENGL_PLATFORM", raising=False)
    before = dict(os.environ)
    with pools.start(functools.partial(Spy, 4, 5), num_envs=1) as envs:
        envs.reset([0], [0], [0])
        state = envs.recv([0]).state[0]
    assert state.tolist() == [0, 0, 1, 1, 1, 1, 1, 0]
    assert dict(os.environ) == before


def test_gl_choice_of_the_user_is_kept(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.delenv("PYOPENGL_PLATFORM", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    variables = worker.environment()
    assert variables["MUJOCO_GL"] == variables["PYOPENGL_PLATFORM"] == "osmesa"
    assert "MUJOCO_EGL_DEVICE_ID" not in variables
    assert worker.environment(render_device=2)["MUJOCO_EGL_DEVICE_ID"] == "2"


@pytest.mark.parametrize("visible", ["0", "GPU-8f3c1a2b", "MIG-5c89852c-d268-c3f3-1b07"])
def test_an_egl_device_of_the_users_is_no_cuda_device(visible, monkeypatch):
    """robosuite would refuse to be imported with one that CUDA_VISIBLE_DEVICES does not have."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "7")
    assert worker.environment()["CUDA_VISIBLE_DEVICES"] == ""
    assert "MUJOCO_EGL_DEVICE_ID" not in worker.environment(), "as the user has it"
    monkeypatch.delenv("MUJOCO_EGL_DEVICE_ID")
    assert "CUDA_VISIBLE_DEVICES" not in worker.environment()


class Device(probes.Constant):
    """Reports its rendering device through the state."""

    def _observe(self, reward, num_steps):
        step = super()._observe(reward, num_steps)
        step.state[:] = int(os.environ["MUJOCO_EGL_DEVICE_ID"])
        return step


def test_workers_draw_on_the_devices_in_turn():
    factory = functools.partial(Device, 4, 5)
    with pools.start(factory, num_envs=4, num_workers=3, render_devices=(2, 5)) as envs:
        envs.reset(range(4), [0] * 4, [0] * 4)
        assert envs.recv(range(4)).state[:, 0].tolist() == [2, 5, 2, 2]


def test_workers_exit_when_the_parent_is_killed(tmp_path):
    """It closes nothing: one worker is busy in C, one is stopped, one has replaced another."""
    program = tmp_path / "parent.py"
    program.write_text(
        textwrap.dedent(f"""
        import os, signal, sys
        sys.path[:0] = [{str(ROOT)!r}, {str(pathlib.Path(__file__).parent)!r}]
        import troubled
        if __name__ == "__main__":
            envs = troubled.make(num_envs=3)
            faults = [troubled.STATE[name] for name in ("spin", "stop", "kill")]
            troubled.reset(envs, [0, 1, 2], faults)
            envs.recv([0, 1, 2])
            troubled.send(envs, [0, 1, 2])
            assert envs.recv([2]).lost.all()
            troubled.reset(envs, [2], [troubled.WELL])
            envs.recv([2])
            print(*envs.process_ids, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        """)
    )
    before = set(os.listdir("/dev/shm"))
    done = subprocess.run(
        [sys.executable, program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60
    )
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 3
    deadline_s = time.monotonic() + 5
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in pids)
    assert not set(os.listdir("/dev/shm")) - before


def test_workers_live_through_what_their_group_is_sent(monkeypatch):
    """From their first moment on, before Python has begun in them."""
    start = subprocess.Popen

    def sent_to_all(*args, **kwargs):
        process = start(*args, **kwargs)
        for number in child.ENDING:
            process.send_signal(number)
        return process

    monkeypatch.setattr(subprocess, "Popen", sent_to_all)
    with troubled.make(num_envs=2) as envs:
        for pid in envs.process_ids:
            for number in child.ENDING:
                os.kill(pid, number)
        troubled.begin(envs, [0, 1], [troubled.WELL] * 2)
        assert troubled.lost_after(envs, [0, 1]) == [False, False]
        assert not envs.counters()["restarts"]


def test_other_processes_end_with_their_parent_and_not_before(tmp_path):
    """Those that multiprocessing starts, for demonstrations."""
    program = tmp_path / "parent.py"
    program.write_text(
        textwrap.dedent(f"""
        import os, signal, sys, time
        sys.path.insert(0, {str(ROOT)!r})
        from pirl_jax.envs import child
        from pirl_jax.envs.pool import worker
        if __name__ == "__main__":
            with worker.processes(1) as pool:
                with child.shielded():
                    pid = pool.submit(os.getpid).result()
                    busy = pool.submit(time.sleep, 60)
                for number in child.ENDING:
                    os.kill(pid, number)
                time.sleep(0.3)
                print(pid, int(busy.running()), flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
        """)
    )
    done = subprocess.run(
        [sys.executable, program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60
    )
    pid, running = (int(word) for word in done.stdout.split())
    deadline_s = time.monotonic() + 5
    while _alive(pid) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert running and not _alive(pid)


def test_who_is_asked_to_end_waits_for_no_other_process():
    start_s = time.monotonic()
    with pytest.raises(SystemExit), worker.processes(1) as pool:
        pool.submit(os.getpid).result()
        pool.submit(time.sleep, 60)
        sys.exit(75)
    assert time.monotonic() - start_s < 20


def _alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
