"""The safetensors file format: read through a memory map, written as a stream.  Knows files and arrays, no model.

A file: the length of its header (8 bytes, little endian), the header (JSON: name -> dtype, shape, data_offsets), the
data.  Written here because the package of that name wants all tensors in memory at once to write a file, and because
reading takes thirty lines.
"""

from collections.abc import Iterable, Mapping
import json
import math
import os
import pathlib
import struct

import ml_dtypes
import numpy as np

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


def read(path) -> dict[str, np.ndarray]:
    """One file -> read-only views of its tensors; data comes from disk when it is touched."""
    path = pathlib.Path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        start = 8 + (struct.unpack("<Q", file.read(8))[0] if size >= 8 else size)
        if start > size:
            raise ValueError(
                f"{path} is cut off or no safetensors file ({size} bytes); fetch it again"
            )
        header = json.loads(file.read(start - 8))
    header.pop("__metadata__", None)
    data = (
        np.memmap(path, np.uint8, mode="r", offset=start) if size > start else np.zeros(0, np.uint8)
    )
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise ValueError(
                f"{name} in {path} has dtype {entry['dtype']}, which is none of {', '.join(DTYPES)}"
            )
        dtype, (first, last) = np.dtype(DTYPES[entry["dtype"]]), entry["data_offsets"]
        if (
            not 0 <= first <= last <= len(data)
            or last - first != math.prod(entry["shape"]) * dtype.itemsize
        ):
            raise ValueError(
                f"{name} lies at bytes {first} to {last} of the {len(data)} in {path}: it is cut off; fetch it again"
            )
        tensors[name] = data[first:last].view(dtype).reshape(entry["shape"])
    return tensors


def read_folder(folder) -> dict[str, np.ndarray]:
    """model.safetensors, or the shards that an index names, or all safetensors files of a folder."""
    folder = pathlib.Path(folder)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = json.loads(index.read_text())["weight_map"]
        absent = sorted({name for name in weight_map.values() if not (folder / name).is_file()})
        if absent:
            raise ValueError(
                f"{index} names {', '.join(absent)}, which {folder} lacks; fetch them too"
            )
        shards = {name: read(folder / name) for name in sorted(set(weight_map.values()))}
        lost = sorted(name for name, shard in weight_map.items() if name not in shards[shard])
        if lost:
            raise ValueError(
                f"{index} places {', '.join(lost)} in a shard that lacks it; fetch index and shards again"
            )
        return {name: shards[shard][name] for name, shard in weight_map.items()}
    one = folder / "model.safetensors"
    tensors = {}
    for path in [one] if one.is_file() else sorted(folder.glob("model*.safetensors")):
        tensors |= read(path)
    return tensors


def write(path, layout: Mapping, arrays: Iterable[np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write as arrays come.  layout: name -> (shape, dtype), in the order of `arrays`; visible only when complete."""
    header, offset = {"__metadata__": dict(metadata)} if metadata else {}, 0
    for name, (shape, dtype) in layout.items():
        end = offset + math.prod(shape) * np.dtype(dtype).itemsize
        header[name] = {
            "dtype": NAMES[np.dtype(dtype)],
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # readers want the data aligned
    path = pathlib.Path(path)
    unfinished = path.with_name(path.name + ".unfinished")
    with unfinished.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for (name, (shape, dtype)), array in zip(layout.items(), arrays, strict=True):
            assert array.shape == tuple(shape) and array.dtype == dtype, (
                name,
                array.shape,
                array.dtype,
            )
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    os.replace(unfinished, path)
