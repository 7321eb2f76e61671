import errno
import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from pirl_jax.core import locks

HOLDER = """
import subprocess, sys, time
from pirl_jax.core import locks
with locks.writing(sys.argv[1], "wait"):
    worker = subprocess.Popen(["sleep", "60"])  # as simulators are started
    print(worker.pid, flush=True)
    time.sleep(60)
"""
READER = """
import sys, time
from pirl_jax.core import locks
held = locks.reading(sys.argv[1])
print(held is not None, flush=True)
time.sleep(60)
"""


def started(program, path):
    """-> the process, what it said once it held."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
    )
    return process, process.stdout.readline().strip()


def ended(process):
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_writer_hears_who_is_there_and_any_death_lets_it_in(tmp_path):
    folder = tmp_path / "new" / "run"
    process, worker = started(HOLDER, folder)
    before = (folder / locks.NAME).read_bytes()
    with (
        pytest.raises(locks.InUseError) as caught,
        locks.writing(folder, "wait for its end or give another"),
    ):
        pass
    assert re.fullmatch(
        rf"{folder} is in use by process {process.pid} on host {socket.gethostname()} since "
        rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00; wait for its end or give another",
        str(caught.value),
    )
    assert (folder / locks.NAME).read_bytes() == before
    try:
        ended(process)  # SIGKILL
        os.kill(int(worker), 0)  # what it started lives, and does not hold the lock
        with locks.writing(folder, ""):
            assert (folder / locks.NAME).read_bytes() != before
    finally:
        os.kill(int(worker), signal.SIGKILL)
    assert list(folder.iterdir()) == []


def test_a_folder_made_for_nothing_goes_again(tmp_path):
    with locks.writing(tmp_path / "a" / "b", ""):
        pass
    assert list(tmp_path.iterdir()) == []
    with locks.writing(tmp_path / "a" / "b", ""):
        (tmp_path / "a" / "b" / "file").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]
    (tmp_path / "file").touch()
    refused = pytest.raises(ValueError, match=r"cannot be made .*choose another")
    with refused, locks.writing(tmp_path / "file" / "run", ""):
        pass


def test_a_holder_that_ends_just_now_is_waited_for(tmp_path, monkeypatch):
    """It removes its file between the two calls: a lock of that file would keep nobody away."""
    first = locks._still_there
    seen = []

    def removed_once(descriptor, path):
        if not seen:
            path.unlink()
        seen.append(first(descriptor, path))
        return seen[-1]

    monkeypatch.setattr(locks, "_still_there", removed_once)
    refused = pytest.raises(locks.InUseError)
    with locks.writing(tmp_path, ""), refused, locks.writing(tmp_path, ""):
        pass
    assert seen == [False, True]


def test_what_is_read_is_not_removed_until_its_reader_is_gone(tmp_path):
    path = tmp_path / "file"
    path.touch()
    process, held = started(READER, path)
    assert held == "True"
    with locks.removing(path) as free:
        assert not free
    ended(process)
    with locks.removing(path) as free:
        assert free
        assert locks.reading(path) is None, "who removes it keeps readers away"
        path.unlink()
    assert locks.reading(path) is None
    with locks.removing(path) as free:
        assert free


def test_storage_without_locks_is_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(descriptor, kind):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with locks.writing(tmp_path, ""):
        pass
    assert "No locks available; nobody keeps other processes from writing" in caplog.text
