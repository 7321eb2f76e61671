"""One offscreen OpenGL context of the backend that MUJOCO_GL names, whoever imported mujoco first.

Refuses to know what is drawn.  Which backends and devices work here is the business of
`backends.py`.
"""

import importlib
import os
from typing import Any

from pirl_jax.envs.gl import backends


def create(width_px: int, height_px: int) -> Any:
    """A mujoco GLContext (`make_current`, `free`); the caller frees it.

    Raises:
        ValueError: MUJOCO_GL names a backend that needs a display.
    """
    backend = backends.wanted()
    if backend not in backends.BACKENDS:
        raise ValueError(
            f"MUJOCO_GL={os.environ['MUJOCO_GL']!r} cannot render without a display; choose egl or"
            " osmesa"
        )
    # mujoco.GLContext is what MUJOCO_GL said when mujoco was imported; a worker sets it later.
    module = importlib.import_module(f"mujoco.{backend}")
    return module.GLContext(width_px, height_px)
