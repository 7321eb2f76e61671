"""Where the rows of a rollout lie until a minibatch takes them.

A row of a frozen VLM's prefix is 10 MB at full size, so rows are never copied as a whole: they stay
where they arrived, and a microbatch takes those it needs.

A list holds host rows; each is a view of the batch it came in.  OnDevice names rows of a Buffer
that never left the devices.  Anything else is a tree of host arrays [R,...].  Knows nothing of what
a row means.
"""

from collections.abc import Iterable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pirl_jax.core import mesh as meshes


class Buffer:
    """Preallocated rows, split over this process's devices; what is freed is used again."""

    def __init__(self, mesh: jax.sharding.Mesh):
        self.rows = None
        self._mesh = mesh
        self._free: list[int] = []
        self._capacity = 0
        layout = meshes.batch_sharding(mesh)
        # Donated: the buffer is most of the memory there is and must not exist twice.
        self._write = jax.jit(_write, donate_argnums=0, out_shardings=layout)
        self._gather = jax.jit(_gather, out_shardings=layout)
        self._zeros = jax.jit(_zeros, static_argnums=1, out_shardings=layout)

    def clear(self, capacity: int) -> None:
        """Forget all rows; room for `capacity` rows.  The memory is kept unless it is too small."""
        if capacity > self._capacity:
            self._capacity = capacity + -capacity % self._mesh.size
            self.rows = None
        self._free = list(reversed(range(self._capacity)))

    def write(self, rows_B: Any, index_n: np.ndarray) -> "OnDevice":
        """Keep the rows at `index_n` of a batch on the devices.

        Raises: ValueError when the buffer has no room for them.
        """
        index_n = np.asarray(index_n)
        if len(index_n) > len(self._free):
            raise ValueError(
                f"the buffer holds {self._capacity} rows and all are in use;"
                " clear it with a larger capacity"
            )
        if self.rows is None:
            self.rows = self._zeros(rows_B, self._capacity)
        at_n = np.array([self._free.pop() for _ in index_n], np.int32)
        first, *_ = jax.tree.leaves(rows_B)
        # A place beyond the end: the row is not kept, and the program has one shape for all
        # batches.
        at_B = np.full(len(first), self._capacity, np.int32)
        at_B[index_n] = at_n
        self.rows = self._write(self.rows, rows_B, meshes.put_batch(at_B, self._mesh))
        return OnDevice(self, at_n)

    def gather(self, at_B: np.ndarray) -> Any:
        """Rows by their places, as a batch over the devices."""
        return self._gather(self.rows, meshes.put_batch(at_B, self._mesh))

    def lower(self, rows_B: Any, capacity: int, count: int) -> dict[str, jax.stages.Lowered]:
        """What `write` and `gather` run, from shapes: {"write", "read"}.

        Args:
          rows_B: shapes of a batch that is written.
          capacity: rows that are kept.
          count: rows that are read at once.
        """
        capacity += -capacity % self._mesh.size
        layout = meshes.batch_sharding(self._mesh)

        def resized(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            shape = (capacity, *x.shape[1:])
            return x.update(shape=shape, sharding=layout)

        kept = jax.tree.map(resized, rows_B)
        first, *_ = jax.tree.leaves(rows_B)
        at_B = jax.ShapeDtypeStruct(first.shape[:1], jnp.int32, sharding=layout)
        at_n = at_B.update(shape=(count,))
        return {
            "write": self._write.lower(kept, rows_B, at_B),
            "read": self._gather.lower(kept, at_n),
        }

    def free(self, at_n: np.ndarray) -> None:
        """These rows are needed no more."""
        self._free += [int(at) for at in at_n]


def _zeros(like_B: Any, size: int) -> Any:
    return jax.tree.map(lambda x: jnp.zeros((size, *x.shape[1:]), x.dtype), like_B)


def _write(rows: Any, rows_B: Any, at_B: jax.Array) -> Any:
    return jax.tree.map(lambda x, new: x.at[at_B].set(new, mode="drop"), rows, rows_B)


def _gather(rows: Any, at_B: jax.Array) -> Any:
    return jax.tree.map(lambda x: x[at_B], rows)


@dataclasses.dataclass(frozen=True)
class OnDevice:
    """Rows of a buffer, by their places in it; host data."""

    buffer: Buffer
    at_R: np.ndarray  # int32

    def __len__(self) -> int:
        return len(self.at_R)


def split(batch: Any, index_n: Iterable[int]) -> list:
    """Rows of a batch of host arrays, as views."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], batch) for i in index_n]


def take(rows: Any, index_B: np.ndarray) -> Any:
    """Some rows, by their index; stays on the host."""
    if isinstance(rows, OnDevice):
        return OnDevice(rows.buffer, rows.at_R[index_B])
    if isinstance(rows, list):
        chosen = [rows[index] for index in index_B]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *chosen)
    return jax.tree.map(lambda x: np.asarray(x)[index_B], rows)


def put(rows: Any, mesh: jax.sharding.Mesh) -> Any:
    """What a minibatch took, onto the devices of the mesh.

    Rows that are there already only come together.
    """
    if isinstance(rows, OnDevice):
        return meshes.join(rows.buffer.gather(rows.at_R), mesh)
    return meshes.put_batch(rows, mesh)
