"""One row of the table from RLinf's keys to our fields, and how rows are written down.

Knows no key and no field; table.py and table_model.py hold the rows.
"""

from collections.abc import Callable, Iterable
import dataclasses
import fnmatch
from typing import Any

from pirl_jax.run.rlinf import formulas


@dataclasses.dataclass(frozen=True)
class Row:
    """Keys that are read together."""

    keys: tuple[str, ...]  # with * and {a,b}; of those without, the first that is there counts
    fields: tuple[str, ...]  # of our page; none: nothing here is set
    words: str  # the formula, what always happens here, or why nothing reads it
    turn: Callable[[formulas.Source, Any], dict[str, Any]] | None = None  # None: as it is
    only: tuple = ()  # without fields: the values under which the same happens here
    matters: bool = False  # where it is not carried over, something else is learned

    def holds(self, key: str) -> bool:
        """Whether a dotted key is one of this row's."""
        return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns(self.keys))

    def rank(self, key: str) -> int:
        """Of the keys that are there, the lowest one counts."""
        chosen = patterns(self.keys)
        return chosen.index(key) if key in chosen else 0


def patterns(keys: Iterable[str]) -> list[str]:
    """With {a,b} written out."""
    found = []
    for key in keys:
        head, brace, rest = key.partition("{")
        if not brace:
            found.append(key)
            continue
        choices, _, tail = rest.partition("}")
        found += patterns(f"{head}{choice}{tail}" for choice in choices.split(","))
    return found


def carried(keys: str, fields: str, words: str = "", turn: Callable | None = None) -> Row:
    """A row whose keys, with spaces between, set fields."""
    return Row(tuple(keys.split()), tuple(fields.split()), words, turn)


def same(keys: str, only: tuple, words: str, matters: bool = True) -> Row:
    """What happens here anyway, as long as the value is one of `only`."""
    return Row(tuple(keys.split()), (), words, only=only, matters=matters)


def dropped(keys: str, words: str, matters: bool = False) -> Row:
    """A row whose keys nothing here reads."""
    return Row(tuple(keys.split()), (), words, matters=matters)
