"""The law of all scripted experts: a proportional servo leads the grip site along a script of legs.

numpy only.  Knows neither suite nor task; a leg brings its own target.
"""

from collections.abc import Callable
import dataclasses

import numpy as np

from pirl_jax.envs import panda

GAIN = 2.0  # action per (error / full scale): the arm covers about half of a step's delta
NEAR_RAD = 0.08  # error of the rotation below which the hand counts as aligned
DOWN = (0.0, 0.0, -1.0)  # where the fingers point, in the world

# commands to the gripper
OPEN = -1.0
CLOSE = 1.0

Pose = tuple[np.ndarray, np.ndarray]  # position [3] (m), rotation [3,3]


def _always() -> bool:
    return True


@dataclasses.dataclass
class Leg:
    """Where to servo, the gripper's command, and when the leg ends.

    It ends near its target and aligned, or after so many control steps.
    """

    name: str
    target: Callable[[], np.ndarray]  # position [3] (m) of the grip site, asked at every step
    gripper: float
    # rotation [3,3] of the grip site -> rad still to turn; None: any direction will do
    yaw: Callable[[np.ndarray], float] | None = None
    tolerance_m: float | None = None
    steps: int | None = None
    # asked at the end; if not, the script starts again
    succeeded: Callable[[], bool] = _always
    # wanted rotation [3,3] of the grip site, in place of fingers down and the yaw
    rotation: np.ndarray | None = None


class Follower:
    """A function () -> action [7] that follows a script, one control step per call."""

    def __init__(self, grip_pose: Callable[[], Pose], script: Callable[[], list[Leg]]):
        """`grip_pose` gives the pose of the grip site.

        `script` is called now, and again whenever a leg did not succeed.
        """
        self._grip_pose = grip_pose
        self._script = script
        self._legs = script()
        self._steps = 0  # control steps of the leg

    def __call__(self) -> np.ndarray:
        leg = self._legs[0]
        grip_m, grip_rot = self._grip_pose()
        error_m = leg.target() - grip_m
        error_rad = _rotation_error(grip_rot, leg)
        scaled = GAIN * np.concatenate([error_m, error_rad]) / panda.MAX_DELTA
        action_a = np.zeros(7)
        action_a[:6] = np.clip(scaled, -1.0, 1.0)
        action_a[6] = leg.gripper
        self._steps += 1
        arrived = leg.tolerance_m is not None and np.linalg.norm(error_m) < leg.tolerance_m
        turns_freely = leg.yaw is None and leg.rotation is None
        aligned = turns_freely or np.linalg.norm(error_rad) < NEAR_RAD
        if (arrived and aligned) or self._steps == leg.steps:
            self._next_leg()
        return action_a

    def _next_leg(self) -> None:
        if self._legs[0].succeeded():
            self._legs = self._legs[1:]
        else:
            self._legs = self._script()
        self._steps = 0


def _rotation_error(grip_rot: np.ndarray, leg: Leg) -> np.ndarray:
    """Rotation vector [3] (rad) still to turn: fingers down, and as the leg wishes."""
    if leg.rotation is not None:
        return 0.5 * np.cross(grip_rot.T, leg.rotation.T).sum(0)  # the sine of the angle
    error_rad = np.cross(grip_rot[:, 2], DOWN)  # its sine; the hand is never far from upright
    if leg.yaw is not None:
        error_rad[2] += leg.yaw(grip_rot)
    return error_rad


def raised(position_m: np.ndarray, height_m: float) -> np.ndarray:
    """[...,3] (m), so much higher."""
    return position_m + np.array([0.0, 0.0, height_m])


def heading(axis: np.ndarray) -> float:
    """Direction (rad) of a vector [3] seen from above."""
    return np.arctan2(axis[1], axis[0])


def wrapped(angle_rad: float, period_rad: float) -> float:
    """The equivalent angle in [-period/2, period/2): the shortest turn of what repeats itself."""
    return (angle_rad + period_rad / 2) % period_rad - period_rad / 2
