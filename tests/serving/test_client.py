"""The evaluation's side of the protocol, against servers that know nothing of us."""

import numpy as np
import pytest

from pirl_jax.envs import base
from pirl_jax.policy import images
from pirl_jax.rollout import stream
from pirl_jax.serving import client

SPEC = base.EnvSpec(
    "fake", ("push", "pick"), num_init_states=6, max_episode_steps=20, image_size_px=256
)


def turn(n):
    draw = np.random.default_rng(0)
    step = base.TimeStep(
        images=draw.integers(0, 256, (n, 2, 256, 256, 3), np.uint8),
        state=draw.normal(size=(n, 8)).astype(np.float32),
        reward=np.zeros(n),
        terminated=np.zeros(n, bool),
        truncated=np.zeros(n, bool),
        num_steps=np.zeros(n),
    )
    return stream.Turn(
        row=np.arange(n),
        slot=np.arange(n),
        episode=np.arange(n),
        decision=np.arange(n) % 3,
        finished=step.terminated,
        task=np.arange(n) % 2,
        step=step,
    )


class Echo:
    """Answers with the state of the observation in every action, and notes what it was asked."""

    def __init__(self, horizon=10):
        self.asked = []
        self.horizon = horizon

    async def __call__(self, message):
        self.asked.append(message)
        return {"actions": np.tile(message["observation/state"][:7], (self.horizon, 1))}


def ask(port, n, chunk=5):
    with client.connections(f"ws://127.0.0.1:{port}", "", n) as (opened, metadata):
        return client.decide(opened, metadata, SPEC, chunk)(turn(n))


def test_openpis_server_is_sent_what_openpis_client_sends(wired):
    echo = Echo()
    now = turn(3)
    actions = ask(wired(echo), 3)
    assert actions.shape == (3, 5, 7)
    np.testing.assert_array_equal(actions, np.repeat(now.step.state[:, None, :7], 5, axis=1))
    state_Q = now.step.state[0].astype(np.float64)
    (message,) = [asked for asked in echo.asked if (asked["observation/state"] == state_Q).all()]
    assert message["observation/state"].dtype == np.float64
    assert message["prompt"] == "push"
    keys = ("observation/image", "observation/wrist_image")
    for key, image in zip(keys, now.step.images[0], strict=True):
        np.testing.assert_array_equal(message[key], images.resize_with_pad(image, 224, 224))
    assert set(message) == {*keys, "observation/state", "prompt"}


def test_our_server_names_its_size_and_takes_the_number_of_the_decision(wired):
    echo = Echo()
    ask(wired(echo, {"image_size_px": 32, "accepts": ["noise_id"]}), 4)
    assert {asked["observation/image"].shape for asked in echo.asked} == {(32, 32, 3)}
    # At most 4 decisions each.
    noise_ids = {asked["noise_id"] for asked in echo.asked}
    assert noise_ids == {0, 1 * 4 + 1, 2 * 4 + 2, 3 * 4}


def test_what_a_server_does_wrong_is_said(wired):
    async def fail(message):
        raise KeyError("observation/joints")

    sentence = r"answered with an error:\nTraceback(.|\n)*KeyError: 'observation/joints'"
    with pytest.raises(RuntimeError, match=sentence):
        ask(wired(fail), 1)
    with pytest.raises(RuntimeError, match=r"actions of shape \[4, 7\], but \[5, 7\] are executed"):
        ask(wired(Echo(horizon=4)), 1)

    async def diverged(message):
        return {"actions": np.full((10, 7), np.nan)}

    with pytest.raises(RuntimeError, match="not finite"):
        ask(wired(diverged), 1)
    with pytest.raises(ValueError, match=r"HTTP 401.*give its key with --api-key"):
        ask(wired(Echo(), api_key="secret"), 1)
    with pytest.raises(ValueError, match="cannot be reached"):
        ask("nonsense", 1)
