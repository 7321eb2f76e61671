"""Successes of earlier rollouts come back whole, from where they should, or not at all."""

import jax
import numpy as np
import pytest

from pirl_jax.core import endings, types
from pirl_jax.learner import objective, replay

H, A = 3, 2


def rollout(iteration, successes, failures=2, *, is_term=False):
    """Rows whose numbers name their iteration; the failed ones come first."""
    count = failures + successes
    name = np.arange(count) + 100.0 * (iteration + 1)
    column = name[:, None].astype(np.float32)
    context = []
    for i in range(count):
        obs = types.Observation(
            images=np.full((1, 2, 2, 3), i, np.uint8),
            image_mask=np.ones(1, bool),
            state=column[i],
            tokens=np.full(4, iteration, np.int32),
            token_mask=np.arange(4) < 2,
        )
        context.append(obs)
    actions = np.broadcast_to(column[..., None], (count, H, A)).copy()
    step = actions[:, None]
    chain = types.Chain(
        x=step,
        x_next=step,
        j=np.ones((count, 1), np.int32),
        level=column[:, 0],
        log_prob=actions,
        value=column[:, 0],
        actions=actions,
    )
    success = np.arange(count) >= failures
    weight = (success * 0.5 * (iteration + 1)).astype(np.float32)
    one = np.ones(count, np.float32)
    if is_term:
        return objective.Minibatch(context, chain, one, one, one, weight)
    return objective.Minibatch(context, chain, one, one, weight)


def names(data):
    """Of rows, by three things that must belong together."""
    states = [int(obs.state[0]) for obs in data.context]
    assert states == data.chain.actions[:, 0, 0].astype(int).tolist()
    assert [state // 100 - 1 for state in states] == [obs.tokens[0] for obs in data.context]
    return states


def extend(folder, iteration, successes, rollouts=0, **how):
    generator = np.random.default_rng(iteration)
    data = rollout(iteration, successes, **how)
    return replay.Replay(folder, rollouts).extended(data, iteration, generator)


def test_as_many_as_there_are_new_ones_come_back_each_once(tmp_path):
    assert names(extend(tmp_path, 0, 3)) == [100, 101, 102, 103, 104]
    second = names(extend(tmp_path, 1, 2))
    assert second[:4] == [200, 201, 202, 203] and len(set(second)) == 6
    assert set(second[4:]) < {102, 103, 104}, "failures are never kept"
    third = extend(tmp_path, 2, 50)
    assert set(names(third)[52:]) == {102, 103, 104, 202, 203}, "no more than there are"
    np.testing.assert_array_equal(third.weight[:2], 0)
    np.testing.assert_array_equal(third.weight[52:], [0.5, 0.5, 0.5, 1.0, 1.0])
    np.testing.assert_array_equal(third.advantage[52:], 0)
    assert not third.chain.x[52:].any() and third.context[52].images.dtype == np.uint8


def test_beside_another_loss_they_weigh_nothing_there(tmp_path):
    extend(tmp_path, 0, 3, is_term=True)
    data = extend(tmp_path, 1, 3, is_term=True)
    np.testing.assert_array_equal(data.weight, [1] * 5 + [0] * 3)
    np.testing.assert_array_equal(data.clone_weight, [0, 0, 1, 1, 1, 0.5, 0.5, 0.5])
    assert objective.exists(data).tolist() == [True] * 8


def test_the_newest_rollouts_alone(tmp_path):
    for iteration in range(3):
        extend(tmp_path, iteration, 4, rollouts=2)
    assert set(names(extend(tmp_path, 3, 4, rollouts=2))[6:]) == {302, 303, 304, 305}


@pytest.mark.parametrize("empty", [0, 1])
def test_a_rollout_without_successes(tmp_path, empty):
    """Nothing to keep, or nothing to draw; the next one goes on."""
    counts = [3, 3]
    counts[empty] = 0
    for iteration, count in enumerate(counts):
        data = extend(tmp_path, iteration, count)
        assert len(data.weight) == 2 + count
    assert len(names(extend(tmp_path, 2, 5))) == 7 + 3


def test_what_is_played_again_is_kept_again_and_draws_the_same(tmp_path):
    def run(directory, iterations):
        return [extend(directory, iteration, 3 + iteration) for iteration in iterations]

    whole = run(tmp_path / "whole", range(4))
    run(tmp_path / "half", range(3))
    (tmp_path / "half" / "3.0.unfinished").mkdir()  # it was killed there
    resumed = run(tmp_path / "half", (2, 3))
    for data, expected in zip(resumed, whole[2:], strict=True):
        jax.tree.map(np.testing.assert_array_equal, data, expected)


@pytest.mark.parametrize("harm", ["missing", "cut", "no array", "pickled"])
def test_what_is_damaged_is_named(tmp_path, harm):
    extend(tmp_path, 0, 3)
    path = tmp_path / "0.0" / "actions.npy"
    whole = path.read_bytes()
    if harm == "pickled":
        np.save(path, np.array([{}], object), allow_pickle=True)
    else:
        path.write_bytes({"missing": b"", "cut": whole[:-8], "no array": b"x" * 200}[harm])
    if harm == "missing":
        path.unlink()
    with pytest.raises(endings.Failure) as error:
        extend(tmp_path, 1, 3)
    assert str(path.parent) in str(error.value)
    assert "go on with algorithm.clone_rollouts=1" in str(error.value)
    assert "\n" not in str(error.value)
