"""A policy behind openpi's protocol, ours or another's, as the decision function of an evaluation.

Refuses to know what computes there.
"""

from collections.abc import Iterator
import contextlib

import numpy as np
from openpi_client import msgpack_numpy
from websockets import exceptions
from websockets.sync import client

from pirl_jax.envs import base
from pirl_jax.rollout import actor as actors
from pirl_jax.rollout import stream
from pirl_jax.serving import requests

IMAGE_SIZE_PX = 224  # what openpi's client sends to a server that names no size
ANSWER_TIMEOUT_S = 600.0  # openpi's server compiles at its first request


@contextlib.contextmanager
def connections(
    url: str, api_key: str, count: int
) -> Iterator[tuple[list[client.ClientConnection], dict]]:
    """-> (`count` connections, metadata of the server); closed with the context.

    Raises:
        ValueError: the server cannot be reached, refuses the key, or does not speak the protocol.
    """
    headers = {"Authorization": f"Api-Key {api_key}"} if api_key else None
    with contextlib.ExitStack() as stack:
        opened = []
        try:
            for _ in range(count):
                connecting = client.connect(
                    url,
                    compression=None,
                    max_size=None,
                    ping_interval=None,  # openpi's server answers no ping while it computes
                    additional_headers=headers,
                )
                opened.append(stack.enter_context(connecting))
            greetings = [connection.recv(timeout=ANSWER_TIMEOUT_S) for connection in opened]
            metadata = msgpack_numpy.unpackb(greetings[0])  # the others say the same
        except (OSError, ValueError, exceptions.WebSocketException) as error:
            remedy = (
                "start it with python -m pirl_jax.serve or openpi's serve_policy.py; "
                "give its key with --api-key"
            )
            raise ValueError(f"--policy={url} cannot be reached ({error}); {remedy}") from error
        yield opened, metadata


def decide(
    opened: list[client.ClientConnection], metadata: dict, spec: base.EnvSpec, action_chunk: int
) -> stream.Decide:
    """Each row asks over a connection of its own, all at once: the server may make a batch of them.

    opened: at least as many as a turn has rows.  metadata: the server's.
    """
    size_px = metadata.get("image_size_px", IMAGE_SIZE_PX)
    takes_noise_id = requests.NOISE_ID in metadata.get("accepts", ())
    limit = actors.max_decisions(spec, action_chunk)

    def ask(turn: stream.Turn) -> np.ndarray:
        asked = opened[: len(turn.row)]
        noise_ids = actors.decision_ids(turn, limit)
        for i, connection in enumerate(asked):
            prompt = spec.instructions[turn.task[i]]
            message = requests.write(turn.step.images[i], turn.step.state[i], prompt, size_px)
            if takes_noise_id:
                message[requests.NOISE_ID] = int(noise_ids[i])
            connection.send(msgpack_numpy.packb(message))
        replies = [connection.recv(timeout=ANSWER_TIMEOUT_S) for connection in asked]
        return np.stack([_actions(reply, action_chunk, spec) for reply in replies])

    return ask


def _actions(reply: str | bytes, action_chunk: int, spec: base.EnvSpec) -> np.ndarray:
    """[I,a] of one answer; the server may have sent a longer horizon."""
    if isinstance(reply, str):
        raise RuntimeError(f"the policy server answered with an error:\n{reply}")
    actions_HA = np.asarray(msgpack_numpy.unpackb(reply)["actions"], np.float32)
    is_matrix = actions_HA.ndim == 2
    fits = is_matrix and len(actions_HA) >= action_chunk and actions_HA.shape[1] == spec.action_dim
    if not fits:
        shapes = f"{list(actions_HA.shape)}, but [{action_chunk}, {spec.action_dim}] are executed"
        remedy = "evaluate with a smaller model.action_chunk, or serve another checkpoint"
        raise RuntimeError(f"the policy server sent actions of shape {shapes}; {remedy}")
    if not np.isfinite(actions_HA).all():
        raise RuntimeError(
            "the policy server sent actions that are not finite; serve another checkpoint"
        )
    return actions_HA[:action_chunk]
