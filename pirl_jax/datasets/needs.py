"""The libraries of the extra `datasets`, imported when a file asks for them.  Knows no format."""

import importlib
import types

REMEDY = "pip install 'pirl_jax[datasets]'"


def library(name: str) -> types.ModuleType:
    """A module, such as pyarrow.parquet.

    Raises: ValueError where it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ValueError(
            f"sft.dataset needs the package {package}, which cannot be imported ({error}); {REMEDY}"
        ) from error
