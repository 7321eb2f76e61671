"""Own successes of earlier rollouts, kept in the run's folder, for losses that imitate them.

One folder per rollout and host, one .npy file per leaf; they are read through memory maps, since
all of a run may be larger than the memory.  A resumed run finds what was written before it; what
it plays again it writes again.  Refuses to know what is learned from the rows.
"""

from collections.abc import Iterator
import contextlib
import pathlib
import shutil

import jax
import numpy as np

from pirl_jax.core import atomic, endings, types
from pirl_jax.core import rows as context_rows
from pirl_jax.learner import objective


class Replay:
    """The successes of one host."""

    def __init__(self, folder: pathlib.Path, rollouts: int):
        """rollouts: how many newest ones are learned from, with the one just played; 0: all."""
        self._folder = folder
        self._rollouts = rollouts

    def extended(
        self, data: objective.Minibatch, iteration: int, generator: np.random.Generator
    ) -> objective.Minibatch:
        """Rows of an iteration, and as many from earlier ones as it has successes.

        Those of earlier ones are drawn without replacement.  Keeps the new ones for later.

        Raises:
          endings.Failure: what was kept is damaged or missing.
        """
        is_term = data.clone_weight is not None
        weight_R = np.asarray(data.clone_weight if is_term else data.weight)
        own_R = np.flatnonzero(weight_R > 0)
        self._write(iteration, _as_leaves(data, own_R, weight_R[own_R]))
        earlier = self._drawn(iteration, len(own_R), generator)
        return data if earlier is None else _joined(data, earlier)

    def _write(self, iteration: int, leaves: dict[str, np.ndarray]) -> None:
        folder = self._of(iteration)
        unfinished = atomic.unfinished(folder)
        for old in (unfinished, folder):
            shutil.rmtree(old, ignore_errors=True)
        unfinished.mkdir(parents=True)
        for name, leaf in leaves.items():
            path = unfinished / f"{name}.npy"
            with atomic.naming(path):
                np.save(path, leaf)
        # Older ones stay: a run may go back to an earlier checkpoint, which looks at them again.
        unfinished.rename(folder)

    def _drawn(
        self, iteration: int, count: int, generator: np.random.Generator
    ) -> dict[str, np.ndarray] | None:
        """Leaves of rows of earlier iterations."""
        first = max(0, iteration - self._rollouts + 1) if self._rollouts else 0
        kept = [self._read(earlier) for earlier in range(first, iteration)]
        sizes = [len(leaves["clone_weight"]) for leaves in kept]
        total = sum(sizes)
        count = min(count, total)
        if not count:
            return None
        drawn = np.sort(generator.choice(total, count, replace=False))
        ends = np.cumsum(sizes)
        parts = []
        for leaves, end, size in zip(kept, ends, sizes, strict=True):
            index = drawn[(drawn >= end - size) & (drawn < end)] - (end - size)
            parts.append({name: np.asarray(leaf[index]) for name, leaf in leaves.items()})
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    def _read(self, iteration: int) -> dict[str, np.ndarray]:
        folder = self._of(iteration)
        with _told(folder):
            return {
                name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                for name in LEAVES
            }

    def _of(self, iteration: int) -> pathlib.Path:
        return self._folder / f"{iteration}.{jax.process_index()}"


@contextlib.contextmanager
def _told(folder: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, EOFError) as error:
        raise endings.Failure(
            f"{folder}, the successes of an earlier rollout, is missing or damaged ({error}); go on"
            f" with algorithm.clone_rollouts=1, or start another run"
        ) from error


OBSERVATION = ("images", "image_mask", "state", "tokens", "token_mask")
LEAVES = (*OBSERVATION, "actions", "clone_weight")


def _as_leaves(
    data: objective.Minibatch, index_n: np.ndarray, weight_n: np.ndarray
) -> dict[str, np.ndarray]:
    """Arrays [n,...] by name."""
    obs = context_rows.take(data.context, index_n) if len(index_n) else _no_rows(data.context)
    leaves = {name: np.asarray(getattr(obs, name)) for name in OBSERVATION}
    actions_BHA = np.asarray(data.chain.actions)
    return leaves | {"actions": actions_BHA[index_n], "clone_weight": weight_n}


def _no_rows(context: list) -> types.Observation:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:0], context_rows.take(context, [0]))


def _joined(data: objective.Minibatch, earlier: dict[str, np.ndarray]) -> objective.Minibatch:
    """Earlier rows weigh nothing but where successes are imitated."""
    count = len(earlier["clone_weight"])

    def more(x: np.ndarray, new: np.ndarray | None = None) -> np.ndarray:
        x = np.asarray(x)
        new = np.zeros((count, *x.shape[1:]), x.dtype) if new is None else new
        return np.concatenate([x, new])

    chain = jax.tree.map(more, data.chain.replace(actions=None))
    obs = types.Observation(**{name: earlier[name] for name in OBSERVATION})
    rows = [jax.tree.map(lambda leaf, i=i: leaf[i], obs) for i in range(count)]
    is_term = data.clone_weight is not None
    return objective.Minibatch(
        context=[*data.context, *rows],
        chain=chain.replace(actions=more(data.chain.actions, earlier["actions"])),
        advantage=more(data.advantage),
        return_=more(data.return_),
        weight=more(data.weight, None if is_term else earlier["clone_weight"]),
        clone_weight=more(data.clone_weight, earlier["clone_weight"]) if is_term else None,
    )
