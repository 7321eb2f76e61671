"""Pictures of a MuJoCo model as LIBERO draws them, drawing only what the camera can see.  numpy and mujoco only.

`exact` equals robosuite's offscreen rendering in every pixel; `light` leaves out multisampling and reflection.  All
renderers of a process share one GL context; each owns its framebuffer, textures and meshes.  Refuses to know tasks.
"""

import atexit
import functools
import importlib
import os

import mujoco
import numpy as np

from pirl_jax.envs import base

QUALITIES = ("exact", "light")
HIDDEN_GROUP = (
    5  # geoms of this group are not drawn; geoms outside the view pass through it during an update
)
MAX_GEOMS = 1000  # as robosuite
FAR_M = 1e3  # half the side of a plane without size
MARGIN_M = 1e-3  # a geom this close to the view counts as seen: MuJoCo draws in float32


class Renderer:
    """Draws one model.  `light` is meant for a model of `libero_meshes.lighten`, and works for any.

    Reads the model at every picture: LIBERO lights a stove by changing colours in it.
    """

    def __init__(self, model: mujoco.MjModel, image_size_px: int, quality: str = "exact"):
        if quality not in QUALITIES:
            raise base.error("render quality", quality, QUALITIES)
        self._model, self._size_px = model, image_size_px
        self._exact = quality == "exact"
        shared_context().make_current()
        self._context = _mujoco_context(model, image_size_px, samples=None if self._exact else 0)
        atexit.register(
            self.close
        )  # while the context still exists: mujoco would free without one, later
        self._scene = mujoco.MjvScene(model, maxgeom=MAX_GEOMS)
        self._option = mujoco.MjvOption()
        self._option.geomgroup[0] = False  # collision shapes
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._viewport = mujoco.MjrRect(0, 0, image_size_px, image_size_px)

    def render(self, data: mujoco.MjData, camera: str) -> np.ndarray:
        """[Y,X,3] uint8, turned by 180 degrees: upright, and mirrored as in all published LIBERO data.

        Draws the poses in `data` as they are; after mj_step they are those of the state before.
        """
        if self._context is None:
            raise RuntimeError("the renderer is closed")
        camera_id = self._model.camera(camera).id
        self._update_scene(data, camera_id)
        shared_context().make_current()
        mujoco.mjr_setBuffer(
            mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context
        )  # another renderer's may be bound
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        image_YX3 = np.empty((self._size_px, self._size_px, 3), np.uint8)
        mujoco.mjr_readPixels(image_YX3, None, self._viewport, self._context)
        return upright(image_YX3)

    def close(self) -> None:
        """Free what this renderer owns; others are not touched."""
        if self._context is not None:
            atexit.unregister(self.close)
            shared_context().make_current()
            self._context.free()
            self._context = None

    def _update_scene(self, data, camera_id: int) -> None:
        """The scene of what the camera sees, directly or in a mirror; without a mirror in view none is drawn."""
        model, group = self._model, self._model.geom_group.copy()
        camera_m, axes = data.cam_xpos[camera_id], data.cam_xmat[camera_id].reshape(3, 3)
        seen = meets(model, data, camera_m, view_sides(axes, model.cam_fovy[camera_id]))
        mirrors = reflective(model) & np.asarray(self._option.geomgroup, bool)[group] & self._exact
        in_view = np.flatnonzero(mirrors & seen)
        for geom in in_view:
            seen = seen | meets(model, data, *mirrored_view(model, data, geom, camera_m))
            seen = seen | mirrors  # MuJoCo mixes the light of mirrors, those out of view included
        if self._exact and model.light_castshadow.any():
            seen[:] = True  # the shadow of what is out of view
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = len(in_view) > 0
        self._camera.fixedcamid = camera_id
        model.geom_group[~seen] = HIDDEN_GROUP  # physics does not read it
        try:
            mujoco.mjv_updateScene(
                model,
                data,
                self._option,
                None,
                self._camera,
                mujoco.mjtCatBit.mjCAT_ALL,
                self._scene,
            )
        finally:
            model.geom_group[:] = group


def upright(image_YX3: np.ndarray) -> np.ndarray:
    """Turn OpenGL's bottom-up image by 180 degrees."""
    return np.ascontiguousarray(image_YX3[::-1, ::-1])


def meets(model, data, apex_m: np.ndarray, sides_P3: np.ndarray) -> np.ndarray:
    """[geoms] bool: false only if a geom's bounding box lies outside the pyramid with these outward side normals."""
    frames_G33 = data.geom_xmat.reshape(-1, 3, 3)
    center_G3 = data.geom_xpos + np.einsum("gij,gj->gi", frames_G33, model.geom_aabb[:, :3])
    distance_GP = (center_G3 - apex_m) @ sides_P3.T
    reach_GP = np.einsum("gpj,gj->gp", np.abs(sides_P3 @ frames_G33), model.geom_aabb[:, 3:])
    outside = np.any(distance_GP > reach_GP + MARGIN_M, axis=1)
    return ~outside | (model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE)  # a plane may be infinite


def view_sides(axes: np.ndarray, fovy_deg: float) -> np.ndarray:
    """[5,3] outward normals of a square picture's view; `axes` [3,3]: columns right, up, back of the camera."""
    slope = np.tan(np.deg2rad(fovy_deg) / 2)
    return (
        np.array([(1, 0, slope), (-1, 0, slope), (0, 1, slope), (0, -1, slope), (0, 0, 1)]) @ axes.T
    )


def reflective(model) -> np.ndarray:
    """[geoms] bool: what MuJoCo draws as mirrors: planes and boxes.  LIBERO's meshes ask for it too, without effect."""
    flat = np.isin(model.geom_type, (mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_BOX))
    reflectance = np.append(model.mat_reflectance, 0.0)[model.geom_matid]  # matid -1: no material
    return flat & (reflectance > 0)


def mirrored_view(model, data, geom: int, camera_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The camera's image behind the mirror, apex [3], and the pyramid [4,3] from there through the mirror's face."""
    x, y, normal = data.geom_xmat[geom].reshape(3, 3).T
    size_m, is_box = model.geom_size[geom], model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_BOX
    face_m = data.geom_xpos[geom] + is_box * size_m[2] * normal
    half_x, half_y = (size if size > 0 else FAR_M for size in size_m[:2])
    corners_43 = np.array(
        [sx * half_x * x + sy * half_y * y for sx, sy in ((1, 1), (-1, 1), (-1, -1), (1, -1))]
    )
    apex_m = camera_m - 2 * normal * ((camera_m - face_m) @ normal)
    rays_43 = corners_43 + face_m - apex_m
    sides_43 = np.cross(np.roll(rays_43, -1, axis=0), rays_43)
    return apex_m, sides_43 / np.linalg.norm(sides_43, axis=1, keepdims=True)


@functools.cache
def shared_context():
    """The GL context of this process, of the backend MUJOCO_GL names (default egl); it lives as long as the process."""
    backend = os.environ.get("MUJOCO_GL", "egl")
    if backend not in ("egl", "osmesa"):
        raise ValueError(
            f"MUJOCO_GL={backend!r} cannot render without a display; choose egl or osmesa"
        )
    context = importlib.import_module(f"mujoco.{backend}").GLContext(
        1, 1
    )  # pictures go to framebuffers of their own
    atexit.register(context.free)  # before the display goes
    return context


def _mujoco_context(model, size_px: int, samples: int | None) -> mujoco.MjrContext:
    """GPU copies of the model, and a framebuffer of the picture's size; `samples` None: as the model says.

    LIBERO's lights cast no shadow, so the shadow map (64 MB) is made only for models whose lights do.
    """
    screen, quality = model.vis.global_, model.vis.quality
    before = screen.offwidth, screen.offheight, quality.offsamples, quality.shadowsize
    screen.offwidth = screen.offheight = size_px
    if samples is not None:
        quality.offsamples = samples
    if not model.light_castshadow.any():
        quality.shadowsize = 0
    context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
    screen.offwidth, screen.offheight, quality.offsamples, quality.shadowsize = before
    return context
