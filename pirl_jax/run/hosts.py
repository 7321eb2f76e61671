"""One command on several hosts: a process on each, that together drive all devices.

    --hosts=auto                        in a cluster that tells its processes who they are:
                                        Slurm, Open MPI, Kubernetes, a TPU pod
    --hosts=ADDRESS:PORT,COUNT,INDEX    elsewhere: where process 0 listens, how many there are,
                                        which one this is

Every process runs the same command on the same run directory.  The first one speaks for all.
"""

import argparse
from collections.abc import Iterator
import contextlib
import importlib.util
import os
import pathlib
import re
import signal
import socket
import sys
import threading
import time
import traceback
from typing import Any

import jax
from jax._src import distributed

from pirl_jax.core import endings, page
from pirl_jax.core import mesh as meshes
from pirl_jax.envs.pool import queue
from pirl_jax.rollout import starts
from pirl_jax.run import agreement, preemption

HEARTBEAT_S = 30  # a host that is silent for so long is lost, and the run with it
LAST_PORT = 65535
MEETING_S = 300.0  # hosts start so far apart
STORAGE_S = 60  # network storage may show a new folder so late
POLL_S = 0.5  # how often a host looks whether another one was asked to end
# How long the first host, whose end ends all, waits for the others to leave: longer than they may
# take, in a compilation say.
LEAVE_S = preemption.GRACE_S + 1.0
REFUSED_S = 5.0  # the same where it ends with an error of the user's, perhaps alone
# In the store that jax.distributed shares: the number of a signal; who has left, by index.
ENDING = "pirl/ending"
LEFT = "pirl/left"


def share() -> starts.Share:
    """Which episodes this process plays."""
    return starts.Share(jax.process_index(), jax.process_count())


def episodes_per_iteration(raw: page.Page, count: int = 0) -> int:
    """How many episodes this process plays in an iteration.

    count: of hosts; 0: those of this run.
    """
    return raw.rollout.episodes_per_iteration // (count or jax.process_count())


def most_episodes(raw: page.Page, count: int = 0) -> int:
    """The same at most, where groups without a signal are replaced."""
    budget = raw.algorithm.max_episodes_per_iteration
    return max(raw.rollout.episodes_per_iteration, budget) // (count or jax.process_count())


def agree(name: str, timeout_s: float) -> agreement.Agreement:
    """What this host agrees on with the others; see agreement.Agreement."""
    index, count = jax.process_index(), jax.process_count()
    return agreement.Agreement(Store(), index, count, name, timeout_s)


def add_argument(parser: argparse.ArgumentParser) -> None:
    """--hosts, for commands that several hosts can run together."""
    parser.add_argument(
        "--hosts",
        default="",
        metavar="WHERE",
        help="auto (Slurm, Open MPI, Kubernetes, TPU pod) or ADDRESS:PORT,COUNT,INDEX; "
        "default: this host alone",
    )


@contextlib.contextmanager
def joined(hosts: str, watch: preemption.Watch) -> Iterator[None]:
    """Wait for the other hosts, and be one of them until the end; "" is this host alone.

    A process that fails ends at once, and the others end soon after: none waits forever for a host
    that is gone.  A signal to one of them is one to all.

    Raises:
      ValueError: an address that is none, or nobody there.
    """
    if not hosts:
        yield
        return
    address = _address(hosts)
    if address:
        _require_first_host(hosts, *address)
    jax.config.update("jax_enable_preemption_service", False)  # it would swallow SIGTERM
    if importlib.util.find_spec("libtpu") is None:  # whose compiler reads the same variable
        # Compiling GPU processes would wait for each other's measurements, which not all of them
        # make.
        os.environ["XLA_FLAGS"] = (
            f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_shard_autotuning=false".strip()
        )
    try:
        # No ids: all devices of the host.  By itself JAX would give a process of Slurm or Open MPI
        # a single GPU.
        jax.distributed.initialize(
            *address, local_device_ids=[], heartbeat_timeout_seconds=HEARTBEAT_S
        )
    except ValueError as error:
        raise ValueError(
            f"--hosts={hosts} finds no other host here ({error}); give ADDRESS:PORT,COUNT,INDEX"
        ) from error
    if jax.process_index():
        # Open as long as the process.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        with _shared_signals(watch):
            yield
    except BaseException as error:
        _leave(error, watch)


@contextlib.contextmanager
def _shared_signals(watch: preemption.Watch) -> Iterator[None]:
    """A signal to one host is told to all, in a thread of each."""
    over = threading.Event()

    def tell(number: signal.Signals) -> None:
        if _read(ENDING) is None:
            _store().key_value_set(ENDING, str(int(number)), allow_overwrite=True)

    def ask() -> None:
        while watch.wanted is None and not over.wait(POLL_S):
            number = _read(ENDING)
            if number is not None:
                watch.hear_of(signal.Signals(int(number)))

    watch.call(tell)
    if not jax.process_index():
        watch.grace_s += LEAVE_S
    thread = threading.Thread(target=ask, name="signals-of-hosts", daemon=True)
    thread.start()
    try:
        yield
    finally:
        # Not to be in that store when the interpreter ends: the process would die of it.
        over.set()
        thread.join(LEAVE_S)


def meet(watch: preemption.Watch) -> None:
    """All hosts go on, or none.

    Raises:
      queue.Interrupted: one of them was asked to end.
    """
    if any(meshes.gather(watch.wanted is not None)):
        raise queue.Interrupted


@contextlib.contextmanager
def together() -> Iterator[None]:
    """All hosts finish the block, or none.

    Raises:
      queue.Interrupted: one of them was interrupted in it.
      endings.Diverged: to one of them the policy was of no use.
    """
    mine = None
    try:
        yield
    except (queue.Interrupted, endings.Diverged) as ending:
        mine = ending.with_traceback(None)  # whose frames hold what the devices should give back
    everyone = [ending for ending in meshes.gather(mine) if ending]
    # A signal comes first: the run ends in any case.
    for kind in (queue.Interrupted, endings.Diverged):
        for ending in everyone:
            if isinstance(ending, kind):
                raise ending


def _store() -> Any:
    return distributed.global_state.client


def _read(name: str) -> str | None:
    try:
        return _store().key_value_try_get(name)
    except jax.errors.JaxRuntimeError:  # not there, or the first host is gone
        return None


class Store:
    """Of all hosts; see agreement.Store."""

    def first(self, name: str, word: str) -> str:
        try:
            _store().key_value_set(name, word)
        except jax.errors.JaxRuntimeError:
            stands = self.said(name)
            if stands is None:  # the first host is gone
                raise
            return stands
        return word

    def said(self, name: str) -> str | None:
        return _read(name)

    def tell(self, name: str, index: int) -> None:
        _store().key_value_set(f"{name}/{index}", "", allow_overwrite=True)

    def told(self, name: str) -> set[int]:
        return {int(key.rpartition("/")[2]) for key, _ in _store().key_value_dir_get(name)}


def _leave(error: BaseException, watch: preemption.Watch) -> None:
    """Not a tidy exit: that waits for the other processes, which wait for this one in a
    computation."""
    code = 1
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else 1
    elif endings.is_of_runtime(error) and _read(ENDING) is not None:
        # The consequence: another host has left in the middle of a computation.
        ending = watch.ending("ended together")
        code = ending.code
        print(ending, file=sys.stderr)
    else:
        traceback.print_exception(error)
    if code == endings.Preempted.code:
        _leave_in_order(LEAVE_S)
    elif isinstance(error, SystemExit):
        # What one host refuses all may refuse, and would say so at the same time.
        _leave_in_order(REFUSED_S)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _leave_in_order(seconds: float) -> None:
    """The first host last, or after so long a wait: the others would die of its end, with another
    exit code."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # the first host is gone
        Store().tell(LEFT, jax.process_index())
    deadline_s = time.monotonic() + seconds
    while not jax.process_index() and time.monotonic() < deadline_s:
        if len(Store().told(LEFT)) == jax.process_count():
            deadline_s = 0.0
        time.sleep(POLL_S)


def check_storage(folder: pathlib.Path) -> None:
    """ValueError where not every host sees the folder that the first one made."""
    deadline_s = time.monotonic() + STORAGE_S
    while not folder.is_dir() and time.monotonic() < deadline_s:
        time.sleep(0.5)
    if not all(meshes.gather(folder.is_dir())):
        raise ValueError(
            f"run.directory={folder.parent} must lie on storage that all hosts share, and does not"
        )


def _require_first_host(hosts: str, address: str, count: int, index: int) -> None:
    """That the port is free, on the first host; that somebody listens there, on the others.

    JAX's own client would end the process with a page of its stack.

    Raises:
      ValueError: it is taken, or nobody is there in time.
    """
    host, _, port = address.rpartition(":")
    remedy = f"start the same command with INDEX from 0 to {count - 1}, or give another ADDRESS"
    try:
        if int(port) > LAST_PORT:
            raise OverflowError(f"a port is at most {LAST_PORT}")
        if index:
            _wait_for(host.strip("[]"), int(port))
        else:
            with socket.create_server(("", int(port))):
                pass
    except (OSError, OverflowError) as error:
        raise ValueError(f"--hosts={hosts} cannot be used ({error}); {remedy}") from error


def _wait_for(host: str, port: int) -> None:
    """Until somebody listens; OSError of the last attempt after MEETING_S."""
    deadline_s = time.monotonic() + MEETING_S
    while True:
        try:
            with socket.create_connection((host, port), timeout=MEETING_S):
                return
        except OSError:
            if time.monotonic() > deadline_s:
                raise
        time.sleep(0.5)


def _address(hosts: str) -> tuple:
    """The arguments of jax.distributed.initialize; none where it finds out by itself."""
    if hosts == "auto":
        return ()
    match = re.fullmatch(r"([^,]+:\d+),(\d+),(\d+)", hosts)
    if not match or int(match[3]) >= int(match[2]):
        raise ValueError(
            f"--hosts={hosts} is no address; give ADDRESS:PORT,COUNT,INDEX with INDEX from 0 to "
            f"COUNT - 1, or auto"
        )
    return match[1], int(match[2]), int(match[3])
