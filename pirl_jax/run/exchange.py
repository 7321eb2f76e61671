"""Two sides of a run, each a thread on devices of its own: one plays, the other learns.

What they hand to each other is here and nothing else is shared: whole batches one way, of which
one may lie waiting; the other way the version of the newest parameters, once they are complete
where they are played with.  An error of either side ends both: the first one is raised by the
caller with the traceback of where it happened, and whatever the other side raises because of it is
not.  Every wait has an end: none lasts longer than the other side may be silent.

Refuses to know what is played, learned and published.
"""

from collections.abc import Callable
import threading
import time
from typing import Any, TypeVar

from pirl_jax.core import endings

Result = TypeVar("Result")

LOOK_S = 0.5  # a wait is woken up by what it waits for; this often it looks at the clock
END_S = 4.0  # in which a side that was told to end has ended; twice this is below 10 s


class StoppedError(Exception):
    """The other side has ended; raised where this one waits or says that it is at work."""


class Exchange:
    """Between a thread that plays and one that learns."""

    def __init__(
        self,
        first: int,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
          first: the version that plays from the beginning.
          timeout_s: the longest silence of either side.
        """
        self.version = first  # of the newest parameters that may play
        self._timeout_s = timeout_s
        self._clock = clock
        self._changed = threading.Condition()
        self._batch: list = []  # the one that waits
        self._error: BaseException | None = None
        self._is_over = False
        self._heard_s = {"rollout": clock(), "learner": clock()}

    # ---- the side that plays -----------------------------------------------------------------

    def playing(self) -> None:
        """It is at work.

        Raises:
          StoppedError: the other side is not.
        """
        self._at_work("rollout")

    def await_version(self, version: int) -> int:
        """The newest version, once it is this one or a later one."""
        return self._wait("rollout", lambda: self.version >= version, self._newest)

    def has_room(self) -> bool:
        """Whether `hand_over` would not wait."""
        return not self._batch

    def hand_over(self, batch: Any) -> None:
        """A batch that is over; waits while another one lies there."""
        self._wait("rollout", lambda: not self._batch, lambda: self._batch.append(batch))

    # ---- the side that learns ----------------------------------------------------------------

    def learning(self) -> None:
        """It is at work.

        Raises:
          Whatever ended the side that plays.
        """
        self._at_work("learner")

    def take(self) -> Any:
        """The next batch."""
        return self._wait("learner", lambda: self._batch, lambda: self._batch.pop())

    def publish(self, version: int) -> None:
        """Its parameters may play; they are complete where they are played with."""
        with self._changed:
            self._check("learner")
            self.version = version
            self._go_on()

    # ---- both --------------------------------------------------------------------------------

    def end(self, error: BaseException | None = None) -> None:
        """Nobody goes on; the first error is kept."""
        with self._changed:
            if not self._is_over:
                self._error = error
            self._is_over = True
            self._changed.notify_all()

    @property
    def error(self) -> BaseException | None:
        """What ended both sides, if it was an error."""
        return self._error

    def _newest(self) -> int:
        return self.version

    def _at_work(self, side: str) -> None:
        with self._changed:
            self._check(side)
            self._heard_s[side] = self._clock()

    def _wait(self, side: str, is_there: Callable[[], Any], then: Callable[[], Any]) -> Any:
        with self._changed:
            self._check(side)
            self._heard_s[side] = self._clock()
            while not is_there():
                self._changed.wait(LOOK_S)
                self._check(side)
                self._check_silence(side)
            found = then()
            self._go_on()
            return found

    def _go_on(self) -> None:
        """What one of them has done may be what the other one waits for: both have work now."""
        for side in self._heard_s:
            self._heard_s[side] = self._clock()
        self._changed.notify_all()

    def _check(self, side: str) -> None:
        if not self._is_over:
            return
        if side == "learner" and self._error is not None:
            raise self._error
        raise StoppedError

    def _check_silence(self, side: str) -> None:
        other = "learner" if side == "rollout" else "rollout"
        silent_s = self._clock() - self._heard_s[other]
        if silent_s > self._timeout_s:
            raise endings.Failure(
                f"the {side} waits for the {other}, which has not answered for {silent_s:.0f} s"
                f" (rollout.learner_timeout_s={self._timeout_s:g}); where that is no fault, set"
                f" rollout.learner_timeout_s higher"
            )


def both(
    exchange: Exchange,
    play: Callable[[], None],
    learn: Callable[[], Result],
    wake: Callable[[], None],
    end_s: float = END_S,
) -> Result:
    """Plays in a thread of its own and learns in this one -> what was learned.

    Args:
      play: ends by itself when everything is played, or with what `exchange` raises.
      wake: makes the thread raise where only a simulator would wake it up; called where it has not
        ended by itself after end_s, and then no simulator plays again.
      end_s: how long the thread is waited for.

    Raises:
      Whatever either side has raised, the first of it.
      endings.Failure: the thread goes on.
    """

    def guarded() -> None:
        try:
            play()
        except StoppedError:
            pass
        except BaseException as error:  # the other thread raises it again
            exchange.end(error)

    thread = threading.Thread(target=guarded, name="rollout", daemon=True)
    thread.start()
    result = None
    try:
        result = learn()
    except BaseException as error:
        exchange.end(error)
    exchange.end()
    thread.join(end_s)
    if thread.is_alive():
        wake()
        thread.join(end_s)
    if exchange.error is not None:
        raise exchange.error
    if thread.is_alive():
        raise endings.Failure(
            f"the rollout goes on {2 * end_s:g} s after everything was learned: its simulators do"
            f" not answer"
        )
    return result
