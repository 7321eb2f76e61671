"""Smaller textures: what is scaled and what is not, which colours come out, how they are kept."""

import xml.etree.ElementTree as ElementTree

import mujoco
import numpy as np
from PIL import Image, PngImagePlugin
import pytest

from pirl_jax.envs.libero import textures


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pirl_jax" / "textures"


def picture(path, width, height, channels=3, srgb=False):
    """A PNG of random colours -> its pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    chunks = PngImagePlugin.PngInfo()
    if srgb:
        chunks.add(b"sRGB", b"\0")
    Image.fromarray(pixels).save(path, pnginfo=chunks)
    return pixels


def scene(path, attributes='type="2d"'):
    return (
        f'<mujoco><asset><texture name="paint" {attributes} file="{path}"/>'
        '<material name="paint" texture="paint"/></asset>'
        '<worldbody><geom size=".1" material="paint"/></worldbody></mujoco>'
    )


def file_of(xml) -> str:
    return ElementTree.fromstring(xml).find("asset/texture").get("file")


def colours(model):
    """[height,width,3] of the only texture."""
    size = (model.tex_height[0], model.tex_width[0], model.tex_nchannel[0])
    return model.tex_data.reshape(size)


@pytest.mark.parametrize("channels", [3, 4])
def test_a_texel_is_the_mean_of_those_it_replaces(cache, tmp_path, channels):
    """Transparency has no say: MuJoCo drops it."""
    pixels = picture(tmp_path / "large.png", 1024, 512, channels)
    model = mujoco.MjModel.from_xml_string(textures.shrink(scene(tmp_path / "large.png")))
    found = colours(model)
    assert found.shape == (256, 512, 3)
    exact = colours(mujoco.MjModel.from_xml_string(scene(tmp_path / "large.png")))
    np.testing.assert_array_equal(exact, pixels[..., :3], "what MuJoCo itself reads")
    means = exact.reshape(256, 2, 512, 2, 3).mean((1, 3))
    assert np.abs(found - means).max() < 2


@pytest.mark.parametrize("srgb", [False, True])
def test_a_picture_keeps_its_colour_space(cache, tmp_path, srgb):
    """MuJoCo draws the same colours darker where the file says that they are sRGB."""
    picture(tmp_path / "large.png", 600, 600, srgb=srgb)
    xml = scene(tmp_path / "large.png")
    exact = mujoco.MjModel.from_xml_string(xml)
    light = mujoco.MjModel.from_xml_string(textures.shrink(xml))
    assert light.tex_width[0] == 512 and light.tex_colorspace[0] == exact.tex_colorspace[0]
    assert (exact.tex_colorspace[0] == mujoco.mjtColorSpace.mjCOLORSPACE_SRGB) is srgb


def test_small_pictures_and_those_of_a_layout_stay(cache, tmp_path):
    picture(tmp_path / "small.png", 512, 300)
    picture(tmp_path / "large.png", 768, 1024)
    for xml in (
        scene(tmp_path / "small.png"),
        scene(tmp_path / "large.png", 'type="cube" gridsize="4 3" gridlayout=".U..LFRB.D.."'),
        scene(tmp_path / "large.png", 'type="2d" nchannel="4"'),
        scene(tmp_path / "large.ktx"),
        '<mujoco><asset><texture name="a" builtin="flat" width="8" height="8"/></asset></mujoco>',
    ):
        before = ElementTree.tostring(ElementTree.fromstring(xml), encoding="unicode")
        assert textures.shrink(xml) == before
    assert not cache.exists()


def test_the_cache_is_hit_and_follows_the_content(cache, tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    picture(path, 1024, 1024)
    first = file_of(textures.shrink(scene(path)))
    assert [str(made) for made in cache.iterdir()] == [first]
    monkeypatch.setattr(textures, "smaller", lambda source: pytest.fail("made again"))
    assert file_of(textures.shrink(scene(path, 'type="cube"'))) == first
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parents[1]))
    picture(path, 1024, 512)
    assert file_of(textures.shrink(scene(path))) != first
    monkeypatch.setattr(textures, "RECIPE", (0,))
    assert len({file_of(textures.shrink(scene(path))), *map(str, cache.iterdir())}) == 3


def test_a_relative_path_is_refused(cache):
    with pytest.raises(ValueError, match=r"large\.png is not an absolute path"):
        textures.shrink(scene("large.png"))
