"""Script that pulls a drawer open at its handle.  numpy only."""

import functools

import numpy as np

from pirl_jax.envs.libero import scene as scenes
from pirl_jax.envs.libero.legs import (
    CLOSE_STEPS,
    FINE_M,
    MOST_STEPS,
    NEAR_M,
    OPEN_STEPS,
    never,
)
from pirl_jax.envs.servo import CLOSE, OPEN, Leg

TILT_RAD = 0.35  # of the hand before the handle, from level towards upright
BEFORE_M = 0.1  # of the grip site before the handle, before and after
OUT_M = 0.004  # of the grip site before the middle of the handle while it grips
OPEN_M = 0.155  # that a drawer is pulled; it counts as open from 0.14


class PullOpen:
    """One try, planned from where things are now."""

    def __init__(self, scene: scenes.Scene, goal: scenes.Goal):
        self._scene = scene
        self._joint = scene.joint(goal.thing)
        low, high = scene.model.jnt_range[self._joint]
        axis = scene.data.xaxis[self._joint].copy()
        self._outward = axis if high > -low else -axis
        # The handle is what reaches out furthest.
        parts = scene.moving_part(self._joint)
        reach_m = [(scene.corners_of([part]) @ self._outward).max() for part in parts]
        self._handle = parts[int(np.argmax(reach_m))]
        self._start_z = scene.grip_pose()[0][2]
        self._rotation = self._level()

    def _level(self) -> np.ndarray:
        """[3,3] of the grip site: fingers at the handle, one above and one below."""
        up = np.array([0.0, 0.0, 1.0])
        fingers = -np.cos(TILT_RAD) * self._outward - np.sin(TILT_RAD) * up
        across = np.cos(TILT_RAD) * up - np.sin(TILT_RAD) * self._outward
        now = self._scene.grip_pose()[1]
        turned = []
        for closing in (across, -across):
            turned.append(np.stack([closing, np.cross(fingers, closing), fingers], -1))
        return max(turned, key=lambda rotation: np.sum(rotation * now))

    def _before(self, distance_m: float) -> np.ndarray:
        """[3] (m), so far before the handle."""
        return self._scene.data.geom_xpos[self._handle] + distance_m * self._outward

    def _high(self) -> np.ndarray:
        before_m = self._before(BEFORE_M)
        before_m[2] = max(before_m[2], self._start_z)
        return before_m

    def _pulled(self) -> np.ndarray:
        """[3] (m): as far ahead of the drawer as it still has to come."""
        out_m = abs(self._scene.joint_position(self._joint))
        return self._before(OUT_M + max(0.0, OPEN_M - out_m))

    def legs(self) -> list[Leg]:
        """The script."""
        before = functools.partial(self._before, BEFORE_M)
        around = functools.partial(self._before, OUT_M)
        level = dict(rotation=self._rotation)
        return [
            Leg("level", self._high, OPEN, None, NEAR_M, MOST_STEPS, **level),
            Leg("lower", before, OPEN, None, NEAR_M, MOST_STEPS, **level),
            Leg("reach", around, OPEN, None, FINE_M, MOST_STEPS, **level),
            Leg("close", around, CLOSE, steps=CLOSE_STEPS, **level),
            Leg("pull", self._pulled, CLOSE, None, FINE_M, MOST_STEPS, **level),
            Leg("open", around, OPEN, steps=OPEN_STEPS, **level),
            Leg("leave", self._high, OPEN, None, NEAR_M, MOST_STEPS, never),
        ]
