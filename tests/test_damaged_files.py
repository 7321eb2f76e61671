"""Whatever a file holds, its reader ends in a value or in one sentence with the path.

Never in another exception, a hang, a dead process or more than a gigabyte.  damaged_files.py
damages and reads, in a process of its own with bounds on memory and time.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parent / "damaged_files.py"
ROOT = SCRIPT.parents[1]
QUICK = (
    "safetensors",
    "index",
    "pt",
    "statistics",
    "tokenizer",
    "configuration",
    "evaluation",
    "run",
    "episodes",
)


def outcomes(folder, kinds, count, seed, timeout):
    """Kind -> what damaged_files.py tells of it."""
    command = [sys.executable, str(SCRIPT), str(folder), ",".join(kinds), str(count), str(seed)]
    last_case = folder / "last_case"
    last_case.write_text("none")
    options = {"capture_output": True, "text": True, "timeout": timeout, "check": False}
    try:
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, **options)
    except subprocess.TimeoutExpired:
        pytest.fail(f"hangs in case {last_case.read_text()}")
    assert done.returncode == 0, f"{last_case.read_text()}: {done.stderr[-2000:]}"
    told = {}
    for line in done.stdout.splitlines():
        told |= json.loads(line)
    return told


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return outcomes(tmp_path_factory.mktemp("damaged"), QUICK, count=40, seed=0, timeout=300)


@pytest.mark.parametrize("kind", QUICK)
def test_a_damaged_file_is_read_or_refused_in_a_sentence(quick, kind):
    told = quick[kind]
    assert not told["wrong"], told
    # Damage that is never noticed or always fatal would try out little.
    assert told["read"] + told["refused"] == 40 and told["refused"] > 10, told


@pytest.mark.slow
@pytest.mark.parametrize("kind", QUICK)
def test_thousands_of_damaged_files(tmp_path, kind):
    told = outcomes(tmp_path, [kind], count=2000, seed=1, timeout=550)[kind]
    assert not told["wrong"], told
    assert told["read"] > 5 and told["refused"] > 500, told


@pytest.mark.slow
def test_damaged_checkpoints_of_openpis_trainer(tmp_path):
    """Its format has checksums of what leads to the arrays, not of every array."""
    told = outcomes(tmp_path, ["orbax"], count=100, seed=1, timeout=550)["orbax"]
    assert not told["wrong"], told
    assert told["refused"] > 10, told
