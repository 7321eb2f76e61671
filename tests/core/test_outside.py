"""What others wrote ends in its value or in one sentence with the path, within bounds."""

import json
import os
import pathlib
import re
import resource
import subprocess
import sys

import pytest

from pirl_jax.core import outside

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n"
DAMAGED = {
    "empty": (b"", "is empty"),
    "blank": (b" \n", "is empty"),
    "cut off": (b'{"a": {"b": 1', "is no JSON"),
    "no JSON": (b"\x00\x01", "is no JSON"),
    "not UTF-8": (b'{"a": "\xff"}', "is no UTF-8 text"),
    "a list": (b"[1, 2]", r"is \[1, 2\] and should be an object"),
    "a number": (b"7", "is 7 and should be an object"),
    "a name twice": (b'{"a": 1, "a": 2}', "has one name twice"),
    "a name twice inside": (b'{"b": [{"a": 1, "a": 2}]}', "has one name twice"),
    "deep lists": (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "nested deeper than 64 levels"),
    "a bomb of lists": (b"[" * 1_000_000, "nested too deep"),
    "a bomb of objects": (b'{"a":' * 500_000, "nested too deep"),
    "digits": (b'{"a": ' + b"9" * 5000 + b"}", "is no JSON"),
    "half a character": (rb'{"a": "\ud800"}', "is no JSON"),
    "half a name": (rb'{"\uDBFF": 1}', "is no JSON"),
    "a pointer": (POINTER.encode(), "is a Git LFS pointer and not the file itself; run git lfs"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_json_is_a_sentence_with_the_path(tmp_path, name):
    content, said = DAMAGED[name]
    path = tmp_path / "these.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path} .*{said}.*") as caught:
        outside.read_json(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_what_is_no_file_is_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=f"^{tmp_path} is a folder and should be a file; "):
        outside.read_json(tmp_path)
    absent = tmp_path / "absent.json"
    with pytest.raises(ValueError, match=f"^{absent} is no file; give another$"):
        outside.read_json(absent, remedy="give another")
    os.mkfifo(absent)  # opened, it would wait for a writer
    with pytest.raises(ValueError, match=f"^{absent} is no file; "):
        outside.read_json(absent)
    with pytest.raises(ValueError, match=r"^/dev/zero is no file; "):
        outside.read_bytes("/dev/zero")


def test_honest_json_is_read_as_json_reads_it(tmp_path):
    value = {"a": [1, -0.5, 1e300, None, True], "ä": {"b": "\N{GRINNING FACE}", "": []}}
    path = tmp_path / "a.json"
    for ensure_ascii in (True, False):
        path.write_text(json.dumps(value, ensure_ascii=ensure_ascii), encoding="utf-8")
        assert outside.read_json(path) == value
    assert outside.parse_json(b"[1]", path) == [1]
    path.write_text("[" * 60 + "]" * 60)
    assert outside.read_json(path, list) == json.loads(path.read_text())


LARGEST = """
import resource, sys
from pirl_jax.core import outside
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
path, unit = sys.argv[1:]
unit = unit.encode()
with open(path, "wb") as file:
    file.write(b"[" + unit * ((outside.MOST_BYTES - 8) // len(unit)) + unit.rstrip(b",") + b"]")
outside.read_json(path, list)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["[],", "{},", '"é",', "0.5,"])
def test_the_largest_file_stays_within_a_gigabyte(tmp_path, unit):
    command = [sys.executable, "-c", LARGEST, str(tmp_path / "a.json"), unit]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) << 10 < 1 << 30


def test_a_larger_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole, which takes no disk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"a.json is larger than 16,777,216 bytes"):
        outside.read_json(path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown << 10 < 3 * outside.MOST_BYTES


def test_parts_have_the_kind_that_is_wanted():
    tree = {"a": {"b": 1, "c": 0.5, "d": True, "e": float("nan"), "f": 10**30}, "g": [1]}
    assert outside.part(tree, "a.b", int, "x.json") == 1
    assert outside.part(tree, "a.b", float, "x.json") == 1
    assert outside.part(tree, "a.c", float, "x.json") == 0.5
    assert outside.part(tree, "a.d", bool, "x.json") is True
    assert outside.part(tree, "g", list, "x.json") == [1]
    for names, kind, said in (
        ("a.z", int, "^x.json has no a.z; "),
        ("g.z", int, "^x.json has no g.z; "),
        ("a.c", int, "^a.c of x.json is 0.5 and should be a whole number; "),
        ("a.d", int, "^a.d of x.json is true and should be a whole number; "),
        ("a.d", float, "^a.d of x.json is true and should be a finite number; "),
        ("a.e", float, "^a.e of x.json is NaN and should be a finite number; "),
        ("a.f", float, "^a.f of x.json is 10+ and should be a finite number; "),
        ("a.b", str, "^a.b of x.json is 1 and should be a text; "),
        ("g", dict, r"^g of x.json is \[1\] and should be an object; "),
    ):
        with pytest.raises(ValueError, match=said):
            outside.part(tree, names, kind, "x.json")


# File -> what it parses, which nobody outside wrote.
OWN_JSON = {
    "core/outside.py": "the reader itself",
    "core/locks.py": "the start of a note of ours, and any error is a holder without a name",
    "envs/libero/perturbed.py": "a note of ours in a wing without core; damage is told",
    "envs/child.py": "the answer of a process of ours",
    "envs/libero/preflight.py": "the question to a process of ours",
    "bench/short_runs.py": "the rows of a run that has just ended",
    "monitor/log.py": "what json.dumps has just given",
    "monitor/journal.py": "what json.dumps has just given",
    "evidence/gather.py": "what json.dumps has just given",
    "evaluate.py": "what json.dumps has just given",
    "run/story.py": "what json.dumps has just given",
}


def test_files_from_outside_have_one_reader():
    package = pathlib.Path(outside.__file__).parents[1]
    wrong = []
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(package).as_posix()
        if re.search(r"\b(json|pickle)\.loads?\(|pickle\.Unpickler", text) and name not in OWN_JSON:
            wrong.append(name)
    # Between the processes of one command, and LIBERO's init states behind lists of their own.
    own_pickles = {
        *("core/mesh.py", "envs/pool/channel.py", "envs/pool/worker.py"),
        "envs/libero/light.py",
    }
    assert not set(wrong) - own_pickles - {"envs/libero/stored_states.py"}, wrong


def test_errors_get_the_path_that_they_lack():
    with pytest.raises(ValueError, match=r"^a.json: no sense$"), outside.named("a.json"):
        raise ValueError("no sense")
    with pytest.raises(ValueError, match=r"^no sense in a.json$"), outside.named("a.json"):
        raise ValueError("no sense in a.json")
    with pytest.raises(KeyError), outside.named("a.json"):
        raise KeyError("a mistake of ours")


def test_lists_of_names_have_an_end():
    assert outside.listed(["a", "b\n"]) == "a, b"
    assert outside.listed(str(k) for k in range(1000)).endswith("9 and 990 more")


def test_names_of_a_file_are_shown_on_one_short_line():
    assert outside.shown("a plain.name/0") == "a plain.name/0"
    assert outside.shown("red \x1b[31m\n\x07") == r"red \x1b[31m \x07"
    assert len(outside.shown("x" * 10**6)) < 250
