"""Random keys by name: `named(key, "noise", iteration)` instead of a chain of splits whose order means something."""

import zlib

import jax
import numpy as np


def named(key: jax.Array, *names: str | int) -> jax.Array:
    """The key that belongs to the path `names` below `key`.

    Strings, ints and traced integers are folded in one after the other: named(key, "a", 3) is
    named(named(key, "a"), 3).  The same names give the same key in every process and on every host.
    """
    for name in names:
        key = jax.random.fold_in(key, _number(name))
    return key


def generator(key: jax.Array) -> np.random.Generator:
    """numpy generator seeded by a key, for choices made on the host."""
    return np.random.default_rng(np.asarray(jax.device_get(jax.random.key_data(key))))


def _number(name):
    if isinstance(name, str):
        # crc32 and not hash(): Python salts the hash of a string in every process.
        name = zlib.crc32(name.encode())
    if isinstance(name, (int, np.integer)):
        if not 0 <= name < 2**32:
            raise ValueError(f"a key name must be a string or an integer in [0, 2**32), not {name}")
        # Explicit transfer: fold_in of a Python number would be an implicit one, which the transfer guard forbids.
        return jax.device_put(np.uint32(name))
    return name
