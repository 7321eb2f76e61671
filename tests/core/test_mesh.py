import dataclasses
import types

import jax
import numpy as np
import pytest

from pirl_jax.core import mesh as meshes


def test_make_mesh():
    mesh = meshes.make_mesh(4, 2)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2}
    assert all(t == jax.sharding.AxisType.Auto for t in mesh.axis_types)
    assert dict(meshes.make_mesh(fsdp=4).shape) == {"data": 2, "fsdp": 4}
    assert dict(meshes.make_mesh(1, 1, jax.devices()[:1]).shape) == {"data": 1, "fsdp": 1}


def test_make_mesh_names_value_and_remedy():
    with pytest.raises(ValueError, match="fsdp=3 does not divide the 8 devices"):
        meshes.make_mesh(fsdp=3)
    with pytest.raises(
        ValueError,
        match=r"mesh\.data=3 x mesh\.fsdp=2 needs 6 devices but there are 8; set mesh\.data=4",
    ):
        meshes.make_mesh(3, 2)


def test_put_batch_shards_rows():
    mesh = meshes.make_mesh(4, 2)
    x = np.arange(16 * 3, dtype=np.float32).reshape(16, 3)
    with jax.transfer_guard("disallow"):
        tree = meshes.put_batch({"x": x, "flag": np.ones(8, bool)}, mesh)
    assert tree["x"].addressable_shards[0].data.shape == (2, 3)
    np.testing.assert_array_equal(tree["x"], x)
    with pytest.raises(ValueError, match="12 rows does not divide over 8 devices"):
        meshes.put_batch(np.zeros(12), mesh)


def test_replicate():
    mesh = meshes.make_mesh(4, 2)
    with jax.transfer_guard("disallow"):
        y = meshes.replicate(np.arange(3), mesh)
    assert y.is_fully_replicated and len(y.addressable_shards) == 8


def test_a_single_process_is_its_own_part():
    mesh = meshes.make_mesh(4, 2)
    x = {"w": meshes.put_batch(np.arange(8), mesh)}
    assert meshes.local(mesh) is mesh
    assert meshes.view(x, mesh) == x and meshes.join(x, mesh) is x
    assert meshes.gather({"any": "thing"}) == [{"any": "thing"}]


def test_a_mesh_of_several_hosts_keeps_their_devices_together(monkeypatch):
    """jax.make_mesh raises on devices of several machines."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "make_mesh", None)
    mesh = meshes.make_mesh(fsdp=2, devices=jax.devices()[::-1])
    assert mesh.devices.tolist() == np.array(jax.devices()).reshape(4, 2).tolist()
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2} and all(
        t == jax.sharding.AxisType.Auto for t in mesh.axis_types
    )


@pytest.mark.parametrize("data, fsdp", [(8, 1), (4, 2), (1, 8)])
def test_what_is_drawn_for_rows_does_not_depend_on_the_mesh(data, fsdp):
    mesh = meshes.make_mesh(data, fsdp)

    def draw(rows):
        return jax.random.uniform(jax.random.key(3), (rows, 2))

    def by_place(x_B):
        return meshes.drawn(draw, len(x_B)) + 0 * x_B[:, None]

    split = jax.sharding.PartitionSpec("data")
    x_B = meshes.put_batch(np.zeros(16, np.float32), mesh)
    everywhere = jax.jit(meshes.by_data(by_place, mesh, (split,), split))(x_B)
    np.testing.assert_array_equal(everywhere, draw(16))
    np.testing.assert_array_equal(meshes.drawn(draw, 16), draw(16))


def test_a_part_of_a_mesh_is_whole_rows_of_it():
    devices = jax.devices()
    mesh = meshes.make_mesh(4, 2)
    part = meshes.part(mesh, devices[4:])
    assert part.devices.tolist() == mesh.devices[2:].tolist()
    assert meshes.part(mesh, devices) is mesh
    assert meshes.part(mesh, devices[3:7]) is None, "halves of rows"
    assert meshes.part(meshes.make_mesh(1, 8), devices[4:]) is None
    assert meshes.part(meshes.make_mesh(2, 1, devices[6:]), devices[2:6]) is None


def test_a_view_shares_the_memory_of_what_it_shows():
    mesh = meshes.make_mesh(4, 2)
    split = jax.NamedSharding(mesh, jax.P("fsdp"))
    x = {"w": jax.device_put(np.arange(4.0), split)}
    part = meshes.part(mesh, jax.devices()[4:])
    view = meshes.view(x, part)["w"]
    assert view.sharding == jax.NamedSharding(part, jax.P("fsdp"))
    np.testing.assert_array_equal(view, x["w"])
    at = {shard.device: shard.data.unsafe_buffer_pointer() for shard in x["w"].addressable_shards}
    for shard in view.addressable_shards:
        assert shard.data.unsafe_buffer_pointer() == at[shard.device]
    shape = jax.ShapeDtypeStruct((4,), np.float32, sharding=split)
    assert meshes.view(shape, part).sharding == view.sharding


# ---- several hosts -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Device:
    """What a mesh asks of one that need not be here."""

    id: int
    process_index: int
    client: types.SimpleNamespace = dataclasses.field(
        default_factory=lambda: types.SimpleNamespace(process_index=lambda: 1), compare=False
    )


def of_hosts(*rows):
    """A mesh seen by the host of index 1; each number names the host of a device."""
    devices = []
    for row in rows:
        devices.append([Device(10 * len(devices) + at, host) for at, host in enumerate(row)])
    return jax.sharding.Mesh(np.array(devices, dtype=object), meshes.BATCH_AXES)


def test_where_rows_lie_on_several_hosts_every_device_has_a_copy():
    within = of_hosts((0, 0), (1, 1))
    assert not meshes.spans_hosts(within)
    assert meshes.local(within).devices.tolist() == within.devices[1:].tolist()
    over = of_hosts((1, 1, 0, 0), (0, 0, 1, 1))
    assert meshes.spans_hosts(over)
    own = meshes.local(over)
    assert dict(own.shape) == {"data": 4, "fsdp": 1}
    # In the order of the rows that a host puts on the whole mesh.
    assert own.devices.flat[:].tolist() == over.local_devices
    assert meshes.hosts(within) == meshes.hosts(over) == 2


def test_who_compiles_for_several_hosts_is_one_of_them():
    mesh = of_hosts((0, 0), (1, 1), (2, 2))
    assert jax.process_count() == 1 and meshes.hosts(mesh) == 3
    assert meshes.local(mesh).devices.tolist() == mesh.devices[1:2].tolist()
    alone = of_hosts((1, 1))
    assert meshes.local(alone) is alone


def test_own_rows_follow_the_mesh_and_not_the_number_of_the_host():
    """Hosts of a TPU pod stand in the order of a walk through it."""
    mesh = of_hosts((1, 1), (0, 0), (2, 2))
    np.testing.assert_array_equal(meshes.own_rows(np.arange(12), mesh), np.arange(4))
    mesh = of_hosts((0, 1), (0, 1))
    np.testing.assert_array_equal(meshes.own_rows(np.arange(8), mesh), [2, 3, 6, 7])
