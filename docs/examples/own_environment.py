"""Your own environment, trained by PPO: one class, no change to the package.

python docs/examples/own_environment.py [--config.num_iterations=40 ...]

A light is on or off: the hand has to move up when it is on, and down when it is off.  Success with
noise rises from 46 to 99 % within 15 iterations of the probe's recipe (a tiny pi0, one seed).
"""

import sys

import numpy as np

from pirl_jax import train
from pirl_jax.envs import base

STEPS = 5  # control steps of an episode: one action chunk


class FollowTheLight:
    """Keeps the contract of pirl_jax/envs/base.py."""

    def __init__(self, image_size_px: int) -> None:
        self.spec = base.EnvSpec(
            suite="follow_the_light",
            instructions=("follow the light",),  # one per task
            num_init_states=2,  # off, on
            max_episode_steps=STEPS,
            image_size_px=image_size_px,
        )

    def reset(self, task: int, init_state: int) -> base.TimeStep:
        self._sign = 2 * init_state - 1
        return self._observe(False, False, 0)

    def step_chunk(self, actions_Ia: np.ndarray, record: bool = False) -> base.TimeStep:
        actions = np.stack(list(actions_Ia))
        success = bool(self._sign * actions[:, 2].mean() > 0.2)  # its third entry is height
        step = self._observe(success, not success, len(actions))
        if record:
            step.frames = [step.images[0]] * len(actions)
        return step

    def _observe(self, success: bool, timeout: bool, num_steps: int) -> base.TimeStep:
        size = self.spec.image_size_px
        images = np.full((2, size, size, 3), 255 * (self._sign > 0), np.uint8)
        state = np.full(self.spec.state_dim, self._sign, np.float32)
        return base.TimeStep(images, state, float(success), success, timeout, num_steps)

    def close(self) -> None:
        pass


if __name__ == "__main__":
    suite = "--config.env.suite=own_environment:FollowTheLight"
    given = ["--config=probe", suite, "--config.run.directory=runs/own_environment"]
    train.main(["train", *given, *sys.argv[1:]])
