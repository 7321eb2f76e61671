"""The expert inside the simulator: chunks of the length asked for, actions of its own."""

import functools
import pickle

import numpy as np

from pirl_jax.envs import probes, scripted


class Env(probes.Probe):
    """Ten control steps; reward of a step is its action."""

    name, decisions = "ten", 10

    def reward(self, sign, action, decision):
        return action


def expert(env):
    """0.0, 0.1, 0.2, ... from the start of the episode."""
    count = iter(range(100))
    return lambda: np.full(7, 0.1 * next(count))


def make():
    return Env(image_size_px=4, chunk=1)


def test_a_chunk_asks_the_expert_before_every_step():
    env = scripted.make(make, expert)
    for _ in range(2):  # an episode starts its expert anew
        env.reset(0, 0)
        ignored = np.full((4, 7), 0.9)
        steps = [env.step_chunk(ignored, record=k == 1) for k in range(3)]
        np.testing.assert_allclose([step.reward for step in steps], [0.6, 2.2, 1.7], atol=1e-6)
        assert [step.num_steps for step in steps] == [4, 4, 2], "the last chunk ends with the episode"
        assert [step.terminated for step in steps] == [False, False, True]
        assert [step.frames and len(step.frames) for step in steps] == [None, 4, None]


def test_the_factory_can_be_sent_to_a_worker():
    factory = pickle.loads(pickle.dumps(functools.partial(scripted.make, make, expert)))
    assert factory().spec == make().spec
