"""What was opened or decoded last, within a bound; the oldest goes first.

Knows neither files nor pictures.
"""

import collections
from collections.abc import Callable, Hashable
from typing import Any


class Kept:
    """Values by key.  One thread."""

    def __init__(
        self,
        most: int,
        weigh: Callable[[Any], int] = lambda _: 1,
        close: Callable[[Any], None] = lambda _: None,
    ) -> None:
        """most: of the sum of the weights, and of their number with the default weight."""
        self._most = most
        self._weigh = weigh
        self._close = close
        self._values: collections.OrderedDict[Hashable, Any] = collections.OrderedDict()
        self.weight = 0

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The value of a key, made where it is not there any more."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = make()
        weight = self._weigh(value)
        # Room first: the bound holds at every moment.
        while self._values and self.weight + weight > self._most:
            self._drop()
        if weight <= self._most:
            self._values[key] = value
            self.weight += weight
        return value

    def clear(self) -> None:
        """Close everything."""
        while self._values:
            self._drop()

    def _drop(self) -> None:
        _, value = self._values.popitem(last=False)
        self.weight -= self._weigh(value)
        self._close(value)
