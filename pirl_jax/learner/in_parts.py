"""Work that is done in parts, so that whoever asks for them may do something else meanwhile.

Refuses to know the work.
"""

from collections.abc import Generator
from typing import Any

import jax

# Yields what must be there before the next part is asked for, and ends with the result.
Parts = Generator[jax.Array, None, Any]


def drained(parts: Parts) -> Any:
    """The result, at one go."""
    while True:
        try:
            jax.block_until_ready(next(parts))
        except StopIteration as end:
            return end.value
