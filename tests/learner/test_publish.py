"""What plays sees whole versions of what learns, wherever each of them lies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pirl_jax.core import mesh as meshes
from pirl_jax.learner import publish

LAYOUTS = {  # fsdp, devices that learn, devices that play, whether something is copied
    "shared": (1, range(8), range(8), False),
    "hybrid": (1, range(8), range(4, 8), False),
    "hybrid, whole rows": (2, range(8), range(4, 8), False),
    "hybrid, no whole rows": (8, range(8), range(4, 8), True),
    "separate": (2, (6, 7), range(2, 6), True),
    "small learner": (1, (6, 7), range(8), True),
}
OVER_HOSTS = {  # weights split over two hosts of half the devices
    "over hosts": (8, range(8), range(8), True),
    "over hosts, hybrid": (8, range(8), range(4, 8), True),
    "over hosts, separate": (4, (0, 1, 4, 5), (2, 3, 6, 7), True),
}
LAYOUTS |= OVER_HOSTS


def trainable(path):
    return path == "w"


def mesh_of(numbers, fsdp=1):
    return meshes.make_mesh(-1, fsdp, [jax.devices()[number] for number in numbers])


def put_here(device_put, tree, device):
    """A host reaches its own devices alone."""
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(tree))
    return device_put(tree, device)


@pytest.fixture(params=LAYOUTS)
def layout(request, monkeypatch):
    """The learner's mesh, the players', parameters of which w trains, whether they are copied."""
    fsdp, learning, playing, copies = LAYOUTS[request.param]
    over_hosts = request.param in OVER_HOSTS
    monkeypatch.setattr(meshes, "spans_hosts", lambda mesh: over_hosts and mesh.shape["fsdp"] > 1)
    learns = mesh_of(learning, fsdp)
    plays = mesh_of(playing)
    if not over_hosts:
        plays = meshes.part(learns, plays.devices.flat) or plays
    split = jax.NamedSharding(learns, jax.P("fsdp"))
    params = {
        "w": jax.device_put(np.arange(16.0, dtype=np.float32), split),
        "frozen": jax.device_put(np.arange(8.0, dtype=np.float32), meshes.replicated(learns)),
        "table": jax.device_put(np.arange(24.0, dtype=np.float32), split),
    }
    if over_hosts:
        monkeypatch.setattr(jax, "device_put", functools.partial(put_here, jax.device_put))
    return learns, plays, params, copies


def test_what_is_published_lies_where_it_is_played_with(layout):
    learns, plays, params, copies = layout
    publisher = publish.Publisher(trainable, learns, plays)
    assert publisher.copies == copies
    with jax.transfer_guard("disallow"):
        published = publisher(params)
    like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)  # noqa: E731
    abstract = publisher.abstract(jax.tree.map(like, params))
    assert published.keys() == params.keys()
    for name, x in published.items():
        np.testing.assert_array_equal(x, params[name])
        assert x.sharding.device_set == set(plays.devices.flat)
        assert x.sharding.is_equivalent_to(abstract[name].sharding, 1)
    assert not copies or publisher(params)["table"] is published["table"]


def test_a_copy_outlives_the_update_and_a_view_does_not(layout):
    """A copy that was placed alone would share memory with what the update is given."""
    learns, plays, params, copies = layout
    published = publish.Publisher(trainable, learns, plays)(params)
    step = jax.jit(jnp.negative, donate_argnums=0, out_shardings=params["w"].sharding)
    updated = jax.block_until_ready(step(params["w"]))
    np.testing.assert_array_equal(published["frozen"], np.arange(8.0))
    if copies:
        np.testing.assert_array_equal(published["w"], np.arange(16.0))
        again = publish.Publisher(trainable, learns, plays)(params | {"w": updated})
        np.testing.assert_array_equal(again["w"], -np.arange(16.0))
    else:
        with pytest.raises(RuntimeError, match="deleted"):
            np.asarray(published["w"])


def test_the_trap_that_the_copy_avoids_is_there():
    """device_put onto devices that hold the values already shares their memory, asked or not."""
    learns = mesh_of(range(8))
    w = jax.device_put(np.arange(8.0), meshes.replicated(learns))
    placed = jax.device_put(w, meshes.replicated(mesh_of(range(4, 8))), may_alias=False)
    shared = {shard.data.unsafe_buffer_pointer() for shard in w.addressable_shards}
    assert all(s.data.unsafe_buffer_pointer() in shared for s in placed.addressable_shards)


def test_what_does_not_train_is_placed_once():
    learns = mesh_of((6, 7))
    plays = mesh_of(range(2, 6))
    whole = functools.partial(jax.device_put, device=meshes.replicated(learns))
    params = {"w": whole(np.zeros(2)), "frozen": whole(np.ones(2))}
    publisher = publish.Publisher(trainable, learns, plays)
    first = publisher(params)
    second = publisher(params | {"w": whole(np.full(2, 5.0))})
    assert second["frozen"] is first["frozen"] and second["w"] is not first["w"]
    np.testing.assert_array_equal(first["w"], [0, 0])
    np.testing.assert_array_equal(second["w"], [5, 5])
    other = publisher(params | {"frozen": whole(np.full(2, 2.0))})
    np.testing.assert_array_equal(other["frozen"], [2, 2])
