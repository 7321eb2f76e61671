"""What LIBERO-Plus's own assets are for: other lights, other pictures, further objects.

No package has them.  A task's file names its scene; where that scene and its pictures lie was read
from the classes that the benchmark registers for its 1,919 scenes, which follow one rule.  Builds
nothing; imports nothing of LIBERO.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
import re

from pirl_jax.envs.libero import assets as asset_files

VARIABLE = "PIRL_LIBERO_PLUS_ASSETS"
FOLDERS = ("scenes", "textures", "new_objects")  # by which the folder is known
REMEDY = (
    f"set env.plus_assets or {VARIABLE} to the folder of LIBERO-Plus's assets.zip that holds"
    f" {', '.join(FOLDERS)}"
)

# The problem in a task's file: LIBERO's, and the scene's name after it.
SCENE = re.compile(r"(?P<problem>Libero_\w+?_Manipulation)_(?P<scene>\w+)")
FLOOR = re.compile(r"(?:Combined_)?Floor(?P<floor>\w+?)(?:_Wall(?P<wall>[a-z_]+))?")
WALL = re.compile(r"(?P<xml>\w+?)_Wall_(?P<wall>[a-z_]+)")
TABLES = ("tabletop", "kitchen", "liv", "study")  # how the name of a scene with one begins
# Those of later pictures lie in folders of their own.
LATER = re.compile(r"_table_(?:Fabric|Cardboard|CarbonFiber)")
# Pictures that LIBERO has no name for.
FLOORS = {
    "brick_disp": "Bricks02_DISP_6K.png",
    "cliffde_ao": "CliffDesert006_AO_HIRES.png",
    "cobble01_ao": "Cobblestone01_AO_6K.png",
    "cobble01_disp": "Cobblestone01_DISP_6K copy.png",
    "dapper_gray": "dapper_gray_floor.png",
    "gray": "gray_floor.png",
    "light": "light_floor.png",
    "marble": "marble_floor.png",
    "marble_gloss": "Marble01_GLOSS_3K.png",
}
WALLS = {
    "canvas": "canvas_sky_blue.png",
    "capriccio": "capriccio_sky.png",
    "cream": "cream_plaster.png",
    "gray": "gray_wall.png",
    "gray_ceramic": "gray_ceramic_tile.png",
    "stucco": "stucco_wall.png",
}
# Objects of its tasks that LIBERO does not have -> which of the shapes that it has of them.
OBJECTS = {
    "bag_of_yeast": "ibvtik",
    "bottle_of_alfredo_sauce": "xwzqjr",
    "bottle_of_antihistamines": "agavwx",
    "bottle_of_aspirin": "psvktc",
    "bottle_of_baby_oil": "xpdlrr",
    "bottle_of_barbecue_sauce__2": "nkqvex",
    "box_of_shampoo__1": "bclpiq",
    "box_of_vegetable_juice__1": "jsnnlv",
    "box_of_yogurt__1": "jkemqc",
    "boxed_ink_cartridge__3": "oinelo",
    "can_of_sardines": "dpgmry",
    "can_of_soda__1": "bfrzvk",
    "canned_food__1": "acgdtc",
}


@dataclasses.dataclass(frozen=True)
class Scene:
    """Of LIBERO's scenes one whose lights or pictures are others."""

    problem: str  # LIBERO's class of it
    xml: str  # below the folder of assets
    floor: str  # picture, beside the one that the XML names
    wall: str

    def pictures(self) -> dict[str, str]:
        """By the names of the textures in the XML."""
        return {"texplane": self.floor, "tex-wall": self.wall}


@functools.cache
def scene(problem: str) -> Scene | None:
    """The scene that a problem of LIBERO-Plus stands for; None: it is one of LIBERO's.

    Raises:
        ValueError: neither.
    """
    match = SCENE.fullmatch(problem)
    if match is None:
        return None
    own = match["problem"].lower()
    xml, stock = asset_files.scene(own)
    floor, wall = stock["texplane"], stock["tex-wall"]
    name = match["scene"]
    if "_light_sync_" in name:
        xml = f"scenes/lights/{name}.xml"
    elif found := FLOOR.fullmatch(name):
        floor = _picture("floor", found["floor"])
        wall = _picture("wall", found["wall"].strip("_")) if found["wall"] else wall
    else:
        if found := WALL.fullmatch(name):
            name = found["xml"]
            wall = _picture("wall", found["wall"])
        xml = f"scenes/{_group(problem, name)}{name}.xml"
    return Scene(own, xml, floor, wall)


def scene_of(bddl: pathlib.Path) -> Scene | None:
    """The same of a task's file."""
    return scene(asset_files.PROBLEM.search(bddl.read_text(encoding="utf-8"))[1])


def _group(problem: str, name: str) -> str:
    """The folder of a scene whose table has another picture, below `scenes`."""
    beginning, _, _ = name.partition("_")
    if beginning not in TABLES:
        raise ValueError(f"{problem!r} is no scene of LIBERO-Plus; fetch its task files again")
    if "_bg_" in name:
        return f"{beginning}xml/"
    return f"{beginning}250/" if LATER.search(name) else ""


def _picture(kind: str, style: str) -> str:
    """The file of a floor or wall; those of LIBERO keep its names."""
    added = FLOORS if kind == "floor" else WALLS
    known = {name.replace("-", "_"): file for name, file in asset_files.styles()[kind].items()}
    return (known | added).get(style, f"{style}.png")


def object_xml(kind: str) -> str:
    """The file of one of OBJECTS, below the folder of assets."""
    shape = OBJECTS[kind]
    group, _, _ = kind.partition("__")  # behind it: which of several
    return f"new_objects/{group}/{shape}/usd/MJCF/{shape}.xml"


# ---- a user's folder --------------------------------------------------------------------------


def needed(folder: pathlib.Path, bddl: pathlib.Path) -> dict[str, bool]:
    """The files of the folder that a task needs, and whether they are whole.

    Scenes and objects, and what their XML files name as far as these are there.
    """
    text = bddl.read_text(encoding="utf-8")
    found = {}
    own = scene_of(bddl)
    if own is not None:
        found |= _named(folder, own.xml, tuple(own.pictures().items()))
    for kind in sorted(asset_files.kinds_of(text) & OBJECTS.keys()):
        found |= _named(folder, object_xml(kind), ())
    return found


@functools.cache
def _named(
    folder: pathlib.Path, xml: str, pictures: tuple[tuple[str, str], ...]
) -> dict[str, bool]:
    paths = asset_files.named_by(folder / xml, dict(pictures))
    return {os.path.relpath(path, folder): asset_files.is_whole(path) for path in paths}


def identity(folder: pathlib.Path, names: frozenset[str]) -> str:
    """SHA-256 of these files of the folder, their contents included."""
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(name.encode() + b"\0")
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
