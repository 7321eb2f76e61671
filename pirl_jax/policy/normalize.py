"""Robot units <-> the unit scale the model works in.  numpy on the host; knows no images and no prompts.

Statistics are float64 and so is the arithmetic; results become float32 only where they enter the model.
File format: openpi's ``norm_stats.json`` (one Stats per key ``state`` and ``actions``).
"""

import dataclasses
import json
import pathlib

import numpy as np

EPS = 1e-6  # openpi's guard against a dimension that never moves
NUM_BINS = 5000  # histogram bins behind q01 and q99
DELTA_DIMS = 6  # position and rotation are relative to the state, the gripper command is absolute


@dataclasses.dataclass(frozen=True, eq=False)
class Stats:
    """Per-dimension statistics of one vector quantity, float64 [D].  The quantiles may be absent."""

    mean: np.ndarray
    std: np.ndarray
    q01: np.ndarray | None = None
    q99: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class NormStats:
    state: Stats
    actions: Stats


def load(path) -> NormStats:
    """Read a norm_stats.json."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(
            f"no normalisation statistics at {path}; give the norm_stats.json of the checkpoint's dataset"
        )
    tree = json.loads(path.read_text()).get("norm_stats", {})
    missing = [key for key in ("state", "actions") if key not in tree]
    if missing:
        raise ValueError(
            f"{path} has no statistics for {' and '.join(missing)}; give a file with state and actions"
        )
    return NormStats(_from_lists(tree["state"]), _from_lists(tree["actions"]))


def save(path, stats: NormStats) -> None:
    """Write a norm_stats.json that openpi reads too."""
    tree = {"norm_stats": {"state": _to_lists(stats.state), "actions": _to_lists(stats.actions)}}
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree, indent=2))


def _from_lists(entry: dict) -> Stats:
    names = ("mean", "std", "q01", "q99")
    return Stats(
        *(
            None if entry.get(name) is None else np.asarray(entry[name], np.float64)
            for name in names
        )
    )


def _to_lists(stats: Stats) -> dict:
    fields = {field.name: getattr(stats, field.name) for field in dataclasses.fields(stats)}
    return {
        name: None if value is None else np.asarray(value, np.float64).tolist()
        for name, value in fields.items()
    }


def identity(state_dim: int, action_dim: int) -> NormStats:
    """Leaves vectors as they are, in both modes (up to EPS)."""
    unit = lambda dim: Stats(np.zeros(dim), np.ones(dim), -np.ones(dim), np.ones(dim))  # noqa: E731
    return NormStats(state=unit(state_dim), actions=unit(action_dim))


def normalize(x: np.ndarray, stats: Stats, mode: str) -> np.ndarray:
    """x [..., d] -> float64 [..., d]; statistics longer than d are cut; nothing is clipped."""
    return _mode(mode)[0](x, stats)


def unnormalize(x: np.ndarray, stats: Stats, mode: str) -> np.ndarray:
    """Inverse of normalize for x [..., d]; d may exceed the statistics (the model's zero padding)."""
    return _mode(mode)[1](x, stats)


def _zscore(x, stats):
    dim = x.shape[-1]
    return (x - stats.mean[:dim]) / (stats.std[:dim] + EPS)


def _inverse_zscore(x, stats):
    dim = x.shape[-1]
    pad = (0, max(0, dim - len(stats.mean)))
    mean = np.pad(stats.mean, pad)[:dim]
    std = np.pad(stats.std, pad, constant_values=1.0)[:dim]
    return x * (std + EPS) + mean


def _quantile(x, stats):
    q01, q99 = _quantiles(stats)
    q01, q99 = q01[: x.shape[-1]], q99[: x.shape[-1]]
    return (x - q01) / (q99 - q01 + EPS) * 2 - 1


def _inverse_quantile(x, stats):
    q01, q99 = _quantiles(stats)
    q01, q99 = q01[: x.shape[-1]], q99[: x.shape[-1]]
    known = (x[..., : len(q01)] + 1) / 2 * (q99 - q01 + EPS) + q01
    return np.concatenate([known, x[..., len(q01) :]], axis=-1)


def _quantiles(stats):
    if stats.q01 is None or stats.q99 is None:
        raise ValueError(
            "norm_mode 'quantile' needs q01 and q99, which these statistics lack; use 'zscore'"
        )
    return stats.q01, stats.q99


def _mode(mode):
    if mode not in MODES:
        raise ValueError(f"norm_mode {mode!r} does not exist; choose one of: {', '.join(MODES)}")
    return MODES[mode]


def delta_actions(actions_BHA: np.ndarray, state_BS: np.ndarray) -> np.ndarray:
    """Absolute targets -> offsets from the state the chunk starts in (raw units; keeps the actions' dtype)."""
    actions_BHA = actions_BHA.copy()
    actions_BHA[..., :DELTA_DIMS] -= state_BS[..., None, :DELTA_DIMS]
    return actions_BHA


def absolute_actions(actions_BHA: np.ndarray, state_BS: np.ndarray) -> np.ndarray:
    """Inverse of delta_actions."""
    actions_BHA = actions_BHA.copy()
    actions_BHA[..., :DELTA_DIMS] += state_BS[..., None, :DELTA_DIMS]
    return actions_BHA


class RunningStats:
    """Statistics of a stream of vectors: population std, and quantiles from histograms that widen with the data.

    A quantile is the left edge of its bin.  Widening moves old counts to the left edge of their old bin and may lose
    the first bin's, which started 1e-10 below the data: openpi's rule, kept to get its numbers from the same data.
    """

    def __init__(self):
        self._count = 0

    def update(self, x: np.ndarray) -> None:
        """x [..., D]: every leading axis counts as samples."""
        x_ND = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
        if self._count == 0:
            self._sum, self._sum_of_squares = np.zeros((2, x_ND.shape[1]))
            self._low, self._high = x_ND.min(axis=0), x_ND.max(axis=0)
            # The margin keeps a constant dimension's histogram from having zero width.
            self._edges = [
                np.linspace(a - 1e-10, b + 1e-10, NUM_BINS + 1)
                for a, b in zip(self._low, self._high)
            ]
            self._counts = [np.zeros(NUM_BINS) for _ in self._edges]
        else:
            self._widen(
                np.minimum(self._low, x_ND.min(axis=0)), np.maximum(self._high, x_ND.max(axis=0))
            )
        self._count += len(x_ND)
        self._sum += x_ND.sum(axis=0)
        self._sum_of_squares += np.square(x_ND).sum(axis=0)
        for d, edges in enumerate(self._edges):
            self._counts[d] += np.histogram(x_ND[:, d], bins=edges)[0]

    def stats(self) -> Stats:
        if self._count < 2:
            raise ValueError(
                f"statistics need at least 2 samples, got {self._count}; collect more data first"
            )
        mean = self._sum / self._count
        std = np.sqrt(np.maximum(0.0, self._sum_of_squares / self._count - np.square(mean)))
        return Stats(mean, std, self._quantile(0.01), self._quantile(0.99))

    def _widen(self, low, high):
        if np.array_equal(low, self._low) and np.array_equal(high, self._high):
            return
        self._low, self._high = low, high
        for d, old in enumerate(self._edges):
            self._edges[d] = np.linspace(low[d], high[d], NUM_BINS + 1)
            self._counts[d] = np.histogram(old[:-1], bins=self._edges[d], weights=self._counts[d])[
                0
            ]

    def _quantile(self, q):
        bins = [np.searchsorted(np.cumsum(counts), q * self._count) for counts in self._counts]
        return np.array([edges[b] for edges, b in zip(self._edges, bins)])


MODES = {"zscore": (_zscore, _inverse_zscore), "quantile": (_quantile, _inverse_quantile)}
