"""The safetensors file format: read through a memory map, written as a stream.  Knows no model.

A file: the length of its header (8 bytes, little endian), the header (JSON: name -> dtype, shape,
data_offsets), the data.  Written here because the package of that name wants all tensors in memory
at once to write a file, and because reading takes thirty lines.
"""

from collections.abc import Iterable, Mapping
import json
import math
import os
import pathlib
import struct
from typing import Any

import ml_dtypes
import numpy as np

from pirl_jax.core import atomic

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
LENGTH = struct.Struct("<Q")  # of the header, in bytes
ALIGNMENT = 8  # bytes: readers map the data and want it aligned


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """One file -> read-only views of its tensors; data comes from disk when it is touched.

    Raises: ValueError for a file that is cut off, or holds a dtype that is none of DTYPES.
    """
    path = pathlib.Path(path)
    header, data = _header_and_data(path)
    header.pop("__metadata__", None)
    return {name: _tensor(path, name, entry, data) for name, entry in header.items()}


def _header_and_data(path: pathlib.Path) -> tuple[dict, np.ndarray]:
    """-> (header, all data as uint8)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = size  # more than there can be
        if size >= LENGTH.size:
            (length,) = LENGTH.unpack(file.read(LENGTH.size))
        start = LENGTH.size + length
        if start > size:
            raise ValueError(
                f"{path} is cut off or no safetensors file ({size} bytes); fetch it again"
            )
        header = json.loads(file.read(length))
    if start == size:
        return header, np.zeros(0, np.uint8)  # nothing cannot be mapped
    return header, np.memmap(path, np.uint8, mode="r", offset=start)


def _tensor(path: pathlib.Path, name: str, entry: dict, data: np.ndarray) -> np.ndarray:
    if entry["dtype"] not in DTYPES:
        raise ValueError(
            f"{name} in {path} has dtype {entry['dtype']}, which is none of {', '.join(DTYPES)}"
        )
    dtype = np.dtype(DTYPES[entry["dtype"]])
    num_bytes = math.prod(entry["shape"]) * dtype.itemsize
    first, last = entry["data_offsets"]
    # The header may be whole and the data not: interrupted downloads look like that.
    if not 0 <= first <= last <= len(data) or last - first != num_bytes:
        raise ValueError(
            f"{name} lies at bytes {first} to {last} of the {len(data)} in {path}: "
            f"it is cut off; fetch it again"
        )
    return data[first:last].view(dtype).reshape(entry["shape"])


def read_folder(folder: str | os.PathLike) -> dict[str, np.ndarray]:
    """model.safetensors, or the shards that an index names, or all files model*.safetensors.

    Raises: ValueError as `read`, and where index and shards do not fit each other.
    """
    folder = pathlib.Path(folder)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return _read_shards(index)
    whole = folder / "model.safetensors"
    if whole.is_file():
        return read(whole)
    tensors = {}
    for path in sorted(folder.glob("model*.safetensors")):
        tensors |= read(path)
    return tensors


def _read_shards(index: pathlib.Path) -> dict[str, np.ndarray]:
    folder = index.parent
    shard_of = json.loads(index.read_text())["weight_map"]  # name of a tensor -> file
    files = sorted(set(shard_of.values()))
    absent = [file for file in files if not (folder / file).is_file()]
    if absent:
        raise ValueError(f"{index} names {', '.join(absent)}, which {folder} lacks; fetch them too")
    shards = {file: read(folder / file) for file in files}
    lost = sorted(name for name, file in shard_of.items() if name not in shards[file])
    if lost:
        raise ValueError(
            f"{index} places {', '.join(lost)} in a shard that lacks it; "
            f"fetch index and shards again"
        )
    return {name: shards[file][name] for name, file in shard_of.items()}


def write(
    path: str | os.PathLike,
    layout: Mapping[str, tuple[tuple[int, ...], Any]],
    arrays: Iterable[np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    """Write as arrays come; the file appears when it is complete.

    layout: name -> (shape, dtype), in the order of `arrays`.
    """
    header = _header(layout, metadata)
    with atomic.writing(path) as temporary, temporary.open("wb") as file:
        file.write(LENGTH.pack(len(header)) + header)
        for (name, (shape, dtype)), array in zip(layout.items(), arrays, strict=True):
            found = (array.shape, array.dtype)
            assert found == (tuple(shape), dtype), (name, found)
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _header(layout: Mapping[str, tuple], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {}
    if metadata:
        header["__metadata__"] = dict(metadata)
    offset = 0
    for name, (shape, dtype) in layout.items():
        dtype = np.dtype(dtype)
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    return text + b" " * (-len(text) % ALIGNMENT)
