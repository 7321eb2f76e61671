"""PyTorch's .pt files of plain tensors, read without PyTorch and without trusting the file.

RLinf's full_weights.pt is one.  Such a file is an uncompressed zip: a pickle that describes the
tensors, and one entry of raw bytes per storage.  Opcodes.py carries the pickle out; the list below
has the names of plain tensors, and whatever else is asked for ends the reading, so that no code of
the file can run.
"""

from collections.abc import Callable, Mapping
import io
import math
import mmap
import os
import pathlib
import struct
from typing import Any
import zipfile
import zlib

import ml_dtypes
import numpy as np

from pirl_jax.core import outside
from pirl_jax.weights import opcodes, sound

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
# Local file header of a zip entry: its mark, 22 bytes, lengths of name and extra field, the two,
# the data.
HEADER = struct.Struct("<4s22xHH")
HEADER_MARK = b"PK\3\4"
MOST_TOGETHER = 1 << 22  # bytes of a zip's directory; 91,000 entries
# Tensors may share a storage, as tied embeddings do; all of them may come to so many file sizes.
MOST_SHARING = 8


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """A saved state_dict -> read-only views of its tensors; data is read when it is touched.

    Raises: ValueError for any other file, for one that is cut off, and for a pickle that asks for
    more than plain tensors.
    """
    path = pathlib.Path(path)
    outside.require_file(path)
    memory = _map(path)
    tensors = _Archive(path, _members(path), memory).tensors()
    if not tensors:
        raise ValueError(f"{path} holds no tensors by name; {REMEDY}")
    for name, tensor in tensors.items():
        if tensor.dtype == np.bool_:
            sound.require_truths(tensor, name, path)
    num_bytes = sum(tensor.nbytes for tensor in tensors.values())
    if num_bytes > MOST_SHARING * len(memory):
        raise ValueError(
            f"the tensors of {path} come to {num_bytes:,} bytes, {num_bytes // len(memory)} times "
            f"the file: they share their storages; {REMEDY}"
        )
    return tensors


def settings(path: str | os.PathLike) -> dict[str, Any]:
    """The plain data of a saved dict; whatever else it holds is an opcodes.Opaque.

    Raises: ValueError as `read`.
    """
    path = pathlib.Path(path)
    outside.require_file(path)
    memory = _map(path)
    archive = _Archive(path, _members(path), memory)
    tree = opcodes.Settings(f"data.pkl of {path}", REMEDY).run(archive.description())
    if not isinstance(tree, dict):
        raise ValueError(f"{path} holds no settings by name; {REMEDY}")
    return tree


def _map(path: pathlib.Path) -> mmap.mmap:
    """The file as memory, which the tensors keep."""
    if path.stat().st_size < HEADER.size:
        raise _no_archive(path)
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _no_archive(path: pathlib.Path) -> ValueError:
    return ValueError(f"{path} is no .pt file of PyTorch 1.6 or later; {REMEDY}")


class _Reader(io.FileIO):
    """A file of which nobody reads much at once, whatever its headers say."""

    def read(self, size: int = -1, /) -> bytes:
        content = super().read(min(size, MOST_TOGETHER) if size >= 0 else MOST_TOGETHER)
        # zipfile asks again for what is lacking, of files that grow; of these nothing does.
        if len(content) == MOST_TOGETHER:
            raise zipfile.BadZipFile(f"a directory of {size:,} bytes")
        return content


def _members(path: pathlib.Path) -> dict[str, zipfile.ZipInfo]:
    """Name -> where it lies.

    The first part of each name is that of the archive, which differs from file to file.
    """
    try:
        with _Reader(path, "rb") as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    # NotImplementedError: a version or a compression that zipfile lacks; the others are of fields
    # that make no sense.
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OSError) as error:
        raise _no_archive(path) from error
    members = {}
    for info in entries:
        name = info.filename.partition("/")[2]
        if not name:
            continue  # a folder
        if name in members:
            raise ValueError(f"{path} holds {outside.shown(name)} twice; {REMEDY}")
        members[name] = info
    return members


class _Archive:
    """The entries of a file, and what its description makes of them."""

    def __init__(
        self, path: pathlib.Path, members: Mapping[str, zipfile.ZipInfo], memory: mmap.mmap
    ):
        self._path = path
        self._members = members
        self._memory = memory
        self._machine = opcodes.Machine(f"data.pkl of {path}", REMEDY, self._call, self._storage)

    def tensors(self) -> dict[str, np.ndarray]:
        """By name."""
        return _state_dict(self._machine.run(self.description()))

    def description(self) -> bytes:
        """The pickle."""
        if "data.pkl" not in self._members:
            raise ValueError(
                f"{self._path} holds no data.pkl, so it was not written by torch.save; {REMEDY}"
            )
        order = self._content("byteorder") if "byteorder" in self._members else b"little"
        if order != b"little":
            raise ValueError(f"{self._path} is of a machine with the other byte order; {REMEDY}")
        description = self._content("data.pkl")
        if zlib.crc32(description) != self._members["data.pkl"].CRC:
            raise ValueError(f"data.pkl of {self._path} is damaged; copy the file again")
        return description

    def _content(self, name: str) -> bytes:
        """Of a small entry."""
        info = self._members[name]
        start = self._start(info)
        if start is None or info.file_size > opcodes.MOST_BYTES:
            raise ValueError(
                f"{name} of {self._path} is compressed, cut off, or larger than "
                f"{opcodes.MOST_BYTES:,} bytes; {REMEDY}"
            )
        return self._memory[start : start + info.file_size]

    def _start(self, info: zipfile.ZipInfo) -> int | None:
        """Byte of the file where an entry's data begins; None: it does not lie there whole."""
        at = info.header_offset
        if (
            info.compress_type != zipfile.ZIP_STORED
            or not 0 <= at <= len(self._memory) - HEADER.size
        ):
            return None
        # The local header may have other lengths than the central one, so it is read.
        mark, name, extra = HEADER.unpack_from(self._memory, at)
        start = at + HEADER.size + name + extra
        if mark != HEADER_MARK or start + info.file_size > len(self._memory):
            return None
        return start

    def _call(self, name: opcodes.Name, arguments: tuple) -> Any:
        """What the description wants to call, if that is on the list."""
        build = _KNOWN.get((name.module, name.name))
        if build is None:
            where = f"{outside.shown(name.module)}.{outside.shown(name.name)}"
            raise opcodes.Refused(
                f"{self._path} wants to run {where}, which is no plain tensor; {REMEDY}"
            )
        try:
            return build(*arguments)
        except ValueError as error:
            tensor = outside.shown(self._machine.last_text())
            raise opcodes.Refused(f"{tensor} in {self._path} {error}; {REMEDY}") from error

    def _storage(self, pid: Any) -> np.ndarray:
        """("storage", type, entry, device, number of elements) -> its elements, as one axis."""
        _, kind, key, _, count = pid
        known = isinstance(kind, opcodes.Name) and kind.module == "torch" and kind.name in STORAGES
        if not known or type(key) is not str or type(count) is not int or count < 0:
            raise opcodes.Refused(
                f"{self._path} has a storage without a name, a size or a type that is known; "
                f"{REMEDY}"
            )
        dtype = np.dtype(STORAGES[kind.name])
        info = self._members.get(f"data/{key}")
        start = None if info is None else self._start(info)
        if start is None or info.file_size < count * dtype.itemsize:
            raise opcodes.Refused(
                f"storage {outside.shown(key)} of {self._path} is missing or cut off; "
                f"copy the file again"
            )
        return np.frombuffer(self._memory, dtype, count, start)


def _tensor(
    storage: np.ndarray,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool,
    hooks: Any,
    metadata: Any = None,
) -> np.ndarray:
    """torch._utils._rebuild_tensor_v2: a view of a storage; offset and stride count elements.

    Raises: ValueError without the name of the tensor, which the caller knows.
    """
    described = isinstance(storage, np.ndarray) and type(offset) is int
    described = described and sound.is_shape(size, 1) and type(stride) is tuple
    if not described or any(type(step) is not int for step in stride) or len(stride) != len(size):
        raise ValueError("is not described by whole numbers")
    reaches = offset  # behind the last element
    if all(size):
        reaches += sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
    beyond = reaches > len(storage) or max(stride, default=0) > sound.MOST_BYTES
    # as_strided checks nothing: a hostile file could read any memory of the process.
    if offset < 0 or min(stride, default=0) < 0 or beyond:
        raise ValueError(f"has shape {size} and reaches beyond its storage")
    # Of stride 0: a few bytes that would fill any memory.
    if math.prod(size) > len(storage):
        raise ValueError(f"has shape {size} and repeats the {len(storage)} elements of its storage")
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)


def _parameter(tensor: np.ndarray, requires_grad: bool, hooks: Any) -> np.ndarray:
    """torch._utils._rebuild_parameter."""
    return tensor


def _size(sizes: tuple) -> tuple:
    """torch.Size.  Checked, since `tuple` would unpack whatever it is given."""
    if type(sizes) is not tuple:
        raise ValueError("is not described by whole numbers")
    return sizes


def _empty() -> dict:
    """collections.OrderedDict, whose items follow."""
    return {}


def _state_dict(tree: Any) -> dict[str, np.ndarray]:
    """The state_dict itself, or the first one under a key such as "model" or "state_dict"."""
    waiting = [tree]
    # A pickle may hold itself, or one part many times.
    seen = set()
    while waiting:
        node = waiting.pop()
        if not isinstance(node, dict) or id(node) in seen:
            continue
        seen.add(id(node))
        tensors = {}
        for name, leaf in node.items():
            if isinstance(name, str) and isinstance(leaf, np.ndarray):
                tensors[name] = leaf
        if tensors:
            return tensors
        waiting += reversed(node.values())
    return {}


# (module, name) that a description of plain tensors asks for -> what it gets.
_KNOWN: dict[tuple[str, str], Callable] = {
    ("collections", "OrderedDict"): _empty,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "Size"): _size,
}
