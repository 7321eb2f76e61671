"""Scripted expert for real LIBERO: reaches the conditions of a task's BDDL goal one by one.

    act = expert.expert(env)   # once per episode, after env.reset; callers use experts.expert
    action_a = act()           # one control step

numpy and mujoco only.
"""

from collections.abc import Callable

import numpy as np

from pirl_jax.envs import servo
from pirl_jax.envs.libero import pick_and_place, scene, suite


def expert(env: suite.Libero) -> Callable[[], np.ndarray]:
    """A function () -> action [7] for the LIBERO episode `env` has just been reset to."""
    view = scene.Scene(env)

    def script() -> list[servo.Leg]:
        return pick_and_place.PickAndPlace(view, pending(view)).legs()

    return servo.Follower(view.grip_pose, script)


def pending(view: scene.Scene) -> scene.Goal:
    """The first condition that does not hold yet."""
    return next((goal for goal in view.goals if not view.holds(goal)), view.goals[-1])
