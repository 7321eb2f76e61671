"""Which rows go into which minibatch.  Indices only; the rows themselves stay where they are."""

import numpy as np


def count(num_rows, minibatch_size):
    """Minibatches of one epoch; at least 1."""
    return max(1, -(-num_rows // minibatch_size))


def split(rng, row_R, minibatch_size, epochs=1, multiple_of=None, most_rows=None):
    """Shuffle the given rows anew for every epoch and deal them into minibatches of near-equal size.

    Every row appears exactly once per epoch.  Near-equal dealing spreads the padding instead of leaving one tiny last
    minibatch.  Padding comes last in each minibatch.

    Args:
      rng: numpy.random.Generator; the only source of randomness.
      row_R: indices of the valid rows.
      minibatch_size: most rows of one minibatch.
      multiple_of: pad minibatches to the smallest multiple of this that holds them; default minibatch_size.
      most_rows: rows of the host that has most of them, so that all hosts of a mesh get equally many minibatches of
        the same size; default R.

    Returns: index [epochs, M, B] int32, keep [epochs, M, B] float32: 0 where the entry is padding (its index is a row
    that exists, 0 if there is none).
    """
    row_R = np.asarray(row_R, np.int32)
    if minibatch_size < 1:
        raise ValueError(f"minibatch_size is {minibatch_size}; it must be at least 1")
    most_rows = len(row_R) if most_rows is None else most_rows
    num_minibatches = count(most_rows, minibatch_size)
    padded = count(count(most_rows, num_minibatches), multiple_of or minibatch_size) * (
        multiple_of or minibatch_size
    )
    index = np.full((epochs, num_minibatches, padded), row_R[0] if len(row_R) else 0, np.int32)
    keep = np.zeros(index.shape, np.float32)
    for epoch in range(epochs):
        for m, part in enumerate(np.array_split(rng.permutation(row_R), num_minibatches)):
            index[epoch, m, : len(part)] = part
            keep[epoch, m, : len(part)] = 1.0
    return index, keep
