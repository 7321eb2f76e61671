"""Where the reference numbers lie: all beside the repository, else the part in tests/golden."""

import os
import pathlib

import numpy as np
import pytest

TESTS = pathlib.Path(__file__).parent
ALL = pathlib.Path(os.environ.get("PIRL_VECTORS", TESTS.parents[1] / "shared" / "vectors"))
COMPLETE = ALL.is_dir()
FOLDER = ALL if COMPLETE else TESTS / "golden"


def having(path: str, names) -> list:
    """The names (of an array, or of all below it) that the file has.

    The complete set must have them all.
    """
    if COMPLETE:
        return list(names)
    with np.load(FOLDER / path) as file:
        known = set(file.files)
        known |= {key[:end] for key in file.files for end in _ends(key)}
    return [name for name in names if name in known]


def _ends(key):
    return [place for place, letter in enumerate(key) if letter == "/"]


def existing(path: str, names) -> list:
    """The names with a file or folder `path`, where {} stands for the name.

    The complete set must have them all.
    """
    return [name for name in names if COMPLETE or (FOLDER / path.format(name)).exists()]


def enough(count: int) -> int:
    """How many cases a test must have compared; a few, where only a part is there."""
    return count if COMPLETE else min(count, 4)


only_complete = pytest.mark.skipif(
    not COMPLETE, reason="its reference numbers are not part of tests/golden"
)
