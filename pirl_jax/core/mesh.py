"""The device mesh: its two axes, which logical axis lives on which, and how host arrays get there.

"data" splits the batch and keeps a copy of the parameters; "fsdp" splits batch and parameters.  Knows no model.
"""

import jax
from jax.experimental import multihost_utils
from jax.sharding import AxisType
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

BATCH_AXES = ("data", "fsdp")

# Logical axis -> mesh axis.  An axis that is absent is replicated.  One sharded axis per parameter is enough (ZeRO-3);
# which one follows the order of the parameter's axes: the first that divides takes "fsdp".
RULES = {"batch": BATCH_AXES, "embed": "fsdp", "mlp": "fsdp", "vocab": "fsdp", "heads": "fsdp"}


def make_mesh(data: int = -1, fsdp: int = 1, devices=None) -> Mesh:
    """Mesh of data x fsdp devices; data = -1 takes what is left.  `devices` defaults to all devices of all hosts."""
    devices = jax.devices() if devices is None else devices
    if fsdp < 1 or len(devices) % fsdp:
        raise ValueError(f"mesh fsdp={fsdp} does not divide the {len(devices)} devices; choose a divisor of it")
    data = len(devices) // fsdp if data == -1 else data
    if data * fsdp != len(devices):
        raise ValueError(
            f"mesh data={data} x fsdp={fsdp} needs {data * fsdp} devices but there are {len(devices)};"
            f" set data={len(devices) // fsdp}"
        )
    return jax.make_mesh((data, fsdp), BATCH_AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


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


def over_hosts(x: float) -> np.ndarray:
    """The number x of every process [P], float64.  All processes must call it together."""
    if jax.process_count() == 1:
        return np.array([x], np.float64)
    # As bytes, because JAX would round it to float32; the transfer is the purpose.
    with jax.transfer_guard("allow"):
        words_P2 = np.asarray(multihost_utils.process_allgather(np.float64([x]).view(np.uint32)))
    return np.ascontiguousarray(words_P2).view(np.float64)[:, 0]


def replicate(tree, mesh: Mesh):
    """A full copy of every array on every device; all processes must pass the same values."""
    return jax.device_put(tree, replicated(mesh))
