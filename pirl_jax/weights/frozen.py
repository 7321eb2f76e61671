"""The float32 values of weights that a run stores rounded, because they never train.

They are written once, beside the checkpoints; every checkpoint names them by their hash:

    frozen/0/        as a checkpoint, with the frozen weights alone
    checkpoints/12/  its `extra` holds {"frozen_float32": sha256 of frozen/0/checksums.json}

Knows no network, and not what is rounded.
"""

import hashlib
import pathlib

from pirl_jax.core import outside
from pirl_jax.weights import folders

FOLDER = "frozen"  # of a run
MARK = "frozen_float32"  # in `extra` of a checkpoint


def reference(checkpoints: pathlib.Path) -> dict[str, str]:
    """What a checkpoint in this folder says of the values: nothing where the run has none."""
    sums = _sums(checkpoints.parent)
    if not sums.is_file():
        return {}
    return {MARK: hashlib.sha256(sums.read_bytes()).hexdigest()}


def carried(extra: dict) -> dict[str, str]:
    """The same of a checkpoint that goes on from one with this `extra`."""
    return {MARK: extra[MARK]} if extra.get(MARK) else {}


def is_referenced(checkpoint: pathlib.Path) -> bool:
    """Whether a checkpoint (checkpoints/12) keeps weights rounded."""
    return bool(_mark(checkpoint))


def lost(checkpoint: pathlib.Path) -> str:
    """What is wrong with the values that a checkpoint refers to; "" where nothing is."""
    mark = _mark(checkpoint)
    run = checkpoint.parent.parent
    sums = _sums(run)
    if not mark:
        return ""
    if not sums.is_file():
        return (
            f"{checkpoint} keeps frozen weights in bfloat16, and {run / FOLDER}, which holds them "
            f"in float32, is not there; copy it along with the checkpoint"
        )
    if hashlib.sha256(sums.read_bytes()).hexdigest() != mark:
        return (
            f"{run / FOLDER} does not hold the frozen weights of {checkpoint};"
            f" copy that of the run which saved it"
        )
    return ""


def find(checkpoint: pathlib.Path) -> pathlib.Path:
    """The folder of the arrays that a checkpoint refers to.

    Raises:
      ValueError: they are not there, are another run's, or are damaged.
    """
    wrong = lost(checkpoint)
    if wrong:
        raise ValueError(wrong)
    sums = _sums(checkpoint.parent.parent)
    folders.require_intact(sums.parent)
    return sums.parent / "state"


def _sums(run: pathlib.Path) -> pathlib.Path:
    return run / FOLDER / "0" / folders.SUMS


def _mark(checkpoint: pathlib.Path) -> str:
    path = checkpoint / "extra" / "metadata"
    if not path.is_file():
        return ""
    extra = outside.parse_json(path.read_bytes(), str(path))
    return extra.get(MARK, "") if isinstance(extra, dict) else ""
