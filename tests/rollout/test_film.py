"""A film keeps what was seen at each decision, and forgets what is played again."""

import types

import numpy as np

from pirl_jax.rollout import film, stream


def turn(episodes, images, lost=()):
    step = types.SimpleNamespace(images=images)
    return types.SimpleNamespace(episode=np.array(episodes, int), step=step, lost=list(lost))


def test_shots_of_the_chosen_episodes_are_copies():
    results = [stream.Result(stream.Episode(0, s), reward=s, num_steps=3 * s) for s in range(3)]
    images = np.arange(2 * 2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 2, 4, 4, 3)
    taken = film.Film([2, 7])
    taken.see(turn([1, 2], images), results, np.array([0.5, np.nan]))
    seen = images[1, 0].copy()
    images[:] = 0  # the simulator goes on in the same memory
    (shot,) = taken.shots[2]
    np.testing.assert_array_equal(shot.frame, seen)
    assert (shot.step, shot.reward) == (6, 2.0) and np.isnan(shot.value)
    assert list(taken.shots) == [2, 7] and taken.shots[7] == []
    taken.see(turn([], images, lost=[0, 2]), results, np.array([]))
    assert taken.shots[2] == []
