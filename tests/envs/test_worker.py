"""The worker's world: no jax, one thread, no main module of the parent; and the shared block of observations."""

import functools
import os
import pathlib
import subprocess
import sys
import textwrap
import time
import types

import psutil

from pirl_jax.envs import pool, probes, worker

ROOT = pathlib.Path(__file__).parents[2]


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
    """The parent's main module imports jax, the parent hides its accelerators and has no GL choice."""
    command = types.ModuleType("__main__")
    command.__file__ = str(tmp_path / "train.py")
    pathlib.Path(command.__file__).write_text("import jax")
    monkeypatch.setitem(sys.modules, "__main__", command)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv("PYOPENGL_PLATFORM", raising=False)
    before = dict(os.environ)
    with pool.EnvPool(functools.partial(Spy, 4, 5), num_envs=1, timeout_s=60) as envs:
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


def test_memory_is_shared_and_freed():
    spec = probes.make("constant", image_size_px=3).spec
    owner = worker.Memory(spec, num_envs=2)
    other = worker.Memory(spec, 2, owner.name)
    other.images_EVYX3[1] = 7
    other.state_ES[1] = -2.5
    assert (owner.images_EVYX3[1] == 7).all() and (owner.images_EVYX3[0] == 0).all()
    assert (owner.state_ES[1] == -2.5).all() and owner.images_EVYX3.shape == (2, 2, 3, 3, 3)
    path = pathlib.Path("/dev/shm") / owner.name.lstrip("/")
    assert path.exists()
    other.close()
    assert path.exists()
    owner.close()
    assert not path.exists()


def test_workers_exit_when_the_parent_is_killed(tmp_path):
    """The parent dies without closing anything while one env sleeps in a chunk; both workers must go."""
    program = tmp_path / "parent.py"
    program.write_text(
        textwrap.dedent(f"""
        import functools, os, signal, sys
        sys.path[:0] = [{str(ROOT)!r}, {str(pathlib.Path(__file__).parent)!r}]
        import numpy as np
        import test_pool
        from pirl_jax.envs import pool
        if __name__ == "__main__":
            envs = pool.EnvPool(functools.partial(test_pool.Troubled, "sleep"), num_envs=2)
            envs.reset([0, 1], [0, 0], [0, 0])
            envs.recv([0, 1])
            envs.send([0], np.zeros((1, 5, 7)))
            print(*[one.process.pid for one in envs._workers], flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        """)
    )
    before = set(os.listdir("/dev/shm"))
    done = subprocess.run([sys.executable, program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    deadline_s = time.monotonic() + 5
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in pids)
    while set(os.listdir("/dev/shm")) - before and time.monotonic() < deadline_s:
        time.sleep(0.05)  # multiprocessing's tracker process unlinks the block
    assert not set(os.listdir("/dev/shm")) - before


def _alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_state_lies_aligned_for_any_image_size():
    block = worker.Memory(probes.make("constant", image_size_px=3).spec, num_envs=3)
    assert block.state_ES.flags.aligned and block.images_EVYX3.nbytes == 3 * 2 * 27
    block.close()
