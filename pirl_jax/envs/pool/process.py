"""The pool's side of one worker: starts the process, passes requests on, explains its end.

Nothing here waits for a worker, but for the moment in which it is asked for its stack.  Refuses to
know episodes and other workers, and what is done about a failure.
"""

import collections
import os
import signal
import socket
import subprocess
import sys
import time

import psutil

from pirl_jax.envs import base, child
from pirl_jax.envs.pool import channel, worker

STACK_S = 1.0  # how long a hung worker may take to write its stack
STACK_POLL_S = 0.05  # how often the pool looks whether it has
STACK_BYTES = 20_000  # no more of it is read
EXIT_S = 1.0  # how long a worker that has closed its end may take to have an exit code


class Process:
    """One worker, `number` among the pool's; it builds the envs of `hello.slots`.

    memory_fd: the shared block.  render_device: EGL device, None for the driver's choice.
    """

    def __init__(
        self, number: int, hello: worker.Hello, memory_fd: int, render_device: int | None
    ) -> None:
        self.number = number
        self.slots = hello.slots
        self.spec: base.EnvSpec | None = None  # None until it has started
        self.successor: Process | None = None  # takes over slot by slot
        self.unanswered: collections.deque[int] = collections.deque()  # slots, in order of request
        self.busy_since_s = time.monotonic()  # the start is the first thing it has to do
        # Its memory after the first round of resets, when every env has built something.
        self.fresh_bytes = 0
        self.kill_at_s: float | None = None  # set once it has been asked to end
        pool_end, worker_end = socket.socketpair()
        lifeline_fd, self._lifeline_fd = os.pipe()
        self._stacks_fd = os.memfd_create("stacks")
        program = (
            "from pirl_jax.envs.pool import worker; "
            f"worker.main(channel_fd={worker_end.fileno()}, lifeline_fd={lifeline_fd}, "
            f"memory_fd={memory_fd}, stacks_fd={self._stacks_fd})"
        )
        # Not by multiprocessing: that would import the parent's main module (with it jax) in the
        # child, and needs the child's variables to be set in the parent, where other threads may
        # be reading them.
        with child.shielded(worker.STACK_SIGNAL):
            self._popen = subprocess.Popen(
                [sys.executable, *child.PYTHON_FLAGS, "-c", program],
                # A library that asks a question shall fail, not wait at the terminal.
                stdin=subprocess.DEVNULL,
                pass_fds=(worker_end.fileno(), lifeline_fd, memory_fd, self._stacks_fd),
                env=variables(render_device),
            )
        # The worker's ends must live in the worker only, or its death would not be seen here.
        worker_end.close()
        os.close(lifeline_fd)
        self.channel = channel.PoolEnd(pool_end)
        self.channel.put(hello)

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._popen.pid

    @property
    def busy(self) -> bool:
        """Whether it starts, or owes an answer."""
        return self.spec is None or bool(self.unanswered)

    def post(self, request: worker.Reset | worker.Chunk) -> None:
        """Pass a request on; it is kept here while the worker cannot take it."""
        if not self.busy:
            self.busy_since_s = time.monotonic()
        self.unanswered.append(request.slot)
        self.channel.put(request)

    def take(self, timeout_s: float) -> tuple[list[worker.Answer], worker.Failure | None]:
        """-> the answers that have arrived; why nothing more will come, None while it may."""
        self.channel.flush()
        messages, is_gone = self.channel.take()
        answers: list[worker.Answer] = []
        failure: worker.Failure | None = None
        for message in messages:
            match message:
                case base.EnvSpec():
                    self.spec = message
                case worker.Answer():
                    answers.append(message)
                    self.unanswered.popleft()
                case worker.Failure():
                    failure = message  # the last thing a worker says
        # Its own word comes first, then how it ended; only then its silence is too long.
        if failure is None and is_gone:
            failure = self._explain_end()
        elif failure is None and time.monotonic() > self.deadline_s(timeout_s):
            failure = self._explain_silence(timeout_s)
        return answers, failure

    def deadline_s(self, timeout_s: float) -> float:
        """When (time.monotonic) its silence is too long; infinity if nothing is asked of it."""
        if not self.busy:
            return float("inf")
        return max(self.busy_since_s, self.channel.heard_s) + timeout_s

    def ask_to_end(self, limit_s: float) -> None:
        """An idle worker sees that the channel is closed, closes its envs and ends.

        It is killed by `has_ended` if it takes longer than `limit_s`.
        """
        self.channel.close()
        self.kill_at_s = time.monotonic() + limit_s

    def kill(self) -> None:
        """Works on stopped processes, too."""
        self.channel.close()
        self._popen.kill()
        self.kill_at_s = time.monotonic()

    def has_ended(self, limit_s: float = 0.0) -> bool:
        """Wait up to `limit_s` for the end of a process that was asked to end, or killed.

        Kills it when its time is over; frees what it had here.  Not to be called again after True.
        """
        if time.monotonic() >= self.kill_at_s:
            self._popen.kill()
        if self._exit_code(limit_s) is None:
            return False
        os.close(self._lifeline_fd)
        os.close(self._stacks_fd)
        return True

    def _exit_code(self, limit_s: float) -> int | None:
        """Negative: the number of the signal that killed it.  None: it lives on after `limit_s`."""
        try:
            return self._popen.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None

    def _served_slot(self) -> int:
        """The slot it is working on; while it starts, its first one."""
        if self.unanswered:
            return self.unanswered[0]
        return self.slots[0]

    def _explain_end(self) -> worker.Failure:
        code = self._exit_code(EXIT_S)
        if code is None:
            reason = "its channel broke"
        elif code == -signal.SIGKILL:
            # The kernel's out-of-memory killer sends this one, too.
            reason = "signal 9, SIGKILL: somebody killed it, or memory was short"
        elif code < 0:
            reason = f"signal {-code}, {signal.Signals(-code).name}"
        else:
            reason = f"exit code {code}"
        summary = f"died without a word ({reason})"
        return worker.Failure(self._served_slot(), summary, self._stacks())

    def _explain_silence(self, timeout_s: float) -> worker.Failure:
        slot = self._served_slot()
        summary = f"did not answer within {timeout_s:g} s: "
        if psutil.Process(self.pid).status() == psutil.STATUS_STOPPED:
            return worker.Failure(slot, summary + "its process is stopped (SIGSTOP)")
        stacks = self._ask_for_stacks()
        remark = "it hangs, or timeout_s is too short"
        if not stacks:
            remark = "it hangs and gives no Python stack"
        return worker.Failure(slot, summary + remark, stacks)

    def _ask_for_stacks(self) -> str:
        """Where its Python code is now; "" if it does not write that within STACK_S."""
        self._popen.send_signal(worker.STACK_SIGNAL)
        until_s = time.monotonic() + STACK_S
        stacks = ""
        while time.monotonic() < until_s:
            time.sleep(STACK_POLL_S)
            before = stacks
            stacks = self._stacks()
            if stacks and stacks == before:
                break  # it comes in pieces; no more of them now
        return stacks

    def _stacks(self) -> str:
        """What faulthandler has written in the worker so far."""
        return os.pread(self._stacks_fd, STACK_BYTES, 0).decode(errors="replace")


def variables(render_device: int | None) -> dict[str, str]:
    """All environment variables of a worker; it finds the modules that this process finds."""
    # An empty entry of sys.path means the current folder.
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return {**os.environ, **worker.environment(render_device), "PYTHONPATH": path}
