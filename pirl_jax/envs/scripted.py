"""A simulator that plays its own scripted expert: chunks of the usual length, whose actions come from the expert.

    env = scripted.make(functools.partial(tabletop.make, tasks=("lift",)), experts.expert)

Lets an expert be evaluated like any policy, in the processes of a pool.  The expert sees the simulator's state, so it is asked
before every control step.
"""

from typing import Callable

import numpy as np

from pirl_jax.envs import base


class Scripted:
    """See envs/base.py for the contract; of the given actions only their number counts."""

    def __init__(self, env: base.Env, expert: Callable):
        """expert: env -> (function () -> action [A]) for the episode it has just been reset to."""
        self.spec, self._env, self._expert, self._act = env.spec, env, expert, None

    def reset(self, task: int, init_state: int) -> base.TimeStep:
        step = self._env.reset(task, init_state)
        self._act = self._expert(self._env)
        return step

    def step_chunk(self, actions_IA: np.ndarray, record: bool = False) -> base.TimeStep:
        reward, frames, num_steps = 0.0, [] if record else None, 0
        for _ in actions_IA:
            step = self._env.step_chunk(np.asarray(self._act(), np.float32)[None], record)
            reward, num_steps = reward + step.reward, num_steps + step.num_steps
            if record:
                frames += step.frames
            if step.terminated or step.truncated:
                break
        return base.TimeStep(step.images, step.state, reward, step.terminated, step.truncated, num_steps, frames)

    def close(self) -> None:
        self._env.close()


def make(make_env: Callable[[], base.Env], expert: Callable) -> Scripted:
    """Picklable as functools.partial(make, make_env, expert)."""
    return Scripted(make_env(), expert)
