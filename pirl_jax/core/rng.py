"""Random keys by name: `named(key, "noise", iteration)`, not splits whose order means something.

Knows no use of a key.
"""

import zlib

import jax
import numpy as np


def named(key: jax.Array, *names: str | int | jax.Array) -> jax.Array:
    """The key that belongs to the path `names` below `key`.

    Strings, ints and traced integers are folded in one after the other: named(key, "a", 3) is
    named(named(key, "a"), 3).  The same names give the same key in every process and on every host.

    Raises: ValueError for an integer outside [0, 2**32).
    """
    for name in names:
        key = jax.random.fold_in(key, _number(name))
    return key


def generator(key: jax.Array) -> np.random.Generator:
    """numpy generator seeded by a key, for choices made on the host."""
    words = jax.device_get(jax.random.key_data(key))
    return np.random.default_rng(np.asarray(words))


def _number(name: str | int | jax.Array) -> jax.Array:
    if isinstance(name, str):
        # crc32 and not hash(): Python salts the hash of a string in every process.
        name = zlib.crc32(name.encode())
    if isinstance(name, int | np.integer):
        if not 0 <= name < 2**32:
            raise ValueError(f"a key name must be a string or an integer in [0, 2**32), not {name}")
        # Explicit: fold_in of a Python number is an implicit transfer, which the guard forbids.
        return jax.device_put(np.uint32(name))
    return name
