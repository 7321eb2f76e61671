"""Files that are made once per machine: shared out between processes, bounded on disk."""

import os
import pathlib
import subprocess
import sys
import time

import pytest

from pirl_jax.envs.libero import kept

ROOT = pathlib.Path(__file__).parents[3]
NAMES = [f"{i:012x}.x" for i in range(6)]
# A maker that leaves a line per file it makes.
MAKE_ALL = """
import sys, time
from pirl_jax.envs.libero import kept
notes, at, *names = sys.argv[1:]
def maker(name):
    time.sleep(0.1)
    with open(notes, "a", encoding="ascii") as file:
        file.write(name + "\\n")
    return name.encode()
time.sleep(max(0, float(at) - time.time()))  # all at once
paths = kept.make("things", {name: lambda name=name: maker(name) for name in names})
assert all(path.read_bytes() == name.encode() for name, path in paths.items())
"""
DIE = """
import os, sys
from pirl_jax.envs.libero import kept
kept.make("things", {sys.argv[1]: lambda: os._exit(7)})
"""


def start(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)})


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "pirl_jax" / "things"


def test_what_is_there_is_not_made_again(cache):
    paths = kept.make("things", {NAMES[0]: lambda: b"a"})
    assert paths == {NAMES[0]: cache / NAMES[0]} and paths[NAMES[0]].read_bytes() == b"a"
    kept.make("things", {NAMES[0]: lambda: pytest.fail("made again")})


def test_processes_that_start_at_once_share_the_work(cache, tmp_path):
    """Each file is made once, and nobody goes on before all are there."""
    notes = tmp_path / "notes"
    arguments = (notes, time.time() + 0.7, *NAMES)
    processes = [start(MAKE_ALL, *arguments) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert sorted(notes.read_text().split()) == NAMES
    assert sorted(path.name for path in cache.iterdir()) == NAMES, "no half-written file is left"


def test_the_claim_of_a_dead_process_ends_with_it(cache):
    assert start(DIE, NAMES[0]).wait() == 7
    assert kept.make("things", {NAMES[0]: lambda: b"a"})[NAMES[0]].read_bytes() == b"a"


def test_an_error_leaves_no_claim_and_no_file(cache):
    def fail():
        raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            kept.make("things", {NAMES[0]: fail})
    assert not list(cache.glob("*"))


def test_the_least_recently_used_go_first(cache):
    kept.trim("things")  # of a folder that is not there
    paths = kept.make("things", {name: lambda: bytes(100) for name in NAMES[:3]})
    for age, name in enumerate(NAMES[:3]):
        old_s = time.time() - 10_000 * (3 - age)
        os.utime(paths[name], (old_s, old_s))
    kept.trim("things", 300)
    assert len(list(cache.iterdir())) == 3
    kept.make("things", {NAMES[0]: lambda: pytest.fail("made again")})  # used: the youngest now
    kept.trim("things", 299)
    assert sorted(path.name for path in cache.iterdir()) == [NAMES[0], NAMES[2]]
