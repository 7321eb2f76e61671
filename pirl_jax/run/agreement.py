"""Which updates several hosts begin, where each plays on while it learns.

An update computes on the devices of all hosts.  Whoever began it before the others have their part
of the batch would keep its devices waiting, and its own simulators with them.  So every host says
when its part is over, and the update begins once all have.  A host that goes no further says so
instead.  Of the two the first word stands, for all hosts: either all make an update or none does.

What is said lies in a store that all hosts share and no device takes part in.  Refuses to know what
an update is.
"""

from collections.abc import Callable
import time
from typing import Protocol

from pirl_jax.core import endings
from pirl_jax.envs.pool import queue

LOOK_S = 0.05  # how often one looks what the others say

BEGIN = "begin"
END = "end"
DIVERGED = "diverged: "  # and the sentence of who goes no further because of it

Ending = queue.Interrupted | endings.Diverged


class Store(Protocol):
    """Words by name, the same for all hosts (hosts.Store)."""

    def first(self, name: str, word: str) -> str:
        """Says it, unless something was said before -> what stands."""

    def said(self, name: str) -> str | None:
        """What stands."""

    def tell(self, name: str, index: int) -> None:
        """A name that stands for this host: it is among `told` from now on."""

    def told(self, name: str) -> set[int]:
        """The hosts that have."""


class Agreement:
    """Of one host, for the updates between two barriers."""

    def __init__(
        self,
        store: Store,
        index: int,
        count: int,
        name: str,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
          index, count: which of how many hosts this is; a single one asks nobody.
          name: of the run's present attempt; the numbers of its updates never come again.
          timeout_s: how long other hosts may take longer than this one.
        """
        self._store = store
        self._index = index
        self._count = count
        self._name = name
        self._timeout_s = timeout_s
        self._clock = clock
        self._over: tuple[int, float] | None = None  # whose part here is over, and since when
        self._look_s = clock()

    def begins(self, number: int, is_over: bool) -> bool:
        """Whether all begin this update now.

        Args:
          number: those before it have been begun.
          is_over: this host has its part of the batch.

        Raises:
          queue.Interrupted, endings.Diverged: a host goes no further.
          endings.Failure: the others take too long.
        """
        if self._count == 1:
            return is_over
        is_news = is_over and (self._over is None or self._over[0] != number)
        if not is_news and self._clock() < self._look_s:
            return False
        self._look_s = self._clock() + LOOK_S
        if is_news:
            self._store.tell(self._place(number, "over"), self._index)
            self._over = (number, self._clock())
        word = self._store.said(self._place(number, "word"))
        if word is None and is_over:
            word = self._of_all(number)
        _require(word)
        return word == BEGIN

    def ends(self, number: int, ending: Ending) -> bool:
        """This host goes no further -> whether this update is one that all make before."""
        if self._count == 1:
            return False
        word = END
        if isinstance(ending, endings.Diverged):
            word = f"{DIVERGED}{ending}"
        return self._store.first(self._place(number, "word"), word) == BEGIN

    def _of_all(self, number: int) -> str | None:
        """What stands once everybody's part is over."""
        missing = set(range(self._count)) - self._store.told(self._place(number, "over"))
        if not missing:
            return self._store.first(self._place(number, "word"), BEGIN)
        _, since_s = self._over
        if self._clock() - since_s > self._timeout_s:
            names = ", ".join(map(str, sorted(missing)))
            raise endings.Failure(
                f"host {names} of {self._count} still plays its part of iteration {number}, "
                f"{self._timeout_s:g} s after this one (rollout.learner_timeout_s); where that is "
                f"no fault, set rollout.learner_timeout_s higher"
            )
        return None

    def _place(self, number: int, what: str) -> str:
        return f"{self._name}/{number}/{what}"


def _require(word: str | None) -> None:
    """That it is no ending."""
    if word == END:
        raise queue.Interrupted
    if word is not None and word.startswith(DIVERGED):
        raise endings.Diverged(word.removeprefix(DIVERGED))
