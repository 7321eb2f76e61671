"""LIBERO's files of init states, read without torch and without trusting them.

Such a file is a zip archive written by torch.save with one pickle of one numpy array; that of a
custom task may be a .npy instead.  The pickle only names the parts of the array here; numpy gets to
see them when they have been checked.
Refuses to know suites and tasks.
"""

import io
import pathlib
import pickle
import pickletools
from typing import Any
import zipfile

import numpy as np

from pirl_jax.envs import arrays

MAX_BYTES = 2**24  # of a file; LIBERO's largest has 59 kB
INSTALL_AGAIN = (
    "install LIBERO again: pip install --no-deps --force-reinstall -r requirements-sim.txt"
)
MAX_OPCODES = 1000  # of a pickle; LIBERO's have 60
NUM_STATES = 50  # per task, in every file of LIBERO
# What the pickle of one array consists of.  None of them asks for memory that the file does not
# fill, as an entry of the memo with a large number would.
STRUCTURE = ("PROTO", "FRAME", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "STOP")
TUPLES = ("MARK", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE")
MEMO = ("BINPUT", "BINGET", "MEMOIZE")
VALUES = ("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2")
TEXTS = ("BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES")
OPCODES = frozenset([*STRUCTURE, *TUPLES, *MEMO, *VALUES, *TEXTS])


def read(
    path: pathlib.Path, count: int | None = NUM_STATES, remedy: str = INSTALL_AGAIN
) -> np.ndarray:
    """[init states, 1 + nq + nv] float64: time (s), joint positions, joint velocities.

    count: how many states the file must have, 1 in LIBERO-Plus's; None: any number from 1 on.
    A file that ends in .npy is numpy's own.

    Raises:
        ValueError: the file is missing, damaged, or holds anything else.
    """
    try:
        stored = _array(path) if path.suffix == ".npy" else _unpickle(_content(path))
        return _checked(stored, count)
    except Exception as error:  # zip and pickle raise a dozen kinds
        reason = str(error)[:200] or type(error).__name__
        raise ValueError(f"{path} holds no init states ({reason}); {remedy}") from error


def _array(path: pathlib.Path) -> np.ndarray:
    """Of a file of numpy's; read-only."""
    _check_size(path)
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"it is of numpy's format {version}")
        # Read by hand: numpy would ask for as much memory as a header says, and read pickles.
        shape, is_transposed, dtype = np.lib.format.read_array_header_1_0(file)
        content = file.read()
    if is_transposed:
        return arrays.decode(dtype.str, shape[::-1], content).T
    return arrays.decode(dtype.str, shape, content)


def _check_size(path: pathlib.Path) -> None:
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES} bytes")


def _content(path: pathlib.Path) -> bytes:
    """The pickle of the archive."""
    _check_size(path)
    with zipfile.ZipFile(path) as archive:
        pickles = [info for info in archive.infolist() if info.filename.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"it has {len(pickles)} entries data.pkl instead of one")
        # Stored as it is: an entry is no larger than the file.
        if pickles[0].compress_type != zipfile.ZIP_STORED or pickles[0].file_size > MAX_BYTES:
            raise ValueError("its data.pkl is compressed")
        return archive.read(pickles[0])


class _Parts:
    """Stands for an array or a dtype that a pickle describes."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _latin1(text: Any, codec: Any) -> bytes:
    """How protocol 2 stores bytes."""
    if type(text) is not str or codec != "latin1":
        raise ValueError("its bytes are stored in another way than LIBERO's")
    return text.encode("latin1")


KNOWN = {
    ("numpy._core.multiarray", "_reconstruct"): _Parts,
    ("numpy", "ndarray"): None,  # an argument of the one before
    ("numpy", "dtype"): _Parts,
    ("_codecs", "encode"): _latin1,
}


class _Unpickler(pickle.Unpickler):
    """Builds parts and nothing else; also reads the module names of numpy 1."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")
        if (module, name) not in KNOWN:
            asked = f"{module}.{name}"
            raise ValueError(f"it asks for {asked[:80]!r}, which is no array")
        return KNOWN[module, name]


def _unpickle(content: bytes) -> np.ndarray:
    """The array of a pickle; read-only."""
    for number, (opcode, _, _) in enumerate(pickletools.genops(content)):
        if opcode.name not in OPCODES or number >= MAX_OPCODES:
            raise ValueError(f"its pickle is not that of an array ({opcode.name})")
    parts = _Unpickler(io.BytesIO(content)).load()
    _, shape, dtype, is_transposed, data = parts.state
    name, *_ = dtype.arguments
    _, order, *structure = dtype.state
    if structure[:3] != [None, None, None]:
        raise ValueError("its elements are no numbers")
    if is_transposed:
        return arrays.decode(order + name, shape[::-1], data).T
    return arrays.decode(order + name, shape, data)


def _checked(states: np.ndarray, count: int | None) -> np.ndarray:
    """Numbers that a simulator can stand in."""
    shape = list(states.shape)
    if count in (1, None):
        states = np.atleast_2d(states)
    right = len(states) == count if count else states.size > 0
    if states.ndim != 2 or not right or states.dtype.kind != "f":
        wanted = f"{count} states" if count else "states, a row of numbers each"
        raise ValueError(f"it has {states.dtype} of shape {shape} instead of {wanted}")
    arrays.check_finite(states)
    return states.astype(np.float64)
