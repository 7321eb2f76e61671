import json
import os

import pytest
import storage

from pirl_jax.core import lines


def test_whole_lines_are_there_and_half_ones_are_not(tmp_path):
    path = tmp_path / "file"
    assert lines.read(path) == []
    with lines.Lines(path) as opened:
        opened.append("one")
        opened.append("zwö")
        assert lines.read(path) == [b"one", "zwö".encode()]
    path.write_bytes(path.read_bytes() + b"thr")
    assert lines.read(path) == [b"one", "zwö".encode()]
    with lines.Lines(path) as opened:
        opened.append("3")
    assert path.read_bytes() == "one\nzwö\n3\n".encode()


def test_a_line_and_the_name_of_its_file_are_on_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    with lines.Lines(tmp_path / "file") as opened:
        assert synced == [tmp_path.stat().st_ino]
        opened.append("one")
        assert synced[1:] == [(tmp_path / "file").stat().st_ino]


REFUSED = """
import json
from pirl_jax.core import lines
path = os.path.join(place, "file")
opened = lines.Lines(path)
opened.append("first")
refuse()
try:
    opened.append("x" * 100_000)
    caught = None
except OSError as error:
    caught = [error.strerror, error.filename == path]
allow()
opened.append("last")
print(json.dumps([caught, lines.read(path) == [b"first", b"last"]]))
"""


def test_a_full_disk_leaves_the_lines_before(tmp_path):
    program = "refuse, allow = fill, make_room\n" + REFUSED
    done = storage.on_small_disk(program, tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [["No space left on device", True], True]


def test_so_does_a_limit_of_sizes(tmp_path):
    program = "refuse = allow = os.getpid\n" + REFUSED
    done = storage.with_small_files(program, tmp_path, 1 << 16)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [["File too large", True], True]


FORBIDDEN = """
from pirl_jax.core import atomic, lines, locks
for attempt in (lambda: lines.Lines(place + "/file"), lambda: atomic.write_text(place + "/a", "")):
    try:
        attempt()
    except OSError as error:
        print(error.strerror, error.filename)
try:
    with locks.writing(place, ""):
        pass
except ValueError as error:
    print(error)
"""


def test_a_folder_of_somebody_else_is_named(tmp_path):
    (tmp_path / "file").write_text("one\n")
    storage.let_others_in(tmp_path)
    tmp_path.chmod(0o755)
    done = storage.as_another_user(FORBIDDEN, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"Permission denied {tmp_path}/file",
        f"Permission denied {tmp_path}/a.unfinished",
        f"{tmp_path} cannot be written (Permission denied); choose another place",
    ]
    assert (tmp_path / "file").read_text() == "one\n"
    with pytest.raises(IsADirectoryError):
        lines.Lines(tmp_path)


def test_closing_twice_closes_nobody_elses_file(tmp_path):
    grown = lines.Lines(tmp_path / "file")
    grown.close()
    with (tmp_path / "other").open("wb") as other:
        grown.close()
        other.write(b"still open")
    assert (tmp_path / "other").read_bytes() == b"still open"
