import json
import os
import stat

import pytest
import storage

from pirl_jax.core import atomic


def test_text_and_json_take_their_place(tmp_path):
    path = tmp_path / "a.json"
    atomic.write_text(path, "η\n")
    assert path.read_bytes() == "η\n".encode()
    atomic.write_json(str(path), {"x": [1, 2]})
    assert json.loads(path.read_text()) == {"x": [1, 2]}
    assert path.read_text().endswith("}\n")
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with atomic.writing(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
        assert temporary.parent == path.parent
        assert not list(tmp_path.glob("*.bin"))[1:], "a pattern finds no unfinished file"
    assert path.read_bytes() == b"new"


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    atomic.write_text(path, "old")
    with pytest.raises(RuntimeError, match="stopped"), atomic.writing(path) as temporary:
        temporary.write_text("ne")
        raise RuntimeError("stopped")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_grew_in_several_runs_is_published(tmp_path):
    path = tmp_path / "large"
    for part in (b"12", b"3"):
        with atomic.unfinished(path).open("ab") as file:
            file.write(part)
    atomic.publish(path)
    assert path.read_bytes() == b"123"
    assert list(tmp_path.iterdir()) == [path]


def test_content_is_on_the_disk_before_the_name_and_the_name_after_it(tmp_path, monkeypatch):
    calls = []

    def sync(descriptor):
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "content")

    monkeypatch.setattr(atomic.os, "fsync", sync)
    replace = atomic.os.replace

    def rename(old, new):
        calls.append("name")
        replace(old, new)

    monkeypatch.setattr(atomic.os, "replace", rename)
    atomic.write_text(tmp_path / "a", "x")
    assert calls == ["content", "name", "folder"]


FULL = """
from pirl_jax.core import atomic
path = os.path.join(place, "a.json")
atomic.write_json(path, [1])
fill()
try:
    atomic.write_json(path, list(range(100_000)))
except OSError as error:
    print(error.strerror, error.filename == path)
make_room()
print(open(path).read().split(), os.listdir(place))
"""


def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path):
    done = storage.on_small_disk(FULL, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "No space left on device True\n['[', '1', ']'] ['a.json']\n"


def test_what_is_set_aside_takes_no_other_place(tmp_path):
    for content in "12":
        (tmp_path / "a").write_text(content)
        atomic.set_aside(tmp_path / "a")
    assert (tmp_path / "a.damaged").read_text() == "1"
    assert (tmp_path / "a.damaged_2").read_text() == "2"
