"""Statistics that a LeRobot data set brings with it, where they are of what a policy normalises.

    v2.0, v3.0   meta/stats.json: mean, std (and q01, q99 of newer ones) over all steps
    v2.1         meta/episodes_stats.jsonl: mean, std and count of each episode, joined here

They are over single steps, where openpi's are over chunks, and of actions as they are recorded: of
no use to a policy that predicts them relative to the state.
"""

from collections.abc import Mapping
import pathlib
from typing import Any

import numpy as np

from pirl_jax.core import outside
from pirl_jax.datasets import episodes, lerobot_meta
from pirl_jax.policy import normalize

WHOLE = "stats.json"
EACH = "episodes_stats.jsonl"
COMPUTE = "set sft.dataset_statistics=computed"


def read(
    source: episodes.Source, norm_mode: str, delta_actions: bool
) -> tuple[normalize.NormStats, str]:
    """(statistics, where they lie).

    Raises: ValueError where there are none, or they are of another quantity.
    """
    folder = source.path / "meta"
    if delta_actions:
        raise ValueError(
            f"statistics of {source.path} are of actions as they are recorded, and "
            f"model.delta_actions=True normalises offsets from the state; {COMPUTE}"
        )
    path = folder / WHOLE
    if path.is_file():
        tree = outside.read_json(path, remedy=COMPUTE)
        vectors = {
            name: _of_file(tree, source.keys[name], path)
            for name in (episodes.STATE, episodes.ACTIONS)
        }
    elif (folder / EACH).is_file():
        path = folder / EACH
        vectors = {
            name: _joined(path, source.keys[name]) for name in (episodes.STATE, episodes.ACTIONS)
        }
    else:
        raise ValueError(f"{folder} has neither {WHOLE} nor {EACH}; {COMPUTE}")
    stats = {name: normalize.from_vectors(found, name, path) for name, found in vectors.items()}
    result = normalize.NormStats(state=stats[episodes.STATE], actions=stats[episodes.ACTIONS])
    if norm_mode == "quantile" and (result.state.q01 is None or result.actions.q01 is None):
        raise ValueError(
            f"{path} has no q01 and q99, which model.norm_mode='quantile' needs; {COMPUTE}"
        )
    return result, str(path)


def _of_file(tree: dict, key: str, path: pathlib.Path) -> dict[str, np.ndarray]:
    """Of one quantity, whose name may join several."""
    columns: dict[str, list[np.ndarray]] = {}
    for part in episodes.parts(key):
        entry = _entry(tree, part, path)
        for field in normalize.FIELDS:
            if field in entry:
                columns.setdefault(field, []).append(_vector(entry, field, part, path))
    parts = len(episodes.parts(key))
    return {field: np.concatenate(found) for field, found in columns.items() if len(found) == parts}


def _joined(path: pathlib.Path, key: str) -> dict[str, np.ndarray]:
    """Mean and std over all episodes out of those of each; one line after the other."""
    count = 0.0
    total = np.zeros(0)
    squares = np.zeros(0)
    for where, line in lerobot_meta.lines(path, episodes.MOST_EPISODES):
        tree = outside.part(line, "stats", dict, where, COMPUTE)
        found = _of_file(tree, key, where)
        if not {"mean", "std"} <= found.keys():
            raise ValueError(f"{where} has no mean and std of {key}; {COMPUTE}")
        first = _entry(tree, episodes.parts(key)[0], where)
        steps = float(_vector(first, "count", key, where).sum())
        if total.size not in (0, found["mean"].size) or found["std"].shape != found["mean"].shape:
            raise ValueError(f"{where} has another number of dims of {key}; {COMPUTE}")
        count += steps
        total = steps * found["mean"] + (total if total.size else 0)
        square = np.square(found["std"]) + np.square(found["mean"])
        squares = steps * square + (squares if squares.size else 0)
    if not count > 0:
        raise ValueError(f"{path} has no episodes; {COMPUTE}")
    mean = total / count
    return {"mean": mean, "std": np.sqrt(np.maximum(0, squares / count - np.square(mean)))}


def _entry(tree: Mapping[str, Any], name: str, where: Any) -> dict:
    # Not by outside.part: names have dots.
    if name not in tree:
        raise ValueError(f"{where} has no statistics of {name}; {COMPUTE}")
    return outside.part(tree[name], "", dict, f"{name} of {where}", COMPUTE)


def _vector(entry: dict, field: str, name: str, where: Any) -> np.ndarray:
    numbers = outside.part(entry, field, list, f"{name} of {where}", COMPUTE)
    if not all(outside.fits(number, float) for number in numbers):
        raise ValueError(f"{field} of {name} in {where} is no list of numbers; {COMPUTE}")
    return np.asarray(numbers, np.float64)
