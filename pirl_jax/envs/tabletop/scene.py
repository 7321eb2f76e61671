"""The tabletop scene: one compiled MuJoCo model for all its tasks.  numpy and mujoco only.

Robot, gripper, inertias, actuators and joint constants are those of robosuite 1.4.0, read from
its installed XML and mesh files; its Python code is not imported, which saves seconds of numba
and a log file.  Refuses to know tasks.
"""

from collections.abc import Sequence
import importlib.util
import pathlib

import mujoco
import numpy as np

from pirl_jax.envs import panda

QUALITIES = ("light", "exact")
TIMESTEP_S = 0.005
TABLE_TOP_M = 0.8
TABLE_HALF_M = 0.4  # of a cube
BASE_POS_M = (-0.56, 0.0, 0.912)  # robosuite's Panda on its mount, beside a table of 0.8 m
CUBE_HALF_M = 0.02
TARGET_RADIUS_M = 0.03
LINK_HULL_VERTICES = 40  # convex hulls of the links: enough for contacts, cheap to draw
# collision shapes that neither touch nor are seen
OUT_OF_REACH = ("link0_collision", "link1_collision")

AGENT_EYE_M = (0.44, 0.0, 1.24)
AGENT_LOOKAT_M = (-0.07, 0.0, 0.895)
AGENT_FOVY_DEG = 34.0

COLOURS = {
    "red": (0.9, 0.08, 0.08, 1),
    "green": (0.1, 0.65, 0.15, 1),
    "target": (0.15, 0.25, 0.95, 1),
    "table": (0.62, 0.58, 0.52, 1),
    "floor": (0.35, 0.38, 0.42, 1),
    "finger": (0.25, 0.26, 0.28, 1),
    "palm": (0.95, 0.95, 0.95, 1),
}
LINK_COLOURS = ((0.8, 0.82, 0.84, 1), (0.93, 0.94, 0.95, 1))  # in turn, to tell the links apart

# groups of geoms
COLLISION = 0
VISUAL = 1
NEVER_DRAWN = 4


def build(render_quality: str) -> mujoco.MjModel:
    """The compiled scene, with equal physics for both qualities.

    `light` draws the convex collision hulls of the robot, `exact` robosuite's own visuals.
    """
    light = render_quality == "light"
    spec = mujoco.MjSpec()
    _set_options(spec, light)
    _add_light_and_camera(spec)
    _add_table(spec)
    _add_robot(spec, light)
    for name in ("red", "green"):
        _add_cube(spec, name)
    return spec.compile()


def _set_options(spec: mujoco.MjSpec, light: bool) -> None:
    spec.compiler.degree = False
    spec.option.timestep = TIMESTEP_S
    # as robosuite: no slip in a grasp
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = 20
    spec.visual.map.znear = 0.01  # of the extent: 1 cm
    spec.visual.quality.offsamples = 0 if light else 4  # of multisampling
    spec.visual.headlight.ambient = [0.3] * 3
    spec.visual.headlight.diffuse = [0.3] * 3
    spec.visual.headlight.specular = [0, 0, 0]
    spec.stat.extent = 1.0
    spec.stat.center = [0, 0, TABLE_TOP_M]


def _add_light_and_camera(spec: mujoco.MjSpec) -> None:
    """The wrist camera comes with the robot."""
    spec.worldbody.add_light(
        pos=[1, 1, 2.5],
        dir=[-0.2, -0.2, -1],
        castshadow=False,
        specular=[0, 0, 0],
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
    )
    spec.worldbody.add_camera(
        name=panda.CAMERAS[0],
        pos=AGENT_EYE_M,
        quat=_look_at(AGENT_EYE_M, AGENT_LOOKAT_M),
        fovy=AGENT_FOVY_DEG,
    )


def _add_table(spec: mujoco.MjSpec) -> None:
    """Table, floor and target mark; nothing touches the latter two."""
    spec.worldbody.add_geom(
        name="table",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[TABLE_HALF_M] * 3,
        pos=[0, 0, TABLE_TOP_M - TABLE_HALF_M],
        rgba=COLOURS["table"],
        group=VISUAL,
    )
    spec.worldbody.add_geom(
        name="floor",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[9, 9, 0.01],
        rgba=COLOURS["floor"],
        contype=0,
        conaffinity=0,
        group=VISUAL,
    )
    # A mocap body has no degrees of freedom, and its place is state, not model.
    target = spec.worldbody.add_body(name="target", mocap=True, pos=[0, 0, TABLE_TOP_M])
    target.add_geom(
        name="target",
        type=mujoco.mjtGeom.mjGEOM_CYLINDER,
        size=[TARGET_RADIUS_M, 0.0005, 0],
        rgba=COLOURS["target"],
        contype=0,
        conaffinity=0,
        group=VISUAL,
    )


def _add_cube(spec: mujoco.MjSpec, name: str) -> None:
    body = spec.worldbody.add_body(name=name, pos=[0, 0, TABLE_TOP_M + CUBE_HALF_M])
    body.add_freejoint(name=name)
    body.add_geom(
        name=name,
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[CUBE_HALF_M] * 3,
        rgba=COLOURS[name],
        density=1000,
        condim=4,  # friction against twisting too, so that a grip of two points does not swing
        group=VISUAL,
    )


def _add_robot(spec: mujoco.MjSpec, light: bool) -> None:
    """robosuite's Panda and gripper, under robosuite's names."""
    folder = importlib.util.find_spec("robosuite").submodule_search_locations[0]
    assets = pathlib.Path(folder, "models", "assets")
    arm = mujoco.MjSpec.from_file(str(assets / "robots" / "panda" / "robot.xml"))
    hand = mujoco.MjSpec.from_file(str(assets / "grippers" / "panda_gripper.xml"))
    for part in (arm, hand):
        part.compiler.degree = False
        _drop_unneeded_geoms(part, light)
    for part in (arm, hand):
        _drop_unneeded_meshes(part, needed_by=(arm, hand))
    for i, joint in enumerate(arm.joints):
        # what robosuite's RobotModel sets in Python
        joint.armature = 5.0 / (i + 1)
        joint.frictionloss = 0.1
    _paint(arm, hand, light)
    spec.attach(arm, prefix="robot0_", frame=spec.worldbody.add_frame(pos=BASE_POS_M))
    spec.attach(hand, prefix="gripper0_", frame=spec.body("robot0_right_hand").add_frame())


def _drop_unneeded_geoms(part: mujoco.MjSpec, light: bool) -> None:
    for site in list(part.sites):
        site.group = NEVER_DRAWN
    for geom in list(part.geoms):
        replaced = light and geom.group == VISUAL
        if replaced or geom.name in OUT_OF_REACH:
            part.delete(geom)


def _drop_unneeded_meshes(part: mujoco.MjSpec, needed_by: Sequence[mujoco.MjSpec]) -> None:
    """And give the meshes that collide a simple hull."""
    used = set()
    for user in needed_by:
        used.update(geom.meshname for geom in user.geoms)
    colliding = {geom.meshname for geom in part.geoms if geom.group == COLLISION}
    for mesh in list(part.meshes):
        if mesh.name not in used:
            part.delete(mesh)
        elif mesh.name in colliding:
            mesh.maxhullvert = LINK_HULL_VERTICES


def _paint(arm: mujoco.MjSpec, hand: mujoco.MjSpec, light: bool) -> None:
    """Colour the collision shapes, which have none of their own."""
    links = [geom for geom in arm.geoms if geom.group == COLLISION]
    for i, geom in enumerate(links):
        geom.rgba = LINK_COLOURS[i % 2]
    if not light:
        return
    for geom in hand.geoms:
        geom.rgba = COLOURS["finger" if "finger" in geom.name else "palm"]


def _look_at(eye_m: Sequence[float], lookat_m: Sequence[float]) -> np.ndarray:
    """Quaternion [4] (wxyz) of a camera at `eye_m` that looks at `lookat_m`, both [3].

    MuJoCo's cameras look along -z, with y up.
    """
    back = np.subtract(eye_m, lookat_m)
    z = back / np.linalg.norm(back)
    x = np.cross([0, 0, 1], z)
    x /= np.linalg.norm(x)
    y = np.cross(z, x)
    quat_wxyz = np.zeros(4)
    mujoco.mju_mat2Quat(quat_wxyz, np.stack([x, y, z], axis=1).ravel())
    return quat_wxyz
