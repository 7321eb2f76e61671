"""The folder `meta` of a LeRobot data set: what is in it and where each episode lies.

    v2.0, v2.1   info.json, episodes.jsonl, tasks.jsonl
    v3.0         info.json, episodes/chunk-000/file-000.parquet, tasks.parquet

Not trusted: paths lead nowhere but into the data set, counts have bounds.  Opens no data.
"""

from collections.abc import Callable, Iterator
import dataclasses
import functools
import pathlib
import re
from typing import Any

import numpy as np

from pirl_jax.core import outside
from pirl_jax.datasets import episodes, tables

VERSIONS = ("v2.0", "v2.1", "v3.0")
MOST_LINE = 1 << 20  # bytes
MOST_TASKS = 1 << 20
# Of a template: {name} or {name:03d}, and nothing else that str.format could do.
HOLE = re.compile(r"\{(\w+)(?::0?(\d{1,2})d)?\}")
PICTURES = ("image", "video")
NUMBERS = re.compile(r"(float|int|uint)\d+")
REMEDY = "fetch meta again from where the data set is from"


@dataclasses.dataclass(frozen=True)
class Feature:
    """One column, or one camera."""

    kind: str
    dim: int  # of a vector

    @property
    def is_video(self) -> bool:
        return self.kind == "video"

    @property
    def is_picture(self) -> bool:
        return self.kind in PICTURES

    @property
    def is_number(self) -> bool:
        return bool(NUMBERS.fullmatch(self.kind))


@dataclasses.dataclass(frozen=True)
class Clip:
    """An episode's part of a video."""

    path: pathlib.Path
    start_s: float
    alone: bool  # nothing else lies in that file


@dataclasses.dataclass(frozen=True)
class Episode:
    """Where its numbers lie."""

    number: int
    length: int
    table: pathlib.Path
    first_row: int
    rows_of_table: int  # as the lengths of all its episodes say


@dataclasses.dataclass(frozen=True)
class Meta:
    """What the folder says."""

    version: str
    fps: float
    info: pathlib.Path
    index: pathlib.Path  # of the episodes
    index_of_tasks: pathlib.Path
    features: dict[str, Feature]
    episodes: list[Episode]
    tasks: dict[int, str]
    clip: Callable[[int, str], Clip]  # of an episode, as a position in the list


def read(path: pathlib.Path) -> Meta:
    """The folder of a data set.

    Raises: ValueError for an unknown version, or what is missing, contradicts itself or leads
    elsewhere.
    """
    info = path / "meta" / "info.json"
    tree = outside.read_json(info, remedy=REMEDY)
    version = outside.part(tree, "codebase_version", str, info, REMEDY)
    if version not in VERSIONS:
        raise ValueError(
            f"{info} is of LeRobot's codebase_version {outside.shown(version)!r}, and "
            f"{', '.join(VERSIONS)} can be read; convert it with LeRobot's own scripts"
        )
    fps = outside.part(tree, "fps", float, info, REMEDY)
    if not 0 < fps <= 1e4:
        raise ValueError(f"fps of {info} is {fps} and should be frames per second; {REMEDY}")
    features = _features(tree, info)
    reader = _Many if version == "v3.0" else _OneEach
    places = reader(path, tree, info)
    _require_totals(tree, info, places.episodes)
    return Meta(
        version=version,
        fps=fps,
        info=info,
        index=places.index,
        index_of_tasks=places.index_of_tasks,
        features=features,
        episodes=places.episodes,
        tasks=places.tasks(),
        clip=places.clip,
    )


def _features(tree: dict, info: pathlib.Path) -> dict[str, Feature]:
    found = {}
    for name in outside.part(tree, "features", dict, info, REMEDY):
        entry = outside.part(tree["features"], "", dict, f"features of {info}", REMEDY)[name]
        where = f"feature {outside.shown(name)} of {info}"
        kind = outside.part(entry, "dtype", str, where, REMEDY)
        shape = outside.part(entry, "shape", list, where, REMEDY)
        if not all(outside.fits(size, int) and 0 < size <= 1 << 16 for size in shape):
            raise ValueError(f"shape of {where} is {outside.shown(shape)}; {REMEDY}")
        feature = Feature(kind, int(np.prod(shape)))
        if feature.is_number and feature.dim > tables.MOST_DIM:
            raise ValueError(f"{where} has {feature.dim:,} numbers a step; leave it out")
        found[name] = feature
    return found


def _require_totals(tree: dict, info: pathlib.Path, found: list[Episode]) -> None:
    totals = {
        "total_episodes": len(found),
        "total_frames": sum(episode.length for episode in found),
    }
    for name, count in totals.items():
        said = tree.get(name, count)
        if said != count:
            raise ValueError(
                f"{info} says {name}={outside.shown(said)}, and its episodes are {count}; {REMEDY}"
            )


def _inside(root: pathlib.Path, template: str, info: pathlib.Path, **values: Any) -> pathlib.Path:
    """A file of the data set by the template of its path.

    Raises: ValueError for a template with other names, or a path that leads elsewhere.
    """

    def filled(hole: re.Match) -> str:
        name, width = hole.groups()
        if name not in values:
            raise ValueError(f"{info} has a path with {{{name}}}, which is not known; {REMEDY}")
        return str(values[name]).zfill(int(width)) if width else str(values[name])

    text = HOLE.sub(filled, template)
    parts = pathlib.PurePosixPath(text).parts
    if not parts or ".." in parts or text.startswith("/") or not text.isprintable():
        raise ValueError(f"{info} has the path {outside.shown(text)}, which leads away; {REMEDY}")
    return root.joinpath(*parts)


class _OneEach:
    """v2: a file each."""

    def __init__(self, root: pathlib.Path, tree: dict, info: pathlib.Path) -> None:
        self.index = root / "meta" / "episodes.jsonl"
        self.index_of_tasks = root / "meta" / "tasks.jsonl"
        self._root = root
        self._info = info
        self._per_chunk = outside.part(tree, "chunks_size", int, info, REMEDY)
        if self._per_chunk < 1:
            raise ValueError(f"chunks_size of {info} is {self._per_chunk}; {REMEDY}")
        self._videos = tree.get("video_path") or ""
        path = outside.part(tree, "data_path", str, info, REMEDY)
        self.episodes = [self._episode(path, *entry) for entry in _listed(self.index)]

    def tasks(self) -> dict[int, str]:
        """{number: instruction}."""
        found = {}
        for where, entry in lines(self.index_of_tasks, MOST_TASKS):
            number = outside.part(entry, "task_index", int, where, REMEDY)
            found[number] = outside.part(entry, "task", str, where, REMEDY)
        return _require_tasks(found, self.index_of_tasks)

    def clip(self, episode: int, key: str) -> Clip:
        """A video of an episode."""
        number = self.episodes[episode].number
        return Clip(self._path(str(self._videos), number, video_key=key), 0.0, alone=True)

    def _episode(self, template: str, number: int, length: int) -> Episode:
        return Episode(number, length, self._path(template, number), 0, length)

    def _path(self, template: str, number: int, **values: str) -> pathlib.Path:
        chunk = number // self._per_chunk
        numbers = {"episode_chunk": chunk, "episode_index": number}
        return _inside(self._root, template, self._info, **numbers, **values)


def _listed(path: pathlib.Path) -> list[tuple[int, int]]:
    """(number, length) of each episode."""
    found = {}
    for where, entry in lines(path, episodes.MOST_EPISODES):
        number = outside.part(entry, "episode_index", int, where, REMEDY)
        length = outside.part(entry, "length", int, where, REMEDY)
        if number in found or number < 0:
            raise ValueError(f"{where} is of episode {number} again; {REMEDY}")
        found[number] = episodes.require_length(length, where)
    episodes.require_count(len(found), path)
    return sorted(found.items())


def lines(path: pathlib.Path, most: int) -> Iterator[tuple[str, dict]]:
    """(which line, its JSON), one after the other; most: of them.

    Raises: ValueError for a line that is none.
    """
    outside.require_file(path, REMEDY)
    with path.open("rb") as file:
        for number in range(1, most + 2):
            line = file.readline(MOST_LINE + 1)
            if not line:
                return
            where = f"line {number} of {path}"
            if len(line) > MOST_LINE or number > most:
                raise ValueError(f"{where} is longer or later than any should be; {REMEDY}")
            if line.strip():
                tree = outside.parse_json(line, where, REMEDY)
                yield where, outside.part(tree, "", dict, where, REMEDY)


def _require_tasks(found: dict[int, str], path: pathlib.Path) -> dict[int, str]:
    if not found or not all(text.strip() for text in found.values()):
        raise ValueError(f"{path} has no tasks, or one without words; {REMEDY}")
    return found


class _Many:
    """v3: many episodes in a file."""

    def __init__(self, root: pathlib.Path, tree: dict, info: pathlib.Path) -> None:
        self.index = root / "meta" / "episodes"
        self.index_of_tasks = root / "meta" / "tasks.parquet"
        self._root = root
        self._info = info
        self._data = outside.part(tree, "data_path", str, info, REMEDY)
        self._videos = tree.get("video_path") or ""
        self._files = sorted(self.index.glob("chunk-*/file-*.parquet"))
        if not self._files:
            raise ValueError(f"{self.index} has no chunk-*/file-*.parquet; {REMEDY}")
        count = 0
        for path in self._files:
            with tables.opened(path) as table:
                count += table.num_rows
        episodes.require_count(count, self.index)
        self._number = self._column("episode_index")
        self.episodes = self._places()

    def tasks(self) -> dict[int, str]:
        """{number: instruction}; the words are the index of a pandas table."""
        with tables.opened(self.index_of_tasks) as table:
            table.require(["task_index"])
            if table.num_rows > MOST_TASKS:
                raise ValueError(f"{self.index_of_tasks} has {table.num_rows:,} tasks; {REMEDY}")
            texts = [name for name in table.columns if name != "task_index"]
            named = [name for name in ("task", "__index_level_0__") if name in texts]
            if not named:
                found = outside.listed(texts) or "nothing"
                raise ValueError(
                    f"{self.index_of_tasks} has no column of tasks beside task_index, but {found}; "
                    f"{REMEDY}"
                )
            numbers = table.integers("task_index").tolist()
            found = dict(zip(numbers, table.texts(named[0]), strict=True))
        return _require_tasks(found, self.index_of_tasks)

    def clip(self, episode: int, key: str) -> Clip:
        """A video of an episode."""
        chunks, files, starts = self._clips(key)
        values = {"video_key": key, "chunk_index": chunks[episode], "file_index": files[episode]}
        path = _inside(self._root, str(self._videos), self._info, **values)
        return Clip(path, float(starts[episode]), alone=False)

    @functools.lru_cache(maxsize=16)  # noqa: B019  one of them per run
    def _clips(self, key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """chunk, file, start in seconds of every episode."""
        starts = self._column(f"videos/{key}/from_timestamp", tables.Table.numbers)
        if not (np.isfinite(starts) & (starts >= 0) & (starts < 1e9)).all():
            raise ValueError(f"videos/{key}/from_timestamp of {self.index} are no times; {REMEDY}")
        chunks = self._column(f"videos/{key}/chunk_index")
        return chunks, self._column(f"videos/{key}/file_index"), starts

    def _places(self) -> list[Episode]:
        chunks = self._column("data/chunk_index")
        files = self._column("data/file_index")
        lengths = self._column("length")
        firsts = self._column("dataset_from_index")
        # Where a file begins: at the first of its episodes.
        begins: dict[tuple[int, int], int] = {}
        rows: dict[tuple[int, int], int] = {}
        of_file = list(zip(chunks.tolist(), files.tolist(), strict=True))
        for file, first, length in zip(of_file, firsts.tolist(), lengths.tolist(), strict=True):
            episodes.require_length(length, f"an episode of {self.index}")
            begins[file] = min(begins.get(file, first), first)
            rows[file] = rows.get(file, 0) + length
        found = []
        for position, file in enumerate(of_file):
            chunk, number = file
            path = _inside(self._root, self._data, self._info, chunk_index=chunk, file_index=number)
            found.append(
                Episode(
                    number=int(self._number[position]),
                    length=int(lengths[position]),
                    table=path,
                    first_row=int(firsts[position]) - begins[file],
                    rows_of_table=rows[file],
                )
            )
        return found

    def _column(
        self, name: str, read: Callable[[tables.Table, str], np.ndarray] = tables.Table.integers
    ) -> np.ndarray:
        """Of all files of the index, one after the other."""
        found = []
        for path in self._files:
            with tables.opened(path) as table:
                found.append(read(table, name))
        return np.concatenate(found)
