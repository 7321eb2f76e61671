"""The renderer: equal to robosuite's in every pixel; contexts that do not mix."""

import atexit
import contextlib
import subprocess
import sys

import mujoco
import numpy as np
import pytest

from pirl_jax.envs import panda
from pirl_jax.envs.libero import files, meshes, render, stock, textures

# robosuite, LIBERO and numba warn when they are imported
pytestmark = pytest.mark.filterwarnings("ignore")

SIZE_PX = 64


def scene(seed: int) -> tuple[mujoco.MjModel, mujoco.MjData]:
    """40 random shapes around 6 random cameras; the odd floor is endless.

    Some shapes are mirrors, some are transparent.
    """
    rng = np.random.default_rng(seed)
    shapes = []
    for i in range(40):
        shape = "box" if i % 8 == 0 else rng.choice(["sphere", "cylinder", "ellipsoid", "capsule"])
        material = rng.choice(["mirror", "dull"])
        alpha = rng.choice([1, 1, 0.5])
        shapes.append(
            f'<geom type="{shape}" size="{_text(0.02, 0.15, rng)}" pos="{_text(-1, 1, rng)}"'
            f' group="{rng.choice(3)}" euler="{_text(-180, 180, rng)}" material="{material}"'
            f' rgba="{_text(0, 1, rng)} {alpha}"/>'
        )
    if seed % 3 == 0:
        size = "0 0 1" if seed % 2 else "1 .5 1"
        shapes.append(
            f'<geom type="plane" size="{size}" pos="0 0 -1" material="mirror" group="1"/>'
        )
    for i in range(6):
        shapes.append(
            f'<camera name="{i}" pos="{_text(-1, 1, rng)}" euler="{_text(-180, 180, rng)}"/>'
        )
    shadow = "true" if seed % 4 == 1 else "false"
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><visual><quality shadowsize="512"/></visual>'
        '<asset><material name="mirror" reflectance=".6"/><material name="dull"/></asset>'
        f'<worldbody><light pos="0 0 3" castshadow="{shadow}"/>{"".join(shapes)}'
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
        render.shared_context().make_current()
        self.context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        self.scene = mujoco.MjvScene(model, 1000)
        self.option = mujoco.MjvOption()
        self.camera = mujoco.MjvCamera()
        self.option.geomgroup[0] = 0
        self.camera.type = mujoco.mjtCamera.mjCAMERA_FIXED

    def render(self, data, camera):
        render.shared_context().make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self.context)
        self.camera.fixedcamid = self.model.camera(camera).id
        box = mujoco.MjrRect(0, 0, self.size_px, self.size_px)
        pixels = np.empty((self.size_px, self.size_px, 3), np.uint8)
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(
            self.model, data, self.option, mujoco.MjvPerturb(), self.camera, everything, self.scene
        )
        mujoco.mjr_render(box, self.scene, self.context)
        mujoco.mjr_readPixels(pixels, None, box, self.context)
        return render.upright(pixels)


def test_random_scenes_are_pixel_identical_and_culled():
    """60 views: mirrors in and out of view, from above and below, shadows, transparency.

    One pixel would fail.
    """
    drawn = []
    for seed in range(10):
        model, data = scene(seed)
        theirs = Stock(model, SIZE_PX)
        ours = render.Renderer(model, SIZE_PX, "exact")
        group = model.geom_group.copy()
        for camera in "012345":
            np.testing.assert_array_equal(ours.render(data, camera), theirs.render(data, camera))
            drawn.append((ours._scene.ngeom, theirs.scene.ngeom))
        np.testing.assert_array_equal(model.geom_group, group)
        ours.close()
        theirs.context.free()
    num_ours, num_theirs = np.sum(drawn, axis=0)
    assert num_ours < 0.7 * num_theirs


def test_what_only_a_mirror_shows_is_drawn():
    """A red ball behind the camera; without it the floor would not be red anywhere."""
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><asset><material name="mirror" reflectance=".8"/></asset><worldbody>'
        '<geom type="box" size="1 1 .1" material="mirror" group="1"/>'
        '<geom size=".15" pos="0 0 1.2" rgba="1 0 0 1" group="1"/>'
        '<geom size=".1" pos="5 0 0" group="1"/>'
        '<camera name="down" pos="0 .2 .5"/></worldbody></mujoco>'
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    ours = render.Renderer(model, SIZE_PX, "exact")
    theirs = Stock(model, SIZE_PX)
    image = ours.render(data, "down").astype(int)
    np.testing.assert_array_equal(image, theirs.render(data, "down"))
    assert (image[..., 0] - image[..., 1]).max() > 10
    assert ours._scene.ngeom == 2, "the other ball shows nowhere"
    ours.close()
    theirs.context.free()


def difference(image, other) -> float:
    """Mean difference in grey levels of 255."""
    return np.abs(image.astype(int) - other).mean()


def test_light_leaves_out_mirrors_and_multisampling():
    model, data = scene(0)
    exact = render.Renderer(model, SIZE_PX, "exact")
    light = render.Renderer(model, SIZE_PX, "light")
    assert (exact._context.offSamples, light._context.offSamples) == (4, 0)
    differences = [difference(exact.render(data, k), light.render(data, k)) for k in "012345"]
    assert 0.1 < np.mean(differences) < 20
    exact.close()
    light.close()


def test_renderers_share_a_context_and_no_picture():
    """Other renderers, of other sizes, come, draw and go between two pictures.

    A foreign context is current.
    """
    model, data = scene(2)
    other_model, other_data = scene(3)
    ours = render.Renderer(model, SIZE_PX, "exact")
    before = ours.render(data, "1")
    others = [render.Renderer(other_model, size_px, "exact") for size_px in (32, 64, SIZE_PX)]
    theirs = [other.render(other_data, "2") for other in others]
    np.testing.assert_array_equal(ours.render(data, "1"), before)
    np.testing.assert_array_equal(others[2].render(other_data, "2"), theirs[2])
    others[0].close()
    others[0].close()
    type(render.shared_context())(8, 8).make_current()
    np.testing.assert_array_equal(ours.render(data, "1"), before)
    np.testing.assert_array_equal(others[1].render(other_data, "2"), theirs[1])
    with pytest.raises(RuntimeError, match="closed"):
        others[0].render(other_data, "2")
    for renderer in (ours, *others[1:]):
        renderer.close()


def test_the_process_ends_quietly_with_a_renderer_open():
    code = (
        "import mujoco; from pirl_jax.envs.libero import render;"
        "r = render.Renderer(mujoco.MjModel.from_xml_string('<mujoco/>'), 8, 'exact')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_errors_say_the_remedy(monkeypatch):
    with pytest.raises(ValueError, match="exact, light"):
        render.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 8, "best")
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    with pytest.raises(ValueError, match=r"glfw.*choose egl or osmesa"):
        render.shared_context.__wrapped__()


FIRST, *MORE = (
    ("libero_goal", 0),
    ("libero_spatial", 0),
    ("libero_object", 0),
    ("libero_10", 0),
    ("libero_10", 2),
    ("libero_90", 30),
    ("libero_90", 46),
    ("libero_90", 80),
)


@pytest.fixture(scope="module")
def make_stock(libero_assets, tmp_path_factory):
    """Stock environments in their first init state, by suite and task.

    Lighter meshes go to a cache of this module.
    """
    make, _ = stock.import_libero(libero_assets)

    @contextlib.contextmanager
    def first_state(suite, task):
        path = str(files.bddl_file(suite, task))
        env = make(bddl_file_name=path, use_camera_obs=False, hard_reset=False, ignore_done=True)
        env.env.reset()
        env.set_init_state(files.init_states(suite, task)[0])
        yield env
        env.sim._render_context_offscreen.gl_ctx.make_current()
        env.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield first_state
    # robosuite's exit and ours end the same display; nobody needs to
    if "mujoco.egl" in sys.modules:
        atexit.unregister(sys.modules["mujoco.egl"].EGL.eglTerminate)


@pytest.mark.parametrize(
    "suite, task", [FIRST, *(pytest.param(*task, marks=pytest.mark.slow) for task in MORE)]
)
def test_libero_is_pixel_identical_to_robosuite(suite, task, make_stock):
    with make_stock(suite, task) as env:
        model = env.sim.model._model
        data = env.sim.data._data
        ours = render.Renderer(model, 128, "exact")
        rng = np.random.default_rng(0)
        for _ in range(4):
            for camera in panda.CAMERAS:
                image = ours.render(data, camera)
                env.sim._render_context_offscreen.gl_ctx.make_current()
                theirs = env.sim.render(width=128, height=128, camera_name=camera)
                np.testing.assert_array_equal(image, render.upright(theirs))
            _push([(model, data)], rng, steps=5)
        ours.close()


@pytest.mark.slow
@pytest.mark.parametrize("suite, task", [FIRST, *MORE])
def test_light_moves_as_exact_and_looks_alike(suite, task, make_stock):
    """Every qpos and qvel is equal after 50 random control steps of 25 physics steps."""
    pytest.importorskip("fast_simplification", reason="fast-simplification is not installed")
    with make_stock(suite, task) as env:
        model = env.sim.model._model
        data = env.sim.data._data
        lighter = textures.shrink(meshes.lighten(env.env.model.get_xml()))
        light_model = meshes.compile_model(lighter)
        for name in stock.RESET_FIELDS:
            getattr(light_model, name)[:] = getattr(model, name)
        light_data = mujoco.MjData(light_model)
        _copy_state(model, data, light_model, light_data)
        _push([(model, data), (light_model, light_data)], np.random.default_rng(0), steps=50)
        np.testing.assert_array_equal(light_data.qpos, data.qpos)
        np.testing.assert_array_equal(light_data.qvel, data.qvel)
        exact = render.Renderer(model, 128, "exact")
        light = render.Renderer(light_model, 128, "light")
        differences = [
            difference(exact.render(data, camera), light.render(light_data, camera))
            for camera in panda.CAMERAS
        ]
        assert 0 < np.mean(differences) < 6, "1 to 3.5 measured"
        np.testing.assert_array_equal(light_model.tex_colorspace, model.tex_colorspace)
        assert light_model.nmeshface < 0.45 * model.nmeshface
        exact.close()
        light.close()


def _push(simulations, rng, steps):
    """Random torques, one set per 25 physics steps; then poses of the final state."""
    for _ in range(steps):
        torques = rng.uniform(-2, 2, simulations[0][0].nu)
        for model, data in simulations:
            data.ctrl[:] = torques
            mujoco.mj_step(model, data, 25)
    for model, data in simulations:
        for update in (mujoco.mj_kinematics, mujoco.mj_comPos, mujoco.mj_camlight):
            update(model, data)


def _copy_state(model, data, other_model, other_data):
    state = np.empty(mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION))
    mujoco.mj_getState(model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
    mujoco.mj_setState(other_model, other_data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
    mujoco.mj_forward(model, data)
    mujoco.mj_forward(other_model, other_data)
