"""Script that turns a stove's knob on.  numpy only."""

import functools

import numpy as np

from pirl_jax.envs import servo
from pirl_jax.envs.libero import grasp as grasps
from pirl_jax.envs.libero import scene as scenes
from pirl_jax.envs.libero.legs import (
    ABOVE_M,
    CLOSE_STEPS,
    FINE_M,
    MOST_FINE_STEPS,
    MOST_STEPS,
    NEAR_M,
    OPEN_STEPS,
    never,
)
from pirl_jax.envs.servo import CLOSE, OPEN, Leg

ON_RAD = 0.7  # where the hand turns the knob to; a stove is on from 0.5
SLACK_M = 0.05  # that the hand may move aside while it turns


class TurnOn:
    """One try, planned from where things are now."""

    def __init__(self, scene: scenes.Scene, goal: scenes.Goal):
        self._scene = scene
        self._joint = scene.joint(goal.thing)
        corners = scene.corners_of(scene.moving_part(self._joint))
        point_m = scene.data.xanchor[self._joint].copy()
        point_m[2] = corners[:, 2].max() - grasps.DEPTH_M
        nothing = np.zeros(0, int)
        self.grasp = grasps.best(scene, grasps.from_above(point_m), nothing, np.copy)
        self._above_m = max(ABOVE_M, scene.grip_pose()[0][2] - point_m[2])

    def legs(self) -> list[Leg]:
        """The script."""
        point_m = self.grasp.point_m
        above = functools.partial(servo.raised, point_m, self._above_m)
        around = functools.partial(servo.raised, point_m, 0.0)
        return [
            Leg("above", above, OPEN, self._yaw, NEAR_M, MOST_STEPS),
            Leg("descend", around, OPEN, self._yaw, FINE_M, MOST_FINE_STEPS),
            Leg("close", around, CLOSE, steps=CLOSE_STEPS),
            Leg("turn", around, CLOSE, self._to_turn, SLACK_M, MOST_STEPS),
            Leg("open", around, OPEN, steps=OPEN_STEPS),
            Leg("leave", above, OPEN, None, NEAR_M, MOST_STEPS, never),
        ]

    def _yaw(self, grip_rot: np.ndarray) -> float:
        """rad still to turn until the fingers are on both sides."""
        turn_rad = self.grasp.direction_rad - servo.heading(grip_rot[:, 0])
        return servo.wrapped(turn_rad, np.pi)

    def _to_turn(self, grip_rot: np.ndarray) -> float:
        """rad that the knob, and with it the hand, still has to turn."""
        return max(0.0, ON_RAD - self._scene.joint_position(self._joint))
