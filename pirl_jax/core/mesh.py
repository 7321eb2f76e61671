"""The device mesh: its two axes, which logical axis lives on which, and how host arrays get there.

"data" splits the batch and keeps a copy of the parameters; "fsdp" splits batch and parameters.
Knows no model.

Several processes, one per host, share a mesh: updates run on all of it, and all processes must make
the same calls.  A rollout runs on the part that is a process's own, because no two of them decide
equally often, or on a smaller part of it.  Where parameters are split over hosts, each device of
that part has a copy of all of them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import contextvars
import math
import pickle
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from pirl_jax.core import torus

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


def rows_per_device(count: int) -> int:
    """Of so many rows of what is traced, those on each device of its program."""
    mesh = _TARGET.get()
    if mesh is None:
        return count
    settled = jax.sharding.get_abstract_mesh().manual_axes
    split = [size for axis, size in mesh.shape.items() if axis not in settled]
    return count // math.prod(split)


def by_rows(x: jax.Array, axis: int = 0) -> jax.Array:
    """x, whole rows of which (entries of `axis`) lie on each device of the program being traced.

    Where weights are split (fsdp), the partitioner would rather leave them so and split what is
    computed along their axes: every device would then send activations in every layer.  Said of
    the residual stream, it gathers weights.
    """
    return laid_out(x, PartitionSpec(*(None,) * axis, BATCH_AXES))


def whole(x: jax.Array) -> jax.Array:
    """x, all of which lies on each device of the program being traced, where weights are split."""
    return laid_out(x, PartitionSpec())


def laid_out(x: jax.Array, spec: PartitionSpec) -> jax.Array:
    """x, which lies so on the devices of the program being traced, where weights are split.

    Within `by_data` only what `spec` says of "fsdp" counts: the rest is settled there.
    """
    if not is_split():
        return x
    context = jax.sharding.get_abstract_mesh()
    settled = context.manual_axes
    mesh = context if settled else _TARGET.get()
    axes = [_without(axis, settled) for axis in spec]
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*axes)))


def _without(axis: str | tuple[str, ...] | None, settled: Iterable[str]) -> tuple[str, ...] | None:
    names = (axis,) if isinstance(axis, str) else axis or ()
    return tuple(name for name in names if name not in settled) or None


def by_data(function: Callable, mesh: Mesh, takes: tuple, gives: PartitionSpec | tuple) -> Callable:
    """`function`, computed by every place along "data" on its own part: nothing is exchanged there.

    Along "fsdp" the partitioner goes on as everywhere.  takes, gives: what of each argument and
    result is split along "data", PartitionSpec("data") (its first axis) or PartitionSpec() (not).
    """
    # Where "fsdp" splits nothing it is settled too: less for the partitioner to get wrong.
    axes = {"data"} if mesh.shape["fsdp"] > 1 else set(BATCH_AXES)
    return jax.shard_map(
        function, mesh=mesh, in_specs=takes, out_specs=gives, axis_names=axes, check_vma=False
    )


def drawn(draw: Callable[[int], jax.Array], rows: int) -> jax.Array:
    """draw(rows) [rows,...] of a random number generator; within `by_data`, the own part of what is
    drawn for the rows of all places, so that the numbers do not depend on the mesh."""
    if "data" not in jax.sharding.get_abstract_mesh().manual_axes:
        return draw(rows)
    place = jax.lax.axis_index("data")
    everyone = draw(rows * jax.lax.axis_size("data"))
    return jax.lax.dynamic_slice_in_dim(everyone, place * rows, rows)


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
    hosts = {(device.process_index, getattr(device, "slice_index", 0)) for device in devices}
    if len(hosts) == 1 and jax.process_count() == 1:
        return jax.make_mesh((data, fsdp), BATCH_AXES, axis_types=axis_types, devices=devices)
    # jax.make_mesh refuses devices of several machines, and on a TPU pod may lay a row over two of
    # them.
    ordered = np.array(torus.rows(devices, fsdp), dtype=object)
    return Mesh(ordered, BATCH_AXES, axis_types=axis_types)


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


def copies(devices: Iterable[jax.Device]) -> Mesh:
    """A mesh of which every device holds all parameters; in this order."""
    column = np.array([[device] for device in devices], dtype=object)
    return Mesh(column, BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def spans_hosts(mesh: Mesh) -> bool:
    """Whether parameters are split over several hosts, so that none has all of them."""
    host_of = np.array([device.process_index for device in mesh.devices.flat])
    hosts = host_of.reshape(mesh.devices.shape)
    return bool((hosts != hosts[:, :1]).any())


def local(mesh: Mesh) -> Mesh:
    """This process's own part of the mesh, its devices in the same order: whole rows of it.

    Where rows lie on several hosts (spans_hosts), the devices one by one, for copies of all
    parameters.  A process that compiles for several hosts is the first of them.
    """
    own = mesh.local_devices
    if spans_hosts(mesh):
        return copies(own)
    return mesh if len(own) == mesh.size else part(mesh, own)


def hosts(mesh: Mesh) -> int:
    """Processes that the devices belong to, each of which plays on its own; they need not exist."""
    return len({device.process_index for device in mesh.devices.flat})


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


def own_rows(x_B: np.ndarray, mesh: Mesh) -> np.ndarray:
    """Rows of a host array that holds those of all processes: the ones that this process put on the
    mesh (put_batch, join), in their order."""
    own = set(mesh.local_devices)
    is_own = np.array([device in own for device in mesh.devices.flat])
    return x_B[np.repeat(is_own, len(x_B) // mesh.size)]


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
