"""The renderer: equal to robosuite's in every pixel, on random scenes and on LIBERO's; contexts that do not mix."""

import os
import subprocess
import sys

import mujoco
import numpy as np
import pytest

from pirl_jax.envs import libero, libero_render

pytestmark = pytest.mark.filterwarnings("ignore")  # robosuite, LIBERO and numba warn when they are imported

SIZE_PX = 64
CAMERAS = ("agentview", "robot0_eye_in_hand")


def scene(seed: int) -> tuple[mujoco.MjModel, mujoco.MjData]:
    """40 random shapes around 6 random cameras, some of them mirrors, some transparent; the odd floor is endless."""
    rng = np.random.default_rng(seed)
    shapes = []
    for i in range(40):
        shape = "box" if i % 8 == 0 else rng.choice(["sphere", "cylinder", "ellipsoid", "capsule"])
        material, alpha = rng.choice(["mirror", "dull"]), rng.choice([1, 1, 0.5])
        shapes.append(
            f'<geom type="{shape}" size="{_text(0.02, 0.15, rng)}" pos="{_text(-1, 1, rng)}" group="{rng.choice(3)}"'
            f' euler="{_text(-180, 180, rng)}" material="{material}" rgba="{_text(0, 1, rng)} {alpha}"/>'
        )
    if seed % 3 == 0:
        size = "0 0 1" if seed % 2 else "1 .5 1"
        shapes.append(f'<geom type="plane" size="{size}" pos="0 0 -1" material="mirror" group="1"/>')
    cameras = (f'<camera name="{i}" pos="{_text(-1, 1, rng)}" euler="{_text(-180, 180, rng)}"/>' for i in range(6))
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><visual><quality shadowsize="512"/></visual><asset><material name="mirror" reflectance=".6"/>'
        '<material name="dull"/></asset><worldbody>'
        f'<light pos="0 0 3" castshadow="{str(seed % 4 == 1).lower()}"/>{"".join(shapes)}{"".join(cameras)}'
        "</worldbody></mujoco>"
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def _text(low, high, rng) -> str:
    return " ".join(f"{x:.3f}" for x in rng.uniform(low, high, 3))


class Stock:
    """What robosuite's offscreen context does, without its class."""

    def __init__(self, model, size_px):
        self.model, self.size_px = model, size_px
        libero_render.shared_context().make_current()
        self.context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        self.scene, self.option, self.camera = mujoco.MjvScene(model, 1000), mujoco.MjvOption(), mujoco.MjvCamera()
        self.option.geomgroup[0] = 0
        self.camera.type = mujoco.mjtCamera.mjCAMERA_FIXED

    def render(self, data, camera):
        libero_render.shared_context().make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self.context)
        self.camera.fixedcamid = self.model.camera(camera).id
        box, pixels = mujoco.MjrRect(0, 0, self.size_px, self.size_px), np.empty((self.size_px,) * 2 + (3,), np.uint8)
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self.model, data, self.option, mujoco.MjvPerturb(), self.camera, everything, self.scene)
        mujoco.mjr_render(box, self.scene, self.context)
        mujoco.mjr_readPixels(pixels, None, box, self.context)
        return libero.upright(pixels)


def test_random_scenes_are_pixel_identical_and_culled():
    """Among 60 views: mirrors in and out of view, from above and below, shadows, transparency.  One pixel would fail."""
    drawn = []
    for seed in range(10):
        model, data = scene(seed)
        stock, ours = Stock(model, SIZE_PX), libero_render.Renderer(model, SIZE_PX, "exact")
        group = model.geom_group.copy()
        for camera in "012345":
            np.testing.assert_array_equal(ours.render(data, camera), stock.render(data, camera), f"{seed} {camera}")
            drawn.append((ours._scene.ngeom, stock.scene.ngeom))
        np.testing.assert_array_equal(model.geom_group, group)
        ours.close()
        stock.context.free()
    ours, stock = np.sum(drawn, axis=0)
    assert ours < 0.7 * stock


def test_light_leaves_out_mirrors_and_multisampling():
    model, data = scene(0)
    exact, light = (libero_render.Renderer(model, SIZE_PX, quality) for quality in libero_render.QUALITIES)
    assert (exact._context.offSamples, light._context.offSamples) == (4, 0)
    difference = np.mean([
        np.abs(exact.render(data, camera).astype(int) - light.render(data, camera)) for camera in "012345"
    ])
    assert 0.1 < difference < 20
    exact.close()
    light.close()


def test_renderers_share_a_context_and_no_picture():
    """Other renderers, of other sizes, come, draw and go between two pictures; a foreign context is current."""
    (model, data), (other_model, other_data) = scene(2), scene(3)
    ours = libero_render.Renderer(model, SIZE_PX, "exact")
    before = ours.render(data, "1")
    others = [libero_render.Renderer(other_model, size_px, "exact") for size_px in (32, 64, SIZE_PX)]
    theirs = [other.render(other_data, "2") for other in others]
    np.testing.assert_array_equal(ours.render(data, "1"), before)
    np.testing.assert_array_equal(others[2].render(other_data, "2"), theirs[2])
    others[0].close()
    others[0].close()
    type(libero_render.shared_context())(8, 8).make_current()
    np.testing.assert_array_equal(ours.render(data, "1"), before)
    np.testing.assert_array_equal(others[1].render(other_data, "2"), theirs[1])
    with pytest.raises(RuntimeError, match="closed"):
        others[0].render(other_data, "2")
    for renderer in (ours, *others[1:]):
        renderer.close()


def test_the_process_ends_quietly_with_a_renderer_open():
    code = (
        "import mujoco; from pirl_jax.envs import libero_render;"
        "r = libero_render.Renderer(mujoco.MjModel.from_xml_string('<mujoco/>'), 8, 'exact')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_errors_say_the_remedy(monkeypatch):
    with pytest.raises(ValueError, match="exact, light"):
        libero_render.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 8, "best")
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    with pytest.raises(ValueError, match="glfw.*choose egl or osmesa"):
        libero_render.shared_context.__wrapped__()
