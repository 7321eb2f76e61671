"""Where the rows of a rollout lie until a minibatch takes them.

A row of a frozen VLM's prefix is 10 MB at full size, so rows are never copied as a whole: they stay
where they arrived, and a microbatch takes those it needs.

A list holds host rows; each is a view of the batch it came in.  OnDevice names rows of a Buffer
that never left the devices.  Anything else is a tree of host arrays [R,...].  Knows nothing of what
a row means.
"""

from collections.abc import Callable, Iterable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np

from pirl_jax.core import mesh as meshes


class Buffer:
    """Preallocated rows, split over this process's devices; what is freed is used again.

    A row stays on the device that computed it and is read by that device, so that nothing travels.
    Where a device has no room left, or is asked for another's rows, those rows travel.
    """

    def __init__(self, mesh: jax.sharding.Mesh, is_apart: bool = False):
        """is_apart: other devices than these learn from the rows, or more, or fewer."""
        self.rows = None
        self.is_apart = is_apart
        self.devices = mesh.size
        self._mesh = mesh
        self._free: list[list[int]] = [[] for _ in range(self.devices)]
        self._capacity = 0
        split = PartitionSpec(meshes.BATCH_AXES)
        everywhere = PartitionSpec()

        def on_each(function: Callable, takes: tuple) -> Callable:
            return jax.shard_map(function, mesh=mesh, in_specs=takes, out_specs=split)

        # Donated: the buffer is most of the memory there is and must not exist twice.
        write = on_each(_write, (split, split, split))
        write_any = on_each(_write_any, (split, split, everywhere))
        self._write = jax.jit(write, donate_argnums=0)
        self._write_any = jax.jit(write_any, donate_argnums=0)
        self._read = jax.jit(on_each(_read, (split, split)))
        self._read_any = jax.jit(on_each(_read_any, (split, everywhere)))
        layout = meshes.batch_sharding(mesh)
        self._zeros = jax.jit(_zeros, static_argnums=1, out_shardings=layout)

    def clear(self, capacity: int) -> None:
        """Forget all rows; room for `capacity` rows.  The memory is kept unless it is too small."""
        if capacity > self._capacity:
            self._capacity = self._rounded(capacity)
            self.rows = None
        each = self._capacity // self.devices
        for device, free in enumerate(self._free):
            first = device * each
            free[:] = reversed(range(first, first + each))

    def write(self, rows_B: Any, index_n: np.ndarray) -> "OnDevice":
        """Keep the rows at `index_n` of a batch on the devices.

        Raises: ValueError when the buffer has no room for them.
        """
        index_n = np.asarray(index_n)
        room = sum(map(len, self._free))
        if len(index_n) > room:
            raise ValueError(
                f"the buffer holds {self._capacity} rows and all are in use;"
                " clear it with a larger capacity"
            )
        if self.rows is None:
            self.rows = self._zeros(rows_B, self._capacity)
        first, *_ = jax.tree.leaves(rows_B)
        size = len(first)
        home_n = self._homes(size)[index_n]
        places = [self._take_place(home) for home in home_n]
        at_n = np.array(places, np.int32)
        # A place beyond the end: the row is not kept, and the program has one shape for all
        # batches.
        at_B = np.full(size, self._capacity, np.int32)
        at_B[index_n] = at_n
        if np.array_equal(self.owner(at_n), home_n):
            at_B = meshes.put_batch(at_B, self._mesh)
            self.rows = self._write(self.rows, rows_B, at_B)
        else:
            at_B = meshes.replicate(at_B, self._mesh)
            self.rows = self._write_any(self.rows, rows_B, at_B)
        return OnDevice(self, at_n)

    def gather(self, at_B: np.ndarray) -> Any:
        """Rows by their places, as a batch over the devices."""
        home_B = self._homes(len(at_B))
        if np.array_equal(self.owner(at_B), home_B):
            at_B = meshes.put_batch(at_B, self._mesh)
            return self._read(self.rows, at_B)
        at_B = meshes.replicate(at_B, self._mesh)
        return self._read_any(self.rows, at_B)

    def lower(self, rows_B: Any, capacity: int, count: int) -> dict[str, jax.stages.Lowered]:
        """What `write` and `gather` run, from shapes: {"write", "read"}.

        Args:
          rows_B: shapes of a batch that is written.
          capacity: rows that are kept.
          count: rows that are read at once.
        """
        capacity = self._rounded(capacity)
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
            "read": self._read.lower(kept, at_n),
        }

    def free(self, places: Iterable[int]) -> None:
        """These rows are needed no more."""
        for at in places:
            free = self._free[int(self.owner(at))]
            free.append(int(at))

    def owner(self, at_n: np.ndarray) -> np.ndarray:
        """The device that holds each of these places."""
        each = self._capacity // self.devices
        return np.asarray(at_n) // each

    def _rounded(self, capacity: int) -> int:
        """Up to equally many rows of every device."""
        return capacity + -capacity % self.devices

    def _homes(self, size: int) -> np.ndarray:
        """The device of each row of a batch."""
        if size % self.devices:
            raise ValueError(
                f"a batch of {size} rows does not divide over {self.devices} devices;"
                f" use a multiple of {self.devices}"
            )
        return np.arange(size) // (size // self.devices)

    def _take_place(self, home: int) -> int:
        """Another device's where the row's own has no room."""
        free = self._free[home]
        if not free:
            free = max(self._free, key=len)
        return free.pop()


def _zeros(like_B: Any, size: int) -> Any:
    def zeros(x: jax.Array) -> jax.Array:
        shape = (size, *x.shape[1:])
        return jnp.zeros(shape, x.dtype)

    return jax.tree.map(zeros, like_B)


# ---- what every device does with its part of the rows; places are those of the whole buffer ------


def _first(rows: Any) -> tuple[jax.Array, int]:
    """The first place on this device, and the number of its places."""
    count = len(jax.tree.leaves(rows)[0])
    device = jax.lax.axis_index(meshes.BATCH_AXES)
    return device * count, count


def _write(rows: Any, rows_B: Any, at_B: jax.Array) -> Any:
    """One by one: a scatter copies the buffer on some devices.  Other devices' places are left."""
    first, count = _first(rows)

    def put(i: jax.Array, rows: Any) -> Any:
        at = at_B[i] - first
        is_here = (at >= 0) & (at < count)
        at = jnp.clip(at, 0, count - 1)

        def one(x: jax.Array, new_B: jax.Array) -> jax.Array:
            new = _row(new_B, i)
            old = _row(x, at)
            row = jnp.where(is_here, new, old)
            return jax.lax.dynamic_update_index_in_dim(x, row, at, 0)

        return jax.tree.map(one, rows, rows_B)

    return jax.lax.fori_loop(0, len(at_B), put, rows)


def _write_any(rows: Any, rows_b: Any, at_B: jax.Array) -> Any:
    """rows_b: this device's part of the batch."""
    rows_B = jax.lax.all_gather(rows_b, meshes.BATCH_AXES, tiled=True)
    return _write(rows, rows_B, at_B)


def _read(rows: Any, at_B: jax.Array) -> Any:
    first, _ = _first(rows)
    here_B = at_B - first

    def taken(x: jax.Array) -> jax.Array:
        return jax.lax.map(lambda at: _row(x, at), here_B)

    return jax.tree.map(taken, rows)


def _read_any(rows: Any, at_B: jax.Array) -> Any:
    """Every device takes what it has, zeros for the rest, and their sum is dealt out."""
    first, count = _first(rows)

    def taken(x: jax.Array) -> jax.Array:
        is_bool = x.dtype == bool

        def one(at: jax.Array) -> jax.Array:
            is_here = (at >= first) & (at < first + count)
            at = jnp.clip(at - first, 0, count - 1)
            row = _row(x, at)
            # As bits, whose sum with zeros is exact.
            bits = row.astype(jnp.uint8) if is_bool else _bits(row)
            return jnp.where(is_here, bits, jnp.zeros_like(bits))

        taken_B = jax.lax.map(one, at_B)
        dealt = jax.lax.psum_scatter(taken_B, meshes.BATCH_AXES, tiled=True)
        if is_bool:
            return dealt.astype(bool)
        return jax.lax.bitcast_convert_type(dealt, x.dtype)

    return jax.tree.map(taken, rows)


def _bits(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")


def _row(x: jax.Array, at: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(x, at, keepdims=False)


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


def by_device(rows: Any, row_R: np.ndarray) -> list[np.ndarray]:
    """Indices of rows, by the device that holds them and learns from them; all of them together
    where there is none."""
    if not isinstance(rows, OnDevice) or rows.buffer.is_apart:
        return [row_R]
    owner_R = rows.buffer.owner(rows.at_R[row_R])
    devices = range(rows.buffer.devices)
    return [row_R[owner_R == device] for device in devices]


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
        gathered = rows.buffer.gather(rows.at_R)
        if rows.buffer.is_apart:
            gathered = jax.device_put(gathered, meshes.batch_sharding(meshes.local(mesh)))
        return meshes.join(gathered, mesh)
    return meshes.put_batch(rows, mesh)
