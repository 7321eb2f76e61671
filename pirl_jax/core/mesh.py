"""The device mesh: its two axes, which logical axis lives on which, and how host arrays get there.

"data" splits the batch and keeps a copy of the parameters; "fsdp" splits batch and parameters.  Knows no model.

Several processes, one per host, share a mesh: updates run on all of it, and all processes must make the same calls.  A rollout runs
on the part that is a process's own, because no two of them decide equally often.
"""

import pickle

import jax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

BATCH_AXES = ("data", "fsdp")

# Logical axis -> mesh axis.  An axis that is absent is replicated.  One sharded axis per parameter is enough (ZeRO-3);
# which one follows the order of the parameter's axes: the first that divides takes "fsdp".
RULES = {"batch": BATCH_AXES, "embed": "fsdp", "mlp": "fsdp", "vocab": "fsdp", "heads": "fsdp"}


def make_mesh(data: int = -1, fsdp: int = 1, devices=None) -> Mesh:
    """Mesh of data x fsdp devices; data = -1 takes what is left.  `devices` defaults to all devices of all hosts."""
    devices = jax.devices() if devices is None else devices
    if fsdp < 1 or len(devices) % fsdp:
        raise ValueError(
            f"mesh fsdp={fsdp} does not divide the {len(devices)} devices; choose a divisor of it"
        )
    data = len(devices) // fsdp if data == -1 else data
    if data * fsdp != len(devices):
        raise ValueError(
            f"mesh data={data} x fsdp={fsdp} needs {data * fsdp} devices but there are {len(devices)};"
            f" set data={len(devices) // fsdp}"
        )
    axis_types = (AxisType.Auto,) * 2
    if jax.process_count() == 1:
        return jax.make_mesh((data, fsdp), BATCH_AXES, axis_types=axis_types, devices=devices)
    # jax.make_mesh refuses devices of several machines, and on a TPU pod may lay a row over two of them.
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices).reshape(data, fsdp), BATCH_AXES, axis_types=axis_types)


def local(mesh: Mesh) -> Mesh:
    """This process's own part of the mesh: some rows of it, so that whole parameters lie in it."""
    if jax.process_count() == 1:
        return mesh
    for row in mesh.devices:
        if len({device.process_index for device in row}) > 1:
            raise ValueError(
                f"mesh fsdp={len(row)} reaches over more than one host of {len(mesh.local_devices)} devices, but each plays with "
                f"whole parameters of its own; choose a divisor of {len(mesh.local_devices)}"
            )
    mine = mesh.devices[[row[0].process_index == jax.process_index() for row in mesh.devices]]
    return Mesh(mine, mesh.axis_names, axis_types=mesh.axis_types)


def local_view(params, mesh: Mesh):
    """Parameters (or their shapes) of the whole mesh as arrays of this process's part of it.  Nothing is copied, so they live only as
    long as the originals: an update that is given those takes them away."""
    part = local(mesh)
    if part is mesh:
        return params

    def view(x):
        where = NamedSharding(part, x.sharding.spec)
        if isinstance(x, jax.ShapeDtypeStruct):
            return x.update(sharding=where)
        return jax.make_array_from_single_device_arrays(
            x.shape, where, [shard.data for shard in x.addressable_shards]
        )

    return jax.tree.map(view, params)


def join(tree, mesh: Mesh):
    """Batches that lie on the processes' own parts of the mesh, each passing as many rows -> one batch over all of it."""
    if local(mesh) is mesh:
        return tree
    where = batch_sharding(mesh)

    def whole(x):
        shape = (x.shape[0] * jax.process_count(), *x.shape[1:])
        return jax.make_array_from_single_device_arrays(
            shape, where, [shard.data for shard in x.addressable_shards]
        )

    return jax.tree.map(whole, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis over all devices, the rest replicated."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(tree, mesh: Mesh):
    """Host arrays [B,...] -> global arrays sharded over their rows.  Every process passes as many rows of its own."""
    sharding, local_devices = batch_sharding(mesh), len(mesh.local_devices)

    def put(x):
        x = np.asarray(x)
        if x.shape[0] % local_devices:
            raise ValueError(
                f"a batch of {x.shape[0]} rows does not divide over {local_devices} devices;"
                f" use a multiple of {local_devices}"
            )
        return jax.make_array_from_process_local_data(sharding, x)

    with jax.transfer_guard("allow"):  # with several processes JAX takes this one for implicit
        return jax.tree.map(put, tree)


def gather(item) -> list:
    """The item of every process, whatever it is, in their order.  All processes must call it together."""
    if jax.process_count() == 1:
        return [item]
    data = np.frombuffer(pickle.dumps(item), np.uint8)
    with jax.transfer_guard("allow"):  # the transfer is the purpose
        sizes_P = np.asarray(multihost_utils.process_allgather(np.int32(len(data)))).reshape(-1)
        room = 1 << int(sizes_P.max() - 1).bit_length()  # every length is a program of its own
        padded_PN = np.asarray(
            multihost_utils.process_allgather(np.pad(data, (0, room - len(data))))
        )
    return [
        pickle.loads(row_N[:size].tobytes()) for row_N, size in zip(padded_PN, sizes_P, strict=True)
    ]


def replicate(tree, mesh: Mesh):
    """A full copy of every array on every device; all processes must pass the same values."""
    where = replicated(mesh)
    if where.is_fully_addressable:
        return jax.device_put(tree, where)

    def put(x):  # other processes' devices take host arrays only
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                put(jax.random.key_data(x)), impl=jax.random.key_impl(x)
            )
        return jax.device_put(jax.device_get(x), where)

    return jax.tree.map(put, tree)
