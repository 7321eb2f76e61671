"""Every field of the page, by the bounds that the page itself declares."""

import dataclasses
import math
import typing

import numpy as np
import pytest

from pirl_jax.core import bounds, page

TOP = [field for field in dataclasses.fields(page.Page) if "bound" in field.metadata]
FIELDS = [("", field) for field in TOP]
for section, declared in page.SECTIONS.items():
    FIELDS += [(section, field) for field in dataclasses.fields(declared)]
NAMES = [f"{section}.{field.name}".strip(".") for section, field in FIELDS]
OF_ANOTHER_KIND = {
    bool: (1, 0.0, "True", None),
    int: (1.0, "1", True, None),
    float: ("1", True, None, 1j),
    str: (1, None, True),
}


def is_tuple(field):
    return typing.get_origin(field.type) is tuple


def outside(kind, bound):
    """Values of the right kind that the bound refuses, just outside of it where it has an end."""
    if kind is str:
        return ["", " "] if bound.filled else ["nonsense"] if bound.choices else []
    if kind is bool:
        return []
    if kind is int:
        least = bound.low if bound.open_low else bound.low - 1
        most = bounds.MOST + 1 if math.isinf(bound.high) else bound.high + 1
        return [least, most]
    wrong = [math.nan, math.inf, -math.inf, 10 * bounds.MOST_FLOAT]
    if bound.low > -math.inf:
        wrong.append(float(bound.low) if bound.open_low else math.nextafter(bound.low, -math.inf))
    if bound.high < math.inf:
        wrong.append(float(bound.high) if bound.open_high else math.nextafter(bound.high, math.inf))
    return wrong


def _next_float32(value, towards):
    """The device's neighbour: a number that rounds to an open bound there is refused."""
    return float(np.nextafter(np.float32(value), np.float32(towards)))


def ends(kind, bound):
    """The outermost values that the bound allows."""
    if kind is int:
        low = bound.low + 1 if bound.open_low else bound.low
        return [low, min(bound.high, bounds.MOST), *bound.besides]
    low = _next_float32(bound.low, math.inf) if bound.open_low else float(bound.low)
    high = _next_float32(bound.high, -math.inf) if bound.open_high else float(bound.high)
    return [value for value in (low, high) if math.isfinite(value)] + list(bound.besides)


def make(section, field, value):
    """The section, or the page, with one other value."""
    return (page.SECTIONS[section] if section else page.Page)(**{field.name: value})


def refusal(section, field, value):
    with pytest.raises(ValueError) as error:
        make(section, field, value)
    said = str(error.value)
    name = f"{section}.{field.name}".strip(".")
    assert said.startswith(f"{name}={value!r} ") and "\n" not in said
    return said


def says_the_bound(said, kind, bound):
    if bound.choices:
        return "does not exist; choose one of: " in said
    return any(text in said for text in (bound.text() or "finite", f"at most {bounds.MOST}"))


@pytest.mark.parametrize("section, field", FIELDS, ids=NAMES)
def test_a_value_just_outside_of_its_bound_is_refused(section, field):
    bound = field.metadata["bound"]
    if is_tuple(field):
        kind = bounds.element_kind(field.type)
        inside = list(field.default) or [bound.low, bound.low + 1]
        for place in range(len(inside)):
            for wrong in outside(kind, bound):
                value = (*inside[:place], wrong, *inside[place + 1 :])
                assert says_the_bound(refusal(section, field, value), kind, bound)
        return
    for wrong in outside(field.type, bound):
        assert says_the_bound(refusal(section, field, wrong), field.type, bound)


@pytest.mark.parametrize("section, field", FIELDS, ids=NAMES)
def test_a_value_of_another_kind_is_refused(section, field):
    bound = field.metadata["bound"]
    if is_tuple(field):
        kind = bounds.element_kind(field.type)
        inside = list(field.default) or [bound.low]
        for wrong in OF_ANOTHER_KIND[kind]:
            refusal(section, field, (wrong, *inside[1:]))
        for wrong in (inside, inside[0], "1,2", None):
            refusal(section, field, wrong)
        if bound.length:
            refusal(section, field, tuple(inside[1:]))
            refusal(section, field, (*inside, inside[0]))
        return
    for wrong in OF_ANOTHER_KIND[field.type]:
        said = refusal(section, field, wrong)
        assert bound.choices or bounds.in_words(field.type, bound) in said


@pytest.mark.parametrize("section, field", FIELDS, ids=NAMES)
def test_what_lies_inside_of_its_bound_passes(section, field):
    bound = field.metadata["bound"]
    kind = bounds.element_kind(field.type) if is_tuple(field) else field.type
    good = ends(kind, bound) if kind in (int, float) else list(bound.choices)
    for value in good:
        if is_tuple(field):
            value = (value, *field.default[1:])
        assert getattr(make(section, field, value), field.name) == value
    if kind is float and bound.holds(1):
        make(section, field, (1,) * (bound.length or 1) if is_tuple(field) else 1)


def test_every_number_has_a_bound_or_may_be_any():
    """rewards_*_bound compare with returns, which a suite may choose freely."""
    free = [
        name
        for name, (_, field) in zip(NAMES, FIELDS, strict=True)
        if field.type in (int, float) and not field.metadata["bound"].text()
    ]
    assert free == ["algorithm.rewards_lower_bound", "algorithm.rewards_upper_bound"]


def test_every_field_says_what_it_means():
    for name, (_, field) in zip(NAMES, FIELDS, strict=True):
        text = field.metadata["meaning"] + field.metadata["unit"]
        assert field.metadata["meaning"] and not set("|\n") & set(text), name


def test_no_element_twice():
    said = "env.tasks=(2, 0, 2) must hold task indices, none of them twice"
    with pytest.raises(ValueError, match=said.replace("(", r"\(").replace(")", r"\)")):
        page.Env(tasks=(2, 0, 2))
    page.Env(render_devices=(0, 0))  # two workers may share a device


def test_a_page_is_checked_as_a_whole_and_is_a_key_of_dictionaries():
    whole = page.from_dict(page.Page().as_dict())
    assert page.from_dict(whole.as_dict()) == whole and {whole: 1}[whole] == 1
    fields = page.Page().as_dict()
    fields["optim"]["lr"] = -0.001
    with pytest.raises(ValueError, match=r"^optim.lr=-0.001 must be at least 0 and at most 10$"):
        page.from_dict(fields)
    with pytest.raises(dataclasses.FrozenInstanceError):
        page.Page().seed = 1
    with pytest.raises(ValueError, match="gamma"):
        dataclasses.replace(page.Algorithm(), gamma=1.5)


@pytest.mark.parametrize(
    "field, value", [("eps", 1e-46), ("b1", 0.99999999999), ("b2", 1 - 1e-12), ("clip_grad", 1e-50)]
)
def test_what_float32_rounds_onto_an_open_bound_is_refused(field, value):
    with pytest.raises(ValueError, match=f"^optim.{field}={value!r} must be"):
        page.Optim(**{field: value})
