"""The devices of this process: JAX's settings and the mesh."""

import logging
import pathlib

import jax

from pirl_jax.core import mesh as meshes
from pirl_jax.core import page, paths
from pirl_jax.envs import caches
from pirl_jax.run import config


def setup_jax(settings: config.Settings) -> None:
    """Persistent compilation cache: the second start of a run does not compile.

    Where it is not chosen and cannot be written, it is where other caches are then.

    Raises:
      ValueError: it cannot be written; JAX would say so at every function, and go on without.
    """
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
    """All devices, as the recipe splits them."""
    result = meshes.make_mesh(settings.raw.mesh.data, settings.raw.mesh.fsdp)
    config.check_batches(settings.raw, result.size, jax.process_count())
    meshes.local(result)  # whole parameters on every host, or an error
    return result
