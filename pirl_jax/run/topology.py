"""Devices that programs can be compiled for and that do not exist here.

Knows how libtpu and the CUDA plugin are asked for them; refuses to know what is compiled.
"""

from collections.abc import Mapping
import importlib.util
import os

import jax
from jax.experimental import topologies

from pirl_jax.core import mesh as meshes
from pirl_jax.run import accelerators

# Read by libtpu when it is loaded.  No metadata server is asked, no host is looked for, and another
# process may have loaded it too.
TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
WHEELS = {"tpu": ("libtpu",), "cuda": ("jax_cuda12_plugin", "jax_cuda13_plugin")}
# Without a device nothing can be tried out, and XLA's Triton products need that.
CUDA_OPTIONS = {"xla_gpu_enable_triton_gemm": False}


def devices(target: accelerators.Target) -> list[jax.Device]:
    """Compile-only devices.  Call it before JAX has looked for real ones: there will be none.

    Raises:
      ValueError: the compiler's wheel is missing, or it knows no such slice.
    """
    require_wheel(target)
    for name, value in TPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # A plan is made on a laptop as on a machine whose devices are somebody's.
    jax.config.update("jax_platforms", "cpu")
    try:
        return _described(target).devices
    except jax.errors.JaxRuntimeError as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f"--target={target.text}: its compiler has no such slice ({first})"
        ) from error


def mesh(target: accelerators.Target, data: int, fsdp: int) -> jax.sharding.Mesh:
    """The devices of a target, as the recipe splits them."""
    return meshes.make_mesh(data, fsdp, devices(target))


def options(target: accelerators.Target) -> Mapping[str, bool]:
    """What its compiler is told."""
    return CUDA_OPTIONS if target.platform == "cuda" else {}


def missing_wheel(platform: str) -> str:
    """The package that compiles for a platform, where it is not installed; else ""."""
    names = WHEELS[platform]
    return "" if any(importlib.util.find_spec(name) for name in names) else names[0]


def require_wheel(target: accelerators.Target) -> None:
    """
    Raises:
      ValueError: what compiles for the target is not installed.
    """
    missing = missing_wheel(target.platform)
    if missing:
        raise ValueError(
            f"--target={target.text} is compiled by {missing.replace('_', '-')}, which is not "
            f'installed: pip install "pirl_jax[targets]"'
        )


def _described(target: accelerators.Target) -> topologies.TopologyDescription:
    if target.platform == "cuda":
        return topologies.get_topology_desc(
            platform="cuda",
            topology_name=target.name,
            topology=f"1x1x{target.count}",
            target_config=target.chip.gpu.text(target.chip),
        )
    axes = len(target.chip.shape.split("x"))
    sides = target.shape if target.count > 1 else (1,) * axes
    name = "x".join(str(side) for side in sides)
    return topologies.get_topology_desc(
        platform="tpu", topology_name=f"{target.name}:{name}", **_host_bounds(target, sides)
    )


def _host_bounds(
    target: accelerators.Target, sides: tuple[int, ...]
) -> dict[str, tuple[int, int, int]]:
    """How the chips of one host lie, where it is not libtpu's 2 x 2."""
    if target.count == 1:
        return {"chips_per_host_bounds": (1, 1, 1)}
    if len(sides) == 2 and target.hosts == 1:
        return {"chips_per_host_bounds": (*sides, 1)}
    return {}
