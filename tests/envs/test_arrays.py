"""Parts of arrays: what numpy writes comes back bit for bit, whatever else is a ValueError."""

import numpy as np
import pytest

from pirl_jax.envs import arrays

NUMBERS = [
    order + code
    for order in "<>"
    for code in ("i2", "i4", "i8", "u2", "u4", "u8", "f2", "f4", "f8")
]


@pytest.mark.parametrize("dtype", ["|b1", "|i1", "|u1", "bool", "uint8", "float32", *NUMBERS])
@pytest.mark.parametrize("shape", [(), (0, 3), (3,), (2, 3, 4)])
def test_what_numpy_writes_comes_back(dtype, shape):
    draw = np.random.default_rng(0).integers(0, 2, shape)
    array = np.asarray(draw, np.dtype(dtype))
    back = arrays.decode(dtype, list(shape), array.tobytes())
    assert back.dtype == array.dtype and back.shape == shape and not back.flags.writeable
    assert back.tobytes() == array.tobytes()


def test_text_only_where_it_is_meant():
    array = np.array(["schön", "", "\U0010ffff"])
    back = arrays.decode(array.dtype.str, [3], array.tobytes(), text=True)
    assert back.tolist() == array.tolist()
    with pytest.raises(ValueError, match="dtype that is not accepted"):
        arrays.decode(array.dtype.str, [3], array.tobytes())


NONE = "dtype that is not accepted"
WRONG = {
    "StringDType": (("T", [1], b"\x01" * 16), NONE),
    "objects": (("O", [1], b"\x01" * 8), NONE),
    "objects by name": (("object", [1], b"\x01" * 8), NONE),
    "a record": (("O,i8", [], b"\x01" * 16), NONE),
    "void": (("V8", [1], b"\x01" * 8), NONE),
    "complex": (("<c8", [1], b"\x01" * 8), NONE),
    "dates": (("<M8[s]", [1], b"\x01" * 8), NONE),
    "long double": (("<f16", [1], b"\x01" * 16), NONE),
    "bytes": (("S1", [1], b"\x01"), NONE),
    "no width": (("U", [-1], b""), NONE),
    "no width either": (("<U0", [-1], b""), NONE),
    "bytes without width": (("S", [-1], b""), NONE),
    "a huge width": (("<U99999", [0], b""), NONE),
    "another digit": (("<U\u0663", [1], b"\x01" * 12), NONE),
    "a class": ((np.float32, [1], b"\x01" * 4), NONE),
    "a list": ((["<f4"], [1], b"\x01" * 4), NONE),
    "spaces": ((" <f4", [1], b"\x01" * 4), NONE),
    "a new line": (("<f4\n", [1], b"\x01" * 4), NONE),
    "no dtype": ((None, [1], b"\x01" * 8), NONE),
    "no data": (("<f8", [20000, 20000, 3], None), "is no string of bytes"),
    "text for data": (("|u1", [1], "x"), "is no string of bytes"),
    "a writable buffer": (("|u1", [1], bytearray(1)), "is no string of bytes"),
    "too few": (("<f8", [9], b"12"), r"shape \[9\] and 8 bytes per element has 2 bytes instead"),
    "too many": (("<f8", [1], b"\x01" * 9), "9 bytes instead of 8"),
    "negative": (("<f8", [-1], b"\x01" * 8), "shape that is no list"),
    "twice negative": (("<f8", [-1, -1], b"\x01" * 8), "shape that is no list"),
    "true": (("<f8", [True], b"\x01" * 8), "shape that is no list"),
    "floats": (("<f8", [1.0], b"\x01" * 8), "shape that is no list"),
    "a number": (("<f8", 1, b"\x01" * 8), "shape that is no list"),
    "no shape": (("<f8", None, b"\x01" * 8), "shape that is no list"),
    "many axes": (("<f8", [1] * 33, b"\x01" * 8), "shape that is no list"),
    "overflow": (("|u1", [2**31 - 1] * 3, b""), "instead of"),
    "overflow to nothing": (("|u1", [2**62, 4], b""), "shape that is no list"),
    "large and empty": (("|u1", [2**31 - 1, 2**31 - 1, 0], b""), "empty and too large"),
    "neither true nor false": (("|b1", [2], b"\x01\x07"), "truth values above 1"),
    "no Unicode": (("<U1", [1], b"\xff" * 4), "no Unicode"),
    "half of a pair": (("<U1", [1], b"\x00\xd8\x00\x00"), "no Unicode"),
    "no Unicode, swapped": ((">U1", [1], b"\x00\x11\x00\x00"), "no Unicode"),
}


@pytest.mark.parametrize("name", WRONG)
def test_whatever_else_is_a_sentence(name):
    parts, sentence = WRONG[name]
    with pytest.raises(ValueError, match=sentence):
        arrays.decode(*parts, text=True)


def test_numbers_of_numpys():
    for value in (np.float32(2.5), np.int16(-3), np.bool_(True), np.str_("ab"), np.str_("")):
        back = arrays.scalar(value.dtype.str, value.item())
        assert back == value and type(back) is type(value)
    for dtype, value in (
        ("|u1", 300),
        ("|u1", -1),
        ("|u1", 1.5),
        ("<f4", 10**400),
        ("<f4", "1"),
        ("<f4", None),
        ("|b1", 2),
        ("O", 1),
        ("T", "x"),
        ("V", 2**31 - 1),
        ("<U0", 2**31 - 1),
        ("S", b""),
    ):
        with pytest.raises(ValueError, match=r"^a(n array has a dtype| number of numpy's)"):
            arrays.scalar(dtype, value)


def test_what_is_computed_with_is_finite():
    arrays.check_finite(np.zeros(3))
    arrays.check_finite(np.arange(3))
    for array in (np.array([0, np.nan]), np.array([np.inf]), np.array([True]), np.array(["1"])):
        with pytest.raises(ValueError, match=r"not finite|holds no numbers"):
            arrays.check_finite(array)
