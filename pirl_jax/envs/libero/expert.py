"""Scripted expert for real LIBERO: picks one object up and places it where the BDDL goal says.

    act = expert.expert(env)   # once per episode, after env.reset; callers use experts.expert
    action_a = act()           # one control step

Where to grip is computed from the collision geometry: among the directions in which the fingers can
close, the one that leaves most room around the open hand.  numpy and mujoco only.
"""

from collections.abc import Callable
import dataclasses
import functools

import mujoco
import numpy as np

from pirl_jax.envs import panda, servo
from pirl_jax.envs.libero import suite
from pirl_jax.envs.servo import CLOSE, OPEN, Leg

# What is wider than the hand opens is gripped at its wall: radius and height (m) in its own frame.
RIM_M = {"akita_black_bowl": (0.047, 0.042)}

# The hand.  The fingertips end below the grip site, the palm is above it.
FINGERS = ("gripper0_finger_joint1", "gripper0_finger_joint2")
OPENING_M = 0.08
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

# The way.
ABOVE_M = 0.06  # of the grip site over the grasp, before and after
OVER_M = 0.03  # of the load over the goal's top on its way
DROP_M = 0.01  # of the load over where it will rest when it is released
RAY_M = 0.5  # over the goal, from where one looks down for the surface there
NEAR_M = 0.02
FINE_M = 0.008

# Control steps.  A leg that has not arrived after so many is stuck, at a joint's limit say.
CLOSE_STEPS = 10
OPEN_STEPS = 8
MOST_STEPS = 40
MOST_FINE_STEPS = 28


def expert(env: suite.Libero) -> Callable[[], np.ndarray]:
    """A function () -> action [7] for the LIBERO episode `env` has just been reset to."""
    scene = Scene(env)

    def script() -> list[Leg]:
        return PickAndPlace(scene).legs()

    return servo.Follower(scene.grip_pose, script)


class Scene:
    """Privileged view of a running episode; the one place here that reaches into the simulator."""

    def __init__(self, env: suite.Libero):
        self._env = env
        self.model = env.simulator.model
        task_env = env.simulator.task_env
        ((_, thing, goal),) = task_env.parsed_problem["goal_state"]  # (on | in, object, place)
        # The place is a region of a body, which has a site, or the body itself.
        region = task_env.object_sites_dict.get(goal)
        self.kind = task_env.get_object(thing).category_name
        self.thing = task_env.obj_body_id[thing]
        self.goal = task_env.obj_body_id[region.parent_name if region else goal]
        self._goal_site = self.model.site(goal).id if region else None
        # Of every geom, the body whose collision shape it is part of; -1: it touches nothing.
        collides = (self.model.geom_contype != 0) | (self.model.geom_conaffinity != 0)
        root = self.model.body_rootid[self.model.geom_bodyid]
        self._root = np.where(collides, root, -1)
        furnishing = np.isin(self._root, list(task_env.obj_body_id.values()))
        self._furnishing = np.flatnonzero(furnishing)

    @property
    def data(self) -> mujoco.MjData:
        """Asked of the env at every use: what stands in a simulator is the env's business."""
        return self._env.simulator.data

    def grip_pose(self) -> servo.Pose:
        """Position [3] (m) and rotation [3,3] of the point between the fingertips."""
        site = self.data.site(panda.GRIP_SITE)
        return site.xpos, site.xmat.reshape(3, 3)

    def opening_m(self) -> float:
        """Between the fingers."""
        data = self.data
        return sum(abs(data.joint(name).qpos[0]) for name in FINGERS)

    def position(self) -> np.ndarray:
        """Origin [3] (m) of the object to move."""
        return self.data.xpos[self.thing]

    def rotation(self) -> np.ndarray:
        """[3,3], of the object to move."""
        return self.data.xmat[self.thing].reshape(3, 3)

    def goal_position(self) -> np.ndarray:
        """Where that origin must come to, seen from above: [3] (m)."""
        if self._goal_site is None:
            return self.data.xpos[self.goal]
        return self.data.site_xpos[self._goal_site]

    def corners(self, body: int) -> np.ndarray:
        """World positions [corners,3] (m) of the collision boxes of one object."""
        signs_83 = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 3), -1).reshape(8, 3)
        found = []
        for geom in np.flatnonzero(self._root == body):
            box = self.model.geom_aabb[geom]  # center, half widths
            local_83 = box[:3] + signs_83 * box[3:]
            rotation = self.data.geom_xmat[geom].reshape(3, 3)
            found.append(self.data.geom_xpos[geom] + local_83 @ rotation.T)
        return np.concatenate(found)

    def support_z(self) -> float:
        """Height (m) of the surface on which the object will rest at the goal."""
        origin_m = servo.raised(self.goal_position(), RAY_M)
        groups = np.array([1, 0, 0, 0, 0, 0], np.uint8)  # group 0: what collides
        hit = np.zeros(1, np.int32)
        distance_m = mujoco.mj_ray(
            self.model,
            self.data,
            origin_m,
            list(servo.DOWN),
            groups,
            1,  # what is fixed to the world counts too
            self.thing,  # does not count: it may already be there
            hit,
        )
        return origin_m[2] - distance_m

    def room(self, points_p3: np.ndarray) -> np.ndarray:
        """Distance [P] (m) of each point to the nearest box of the objects and the furniture.

        Negative inside one.
        """
        geoms = self._furnishing
        rotations = self.data.geom_xmat[geoms].reshape(-1, 3, 3)
        centers = self.model.geom_aabb[geoms, None, :3]
        half_widths = self.model.geom_aabb[geoms, None, 3:]
        # All of [geoms,P,3]: in a geom's frame, beyond the faces of its box.
        local = (points_p3 - self.data.geom_xpos[geoms, None]) @ rotations
        beyond = np.abs(local - centers) - half_widths
        outside_m = np.linalg.norm(beyond.clip(0.0), axis=-1)
        inside_m = beyond.max(-1).clip(max=0.0)
        return (outside_m + inside_m).min(0)


class PickAndPlace:
    """One try, planned from where things are now; its targets follow what moves meanwhile."""

    def __init__(self, scene: Scene):
        self._scene = scene
        grasp = _best_grasp(scene)
        self._grasp_m = grasp.point_m
        start_m = scene.position().copy()
        self._held_z = start_m[2] + ABOVE_M / 2
        # The grasp in the object's frame: it stays valid when the object is pushed.
        to_local = scene.rotation().copy().T
        cosine = np.cos(grasp.direction_rad)
        sine = np.sin(grasp.direction_rad)
        self._grasp_local_m = to_local @ (grasp.point_m - start_m)
        self._axis_local = to_local @ [cosine, sine, 0.0]
        grasp_z = grasp.point_m[2]
        below_m = grasp_z - scene.corners(scene.thing)[:, 2].min()  # how far down the load hangs
        goal_top_z = scene.corners(scene.goal)[:, 2].max()
        # Heights of the grip site on its way: over the grasp, over all, while carried, at release.
        self._above_m = max(ABOVE_M, scene.grip_pose()[0][2] - grasp_z)
        self._clear_z = goal_top_z + OVER_M + below_m
        self._carry_z = max(grasp_z + ABOVE_M, self._clear_z)
        released_z = scene.support_z() + DROP_M + below_m
        self._lower_z = max(released_z, goal_top_z + 0.01 - HAND_M)

    def legs(self) -> list[Leg]:
        """The script; the first leg frees fingers that are closed around something."""
        above = functools.partial(self._at_grasp, self._above_m)
        around = functools.partial(self._at_grasp, 0.0)
        lowered = functools.partial(self._at_goal, self._lower_z)
        away = functools.partial(self._at_goal, self._carry_z)
        legs = [
            Leg("above", above, OPEN, self._yaw, NEAR_M, MOST_STEPS),
            Leg("descend", around, OPEN, self._yaw, FINE_M, MOST_FINE_STEPS),
            Leg("close", around, CLOSE, steps=CLOSE_STEPS),
            Leg("lift", self._lifted, CLOSE, None, NEAR_M, MOST_STEPS, self._is_held),
            Leg("carry", self._glide, CLOSE, None, NEAR_M, MOST_STEPS),
            Leg("lower", lowered, CLOSE, None, FINE_M, MOST_FINE_STEPS),
            Leg("open", lowered, OPEN, steps=OPEN_STEPS),
            # The episode ends at success: whoever comes to the end of this leg has failed.
            Leg("leave", away, OPEN, None, NEAR_M, MOST_STEPS, succeeded=_never),
        ]
        if self._scene.opening_m() < 0.9 * OPENING_M:
            here_m = self._scene.grip_pose()[0].copy()
            legs.insert(0, Leg("free", lambda: here_m, OPEN, steps=OPEN_STEPS))
        return legs

    def _at_grasp(self, height_m: float) -> np.ndarray:
        """[3] (m), so high over the grasp."""
        scene = self._scene
        grasp_m = scene.position() + scene.rotation() @ self._grasp_local_m
        return servo.raised(grasp_m, height_m)

    def _lifted(self) -> np.ndarray:
        return np.append(self._grasp_m[:2], self._carry_z)

    def _at_goal(self, z_m: float) -> np.ndarray:
        """[3] (m) of the grip site that brings the object's origin over the goal's."""
        scene = self._scene
        grip_m = scene.grip_pose()[0]
        there_m = grip_m + scene.goal_position() - scene.position()
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
        wanted_rad = servo.heading(self._scene.rotation() @ self._axis_local)
        return servo.wrapped(wanted_rad - servo.heading(grip_rot[:, 0]), np.pi)

    def _is_held(self) -> bool:
        return self._scene.position()[2] > self._held_z


def _never() -> bool:
    return False


@dataclasses.dataclass(frozen=True)
class Grasp:
    """Where the grip site goes, and the direction, seen from above, in which the fingers close."""

    point_m: np.ndarray  # [3]
    direction_rad: float


def _best_grasp(scene: Scene) -> Grasp:
    """The one that touches least; among those, room against the way to it."""
    grip_m, grip_rot = scene.grip_pose()
    heading_rad = servo.heading(grip_rot[:, 0])

    def worth(grasp: Grasp) -> tuple[int, float]:
        room_p = scene.room(_hand_points(grasp))
        turn_rad = abs(servo.wrapped(grasp.direction_rad - heading_rad, np.pi))
        reach_m = np.linalg.norm((grasp.point_m - grip_m)[:2])
        room_m = min(room_p.min(), ROOM_M)
        touching = np.sum(room_p < TOUCH_M)
        return -touching, room_m - TURN_COST_M * turn_rad - REACH_COST * reach_m

    return max(_grasps(scene), key=worth)


def _grasps(scene: Scene) -> list[Grasp]:
    if scene.kind in RIM_M:
        return _rim_grasps(scene)
    corners = scene.corners(scene.thing)
    low_m = corners.min(0)
    high_m = corners.max(0)
    point_m = (low_m + high_m) / 2
    point_m[2] = max(point_m[2], high_m[2] - DEPTH_M, low_m[2] + TIP_M)
    half_turn = DIRECTIONS_RAD[: len(DIRECTIONS_RAD) // 2]  # the other half closes the same way
    return [Grasp(point_m, direction_rad) for direction_rad in half_turn]


def _rim_grasps(scene: Scene) -> list[Grasp]:
    """All around the wall; the fingers close across it."""
    radius_m, height_m = RIM_M[scene.kind]
    zeros = 0.0 * DIRECTIONS_RAD
    outward = np.stack([np.cos(DIRECTIONS_RAD), np.sin(DIRECTIONS_RAD), zeros], -1)
    rotation = scene.rotation()
    points = scene.position() + servo.raised(radius_m * outward, height_m) @ rotation.T
    return [
        Grasp(point_m, servo.heading(rotation @ axis))
        for point_m, axis in zip(points, outward, strict=True)
    ]


def _hand_points(grasp: Grasp) -> np.ndarray:
    """Points [P,3] (m) that fill the open hand at a grasp, fingers down."""
    x = np.array([np.cos(grasp.direction_rad), np.sin(grasp.direction_rad), 0.0])
    y = np.cross(servo.DOWN, x)
    axes = np.stack([x, y, servo.DOWN])  # rows: of the grip site
    grids = []
    for low_m, high_m in HAND_BOXES_M:
        ticks_m = np.linspace(low_m, high_m, POINTS_PER_EDGE).T
        grids.append(np.stack(np.meshgrid(*ticks_m), -1).reshape(-1, 3))
    return grasp.point_m + np.concatenate(grids) @ axes
