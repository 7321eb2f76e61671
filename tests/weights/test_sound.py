import ml_dtypes
import numpy as np
import pytest

from pirl_jax.weights import sound

FLOATS = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(), (3,), (700, 800), (0, 5)])
def test_finite_numbers_of_any_size_pass(dtype, shape):
    largest = float(ml_dtypes.finfo(dtype).max)
    for value in (0.0, -0.0, 1.0, largest, -largest, float(ml_dtypes.finfo(dtype).tiny)):
        sound.require_finite(np.full(shape, value, dtype), "w", "a.pt")
    sound.require_finite(np.full(shape, -1, np.int64), "w", "a.pt")
    sound.require_finite(np.ones(shape, bool), "w", "a.pt")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_one_that_is_not_finite_is_found_wherever_it_lies(dtype, value):
    for place in (0, sound.BLOCK - 1, sound.BLOCK, 2 * sound.BLOCK + 6):
        x = np.ones(2 * sound.BLOCK + 7, dtype)
        x[place] = value
        with pytest.raises(ValueError, match=r"^w in a.pt holds NaN or infinity"):
            sound.require_finite(x, "w", "a.pt")
    turned = np.ones((30, 20), dtype).T
    turned[7, 3] = value
    with pytest.raises(ValueError, match="holds NaN"):
        sound.require_finite(turned, "w", "a.pt")


@pytest.mark.parametrize("x", [np.array(2), np.array([[0, 1, 255]]), np.zeros((9, 9)) + 7])
def test_truth_values_are_0_or_1(x):
    with pytest.raises(ValueError, match=r"^w in a.pt holds (2|255|7) where true"):
        sound.require_truths(x.astype(np.uint8).view(bool), "w", "a.pt")
    sound.require_truths(x > 3, "w", "a.pt")
    sound.require_truths(np.zeros((0, 3), bool), "w", "a.pt")


def test_shapes():
    for honest in ([], [3, 0], (2, 3), [1] * 16, [1 << 40]):
        assert sound.shape(honest, 4, "w", "a.pt") == tuple(honest)
    for wrong in (None, "3", 3, [-1], [True], [1.0], ["3"], [1] * 17, [1 << 48], [0, 1 << 48]):
        with pytest.raises(ValueError, match=r"^w in a.pt has no shape that can be; "):
            sound.shape(wrong, 4, "w", "a.pt")


def test_the_common_type_of_layers_holds_them_all():
    half = np.dtype(ml_dtypes.bfloat16)
    for dtypes, common in (
        ([half], half),
        ([half, "f4", half], "f4"),
        (["f2", "f4"], "f4"),
        (["f2", half], "f4"),
        ([half, "f8", "f2"], "f8"),
    ):
        found = sound.common_type([np.dtype(dtype) for dtype in dtypes])
        assert found == np.dtype(common)
