"""A probe whose simulator sends a state that is not finite, at random."""

import numpy as np

from pirl_jax.envs import probes


class Faulty(probes.Delayed):
    """A share of the states is NaN, whatever the episode."""

    def __init__(self, share: float):
        super().__init__(image_size_px=16, chunk=5)
        self._share = share
        self._draw = np.random.default_rng(0)

    def _observe(self, reward, num_steps):
        step = super()._observe(reward, num_steps)
        if self._draw.random() < self._share:
            step.state[2] = np.nan
        return step
