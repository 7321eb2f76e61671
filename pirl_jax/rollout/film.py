"""What the policy saw of some episodes while it explored: one image for every decision.

The images are there anyway, so that a film costs no rendering.  Knows no file and no format.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from pirl_jax.rollout import stream


class Shot(NamedTuple):
    """A decision, or the end of an episode."""

    frame: np.ndarray  # [Y,X,3] uint8, of the first camera
    step: int  # control steps so far
    reward: float  # so far
    value: float  # the critic's estimate; nan where there is none


class Film:
    """The shots of the chosen episodes of a rollout."""

    def __init__(self, episodes: Iterable[int]) -> None:
        """episodes: by index; those that are never played have no shots."""
        self.shots: dict[int, list[Shot]] = {e: [] for e in episodes}

    def see(self, turn: stream.Turn, results: Sequence[stream.Result], value_n: np.ndarray) -> None:
        """The images of a turn, before it is answered; lost episodes begin anew, or never.

        Args:
          results: of all episodes, as they are by now.
          value_n: [n] the critic's estimates, nan where there is none.
        """
        for e in self.shots.keys() & set(turn.lost):
            self.shots[e] = []
        for i, e in enumerate(turn.episode.tolist()):
            if e in self.shots:
                so_far = results[e]
                frame = turn.step.images[i, 0].copy()
                shot = Shot(frame, so_far.num_steps, so_far.reward, float(value_n[i]))
                self.shots[e].append(shot)
