"""What a value may be: a bound per field, and the one sentence that refuses a value.

A field is declared with one of the helpers (`at_least(0, 0.5, "meaning", "unit")`), which keep
bound, meaning and unit in its metadata.  Knows no field.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import math
import os
import typing

import numpy as np

from pirl_jax.core import paths

MOST = 2**31 - 1  # whole numbers become int32 on the device
MOST_FLOAT = 3.4e38  # and numbers float32, which is infinite from here on
KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}


@dataclasses.dataclass(frozen=True)
class Bound:
    """What a value must be; of a tuple, what each of its elements must be."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False  # low itself is refused
    open_high: bool = False  # high itself is refused
    besides: tuple[float, ...] = ()  # outside of low and high, with a meaning of their own
    choices: tuple[str, ...] = ()
    several: bool = False  # a text may name several of them, with commas between
    folder: bool = False  # a text with a slash in it is a path instead
    filled: bool = False  # a text must not be empty
    place: bool = False  # a text is a path, or one of `names`
    names: tuple[str, ...] = ()
    length: int | None = None  # of a tuple; None: any
    distinct: bool = False  # no element of a tuple twice

    def text(self) -> str:
        """The bound in words; "" where there is none."""
        if self.choices:
            count = "some of" if self.several else "one of"
            path = ["a path with a slash"] * self.folder
            return f"{count}: " + ", ".join([*map(repr, self.choices), *path])
        if self.filled:
            return "not empty"
        if self.place:
            return ", or ".join(["a path", *self.names])
        words = []
        if self.low > -math.inf:
            words.append(f"{'above' if self.open_low else 'at least'} {self.low}")
        if self.high < math.inf:
            words.append(f"{'below' if self.open_high else 'at most'} {self.high}")
        others = [f"or {value}" for value in self.besides]
        return ", ".join([" and ".join(words), *others])

    def holds(self, value: float) -> bool:
        """Whether a number lies inside."""
        if value in self.besides:
            return True
        low_holds = value > self.low if self.open_low else value >= self.low
        high_holds = value < self.high if self.open_high else value <= self.high
        return low_holds and high_holds


def is_path(value: object, bound: Bound) -> bool:
    """Whether a text is one that names a place."""
    if not isinstance(value, str):
        return False
    return bound.place or (bound.folder and os.sep in value)


def unknown(field: str, value: object, choices: Iterable) -> ValueError:
    """One sentence for a wrong name: the value and the remedy."""
    known = ", ".join(map(str, choices))
    return ValueError(f"{field}={value!r} does not exist; choose one of: {known}")


# ---- declarations: bound, default, meaning, unit ---------------------------------------------


def _field(bound: Bound, default: object, meaning: str, unit: str) -> typing.Any:
    metadata = {"bound": bound, "meaning": meaning, "unit": unit}
    return dataclasses.field(default=default, metadata=metadata)


def plain(default: object, meaning: str, unit: str = "") -> typing.Any:
    """A field without a bound: a switch, a text, a number that must only be finite."""
    return _field(Bound(), default, meaning, unit)


def at_least(
    low: float, default: float, meaning: str, unit: str = "", besides: tuple[float, ...] = ()
) -> typing.Any:
    """A number from `low` on."""
    return _field(Bound(low=low, besides=besides), default, meaning, unit)


def positive(default: float, meaning: str, unit: str = "") -> typing.Any:
    """A whole number from 1 on, or any other number above 0."""
    whole = isinstance(default, int)
    bound = Bound(low=1) if whole else Bound(low=0, open_low=True)
    return _field(bound, default, meaning, unit)


def above(
    low: float, default: float, meaning: str, unit: str = "", besides: tuple[float, ...] = ()
) -> typing.Any:
    """A number greater than `low`."""
    return _field(Bound(low=low, open_low=True, besides=besides), default, meaning, unit)


def between(low: float, high: float, default: float, meaning: str, unit: str = "") -> typing.Any:
    """A number from `low` to `high`, both included."""
    return _field(Bound(low=low, high=high), default, meaning, unit)


def fraction_below_one(default: float, meaning: str, unit: str = "") -> typing.Any:
    """A decay: at least 0 and below 1, where nothing would ever move."""
    return _field(Bound(low=0, high=1, open_high=True), default, meaning, unit)


def one_of(choices: tuple[str, ...], default: str, meaning: str) -> typing.Any:
    """A name; core knows no table of the floors above, so a test compares the choices with them."""
    return _field(Bound(choices=choices), default, meaning, "")


def place(default: str, meaning: str, *names: str, filled: bool = False) -> typing.Any:
    """Where something lies, as a path; `names` are what else a text may say.

    filled: False lets it be empty, which is nowhere.
    """
    return _field(Bound(place=True, names=names, filled=filled), default, meaning, "")


def some_of(
    choices: tuple[str, ...], default: str, meaning: str, folder: bool = False
) -> typing.Any:
    """One such name, or several with commas between, none of them twice.

    folder: or the path of a folder, which has a slash.
    """
    return _field(Bound(choices=choices, several=True, folder=folder), default, meaning, "")


def tuple_of(
    low: float,
    default: tuple,
    meaning: str,
    unit: str,
    *,
    open_low: bool = False,
    length: int | None = None,
    distinct: bool = False,
) -> typing.Any:
    """A tuple whose elements are at least `low`, or above it; `unit` names them in the plural."""
    bound = Bound(low=low, open_low=open_low, length=length, distinct=distinct)
    return _field(bound, default, meaning, unit)


# ---- checks -----------------------------------------------------------------------------------


class Section:
    """A group of fields; what is constructed is checked."""

    def __post_init__(self):
        check(self, f"{type(self).__name__.lower()}.")


def check(section: object, prefix: str = "") -> None:
    """Check every declared field of a dataclass.

    Raises:
      ValueError: one sentence with `prefix` and name of the field, its value and its bound.
    """
    for field in dataclasses.fields(section):
        if "bound" in field.metadata:
            _check_field(field, getattr(section, field.name), prefix)


def check_field(section: type, name: str, value: object, prefix: str = "") -> None:
    """The same of one field of a class, alone.

    Raises:
      ValueError: as `check`.
    """
    (field,) = [field for field in dataclasses.fields(section) if field.name == name]
    _check_field(field, value, prefix)


def _check_field(field: dataclasses.Field, value: object, prefix: str):
    bound = field.metadata["bound"]
    name = prefix + field.name
    if typing.get_origin(field.type) is tuple:
        _check_tuple(name, value, field)
    elif bound.choices:
        _check_choice(name, value, bound)
    else:
        fault = _fault(value, field.type, bound)
        if fault:
            raise ValueError(f"{name}={value!r} must be {fault}")


def with_whole_paths(section: type, values: Mapping, prefix: str = "") -> dict:
    """Values of a section, {field: value}, in which every path is a whole one.

    Raises:
      ValueError: one sentence with `prefix` and name of the field, where nothing has such a path.
    """
    result = dict(values)
    for field in dataclasses.fields(section):
        bound = field.metadata["bound"]
        value = result.get(field.name)
        # What is no text, or empty, is another check's.
        if not is_path(value, bound) or not value.strip():
            continue
        if value in bound.names:
            continue
        try:
            result[field.name] = str(paths.absolute(value))
        except ValueError as error:
            raise ValueError(f"{prefix}{field.name}: {error}") from error
    return result


def _check_choice(name: str, value: object, bound: Bound):
    if is_path(value, bound):
        return
    several = bound.several and isinstance(value, str)
    chosen = value.split(",") if several else [value]
    for choice in chosen:
        if choice not in bound.choices:
            raise unknown(name, choice, bound.choices + ("a path with a slash",) * bound.folder)
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"{name}={value!r} must name none of them twice")


def element_kind(kind: object) -> type:
    """Of tuple[int, ...] and tuple[int, int]: int."""
    return typing.get_args(kind)[0]


def in_words(kind: type, bound: Bound) -> str:
    """Kind and bound of a value."""
    return _both(KINDS[kind], bound.text())


def _check_tuple(name: str, value: object, field: dataclasses.Field):
    bound = field.metadata["bound"]
    kind = element_kind(field.type)
    number = "" if bound.length is None else f"{bound.length} "
    wanted = f"{name}={value!r} must hold {number}{field.metadata['unit']}"
    if not isinstance(value, tuple) or bound.length not in (None, len(value)):
        raise ValueError(f"{wanted}, each {in_words(kind, bound)}")
    for element in value:
        fault = _fault(element, kind, bound)
        if fault:
            raise ValueError(f"{wanted}, each {fault}")
    if bound.distinct and len(set(value)) < len(value):
        raise ValueError(f"{wanted}, none of them twice")


def _fault(value: object, kind: type, bound: Bound) -> str:
    """What a value must be and is not; "" where nothing is wrong."""
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        return in_words(kind, bound)
    if kind is str:
        return in_words(kind, bound) if bound.filled and not value.strip() else ""
    if kind is bool:
        return ""
    if kind is float and not abs(value) < MOST_FLOAT:  # nan is not smaller either
        return _both("finite", bound.text())
    if not bound.holds(value):
        return bound.text()
    # As the device will see it: 1e-46 is 0 there, and 0.99999999999 is 1.
    if kind is float and not bound.holds(float(np.float32(value))):
        return bound.text()
    if kind is int and bound.high == math.inf and value > MOST:
        return f"at most {MOST}"
    return ""


def _both(first: str, second: str) -> str:
    return f"{first} and {second}" if second else first
