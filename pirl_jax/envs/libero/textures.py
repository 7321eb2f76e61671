"""Smaller textures for light pictures: each picture scaled once and kept in the user's cache.

LIBERO's are up to 4096 px wide: 50 MB each in the model, and more again where they are drawn.  A
picture of 256 px shows a texture many of whose texels fall on one pixel.  Only colours change.
"""

import functools
import hashlib
import io
import pathlib
import xml.etree.ElementTree as ElementTree

from PIL import Image, PngImagePlugin

from pirl_jax.envs.libero import files, kept

FOLDER = "textures"
MAX_SIDE_PX = 512  # of the longer side
CODE = 2  # counts changes of `smaller`: cached files of other code are not read
RECIPE = (CODE, MAX_SIDE_PX)  # what a kept file depends on, besides its source
# Attributes that say where in the picture the faces of a cube lie: its size matters.
LAID_OUT = ("gridsize", "gridlayout")


def shrink(xml: str) -> str:
    """MJCF text with textures of at most MAX_SIDE_PX.

    Raises:
        ValueError: a picture is not named by its absolute path.
    """
    root = ElementTree.fromstring(xml)
    names = {}  # by element
    makers = {}
    for element in root.iter("texture"):
        source = files.absolute(element.get("file")) if is_shrinkable(element) else None
        if source is not None and _is_large(source):
            names[element] = file_name(source)
            makers[names[element]] = functools.partial(smaller, source)
    paths = kept.make(FOLDER, makers)
    for element, name in names.items():
        element.set("file", str(paths[name]))
    return ElementTree.tostring(root, encoding="unicode")


def is_shrinkable(element: ElementTree.Element) -> bool:
    """Whether it is one whole PNG of three colours."""
    file = element.get("file", "")
    is_laid_out = any(name in element.attrib for name in LAID_OUT)
    return file.endswith(".png") and not is_laid_out and element.get("nchannel", "3") == "3"


def _is_large(source: pathlib.Path) -> bool:
    with Image.open(source) as picture:  # reads the head only
        return max(picture.size) > MAX_SIDE_PX


def file_name(source: pathlib.Path) -> str:
    """Of the smaller picture: by the content of the large one and the recipe."""
    digest = hashlib.sha256(source.read_bytes())
    digest.update(repr(RECIPE).encode())
    return f"{digest.hexdigest()[:24]}.png"


def smaller(source: pathlib.Path) -> bytes:
    """The picture as PNG, its longer side MAX_SIDE_PX long.

    Every texel is the mean of those that it replaces, as in the mipmaps that OpenGL would make.
    """
    chunks = PngImagePlugin.PngInfo()
    with Image.open(source) as picture:
        colours = picture.convert("RGB")  # MuJoCo drops transparency too
        if "srgb" in picture.info:  # and draws such a picture darker
            chunks.add(b"sRGB", bytes([picture.info["srgb"]]))
    colours.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX), Image.Resampling.BOX, reducing_gap=None)
    written = io.BytesIO()
    colours.save(written, "PNG", pnginfo=chunks)
    return written.getvalue()
