"""The files in which LIBERO-PRO keeps start states: an archive of numpy's with one array, `states`.

Reads such an array and nothing else, pickles least of all.
"""

import math
import pathlib
import zipfile
import zlib

import numpy as np


def read(path: pathlib.Path, shape: tuple[int, ...]) -> np.ndarray:
    """The array, which must have this shape: that of the task perturbed.

    Raises:
        ValueError: it is not there, or not such an array.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open("states.npy") as member:
            # Read by hand, so that a header alone cannot ask for memory.
            version = np.lib.format.read_magic(member)
            header = np.lib.format.read_array_header_1_0(member)
            if version != (1, 0) or header != (shape, False, np.dtype(np.float64)):
                raise ValueError(f"states are {header}, not a C array of {shape} float64")
            content = member.read(8 * math.prod(shape) + 1)
        states = np.frombuffer(content, np.float64).reshape(shape)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} holds no start states ({error}); fetch the data again") from error
    if not np.isfinite(states).all():
        raise ValueError(f"{path} holds start states that are not finite; fetch the data again")
    return states
