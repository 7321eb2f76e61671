"""The pool's side of one worker: starts the process, passes requests on, notices and explains its end.

Nothing here waits for a worker, but for the moment in which it is asked for its stack.
"""

import collections
import os
import signal
import socket
import subprocess
import sys
import time

import psutil

from pirl_jax.envs import base
from pirl_jax.envs.pool import channel, worker

STACK_S = 1.0  # how long a hung worker may take to write its stack
EXIT_S = 1.0  # how long a worker that has closed its end may take to have an exit code
STACK_BYTES = 20_000


class Process:
    """One worker, `number` among the pool's; it builds the envs of `hello.slots`."""

    def __init__(self, number: int, hello: worker.Hello, memory_fd: int, render_device: int | None):
        self.number, self.slots = number, hello.slots
        self.spec: base.EnvSpec | None = None  # None until it has started
        self.waiting: collections.deque[int] = (
            collections.deque()
        )  # slots whose requests it has not answered, in order
        self.since_s = (
            time.monotonic()
        )  # since when it has had something to do (the start is the first thing)
        self.fresh_bytes = (
            0  # its memory after the first round of resets, when every env has built something
        )
        self.successor: Process | None = None  # takes over slot by slot
        self.deadline_s: float | None = None  # when it is killed, once it has been asked to end
        ours, theirs = socket.socketpair()
        lifeline_fd, self._lifeline_fd = os.pipe()
        self._stacks_fd = os.memfd_create("stacks")
        inherited = (theirs.fileno(), lifeline_fd, memory_fd, self._stacks_fd)
        # Not by multiprocessing: that would import the parent's main module (with it jax) in the child, and needs the
        # child's variables to be set in the parent, where other threads may be reading them.
        self._popen = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-c",
                f"from pirl_jax.envs.pool import worker; worker.main{inherited}",
            ],
            stdin=subprocess.DEVNULL,
            pass_fds=inherited,
            env=_variables(render_device),
        )
        theirs.close()  # the worker's end must live in the worker only, or its end would not be seen
        os.close(lifeline_fd)
        self.channel = channel.PoolEnd(ours)
        self.channel.put(hello)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def busy(self) -> bool:
        return self.spec is None or bool(self.waiting)

    def post(self, request: worker.Reset | worker.Step) -> None:
        if not self.busy:
            self.since_s = time.monotonic()
        self.waiting.append(request.slot)
        self.channel.put(request)

    def take(self, timeout_s: float) -> tuple[list[worker.Answer], worker.Failure | None]:
        """What has arrived, and why nothing more will come, if so."""
        self.channel.flush()
        messages, over = self.channel.take()
        answers = [message for message in messages if isinstance(message, worker.Answer)]
        for message in messages:
            if isinstance(message, base.EnvSpec):
                self.spec = message
        for _ in answers:
            self.waiting.popleft()
        failure = next(
            (message for message in messages if isinstance(message, worker.Failure)), None
        )
        if failure is None and over:
            failure = self._explain_end()
        elif failure is None and time.monotonic() > self.overdue_s(timeout_s):
            failure = self._explain_silence(timeout_s)
        return answers, failure

    def overdue_s(self, timeout_s: float) -> float:
        """When (time.monotonic) its silence will have been too long; infinity if nothing is asked of it."""
        return max(self.since_s, self.channel.heard_s) + timeout_s if self.busy else float("inf")

    def ask_to_end(self, limit_s: float) -> None:
        """An idle worker sees that the channel is closed, closes its envs and ends; it is killed if it takes longer."""
        self.channel.close()
        self.deadline_s = time.monotonic() + limit_s

    def kill(self) -> None:
        """Works on stopped processes, too."""
        self.channel.close()
        self._popen.kill()
        self.deadline_s = time.monotonic()

    def has_ended(self, limit_s: float = 0.0) -> bool:
        """Wait up to `limit_s` for the end (killed when its deadline is over); frees what the process had here."""
        if time.monotonic() >= self.deadline_s:
            self._popen.kill()
        if self._exit_code(limit_s) is None:
            return False
        os.close(self._lifeline_fd)
        os.close(self._stacks_fd)
        return True

    def _exit_code(self, limit_s: float) -> int | None:
        try:
            return self._popen.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None

    def _served(self) -> int:
        return self.waiting[0] if self.waiting else self.slots[0]

    def _explain_end(self) -> worker.Failure:
        code = self._exit_code(EXIT_S)
        reason = f"exit code {code}"
        if code is None:
            reason = "its channel broke"
        elif code < 0:
            reason = f"signal {-code}, {signal.Signals(-code).name}"
            reason += ": somebody killed it, or memory was short" if code == -signal.SIGKILL else ""
        return worker.Failure(self._served(), f"died without a word ({reason})", self._stacks())

    def _explain_silence(self, timeout_s: float) -> worker.Failure:
        summary = f"did not answer within {timeout_s:g} s: "
        if psutil.Process(self.pid).status() == psutil.STATUS_STOPPED:
            return worker.Failure(self._served(), summary + "its process is stopped (SIGSTOP)")
        self._popen.send_signal(signal.SIGUSR1)
        until_s, stacks, before = time.monotonic() + STACK_S, "", None
        while (not stacks or stacks != before) and time.monotonic() < until_s:  # it comes in pieces
            time.sleep(0.05)
            before, stacks = stacks, self._stacks()
        remark = (
            "it hangs, or timeout_s is too short"
            if stacks
            else "it hangs and gives no Python stack"
        )
        return worker.Failure(self._served(), summary + remark, stacks)

    def _stacks(self) -> str:
        return os.pread(self._stacks_fd, STACK_BYTES, 0).decode(errors="replace")


def _variables(render_device: int | None) -> dict[str, str]:
    """All environment variables of a worker; it finds the modules that this process finds."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return dict(os.environ) | worker.environment(render_device) | {"PYTHONPATH": path}
