"""Which asset files LIBERO's 130 tasks need, read from LIBERO's own task and scene files; and which of them are absent.

Imports nothing of LIBERO: it reads files only.
"""

import functools
import os
import pathlib
import re
import runpy
from xml.etree import ElementTree

from pirl_jax.envs.libero import files

# What a BDDL file calls a fixture and the scene itself provides.
IN_THE_SCENE = {"floor", "table", "kitchen_table", "living_room_table", "study_table"}
GIT_LFS = b"version https://git-lfs"  # how a file begins that `git clone` left as a pointer


def missing(folder: str | os.PathLike) -> list[str]:
    """Files under `folder` that some task needs and that are absent, empty, or mere git-lfs pointers; sorted."""
    folder = pathlib.Path(folder)
    absent = set()
    for category in categories():
        xml = _object_file(folder, category)
        absent |= _missing_of(folder, xml, {}) if xml else {f"{category}.xml"}
    for scene, textures in scenes():
        absent |= _missing_of(folder, folder / scene, textures)
    return sorted(absent)


@functools.cache
def categories() -> frozenset[str]:
    """Kinds of objects and fixtures in the tasks, e.g. akita_black_bowl; each is one XML file."""
    sections = [
        found
        for text, _ in _tasks()
        for found in re.findall(r"\(:(?:objects|fixtures)([^)]*)\)", text)
    ]
    return frozenset(re.findall(r"-\s+(\w+)", " ".join(sections))) - IN_THE_SCENE


@functools.cache
def scenes() -> tuple[tuple[str, dict[str, str]], ...]:
    """(XML file, {texture name: picture that LIBERO puts in place of the XML's}) of each kind of scene."""
    problems = {problem for _, problem in _tasks()}
    styles = runpy.run_path(str(files.package() / "envs" / "arenas" / "style.py"))["STYLE_MAPPING"]
    result = []
    for problem in sorted(problems):
        code = (files.package() / "envs" / "problems" / f"{problem}.py").read_text()
        (xml,) = set(re.findall(r'"(scenes/\w+\.xml)"', code))
        (floor,), (wall,) = (
            re.findall(rf'"{kind}_style": "([\w-]+)"', code) for kind in ("floor", "wall")
        )
        result.append((xml, {"texplane": styles["floor"][floor], "tex-wall": styles["wall"][wall]}))
    return tuple(result)


@functools.cache
def _tasks() -> tuple[tuple[str, str], ...]:
    """(text of the BDDL file, lower-case name of the problem class) of every task."""
    paths = [files.bddl_file("libero_130", task) for task in range(len(files.tasks("libero_130")))]
    texts = [path.read_text() for path in paths]
    return tuple((text, re.search(r"\(problem\s+(\w+)\)", text)[1].lower()) for text in texts)


def _object_file(folder: pathlib.Path, category: str) -> pathlib.Path | None:
    names = (
        f"{group}/{inner}{category}.xml"
        for group in files.ASSET_FOLDERS
        for inner in ("", f"{category}/")
    )
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _missing_of(folder: pathlib.Path, xml: pathlib.Path, textures: dict[str, str]) -> set[str]:
    """The XML file itself, or the files it names; `textures` replaces the pictures of these textures."""
    if not _whole(xml):
        return {os.path.relpath(xml, folder)}
    named = {}
    for element in ElementTree.parse(xml).getroot().iter():
        if "file" in element.attrib:
            path = xml.parent / element.attrib["file"]
            name = element.get("name", str(path))
            # robosuite takes the first asset of a name and reads no second one
            named.setdefault((element.tag, name), path.with_name(textures.get(name, path.name)))
    return {os.path.relpath(path, folder) for path in named.values() if not _whole(path)}


def _whole(path: pathlib.Path) -> bool:
    if not path.is_file() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        return file.read(len(GIT_LFS)) != GIT_LFS
