"""The devices of this process: JAX's settings and the mesh."""

from collections.abc import Iterator
import logging
import pathlib
import sys

import jax

from pirl_jax.core import mesh as meshes
from pirl_jax.core import page, paths, placement
from pirl_jax.envs import caches
from pirl_jax.run import config, gpus


def setup_jax(settings: config.Settings) -> None:
    """What JAX must know before it starts: the GPUs that are its own, where compiled programs are.

    Persistent compilation cache: the second start of a run does not compile.  Where it is not
    chosen and cannot be written, it is where other caches are then.

    Raises:
      ValueError: it cannot be written; JAX would say so at every function, and go on without.  Or
        the placement names a GPU that is not here.
    """
    for sentence in gpus.prepare(settings):
        print(f"note: {sentence}", file=sys.stderr)
    folder = settings.raw.run.compilation_cache
    is_default = folder == str(paths.absolute(page.Run.compilation_cache))
    if is_default and not caches.can_write(pathlib.Path(folder)):
        folder = str(caches.folder("compiled"))
        text = "run.compilation_cache cannot be written in the home folder and is %s"
        logging.getLogger(__name__).warning(text, folder)
    if folder:
        paths.require_writable(pathlib.Path(folder), "run.compilation_cache")
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def mesh(settings: config.Settings) -> jax.sharding.Mesh:
    """The devices that learn, as the recipe splits them.

    Raises:
      ValueError: one sentence: they are not here, or batches do not divide over them or over those
        that play.
    """
    raw = settings.raw
    found = roles(settings)
    chosen = () if raw.placement.actor == placement.ALL else (_chosen(found.actor),)
    result = meshes.make_mesh(raw.mesh.data, raw.mesh.fsdp, *chosen)
    plays = playing(settings, result)
    config.check_batches(raw, result.size, jax.process_count(), plays.size)
    return result


def roles(settings: config.Settings) -> placement.Placement:
    """Which devices of a host do what.

    Raises:
      ValueError: one sentence that names the key of the placement.
    """
    section = settings.raw.placement
    return placement.of_page(section.env, section.rollout, section.actor, _count())


def _count() -> int:
    """Devices of a host, with GPUs that JAX does not open (run/gpus.py)."""
    return max(_numbers()) + 1


def _numbers() -> list[int]:
    """Of this host's devices, in their order."""
    opened = jax.config.values["jax_cuda_visible_devices"]
    if opened == "all" or meshes.platform() != "gpu":
        return list(range(jax.local_device_count()))
    return [int(number) for number in opened.split(",")]


def remarks(settings: config.Settings) -> Iterator[str]:
    """What somebody may not have meant by the placement."""
    takes_turns = not settings.raw.rollout.max_staleness
    return roles(settings).remarks(_count(), takes_turns)


def playing(settings: config.Settings, mesh: jax.sharding.Mesh) -> jax.sharding.Mesh:
    """The devices of this host that play.

    Where they are whole rows of the learner's mesh, that part of it; else a mesh with a whole copy
    of the parameters on every device, so that no decision waits for another device.
    """
    found = roles(settings)
    if found.mode == "shared":
        return meshes.local(mesh)
    own = _chosen(found.rollout, jax.process_index())
    return meshes.part(mesh, own) or meshes.copies(own)


def acting(settings: config.Settings) -> jax.sharding.Mesh:
    """The devices that play where nothing learns, parameters laid out as a recipe says.

    Raises:
      ValueError: as `mesh`.
    """
    found = roles(settings)
    if found.mode == "shared":
        return mesh(settings)
    mesh(settings)  # or an error
    return meshes.copies(_chosen(found.rollout))


def _chosen(numbers: tuple[int, ...], process: int | None = None) -> list[jax.Device]:
    """Devices by their numbers on a host; of one host, or of all."""
    chosen = []
    for host in range(jax.process_count()) if process is None else (process,):
        of_host = sorted(jax.local_devices(host), key=lambda device: device.id)
        by_number = dict(zip(_numbers(), of_host, strict=True))
        chosen += [by_number[number] for number in numbers]
    return chosen
