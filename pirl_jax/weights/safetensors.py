"""The safetensors file format: read through a memory map, written as a stream.  Knows no model.

A file: the length of its header (8 bytes, little endian), the header (JSON: name -> dtype, shape,
data_offsets), the data.  Written here because the package of that name wants all tensors in memory
at once to write a file, and because reading takes thirty lines.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import json
import math
import os
import pathlib
import struct
from typing import Any

import ml_dtypes
import numpy as np

from pirl_jax.core import atomic, outside
from pirl_jax.weights import sound

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
MOST_HEADER = 1 << 22  # bytes; pi0's has 110 kB
ALIGNMENT = 8  # bytes: readers map the data and want it aligned


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a tensor lies in the data."""

    dtype: np.dtype
    shape: tuple[int, ...]
    first: int  # byte
    last: int  # the byte behind it


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """One file -> read-only views of its tensors; data comes from disk when it is touched.

    Raises: ValueError for a file that is cut off, holds a dtype that is none of DTYPES, or whose
    header does not give every byte of the data to one tensor, as the format wants it.
    """
    path = pathlib.Path(path)
    outside.require_file(path)
    header, data = _header_and_data(path)
    header.pop("__metadata__", None)
    places = {name: _place(path, name, entry, len(data)) for name, entry in header.items()}
    _require_gapless(path, places, len(data))
    return {name: _tensor(path, name, place, data) for name, place in places.items()}


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
        if length > MOST_HEADER:
            raise ValueError(
                f"the header of {path} has {length:,} bytes, so it is another file; fetch it again"
            )
        where = f"the header of {path}"
        header = outside.parse_json(file.read(length), where)
    header = outside.part(header, "", dict, where)
    if start == size:
        return header, np.zeros(0, np.uint8)  # nothing cannot be mapped
    data = np.memmap(path, np.uint8, mode="r", offset=start)
    return header, data.view(np.ndarray)  # whose parts are cheaper than those of a memmap


def _place(path: pathlib.Path, name: str, entry: Any, size: int) -> Place:
    """What the header says of a tensor, if that can be.  size: of the data, in bytes."""
    where = f"{outside.shown(name)} in {path}"
    dtype_name = outside.part(entry, "dtype", str, where)
    if dtype_name not in DTYPES:
        raise ValueError(
            f"{where} has dtype {outside.shown(dtype_name)}, which is none of {', '.join(DTYPES)}"
        )
    dtype = np.dtype(DTYPES[dtype_name])
    shape = sound.shape(outside.part(entry, "shape", list, where), dtype.itemsize, name, path)
    offsets = outside.part(entry, "data_offsets", list, where)
    if len(offsets) != 2 or not all(outside.fits(offset, int) for offset in offsets):
        raise ValueError(
            f"{where} lies at bytes {outside.shown(offsets)}, where first and last are meant; "
            f"fetch it again"
        )
    first, last = offsets
    # The header may be whole and the data not: interrupted downloads look like that.
    if not 0 <= first <= last <= size or last - first != math.prod(shape) * dtype.itemsize:
        raise ValueError(
            f"{where} lies at bytes {first} to {last} of the {size} there: it is cut off; "
            f"fetch it again"
        )
    return Place(dtype, shape, first, last)


def _require_gapless(path: pathlib.Path, places: Mapping[str, Place], size: int) -> None:
    """Every byte belongs to exactly one tensor, else a small file could fill a memory."""
    end = 0
    for name, place in sorted(places.items(), key=lambda item: (item[1].first, item[1].last)):
        if place.first != end:
            what = "shares bytes with another tensor" if place.first < end else "leaves a hole"
            raise ValueError(
                f"{outside.shown(name)} in {path} {what} (from byte {place.first}; the tensors "
                f"before it end at {end}); write the file again with the safetensors package"
            )
        end = place.last
    if end != size:
        raise ValueError(
            f"{path} has {size - end} bytes behind its last tensor; write it again with the "
            f"safetensors package"
        )


def _tensor(path: pathlib.Path, name: str, place: Place, data: np.ndarray) -> np.ndarray:
    flat = data[place.first : place.last].view(place.dtype)
    if place.dtype == np.bool_:
        sound.require_truths(flat, name, path)
    return flat.reshape(place.shape)


def read_folder(folder: str | os.PathLike) -> dict[str, np.ndarray]:
    """model.safetensors, or the shards that an index names, or all files model*.safetensors.

    Raises: ValueError as `read`, and where index and shards do not fit each other.
    """
    folder = pathlib.Path(folder)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return read_shards(index)
    whole = folder / "model.safetensors"
    if whole.is_file():
        return read(whole)
    return _join({path.name: read(path) for path in sorted(folder.glob("model*.safetensors"))})


def _join(shards: Mapping[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """File -> its tensors; all of them as one.

    Raises: ValueError for a name in two files, of which only a person knows which one is meant.
    """
    joined: dict[str, np.ndarray] = {}
    file_of: dict[str, str] = {}
    for file, members in shards.items():
        for name in members:
            if name in file_of:
                raise ValueError(
                    f"{outside.shown(name)} lies in {file_of[name]} and in {file}; "
                    f"keep one of these files"
                )
            file_of[name] = file
        joined |= members
    return joined


def read_shards(index: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors that an index names.

    Raises: ValueError as read_folder.
    """
    folder = index.parent
    # Name of a tensor -> file.
    shard_of = outside.part(outside.read_json(index), "weight_map", dict, index)
    for file in shard_of.values():
        _require_plain(index, file)
    files = sorted(set(shard_of.values()))
    absent = [file for file in files if not (folder / file).is_file()]
    if absent:
        raise ValueError(
            f"{index} names {outside.listed(absent)}, which {folder} lacks; fetch them too"
        )
    shards = {file: read(folder / file) for file in files}
    lost = sorted(name for name, file in shard_of.items() if name not in shards[file])
    if lost:
        raise ValueError(
            f"{index} places {outside.listed(lost)} in a shard that lacks it; "
            f"fetch index and shards again"
        )
    return {name: shards[file][name] for name, file in shard_of.items()}


def _require_plain(index: pathlib.Path, file: Any) -> None:
    """A shard lies beside its index: "../../other.safetensors" is a path to anywhere."""
    plain = isinstance(file, str) and file.endswith(".safetensors") and file.isprintable()
    if not plain or "/" in file or "\\" in file:
        raise ValueError(
            f"{index} names the shard {outside.shown(file)}, which is no file beside it; "
            f"fetch the index again"
        )


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
