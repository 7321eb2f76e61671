"""Robot units <-> the unit scale the model works in.

numpy on the host; knows no images and no prompts.  Statistics are float64 and so is the arithmetic;
results become float32 only where they enter the model.  File format: openpi's ``norm_stats.json``
(one Stats per key ``state`` and ``actions``).
"""

from collections.abc import Callable, Mapping
import dataclasses
import itertools
import json
import pathlib
from typing import Any

import numpy as np

from pirl_jax.core import atomic, bounds, outside

EPS = 1e-6  # openpi's guard against a dimension that never moves
FIELDS = ("mean", "std", "q01", "q99")
PAIRS = (("mean", "std"), ("q01", "q99"))  # each of which is enough for a mode
PER_STEP = "statistics of each step of a chunk, which no transform here applies"
MOST_DIMS = 4096  # of a vector; robots have 7 or 8, files are padded to 32
REMEDY = "give the norm_stats.json of the checkpoint's dataset"
NUM_BINS = 5000  # histogram bins behind q01 and q99
DELTA_DIMS = 6  # position and rotation are relative to the state, the gripper command is absolute


@dataclasses.dataclass(frozen=True, eq=False)
class Stats:
    """Per-dimension statistics of one vector quantity, float64 [D].

    Either pair may be absent, not both.
    """

    mean: np.ndarray | None
    std: np.ndarray | None
    q01: np.ndarray | None = None
    q99: np.ndarray | None = None

    @property
    def dims(self) -> int:
        """Length of its vectors."""
        return len(self.q01 if self.mean is None else self.mean)


@dataclasses.dataclass(frozen=True, eq=False)
class NormStats:
    """What a dataset's state and actions look like."""

    state: Stats
    actions: Stats


def load(path: str | pathlib.Path) -> NormStats:
    """Read a norm_stats.json.

    Raises: ValueError when there is none, one without state or actions, or one whose entries are no
    vectors of finite numbers, all of a quantity as long as each other (statistics per step of a
    chunk are not).
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise ValueError(f"no normalisation statistics at {path}; {REMEDY}")
    tree = outside.read_json(path, remedy=REMEDY)
    quantities = outside.part(tree, "norm_stats", dict, path, REMEDY)
    missing = [key for key in ("state", "actions") if key not in quantities]
    if missing:
        names = " and ".join(missing)
        raise ValueError(
            f"{path} has no statistics for {names}; give a file with state and actions"
        )
    return NormStats(
        state=_from_lists(quantities, "state", path),
        actions=_from_lists(quantities, "actions", path),
    )


def save(path: str | pathlib.Path, stats: NormStats) -> None:
    """Write a norm_stats.json that openpi reads too."""
    entries = {"state": _to_lists(stats.state), "actions": _to_lists(stats.actions)}
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(path, json.dumps({"norm_stats": entries}, indent=2))


def _from_lists(quantities: dict, quantity: str, path: pathlib.Path) -> Stats:
    entry = outside.part(quantities, quantity, dict, path, REMEDY)
    arrays = {}
    for name in FIELDS:
        if entry.get(name) is None:
            continue
        numbers = outside.part(entry, name, list, f"{quantity} of {path}", REMEDY)
        if any(isinstance(number, list) for number in numbers):
            rows = f"{len(numbers)} rows"
            raise ValueError(f"{quantity}.{name} of {path} has {rows}: {PER_STEP}; {REMEDY}")
        if not all(outside.fits(number, float) for number in numbers):
            raise ValueError(f"{quantity}.{name} of {path} is no list of finite numbers; {REMEDY}")
        arrays[name] = np.asarray(numbers, np.float64)
    return from_vectors(arrays, quantity, path)


def from_vectors(arrays: Mapping[str, np.ndarray], quantity: str, where: Any) -> Stats:
    """Field -> vector; mean and std, or the quantiles, or all four.

    quantity, where: for the error.
    Raises: ValueError for an absent one of a pair, vectors of unlike lengths or numbers that are
    not finite.
    """
    pairs = [pair for pair in PAIRS if arrays.keys() & set(pair)]
    wanted = itertools.chain.from_iterable(pairs or PAIRS[:1])
    absent = [name for name in wanted if name not in arrays]
    if absent:
        raise ValueError(f"{quantity} of {where} has no {' and '.join(absent)}; {REMEDY}")
    first = next(name for name in FIELDS if name in arrays)
    length = arrays[first].shape[-1] if arrays[first].ndim else 0
    for name, values in arrays.items():
        shape = list(values.shape)
        if values.ndim == 2 and shape[0] > 1:
            raise ValueError(
                f"{quantity}.{name} of {where} has shape {shape}: {PER_STEP}; {REMEDY}"
            )
        if shape != [length] or not 1 <= length <= MOST_DIMS:
            raise ValueError(
                f"{quantity}.{name} of {where} has shape {shape} and should be one vector as long "
                f"as the {first} ({length}), of at most {MOST_DIMS}; {REMEDY}"
            )
        if not np.isfinite(values).all():
            raise ValueError(f"{quantity}.{name} of {where} is not finite; {REMEDY}")
    return Stats(**({"mean": None, "std": None} | arrays))


def _to_lists(stats: Stats) -> dict:
    lists = {}
    for field in dataclasses.fields(stats):
        values = getattr(stats, field.name)
        lists[field.name] = None if values is None else np.asarray(values, np.float64).tolist()
    return lists


def identity(state_dim: int, action_dim: int) -> NormStats:
    """Leaves vectors as they are, in both modes (up to EPS)."""
    return NormStats(state=_unit(state_dim), actions=_unit(action_dim))


def _unit(dim: int) -> Stats:
    ones = np.ones(dim)
    return Stats(mean=np.zeros(dim), std=ones, q01=-ones, q99=ones)


def normalize(x: np.ndarray, stats: Stats, mode: str) -> np.ndarray:
    """x [..., d] -> float64 [..., d]; statistics longer than d are cut; nothing is clipped."""
    forward, _ = _mode(mode)
    return forward(x, stats)


def unnormalize(x: np.ndarray, stats: Stats, mode: str) -> np.ndarray:
    """Inverse of normalize for x [..., d].

    d may exceed the statistics (the model's zero padding).
    """
    _, inverse = _mode(mode)
    return inverse(x, stats)


def _zscore(x: np.ndarray, stats: Stats) -> np.ndarray:
    mean, std = _moments(stats)
    dim = x.shape[-1]
    return (x - mean[:dim]) / (std[:dim] + EPS)


def _inverse_zscore(x: np.ndarray, stats: Stats) -> np.ndarray:
    mean, std = _moments(stats)
    dim = x.shape[-1]
    pad = (0, max(0, dim - len(mean)))
    mean = np.pad(mean, pad)[:dim]
    std = np.pad(std, pad, constant_values=1.0)[:dim]
    return x * (std + EPS) + mean


def _moments(stats: Stats) -> tuple[np.ndarray, np.ndarray]:
    """mean and std."""
    if stats.mean is None or stats.std is None:
        raise ValueError(
            "norm_mode 'zscore' needs mean and std, which these statistics lack; use 'quantile'"
        )
    return stats.mean, stats.std


def _quantile(x: np.ndarray, stats: Stats) -> np.ndarray:
    q01, q99 = _quantiles(stats, x.shape[-1])
    return (x - q01) / (q99 - q01 + EPS) * 2 - 1


def _inverse_quantile(x: np.ndarray, stats: Stats) -> np.ndarray:
    q01, q99 = _quantiles(stats, x.shape[-1])
    known = len(q01)
    inverse = (x[..., :known] + 1) / 2 * (q99 - q01 + EPS) + q01
    return np.concatenate([inverse, x[..., known:]], axis=-1)


def _quantiles(stats: Stats, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """q01 and q99 of the first `dim` dimensions, or of all there are."""
    if stats.q01 is None or stats.q99 is None:
        raise ValueError(
            "norm_mode 'quantile' needs q01 and q99, which these statistics lack; use 'zscore'"
        )
    return stats.q01[:dim], stats.q99[:dim]


def _mode(mode: str) -> tuple[Callable, Callable]:
    if mode not in MODES:
        raise bounds.unknown("norm_mode", mode, MODES)
    return MODES[mode]


def delta_actions(actions_BHA: np.ndarray, state_BQ: np.ndarray) -> np.ndarray:
    """Absolute targets -> offsets from the state the chunk starts in.

    Raw units; keeps the actions' dtype.
    """
    actions_BHA = actions_BHA.copy()
    actions_BHA[..., :DELTA_DIMS] -= state_BQ[..., None, :DELTA_DIMS]
    return actions_BHA


def absolute_actions(actions_BHA: np.ndarray, state_BQ: np.ndarray) -> np.ndarray:
    """Inverse of delta_actions."""
    actions_BHA = actions_BHA.copy()
    actions_BHA[..., :DELTA_DIMS] += state_BQ[..., None, :DELTA_DIMS]
    return actions_BHA


class RunningStats:
    """Statistics of a stream of vectors: population std, quantiles from histograms.

    The histograms widen with the data.  A quantile is the left edge of its bin.  Widening moves old
    counts to the left edge of their old bin and may lose the first bin's, which started 1e-10 below
    the data: openpi's rule, kept to get its numbers from the same data.
    """

    def __init__(self):
        self._count = 0

    def update(self, x: np.ndarray) -> None:
        """x [..., dims]: every leading axis counts as samples."""
        samples = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
        low = samples.min(axis=0)
        high = samples.max(axis=0)
        if self._count == 0:
            self._begin(low, high)
        else:
            self._widen(np.minimum(self._low, low), np.maximum(self._high, high))
        self._count += len(samples)
        self._sum += samples.sum(axis=0)
        self._sum_of_squares += np.square(samples).sum(axis=0)
        for dim, edges in enumerate(self._edges):
            counts, _ = np.histogram(samples[:, dim], bins=edges)
            self._counts[dim] += counts

    def stats(self) -> Stats:
        """Of all samples so far.

        Raises: ValueError for fewer than two.
        """
        if self._count < 2:
            raise ValueError(
                f"statistics need at least 2 samples, got {self._count}; collect more data first"
            )
        mean = self._sum / self._count
        mean_square = self._sum_of_squares / self._count
        std = np.sqrt(np.maximum(0.0, mean_square - np.square(mean)))
        return Stats(mean, std, self._quantile(0.01), self._quantile(0.99))

    def _begin(self, low: np.ndarray, high: np.ndarray) -> None:
        self._low = low
        self._high = high
        self._sum = np.zeros(len(low))
        self._sum_of_squares = np.zeros(len(low))
        self._edges = []
        self._counts = []
        for first, last in zip(low, high, strict=True):
            # The margin keeps a constant dimension's histogram from having zero width.
            edges = np.linspace(first - 1e-10, last + 1e-10, NUM_BINS + 1)
            self._edges.append(edges)
            self._counts.append(np.zeros(NUM_BINS))

    def _widen(self, low: np.ndarray, high: np.ndarray) -> None:
        if np.array_equal(low, self._low) and np.array_equal(high, self._high):
            return
        self._low = low
        self._high = high
        for dim, old in enumerate(self._edges):
            edges = np.linspace(low[dim], high[dim], NUM_BINS + 1)
            counts, _ = np.histogram(old[:-1], bins=edges, weights=self._counts[dim])
            self._edges[dim] = edges
            self._counts[dim] = counts

    def _quantile(self, fraction: float) -> np.ndarray:
        quantiles = []
        for edges, counts in zip(self._edges, self._counts, strict=True):
            first_bin = np.searchsorted(np.cumsum(counts), fraction * self._count)
            quantiles.append(edges[first_bin])
        return np.array(quantiles)


MODES = {"zscore": (_zscore, _inverse_zscore), "quantile": (_quantile, _inverse_quantile)}
