"""A policy behind openpi's protocol, ours or another's, as the decision function of an evaluation."""

import contextlib

import numpy as np
from openpi_client import msgpack_numpy
from websockets import exceptions
from websockets.sync import client

from pirl_jax.rollout import actor as actors
from pirl_jax.rollout import stream
from pirl_jax.serving import requests

IMAGE_SIZE_PX = 224  # what openpi's client sends to a server that names no size
ANSWER_TIMEOUT_S = 600.0  # openpi's server compiles at its first request


@contextlib.contextmanager
def connections(url: str, api_key: str, count: int):
    """-> (connections, metadata of the server); closed with the context."""
    headers = {"Authorization": f"Api-Key {api_key}"} if api_key else None
    # No keepalive: openpi's server answers no ping while it computes.
    options = dict(compression=None, max_size=None, ping_interval=None, additional_headers=headers)
    with contextlib.ExitStack() as stack:
        try:
            opened = [stack.enter_context(client.connect(url, **options)) for _ in range(count)]
            metadata = [msgpack_numpy.unpackb(one.recv(timeout=ANSWER_TIMEOUT_S)) for one in opened]
        except (OSError, ValueError, exceptions.WebSocketException) as error:
            remedy = "start it with python -m pirl_jax.serve or openpi's serve_policy.py; give its key with --api_key"
            raise ValueError(f"--policy={url} cannot be reached ({error}); {remedy}") from error
        yield opened, metadata[0]


def decide(opened, metadata: dict, spec, action_chunk: int) -> stream.Decide:
    """Each row asks over a connection of its own, all at once: the server may make a batch of them."""
    size_px = metadata.get("image_size_px", IMAGE_SIZE_PX)
    by_name = requests.NOISE_ID in metadata.get("accepts", ())
    limit = actors.max_decisions(spec, action_chunk)

    def ask(turn):
        asked = opened[: len(turn.row)]
        noise_ids = actors.decision_ids(turn, limit)
        for i, connection in enumerate(asked):
            prompt = spec.instructions[turn.task[i]]
            message = requests.write(turn.step.images[i], turn.step.state[i], prompt, size_px)
            connection.send(
                msgpack_numpy.packb(
                    message | ({requests.NOISE_ID: int(noise_ids[i])} if by_name else {})
                )
            )
        replies = [connection.recv(timeout=ANSWER_TIMEOUT_S) for connection in asked]
        return np.stack([_actions(reply, action_chunk, spec) for reply in replies])

    return ask


def _actions(reply: str | bytes, action_chunk: int, spec) -> np.ndarray:
    """[I,a] of one answer."""
    if isinstance(reply, str):
        raise RuntimeError(f"the policy server answered with an error:\n{reply}")
    actions_HA = np.asarray(msgpack_numpy.unpackb(reply)["actions"], np.float32)
    if (
        actions_HA.ndim != 2
        or len(actions_HA) < action_chunk
        or actions_HA.shape[1] != spec.action_dim
    ):
        shapes = f"{list(actions_HA.shape)}, but [{action_chunk}, {spec.action_dim}] are executed"
        remedy = "evaluate with a smaller model.action_chunk, or serve another checkpoint"
        raise RuntimeError(f"the policy server sent actions of shape {shapes}; {remedy}")
    if not np.isfinite(actions_HA).all():
        raise RuntimeError(
            "the policy server sent actions that are not finite; serve another checkpoint"
        )
    return actions_HA[:action_chunk]
