"""Pictures of the tabletop: both cameras side by side in one small framebuffer, read back at once.

numpy and mujoco only.  Refuses to know tasks.
"""

import atexit

import mujoco
import numpy as np

from pirl_jax.envs import panda
from pirl_jax.envs.gl import context
from pirl_jax.envs.tabletop import scene

MAX_GEOMS = 200  # more than any view of the scene has
LEFT_OUT = ("SHADOW", "REFLECTION", "SKYBOX", "HAZE")  # they cost time and show nothing here


class Cameras:
    """Both cameras of one model.  Owns a GL context, so one per env, closed with it."""

    def __init__(self, model: mujoco.MjModel, size_px: int, render_quality: str):
        light = render_quality == "light"
        num_cameras = len(panda.CAMERAS)
        width_px = num_cameras * size_px
        model.vis.global_.offwidth = width_px
        model.vis.global_.offheight = size_px
        self._model = model
        self._size_px = size_px
        self._gl = context.create(width_px, size_px)
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
        # before the display goes: mujoco's own clean-up complains otherwise
        atexit.register(self.close)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=MAX_GEOMS)
        for name in LEFT_OUT:
            flag = getattr(mujoco.mjtRndFlag, f"mjRND_{name}")
            self._scene.flags[flag] = False
        self._option = mujoco.MjvOption()
        self._option.geomgroup[scene.COLLISION] = light
        self._option.flags[mujoco.mjtVisFlag.mjVIS_CONVEXHULL] = light
        self._cameras = [_fixed_camera(model.camera(name).id) for name in panda.CAMERAS]
        self._viewports = [
            mujoco.MjrRect(i * size_px, 0, size_px, size_px) for i in range(num_cameras)
        ]
        self._whole = mujoco.MjrRect(0, 0, width_px, size_px)
        self._pixels = np.empty((size_px, width_px, 3), np.uint8)

    def render(self, data: mujoco.MjData, num_cameras: int = len(panda.CAMERAS)) -> np.ndarray:
        """[cameras,Y,X,3] uint8 of the first cameras.

        Rotated by 180 degrees as LIBERO's pictures: upright, and mirrored left to right.
        """
        self._gl.make_current()
        mujoco.mjv_updateScene(
            self._model,
            data,
            self._option,
            None,  # nothing is dragged by a mouse
            self._cameras[0],
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )
        for i in range(num_cameras):
            mujoco.mjv_updateCamera(self._model, data, self._cameras[i], self._scene)
            mujoco.mjr_render(self._viewports[i], self._scene, self._context)
        mujoco.mjr_readPixels(self._pixels, None, self._whole, self._context)
        size_px = self._size_px
        side_by_side = self._pixels.reshape(size_px, len(panda.CAMERAS), size_px, 3)
        views = side_by_side.swapaxes(0, 1)[:num_cameras]
        return views[:, ::-1, ::-1].copy()  # OpenGL's first row is the lowest

    def close(self) -> None:
        """Free the GL context; the second call does nothing."""
        if self._gl is not None:
            atexit.unregister(self.close)
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = None


def _fixed_camera(camera_id: int) -> mujoco.MjvCamera:
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
    camera.fixedcamid = camera_id
    return camera
