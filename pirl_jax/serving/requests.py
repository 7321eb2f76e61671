"""An observation under openpi's LIBERO keys: written by a client, checked and read by a server.

Refuses to know connections and policies.
"""

import dataclasses
from typing import Any

import numpy as np

from pirl_jax.envs import arrays
from pirl_jax.policy import images, observation
from pirl_jax.policy import tokenizer as tokenizers
from pirl_jax.serving import messages

IMAGES = ("observation/image", "observation/wrist_image")  # agentview, wrist; rotated by 180 deg
# End-effector position (m), axis-angle (rad), finger joint positions (m).
STATE = "observation/state"
PROMPT = "prompt"
# Ours, optional: the start noise of the flow is drawn by this number instead of by arrival.
NOISE_ID = "noise_id"
NUM_NOISE_IDS = 2**31
# One side of a picture is at most so many times the other: resizing a line would leave nothing.
MAX_ASPECT = 64
# Longer ones are not even counted in tokens, which takes time.
MAX_PROMPT_LENGTH = 8192


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """An observation that has been checked."""

    images: np.ndarray  # [V,Y,X,3] uint8 at the model's size
    state: np.ndarray  # [S] float64
    prompt: str
    noise_id: int  # names the start noise: below 2**31 the client's own, from there on by arrival


def write(
    images_VYX3: np.ndarray, state_Q: np.ndarray, prompt: str, size_px: int
) -> dict[str, Any]:
    """What openpi's LIBERO client sends: it resizes before sending."""
    small = images.resize_with_pad(images_VYX3, size_px, size_px)
    message: dict[str, Any] = dict(zip(IMAGES, small, strict=True))
    message[STATE] = np.asarray(state_Q, np.float64)
    message[PROMPT] = prompt
    return message


def read(message: dict, transform: observation.Transform, arrival: int) -> Request:
    """The arrival-th request of a server.

    Raises:
        ValueError: says what is wrong and what would be right, by keys and shapes alone.
    """
    missing = [key for key in (*IMAGES, STATE, PROMPT) if key not in message]
    if missing:
        there = messages.names(message) or "nothing"
        raise ValueError(f"the observation lacks {', '.join(missing)}; it has {there}")
    prompt = _prompt(message[PROMPT])
    _check_length(prompt, transform)
    size_px = transform.image_size_px
    views = []
    for key in IMAGES:
        image = _image(key, message[key])
        views.append(images.resize_with_pad(image, size_px, size_px))
    return Request(
        images=np.stack(views),
        state=_state(message[STATE], transform.env_state_dim),
        prompt=prompt,
        noise_id=_noise_id(message.get(NOISE_ID), arrival),
    )


def _prompt(prompt: Any) -> str:
    # numpy's strings come as arrays without axes.
    if isinstance(prompt, np.ndarray) and prompt.shape == ():
        prompt = prompt.item()
    if not isinstance(prompt, str):
        raise ValueError(f"{PROMPT} is a {type(prompt).__name__}; send a string")
    return str(prompt)


def _check_length(prompt: str, transform: observation.Transform) -> None:
    """Whether the tokens of a prompt fit, whatever the state beside it is."""
    most = transform.max_token_len
    if len(prompt) > MAX_PROMPT_LENGTH:
        raise ValueError(
            f"{PROMPT} has {len(prompt)} characters, but max_token_len is {most}; send fewer"
        )
    # A state in the topmost bin has three digits in every dimension: none makes a longer prompt.
    state_Q = np.ones(transform.env_state_dim) if transform.discrete_state else None
    length = len(tokenizers.prompt_ids(transform.tokenizer, prompt, state_Q))
    if length > most:
        raise ValueError(
            f"{PROMPT} of {len(prompt)} characters needs {length} tokens, but max_token_len is "
            f"{most}; send a shorter one"
        )


def _image(key: str, image: Any) -> np.ndarray:
    """[Y,X,3] uint8 of any size."""
    remedy = "send uint8, or float in [0, 1], of shape [Y,X,3] or [3,Y,X]"
    if not isinstance(image, np.ndarray):
        raise ValueError(f"{key} is a {type(image).__name__} and no array; {remedy}")
    is_float = image.dtype.kind == "f"
    has_type = is_float or image.dtype == np.uint8
    has_shape = image.ndim == 3 and 3 in (image.shape[0], image.shape[-1])
    if not (has_type and has_shape):
        raise ValueError(f"{key} has dtype {image.dtype} and shape {list(image.shape)}; {remedy}")
    if is_float and not _is_in_unit_interval(image):
        raise ValueError(f"{key} has values that are not finite or outside [0, 1]; {remedy}")
    image = images.parse_image(image)
    num_colours = image.shape[-1]
    short_side, long_side = sorted(image.shape[:2])
    if num_colours != 3 or short_side < 1 or long_side > MAX_ASPECT * short_side:
        raise ValueError(f"{key} has shape {list(image.shape)}, which is no picture; {remedy}")
    return image


def _is_in_unit_interval(x: np.ndarray) -> bool:
    """Whether every value is finite and in [0, 1]; so it is where there is none."""
    return np.isfinite(x).all() and x.min(initial=0) >= 0 and x.max(initial=0) <= 1


def _state(state: Any, dim: int) -> np.ndarray:
    """[S] float64"""
    remedy = f"send {dim} finite numbers: position, axis-angle, finger joints"
    if not isinstance(state, np.ndarray):
        raise ValueError(f"{STATE} is a {type(state).__name__} and no array; {remedy}")
    if state.shape != (dim,) or state.dtype.kind not in "fiu":
        raise ValueError(f"{STATE} has dtype {state.dtype} and shape {list(state.shape)}; {remedy}")
    try:
        arrays.check_finite(state)
    except ValueError as error:
        raise ValueError(f"{STATE}: {error}; {remedy}") from error
    return state.astype(np.float64)


def _noise_id(value: Any, arrival: int) -> int:
    """The client's own number, or one by arrival that no client can name."""
    if value is None:
        return NUM_NOISE_IDS + arrival % NUM_NOISE_IDS
    is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_integer or not 0 <= value < NUM_NOISE_IDS:
        raise ValueError(
            f"{NOISE_ID} is a {type(value).__name__} that names no noise; send an integer in "
            f"[0, 2**31), or leave it out"
        )
    return int(value)
