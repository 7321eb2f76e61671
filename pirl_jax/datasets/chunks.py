"""Rows to learn from out of a data set: an observation and the chunk of actions from there on.

Rows are numbered through all episodes, so which rows make a batch is decided elsewhere, by a seed
and a step.  Pictures are decoded when a row is asked for, and kept within a bound.
"""

from collections.abc import Iterator
import dataclasses

import numpy as np

from pirl_jax.datasets import episodes, kept
from pirl_jax.policy import images

KEPT_BYTES = 1 << 30  # of decoded pictures, at the model's size
KEPT_STEPS = 1 << 20  # of numbers
PIECE = 4096  # steps whose chunks are looked at together


@dataclasses.dataclass
class Rows:
    """Some rows, in the order in which they were asked for."""

    images: np.ndarray  # [R,V,Y,X,3] uint8
    state: np.ndarray  # [R,Q] float32
    actions: np.ndarray  # [R,H,A] float32
    instructions: list[str]


class Chunks:
    """Rows of an open data set.  One thread."""

    def __init__(
        self,
        source: episodes.Source,
        horizon: int,
        image_size_px: int,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        self._source = source
        self._horizon = horizon
        self._size_px = image_size_px
        self._ends = np.cumsum(source.lengths)
        self._numbers = kept.Kept(KEPT_STEPS, weigh=lambda numbers: len(numbers.state_TQ))
        self._images = kept.Kept(kept_bytes, weigh=lambda array: array.nbytes)

    @property
    def count(self) -> int:
        """Rows of all episodes: one per control step."""
        return int(self._ends[-1])

    def take(self, index: np.ndarray) -> Rows:
        """Rows by their numbers, 0 to count - 1.

        Raises: ValueError for damaged files.
        """
        places = [self._place(row) for row in index]
        pictures: list[np.ndarray | None] = [None] * len(places)
        state = []
        actions = []
        instructions = []
        # In the order of the files, which are read piece by piece.
        for row in sorted(range(len(places)), key=lambda row: places[row]):
            pictures[row] = self._pictures(*places[row])
        for episode, step in places:
            numbers = self.numbers(episode)
            state.append(numbers.state_TQ[step])
            actions.append(chunks(numbers.actions_TA, np.array([step]), self._horizon)[0])
            instructions.append(numbers.instructions[step])
        return Rows(np.stack(pictures), np.stack(state), np.stack(actions), instructions)

    def numbers(self, episode: int) -> episodes.Numbers:
        """Of an episode."""
        return self._numbers.get(episode, lambda: self._source.numbers(episode))

    def _place(self, row: int) -> tuple[int, int]:
        """(episode, step)."""
        episode = int(np.searchsorted(self._ends, row, side="right"))
        before = self._ends[episode - 1] if episode else 0
        return episode, int(row - before)

    def _pictures(self, episode: int, step: int) -> np.ndarray:
        return self._images.get((episode, step), lambda: self._decoded(episode, step))

    def _decoded(self, episode: int, step: int) -> np.ndarray:
        """[V,Y,X,3]: cameras may have different sizes, so all get the model's, as openpi's do."""
        size_px = self._size_px
        found = []
        for image in self._source.images(episode, step):
            image = np.ascontiguousarray(image)
            found.append(images.resize_with_pad(image[None], size_px, size_px)[0])
        return np.stack(found)


def chunks(actions_TA: np.ndarray, steps: np.ndarray, horizon: int) -> np.ndarray:
    """Actions of an episode -> [len(steps),horizon,A]; past the end the last one repeats."""
    index = np.minimum(steps[:, None] + np.arange(horizon), len(actions_TA) - 1)
    return actions_TA[index]


def pieces(numbers: episodes.Numbers, horizon: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(state [t,Q], chunks [t,H,A]) of an episode, a bounded number of steps at a time."""
    length = len(numbers.actions_TA)
    for first in range(0, length, PIECE):
        steps = np.arange(first, min(first + PIECE, length))
        yield numbers.state_TQ[steps], chunks(numbers.actions_TA, steps, horizon)
