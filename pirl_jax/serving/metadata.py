"""What a server says of itself, as JSON: for results that are written and compared.

Refuses to know what it means; it may be anything that msgpack carries, and is kept short.
"""

import math
from typing import Any

import numpy as np

MAX_ITEMS = 1000  # of all lists, maps and arrays together; what is more is named as missing
MAX_TEXT_LENGTH = 1000  # characters


def as_json(value: Any) -> Any:
    """The value out of dicts, lists, text and numbers that JSON has; arrays as lists."""
    return _Writer().write(value)


class _Writer:
    """Counts what it has written."""

    def __init__(self) -> None:
        self._left = MAX_ITEMS

    def write(self, value: Any) -> Any:
        """One value, and what it consists of."""
        self._left -= 1
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, (bool, int)):
            return _integer(value)
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        if isinstance(value, str):
            return _short(value)
        if isinstance(value, np.ndarray):
            if value.size > self._left:
                return f"array of {value.dtype}, shape {list(value.shape)}"
            return self.write(value.tolist())
        if isinstance(value, dict):
            return self._map(value)
        if isinstance(value, (list, tuple)):
            return self._list(value)
        if isinstance(value, bytes):
            return f"{len(value)} bytes"
        return type(value).__name__

    def _map(self, fields: dict) -> dict:
        written = {}
        for key, value in fields.items():
            if self._left <= 0:
                written["..."] = f"{len(fields) - len(written)} more"
                break
            written[_short(str(key))] = self.write(value)
        return written

    def _list(self, items: list | tuple) -> list:
        written = []
        for item in items:
            if self._left <= 0:
                written.append(f"... {len(items) - len(written)} more")
                break
            written.append(self.write(item))
        return written


def _integer(value: int | None) -> int | str | None:
    """Python reads no longer ones back."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"integer of {value.bit_length()} bits"
    return value


def _short(text: str) -> str:
    if len(text) > MAX_TEXT_LENGTH:
        text = text[:MAX_TEXT_LENGTH] + f"... {len(text) - MAX_TEXT_LENGTH} more"
    return text.encode(errors="replace").decode()
