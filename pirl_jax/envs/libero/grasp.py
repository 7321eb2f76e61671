"""Where a hand grips a thing: the direction of the fingers that leaves most room around them.

Computed from the collision geometry.  numpy only.  Knows neither goal nor way.
"""

from collections.abc import Callable
import dataclasses

import numpy as np

from pirl_jax.envs import servo
from pirl_jax.envs.libero import scene as scenes


@dataclasses.dataclass(frozen=True)
class Rim:
    """A round wall, in the frame of the thing."""

    radius_m: float
    height_m: float  # where the grip site goes
    center_m: tuple[float, float, float] = (0.0, 0.0, 0.0)


# What is wider than the hand opens is gripped at its wall.
RIMS = {
    "akita_black_bowl": Rim(0.047, 0.042),
    "porcelain_mug": Rim(0.042, 0.095, (0.0155, 0.0, 0.0)),
    "white_yellow_mug": Rim(0.044, 0.09, (-0.0185, 0.0, 0.0)),
}

# Handle and spout reach far out; these are gripped over their origin.
AROUND_ORIGIN = ("moka_pot",)

# The hand.  The fingertips end below the grip site, the palm is above it.
TIP_M = 0.011
HAND_M = 0.024
# The open hand in the frame of the grip site, closing along x: lower and upper corners (m).
HAND_BOXES_M = (
    ((0.04, -0.01, -0.02), (0.06, 0.01, TIP_M)),  # a finger
    ((-0.06, -0.01, -0.02), (-0.04, 0.01, TIP_M)),  # the other
    ((-0.106, -0.035, -0.126), (0.106, 0.035, -HAND_M)),  # the palm
)
POINTS_PER_EDGE = 5  # that fill a box of the hand

# The choice of a grasp.
DEPTH_M = 0.021  # of the grip site below the top of something tall: the palm just does not press
TOUCH_M = 0.005  # less room around the hand than this may touch
ROOM_M = 0.03  # more room than this is worth nothing
DIRECTIONS_RAD = np.arange(16) * np.pi / 8
TURN_COST_M = 0.004  # room that a turn of one radian must gain
REACH_COST = 0.1  # room (m) that a metre further to go must gain


@dataclasses.dataclass(frozen=True)
class Grasp:
    """Where the grip site goes, and the direction, seen from above, in which the fingers close."""

    point_m: np.ndarray  # [3]
    direction_rad: float


def best(
    scene: scenes.Scene,
    grasps: list[Grasp],
    furniture: np.ndarray,
    at_goal: Callable[[np.ndarray], np.ndarray],
) -> Grasp:
    """The one that touches least, here and at the goal; among those, room against the way to it.

    furniture: collision shapes that may be in the way at the goal.
    at_goal: where the grip site [3] (m) will be when it lets go, of where it grips.
    """
    grip_m, grip_rot = scene.grip_pose()
    heading_rad = servo.heading(grip_rot[:, 0])

    def worth(grasp: Grasp) -> tuple[int, int, float]:
        there = Grasp(at_goal(grasp.point_m), grasp.direction_rad)
        touching_there = np.sum(scene.room(hand_points(there), furniture) < TOUCH_M)
        room_p = scene.room(hand_points(grasp))
        turn_rad = abs(servo.wrapped(grasp.direction_rad - heading_rad, np.pi))
        reach_m = np.linalg.norm((grasp.point_m - grip_m)[:2])
        room_m = min(room_p.min(), ROOM_M)
        touching = np.sum(room_p < TOUCH_M)
        return -touching, -touching_there, room_m - TURN_COST_M * turn_rad - REACH_COST * reach_m

    return max(grasps, key=worth)


def of_thing(scene: scenes.Scene, thing: str) -> list[Grasp]:
    """How a hand can grip an object that nothing holds."""
    body = scene.body(thing)
    rim = RIMS.get(scene.kind(thing))
    if rim:
        return _rim_grasps(scene, body, rim)
    corners = scene.corners(body)
    low_m = corners.min(0)
    high_m = corners.max(0)
    point_m = (low_m + high_m) / 2
    if scene.kind(thing) in AROUND_ORIGIN:
        point_m[:2] = scene.position(body)[:2]
    point_m[2] = max(point_m[2], high_m[2] - DEPTH_M, low_m[2] + TIP_M)
    return from_above(point_m)


def from_above(point_m: np.ndarray) -> list[Grasp]:
    """Across a point [3] (m), in every direction."""
    half_turn = DIRECTIONS_RAD[: len(DIRECTIONS_RAD) // 2]  # the other half closes the same way
    return [Grasp(point_m, direction_rad) for direction_rad in half_turn]


def _rim_grasps(scene: scenes.Scene, body: int, rim: Rim) -> list[Grasp]:
    """All around the wall; the fingers close across it."""
    zeros = 0.0 * DIRECTIONS_RAD
    outward = np.stack([np.cos(DIRECTIONS_RAD), np.sin(DIRECTIONS_RAD), zeros], -1)
    rotation = scene.rotation(body)
    points = (
        scene.position(body)
        + servo.raised(rim.radius_m * outward + rim.center_m, rim.height_m) @ rotation.T
    )
    return [
        Grasp(point_m, servo.heading(rotation @ axis))
        for point_m, axis in zip(points, outward, strict=True)
    ]


def hand_points(grasp: Grasp) -> np.ndarray:
    """Points [P,3] (m) that fill the open hand at a grasp, fingers down."""
    x = np.array([np.cos(grasp.direction_rad), np.sin(grasp.direction_rad), 0.0])
    y = np.cross(servo.DOWN, x)
    axes = np.stack([x, y, servo.DOWN])  # rows: of the grip site
    grids = []
    for low_m, high_m in HAND_BOXES_M:
        ticks_m = np.linspace(low_m, high_m, POINTS_PER_EDGE).T
        grids.append(np.stack(np.meshgrid(*ticks_m), -1).reshape(-1, 3))
    return grasp.point_m + np.concatenate(grids) @ axes
