"""What a tensor out of a file must be: its axes, its truth values, its numbers.

Knows no format; `where` is the file, for the error.
"""

from collections.abc import Iterable
import math
from typing import Any

import ml_dtypes
import numpy as np

from pirl_jax.core import outside

MOST_AXES = 16
MOST_BYTES = 1 << 48  # no machine has more, and no sum of them overflows
BLOCK = 1 << 18  # elements looked at together, which then still lie in a cache


def shape(value: Any, itemsize: int, name: str, where: Any) -> tuple[int, ...]:
    """Sizes as a file has them -> the shape.

    itemsize: bytes of an element.
    Raises: ValueError where is_shape says no.
    """
    if not is_shape(value, itemsize):
        raise ValueError(
            f"{outside.shown(name)} in {where} has no shape that can be; {outside.AGAIN}"
        )
    return tuple(value)


def is_shape(value: Any, itemsize: int) -> bool:
    """Whether it is a list or tuple of few whole numbers, for no more bytes than there can be."""
    if not isinstance(value, list | tuple) or len(value) > MOST_AXES:
        return False
    # By type, since bool is a whole number to Python.
    if any(type(size) is not int or size < 0 for size in value):
        return False
    # An empty tensor's other axes count too: numpy refuses them with another error.
    return math.prod(max(size, 1) for size in value) * itemsize <= MOST_BYTES


def require_truths(x: np.ndarray, name: str, where: Any) -> None:
    """x: bool, over bytes of a file, of which numpy believes anything.

    Raises: ValueError for a byte that is neither 0 nor 1.
    """
    largest = x.view(np.uint8).max(initial=0)
    if largest > 1:
        raise ValueError(
            f"{outside.shown(name)} in {where} holds {largest} where true (1) or false (0) is "
            f"meant; {outside.AGAIN}"
        )


def require_real(dtype: np.dtype, name: str, where: Any) -> None:
    """Raises: ValueError for a type that weights cannot have."""
    # Of float64, float32, float16 and bfloat16 alone, whose kind numpy does not know.
    if dtype.kind != "f" and dtype != ml_dtypes.bfloat16:
        raise ValueError(
            f"{outside.shown(name)} in {where} is of type {dtype.name}, which weights cannot be; "
            f"give another checkpoint"
        )


def common_type(dtypes: Iterable[np.dtype]) -> np.dtype:
    """The smallest floating type that holds the numbers of all of these."""
    found = set(dtypes)
    halves = {np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)}
    if halves <= found:
        # Of these two numpy knows none.
        found.add(np.dtype(np.float32))
        found -= halves
    return np.result_type(*found)


def require_finite(x: np.ndarray, name: str, where: Any) -> None:
    """x: of any dtype.  12 GB/s, so that reading from a disk hides it; no second copy.

    Raises: ValueError for NaN and infinity.
    """
    if x.dtype.kind in "biu":
        return
    # Their exponent is all ones, as that of infinity is; ml_dtypes' isfinite takes 6 times as long.
    integers = f"u{x.dtype.itemsize}"
    exponent = np.array(np.inf, x.dtype).view(integers)
    codes = np.ascontiguousarray(x).reshape(-1).view(integers)
    for start in range(0, len(codes), BLOCK):
        if (codes[start : start + BLOCK] & exponent).max() == exponent:
            raise ValueError(
                f"{outside.shown(name)} in {where} holds NaN or infinity, with which no policy "
                f"acts; give another checkpoint"
            )
