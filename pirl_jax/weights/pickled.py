"""PyTorch's .pt files of plain tensors, read without PyTorch and without trusting the file.

RLinf's full_weights.pt is one.  Such a file is an uncompressed zip: a pickle that describes the
tensors, and one entry of raw bytes per storage.  The unpickler below knows the names of plain
tensors; whatever else the pickle asks for ends the reading, so no code of the file can run.
"""

import collections
from collections.abc import Callable, Sequence
import mmap
import os
import pathlib
import pickle
import struct
from typing import IO, Any
import zipfile

import ml_dtypes
import numpy as np

STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
REMEDY = "load it with PyTorch and save the state_dict with safetensors.torch.save_file"
# Local file header of a zip entry: 26 bytes, lengths of name and extra field, the two, the data.
LENGTHS_AT = 26
LENGTHS = struct.Struct("<HH")


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """A saved state_dict -> read-only views of its tensors; data is read when it is touched.

    Raises: ValueError for any other file, for one that is cut off, and for a pickle that asks for
    more than plain tensors.
    """
    path = pathlib.Path(path)
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no .pt file of PyTorch 1.6 or later; {REMEDY}")
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        # The first part of each name is that of the archive, which differs from file to file.
        members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if "data.pkl" not in members:
            raise ValueError(
                f"{path} holds no data.pkl, so it was not written by torch.save; {REMEDY}"
            )
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with archive.open(members["data.pkl"]) as description:
            tree = _Unpickler(description, path, members, memory).load()
    tensors = _state_dict(tree)
    if not tensors:
        raise ValueError(f"{path} holds no tensors by name; {REMEDY}")
    return tensors


class _Unpickler(pickle.Unpickler):
    """Builds what a description asks for, if that is on the list."""

    def __init__(
        self,
        description: IO[bytes],
        path: pathlib.Path,
        members: dict[str, zipfile.ZipInfo],
        memory: mmap.mmap,
    ):
        super().__init__(description)
        self._path = path
        self._members = members
        self._memory = memory

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return np.dtype(STORAGES[name])
        if (module, name) not in _KNOWN:
            raise ValueError(
                f"{self._path} wants to run {module}.{name}, which is no plain tensor; {REMEDY}"
            )
        return _KNOWN[module, name]

    def persistent_load(self, pid: tuple) -> np.ndarray:
        """("storage", dtype, entry, device, number of elements) -> its elements, as one axis."""
        _, dtype, key, _, count = pid
        info = self._members.get(f"data/{key}")
        complete = (
            info is not None
            and info.compress_type == zipfile.ZIP_STORED
            and info.file_size >= count * dtype.itemsize
        )
        if not complete:
            raise ValueError(
                f"storage {key} of {self._path} is missing or cut off; copy the file again"
            )
        # The local header may have other lengths than the central one, so it is read.
        lengths_at = info.header_offset + LENGTHS_AT
        name, extra = LENGTHS.unpack_from(self._memory, lengths_at)
        data_at = lengths_at + LENGTHS.size + name + extra
        return np.frombuffer(self._memory, dtype, count, data_at)


def _tensor(
    storage: np.ndarray,
    offset: int,
    size: Sequence[int],
    stride: Sequence[int],
    requires_grad: bool,
    hooks: Any,
    metadata: Any = None,
) -> np.ndarray:
    """torch._utils._rebuild_tensor_v2: a view of a storage; offset and stride count elements."""
    reaches = offset  # behind the last element
    if all(size):
        reaches += sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
    # as_strided checks nothing: a hostile file could read any memory of the process.
    if offset < 0 or min(stride, default=0) < 0 or reaches > len(storage):
        raise ValueError(
            f"a tensor of shape {tuple(size)} reaches beyond its storage; copy the file again"
        )
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)


def _parameter(tensor: np.ndarray, requires_grad: bool, hooks: Any) -> np.ndarray:
    """torch._utils._rebuild_parameter."""
    return tensor


def _state_dict(tree: Any) -> dict[str, np.ndarray]:
    """The state_dict itself, or the one under a key such as "model" or "state_dict"."""
    if not isinstance(tree, dict):
        return {}
    tensors = {name: leaf for name, leaf in tree.items() if isinstance(leaf, np.ndarray)}
    if tensors:
        return tensors
    for child in tree.values():
        tensors = _state_dict(child)
        if tensors:
            return tensors
    return {}


# (module, name) that a description of plain tensors asks for -> what it gets.
_KNOWN: dict[tuple[str, str], Callable] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "Size"): tuple,
}
