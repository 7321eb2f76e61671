import pytest

from pirl_jax.weights import accounting


def test_every_kind_of_misfit_is_a_line():
    expected = {"same": 1, "absent": 2, "other": 3}
    found = {"same": 1, "more": 2, "other": 4}
    assert accounting.misfits(expected, found) == [
        "absent is missing",
        "more is left over",
        "other is 4 and should be 3",
    ]
    assert accounting.misfits(expected, dict(expected)) == []


def test_shapes_that_do_not_fit_stand_in_one_error():
    expected = {"a": (2, 3), "b": (1,), "c": ()}
    accounting.require_shapes(expected, {"a": [2, 3], "b": (1,), "c": ()}, "here")
    with pytest.raises(ValueError) as caught:
        accounting.require_shapes(expected, {"a": (3, 2), "c": ()}, "here", "there")
    assert str(caught.value) == (
        "here does not fit there (2 of 3 arrays): b is missing; a is [3, 2] and should be [2, 3]"
    )
