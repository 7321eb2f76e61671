"""The law of all scripted experts: a proportional servo leads the grip site along the legs of a script.  numpy only.

Knows neither suite nor task; a leg brings its own target.
"""

from collections.abc import Callable
import dataclasses

import numpy as np

from pirl_jax.envs.tabletop import control

GAIN = 2.0  # action per (error / full scale): the arm covers about half of a step's delta
NEAR_RAD = 0.08
OPEN, CLOSE = -1.0, 1.0


@dataclasses.dataclass
class Leg:
    """Where to servo, the gripper's command, and when the leg ends: near and aligned, or after so many steps."""

    name: str
    target: Callable[[], np.ndarray]  # world position [3] (m) of the grip site, asked at every step
    gripper: float
    yaw: Callable[[np.ndarray], float] | None = (
        None  # rotation [3,3] of the grip site -> rad still to turn; None: any
    )
    tolerance_m: float | None = None
    steps: int | None = None
    succeeded: Callable[[], bool] = lambda: (
        True
    )  # asked at the end; if not, the script starts again


def follow(grip_pose: Callable[[], tuple[np.ndarray, np.ndarray]], script: Callable[[], list[Leg]]):
    """A function () -> action [7].  `grip_pose` gives position [3] (m) and rotation [3,3] of the grip site; `script` is
    called at the start, and again whenever a leg did not succeed."""
    legs, steps = script(), 0

    def act() -> np.ndarray:
        nonlocal legs, steps
        leg = legs[0]
        error_m, error_rad = _errors(*grip_pose(), leg)
        action_A = np.zeros(7)
        action_A[:6] = np.clip(
            GAIN * np.concatenate([error_m, error_rad]) / control.MAX_DELTA, -1.0, 1.0
        )
        action_A[6] = leg.gripper
        steps += 1
        arrived = leg.tolerance_m is not None and np.linalg.norm(error_m) < leg.tolerance_m
        aligned = leg.yaw is None or np.linalg.norm(error_rad) < NEAR_RAD
        if (arrived and aligned) or steps == leg.steps:
            legs, steps = (legs[1:] if leg.succeeded() else script()), 0
        return action_A

    return act


def _errors(grip_pos, grip_rot, leg: Leg) -> tuple[np.ndarray, np.ndarray]:
    """Position error [3] (m); rotation error [3] (rad): fingers down, and turned as the leg wishes."""
    error_rad = np.cross(grip_rot[:, 2], [0.0, 0.0, -1.0])
    if leg.yaw is not None:
        error_rad[2] += leg.yaw(grip_rot)
    return leg.target() - grip_pos, error_rad


def heading(axis: np.ndarray) -> float:
    """Direction (rad) of a vector seen from above."""
    return np.arctan2(axis[1], axis[0])


def wrapped(angle_rad: float, period_rad: float) -> float:
    """The equivalent angle in [-period/2, period/2): the shortest turn of what looks the same after a period."""
    return (angle_rad + period_rad / 2) % period_rad - period_rad / 2
