"""Which rows go into which minibatch.  Indices only; the rows themselves stay where they are."""

import numpy as np


def count(num_rows: int, minibatch_size: int) -> int:
    """Minibatches of one epoch; at least 1."""
    return max(1, -(-num_rows // minibatch_size))


def split(
    rng: np.random.Generator,
    row_R: np.ndarray,
    minibatch_size: int,
    epochs: int = 1,
    multiple_of: int | None = None,
    most_rows: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Shuffle the given rows for every epoch and deal them into minibatches of near-equal size.

    Every row appears exactly once per epoch.  Near-equal dealing spreads the padding instead of
    leaving one tiny last minibatch.  Padding comes last in each minibatch.

    Args:
      rng: the only source of randomness.
      row_R: indices of the valid rows.
      minibatch_size: most rows of one minibatch.
      multiple_of: pad minibatches to the smallest multiple of this that holds them; default
        minibatch_size.
      most_rows: rows of the host that has most of them, so that all hosts of a mesh get equally
        many minibatches of the same size; default R.

    Returns: index [epochs,M,B] int32, keep [epochs,M,B] float32: 0 where the entry is padding (its
    index is a row that exists, 0 if there is none).

    Raises: ValueError for a minibatch_size below 1.
    """
    row_R = np.asarray(row_R, np.int32)
    if minibatch_size < 1:
        raise ValueError(f"minibatch_size is {minibatch_size}; it must be at least 1")
    most_rows = len(row_R) if most_rows is None else most_rows
    multiple_of = multiple_of or minibatch_size
    num_minibatches = count(most_rows, minibatch_size)
    largest = count(most_rows, num_minibatches)
    padded = count(largest, multiple_of) * multiple_of

    # The first row that exists: what a padded entry points at is computed, and must be finite.
    padding = row_R[0] if len(row_R) else 0
    index = np.full((epochs, num_minibatches, padded), padding, np.int32)
    keep = np.zeros(index.shape, np.float32)
    for epoch in range(epochs):
        parts = np.array_split(rng.permutation(row_R), num_minibatches)
        for minibatch, part in enumerate(parts):
            index[epoch, minibatch, : len(part)] = part
            keep[epoch, minibatch, : len(part)] = 1.0
    return index, keep
