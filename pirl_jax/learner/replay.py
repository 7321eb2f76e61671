"""Own successes of earlier rollouts, kept in the run's folder, for losses that imitate them.

One folder per rollout and host, one .npy file per leaf; they are read through memory maps, since
all of a run may be larger than the memory.  A resumed run finds what was written before it; what
it plays again it writes again.  Refuses to know what is learned from the rows.
"""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import shutil

import jax
import numpy as np

from pirl_jax.core import atomic, endings, page, types
from pirl_jax.core import rows as context_rows
from pirl_jax.learner import objective


class Replay:
    """The successes of one host."""

    def __init__(self, folder: pathlib.Path, rollouts: int):
        """rollouts: how many newest ones are learned from, with the one just played; 0: all."""
        self._folder = folder
        self._rollouts = rollouts

    def check(self, iteration: int) -> None:
        """Everything is there that an iteration would look at, before hours are spent on it.

        Raises:
          endings.Failure: it is not, or other hosts have written it.
        """
        for earlier in self._earlier(iteration):
            self._read(earlier)

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
        own = _as_leaves(data, own_R, weight_R[own_R])
        self._write(iteration, own)
        earlier = self._drawn(iteration, own, generator)
        return data if earlier is None else _joined(data, earlier)

    def _write(self, iteration: int, leaves: dict[str, np.ndarray]) -> None:
        folder = self._of(iteration)
        unfinished = atomic.unfinished(folder)
        for old in (unfinished, folder):
            shutil.rmtree(old, ignore_errors=True)
        unfinished.mkdir(parents=True)
        for name, leaf in leaves.items():
            _save(unfinished / f"{name}.npy", leaf)
        atomic.sync_folder(unfinished)
        # Older ones stay: a run may go back to an earlier checkpoint, which looks at them again.
        unfinished.rename(folder)
        atomic.sync_folder(self._folder)

    def _earlier(self, iteration: int) -> range:
        """Iterations whose successes this one looks at."""
        first = max(0, iteration - self._rollouts + 1) if self._rollouts else 0
        return range(first, iteration)

    def _drawn(
        self, iteration: int, like: dict[str, np.ndarray], generator: np.random.Generator
    ) -> dict[str, np.ndarray] | None:
        """Leaves of rows of earlier iterations, at most as many as those of this one."""
        kept = [self._read(earlier, like) for earlier in self._earlier(iteration)]
        sizes = [len(leaves["clone_weight"]) for leaves in kept]
        total = sum(sizes)
        count = min(len(like["clone_weight"]), total)
        if not count:
            return None
        drawn = np.sort(generator.choice(total, count, replace=False))
        ends = np.cumsum(sizes)
        parts = []
        for leaves, end, size in zip(kept, ends, sizes, strict=True):
            index = drawn[(drawn >= end - size) & (drawn < end)] - (end - size)
            parts.append({name: np.asarray(leaf[index]) for name, leaf in leaves.items()})
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    def _read(
        self, iteration: int, like: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """like: rows of today, which those kept must be joined with."""
        folder = self._of(iteration)
        with _told(folder):
            if self._of(iteration, jax.process_count()).exists():
                raise ValueError(f"more hosts than today's {jax.process_count()} have written it")
            leaves = {
                name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                for name in LEAVES
            }
            for name, leaf in leaves.items():
                _require_rows(name, leaf, len(leaves["clone_weight"]), like)
        return leaves

    def _of(self, iteration: int, host: int | None = None) -> pathlib.Path:
        host = jax.process_index() if host is None else host
        return self._folder / f"{iteration}.{host}"


def of_run(directory: pathlib.Path, cfg: page.Algorithm) -> Replay | None:
    """That of a run directory; None where only the rollout just played is learned from."""
    if cfg.clone_rollouts == 1:
        return None
    return Replay(directory / "replay", cfg.clone_rollouts)


def _save(path: pathlib.Path, leaf: np.ndarray) -> None:
    """One .npy file, on the disk before it is named."""
    with atomic.naming(path), path.open("wb") as file:
        header = np.lib.format.header_data_from_array_1_0(leaf)
        np.lib.format.write_array_header_1_0(file, header)
        # Not np.save, whose error on a full disk does not say that it is full.
        file.write(np.ascontiguousarray(leaf).data)
        file.flush()
        os.fsync(file.fileno())


def _require_rows(
    name: str, leaf: np.ndarray, count: int, like: dict[str, np.ndarray] | None
) -> None:
    """
    Raises:
      ValueError: the leaf has not as many rows as the others, or rows of another form than today's.
    """
    if leaf.ndim == 0 or len(leaf) != count:
        raise ValueError(f"{name} has other rows than clone_weight")
    if like is None:
        return
    form = (leaf.shape[1:], leaf.dtype)
    today = (like[name].shape[1:], like[name].dtype)
    if form != today:
        raise ValueError(f"{name} is {leaf.dtype} {leaf.shape[1:]}, today {today[1]} {today[0]}")


@contextlib.contextmanager
def _told(folder: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, EOFError) as error:
        raise endings.Failure(
            f"{folder}, the successes of an earlier rollout, cannot be learned from ({error}); go"
            f" on with algorithm.clone_rollouts=1, or start another run"
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
    is_term = data.clone_weight is not None
    if is_term:
        # Beside another loss they share the weight of today's: how strong the term is says
        # clone_coef, not how much is replayed.
        own = np.asarray(data.clone_weight)
        share = own.sum() / (own.sum() + earlier["clone_weight"].sum())
        data = data.replace(clone_weight=own * share)
        earlier = earlier | {"clone_weight": earlier["clone_weight"] * share}

    def more(x: np.ndarray, new: np.ndarray | None = None) -> np.ndarray:
        x = np.asarray(x)
        new = np.zeros((count, *x.shape[1:]), x.dtype) if new is None else new
        return np.concatenate([x, new])

    chain = jax.tree.map(more, data.chain.replace(actions=None))
    obs = types.Observation(**{name: earlier[name] for name in OBSERVATION})
    return objective.Minibatch(
        context=[*data.context, *context_rows.split(obs, range(count))],
        chain=chain.replace(actions=more(data.chain.actions, earlier["actions"])),
        advantage=more(data.advantage),
        return_=more(data.return_),
        weight=more(data.weight, None if is_term else earlier["clone_weight"]),
        clone_weight=more(data.clone_weight, earlier["clone_weight"]) if is_term else None,
    )
