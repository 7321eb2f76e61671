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
    assert {frozenset(m) for m in index[0]} != {
        frozenset(m) for m in index[1]
    }  # new minibatches, not a new order


def test_padding_is_cut_to_the_multiple():
    index, keep = minibatch.split(np.random.default_rng(0), np.arange(21), 16, multiple_of=4)
    assert index.shape == (1, 2, 12)  # 11 and 10 rows
    assert (np.diff(keep, axis=-1) <= 0).all()  # padding comes last


def test_hosts_with_different_numbers_of_rows_keep_step():
    shapes = set()
    for rows in (0, 5, 9):
        index, keep = minibatch.split(
            np.random.default_rng(0), np.arange(rows), 4, multiple_of=2, most_rows=9
        )
        shapes.add(index.shape)
        assert keep.sum() == rows
    assert shapes == {(1, 3, 4)}


def test_minibatch_size_must_be_positive():
    with pytest.raises(ValueError, match="minibatch_size is 0"):
        minibatch.split(np.random.default_rng(0), np.arange(9), 0)


def test_places_deal_their_own_rows_into_the_same_minibatches():
    parts = [np.arange(13), np.arange(100, 120), np.arange(200, 203)]
    index, keep = minibatch.side_by_side(
        np.random.default_rng(0), parts, 24, multiple_of=6, most_rows=20
    )
    assert index.shape == keep.shape == (1, 3, 24)
    for number, part in enumerate(parts):
        own = index.reshape(3, 4, 3, 2)[:, :, number]
        kept = keep.reshape(3, 4, 3, 2)[:, :, number] > 0
        assert (own // 100 == number).all() and sorted(own[kept]) == part.tolist()
    alone = minibatch.side_by_side(
        np.random.default_rng(0), parts[1:2], 8, multiple_of=4, most_rows=20
    )
    same = minibatch.split(np.random.default_rng(0), parts[1], 8, multiple_of=4, most_rows=20)
    np.testing.assert_array_equal(alone, same)
