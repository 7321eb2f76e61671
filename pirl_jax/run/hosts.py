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
import socket
import sys
import time
import traceback

import jax

from pirl_jax.core import mesh as meshes
from pirl_jax.core import page
from pirl_jax.rollout import starts

HEARTBEAT_S = 30  # a host that is silent for so long is lost, and the run with it
LAST_PORT = 65535
MEETING_S = 300.0  # hosts start so far apart
STORAGE_S = 60  # network storage may show a new folder so late


def share() -> starts.Share:
    """Which episodes this process plays."""
    return starts.Share(jax.process_index(), jax.process_count())


def episodes_per_iteration(raw: page.Page) -> int:
    """How many episodes this process plays in an iteration."""
    return raw.rollout.episodes_per_iteration // jax.process_count()


def most_episodes(raw: page.Page) -> int:
    """The same at most, where groups without a signal are replaced."""
    budget = raw.algorithm.max_episodes_per_iteration
    return max(raw.rollout.episodes_per_iteration, budget) // jax.process_count()


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
def joined(hosts: str) -> Iterator[None]:
    """Wait for the other hosts, and be one of them until the end; "" is this host alone.

    A process that fails ends at once, and the others end soon after: none waits forever for a host
    that is gone.

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
        yield
    except BaseException as error:
        _leave(error)


def _leave(error: BaseException) -> None:
    """Not a tidy exit: that waits for the other processes, which wait for this one in a
    computation."""
    code = 1
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else 1
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


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
