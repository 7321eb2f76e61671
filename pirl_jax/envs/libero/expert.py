"""Scripted expert for real LIBERO: reaches the conditions of a task's BDDL goal one by one.

    act = expert.expert(env)   # once per episode, after env.reset; callers use experts.expert
    action_a = act()           # one control step

numpy and mujoco only.
"""

from collections.abc import Callable

import numpy as np

from pirl_jax.envs import servo
from pirl_jax.envs.libero import drawer, knob, legs, pick_and_place, scene, suite

OPENING_M = 0.08  # between the fingers of an open hand

# By the condition of the goal, in the order in which they are reached.
SCRIPTS = {
    "open": drawer.PullOpen,
    "turnon": knob.TurnOn,
    "on": pick_and_place.PickAndPlace,
    "in": pick_and_place.PickAndPlace,
}


def expert(env: suite.Libero) -> Callable[[], np.ndarray]:
    """A function () -> action [7] for the LIBERO episode `env` has just been reset to."""
    view = scene.Scene(env)

    def script() -> list[servo.Leg]:
        goal = pending(view)
        return _freed(view) + SCRIPTS[goal.verb](view, goal).legs()

    return servo.Follower(view.grip_pose, script)


def pending(view: scene.Scene) -> scene.Goal:
    """The first condition that does not hold yet."""
    order = list(SCRIPTS)
    goals = sorted(view.goals, key=lambda goal: order.index(goal.verb))
    return next((goal for goal in goals if not view.holds(goal)), goals[-1])


def _freed(view: scene.Scene) -> list[servo.Leg]:
    """A leg before all others, where the fingers are closed around something."""
    if view.opening_m() >= 0.9 * OPENING_M:
        return []
    here_m = view.grip_pose()[0].copy()
    return [servo.Leg("free", lambda: here_m, servo.OPEN, steps=legs.OPEN_STEPS)]
