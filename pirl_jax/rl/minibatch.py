"""Which rows go into which minibatch.  Indices only; the rows themselves stay where they are."""

from collections.abc import Sequence

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


def side_by_side(
    rng: np.random.Generator,
    parts: Sequence[np.ndarray],
    minibatch_size: int,
    *,
    multiple_of: int,
    most_rows: int,
) -> tuple[np.ndarray, np.ndarray]:
    """`split` of one epoch for rows in several places, each of which computes on its own.

    Args:
      parts: indices of the valid rows of each place.
      minibatch_size: of all places together, as are the B entries of the result; every
        `multiple_of` of them hold equally many of each place, in the order of the places.
      most_rows: rows of the place that has most of them.
    """
    indices = []
    keeps = []
    each = multiple_of // len(parts)
    for row_R in parts:
        size = minibatch_size // len(parts)
        index, keep = split(rng, row_R, size, multiple_of=each, most_rows=most_rows)
        indices.append(index.reshape(*index.shape[:2], -1, each))
        keeps.append(keep.reshape(*keep.shape[:2], -1, each))
    index = np.concatenate(indices, axis=-1)
    keep = np.concatenate(keeps, axis=-1)
    return index.reshape(*index.shape[:2], -1), keep.reshape(*keep.shape[:2], -1)
