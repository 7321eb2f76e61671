"""Pictures of a MuJoCo model as LIBERO draws them, drawing only what the camera can see.

`exact` equals robosuite's offscreen rendering in every pixel; `light` leaves out multisampling
and reflection.  All renderers of a process share one GL context; each owns its framebuffer,
textures and meshes.  numpy and mujoco only; refuses to know tasks.
"""

import atexit
import functools
from typing import Any, NamedTuple

import mujoco
import numpy as np

from pirl_jax.envs import base
from pirl_jax.envs.gl import context

QUALITIES = ("exact", "light")
# Geoms of this group are not drawn; those outside the view pass through it during an update.
HIDDEN_GROUP = 5
MAX_GEOMS = 1000  # as robosuite
FAR_M = 1e3  # half the side of a plane without size
MARGIN_M = 1e-3  # a geom this close to the view counts as seen: MuJoCo draws in float32


class Pyramid(NamedTuple):
    """A part of space that opens from a point."""

    apex_m: np.ndarray  # [3]
    sides: np.ndarray  # [sides,3] outward normals of its sides, all through the apex


class Renderer:
    """Draws one model.  `light` is meant for a model of `meshes.lighten`, and works for any.

    Reads the model at every picture: LIBERO lights a stove by changing colours in it.
    """

    def __init__(self, model: mujoco.MjModel, image_size_px: int, quality: str = "exact"):
        """Copies the model to the GPU.

        Raises:
            ValueError: there is no such quality.
        """
        if quality not in QUALITIES:
            raise base.unknown("render quality", quality, QUALITIES)
        self._model = model
        self._size_px = image_size_px
        self._exact = quality == "exact"
        shared_context().make_current()
        self._context = _mujoco_context(model, image_size_px, samples=None if self._exact else 0)
        # while the context still exists: mujoco would free without one, later
        atexit.register(self.close)
        self._scene = mujoco.MjvScene(model, maxgeom=MAX_GEOMS)
        self._option = mujoco.MjvOption()
        self._option.geomgroup[0] = False  # collision shapes
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._viewport = mujoco.MjrRect(0, 0, image_size_px, image_size_px)

    def render(self, data: mujoco.MjData, camera: str) -> np.ndarray:
        """[Y,X,3] uint8, turned by 180 degrees: upright, and mirrored as in all LIBERO data.

        Draws the poses in `data` as they are; after mj_step they are those of the state before.

        Raises:
            RuntimeError: the renderer is closed.
        """
        if self._context is None:
            raise RuntimeError("the renderer is closed")
        self._update_scene(data, self._model.camera(camera).id)
        shared_context().make_current()
        # another renderer's may be bound
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
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

    def _update_scene(self, data: mujoco.MjData, camera_id: int) -> None:
        """The scene of what the camera sees; geoms out of view are hidden meanwhile."""
        model = self._model
        group = model.geom_group.copy()
        hidden = ~self._seen(data, camera_id)
        self._camera.fixedcamid = camera_id
        model.geom_group[hidden] = HIDDEN_GROUP  # physics does not read it
        try:
            mujoco.mjv_updateScene(
                model,
                data,
                self._option,
                None,  # nothing is dragged by a mouse
                self._camera,
                mujoco.mjtCatBit.mjCAT_ALL,
                self._scene,
            )
        finally:
            model.geom_group[:] = group

    def _seen(self, data: mujoco.MjData, camera_id: int) -> np.ndarray:
        """[geoms] bool: what the camera sees, directly or in a mirror.

        Switches mirrors off in the scene where none is in view.
        """
        model = self._model
        view = camera_view(model, data, camera_id)
        seen = meets(model, data, view)
        is_shown = np.asarray(self._option.geomgroup, bool)[model.geom_group]
        mirrors = reflective(model) & is_shown & self._exact
        in_view = np.flatnonzero(mirrors & seen)
        for geom in in_view:
            seen = seen | meets(model, data, mirrored_view(model, data, geom, view.apex_m))
            seen = seen | mirrors  # MuJoCo mixes the light of mirrors, those out of view included
        if self._exact and model.light_castshadow.any():
            seen[:] = True  # the shadow of what is out of view
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = len(in_view) > 0
        return seen


def upright(image_YX3: np.ndarray) -> np.ndarray:
    """Turn OpenGL's bottom-up image by 180 degrees."""
    return np.ascontiguousarray(image_YX3[::-1, ::-1])


def meets(model: mujoco.MjModel, data: mujoco.MjData, pyramid: Pyramid) -> np.ndarray:
    """[geoms] bool: false only if a geom's bounding box lies outside the pyramid."""
    axes = data.geom_xmat.reshape(-1, 3, 3)
    offset_m = np.einsum("gij,gj->gi", axes, model.geom_aabb[:, :3])
    center_m = data.geom_xpos + offset_m
    # Of every geom and side: how far the box's center is outside, how far the box reaches back.
    distance_m = (center_m - pyramid.apex_m) @ pyramid.sides.T
    half_widths_m = model.geom_aabb[:, 3:]
    reach_m = np.einsum("gpj,gj->gp", np.abs(pyramid.sides @ axes), half_widths_m)
    is_outside = np.any(distance_m > reach_m + MARGIN_M, axis=1)
    is_plane = model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE  # it may be infinite
    return ~is_outside | is_plane


def camera_view(model: mujoco.MjModel, data: mujoco.MjData, camera_id: int) -> Pyramid:
    """What a square picture shows; its fifth side is that of the camera itself."""
    axes = data.cam_xmat[camera_id].reshape(3, 3)  # columns: right, up, back
    slope = np.tan(np.deg2rad(model.cam_fovy[camera_id]) / 2)
    sides = np.array(
        [
            (1, 0, slope),
            (-1, 0, slope),
            (0, 1, slope),
            (0, -1, slope),
            (0, 0, 1),
        ]
    )
    return Pyramid(data.cam_xpos[camera_id], sides @ axes.T)


def reflective(model: mujoco.MjModel) -> np.ndarray:
    """[geoms] bool: what MuJoCo draws as mirrors, planes and boxes.

    LIBERO's meshes ask for it too, without effect.
    """
    flat = np.isin(model.geom_type, (mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_BOX))
    reflectance = np.append(model.mat_reflectance, 0.0)[model.geom_matid]  # matid -1: no material
    return flat & (reflectance > 0)


def mirrored_view(
    model: mujoco.MjModel, data: mujoco.MjData, geom: int, camera_m: np.ndarray
) -> Pyramid:
    """From the camera's image behind the mirror through the mirror's face."""
    x, y, normal = data.geom_xmat[geom].reshape(3, 3).T
    size_m = model.geom_size[geom]
    is_box = model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_BOX
    face_m = data.geom_xpos[geom] + is_box * size_m[2] * normal
    half_x_m, half_y_m = (size if size > 0 else FAR_M for size in size_m[:2])
    corners_43 = np.array(
        [
            half_x_m * x + half_y_m * y,
            -half_x_m * x + half_y_m * y,
            -half_x_m * x - half_y_m * y,
            half_x_m * x - half_y_m * y,
        ]
    )
    apex_m = camera_m - 2 * normal * ((camera_m - face_m) @ normal)
    rays_43 = corners_43 + face_m - apex_m
    sides_43 = np.cross(np.roll(rays_43, -1, axis=0), rays_43)
    return Pyramid(apex_m, sides_43 / np.linalg.norm(sides_43, axis=1, keepdims=True))


@functools.cache
def shared_context() -> Any:
    """The GL context of this process; it lives as long as the process.

    Raises:
        ValueError: MUJOCO_GL names a backend that needs a display.
    """
    shared = context.create(1, 1)  # pictures go to framebuffers of their own
    atexit.register(shared.free)  # before the display goes
    return shared


def _mujoco_context(model: mujoco.MjModel, size_px: int, samples: int | None) -> mujoco.MjrContext:
    """GPU copies of the model, and a framebuffer of the picture's size.

    `samples` None: as the model says.  LIBERO's lights cast no shadow, so the shadow map (64 MB) is
    made only for models whose lights do.
    """
    screen = model.vis.global_
    quality = model.vis.quality
    wanted = [(screen, "offwidth", size_px), (screen, "offheight", size_px)]
    if samples is not None:
        wanted.append((quality, "offsamples", samples))
    if not model.light_castshadow.any():
        wanted.append((quality, "shadowsize", 0))
    before = [(part, name, getattr(part, name)) for part, name, _ in wanted]
    for part, name, value in wanted:
        setattr(part, name, value)
    made = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
    for part, name, value in before:
        setattr(part, name, value)
    return made
