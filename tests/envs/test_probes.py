"""The probes: rewards, lengths and observations are what their docstrings say."""

import numpy as np
import pytest

from pirl_jax.envs import probes

CHUNK = np.full((5, 7), 0.5, np.float32)


def episode(name, init_state=0, actions_Ia=CHUNK):
    env = probes.make(name, image_size_px=4)
    steps = [env.reset(0, init_state)]
    while not steps[-1].terminated:
        steps.append(env.step_chunk(actions_Ia))
    return steps


@pytest.mark.parametrize(
    "name, init_state, rewards",
    [
        ("constant", 0, [1.0]),
        ("observed", 0, [-1.0]),
        ("observed", 1, [1.0]),
        ("delayed", 0, [0.0, 1.0]),
        ("action", 0, [0.5]),
        ("conditioned", 0, [-0.5]),
        ("conditioned", 1, [0.5]),
    ],
)
def test_rewards(name, init_state, rewards):
    first, *rest = episode(name, init_state)
    assert (first.reward, first.num_steps) == (0.0, 0)
    assert [step.reward for step in rest] == rewards
    assert all(step.num_steps == 5 and not step.truncated for step in rest)


@pytest.mark.parametrize(
    "name, init_state, sign", [("observed", 0, -1), ("observed", 1, 1), ("delayed", 0, -1)]
)
def test_sign_is_in_every_pixel_and_state_entry(name, init_state, sign):
    first = episode(name, init_state)[0]
    assert first.images.shape == (2, 4, 4, 3) and first.images.dtype == np.uint8
    assert (first.images == (255 if sign > 0 else 0)).all()
    assert first.state.dtype == np.float32 and (first.state == sign).all()


def test_delayed_shows_which_decision_it_is():
    first, second, _ = episode("delayed")
    assert (first.state == -1).all()
    assert (second.state == 1).all()


@pytest.mark.parametrize("name", probes.PROBES)
def test_spec_and_diagnosis(name):
    env = probes.make(name, image_size_px=4, chunk=10)
    assert env.spec.suite == f"probe_{name}"
    assert env.spec.max_episode_steps == 10 * env.decisions
    assert env.broken_part
    assert env.spec.num_tasks == 1


def test_actions_are_clipped_and_frames_come_on_request():
    env = probes.make("action", image_size_px=4)
    env.reset(0, 0)
    step = env.step_chunk(np.full((3, 7), 9.0), record=True)
    assert step.reward == 1.0
    assert len(step.frames) == 3 and step.frames[0].shape == (4, 4, 3)


def test_wrong_names():
    with pytest.raises(ValueError, match="probe 'x' does not exist; choose one of: constant"):
        probes.make("x")
    env = probes.make("constant")
    with pytest.raises(ValueError, match="task 1"):
        env.reset(1, 0)
    with pytest.raises(ValueError, match="init state 1"):
        env.reset(0, 1)
    with pytest.raises(RuntimeError, match="reset"):
        env.step_chunk(CHUNK)
