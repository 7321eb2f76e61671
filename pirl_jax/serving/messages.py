"""msgpack from outside -> Python values and arrays, or one sentence.

Counts what it builds while it builds it: a frame of empty maps would become a hundred times its
size.  Refuses to know what a message means; says nothing of it but sizes, shapes and key names.
"""

from typing import Any

import msgpack

from pirl_jax.envs import arrays

# An observation is a map of some five arrays.  What a list or a map claims to hold is allocated
# before it comes, once per level that is open.
MAX_LENGTH = 4096
MAX_ITEMS = 20_000  # of all lists and maps together
MAX_DEPTH = 16

ARRAY = {b"__ndarray__", b"data", b"dtype", b"shape"}
SCALAR = {b"__npgeneric__", b"data", b"dtype"}
REMEDY = "send what openpi_client.msgpack_numpy.packb makes, as a binary frame"
MAX_NAMES = 8  # in a sentence
MAX_NAME_LENGTH = 40  # characters


class _Refused(ValueError):
    """A sentence of ours, as against those of the library, which may hold what was sent."""


class _Builder:
    """Is told of every list and map as soon as it is complete."""

    def __init__(self) -> None:
        self._num_items = 0

    def add_list(self, items: list) -> list:
        self._count(items)
        return items

    def add_map(self, pairs: list[tuple]) -> Any:
        self._count(pairs)
        fields = dict(pairs)
        if len(fields) < len(pairs):
            raise _Refused("a map has the same key twice")
        try:
            if b"__ndarray__" in fields:
                return _array(fields)
            if b"__npgeneric__" in fields:
                return _scalar(fields)
        except ValueError as error:
            raise _Refused(str(error)) from error
        return fields

    def _count(self, items: list) -> None:
        self._num_items += 1 + len(items)
        if self._num_items > MAX_ITEMS:
            raise _Refused(f"it has more than {MAX_ITEMS} items")


def unpack(frame: str | bytes, any_key: bool = False) -> Any:
    """The value of a frame; arrays are read-only views of it.

    any_key: keys of maps may be other than text and bytes.

    Raises:
        ValueError: it is none, or more than any message needs.
    """
    if isinstance(frame, str):
        raise ValueError(f"a text frame of {len(frame)} characters cannot be unpacked; {REMEDY}")
    builder = _Builder()
    try:
        value = msgpack.unpackb(
            frame,
            list_hook=builder.add_list,
            object_pairs_hook=builder.add_map,
            strict_map_key=not any_key,
            max_array_len=MAX_LENGTH,
            max_map_len=MAX_LENGTH,
        )
        _check_depth(value, MAX_DEPTH)
    except _Refused as error:
        reason = str(error)
    except Exception:  # the library's half a dozen kinds, whose words may be the sender's
        reason = (
            f"it is no complete msgpack with lists of up to {MAX_LENGTH} items and maps of as many "
            "that have text for keys"
        )
    else:
        return value
    raise ValueError(f"a message of {len(frame)} bytes cannot be unpacked: {reason}; {REMEDY}")


def names(keys: Any) -> str:
    """Key names for a sentence: few of them, and short."""
    shown = [str(key)[:MAX_NAME_LENGTH] for key, _ in zip(keys, range(MAX_NAMES), strict=False)]
    printable = [name if name.isprintable() else ascii(name) for name in shown]
    more = len(keys) - len(shown)
    return ", ".join(printable) + (f" and {more} more" if more > 0 else "")


def _array(fields: dict) -> Any:
    if set(fields) != ARRAY or fields[b"__ndarray__"] is not True:
        raise ValueError("an array has other fields than data, dtype and shape")
    return arrays.decode(fields[b"dtype"], fields[b"shape"], fields[b"data"], text=True)


def _scalar(fields: dict) -> Any:
    if set(fields) != SCALAR or fields[b"__npgeneric__"] is not True:
        raise ValueError("a number of numpy's has other fields than data and dtype")
    return arrays.scalar(fields[b"dtype"], fields[b"data"])


def _check_depth(value: Any, left: int) -> None:
    if not isinstance(value, (list, dict)):
        return
    if not left:
        raise _Refused(f"it is nested deeper than {MAX_DEPTH} levels")
    for item in value.values() if isinstance(value, dict) else value:
        _check_depth(item, left - 1)
