"""Two tables of arrays against each other: nothing may be missing, left over, or of another kind.

Knows no file and no model; callers say what is compared and what the user should do.
"""

from collections.abc import Mapping
from typing import Any

from pirl_jax.core import outside

MOST_LISTED = 2000  # more than any of our networks has


def misfits(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Two tables of name -> what an array is (its shape, say) -> one line per name that differs."""
    lines = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    left_over = sorted(found.keys() - expected.keys())
    lines += [f"{outside.shown(name)} is left over" for name in left_over]
    for name in sorted(expected.keys() & found.keys()):
        if expected[name] != found[name]:
            lines.append(f"{name} is {found[name]} and should be {expected[name]}")
    return lines


def require_shapes(
    expected: Mapping[str, tuple],
    found: Mapping[str, tuple],
    where: Any,
    what: str = "the network",
) -> None:
    """Two tables of name -> shape must be the same.

    where, what: the checkpoint that was found, and what it has to fit, for the error.
    Raises: one ValueError that lists every misfit.
    """
    lines = misfits(_as_lists(expected), _as_lists(found))
    if lines:
        more = f"; and {len(lines) - MOST_LISTED} more" if len(lines) > MOST_LISTED else ""
        raise ValueError(
            f"{where} does not fit {what} ({len(lines)} of {len(expected)} arrays): "
            f"{'; '.join(lines[:MOST_LISTED])}{more}"
        )


def _as_lists(shapes: Mapping[str, tuple]) -> dict[str, list[int]]:
    """So that errors read [3], not (3,)."""
    return {name: list(shape) for name, shape in shapes.items()}
