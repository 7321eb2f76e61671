"""Environments of somebody's own, named as MODULE:CLASS.

The class keeps the contract of base.py, and is called with `image_size_px`.  Refuses to know what
it simulates; numpy only, as all of envs/.
"""

from collections.abc import Callable
import functools
import importlib
import inspect
import os

from pirl_jax.envs import base

PARTS = ("reset", "step_chunk", "close")  # of the contract, beside `spec`


def is_class(suite: str) -> bool:
    """Whether the name of a suite is that of such a class; a text with a slash is a path."""
    return ":" in suite and os.sep not in suite


def factory(suite: str, image_size_px: int) -> Callable[[], base.Env]:
    """Picklable constructor of one simulator.

    Raises:
      ValueError: one sentence, where there is no such class or it breaks the contract.
    """
    module_name, _, class_name = suite.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # One that the module asks for itself is another matter.
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            f"env.suite={suite}: no module {module_name} is found; start in its folder with"
            " python -m pirl_jax, or name the folder in PYTHONPATH"
        ) from error
    found = getattr(module, class_name, None)
    if not inspect.isclass(found):
        raise ValueError(f"env.suite={suite}: {module.__file__} has no class {class_name}")
    lacking = [part for part in PARTS if not callable(getattr(found, part, None))]
    if lacking:
        raise ValueError(
            f"env.suite={suite} lacks {' and '.join(lacking)}; see pirl_jax/envs/base.py"
        )
    return functools.partial(found, image_size_px=image_size_px)
