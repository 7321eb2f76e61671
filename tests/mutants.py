"""Bytes that almost are what a reader expects."""

from collections.abc import Iterator

import numpy as np


def mutants(whole: bytes, count: int, generator: np.random.Generator, words=()) -> Iterator[bytes]:
    """Bytes changed, cut out, doubled, swapped for a word of the list or for others of the same."""
    for _ in range(count):
        data = bytearray(whole)
        for _ in range(generator.integers(1, 4)):
            at = int(generator.integers(len(data) + 1))
            length = int(generator.integers(1, 9))
            how = generator.integers(6)
            if how == 0:
                data[at : at + 1] = bytes([generator.integers(256)])
            elif how == 1:
                del data[at : at + length]
            elif how == 2:
                data[at:at] = data[at : at + length]
            elif how == 3:
                data[at : at + 1] = bytes([(int.from_bytes(data[at : at + 1]) ^ 1 << length) % 256])
            elif how == 4 and words:
                word = words[generator.integers(len(words))]
                data[at : at + len(word)] = word
            else:
                source = int(generator.integers(len(data) + 1))
                data[at : at + length] = data[source : source + length]
        yield bytes(data)
