"""Rows that stay where they are.

The same rows come out of a list, of a tree and of a buffer on the devices.
"""

import jax
import numpy as np
import pytest

from pirl_jax.core import mesh as meshes
from pirl_jax.core import rows

MESH = meshes.make_mesh(4, 2)


def batch(first, size=16):
    """Rows that say who they are."""
    name_B = np.arange(first, first + size)
    return {"kv": np.repeat(name_B[:, None], 3, 1).astype(np.float32), "mask": name_B % 2 == 0}


def names(taken):
    tree = jax.device_get(taken)
    np.testing.assert_array_equal(tree["mask"], tree["kv"][:, 2] % 2 == 0)
    return tree["kv"][:, 0].tolist()


@pytest.mark.parametrize("capacity", [20, 30])
def test_a_buffer_keeps_what_it_was_told_to(capacity):
    buffer = rows.Buffer(MESH)
    buffer.clear(capacity)
    with jax.transfer_guard("disallow"):
        first = buffer.write(meshes.put_batch(batch(0), MESH), [1, 3, 15])
        second = buffer.write(meshes.put_batch(batch(100), MESH), np.arange(16))
        kept = rows.OnDevice(buffer, np.concatenate([first.at_R, second.at_R]))
        some = rows.take(kept, np.array([2, 0, 3, 18, 0, 0, 0, 1]))
        placed = rows.put(some, MESH)
    assert buffer.rows["kv"].shape == (8 * (-(-capacity // 8)), 3) and len(kept) == 19
    assert buffer.rows["kv"].addressable_shards[0].data.shape[0] == len(buffer.rows["kv"]) // 8, (
        "split over the devices"
    )
    assert names(placed) == [15, 1, 100, 115, 1, 1, 1, 3]


def test_freed_rows_are_used_again():
    buffer = rows.Buffer(MESH)
    buffer.clear(16)
    first = buffer.write(meshes.put_batch(batch(0), MESH), np.arange(16))
    with pytest.raises(ValueError, match="the buffer holds 16 rows and all are in use"):
        buffer.write(meshes.put_batch(batch(20), MESH), [0])
    buffer.free(first.at_R[4:6])
    again = buffer.write(meshes.put_batch(batch(50), MESH), [7, 8])
    assert set(again.at_R) == set(first.at_R[4:6]) and names(
        rows.put(rows.take(again, np.arange(2).repeat(4)), MESH)
    )[::4] == [57, 58]
    assert names(rows.put(rows.take(first, np.arange(8) % 4), MESH)) == [0, 1, 2, 3] * 2, (
        "the others stay"
    )
    memory = buffer.rows
    buffer.clear(16)
    assert (
        buffer.rows is memory
        and len(buffer.write(meshes.put_batch(batch(0), MESH), np.arange(16))) == 16
    )
    buffer.clear(17)
    assert buffer.rows is None


@pytest.mark.parametrize("form", ["tree", "list"])
def test_host_rows(form):
    whole = batch(0)
    split = [jax.tree.map(lambda leaf, i=i: leaf[i], whole) for i in range(16)]
    taken = rows.take(whole if form == "tree" else split, np.array([3, 15, 3, 0, 1, 1, 1, 1]))
    assert isinstance(taken["kv"], np.ndarray) and names(rows.put(taken, MESH))[:4] == [3, 15, 3, 0]


def test_rows_stay_on_the_device_that_computed_them():
    """Reading and writing move nothing, and take no memory but for the rows that are asked for."""
    buffer = rows.Buffer(MESH)
    buffer.clear(1600)
    travels = buffer._read_any
    buffer._read_any = buffer._write_any = None
    rng = np.random.default_rng(0)
    kept = []
    for first in range(0, 320, 32):
        some = np.flatnonzero(rng.random(32) < 0.7)
        written = buffer.write(meshes.put_batch(batch(first, 32), MESH), some)
        assert (buffer.owner(written.at_R) == some // 4).all()
        kept += [*zip(first + some, written.at_R, strict=True)]
    name_R, at_R = np.array(kept).T
    parts = rows.by_device(rows.OnDevice(buffer, at_R), rng.permutation(len(at_R)))
    assert sorted(np.concatenate(parts)) == list(range(len(at_R)))
    index_B = np.concatenate([part[:2] for part in parts])
    assert names(buffer.gather(at_R[index_B])) == name_R[index_B].tolist()
    buffer._read_any = travels
    assert names(buffer.gather(at_R[index_B[::-1]])) == name_R[index_B[::-1]].tolist(), "any order"

    rows_B = meshes.put_batch(batch(0, 32), MESH)
    at_32 = meshes.put_batch(np.zeros(32, np.int32), MESH)
    buffer_bytes = buffer.rows["kv"].addressable_shards[0].data.nbytes
    for lowered in (
        buffer._read.lower(buffer.rows, at_32),
        buffer._write.lower(buffer.rows, rows_B, at_32),
    ):
        compiled = lowered.compile()
        assert not any(kind in compiled.as_text() for kind in COLLECTIVES)
        memory = compiled.memory_analysis()
        beyond = memory.output_size_in_bytes - memory.alias_size_in_bytes
        assert memory.temp_size_in_bytes + beyond < buffer_bytes / 4


def test_what_must_travel_does_so_a_batch_at_a_time():
    """A buffer of 2^20 rows; none of them is gathered, moved or copied as a whole."""
    buffer = rows.Buffer(MESH)
    rows_B = jax.eval_shape(lambda: batch(0, 32))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2**20, *x.shape[1:]), x.dtype), rows_B)
    at_B = jax.ShapeDtypeStruct((32,), np.int32)
    for lowered in (
        buffer._read_any.lower(shapes, at_B),
        buffer._write_any.lower(shapes, rows_B, at_B),
    ):
        assert lowered.compile().memory_analysis().temp_size_in_bytes < 2**17


COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "reduce-scatter", "collective-permute")
