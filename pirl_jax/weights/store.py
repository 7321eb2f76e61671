"""Checkpoints: the whole training state on disk with orbax, written in the background, visible only when complete.

A state is stored as a flat table `path -> array` ("params/llm/w"), so that the check at restore names exactly what does
not fit, and a part of it (only the parameters, for evaluation) can be read alone.
Knows no model: any pytree of arrays will do (flax.struct dataclasses, optax states, dicts).
"""

from collections.abc import Mapping
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp


def named_leaves(tree, prefix: str = "") -> dict[str, jax.Array]:
    """Leaves by path, "params/llm/w"; the path of an optax state counts its tuple positions, "opt_state/0/mu/w"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    join = (prefix,) if prefix else ()
    return {
        "/".join((*join, jax.tree_util.keystr(path, simple=True, separator="/"))): leaf
        for path, leaf in leaves
    }


def differences(expected: Mapping, found: Mapping) -> list[str]:
    """One line per leaf of two tables of arrays that is missing, left over, or has another shape or dtype."""
    lines = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    lines += [f"{name} is left over" for name in sorted(found.keys() - expected.keys())]
    for name in sorted(expected.keys() & found.keys()):
        want, have = _kind(expected[name]), _kind(found[name])
        if want != have:
            lines.append(f"{name} is {have} and should be {want}")
    return lines


class Store:
    """The checkpoints of one run, one folder per iteration; the newest `keep` of them stay."""

    def __init__(self, directory: str | os.PathLike, keep: int | None = None, create: bool = True):
        self.directory = pathlib.Path(directory).absolute()
        if not create and not self.directory.is_dir():
            raise ValueError(
                f"checkpoint folder {self.directory} does not exist; give the folder of a saved run"
            )
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=create, cleanup_tmp_directories=create
        )
        handlers = {"state": ocp.PyTreeCheckpointHandler(), "extra": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(
            self.directory, options=options, item_handlers=handlers
        )

    def save(self, iteration: int, state, extra: dict | None = None) -> None:
        """Start writing `state` and the JSON dict `extra`; returns as soon as the arrays may be donated or changed.

        Checkpoints of this or a later iteration belong to a branch that a resume has left: they are removed.
        """
        self.wait()
        for stale in [old for old in self._manager.all_steps() if old >= iteration]:
            self._manager.delete(stale)
        table = {name: _plain(leaf) for name, leaf in named_leaves(state).items()}
        self._manager.save(
            iteration,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(table), extra=ocp.args.JsonSave(extra or {})
            ),
        )

    def restore(self, abstract, iteration: int | None = None, prefix: str = "") -> tuple:
        """-> (state with the structure, dtypes and shardings of `abstract`, extra); None is the newest iteration.

        abstract: pytree of arrays or ShapeDtypeStructs.  prefix="params" reads that subtree alone.  Strict both ways.
        """
        iteration = self._existing(iteration)
        expected = named_leaves(abstract, prefix)
        found = self._saved(iteration)
        wrong = differences(
            expected,
            {n: leaf for n, leaf in found.items() if n.startswith(prefix and prefix + "/")},
        )
        if wrong:
            raise ValueError(
                f"checkpoint {self.directory / str(iteration)} does not fit this configuration ({len(wrong)} of "
                f"{len(expected)} arrays): {'; '.join(wrong)}; restore it with the config.json of its own run"
            )
        target = {name: _plain_target(leaf) for name, leaf in expected.items()}
        args = ocp.args.PyTreeRestore(
            item=target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=True,
        )
        result = self._manager.restore(
            iteration, args=ocp.args.Composite(state=args, extra=ocp.args.JsonRestore())
        )
        leaves = [_typed(result["state"][name], leaf) for name, leaf in expected.items()]
        return jax.tree.unflatten(jax.tree.structure(abstract), leaves), result["extra"]

    def latest(self) -> int | None:
        """Newest complete iteration, or None; waits for a running save."""
        self.wait()
        return self._manager.latest_step()

    def identity(self, iteration: int | None = None) -> dict:
        """{"iteration", "written_ns"} of a checkpoint (None: the newest): tells it from another of the same iteration."""
        iteration = self._existing(iteration)
        return {
            "iteration": iteration,
            "written_ns": self._manager.metadata(iteration).commit_timestamp_nsecs,
        }

    def wait(self) -> None:
        """Block until the running save is on disk; raises what went wrong in the background."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self.wait()
        self._manager.close()

    def _existing(self, iteration: int | None) -> int:
        self.wait()
        saved = sorted(self._manager.all_steps())
        if not saved:
            raise ValueError(
                f"{self.directory} holds no complete checkpoint; give the folder of a saved run"
            )
        if iteration is None:
            return saved[-1]
        if iteration not in saved:
            raise ValueError(
                f"{self.directory} holds no checkpoint of iteration {iteration}; it holds {saved}"
            )
        return iteration

    def _saved(self, iteration: int) -> dict:
        """Shapes and dtypes of the stored table, without reading the arrays."""
        return dict(self._manager.item_metadata(iteration)["state"])


def _kind(leaf) -> str:
    dtype = jnp.uint32 if _is_key(leaf) else leaf.dtype
    shape = jax.eval_shape(jax.random.key_data, leaf).shape if _is_key(leaf) else leaf.shape
    return f"{np.dtype(dtype).name}{list(shape)}"


def _is_key(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf):
    """Orbax stores numbers: a typed RNG key becomes its data."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _plain_target(leaf):
    if isinstance(leaf, np.ndarray):
        return leaf
    shape = jax.eval_shape(_plain, leaf)
    # Without a sharding orbax would look for the devices of the run that saved.
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    sharding = None if _is_key(leaf) else getattr(leaf, "sharding", None)
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding or device)


def _typed(leaf, like):
    if not _is_key(like):
        return leaf
    impl = jax.random.key_impl(jnp.empty((), like.dtype))  # key_impl refuses a ShapeDtypeStruct
    key = jax.random.wrap_key_data(leaf, impl=impl)
    return jax.device_put(key, like.sharding) if getattr(like, "sharding", None) else key
