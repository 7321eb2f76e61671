"""Which asset files LIBERO's 130 tasks need, which of them are absent, and which version they are.

Read from LIBERO's own task and scene files; imports nothing of LIBERO.
"""

from collections.abc import Mapping
import functools
import hashlib
import os
import pathlib
import re
import runpy
from xml.etree import ElementTree

from pirl_jax.envs.libero import files

# What a BDDL file calls a fixture and the scene itself provides.
IN_THE_SCENE = {"floor", "table", "kitchen_table", "living_room_table", "study_table"}
GIT_LFS = b"version https://git-lfs"  # how a file begins that `git clone` left as a pointer

# In a BDDL file: the lists of things, "(:objects a_1 a_2 - a  b_1 - b)", and the kinds in them.
THINGS = re.compile(r"\(:(?:objects|fixtures)([^)]*)\)")
KIND = re.compile(r"-\s+(\w+)")
PROBLEM = re.compile(r"\(problem\s+(\w+)\)")

# In the Python file of a problem: its scene and the styles of floor and wall.
SCENE = re.compile(r'"(scenes/\w+\.xml)"')
FLOOR = re.compile(r'"floor_style": "([\w-]+)"')
WALL = re.compile(r'"wall_style": "([\w-]+)"')


def missing(folder: str | os.PathLike) -> list[str]:
    """Files under `folder` that some task needs and that are not there; sorted.

    A file that is empty or a mere git-lfs pointer is not there.
    """
    folder = pathlib.Path(folder)
    absent = set()
    for category in categories():
        xml = object_file(folder, category)
        absent |= _missing_of(folder, xml, {}) if xml else {f"{category}.xml"}
    for scene, textures in scenes():
        absent |= _missing_of(folder, folder / scene, textures)
    return sorted(absent)


def identity(folder: str | os.PathLike) -> dict[str, object]:
    """Which assets these are, as results name them.

    The hash is of the names and sizes of all files, not of their contents, which would take seconds
    at every start; contents were compared with pinned hashes when the packages were installed.
    """
    folder = pathlib.Path(folder)
    digest = hashlib.sha256()
    sizes = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            sizes.append(path.stat().st_size)
            digest.update(f"{path.relative_to(folder).as_posix()} {sizes[-1]}\n".encode())
    is_package = folder in [installed.resolve() for installed in files.installed_assets()]
    return {
        "package": _distribution() if is_package else None,  # None: a folder of the user's
        "files": len(sizes),
        "bytes": sum(sizes),
        "sha256_of_names_and_sizes": digest.hexdigest(),
    }


def _distribution() -> str | None:
    """Name and version of the packages, which are released together."""
    first, *_ = files.ASSET_PACKAGES
    version = files.version(first)
    return version and f"{first.removesuffix('-1')} {version}"


@functools.cache
def categories() -> frozenset[str]:
    """Kinds of objects and fixtures in the tasks, e.g. akita_black_bowl; each is one XML file."""
    return frozenset().union(*map(kinds_of, _task_texts()))


def kinds_of(text: str) -> frozenset[str]:
    """The same of the text of one BDDL file."""
    found = set()
    for things in THINGS.findall(text):
        found.update(KIND.findall(things))
    return frozenset(found) - IN_THE_SCENE


@functools.cache
def scenes() -> tuple[tuple[str, dict[str, str]], ...]:
    """XML file and textures of each kind of scene."""
    problems = {PROBLEM.search(text)[1].lower() for text in _task_texts()}
    return tuple(scene(problem) for problem in sorted(problems))


@functools.cache
def scene(problem: str) -> tuple[str, dict[str, str]]:
    """XML file and textures of the scene of a problem.

    The textures, {name: picture}, are those that LIBERO puts in place of the XML's.
    """
    code = (files.package() / "envs" / "problems" / f"{problem}.py").read_text()
    # One of each, or LIBERO is not the one that this was written for.
    (xml,) = set(SCENE.findall(code))
    (floor,) = FLOOR.findall(code)
    (wall,) = WALL.findall(code)
    return xml, {"texplane": styles()["floor"][floor], "tex-wall": styles()["wall"][wall]}


@functools.cache
def styles() -> dict[str, dict[str, str]]:
    """{floor | wall: {name: picture}}"""
    # run, not imported: its package would import all of LIBERO
    return runpy.run_path(str(files.package() / "envs" / "arenas" / "style.py"))["STYLE_MAPPING"]


@functools.cache
def _task_texts() -> tuple[str, ...]:
    """The BDDL file of every task."""
    tasks = range(len(files.tasks("libero_130")))
    return tuple(files.bddl_file("libero_130", task).read_text() for task in tasks)


def object_file(folder: pathlib.Path, category: str) -> pathlib.Path | None:
    """The first XML file of that kind, beside the others of its group or in its own folder."""
    for group in files.ASSET_FOLDERS:
        for parent in (folder / group, folder / group / category):
            xml = parent / f"{category}.xml"
            if xml.is_file():
                return xml
    return None


def _missing_of(folder: pathlib.Path, xml: pathlib.Path, textures: Mapping[str, str]) -> set[str]:
    """The XML file itself, or the files it names."""
    paths = named_by(xml, textures)
    return {os.path.relpath(path, folder) for path in paths if not is_whole(path)}


def named_by(xml: pathlib.Path, textures: Mapping[str, str]) -> list[pathlib.Path]:
    """The XML file, and where it is whole the files it names.

    `textures` replaces the pictures of these.
    """
    if not is_whole(xml):
        return [xml]
    named = {}
    for element in ElementTree.parse(xml).getroot().iter():
        if "file" not in element.attrib:
            continue
        path = xml.parent / element.attrib["file"]
        name = element.get("name", str(path))
        picture = textures.get(name, path.name)
        # robosuite takes the first asset of a name and reads no second one
        named.setdefault((element.tag, name), path.with_name(picture))
    return [xml, *named.values()]


def is_whole(path: pathlib.Path) -> bool:
    """Whether a file is there, neither empty nor a mere git-lfs pointer."""
    if not path.is_file() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        return file.read(len(GIT_LFS)) != GIT_LFS
