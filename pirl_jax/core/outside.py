"""Files from outside, or damaged ones of ours: text and JSON, within limits, named where wrong.

What is wrong with a file ends in a ValueError of one sentence with its path.  Knows no field of any
file: `part` takes out what a reader needs and says of which kind it must be.
"""

from collections.abc import Iterable, Iterator
import contextlib
import json
import math
import os
import pathlib
from typing import Any

# Of a JSON file.  "[[],[], ..." takes 25 times its size, which then is still no harm.
MOST_BYTES = 1 << 24
DEEPEST = 64  # levels: who walks through the values may recurse
MOST_DIGITS = 1 << 63  # larger whole numbers fit no array
MOST_SHOWN = 200  # characters of a name that a file chose
MOST_LISTED = 10  # such names in an error
POINTER = b"version https://git-lfs"  # how the stand-in of a large file in git begins
AGAIN = "fetch or copy it again"
KINDS = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
NUMBERS = {int: "a whole number", float: "a finite number"}


def read_bytes(path: str | os.PathLike, most: int = MOST_BYTES, remedy: str = AGAIN) -> bytes:
    """The whole file.

    Raises: ValueError for what is no file, cannot be read, is Git's pointer to a file or is larger
    than `most` bytes.
    """
    require_file(path, remedy)
    try:
        with pathlib.Path(path).open("rb") as file:
            content = file.read(most + 1)  # and not all that a huge file has
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); {remedy}") from error
    if len(content) > most:
        raise ValueError(f"{path} is larger than {most:,} bytes, so it is another file; {remedy}")
    return content


def require_file(path: str | os.PathLike, remedy: str = AGAIN) -> None:
    """For readers of other formats: that a file of content lies there.

    Raises: ValueError for a folder, a device, what cannot be read, and Git's pointer to a file.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder and should be a file; {remedy}")
    if not path.is_file():
        raise ValueError(f"{path} is no file; {remedy}")
    try:
        with path.open("rb") as file:
            start = file.read(len(POINTER))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); {remedy}") from error
    if start == POINTER:
        raise ValueError(
            f"{path} is a Git LFS pointer and not the file itself; run git lfs pull in its folder"
        )


def read_text(path: str | os.PathLike, most: int = MOST_BYTES, remedy: str = AGAIN) -> str:
    """UTF-8.

    Raises: ValueError as read_bytes, or for another encoding.
    """
    try:
        return read_bytes(path, most, remedy).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error.reason}); {remedy}") from error


def read_json(path: str | os.PathLike, kind: type = dict, remedy: str = AGAIN) -> Any:
    """A file of one JSON value of this kind (of KINDS).

    Raises: ValueError as read_text and parse_json.
    """
    text = read_text(path, remedy=remedy)
    return part(parse_json(text, path, remedy), "", kind, path, remedy)


def parse_json(text: str | bytes, where: Any, remedy: str = AGAIN) -> Any:
    """JSON without doubt: no name twice in an object, no nesting beyond DEEPEST.

    where: the file, for the error.
    Raises: ValueError for anything else.
    """
    if not text.strip():
        raise ValueError(f"{where} is empty; {remedy}")
    try:
        if isinstance(text, bytes):
            text = text.decode()  # json would guess an encoding
        value = json.loads(text, object_pairs_hook=_unambiguous)
        _refuse_depth(value)
        if r"\ud" in text.lower():
            # Half of a character, which nobody could write or print later on.
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError(f"{where} is nested too deep; {remedy}") from error
    # Not only JSONDecodeError: numbers of thousands of digits and bytes that are no UTF-8.
    except ValueError as error:
        raise ValueError(f"{where} is no JSON ({shown(error)}); {remedy}") from error
    return value


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("an object has one name twice")
    return fields


def _refuse_depth(value: Any) -> None:
    """Level by level, since a walk into the depth would recurse itself."""
    level = [value]
    for _ in range(DEEPEST):
        below = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
            elif isinstance(item, list):
                below += item
        if not below:
            return
        level = below
    raise ValueError(f"nested deeper than {DEEPEST} levels")


def part(tree: Any, names: str, kind: type, where: Any, remedy: str = AGAIN) -> Any:
    """tree["a"]["b"] for the names "a.b"; "" is the tree itself.

    kind: of KINDS or NUMBERS; float takes whole numbers too, and gives them as they are.
    Raises: ValueError where there is no such part, or one of another kind.
    """
    value = tree
    for name in names.split(".") if names else ():
        if not isinstance(value, dict) or name not in value:
            raise ValueError(f"{where} has no {names}; {remedy}")
        value = value[name]
    if not fits(value, kind):
        found = f"{names} of {where}" if names else where
        text = shown(json.dumps(value))
        raise ValueError(f"{found} is {text} and should be {(KINDS | NUMBERS)[kind]}; {remedy}")
    return value


def fits(value: Any, kind: type) -> bool:
    """Whether a JSON value is of this kind, as `part` wants it."""
    if kind in KINDS:
        return isinstance(value, kind)
    if isinstance(value, bool):  # a whole number to Python
        return False
    if isinstance(value, int):
        return abs(value) < MOST_DIGITS
    return kind is float and isinstance(value, float) and math.isfinite(value)


@contextlib.contextmanager
def named(path: str | os.PathLike) -> Iterator[None]:
    """ValueErrors of what is done with a file name it, also where who raises them knows none."""
    try:
        yield
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error


def listed(names: Iterable[str]) -> str:
    """Names that a file chose, the first MOST_LISTED of them."""
    names = list(names)
    text = ", ".join(shown(name) for name in names[:MOST_LISTED])
    return f"{text} and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else text


def shown(text: Any) -> str:
    """A text that a file chose, on one line, not without end, without a terminal's commands."""
    line = " ".join(str(text)[: 2 * MOST_SHOWN].split())
    if not line.isprintable():
        line = ascii(line)[1:-1]
    return line if len(line) <= MOST_SHOWN else f"{line[:MOST_SHOWN]}..."
