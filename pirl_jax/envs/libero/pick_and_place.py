"""Script that picks one thing up and places it where the goal says.  numpy only."""

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

# The way.
OVER_M = 0.03  # of the load over the goal's top on its way
DROP_M = 0.01  # of the load over where it will rest when it is released


class PickAndPlace:
    """One try, planned from where things are now; its targets follow what moves meanwhile."""

    def __init__(self, scene: scenes.Scene, goal: scenes.Goal):
        self._scene = scene
        self._thing = scene.body(goal.thing)
        self._place = scene.place(goal)
        # Heights at the goal: where the thing will stand, what the hand must stay above.
        self._support_z = scene.support_z(self._target(), self._thing)
        self._goal_top_z = self._support_z
        if self._place.body is not None:
            self._goal_top_z = scene.corners(self._place.body)[:, 2].max()
        self._bottom_z = scene.corners(self._thing)[:, 2].min()
        furniture = scene.furniture(but=self._place.body)
        found = grasps.of_thing(scene, goal.thing)
        self.grasp = grasp = grasps.best(scene, found, furniture, self._released)
        start_m = scene.position(self._thing).copy()
        self._held_z = start_m[2] + ABOVE_M / 2
        # The grasp in the object's frame: it stays valid when the object is pushed.
        to_local = scene.rotation(self._thing).copy().T
        cosine = np.cos(grasp.direction_rad)
        sine = np.sin(grasp.direction_rad)
        self._grasp_local_m = to_local @ (grasp.point_m - start_m)
        self._axis_local = to_local @ [cosine, sine, 0.0]
        grasp_z = grasp.point_m[2]
        below_m = grasp_z - self._bottom_z  # how far down the load hangs
        # Heights of the grip site on its way: over the grasp, over all, while carried, at release.
        self._above_m = max(ABOVE_M, scene.grip_pose()[0][2] - grasp_z)
        self._clear_z = self._goal_top_z + OVER_M + below_m
        self._carry_z = max(grasp_z + ABOVE_M, self._clear_z)
        self._lower_z = self._released(grasp.point_m)[2]
        self._slot = scene.slot(self._place) if goal.verb == "in" else None
        flat = scene.corners(self._thing)[:, :2]
        # Level axis along the thing, in its own frame.
        _, along = np.linalg.eigh(np.cov(flat.T))
        self._along_local = to_local @ np.append(along[:, 1], 0.0)

    def _target(self) -> np.ndarray:
        """Where the origin of the thing must come to, seen from above: [3] (m)."""
        return self._scene.place_position(self._place)

    def _released(self, grasp_m: np.ndarray) -> np.ndarray:
        """[3] (m) of the grip site when it lets go of what it gripped there."""
        moved_m = grasp_m + self._target() - self._scene.position(self._thing)
        released_z = self._support_z + DROP_M + (grasp_m[2] - self._bottom_z)
        lower_z = max(released_z, self._goal_top_z + 0.01 - grasps.HAND_M)
        return np.append(moved_m[:2], lower_z)

    def legs(self) -> list[Leg]:
        """The script."""
        above = functools.partial(self._at_grasp, self._above_m)
        around = functools.partial(self._at_grasp, 0.0)
        lowered = functools.partial(self._at_goal, self._lower_z)
        away = functools.partial(self._at_goal, self._carry_z)
        fit = None
        carried_m = NEAR_M
        if self._slot is not None:
            fit = self._fit
            carried_m = FINE_M
        return [
            Leg("above", above, OPEN, self._yaw, NEAR_M, MOST_STEPS),
            Leg("descend", around, OPEN, self._yaw, FINE_M, MOST_FINE_STEPS),
            Leg("close", around, CLOSE, steps=CLOSE_STEPS),
            Leg("lift", self._lifted, CLOSE, None, NEAR_M, MOST_STEPS, self._is_held),
            Leg("carry", self._glide, CLOSE, fit, carried_m, MOST_STEPS),
            Leg("lower", lowered, CLOSE, fit, FINE_M, MOST_FINE_STEPS),
            Leg("open", lowered, OPEN, steps=OPEN_STEPS),
            # The episode ends at success: whoever comes to the end of this leg has failed.
            Leg("leave", away, OPEN, None, NEAR_M, MOST_STEPS, succeeded=never),
        ]

    def _at_grasp(self, height_m: float) -> np.ndarray:
        """[3] (m), so high over the grasp."""
        scene = self._scene
        grasp_m = scene.position(self._thing) + scene.rotation(self._thing) @ self._grasp_local_m
        return servo.raised(grasp_m, height_m)

    def _lifted(self) -> np.ndarray:
        return np.append(self.grasp.point_m[:2], self._carry_z)

    def _at_goal(self, z_m: float) -> np.ndarray:
        """[3] (m) of the grip site that brings the object's origin over the goal's."""
        scene = self._scene
        grip_m = scene.grip_pose()[0]
        there_m = grip_m + self._target() - scene.position(self._thing)
        return np.append(there_m[:2], z_m)

    def _glide(self) -> np.ndarray:
        """Over the goal, down at 45 degrees where the start was higher than the goal.

        The arm does not reach far and high.
        """
        there_m = self._at_goal(self._carry_z)
        still_to_go_m = np.linalg.norm((there_m - self._scene.grip_pose()[0])[:2])
        there_m[2] = min(self._carry_z, self._clear_z + still_to_go_m)
        return there_m

    def _yaw(self, grip_rot: np.ndarray) -> float:
        """rad still to turn; half a turn gives the same grasp."""
        wanted_rad = servo.heading(self._scene.rotation(self._thing) @ self._axis_local)
        return servo.wrapped(wanted_rad - servo.heading(grip_rot[:, 0]), np.pi)

    def _fit(self, grip_rot: np.ndarray) -> float:
        """rad still to turn until the thing lies along the slot."""
        along = self._scene.rotation(self._thing) @ self._along_local
        return servo.wrapped(servo.heading(self._slot) - servo.heading(along), np.pi)

    def _is_held(self) -> bool:
        return self._scene.position(self._thing)[2] > self._held_z
