"""What a page tells of runs and evaluations: records in, the dict of monitor/page/page.js out.

Refuses to know markup.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
import contextlib
import datetime
import json
import math
import os
import pathlib
from typing import Any
import urllib.parse

from pirl_jax.core import atomic, outside, secrets
from pirl_jax.monitor import diagnosis, log, pairs, report, webpage
from pirl_jax.rollout import stream
from pirl_jax.run import recipes, records

MOST_VIDEO_BYTES = 24 << 20  # within the page, all together; others are linked
MOST_FILMS = 40  # of training rollouts, the latest
MOST_POINTS = 400  # of a curve: a screen has no more columns
MOST_EPISODES = 1 << 31  # of an iteration; more are a damaged number
MOST_BARS = 80  # of the time budget
PANELS = {
    "env/return": "return",
    "env/episode_len": "episode length, control steps",
    "actor/approx_kl3": "KL per update",
    "actor/pg_clipfrac": "clipped share",
    "critic/explained_variance": "explained variance of the critic",
    "rollout/exploration_gap": "what exploring costs, success",
    "actor/grad_norm": "gradient norm",
    "actor/entropy": "entropy",
}
PARTS = (
    "env",
    "inference",
    "update",
    "transfer",
    "eval",
    "save",
    "compile",
    "report",
    "video",
    "idle",
)
FAULTS = {
    "env/restarts": "simulators replaced",
    "env/recycled": "simulators recycled",
    "env/lost_episodes": "episodes lost",
    "actor/nonfinite_updates": "updates that were not finite",
}
ROLLBACKS = "run/rollbacks"  # counts on, where the others count anew


def write(
    path: pathlib.Path, found: Sequence[records.Record], most_video_bytes: int = MOST_VIDEO_BYTES
) -> None:
    """The page of these, in place of an earlier one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = secrets.cleaned(told(found))
    # Not cleaned: a video in base64 takes long to search and holds no text.
    _add_videos(data, found, path.parent, most_video_bytes)
    atomic.write_text(path, webpage.render(data))


def told(found: Sequence[records.Record]) -> dict[str, Any]:
    """Everything but the videos."""
    names = _names([record.folder for record in found])
    sources = [_source(name, record) for name, record in zip(names, found, strict=True)]
    now = datetime.datetime.now(datetime.UTC)
    return {
        "made": now.isoformat(timespec="seconds"),
        "sources": sources,
        "pairs": _across(names, found),
    }


def _names(folders: Sequence[pathlib.Path]) -> list[str]:
    """The last parts of each path, as many as tell them apart."""
    most = max(len(folder.parts) for folder in folders)
    names = []
    for count in range(1, most + 1):
        names = ["/".join(folder.parts[-count:]) for folder in folders]
        if len(set(names)) == len(set(folders)):
            break
    return [outside.shown(name) for name in names]


def _source(name: str, record: records.Record) -> dict[str, Any]:
    evaluations = [_evaluation(one) for one in record.evaluations]
    source = {
        "name": name,
        "evaluations": evaluations,
        "starts": record.starts,
        "damaged": record.damaged,
        "films": [],
        "run": _run(record) if record.is_run else None,
    }
    if len(record.evaluations) > 1:
        first, last = _ends(record)
        source["change"] = _change(first, last)
    return source


# ---- evaluations -------------------------------------------------------------------------------


def _ends(record: records.Record) -> tuple[records.Evaluation, records.Evaluation]:
    """What a run is judged by: its first evaluation, and "after" or the last one of training."""
    own = [one for one in record.evaluations if not one.name.startswith("checkpoint_")]
    own = own or record.evaluations
    return own[0], own[-1]


def _evaluation(one: records.Evaluation) -> dict[str, Any]:
    return {
        "name": one.name,
        "policy": one.policy,
        "protocol": one.protocol,
        "total": _total(one),
        "tasks": [_task(task) for task in one.tasks],
        "episodes": [_episode(result) for result in one.episodes],
        "limit": _limit(one),
        "videos": {},
    }


def _total(one: records.Evaluation) -> dict[str, float] | None:
    played = one.played.values()
    return _rate(sum(result.success for result in played), len(played))


def _rate(successes: int, episodes: int) -> dict[str, float] | None:
    return report.rate(successes, episodes) if episodes else None


def _task(task: records.Task) -> dict[str, Any]:
    rate = _rate(task.successes, task.episodes)
    return {"task": task.number, "words": task.instruction, "lost": task.lost, "rate": rate}


def _episode(result: stream.Result) -> list:
    """[task, start state, outcome, control steps, decisions, reward, thrown], of thousands.

    The outcome is 0 (failure), 1 (success) or 2 (lost).
    """
    outcome = 2 if result.lost else int(result.success)
    counts = [result.num_steps, result.num_decisions, round(result.reward, 4), result.thrown]
    return [result.episode.task, result.episode.init_state, outcome, *counts]


def _limit(one: records.Evaluation) -> int | None:
    """Control steps until truncation; None where suites have several."""
    limit = one.protocol.get("max_episode_steps")
    return limit if outside.fits(limit, int) else None


# ---- comparisons -------------------------------------------------------------------------------


def _change(first: records.Evaluation, last: records.Evaluation) -> dict[str, Any]:
    """From one evaluation to another: in total, and task by task."""
    before = _outcomes(first)
    after = _outcomes(last)
    tasks = {}
    for task in last.tasks:
        own = {name: found for name, found in after.items() if name.task == task.number}
        tasks[task.number] = pairs.compared(before, own)
    return {
        "first": first.name,
        "second": last.name,
        "unlike": _unlike(first, last),
        "total": pairs.compared(before, after) if _is_same_suite(first, last) else None,
        "tasks": tasks,
    }


def _across(names: Sequence[str], found: Sequence[records.Record]) -> list[dict[str, Any]]:
    """Each source's last evaluation against that of the first source."""
    measured = []
    for name, record in zip(names, found, strict=True):
        if record.evaluations:
            measured.append((name, _ends(record)[1]))
    changes = []
    for name, last in measured[1:]:
        base_name, base = measured[0]
        change = _change(base, last)
        change["first"] = f"{base_name}, {base.name}"
        change["second"] = f"{name}, {last.name}"
        changes.append(change)
    return changes


def _outcomes(one: records.Evaluation) -> dict[stream.Episode, pairs.Outcome]:
    return {
        episode: pairs.Outcome(result.success, result.num_steps)
        for episode, result in one.played.items()
    }


def _is_same_suite(first: records.Evaluation, last: records.Evaluation) -> bool:
    """Else equal numbers name other tasks."""
    return first.protocol.get("suite") == last.protocol.get("suite")


def _unlike(first: records.Evaluation, last: records.Evaluation) -> list[str]:
    """Fields of the protocol that differ: what else may explain a difference."""
    fields = first.protocol.keys() | last.protocol.keys()
    changed = [name for name in fields if first.protocol.get(name) != last.protocol.get(name)]
    return sorted(map(outside.shown, changed))


# ---- runs --------------------------------------------------------------------------------------


def _run(record: records.Record) -> dict[str, Any]:
    path = record.folder / "config.json"
    rows = record.rows
    total = outside.part(record.config, "num_iterations", int, path, records.REMEDY)
    done = max((row["iteration"] + 1 for row in rows if "env/success_once" in row), default=0)
    # The table of an earlier end stays while a run goes on to more iterations.
    ended = done >= total and (record.folder / "table.json").exists()
    against, changes = _against_recipe(record)
    return {
        "suite": outside.shown(outside.part(record.config, "env.suite", str, path, records.REMEDY)),
        "algorithm": _algorithm(record.config),
        "iterations": done,
        "total": total,
        "ended": ended,
        "training": _success(rows, "env"),
        "evaluated": _success(rows, "eval"),
        "panels": {name: _points(rows, name) for name in PANELS},
        "panel_names": PANELS,
        "time": _time(rows),
        "faults": _faults(record),
        "findings": _findings(rows),
        "against": against,
        "changes": changes,
        "config": record.config,
    }


def _algorithm(config: Mapping[str, Any]) -> str:
    algorithm = config.get("algorithm")
    if not isinstance(algorithm, dict):
        return ""
    loss = str(algorithm.get("loss", "ppo"))
    return outside.shown(report.algorithm_name(loss, str(algorithm.get("adv_type", "gae"))))


def _latest(rows: Iterable[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    """Rows with a metric, one of each iteration: a run that went back plays some again."""
    found = {row["iteration"]: row for row in rows if name in row}
    return [found[iteration] for iteration in sorted(found)]


def _success(rows: Sequence[Mapping[str, Any]], group: str) -> list[list[float]]:
    """[iteration, rate, low, high], Wilson 95 %."""
    points = []
    for row in _thinned(_latest(rows, f"{group}/success_once"), MOST_POINTS):
        rate = float(row[f"{group}/success_once"])
        count = float(row.get(f"{group}/num_trajectories", 0))
        if not 0 <= rate <= 1 or not math.isfinite(count):
            continue
        low = rate
        high = rate
        if 1 <= count < MOST_EPISODES:
            low, high = report.wilson(round(rate * round(count)), round(count))
        points.append([row["iteration"], rate, low, high])
    return points


def _points(rows: Sequence[Mapping[str, Any]], name: str) -> list[list[float]]:
    """[iteration, value], the finite ones."""
    points = []
    for row in _thinned(_latest(rows, name), MOST_POINTS):
        value = float(row[name])
        if math.isfinite(value):
            points.append([row["iteration"], value])
    return points


def _thinned(rows: Sequence, most: int) -> list:
    """At most so many, evenly, with the last one."""
    stride = math.ceil(len(rows) / most) or 1
    return list(reversed(rows[::-1][::stride]))


def _time(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Seconds by part of a mean iteration, for neighbouring ones together."""
    timed = _latest(rows, "time/iteration")
    width = math.ceil(len(timed) / MOST_BARS) or 1
    bars = []
    for start in range(0, len(timed), width):
        some = timed[start : start + width]
        seconds = {part: _mean(some, f"time/{part}") for part in PARTS}
        reach = {"first": some[0]["iteration"], "last": some[-1]["iteration"], "count": len(some)}
        bars.append(reach | {"parts": seconds, "whole": _mean(some, "time/iteration")})
    return bars


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    values = [float(row.get(name, 0)) for row in rows]
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else 0.0


def _faults(record: records.Record) -> list[dict[str, Any]]:
    """What went wrong, how often, and in which iterations."""
    found = []
    for name, what in FAULTS.items():
        counts = [(row["iteration"], float(row[name])) for row in _latest(record.rows, name)]
        where = [iteration for iteration, count in counts if count > 0]
        total = sum(count for _, count in counts if count > 0 and math.isfinite(count))
        found.append({"what": what, "count": total, "where": where})
    back = [float(row[ROLLBACKS]) for row in record.rows if ROLLBACKS in row]
    found.append({"what": "went back to a checkpoint", "count": max(back, default=0), "where": []})
    again = [start.get("first_iteration") for start in record.starts[1:]]
    found.append({"what": "resumed", "count": len(again), "where": again})
    return found


def _findings(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """What `pirl diagnose` says; nothing before the first iteration."""
    if not any("env/success_once" in row for row in rows):
        return []
    return [vars(answer) for answer in diagnosis.findings(rows)]


def _against_recipe(record: records.Record) -> tuple[str, list[list[str]]]:
    """The recipe that was named at the start, and [field, its value -> the run's]."""
    name = _recipe(record.starts)
    # Only recipes of this package: a folder from elsewhere decides over no code that runs here.
    page = recipes.load_recipe(name) if name else recipes.defaults()
    fields = json.loads(json.dumps(secrets.cleaned(page.to_dict())))
    lines = log.config_changes(fields, record.config)
    changes = [line.partition(": ") for line in lines]
    against = f"the recipe {name}" if name else "the defaults (the recipe is none of this package)"
    return against, [[field, change] for field, _, change in changes]


def _recipe(starts: Sequence[Mapping[str, Any]]) -> str:
    """The recipe of this package in the first start's command line; "" where it was another."""
    command = starts[0].get("command") if starts else None
    words = command if isinstance(command, list) else []
    words = [str(word) for word in words]
    named = ""
    for place, word in enumerate(words):
        if word in ("--config", "-config"):
            named = "".join(words[place + 1 : place + 2])
        elif word.startswith(("--config=", "-config=")):
            named = word.partition("=")[2]
    path = pathlib.PurePath(named)
    is_ours = path.stem in recipes.names() and path.parent.name in ("", "configs", "recipes")
    return path.stem if named and is_ours else ""


# ---- videos ------------------------------------------------------------------------------------


def _add_videos(
    data: dict[str, Any], found: Sequence[records.Record], folder: pathlib.Path, most: int
) -> None:
    """Into the page as long as there is room, the latest evaluations first; else as links."""
    room = _Room(folder, most)
    for source, record in zip(data["sources"], found, strict=True):
        told = list(zip(source["evaluations"], record.evaluations, strict=True))
        for shown, one in reversed(told):
            for episode, path in one.videos.items():
                # One that is being replaced is left for the next page.
                with contextlib.suppress(FileNotFoundError):
                    shown["videos"][f"{episode.task}:{episode.init_state}"] = room.take(path)
        for path in reversed(record.films[-MOST_FILMS:]):
            with contextlib.suppress(FileNotFoundError):
                source["films"].append({"name": secrets.text(path.stem)} | room.take(path))


class _Room:
    """What is left of it in the page."""

    def __init__(self, folder: pathlib.Path, most: int) -> None:
        self._folder = folder
        self._left = most

    def take(self, path: pathlib.Path) -> dict[str, str]:
        """A video: itself, or where it lies."""
        size = path.stat().st_size
        if size > self._left:
            return {"link": _link(path, self._folder)}
        self._left -= size
        return {"data": base64.b64encode(path.read_bytes()).decode()}


def _link(path: pathlib.Path, folder: pathlib.Path) -> str:
    """From the page; never the beginning of another kind of address."""
    return "./" + urllib.parse.quote(secrets.text(os.path.relpath(path, folder)))
