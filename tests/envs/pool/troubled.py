"""Probe envs with trouble on demand, for the tests of the pool."""

import functools
import os
import pathlib
import signal
import time

import numpy as np
import psutil

from pirl_jax.envs import probes
from tests import pools

CHUNK = np.full((5, 7), 0.5, np.float32)
WELL = 1  # init state without trouble; 0 has the env's own trouble, from 2 on those of this table
TROUBLES = ("raise", "exit", "kill", "stop", "hang", "slow", "spin", "raise in reset")
STATE = {name: 2 + i for i, name in enumerate(TROUBLES)}  # trouble -> init state


class Troubled(probes.Conditioned):
    """Episodes of `decisions` chunks; the trouble of the init state comes with the first one."""

    num_init_states = 2 + len(TROUBLES)

    def __init__(self, trouble: str = "", decisions: int = 1):
        self.decisions = decisions
        self.trouble = trouble
        super().__init__(image_size_px=4, chunk=5)
        if trouble == "wrong":
            raise ValueError("assets are not in /typo; give their folder")
        if trouble == "construct":
            raise ImportError("libEGL is missing")

    def sign(self, init_state, decision):
        return 1 if init_state else -1

    def reset(self, task, init_state):
        if init_state == STATE["raise in reset"]:
            raise RuntimeError("the objects overlap")
        return super().reset(task, init_state)

    def step_chunk(self, actions_Ia, record=False):
        trouble = (self.trouble, "", *TROUBLES)[self._init_state]
        if self._decision == 0 and trouble in EVENTS:
            EVENTS[trouble]()
        return super().step_chunk(actions_Ia, record)


def explode():
    raise FloatingPointError("the arm exploded")


def wait_for_a_driver():
    time.sleep(60)


def spin():
    sum(range(10**12))  # in C, and never lets another thread of the interpreter run


EVENTS = {
    "raise": explode,
    "exit": lambda: os._exit(7),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "hang": wait_for_a_driver,
    "slow": lambda: time.sleep(0.5),
    "spin": spin,
}


class Marked(Troubled):
    """The state ends with the number of the process; a reset keeps `leak_bytes` for ever."""

    def __init__(self, decisions: int, leak_bytes: int = 0):
        super().__init__(decisions=decisions)
        self._leak = []
        self._leak_bytes = leak_bytes

    def reset(self, task, init_state):
        self._leak.append(b"x" * self._leak_bytes)
        return super().reset(task, init_state)

    def _observe(self, reward, num_steps):
        step = super()._observe(reward, num_steps)
        step.state[-1] = os.getpid()
        return step


class Fragile(Troubled):
    """Its start kills the process as often as the file says."""

    def __init__(self, path: pathlib.Path):
        super().__init__()
        count = int(path.read_text())
        path.write_text(str(max(0, count - 1)))
        if count:
            os._exit(3)


def make(trouble="", num_envs=3, num_workers=None, decisions=1, **settings):
    factory = functools.partial(Troubled, trouble, decisions)
    return pools.start(factory, num_envs, num_workers, **settings)


def reset(envs, slots, init_states):
    envs.reset(slots, [0] * len(slots), init_states)


def send(envs, slots):
    envs.send(slots, np.stack([CHUNK] * len(slots)))


def begin(envs, slots, init_states):
    reset(envs, slots, init_states)
    step = envs.recv(slots)
    assert not step.lost.any()
    assert step.num_steps.tolist() == [0] * len(slots)


def lost_after(envs, slots):
    send(envs, slots)
    return envs.recv(slots).lost.tolist()


def kill(pid):
    """Returns when the process is dead, but its parent does not know."""
    os.kill(pid, signal.SIGKILL)
    until_s = time.monotonic() + 5
    while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < until_s:
        time.sleep(0.01)


class Faulty(probes.Delayed):
    """Two decisions; an episode of a faulty init state ends in numbers that are none.

    faulty: init state -> (request from 0 on, field, value).
    """

    num_init_states = 8

    def __init__(self, faulty):
        super().__init__(image_size_px=4, chunk=5)
        self._faulty = faulty

    def _observe(self, reward, num_steps):
        step = super()._observe(reward, num_steps)
        request, field, value = self._faulty.get(self._init_state, (-1, "", None))
        if self._decision == request:
            setattr(step, field, value)
        return step
