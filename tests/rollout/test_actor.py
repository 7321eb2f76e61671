"""What an actor refuses to hand on: actions that no working policy chooses."""

import types

import numpy as np
import pytest

from pirl_jax.core import endings
from pirl_jax.policy import normalize, observation
from pirl_jax.rollout import actor as actors

TRANSFORM = observation.Transform(
    tokenizer=None,
    stats=normalize.identity(state_dim=8, action_dim=7),
    norm_mode="zscore",
    delta_actions=False,
    discrete_state=False,
    image_size_px=4,
    resize="host",
    max_token_len=4,
    action_dim=8,
    env_action_dim=7,
)


def decoded(actions_BHA):
    """Slots 0 and 2 of a batch of 3; chunks of 2 of 4 actions, 7 of 8 entries."""
    actor = actors.Actor(TRANSFORM, ("push",), 2, explore=None, exploit=None, put=None)
    step = types.SimpleNamespace(state=np.zeros((2, 8), np.float32))
    return actor.decode(actions_BHA, types.SimpleNamespace(row=np.array([0, 2]), step=step))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.nan, "acts non-finite: 1 of the 28 numbers"),
        (-np.inf, "acts non-finite: 1 of the 28 numbers"),
        (-1000, "acts absurdly: it chose a normalised action of 1000, beyond 1000"),
        (8256, "acts absurdly: it chose a normalised action of 8256, beyond 1000"),
    ],
)
def test_absurd_actions_end_in_a_sentence(value, said):
    actions_BHA = np.zeros((3, 4, 8), np.float32)
    actions_BHA[2, 1, 6] = value
    with pytest.raises(endings.Diverged, match=said):
        decoded(actions_BHA)


def test_only_what_is_executed_counts():
    """Not the rows that fill a batch up, not what lies behind the chunk or the simulator's 7."""
    actions_BHA = np.full((3, 4, 8), 999.0, np.float32)
    actions_BHA[1] = np.nan
    actions_BHA[:, 2:] = np.nan
    actions_BHA[..., 7] = np.nan
    np.testing.assert_allclose(decoded(actions_BHA), 999, rtol=1e-5)
