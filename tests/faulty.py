"""A probe whose simulator now and then sends a state that is not finite, and one that dies."""

import os

import numpy as np

from pirl_jax.envs import probes


class Faulty(probes.Delayed):
    """Every `period`-th state is NaN, whatever the episode."""

    def __init__(self, period: int):
        super().__init__(image_size_px=16, chunk=5)
        self._period = period
        self._count = 0

    def _observe(self, reward, num_steps):
        step = super()._observe(reward, num_steps)
        self._count += 1
        if self._count % self._period == 0:
            step.state[2] = np.nan
        return step


def dying():
    """A factory in whose process the renderer crashes."""
    os._exit(1)


class DyingLater(probes.Delayed):
    """Its process dies in the midst of an episode, time and again."""

    def __init__(self):
        super().__init__(image_size_px=16, chunk=5)
        self._count = 0

    def _observe(self, reward, num_steps):
        self._count += 1
        if self._count == 8:
            os._exit(1)
        return super()._observe(reward, num_steps)


def dying_later():
    """A factory of those."""
    return DyingLater()
