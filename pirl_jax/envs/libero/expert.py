"""Scripted expert for real LIBERO: picks one object up and places it where the BDDL goal says.  numpy and mujoco only.

    act = libero_experts.expert(env)       # once per episode, after env.reset; callers use experts.expert
    action_A = act()                       # one control step

Where to grip is computed from the collision geometry: among the directions in which the fingers can close, the one that
leaves most room around the open hand.
"""

import mujoco
import numpy as np

from pirl_jax.envs import servo
from pirl_jax.envs.servo import CLOSE, OPEN, Leg

# What is wider than the hand opens is gripped at its wall: radius and height (m) in the object's frame.
RIM_M = {"akita_black_bowl": (0.047, 0.042)}
SITE, FINGERS = "gripper0_grip_site", ("gripper0_finger_joint1", "gripper0_finger_joint2")
OPENING_M = 0.08
TIP_M, HAND_M = 0.011, 0.024  # the fingertips' ends are below the grip site, the palm is above it
DEPTH_M = (
    0.021  # of the grip site below the top of something tall: the palm just does not press on it
)
# The open hand in the frame of the grip site, closing along x: lower and upper corners (m) of two fingers and the palm.
HAND_BOXES_M = (
    ((0.04, -0.01, -0.02), (0.06, 0.01, TIP_M)),
    ((-0.06, -0.01, -0.02), (-0.04, 0.01, TIP_M)),
    ((-0.106, -0.035, -0.126), (0.106, 0.035, -HAND_M)),
)
TOUCH_M, ROOM_M = 0.005, 0.03  # less room around the hand may touch; more is worth nothing
ABOVE_M = 0.06  # of the grip site over the grasp, before and after
OVER_M, DROP_M = (
    0.03,
    0.01,
)  # of the load over the goal's top on its way; over where it will rest when it is released
NEAR_M, FINE_M = 0.02, 0.008
CLOSE_STEPS, OPEN_STEPS = 10, 8
MOST_STEPS, MOST_FINE_STEPS = (
    40,
    28,
)  # of a leg: what has not arrived by then is stuck, at a joint's limit say
DIRECTIONS_RAD = np.arange(16) * np.pi / 8
TURN_COST_M, REACH_COST = (
    0.004,
    0.1,
)  # room that a turn of one radian, and a metre further to go, must gain


def expert(env):
    """A function () -> action [7] for the LIBERO episode `env` has just been reset to."""
    scene = Scene(env)
    return servo.follow(scene.grip_pose, lambda: _script(scene))


class Scene:
    """Privileged view of a running episode; the one place here that reaches into the simulator."""

    def __init__(self, env):
        self._env = env
        self.model, task_env = env.simulator.model, env.simulator.task_env
        ((_, thing, goal),) = task_env.parsed_problem["goal_state"]
        region = task_env.object_sites_dict.get(goal)
        self.kind = task_env.get_object(thing).category_name
        self.thing = task_env.obj_body_id[thing]
        self.goal = task_env.obj_body_id[region.parent_name if region else goal]
        self._goal_site = self.model.site(goal).id if region else None
        collides = (self.model.geom_contype != 0) | (self.model.geom_conaffinity != 0)
        self._root = np.where(collides, self.model.body_rootid[self.model.geom_bodyid], -1)
        self._furnishing = np.flatnonzero(np.isin(self._root, list(task_env.obj_body_id.values())))

    @property
    def data(self) -> mujoco.MjData:
        """Asked of the env at every use: what stands in a simulator is the env's business."""
        return self._env.simulator.data

    def grip_pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Position [3] (m) and rotation [3,3] of the point between the fingertips."""
        site = self.data.site(SITE)
        return site.xpos, site.xmat.reshape(3, 3)

    def opening_m(self) -> float:
        return sum(abs(self.data.joint(name).qpos[0]) for name in FINGERS)

    def position(self) -> np.ndarray:
        """Origin [3] (m) of the object to move."""
        return self.data.xpos[self.thing]

    def rotation(self) -> np.ndarray:
        return self.data.xmat[self.thing].reshape(3, 3)

    def goal_position(self) -> np.ndarray:
        """Where that origin must come to, seen from above: [3] (m)."""
        return (
            self.data.xpos[self.goal]
            if self._goal_site is None
            else self.data.site_xpos[self._goal_site]
        )

    def corners(self, body: int) -> np.ndarray:
        """World positions [corners,3] (m) of the collision boxes of one object."""
        signs = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 3), -1).reshape(8, 3)
        found = []
        for geom in np.flatnonzero(self._root == body):
            box = self.model.geom_aabb[geom]
            local = box[:3] + signs * box[3:]
            found.append(
                self.data.geom_xpos[geom] + local @ self.data.geom_xmat[geom].reshape(3, 3).T
            )
        return np.concatenate(found)

    def support_z(self) -> float:
        """Height (m) of the surface on which the object will rest at the goal."""
        origin = self.goal_position() + [0.0, 0.0, 0.5]
        geoms, groups = (
            np.zeros(1, np.int32),
            np.array([1, 0, 0, 0, 0, 0], np.uint8),
        )  # group 0: what collides
        distance_m = mujoco.mj_ray(
            self.model, self.data, origin, [0.0, 0.0, -1.0], groups, 1, self.thing, geoms
        )
        return origin[2] - distance_m

    def room(self, points_P3: np.ndarray) -> np.ndarray:
        """Distance [P] (m) of each point to the nearest box of the objects and the furniture; negative inside one."""
        geoms = self._furnishing
        rotation_G33 = self.data.geom_xmat[geoms].reshape(-1, 3, 3)
        local_GP3 = (points_P3 - self.data.geom_xpos[geoms, None]) @ rotation_G33
        outside_GP3 = (
            np.abs(local_GP3 - self.model.geom_aabb[geoms, None, :3])
            - self.model.geom_aabb[geoms, None, 3:]
        )
        return (
            np.linalg.norm(outside_GP3.clip(0.0), axis=-1) + outside_GP3.max(-1).clip(max=0.0)
        ).min(0)


def _script(scene: Scene) -> list[Leg]:
    """One pick and place from where things are now."""
    point, direction_rad = _grasp(scene)
    start, rotation = scene.position().copy(), scene.rotation().copy()
    point_local = rotation.T @ (point - start)
    axis_local = rotation.T @ [np.cos(direction_rad), np.sin(direction_rad), 0.0]
    below_m = (
        point[2] - scene.corners(scene.thing)[:, 2].min()
    )  # the load's lowest point, of the grip site
    goal_top_z, support_z = scene.corners(scene.goal)[:, 2].max(), scene.support_z()
    above_m = max(ABOVE_M, scene.grip_pose()[0][2] - point[2])
    clear_z = goal_top_z + OVER_M + below_m
    carry_z = max(point[2] + ABOVE_M, clear_z)
    lower_z = max(support_z + DROP_M + below_m, goal_top_z + 0.01 - HAND_M)

    def grasp(height_m):
        return lambda: scene.position() + scene.rotation() @ point_local + [0.0, 0.0, height_m]

    def yaw(grip_rot):
        return servo.wrapped(
            servo.heading(scene.rotation() @ axis_local) - servo.heading(grip_rot[:, 0]), np.pi
        )

    def at_goal(z):
        return lambda: np.append(
            (scene.grip_pose()[0] + scene.goal_position() - scene.position())[:2], z
        )

    def glide():  # down at 45 degrees where the start was higher than the goal: the arm does not reach far and high
        there = at_goal(carry_z)()
        there[2] = min(carry_z, clear_z + np.linalg.norm((there - scene.grip_pose()[0])[:2]))
        return there

    def held():
        return scene.position()[2] > start[2] + ABOVE_M / 2

    def lifted():
        return np.append(point[:2], carry_z)

    here = scene.grip_pose()[0].copy()
    free = (
        [Leg("free", lambda: here, OPEN, steps=OPEN_STEPS)]
        if scene.opening_m() < 0.9 * OPENING_M
        else []
    )
    return [
        *free,
        Leg("above", grasp(above_m), OPEN, yaw, NEAR_M, MOST_STEPS),
        Leg("descend", grasp(0.0), OPEN, yaw, FINE_M, MOST_FINE_STEPS),
        Leg("close", grasp(0.0), CLOSE, steps=CLOSE_STEPS),
        Leg("lift", lifted, CLOSE, None, NEAR_M, MOST_STEPS, held),
        Leg("carry", glide, CLOSE, None, NEAR_M, MOST_STEPS),
        Leg("lower", at_goal(lower_z), CLOSE, None, FINE_M, MOST_FINE_STEPS),
        Leg("open", at_goal(lower_z), OPEN, steps=OPEN_STEPS),
        Leg("leave", at_goal(carry_z), OPEN, None, NEAR_M, MOST_STEPS, lambda: False),
    ]


def _grasp(scene: Scene) -> tuple[np.ndarray, float]:
    """Position [3] (m) of the grip site and the direction (rad) in which the fingers close."""
    grip_pos, grip_rot = scene.grip_pose()
    heading_rad = servo.heading(grip_rot[:, 0])

    def worth(candidate):
        room_P = scene.room(_hand_points(*candidate))
        turn_rad = abs(servo.wrapped(candidate[1] - heading_rad, np.pi))
        reach_m = np.linalg.norm((candidate[0] - grip_pos)[:2])
        return -np.sum(room_P < TOUCH_M), min(
            room_P.min(), ROOM_M
        ) - TURN_COST_M * turn_rad - REACH_COST * reach_m

    return max(_candidates(scene), key=worth)


def _candidates(scene: Scene) -> list[tuple[np.ndarray, float]]:
    if scene.kind in RIM_M:
        radius_m, height_m = RIM_M[scene.kind]
        out_D3 = np.stack(
            [np.cos(DIRECTIONS_RAD), np.sin(DIRECTIONS_RAD), 0.0 * DIRECTIONS_RAD], -1
        )
        points_D3 = (
            scene.position() + (radius_m * out_D3 + [0.0, 0.0, height_m]) @ scene.rotation().T
        )
        return [
            (point, servo.heading(scene.rotation() @ out))
            for point, out in zip(points_D3, out_D3, strict=True)
        ]
    corners = scene.corners(scene.thing)
    low, high = corners.min(0), corners.max(0)
    point = (low + high) / 2
    point[2] = max(point[2], high[2] - DEPTH_M, low[2] + TIP_M)
    return [(point, a) for a in DIRECTIONS_RAD[: len(DIRECTIONS_RAD) // 2]]


def _hand_points(point: np.ndarray, direction_rad: float) -> np.ndarray:
    """Points [P,3] (m) that fill the open hand at a grasp, fingers down."""
    x = np.array([np.cos(direction_rad), np.sin(direction_rad), 0.0])
    frame = np.stack(
        [x, np.cross([0.0, 0.0, -1.0], x), [0.0, 0.0, -1.0]]
    )  # rows: axes of the grip site
    grids = [
        np.stack(np.meshgrid(*np.linspace(low, high, 5).T), -1).reshape(-1, 3)
        for low, high in HAND_BOXES_M
    ]
    return point + np.concatenate(grids) @ frame
