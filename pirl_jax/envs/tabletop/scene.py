"""The tabletop scene: one compiled MuJoCo model for all its tasks, and its two cameras.  numpy and mujoco only.

Robot, gripper, inertias, actuators and joint constants are those of robosuite 1.4.0, read from its installed XML and
mesh files; its Python code is not imported, which saves seconds of numba and a log file.  Refuses to know tasks.
"""

import atexit
import importlib
import importlib.util
import os
import pathlib

import mujoco
import numpy as np

QUALITIES = ("light", "exact")
CAMERAS = ("agentview", "robot0_eye_in_hand")
TIMESTEP_S = 0.005
TABLE_TOP_M = 0.8
BASE_POS_M = (-0.56, 0.0, 0.912)  # robosuite's Panda on its mount, beside a table of 0.8 m
CUBE_HALF_M = 0.02
TARGET_RADIUS_M = 0.03
LINK_HULL_VERTICES = 40  # convex hulls of the links: enough for contacts, cheap to draw
OUT_OF_REACH = (
    "link0_collision",
    "link1_collision",
)  # collision shapes that neither touch nor are seen
COLOURS = {
    "red": (0.9, 0.08, 0.08, 1),
    "green": (0.1, 0.65, 0.15, 1),
    "target": (0.15, 0.25, 0.95, 1),
}
AGENT_EYE_M, AGENT_LOOKAT_M, AGENT_FOVY_DEG = (0.44, 0.0, 1.24), (-0.07, 0.0, 0.895), 34.0


def build(render_quality: str) -> mujoco.MjModel:
    """The compiled scene; `light` draws the convex collision hulls, `exact` robosuite's own robot visuals."""
    light = render_quality == "light"
    spec = mujoco.MjSpec()
    spec.compiler.degree = False
    spec.option.timestep = TIMESTEP_S
    spec.option.cone, spec.option.impratio = (
        mujoco.mjtCone.mjCONE_ELLIPTIC,
        20,
    )  # as robosuite: no slip in a grasp
    spec.visual.map.znear = 0.01
    spec.visual.quality.offsamples = 0 if light else 4
    spec.visual.headlight.ambient, spec.visual.headlight.diffuse = [0.3] * 3, [0.3] * 3
    spec.visual.headlight.specular = [0, 0, 0]
    spec.stat.extent, spec.stat.center = 1.0, [0, 0, TABLE_TOP_M]
    spec.worldbody.add_light(
        pos=[1, 1, 2.5],
        dir=[-0.2, -0.2, -1],
        castshadow=False,
        specular=[0, 0, 0],
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
    )
    spec.worldbody.add_camera(
        name=CAMERAS[0],
        pos=AGENT_EYE_M,
        quat=_look_at(AGENT_EYE_M, AGENT_LOOKAT_M),
        fovy=AGENT_FOVY_DEG,
    )
    _add_table(spec)
    _add_robot(spec, light)
    for name in ("red", "green"):
        _add_cube(spec, name)
    return spec.compile()


def _add_table(spec):
    spec.worldbody.add_geom(
        name="table",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[0.4, 0.4, 0.4],
        pos=[0, 0, TABLE_TOP_M - 0.4],
        rgba=[0.62, 0.58, 0.52, 1],
        group=1,
    )
    spec.worldbody.add_geom(
        name="floor",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[9, 9, 0.01],
        rgba=[0.35, 0.38, 0.42, 1],
        contype=0,
        conaffinity=0,
        group=1,
    )
    # a mocap body: it has no degrees of freedom, and its place is state, not model
    target = spec.worldbody.add_body(name="target", mocap=True, pos=[0, 0, TABLE_TOP_M])
    target.add_geom(
        name="target",
        type=mujoco.mjtGeom.mjGEOM_CYLINDER,
        size=[TARGET_RADIUS_M, 0.0005, 0],
        rgba=COLOURS["target"],
        contype=0,
        conaffinity=0,
        group=1,
    )


def _add_cube(spec, name):
    body = spec.worldbody.add_body(name=name, pos=[0, 0, TABLE_TOP_M + CUBE_HALF_M])
    body.add_freejoint(name=name)
    body.add_geom(
        name=name,
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[CUBE_HALF_M] * 3,
        rgba=COLOURS[name],
        density=1000,
        condim=4,
        group=1,
    )


def _add_robot(spec, light):
    assets = pathlib.Path(
        importlib.util.find_spec("robosuite").submodule_search_locations[0], "models", "assets"
    )
    arm = mujoco.MjSpec.from_file(str(assets / "robots" / "panda" / "robot.xml"))
    hand = mujoco.MjSpec.from_file(str(assets / "grippers" / "panda_gripper.xml"))
    for part in (arm, hand):
        part.compiler.degree = False
        for site in list(part.sites):
            site.group = 4  # never drawn
        for geom in list(part.geoms):
            if (light and geom.group == 1) or geom.name in OUT_OF_REACH:
                part.delete(geom)
    used = {geom.meshname for part in (arm, hand) for geom in part.geoms}
    for part in (arm, hand):
        for mesh in list(part.meshes):
            if mesh.name not in used:
                part.delete(mesh)
            elif mesh.name in {geom.meshname for geom in part.geoms if geom.group == 0}:
                mesh.maxhullvert = LINK_HULL_VERTICES
    for i, joint in enumerate(arm.joints):
        joint.armature, joint.frictionloss = (
            5.0 / (i + 1),
            0.1,
        )  # robosuite's RobotModel sets these in Python
    for i, geom in enumerate([geom for geom in arm.geoms if geom.group == 0]):
        geom.rgba = [0.93, 0.94, 0.95, 1] if i % 2 else [0.8, 0.82, 0.84, 1]
    for geom in hand.geoms:
        if light:
            geom.rgba = [0.25, 0.26, 0.28, 1] if "finger" in geom.name else [0.95, 0.95, 0.95, 1]
    spec.attach(arm, prefix="robot0_", frame=spec.worldbody.add_frame(pos=BASE_POS_M))
    spec.attach(hand, prefix="gripper0_", frame=spec.body("robot0_right_hand").add_frame())


def _look_at(eye_m, lookat_m):
    """Quaternion of a camera at `eye_m` that looks at `lookat_m` (MuJoCo cameras look along -z, y up)."""
    z = np.subtract(eye_m, lookat_m) / np.linalg.norm(np.subtract(eye_m, lookat_m))
    x = np.cross([0, 0, 1], z)
    x /= np.linalg.norm(x)
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, np.stack([x, np.cross(z, x), z], axis=1).ravel())
    return quat


class Cameras:
    """Both cameras of one model in one small framebuffer; owns a GL context, so one per env, closed with it."""

    def __init__(self, model, size_px: int, render_quality: str):
        light = render_quality == "light"
        model.vis.global_.offwidth, model.vis.global_.offheight = len(CAMERAS) * size_px, size_px
        self._model, self._size_px = model, size_px
        self._gl = _gl_context(len(CAMERAS) * size_px, size_px)
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
        atexit.register(
            self.close
        )  # before the display goes: mujoco's own clean-up complains otherwise
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=200)
        for flag in ("SHADOW", "REFLECTION", "SKYBOX", "HAZE"):
            self._scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = False
        self._option = mujoco.MjvOption()
        self._option.geomgroup[0] = (
            light  # group 0: collision shapes of the robot; group 1: visuals and objects
        )
        self._option.flags[mujoco.mjtVisFlag.mjVIS_CONVEXHULL] = light
        self._cameras = [_fixed_camera(model.camera(name).id) for name in CAMERAS]
        self._boxes = [
            mujoco.MjrRect(i * size_px, 0, size_px, size_px) for i in range(len(CAMERAS))
        ]
        self._pixels = np.empty((size_px, len(CAMERAS) * size_px, 3), np.uint8)

    def render(self, data, num_cameras: int = len(CAMERAS)) -> np.ndarray:
        """[V,Y,X,3] uint8 of the first cameras, rotated by 180 degrees as for LIBERO: upright, mirrored left-right."""
        self._gl.make_current()
        mujoco.mjv_updateScene(
            self._model,
            data,
            self._option,
            None,
            self._cameras[0],
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )
        for camera, box in zip(self._cameras[:num_cameras], self._boxes):
            mujoco.mjv_updateCamera(self._model, data, camera, self._scene)
            mujoco.mjr_render(box, self._scene, self._context)
        mujoco.mjr_readPixels(
            self._pixels, None, mujoco.MjrRect(0, 0, *self._pixels.shape[1::-1]), self._context
        )
        views = self._pixels.reshape(self._size_px, len(CAMERAS), self._size_px, 3).swapaxes(0, 1)[
            :num_cameras
        ]
        return views[:, ::-1, ::-1].copy()  # OpenGL's first row is the lowest

    def close(self):
        if self._gl is not None:
            atexit.unregister(self.close)
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = None


def _fixed_camera(camera_id):
    camera = mujoco.MjvCamera()
    camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera_id
    return camera


def _gl_context(width_px, height_px):
    """An offscreen context of the backend MUJOCO_GL names (default egl), whoever imported mujoco first."""
    backend = os.environ.get("MUJOCO_GL", "egl")
    if backend not in ("egl", "osmesa"):
        raise ValueError(
            f"MUJOCO_GL={backend!r} cannot render without a display; choose egl or osmesa"
        )
    return importlib.import_module(f"mujoco.{backend}").GLContext(width_px, height_px)
