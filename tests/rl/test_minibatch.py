import numpy as np
import pytest

from pirl_jax.rl import minibatch


@pytest.mark.parametrize("num_rows, size", [(10, 4), (8, 4), (3, 4), (1, 1), (37, 8)])
def test_every_row_once_per_epoch(num_rows, size):
    rows = np.arange(num_rows) * 3 + 1
    index, keep = minibatch.split(np.random.default_rng(0), rows, size, epochs=3)
    assert index.shape == keep.shape == (3, minibatch.count(num_rows, size), size)
    for epoch in range(3):
        assert sorted(index[epoch][keep[epoch] == 1]) == list(rows)
    assert np.isin(index, rows).all()  # padding points at a row that exists
    per_minibatch = keep.sum(-1)
    assert per_minibatch.max() - per_minibatch.min() <= 1


def test_reshuffled_every_epoch_and_reproducible():
    index, _ = minibatch.split(np.random.default_rng(1), np.arange(64), 16, epochs=2)
    again, _ = minibatch.split(np.random.default_rng(1), np.arange(64), 16, epochs=2)
    assert (index[0] != index[1]).any()
    np.testing.assert_array_equal(index, again)
    assert {frozenset(m) for m in index[0]} != {frozenset(m) for m in index[1]}  # new minibatches, not a new order


def test_a_host_with_fewer_rows_keeps_step():
    index, keep = minibatch.split(np.random.default_rng(0), np.array([], int), 4, num_minibatches=3)
    assert index.shape == (1, 3, 4) and keep.sum() == 0 and (index == 0).all()
    _, keep = minibatch.split(np.random.default_rng(0), np.arange(5), 4, num_minibatches=5)
    assert keep.sum(-1).tolist() == [[1, 1, 1, 1, 1]]


def test_errors_name_the_remedy():
    with pytest.raises(ValueError, match="9 rows do not fit into 2 minibatches of 4; use at least 3"):
        minibatch.split(np.random.default_rng(0), np.arange(9), 4, num_minibatches=2)
    with pytest.raises(ValueError, match="minibatch_size is 0"):
        minibatch.split(np.random.default_rng(0), np.arange(9), 0)
