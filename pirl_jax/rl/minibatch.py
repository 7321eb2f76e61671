"""Which rows go into which minibatch.  Indices only; the rows themselves stay where they are."""

import numpy as np


def count(num_rows, minibatch_size):
    """Minibatches of one epoch; at least 1."""
    return max(1, -(-num_rows // minibatch_size))


def split(rng, row_R, minibatch_size, epochs=1, num_minibatches=None):
    """Shuffle the given rows anew for every epoch and deal them into minibatches of near-equal size.

    Every row appears exactly once per epoch.  Minibatches are padded to minibatch_size, so that one compiled step serves
    all of them; near-equal dealing spreads the padding instead of leaving one tiny last minibatch.

    Args:
      rng: numpy.random.Generator; the only source of randomness.
      row_R: indices of the valid rows.
      num_minibatches: minibatches per epoch, default count(R, minibatch_size).  Hosts of one mesh pass their maximum.

    Returns: index [epochs, M, B] int32, keep [epochs, M, B] float32: 0 where the entry is padding (its index is a row
    that exists, 0 if there is none).
    """
    row_R = np.asarray(row_R, np.int32)
    if minibatch_size < 1:
        raise ValueError(f"minibatch_size is {minibatch_size}; it must be at least 1")
    num_minibatches = count(len(row_R), minibatch_size) if num_minibatches is None else num_minibatches
    if len(row_R) > num_minibatches * minibatch_size:
        raise ValueError(
            f"{len(row_R)} rows do not fit into {num_minibatches} minibatches of {minibatch_size};"
            f" use at least {count(len(row_R), minibatch_size)} minibatches"
        )
    shape = (epochs, num_minibatches, minibatch_size)
    index = np.full(shape, row_R[0] if len(row_R) else 0, np.int32)
    keep = np.zeros(shape, np.float32)
    for epoch in range(epochs):
        for m, part in enumerate(np.array_split(rng.permutation(row_R), num_minibatches)):
            index[epoch, m, : len(part)] = part
            keep[epoch, m, : len(part)] = 1.0
    return index, keep
