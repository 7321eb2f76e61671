"""Scripted expert of the tabletop suite: one pick, or pick and place, of a cube.  numpy only.

Callers use `experts.expert`; the law that follows the script is in `servo.py`.
"""

from collections.abc import Callable
import functools

import numpy as np

from pirl_jax.envs import servo
from pirl_jax.envs.servo import CLOSE, OPEN, Leg
from pirl_jax.envs.tabletop import scene, suite

ABOVE_M = 0.08  # of the grip site over the cube, before the descent
CARRY_M = 0.07  # of the cube over its start, and nearly so over the goal
LIFT_M = 0.2  # where lifting is all there is to do
NEAR_M = 0.02
LIFTED_M = 0.015
FINE_M = 0.01
# The fingers need about 4 control steps to reach or to free a cube of 4 cm.
CLOSE_STEPS = 6
OPEN_STEPS = 5
FOR_EVER = 1000  # control steps: longer than the budget of any task


def expert(env: suite.Tabletop) -> Callable[[], np.ndarray]:
    """A function () -> action [7] for the episode `env` has just been reset to."""
    task = env.tasks[env.task]
    script = functools.partial(_script, env, task.manipulated, task.goal)
    return servo.Follower(env.grip_pose, script)


def _script(env: suite.Tabletop, cube: str, goal: str | None) -> list[Leg]:
    pick = _pick(env, cube)
    start_m = env.position(cube).copy()
    if goal is None:
        up = functools.partial(servo.raised, start_m, LIFT_M)
        return [*pick, Leg("lift", up, CLOSE, steps=FOR_EVER)]
    up = functools.partial(servo.raised, start_m, CARRY_M)
    return [*pick, Leg("lift", up, CLOSE, tolerance_m=LIFTED_M), *_place(env, cube, goal)]


def _pick(env: suite.Tabletop, cube: str) -> list[Leg]:
    above = functools.partial(_over, env, cube, ABOVE_M)
    around = functools.partial(_over, env, cube, 0.0)
    yaw = functools.partial(_yaw, env, cube)
    # Without a yaw once it is gripped: the cube turns with the hand.
    return [
        Leg("above", above, OPEN, yaw, NEAR_M),
        Leg("descend", around, OPEN, yaw, FINE_M),
        Leg("close", around, CLOSE, steps=CLOSE_STEPS),
    ]


def _place(env: suite.Tabletop, cube: str, goal: str) -> list[Leg]:
    # of the cube's centre above the goal's: the mark is flat, the other cube is not
    rest_m = scene.CUBE_HALF_M if goal == "target" else 2 * scene.CUBE_HALF_M
    carried = functools.partial(_over, env, goal, rest_m + CARRY_M - 0.03)
    lowered = functools.partial(_over, env, goal, rest_m + 0.002)
    away = functools.partial(_over, env, goal, rest_m + 0.1)
    yaw = functools.partial(_yaw, env, cube)
    return [
        Leg("carry", carried, CLOSE, tolerance_m=FINE_M),
        Leg("lower", lowered, CLOSE, tolerance_m=FINE_M),
        Leg("open", lowered, OPEN, yaw, steps=OPEN_STEPS),
        Leg("leave", away, OPEN, yaw, steps=FOR_EVER),
    ]


def _over(env: suite.Tabletop, body: str, height_m: float) -> np.ndarray:
    """So high over where the body is now: [3] (m)."""
    return servo.raised(env.position(body), height_m)


def _yaw(env: suite.Tabletop, cube: str, grip_rot: np.ndarray) -> float:
    """rad still to turn to close along two of the cube's faces."""
    cube_rot = env.data.body(cube).xmat.reshape(3, 3)
    turn_rad = servo.heading(cube_rot[:, 0]) - servo.heading(grip_rot[:, 0])
    return servo.wrapped(turn_rad, np.pi / 2)
