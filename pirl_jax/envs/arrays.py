"""Arrays from outside, of a message or a file: what they say of themselves is checked first.

numpy's constructors believe a dtype and a shape: some dtypes hold addresses, and memory that is
not there gets read.  Here a dtype is one of a list, and there are as many bytes as the shape needs.
Refuses to know what carries the parts; says nothing of an array but its shape.
"""

import itertools
import math
import re
from typing import Any

import numpy as np

CODES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
NAMES = [np.dtype(code).name for code in CODES]
ALLOWED = frozenset([*CODES, *NAMES, *("".join(pair) for pair in itertools.product("<>=|", CODES))])
TEXT = re.compile(r"[<>=|]?U([1-9][0-9]{0,3})", re.ASCII)  # of a fixed width
MAX_AXES = 8
MAX_AXIS = 2**31 - 1
MAX_SHAPE_TEXT = 80  # characters


def dtype_of(name: Any, text: bool = False) -> np.dtype:
    """The dtype that is called so: truth values, integers and floats of up to 8 bytes.

    text: strings of a fixed width too.

    Raises:
        ValueError: there is no such dtype, or it is none of these.
    """
    is_allowed = type(name) is str and name in ALLOWED
    is_text = type(name) is str and text and TEXT.fullmatch(name) is not None
    if not (is_allowed or is_text):
        kinds = "bool, integers and floats of 1 to 8 bytes" + (" and U of some width" * text)
        raise ValueError(f"an array has a dtype that is not accepted; there are {kinds}")
    return np.dtype(name)


def decode(dtype: Any, shape: Any, data: Any, text: bool = False) -> np.ndarray:
    """A read-only array over the bytes, whatever the three parts are.

    Raises:
        ValueError: they do not belong together.
    """
    dtype = dtype_of(dtype, text)
    is_shape = (
        isinstance(shape, (list, tuple))
        and len(shape) <= MAX_AXES
        and all(type(length) is int and 0 <= length <= MAX_AXIS for length in shape)
    )
    if not is_shape:
        raise ValueError(
            f"an array has a shape that is no list of at most {MAX_AXES} lengths from 0 on"
        )
    if type(data) is not bytes:
        raise ValueError(f"the data of an array of shape {list(shape)} is no string of bytes")
    needed = math.prod(shape) * dtype.itemsize
    if len(data) != needed:
        raise ValueError(
            f"an array of shape {list(shape)} and {dtype.itemsize} bytes per element has "
            f"{len(data)} bytes instead of {needed}"
        )
    # Empty: its other axes could be of any length, and numpy multiplies them.
    if not needed and math.prod(length or 1 for length in shape) > MAX_AXIS:
        raise ValueError(f"an array of shape {list(shape)} is empty and too large")
    array = np.frombuffer(data, dtype).reshape(shape)
    _check_bits(array)
    return array


def scalar(dtype: Any, value: Any) -> np.generic:
    """A number or a string of numpy's, from the Python value that it was.

    Raises:
        ValueError: the two do not belong together.
    """
    # numpy calls the dtype of an empty string U0.
    is_text = type(value) is str and type(dtype) is str and re.fullmatch(r"[<>=|]?U0", dtype)
    dtype = np.dtype("U") if is_text else dtype_of(dtype, text=True)
    wanted = {"b": (bool,), "i": (int,), "u": (int,), "f": (int, float), "U": (str,)}
    if type(value) not in wanted[dtype.kind]:
        raise ValueError(f"a number of numpy's has a value that is no {dtype.name}")
    try:
        return dtype.type(value)
    except OverflowError as error:
        raise ValueError(f"a number of numpy's is outside the range of {dtype.name}") from error


def check_finite(array: np.ndarray) -> None:
    """For what is computed with.

    Raises:
        ValueError: an element is NaN or infinite, or no number at all.
    """
    if array.dtype.kind not in "iuf":
        raise ValueError(f"an array of shape {list(array.shape)} holds no numbers")
    if not np.isfinite(array).all():
        raise ValueError(f"an array of shape {list(array.shape)} has values that are not finite")


def _check_bits(array: np.ndarray) -> None:
    """Patterns of bits that numpy never writes and reads at its own risk."""
    if array.dtype.kind == "b" and (array.view(np.uint8) > 1).any():
        raise ValueError(f"an array of shape {list(array.shape)} has truth values above 1")
    if array.dtype.kind != "U":
        return
    order = array.dtype.byteorder
    codes = np.frombuffer(array.tobytes(), np.dtype("u4").newbyteorder(order))
    surrogates = (codes >= 0xD800) & (codes <= 0xDFFF)
    if (codes > 0x10FFFF).any() or surrogates.any():
        raise ValueError(f"an array of shape {list(array.shape)} has text that is no Unicode")
