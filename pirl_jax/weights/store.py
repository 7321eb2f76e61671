"""Checkpoints: the whole training state on disk with orbax, written in the background.

They are visible only when complete, with the checksum of every file.  A state is stored as a flat
table `path -> array` ("params/llm/w"), so that the check at restore names exactly what does not
fit, and a part of it (only the parameters, for evaluation) can be read alone.
A save that the storage refuses is tried again (MOST_FAILURES), never forgotten.
Knows no model: any pytree of arrays will do (flax.struct dataclasses, optax states, dicts).
"""

from collections.abc import Iterator
import concurrent.futures
import contextlib
import logging
import os
import pathlib
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from pirl_jax.core import endings, outside
from pirl_jax.core import mesh as meshes
from pirl_jax.weights import accounting, folders, frozen


def named_leaves(tree: Any, prefix: str = "") -> dict[str, jax.Array]:
    """Leaves of a pytree by path, "params/llm/w", all of them below `prefix`.

    The path of an optax state counts its tuple positions, "opt_state/0/mu/w".
    """
    table = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        table[f"{prefix}/{path}" if prefix else path] = leaf
    return table


log = logging.getLogger(__name__)

MOST_FAILURES = 3  # saves in a row that may fail before a run ends
PAUSE_S = 5.0  # before a save that nothing else separates from the one that failed
TENSORSTORE_ERRNO = re.compile(r"os_error_code='(\d+)'")


def storage_error(error: Exception) -> str:
    """The storage's own words, "No space left on device"; "" for an error of another kind."""
    number = TENSORSTORE_ERRNO.search(str(error))
    if number:
        return os.strerror(int(number[1]))
    if not isinstance(error, OSError):
        return ""
    # Without a number it may be a page of a library's words.
    return error.strerror or outside.shown(error) or type(error).__name__


def _is_news(record: logging.LogRecord) -> bool:
    """Orbax prints the tracebacks of errors that it raises as well, and asyncio those of orbax."""
    if record.name == "asyncio":
        return not (record.exc_info and storage_error(record.exc_info[1]))
    return f"{os.sep}orbax{os.sep}" not in record.pathname or record.levelno < logging.ERROR


class Store:
    """The checkpoints of one run, one folder per iteration; the newest `keep` of them stay."""

    def __init__(self, directory: str | os.PathLike, keep: int | None = None, create: bool = True):
        """create: make the folder; False only reads, and refuses a folder that is not there."""
        self.directory = pathlib.Path(directory).absolute()
        self.keep = keep
        if not create and not self.directory.is_dir():
            raise ValueError(
                f"checkpoint folder {self.directory} does not exist; give the folder of a saved run"
            )
        if create and not jax.process_index():
            self.directory.mkdir(parents=True, exist_ok=True)
            folders.tidy(self.directory)
        # Folders are made before `save` returns: made later, one that cannot be made leaves
        # threads that wait for it for minutes.
        options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
        handler = ocp.CompositeCheckpointHandler(
            composite_options=ocp.CompositeOptions(async_options=options),
            state=ocp.PyTreeCheckpointHandler(),
            extra=ocp.JsonCheckpointHandler(),
        )
        self._checkpointer = ocp.AsyncCheckpointer(handler, async_options=options)
        self._background = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._saving: concurrent.futures.Future | None = None
        self._iteration = -1  # of the last save
        self._failures = 0  # in a row
        self._refusal = ""  # the last one
        self._protected: int | None = None
        self._restored: dict | None = None  # `extra` of what the next saves go on from
        for logger in ("absl", "asyncio"):
            logging.getLogger(logger).addFilter(_is_news)

    def save(self, iteration: int, state: Any, extra: dict | None = None) -> None:
        """Start writing `state` and the JSON dict `extra`.

        Returns as soon as the arrays may be donated or changed.  Checkpoints of this or a later
        iteration belong to a branch that a resume has left: they are removed once this one is
        complete.  What the storage refuses is a warning: ask `failed`.

        Raises:
          endings.Failure: the storage refused too often.
        """
        self._settle()
        self._iteration = iteration
        table = {path: _storable(leaf) for path, leaf in named_leaves(state).items()}
        # In one item each: `extra` can be read by eye, and neither is visible without the other.
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(table),
            extra=ocp.args.JsonSave((extra or {}) | self._reference()),
        )
        place = folders.partial(self.directory, iteration)
        for reason in meshes.gather(self._refused(place)):
            if reason:
                self._note(reason)
                return
        with self._noticing():
            self._checkpointer.save(place, args=items, force=True, custom_metadata=folders.PROMISE)
            self._saving = self._background.submit(self._complete, iteration)

    def _reference(self) -> dict[str, str]:
        """What a checkpoint says of rounded weights; that it goes on from says the same of them.

        Whatever lies in the folder by now: a moved run may have left it behind.
        """
        if self._restored is None:
            return frozen.reference(self.directory)
        return frozen.carried(self._restored)

    def _refused(self, place: pathlib.Path) -> str:
        """Asked before orbax is, whose hosts would wait for one that cannot write."""
        if jax.process_index():
            return ""
        probe = place.with_name(f"{place.name}.probe")
        try:
            probe.write_bytes(bytes(4096))
        except OSError as error:
            return storage_error(error)
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()
        return ""

    def _complete(self, iteration: int) -> None:
        """In the background: checksums, then the checkpoint gets its number, and old ones go."""
        self._checkpointer.wait_until_finished()
        if jax.process_index():
            return
        folders.seal(folders.partial(self.directory, iteration))
        folders.publish(self.directory, iteration)
        self._prune()

    def _prune(self) -> None:
        if self.keep is None:
            return
        # One that somebody reads goes after a later save.
        for iteration in folders.standing(self.directory)[: -self.keep]:
            if iteration == self._protected:
                continue
            try:
                folders.remove(self.directory, iteration)
            except OSError as error:  # what has been saved is good all the same
                reason = storage_error(error)
                log.warning("checkpoint %d cannot be removed (%s)", iteration, reason)

    def failed(self) -> bool:
        """Whether the last save came to nothing, so that the caller saves again; never waits.

        All hosts ask together and hear the same.

        Raises:
          endings.Failure: it was the last failure of MOST_FAILURES in a row.
        """
        if self._saving is not None and self._saving.done():
            self._settle()
        return any(meshes.gather(self._saving is None and self._failures > 0))

    def finish(self, iteration: int, state: Any) -> None:
        """Return when the state of this iteration is on the disk, saved again where needed.

        Raises:
          endings.Failure: the storage refused too often.
        """
        if self._iteration != iteration and iteration not in self._standing():
            self.save(iteration, state)
        self._settle()
        while any(meshes.gather(self._failures > 0)):
            time.sleep(PAUSE_S)
            self.save(iteration, state)
            self._settle()

    def _settle(self) -> None:
        """Wait for the running save and take note of its end."""
        saving = self._saving
        if saving is None:
            return
        self._saving = None
        with self._noticing():
            saving.result()
            self._failures = 0

    @contextlib.contextmanager
    def _noticing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            reason = storage_error(error)
            if not reason:
                raise
            self._note(reason)

    def _note(self, reason: str) -> None:
        """A failure is said, and the last one ends the run."""
        self._failures += 1
        # Errors that orbax still keeps would meet the next save.
        with contextlib.suppress(OSError, ValueError):
            self._checkpointer.wait_until_finished()
        self._refusal = f"{self._folder(self._iteration)} could not be written ({reason})"
        if not jax.process_index():
            folders.drop_partial(self.directory, self._iteration)
        if self._failures >= MOST_FAILURES:
            raise self._failure()
        log.warning(
            "checkpoint %s; failure %d, and %d in a row end the run",
            self._refusal,
            self._failures,
            MOST_FAILURES,
        )

    def _failure(self) -> endings.Failure:
        older = folders.standing(self.directory)
        return endings.Failure(
            f"checkpoint {self._refusal}, {self._failures} times in a row; it holds {older}; "
            f"make room or let this user write there, then go on with --resume auto"
        )

    def protect(self, iteration: int | None) -> None:
        """This checkpoint stays beside the newest `keep`, however old it gets; None: none does."""
        self._protected = iteration

    def remove_after(self, iteration: int) -> None:
        """Leave the branch of the checkpoints later than this one.

        From here on a resume finds this one.  The others go when the next save is complete.
        """
        saved_ones = self._standing()
        self._iteration = -1  # whichever it was, the new branch saves it anew
        if jax.process_index():
            return
        for saved in saved_ones:
            if saved > iteration:
                folders.abandon(self.directory, saved)

    def restore(
        self, abstract: Any, iteration: int | None = None, prefix: str = ""
    ) -> tuple[Any, dict]:
        """-> (state with the structure, dtypes and shardings of `abstract`, extra).

        abstract: pytree of arrays or ShapeDtypeStructs.
        iteration: None is the newest.
        prefix: "params" reads that subtree alone.
        Raises: ValueError that lists every leaf missing, left over, or of another shape or dtype.
        """
        iteration = self._existing(iteration)
        self.require_fit(abstract, iteration, prefix)
        expected = named_leaves(abstract, prefix)
        target = {path: _storable_target(leaf) for path, leaf in expected.items()}
        items = ocp.args.Composite(
            state=ocp.args.PyTreeRestore(
                item=target,
                restore_args=ocp.checkpoint_utils.construct_restore_args(target),
                partial_restore=True,
            ),
            extra=ocp.args.JsonRestore(),
        )
        restored = self._checkpointer.restore(self._folder(iteration), args=items)
        self._restored = restored["extra"]
        leaves = [_unstored(restored["state"][path], leaf) for path, leaf in expected.items()]
        return jax.tree.unflatten(jax.tree.structure(abstract), leaves), restored["extra"]

    def latest(self) -> int | None:
        """Newest complete iteration, or None; waits for a running save."""
        saved = self._standing()
        return saved[-1] if saved else None

    def identity(self, iteration: int | None = None) -> dict[str, int]:
        """{"iteration", "written_ns"} of a checkpoint (None: the newest).

        Tells it from another one of the same iteration.
        """
        iteration = self._existing(iteration)
        metadata = self._checkpointer.metadata(self._folder(iteration))
        return {"iteration": iteration, "written_ns": metadata.commit_timestamp_nsecs}

    def wait(self) -> None:
        """Block until the running save is on disk.

        Raises:
          endings.Failure: the storage refused it.
        """
        self._settle()
        if self._failures:
            raise self._failure()

    def close(self) -> None:
        """Finish the running save and let go of the folder.

        A save that fails is no more than a warning here: `wait` and `finish` end a command with
        it, and what ends it already is not to be hidden.
        """
        try:
            try:
                self._settle()
            except endings.Failure as error:
                log.warning("%s", error)
            # What was read meanwhile; a reader may stay, and the next start prunes again.
            if self._iteration >= 0 and not jax.process_index():
                self._prune()
        finally:
            self._background.shutdown()
            # What the storage refused has been said.
            with contextlib.suppress(OSError):
                self._checkpointer.close()

    def _standing(self) -> list[int]:
        """Iterations of complete checkpoints, the same on all hosts."""
        self._settle()
        # The first host has given the number before any of them looks.
        meshes.gather(None)
        return folders.standing(self.directory)

    def _folder(self, iteration: int) -> pathlib.Path:
        return self.directory / str(iteration)

    def _existing(self, iteration: int | None) -> int:
        """The iteration asked for, None: the newest; ValueError where there is none."""
        saved = self._standing()
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

    def saved_leaves(self, iteration: int) -> dict[str, Any]:
        """Path -> shape and dtype of the stored table, without reading the arrays."""
        metadata = self._checkpointer.metadata(self._folder(iteration))
        return dict(metadata.item_metadata["state"])

    def require_fit(self, abstract: Any, iteration: int, prefix: str = "") -> None:
        """Before anything is restored, strict both ways: ValueError as of `restore`."""
        expected = named_leaves(abstract, prefix)
        saved = self.saved_leaves(iteration)
        if prefix:
            saved = {path: leaf for path, leaf in saved.items() if path.startswith(f"{prefix}/")}
        wrong = accounting.misfits(_kinds(expected), _kinds(saved))
        if wrong:
            raise ValueError(
                f"checkpoint {self.directory / str(iteration)} does not fit this configuration "
                f"({len(wrong)} of {len(expected)} arrays): {'; '.join(wrong)}; "
                f"restore it with the config.json of its own run"
            )


# ---- random keys: orbax stores numbers, so a typed key goes to disk as its data ------------------


def _kinds(table: dict) -> dict[str, str]:
    """Path -> dtype and shape of a leaf on disk, "float32[2, 3]"."""
    kinds = {}
    for path, leaf in table.items():
        stored = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        kinds[path] = f"{np.dtype(stored.dtype).name}{list(stored.shape)}"
    return kinds


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _storable(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _storable_target(leaf: Any) -> Any:
    """What orbax shall make of a leaf: numpy for numpy, else an array on the devices."""
    if isinstance(leaf, np.ndarray):
        return leaf
    stored = jax.eval_shape(_storable, leaf)
    sharding = None
    if not _is_key(leaf):
        sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        # Without one orbax would look for the devices of the run that saved.
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(stored.shape, stored.dtype, sharding=sharding)


def _unstored(stored: Any, leaf: Any) -> Any:
    """The inverse of `_storable`: a restored array as `leaf` wants it."""
    if not _is_key(leaf):
        return stored
    impl = jax.random.key_impl(jnp.empty((), leaf.dtype))  # key_impl refuses a ShapeDtypeStruct
    key = jax.random.wrap_key_data(stored, impl=impl)
    sharding = getattr(leaf, "sharding", None)
    return jax.device_put(key, sharding) if sharding else key
