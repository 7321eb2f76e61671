"""LIBERO's demonstrations in HDF5, and what robomimic and others write in that layout.

    data/demo_N/{actions, obs/{agentview_rgb, eye_in_hand_rgb, ee_states, gripper_states, ...}}

One task per file; its words are in an attribute of `data`, else in the BDDL there, else in the
file's name.  Not trusted: nothing outside of the file is read, sizes have bounds.

Pictures are as LIBERO's simulator draws them: macros_image_convention=opengl, and openpi turns the
simulator's by 180 degrees.  LIBERO's own script stores what follows an action beside that action
(scripts/create_dataset.py); where `states`, stored before it, show that, the pairs are put right.

Needs h5py.  Knows no policy.
"""

from collections.abc import Iterator
import contextlib
import functools
import math
import pathlib
import re
from typing import Any

import numpy as np

from pirl_jax.core import outside
from pirl_jax.datasets import episodes, kept, needs, pictures, reading

SUFFIXES = (".hdf5", ".h5")
KNOWN = {
    "agentview": ("obs/agentview_rgb", "obs/agentview_image"),
    "wrist": ("obs/eye_in_hand_rgb", "obs/robot0_eye_in_hand_image"),
    episodes.STATE: ("obs/ee_states+obs/gripper_states",),
    episodes.ACTIONS: ("actions",),
}
CONVENTION = "opengl"  # row 0 is the lowest
MOST_FILES = 10_000
OPEN_FILES = 16
MOST_BYTES_OF_CHUNK = 1 << 27  # HDF5 unpacks whole chunks
MOST_BYTES_OF_NUMBERS = 1 << 30
MOST_TEXT = 1 << 20
MOST_KEYS = 1000  # of one demonstration
LANGUAGE = re.compile(r"\(:language\s+([^()]+)\)")
SCENE = re.compile(r"^[A-Z_]*SCENE\d+_")
# states[t] is (time, joint positions, ...); the arm's joints come first.
JOINTS = slice(1, 8)
AFTER = 10.0  # how much nearer the next state must be


class Hdf5:
    """See episodes.Source."""

    kind = "LIBERO HDF5"

    def __init__(self, path: pathlib.Path, wanted: episodes.Wanted) -> None:
        """Reads names, shapes and attributes.

        Raises: ValueError for what is missing, or does not fit.
        """
        needs.library("h5py")
        self.path = path
        self._wanted = wanted
        self._files = kept.Kept(OPEN_FILES, close=lambda file: file.close())
        self._demos: list[tuple[pathlib.Path, str]] = []
        self._words: dict[pathlib.Path, str] = {}
        self._shift: dict[int, int] = {}
        found = _files(path)
        for file in found:
            self._demos += [(file, name) for name in self._look(file)]
        episodes.require_count(len(self._demos), path)
        with outside.named(found[0]):
            has = self._has(*self._demos[0])
            self.keys = episodes.resolve(wanted, KNOWN, has, found[0])
        lengths = [self._length(*demo) for demo in self._demos]
        for episode, demo in enumerate(self._demos):
            self._shift[episode] = int(self._follows(*demo))
            if self._shift[episode] and lengths[episode] < 2:
                raise ValueError(f"{demo[1]} of {demo[0]} has a single step; leave it out")
            lengths[episode] -= self._shift[episode]
        self.lengths = np.array(lengths, np.int64)

    @property
    def shifted(self) -> int:
        """How many episodes have what follows an action stored beside it."""
        return sum(self._shift.values())

    def check(self, episode: int) -> None:
        """See episodes.Source."""
        path, demo = self._demos[episode]
        length = self._length(path, demo)
        names = [self.keys[camera] for camera in self._wanted.cameras]
        for name in (*names, *episodes.parts(self.keys[episodes.STATE])):
            rows = self._array(path, demo, name).shape[0]
            if rows != length:
                raise ValueError(
                    f"{demo}/{name} of {path} has {rows} steps, and its actions {length}; "
                    f"{outside.AGAIN}"
                )
        for name in names:
            self._require_picture(path, demo, name)

    def numbers(self, episode: int) -> episodes.Numbers:
        """See episodes.Source."""
        path, demo = self._demos[episode]
        length = self.lengths[episode]
        shift = self._shift[episode]
        state = self._vectors(path, demo, episodes.STATE, self._wanted.state_dim)
        actions = self._vectors(path, demo, episodes.ACTIONS, self._wanted.action_dim)
        return episodes.Numbers(
            state_TQ=state[:length],
            actions_TA=actions[shift:],
            instructions=(self._words[path],) * int(length),
        )

    def images(self, episode: int, step: int) -> list[np.ndarray]:
        """See episodes.Source."""
        path, demo = self._demos[episode]
        found = []
        for camera in self._wanted.cameras:
            name = self.keys[camera]
            array = self._array(path, demo, name)
            with _reading(path):
                picture = array[step]
            upright = self._wanted.turned is False
            found.append(picture if upright else pictures.turned(picture))
        return found

    def close(self) -> None:
        """See episodes.Source."""
        self._files.clear()

    # ---- one file ----------------------------------------------------------------------------

    def _file(self, path: pathlib.Path) -> Any:
        return self._files.get(path, lambda: _open(path))

    def _look(self, path: pathlib.Path) -> list[str]:
        """Words, rate and convention -> names of the demonstrations, by their numbers."""
        with _reading(path):
            file = self._file(path)
            data = _member(file, "data", path)
            names = _names(data, path)
            attributes = _attributes(data, path)
        demos = [name for name in names if re.fullmatch(r"demo_\d+", name)]
        if not demos:
            raise ValueError(
                f"{path} has no data/demo_0 and so on, but {outside.listed(names) or 'nothing'}; "
                f"give files in LIBERO's layout"
            )
        self._words[path] = _instruction(attributes, path)
        self.hz = episodes.rate(self._wanted, _rate(attributes, path), path)
        convention = attributes.get("macros_image_convention", CONVENTION)
        if convention != CONVENTION and self._wanted.turned is None:
            raise ValueError(
                f"{path} says macros_image_convention={outside.shown(convention)!r}, and only "
                f"{CONVENTION!r} is turned the right way; set sft.dataset_images=upright if its "
                f"pictures are"
            )
        return sorted(demos, key=lambda name: int(name[5:][:18]))

    def _has(self, path: pathlib.Path, demo: str) -> dict[str, list[str]]:
        """Names of what a demonstration holds."""
        found: dict[str, list[str]] = {"pictures": [], "numbers": []}
        with _reading(path):
            group = _member(self._file(path), f"data/{demo}", path)
            for name in _arrays(group, path):
                array = _member(group, name, path)
                kind = "pictures" if len(array.shape) == 4 else "numbers"
                found[kind].append(name)
        return found

    def _array(self, path: pathlib.Path, demo: str, name: str) -> Any:
        """An array that can be read: inside of the file, in chunks within bounds.

        Raises: ValueError for anything else.
        """
        where = f"{demo}/{name} of {path}"
        with _reading(path):
            array = _member(self._file(path), f"data/{demo}/{name}", path)
            if not _is_array(array) or not array.shape:
                raise ValueError(f"{where} is no array; {outside.AGAIN}")
            if array.is_virtual or array.external:
                raise ValueError(f"{where} lies in another file, which is not read; copy it in")
            chunk = array.chunks or array.shape[1:]
            if math.prod(chunk) * array.dtype.itemsize > MOST_BYTES_OF_CHUNK:
                raise ValueError(
                    f"{where} is stored in chunks of {list(chunk)}, more than "
                    f"{MOST_BYTES_OF_CHUNK:,} bytes each; store it step by step"
                )
        return array

    def _length(self, path: pathlib.Path, demo: str) -> int:
        actions = episodes.parts(self.keys[episodes.ACTIONS])[0]
        count = self._array(path, demo, actions).shape[0]
        return episodes.require_length(count, f"{demo} of {path}")

    def _require_picture(self, path: pathlib.Path, demo: str, name: str) -> None:
        array = self._array(path, demo, name)
        where = f"{demo}/{name} of {path}"
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3:
            raise ValueError(
                f"{where} is {array.dtype} of shape {list(array.shape)} and should be uint8 of "
                f"shape [steps, height, width, 3]; {outside.AGAIN}"
            )
        pictures.require_size(array.shape[1], array.shape[2], where)

    def _vectors(self, path: pathlib.Path, demo: str, name: str, dim: int) -> np.ndarray:
        found = [self._read(path, demo, key) for key in episodes.parts(self.keys[name])]
        with np.errstate(over="ignore"):  # infinite, which is refused where values are looked at
            vectors = np.concatenate(found, axis=1).astype(np.float32)
        if vectors.shape[1] != dim:
            raise ValueError(
                f"{self.keys[name]} in {demo} of {path} has {vectors.shape[1]} dims, and {name} of "
                f"the suite has {dim}; give demonstrations of the same robot, or choose with "
                f"{episodes.FIELD}={name}=NAME+NAME"
            )
        return vectors

    def _read(self, path: pathlib.Path, demo: str, name: str) -> np.ndarray:
        array = self._array(path, demo, name)
        where = f"{demo}/{name} of {path}"
        if array.ndim != 2 or array.dtype.kind not in "fiu":
            raise ValueError(
                f"{where} is {array.dtype} of shape {list(array.shape)} and should be numbers of "
                f"shape [steps, dims]; {outside.AGAIN}"
            )
        if math.prod(array.shape) * array.dtype.itemsize > MOST_BYTES_OF_NUMBERS:
            raise ValueError(f"{where} has {list(array.shape)} numbers; leave it out")
        with _reading(path):
            return array[()]

    def _follows(self, path: pathlib.Path, demo: str) -> bool:
        """Whether observations are those after the action beside them.

        The simulator's state is from before the action, the joints are from the observation.
        """
        group = f"data/{demo}"
        with _reading(path):
            file = self._file(path)
            if f"{group}/states" not in file or f"{group}/obs/joint_states" not in file:
                return False
        states = self._read(path, demo, "states")
        joints = self._read(path, demo, "obs/joint_states")
        if len(states) != len(joints) or len(states) < 2 or states.shape[1] < JOINTS.stop:
            return False
        beside = np.abs(joints[:-1, :7] - states[:-1, JOINTS]).max()
        after = np.abs(joints[:-1, :7] - states[1:, JOINTS]).max()
        return bool(after * AFTER < beside)


def _reading(path: pathlib.Path) -> contextlib.AbstractContextManager[None]:
    """Around what h5py does."""
    return reading.reading(path, "HDF5 file", RuntimeError, KeyError)


def _is_array(member: Any) -> bool:
    return isinstance(member, needs.library("h5py").Dataset)


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    """A file, or those of a folder in the order of their names."""
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if not 1 <= len(found) <= MOST_FILES:
        raise ValueError(f"{path} has {len(found)} files *.hdf5; give 1 to {MOST_FILES:,}")
    return found


def _open(path: pathlib.Path) -> Any:
    h5py = needs.library("h5py")
    outside.require_file(path)
    with _reading(path):
        return h5py.File(path, "r")


def _member(group: Any, name: str, path: pathlib.Path) -> Any:
    """A part of a file, that lies in it.

    Raises: ValueError where there is none, or a link to elsewhere.
    """
    h5py = needs.library("h5py")
    found = group
    for part in name.split("/"):
        if not isinstance(found, h5py.Group) or part not in found:
            raise ValueError(f"{path} has no {outside.shown(name)}; {outside.AGAIN}")
        if not isinstance(found.get(part, getlink=True), h5py.HardLink):
            raise ValueError(
                f"{outside.shown(name)} of {path} is a link to elsewhere, which is not followed; "
                f"copy it in"
            )
        found = found[part]
    return found


def _names(group: Any, path: pathlib.Path) -> list[str]:
    if len(group) > episodes.MOST_EPISODES:
        raise ValueError(f"{path} has {len(group):,} demonstrations; split it")
    return list(group)


def _arrays(group: Any, path: pathlib.Path) -> Iterator[str]:
    """Names of the arrays of a demonstration, and of those in its folder obs."""
    for name in list(group)[:MOST_KEYS]:
        member = _member(group, name, path)
        if _is_array(member):
            yield name
        elif name == "obs":
            for inner in list(member)[:MOST_KEYS]:
                if _is_array(_member(member, inner, path)):
                    yield f"obs/{inner}"


def _attributes(data: Any, path: pathlib.Path) -> dict[str, str]:
    """Those that are texts."""
    found = {}
    for name in list(data.attrs)[:MOST_KEYS]:
        if data.attrs.get_id(name).get_storage_size() > MOST_TEXT:
            raise ValueError(f"attribute {outside.shown(name)} of {path} is too long; drop it")
        value = data.attrs[name]
        if isinstance(value, bytes):
            value = value.decode()
        if isinstance(value, str):
            found[name] = value
    return found


def _instruction(attributes: dict[str, str], path: pathlib.Path) -> str:
    """Words of the task."""
    if "problem_info" in attributes:
        where = f"problem_info of {path}"
        words = outside.parse_json(attributes["problem_info"], where)
        said = words.get("language_instruction") if isinstance(words, dict) else None
        # LIBERO stores the text, or its letters one by one.
        if isinstance(said, list) and all(isinstance(part, str) for part in said):
            said = "".join(said)
        if isinstance(said, str) and said.strip():
            return said.strip()
    language = LANGUAGE.search(attributes.get("bddl_file_content", ""))
    if language:
        return " ".join(language[1].split())
    name = path.stem
    if name.endswith("_demo"):
        return SCENE.sub("", name.removesuffix("_demo")).replace("_", " ").strip()
    raise ValueError(
        f"{path} has no instruction: no problem_info, no bddl_file_content, and its name does not "
        f"end in _demo; name it as LIBERO does, words_of_the_task_demo.hdf5"
    )


@functools.lru_cache(maxsize=1024)
def _rate_of(text: str, path: pathlib.Path) -> float | None:
    where = f"env_args of {path}"
    tree = outside.parse_json(text, where)
    kwargs = tree.get("env_kwargs") if isinstance(tree, dict) else None
    if not isinstance(kwargs, dict) or "control_freq" not in kwargs:
        return None
    return float(outside.part(kwargs, "control_freq", float, where))


def _rate(attributes: dict[str, str], path: pathlib.Path) -> float | None:
    """Control steps per second, as robosuite was told; None: it is not written down."""
    return _rate_of(attributes["env_args"], path) if "env_args" in attributes else None
