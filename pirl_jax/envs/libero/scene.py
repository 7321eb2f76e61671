"""What a scripted expert sees of a running LIBERO episode: goals, things, places, free room.

Privileged; the one place of the experts that reaches into the simulator.  numpy and mujoco only.
Knows no script.
"""

import dataclasses

import mujoco
import numpy as np

from pirl_jax.envs import panda, servo
from pirl_jax.envs.libero import suite

FINGERS = ("gripper0_finger_joint1", "gripper0_finger_joint2")
RAY_M = 0.5  # over a place, from where one looks down for the surface there
SHARE = 1.6  # of a region's half width, between two things on it
BEYOND_M = 1e-4  # behind the surface of the arm, from where one looks on


@dataclasses.dataclass(frozen=True)
class Goal:
    """One condition of a task's goal, as its BDDL file names it."""

    verb: str  # on | in | open | close | turnon
    thing: str  # that is to be moved
    place: str | None = None  # where to; None: the thing itself moves


@dataclasses.dataclass(frozen=True)
class Place:
    """A region of a body, which has a site, or the body itself."""

    body: int | None  # None: the region is on the table
    site: int | None
    aside_m: float = 0.0  # of the middle, along the site's first axis


class Scene:
    """View of one episode; positions are asked of the env at every use."""

    def __init__(self, env: suite.Libero):
        self._env = env
        self.model = env.simulator.model
        self._task_env = env.simulator.task_env
        self.goals = [Goal(*words) for words in self._task_env.parsed_problem["goal_state"]]
        # Of every geom, the body whose collision shape it is part of; -1: it touches nothing.
        collides = (self.model.geom_contype != 0) | (self.model.geom_conaffinity != 0)
        root = self.model.body_rootid[self.model.geom_bodyid]
        self._root = np.where(collides, root, -1)
        self._arm = self.model.body_rootid[self.model.site(panda.GRIP_SITE).bodyid[0]]
        furnishing = np.isin(self._root, list(self._task_env.obj_body_id.values()))
        self._furnishing = np.flatnonzero(furnishing)

    @property
    def data(self) -> mujoco.MjData:
        """Asked of the env at every use: what stands in a simulator is the env's business."""
        return self._env.simulator.data

    def holds(self, goal: Goal) -> bool:
        """LIBERO's own judgement."""
        words = [goal.verb, goal.thing, goal.place]
        return bool(self._task_env._eval_predicate([word for word in words if word]))

    def body(self, thing: str) -> int:
        """Of an object or a piece of furniture."""
        return self._task_env.obj_body_id[thing]

    def kind(self, thing: str) -> str:
        """What sort of object it is."""
        return self._task_env.get_object(thing).category_name

    def place(self, goal: Goal) -> Place:
        """Where a goal wants something; things that share a surface stand side by side."""
        region = self._task_env.object_sites_dict.get(goal.place)
        if region is None:
            return Place(self.body(goal.place), None)
        body = self.body(region.parent_name) if region.parent_name else None
        site = self.model.site(goal.place).id
        sharing = [other for other in self.goals if other.place == goal.place]
        side = sharing.index(goal) - (len(sharing) - 1) / 2 if goal.verb == "on" else 0.0
        return Place(body, site, side * SHARE * self.model.site_size[site, 0])

    def grip_pose(self) -> servo.Pose:
        """Position [3] (m) and rotation [3,3] of the point between the fingertips."""
        site = self.data.site(panda.GRIP_SITE)
        return site.xpos, site.xmat.reshape(3, 3)

    def opening_m(self) -> float:
        """Between the fingers."""
        data = self.data
        return sum(abs(data.joint(name).qpos[0]) for name in FINGERS)

    def position(self, body: int) -> np.ndarray:
        """Origin [3] (m)."""
        return self.data.xpos[body]

    def rotation(self, body: int) -> np.ndarray:
        """[3,3]."""
        return self.data.xmat[body].reshape(3, 3)

    def place_position(self, place: Place) -> np.ndarray:
        """Where the origin of a thing must come to, seen from above: [3] (m)."""
        if place.site is None:
            return self.data.xpos[place.body]
        middle_m = self.data.site_xpos[place.site]
        if not place.aside_m:
            return middle_m
        return middle_m + place.aside_m * self.data.site_xmat[place.site].reshape(3, 3)[:, 0]

    def joint(self, thing: str) -> int:
        """Of a knob, a drawer or a door."""
        (name,) = self._task_env.get_object(thing).joints
        return self.model.joint(name).id

    def joint_position(self, joint: int) -> float:
        """rad, or m."""
        return self.data.qpos[self.model.jnt_qposadr[joint]]

    def moving_part(self, joint: int) -> np.ndarray:
        """Collision shapes of what the joint moves."""
        moves = self.model.geom_bodyid == self.model.jnt_bodyid[joint]
        return np.flatnonzero(moves & (self._root >= 0))

    def corners(self, body: int) -> np.ndarray:
        """World positions [corners,3] (m) of the collision boxes of one object."""
        return self.corners_of(np.flatnonzero(self._root == body))

    def corners_of(self, geoms: np.ndarray) -> np.ndarray:
        """World positions [corners,3] (m) of these boxes."""
        signs_83 = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 3), -1).reshape(8, 3)
        found = []
        for geom in geoms:
            box = self.model.geom_aabb[geom]  # center, half widths
            local_83 = box[:3] + signs_83 * box[3:]
            rotation = self.data.geom_xmat[geom].reshape(3, 3)
            found.append(self.data.geom_xpos[geom] + local_83 @ rotation.T)
        return np.concatenate(found)

    def support_z(self, point_m: np.ndarray, ignored: int) -> float:
        """Height (m) of the surface below a point; the body ignored may already be there.

        So may the arm, which is looked through.
        """
        origin_m = servo.raised(point_m, RAY_M)
        groups = np.array([1, 0, 0, 0, 0, 0], np.uint8)  # group 0: what collides
        hit = np.zeros(1, np.int32)
        while True:
            distance_m = mujoco.mj_ray(
                self.model,
                self.data,
                origin_m,
                list(servo.DOWN),
                groups,
                1,  # what is fixed to the world counts too
                ignored,
                hit,
            )
            if self._root[hit[0]] != self._arm:
                return origin_m[2] - distance_m
            origin_m = servo.raised(origin_m, -distance_m - BEYOND_M)

    def furniture(self, but: int | None) -> np.ndarray:
        """Collision shapes of what stands fixed, but for one body's."""
        bodies = {self.body(name) for name in self._task_env.fixtures_dict} - {but}
        return np.flatnonzero(np.isin(self._root, list(bodies)))

    def room(self, points_p3: np.ndarray, geoms: np.ndarray | None = None) -> np.ndarray:
        """Distance [P] (m) of each point to the nearest of the collision boxes.

        Negative inside one.  `geoms`: None are those of all objects and all furniture.
        """
        if geoms is None:
            geoms = self._furnishing
        if not len(geoms):
            return np.full(len(points_p3), np.inf)
        rotations = self.data.geom_xmat[geoms].reshape(-1, 3, 3)
        centers = self.model.geom_aabb[geoms, None, :3]
        half_widths = self.model.geom_aabb[geoms, None, 3:]
        # All of [geoms,P,3]: in a geom's frame, beyond the faces of its box.
        local = (points_p3 - self.data.geom_xpos[geoms, None]) @ rotations
        beyond = np.abs(local - centers) - half_widths
        outside_m = np.linalg.norm(beyond.clip(0.0), axis=-1)
        inside_m = beyond.max(-1).clip(max=0.0)
        return (outside_m + inside_m).min(0)
