"""Storage that refuses, for tests as root, to whom permission bits mean nothing: programs that run
on a full disk, on one that becomes read-only, with a limit of file sizes, or as another user."""

import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PRELUDE = """
import os, resource, signal, subprocess, sys
place = sys.argv[1]

def fill():
    with open(os.path.join(place, "filler"), "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass

def make_room():
    os.unlink(os.path.join(place, "filler"))

def read_only():
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)

def writable():
    subprocess.run(["mount", "-o", "remount,rw", place], check=True)
"""
NOBODY = 65534


def on_small_disk(
    program: str, place: pathlib.Path, megabytes: int = 2
) -> subprocess.CompletedProcess:
    """Run Python with a disk of its own at `place`, which nobody else sees; see PRELUDE."""
    mounted = f"mount -t tmpfs -o size={megabytes}m none {place}"
    probe = subprocess.run(["unshare", "-m", "bash", "-c", mounted], capture_output=True)
    if probe.returncode:
        pytest.skip("mount namespaces (unshare -m) are not allowed here")
    command = [sys.executable, "-c", PRELUDE + program, str(place)]
    script = f'{mounted} && exec "$@"'
    return _run(["unshare", "-m", "bash", "-c", script, "bash", *command])


def with_small_files(
    program: str, place: pathlib.Path, most_bytes: int
) -> subprocess.CompletedProcess:
    """Run Python that may write no larger file, as under `ulimit -f` or a quota."""
    limit = (
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({most_bytes}, {most_bytes}))\n"
    )
    return _run([sys.executable, "-c", PRELUDE + limit + program, str(place)])


def as_another_user(program: str, place: pathlib.Path) -> subprocess.CompletedProcess:
    """Run Python as nobody, who owns nothing."""
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    probe = subprocess.run([*user, sys.executable, "-c", "import json"], capture_output=True)
    if probe.returncode:
        pytest.skip("another user cannot be, or cannot run this Python (setpriv)")
    return _run([*user, sys.executable, "-c", PRELUDE + program, str(place)])


def let_others_in(folder: pathlib.Path) -> None:
    """Nobody could reach a test's folder otherwise: one above it is its owner's alone."""
    for place in (folder, *folder.parents):
        mode = place.stat().st_mode
        if mode & 0o011 != 0o011:
            place.chmod(mode | 0o011)


def _run(command: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False
    )
