"""What a run or an evaluation left in its folder, read back and checked.

Also of a run that still trains: every file is whole at any moment.  Refuses to know what it is
shown on, and changes nothing.
"""

from collections.abc import Sequence
import dataclasses
import pathlib
import re
from typing import Any

from pirl_jax.core import outside
from pirl_jax.monitor import log
from pirl_jax.rollout import stream
from pirl_jax.run import results

REMEDY = "copy the folder again, or leave it out"
VIDEO = re.compile(r"task_(\d+)_init_(\d+)_(?:success|failure)\.mp4")
FILM = re.compile(r"iteration_(\d+)_")
NOT_NUMBERS = ("nan", "inf", "-inf")  # as metrics.jsonl has them
PLACE = {"task": int, "init_state": int}  # what is known of a lost episode


@dataclasses.dataclass(frozen=True)
class Task:
    """One task of an evaluation, as `rollout/stats.py` counts it."""

    number: int
    instruction: str
    successes: int
    episodes: int
    lost: int


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One evaluation.json and the videos beside it."""

    name: str  # of its folder
    folder: pathlib.Path
    policy: dict[str, Any]
    protocol: dict[str, Any]
    tasks: list[Task]
    episodes: list[stream.Result]  # lost ones too
    videos: dict[stream.Episode, pathlib.Path]
    environment: dict[str, Any]

    @property
    def played(self) -> dict[stream.Episode, stream.Result]:
        """By task and start state."""
        return {result.episode: result for result in self.episodes if not result.lost}


@dataclasses.dataclass(frozen=True)
class Record:
    """A folder; of a run, or of an evaluation alone, which has no rows and no configuration."""

    folder: pathlib.Path
    evaluations: list[Evaluation]  # in the order in which they were played
    starts: list[dict[str, Any]]  # environments, one for every start
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    damaged: list[str] = dataclasses.field(default_factory=list)  # files that were set aside
    films: list[pathlib.Path] = dataclasses.field(default_factory=list)  # of rollouts, by iteration
    is_run: bool = False


def read(folder: pathlib.Path) -> Record:
    """The run or the evaluation of a folder.

    Raises:
      ValueError: it is neither, or a file of it is damaged.
    """
    is_evaluation = (folder / "evaluation.json").exists()
    # A config.json alone may be anybody's, whose folder the evaluation was written into.
    if (folder / "metrics.jsonl").exists() or (log.began(folder) and not is_evaluation):
        return _run(folder)
    if is_evaluation:
        only = evaluation(folder)
        return Record(folder, [only], [only.environment])
    raise ValueError(
        f"{folder} holds neither a run nor an evaluation; give a folder with metrics.jsonl or "
        f"evaluation.json"
    )


def _run(folder: pathlib.Path) -> Record:
    config = outside.read_json(folder / "config.json", remedy=REMEDY)
    starts = outside.read_json(folder / "environment.json", list, REMEDY)
    for start in starts:
        outside.part(start, "", dict, folder / "environment.json", REMEDY)
    rows = log.read(folder)
    for row in rows:
        _require_numbers(row, folder / "metrics.jsonl")
    # An evaluation that is interrupted has a folder without this file.
    found = sorted((folder / "evaluation").glob("*/evaluation.json"), key=_played)
    aside = [path.name for path in folder.glob("*.damaged*")]
    aside += [f"checkpoints/{path.name}" for path in folder.glob("checkpoints/*.damaged*")]
    return Record(
        folder=folder,
        evaluations=[evaluation(path.parent) for path in found],
        starts=starts,
        rows=rows,
        config=config,
        damaged=sorted(aside),
        films=sorted(_films(folder, config).glob("*.mp4"), key=_iteration),
        is_run=True,
    )


def _films(folder: pathlib.Path, config: dict[str, Any]) -> pathlib.Path:
    """Where run/films.py puts those of rollouts; a folder that was moved has them within."""
    section = config.get("video")
    named = section.get("directory") if isinstance(section, dict) else None
    if isinstance(named, str) and named and "\0" not in named:
        return pathlib.Path(named)
    return folder / "video" / "train"


def _iteration(path: pathlib.Path) -> tuple[int, str]:
    """Of a film of run/films.py, for sorting."""
    match = FILM.match(path.name)
    return int(match[1]) if match else -1, path.name


def _require_numbers(row: dict[str, Any], path: pathlib.Path) -> None:
    for name, value in row.items():
        if value not in NOT_NUMBERS:
            outside.part({"metric": value}, "metric", float, f"{path}, {outside.shown(name)}")


def _played(path: pathlib.Path) -> tuple[int, int, str]:
    """Where an evaluation stands in a run: before, iteration_40, ..., after, checkpoint_80."""
    name = path.parent.name
    word, _, number = name.rpartition("_")
    place = {"before": 0, "iteration": 1, "after": 2}.get(word or name, 3)
    return place, int(number) if number.isdecimal() else 0, name


def evaluation(folder: pathlib.Path) -> Evaluation:
    """The evaluation of a folder.

    Raises:
      ValueError: there is none, or it is damaged.
    """
    path = folder / "evaluation.json"
    tree = outside.read_json(path, remedy=REMEDY)
    episodes = _dicts(tree, "episodes", path)
    lost = _dicts(tree, "lost_episodes", path)
    return Evaluation(
        name=folder.name,
        folder=folder,
        policy=outside.part(tree, "policy", dict, path, REMEDY),
        protocol=outside.part(tree, "protocol", dict, path, REMEDY),
        tasks=[_task(row, path) for row in _dicts(tree, "per_task", path)],
        episodes=[results.from_row(row, path) for row in episodes] + [_lost(r, path) for r in lost],
        videos=_videos(folder / "videos"),
        environment=outside.part(tree, "environment", dict, path, REMEDY),
    )


def _dicts(tree: dict, name: str, path: pathlib.Path) -> Sequence[dict]:
    rows = outside.part(tree, name, list, path, REMEDY)
    return [outside.part(row, "", dict, f"a row of {name} of {path}", REMEDY) for row in rows]


def _task(row: dict, path: pathlib.Path) -> Task:
    numbers = {}
    for name in ("task", "successes", "episodes", "lost"):
        numbers[name] = outside.part(row, name, int, path, REMEDY)
    successes = numbers["successes"]
    episodes = numbers["episodes"]
    if not 0 <= successes <= episodes:
        raise ValueError(f"{path} has {successes} successes of {episodes} episodes; {REMEDY}")
    instruction = outside.part(row, "instruction", str, path, REMEDY)
    return Task(numbers["task"], instruction, successes, episodes, numbers["lost"])


def _lost(row: dict, path: pathlib.Path) -> stream.Result:
    place = {name: outside.part(row, name, kind, path, REMEDY) for name, kind in PLACE.items()}
    return stream.Result(stream.Episode(**place), lost=True)


def _videos(folder: pathlib.Path) -> dict[stream.Episode, pathlib.Path]:
    found = {}
    for path in sorted(folder.glob("*.mp4")):
        match = VIDEO.fullmatch(path.name)
        if match:
            found[stream.Episode(int(match[1]), int(match[2]))] = path
    return found
