"""Lighter meshes on small synthetic scenes: what is replaced, how it looks, how it is cached."""

import concurrent.futures
import multiprocessing
import xml.etree.ElementTree as ElementTree

import mujoco
import numpy as np
import pytest

from pirl_jax.envs.libero import meshes

EPSILON = 1e-6


@pytest.fixture
def cache(tmp_path, monkeypatch):
    pytest.importorskip("fast_simplification", reason="fast-simplification is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "pirl_jax" / "meshes"


def ball(rows=60, columns=60, bumps_m=0.0):
    """A ball of 10 cm as a map of longitude and latitude."""
    v, u = np.meshgrid(np.linspace(0, 1, rows + 1), np.linspace(0, 1, columns + 1), indexing="ij")
    radius_m = 0.1 + bumps_m * np.random.default_rng(0).uniform(-1, 1, v.shape)
    radius_m[:, -1] = radius_m[:, 0]
    radius_m[[0, -1]] = 0.1
    sine = np.sin(np.pi * v)
    angle = 2 * np.pi * (u % 1)
    outward = np.stack([sine * np.cos(angle), sine * np.sin(angle), np.cos(np.pi * v)], axis=-1)
    points = outward * radius_m[..., None]
    points[np.abs(points) < 1e-9] = 0
    # every cell of the map becomes two triangles
    grid = np.arange(v.size).reshape(v.shape)
    a = grid[:-1, :-1].ravel()
    b = grid[:-1, 1:].ravel()
    c = grid[1:, 1:].ravel()
    d = grid[1:, :-1].ravel()
    triangles = np.concatenate([np.stack([a, c, b], 1), np.stack([a, d, c], 1)])
    texture = np.stack([u, v], -1).reshape(-1, 2)[triangles]
    return meshes.Mesh(points.reshape(-1, 3), triangles, texture)


def write(path, mesh):
    corners = meshes.Corners(mesh.corners_f33, mesh.corners_f33 * 10, mesh.texture_f32)
    path.write_bytes(meshes.to_msh(corners))
    return path


def scene(path, visual='contype="0" conaffinity="0" group="1"', attributes=""):
    return (
        '<mujoco><compiler inertiagrouprange="0 0"/>'
        f'<asset><mesh name="ball" file="{path}" {attributes}/></asset>'
        f'<worldbody><body pos="0 0 1"><freejoint/><geom type="mesh" mesh="ball" {visual}/>'
        '<geom type="box" size=".1 .1 .1" group="0"/></body></worldbody></mujoco>'
    )


def test_a_mesh_comes_back_as_it_was_written(tmp_path):
    """Position, scale and texture survive MuJoCo's reader and our writer."""
    mesh = ball(6, 8)
    path = write(tmp_path / "ball.msh", mesh)
    read = meshes.read(ElementTree.Element("mesh", {"file": str(path), "scale": "2 1 1"}))
    np.testing.assert_allclose(read.corners_f33, mesh.corners_f33 * (2, 1, 1), atol=EPSILON)
    np.testing.assert_allclose(read.texture_f32, mesh.texture_f32, atol=EPSILON)


def test_a_lighter_ball_is_still_the_ball(cache):
    mesh = ball()
    lighter = meshes.lightest(mesh)
    assert len(lighter.position_f33) <= 0.5 * len(mesh.triangles_f3)
    radius_m = np.linalg.norm(lighter.position_f33, axis=2, keepdims=True)
    assert np.abs(radius_m - 0.1).max() < 0.002
    outward = lighter.position_f33 / radius_m
    cosine = np.einsum("gki,gki->gk", outward, lighter.normal_f33)
    assert np.quantile(cosine, 0.01) > 0.95, "slivers may be worse"
    latitude = np.arccos(np.clip(outward[..., 2], -1, 1)) / np.pi
    assert np.abs(latitude - lighter.texture_f32[..., 1]).mean() < 0.01
    width = np.ptp(lighter.texture_f32[..., 0], axis=1)
    assert width.max() < 0.3, "a triangle runs across the seam of the texture"


def test_a_mesh_that_would_look_different_is_left_alone(cache):
    assert meshes.lightest(ball(bumps_m=0.02)) is None
    assert meshes.lightest(ball(10, 10)) is None, "small already"


def test_only_pictures_are_replaced():
    """Touching, weighing, or fitted to another shape: a mesh stays if any of its geoms is."""
    picture = 'contype="0" conaffinity="0" group="1"'
    geoms = {
        "picture": picture,
        "touches": 'contype="1" conaffinity="0" group="1"',
        "weighs": 'contype="0" conaffinity="0" group="0"',
        "painted": picture + ' material="paint"',
    }
    xml = '<mujoco><compiler inertiagrouprange="0 0"/><asset><material name="paint" texture="t"/>'
    xml += '<texture name="t" type="2d" builtin="flat" width="8" height="8"/>'
    for name in [*geoms, "fitted", "unused"]:
        xml += f'<mesh name="{name}" file="/nowhere/{name}.msh"/>'
    xml += "</asset><worldbody>"
    for name, attributes in geoms.items():
        xml += f'<geom type="mesh" mesh="{name}" {attributes}/>'
    xml += f'<geom type="mesh" mesh="weighs" {picture}/>'
    xml += f'<geom type="sphere" mesh="fitted" {picture}/>'
    xml += "</worldbody></mujoco>"
    assert meshes.visual_meshes(xml) == {"picture": False, "painted": True}


def test_physics_is_the_same(cache, tmp_path):
    path = write(tmp_path / "ball.msh", ball())
    xml = scene(path, attributes='scale="1 2 1" refpos=".1 0 0"')
    exact = meshes.compile_model(xml)
    light = meshes.compile_model(meshes.lighten(xml))
    assert light.nmeshface < 0.5 * exact.nmeshface
    np.testing.assert_array_equal(light.body_inertia, exact.body_inertia)
    np.testing.assert_array_equal(light.body_ipos, exact.body_ipos)
    half_widths_m = np.sort(np.abs(light.geom_aabb[0, 3:]))
    np.testing.assert_allclose(half_widths_m, np.sort(np.abs(exact.geom_aabb[0, 3:])), atol=0.01)


def test_what_touches_is_not_replaced(cache, tmp_path):
    xml = scene(write(tmp_path / "ball.msh", ball()), visual='group="1"')
    assert mujoco.MjModel.from_xml_string(meshes.lighten(xml)).nmeshface == len(ball().triangles_f3)
    assert not cache.exists()


def test_the_cache_is_hit_and_follows_the_content(cache, tmp_path, monkeypatch):
    """Files are named by content: of the same name, other content or another scale is other."""
    path = write(tmp_path / "ball.msh", ball())
    first = meshes.lighten(scene(path))
    (made,) = cache.iterdir()
    monkeypatch.setattr(meshes, "read", lambda element: pytest.fail("read again"))
    assert meshes.lighten(scene(path)) == first and str(made) in first
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert str(made) not in meshes.lighten(scene(path, attributes='scale="2 2 2"'))
    write(path, ball(50, 50))
    assert str(made) not in meshes.lighten(scene(path))
    assert len(list(cache.iterdir())) == 3


def test_workers_that_start_at_once_agree(cache, tmp_path):
    path = write(tmp_path / "ball.msh", ball())
    # Processes, as simulators are: fast_simplification keeps state of its own between two calls.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(3, mp_context=context) as processes:
        texts = list(processes.map(meshes.lighten, [scene(path)] * 3))
    assert len(set(texts)) == 1 and len(list(cache.iterdir())) == 1, "no half-written file is left"
    assert mujoco.MjModel.from_xml_string(texts[0]).nmeshface < 0.5 * len(ball().triangles_f3)


def test_a_relative_path_is_refused(cache):
    with pytest.raises(ValueError, match=r"ball\.msh is not an absolute path"):
        meshes.lighten(scene("ball.msh"))


def test_compile_model_gives_the_same_bytes_and_forgets_the_files(tmp_path):
    xml = scene(write(tmp_path / "ball.msh", ball()))
    cache = mujoco.mj_getCache()
    theirs = mujoco.MjModel.from_xml_string(xml)
    assert mujoco.mj_getCacheSize(cache) > 0
    ours = meshes.compile_model(xml)
    assert mujoco.mj_getCacheSize(cache) == 0
    assert _bytes(ours) == _bytes(theirs)


def _bytes(model) -> bytes:
    buffer = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return buffer.tobytes()
