"""Pictures on lighter meshes: no triangle runs across a cut, which would show as a crack."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from pirl_jax.envs.libero import assets as asset_files
from pirl_jax.envs.libero import meshes
from tests.envs.libero import test_libero_meshes


def outward(lighter):
    return lighter.position_f33 / np.linalg.norm(lighter.position_f33, axis=2, keepdims=True)


@pytest.mark.parametrize("share", meshes.KEPT_SHARES)
def test_corners_stay_on_their_side_of_a_cut(share):
    """The map of a ball hangs together, and its left and right edge meet on the ball."""
    lighter = meshes.decimate(test_libero_meshes.ball(), share)
    assert np.ptp(lighter.texture_f32[..., 0], axis=1).max() < 0.3
    latitude = np.arccos(np.clip(outward(lighter)[..., 2], -1, 1)) / np.pi
    assert np.abs(latitude - lighter.texture_f32[..., 1]).max() < 0.03
    longitude = np.arctan2(outward(lighter)[..., 1], outward(lighter)[..., 0]) / (2 * np.pi)
    off = np.abs(lighter.texture_f32[..., 0] - longitude % 1)
    off = np.minimum(off, 1 - off) * np.sin(np.pi * latitude)  # any at a pole
    assert off.max() < 0.1 and off.mean() < 0.01


@pytest.mark.parametrize("share", meshes.KEPT_SHARES)
def test_nothing_between_two_parts_of_a_picture_is_shown(share):
    """Two halves of a ball as two islands: between them the picture may be black."""
    ball = test_libero_meshes.ball()
    texture = ball.texture_f32 * (0.4, 1)
    south = ball.texture_f32[..., 1].mean(axis=1) > 0.5
    texture[south, :, 0] += 0.6
    lighter = meshes.decimate(ball._replace(texture_f32=texture), share)
    across = lighter.texture_f32[..., 0]
    assert ((across < 0.401).all(axis=1) | (across > 0.599).all(axis=1)).all()
    assert np.ptp(across, axis=1).max() < 0.12


def test_a_picture_of_one_place_stays_there():
    ball = test_libero_meshes.ball()
    lighter = meshes.decimate(ball._replace(texture_f32=0 * ball.texture_f32 + 0.3), 0.2)
    np.testing.assert_allclose(lighter.texture_f32, 0.3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["akita_black_bowl", "glazed_rim_porcelain_ramekin", "plate", "porcelain_mug"]
)
def test_liberos_round_things_have_no_crack(libero_assets, kind):
    """Triangles reach no further in the picture than about their size tells."""
    path = asset_files.object_file(libero_assets, kind)
    element = ElementTree.parse(path).getroot().find("asset/mesh")
    element.set("file", str(path.parent / element.get("file")))
    whole = meshes.read(element)
    lighter = meshes.lightest(whole)
    assert meshes.FEWEST_TEXTURED <= len(lighter.position_f33) < 0.5 * len(whole.triangles_f3)

    def longest(mesh, texture):
        sides = np.linalg.norm(texture - np.roll(texture, 1, axis=1), axis=2)
        return sides.max() / np.quantile(sides, 0.9)

    assert longest(lighter, lighter.texture_f32) < 6
