"""The device mesh: its two axes, which logical axis lives on which, and how host arrays get there.

"data" splits the batch and keeps a copy of the parameters; "fsdp" splits batch and parameters.
Knows no model.

Several processes, one per host, share a mesh: updates run on all of it, and all processes must make
the same calls.  A rollout runs on the part that is a process's own, because no two of them decide
equally often, or on a smaller part of it.
"""

from collections.abc import Iterable, Iterator, Sequence
import contextlib
import contextvars
import pickle
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

BATCH_AXES = ("data", "fsdp")

# Logical axis -> mesh axis.  An axis that is absent is replicated.  One sharded axis per parameter
# is enough (ZeRO-3); which one follows the order of the parameter's axes: the first that divides
# takes "fsdp".
RULES = {"batch": BATCH_AXES, "embed": "fsdp", "mlp": "fsdp", "vocab": "fsdp", "heads": "fsdp"}

_TARGET: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("target", default=None)


@contextlib.contextmanager
def target(mesh: Mesh | None) -> Iterator[None]:
    """What is traced within (or by the function that this decorates) will run on `mesh`.

    Its devices need not be this process's: a program may be compiled for others.  None: the
    default device.
    """
    token = _TARGET.set(mesh)
    try:
        yield
    finally:
        _TARGET.reset(token)


def platform() -> str:
    """Of the devices that the program being traced will run on: "cpu", "tpu" or "gpu"."""
    mesh = _TARGET.get()
    name = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    return "gpu" if name in ("cuda", "rocm") else name


def is_split() -> bool:
    """Whether the program being traced has its weights in parts."""
    mesh = _TARGET.get()
    return mesh is not None and mesh.shape["fsdp"] > 1


def by_rows(x: jax.Array) -> jax.Array:
    """x, whole rows of which lie on each device of the program being traced.

    Where weights are split (fsdp), the partitioner would rather leave them so and split what is
    computed along their axes: every device would then send activations in every layer.  Said of
    the residual stream, it gathers weights.
    """
    if not is_split():
        return x
    return jax.lax.with_sharding_constraint(x, batch_sharding(_TARGET.get()))


def whole(x: jax.Array) -> jax.Array:
    """x, all of which lies on each device of the program being traced, where weights are split."""
    if not is_split():
        return x
    return jax.lax.with_sharding_constraint(x, replicated(_TARGET.get()))


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh of data x fsdp devices; data = -1 takes what is left.

    `devices` defaults to all devices of all hosts.

    Raises: ValueError when the two do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if fsdp < 1 or len(devices) % fsdp:
        raise ValueError(
            f"mesh.fsdp={fsdp} does not divide the {len(devices)} devices; choose a divisor of it"
        )
    data = len(devices) // fsdp if data == -1 else data
    if data * fsdp != len(devices):
        raise ValueError(
            f"mesh.data={data} x mesh.fsdp={fsdp} needs {data * fsdp} devices"
            f" but there are {len(devices)}; set mesh.data={len(devices) // fsdp}"
        )
    axis_types = (AxisType.Auto,) * 2
    if jax.process_count() == 1:
        return jax.make_mesh((data, fsdp), BATCH_AXES, axis_types=axis_types, devices=devices)
    # jax.make_mesh refuses devices of several machines, and on a TPU pod may lay a row over two of
    # them.
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices).reshape(data, fsdp), BATCH_AXES, axis_types=axis_types)


def part(mesh: Mesh, devices: Iterable[jax.Device]) -> Mesh | None:
    """The part of the mesh that these devices are: some rows of it, so that whole parameters lie
    in it.  None: they are no whole rows of it."""
    wanted = set(devices)
    is_inside = np.array([wanted.issuperset(row) for row in mesh.devices])
    if is_inside.sum() * mesh.shape["fsdp"] != len(wanted):
        return None
    if is_inside.all():
        return mesh
    return Mesh(mesh.devices[is_inside], mesh.axis_names, axis_types=mesh.axis_types)


def local(mesh: Mesh) -> Mesh:
    """This process's own part of the mesh.

    Raises: ValueError when a row of the mesh lies on several hosts.
    """
    if jax.process_count() == 1:
        return mesh
    own = part(mesh, mesh.local_devices)
    if own is None:
        fsdp = mesh.shape["fsdp"]
        raise ValueError(
            f"mesh.fsdp={fsdp} reaches over more than one host of"
            f" {len(mesh.local_devices)} devices, but each plays with whole parameters"
            f" of its own; choose a divisor of {len(mesh.local_devices)}"
        )
    return own


def view(params: Any, part: Mesh) -> Any:
    """Parameters (or their shapes) of a whole mesh as arrays of a part of it.

    Nothing is copied, so they live only as long as the originals: an update that is given those
    takes them away.
    """
    devices = set(part.devices.flat)

    def on_part(x: jax.Array | jax.ShapeDtypeStruct) -> jax.Array | jax.ShapeDtypeStruct:
        if x.sharding.device_set == devices:
            return x
        sharding = NamedSharding(part, x.sharding.spec)
        if isinstance(x, jax.ShapeDtypeStruct):
            return x.update(sharding=sharding)
        shards = [shard.data for shard in x.addressable_shards if shard.device in devices]
        return _assembled(x.shape, sharding, shards)

    return jax.tree.map(on_part, params)


def join(tree: Any, mesh: Mesh) -> Any:
    """One batch over the whole mesh out of those that lie on the processes' own parts of it.

    Each process passes as many rows.
    """
    if local(mesh) is mesh:
        return tree
    sharding = batch_sharding(mesh)

    def whole(x: jax.Array) -> jax.Array:
        rows = x.shape[0] * jax.process_count()
        shards = [shard.data for shard in x.addressable_shards]
        return _assembled((rows, *x.shape[1:]), sharding, shards)

    return jax.tree.map(whole, tree)


def _assembled(
    shape: tuple[int, ...], sharding: NamedSharding, shards: list[jax.Array]
) -> jax.Array:
    """The same shards seen as (part of) another array; nothing is copied."""
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis over all devices, the rest replicated."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(tree: Any, mesh: Mesh) -> Any:
    """Host arrays [B,...] -> global arrays sharded over their rows.

    Every process passes as many rows of its own.

    Raises: ValueError when the rows do not divide over this process's devices.
    """
    sharding = batch_sharding(mesh)
    local_devices = len(mesh.local_devices)

    def put(x: np.ndarray) -> jax.Array:
        x = np.asarray(x)
        if x.shape[0] % local_devices:
            raise ValueError(
                f"a batch of {x.shape[0]} rows does not divide over {local_devices} devices;"
                f" use a multiple of {local_devices}"
            )
        return jax.make_array_from_process_local_data(sharding, x)

    with jax.transfer_guard("allow"):  # with several processes JAX takes this one for implicit
        return jax.tree.map(put, tree)


def gather(item: Any) -> list:
    """The item of every process, whatever it is, in their order.

    All processes must call it together.
    """
    if jax.process_count() == 1:
        return [item]
    data = np.frombuffer(pickle.dumps(item), np.uint8)
    with jax.transfer_guard("allow"):  # the transfer is the purpose
        lengths = multihost_utils.process_allgather(np.int32(len(data)))
        lengths = np.asarray(lengths).reshape(-1)
        # A power of two, because every length is a program of its own.
        room = 1 << int(lengths.max() - 1).bit_length()
        padded = np.pad(data, (0, room - len(data)))
        messages = np.asarray(multihost_utils.process_allgather(padded))
    items = []
    for message, length in zip(messages, lengths, strict=True):
        items.append(pickle.loads(message[:length].tobytes()))
    return items


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A full copy of every array on every device; all processes must pass the same values."""
    sharding = replicated(mesh)
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def put(x: jax.Array) -> jax.Array:  # other processes' devices take host arrays only
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            words = put(jax.random.key_data(x))
            return jax.random.wrap_key_data(words, impl=jax.random.key_impl(x))
        return jax.device_put(jax.device_get(x), sharding)

    return jax.tree.map(put, tree)
