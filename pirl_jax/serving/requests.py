"""An observation under openpi's LIBERO keys: written by a client, checked and read by a server."""

import dataclasses

import numpy as np

from pirl_jax.policy import images, observation

IMAGES = (
    "observation/image",
    "observation/wrist_image",
)  # agentview, wrist; both rotated by 180 degrees
STATE = (
    "observation/state"  # end-effector position (m), axis-angle (rad), finger joint positions (m)
)
PROMPT = "prompt"
NOISE_ID = "noise_id"  # ours, optional: the start noise of the flow is drawn by this number instead of by arrival
NUM_NOISE_IDS = 2**31


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    images: np.ndarray  # [V,Y,X,3] uint8 at the model's size
    state: np.ndarray  # [S] float64
    prompt: str
    noise_id: int  # names the start noise: below 2**31 the client's own, from there on by arrival


def write(images_VYX3: np.ndarray, state_S: np.ndarray, prompt: str, size_px: int) -> dict:
    """What openpi's LIBERO client sends: it resizes before sending."""
    small = images.resize_with_pad(images_VYX3, size_px, size_px)
    return dict(zip(IMAGES, small, strict=True)) | {
        STATE: np.asarray(state_S, np.float64),
        PROMPT: prompt,
    }


def read(message: dict, transform: observation.Transform, arrival: int) -> Request:
    """The arrival-th request of a server; ValueError names what is wrong and what would be right."""
    missing = [key for key in (*IMAGES, STATE, PROMPT) if key not in message]
    if missing:
        there = ", ".join(map(str, message)) or "nothing"
        raise ValueError(f"the observation lacks {', '.join(missing)}; it has {there}")
    prompt = message[PROMPT]
    if isinstance(prompt, np.ndarray) and prompt.shape == ():
        prompt = prompt.item()
    if not isinstance(prompt, str):
        raise ValueError(f"{PROMPT} is a {type(prompt).__name__}; send a string")
    observation.check(transform, [prompt])
    size_px = transform.image_size_px
    cameras = [
        images.resize_with_pad(_image(key, message[key]), size_px, size_px) for key in IMAGES
    ]
    state_S = _state(message[STATE], transform.env_state_dim)
    return Request(
        np.stack(cameras), state_S, str(prompt), _noise_id(message.get(NOISE_ID), arrival)
    )


def _image(key: str, image) -> np.ndarray:
    remedy = "send uint8, or float in [0, 1], of shape [Y,X,3] or [3,Y,X]"
    if not isinstance(image, np.ndarray):
        raise ValueError(f"{key} is a {type(image).__name__} and no array; {remedy}")
    is_float = image.dtype.kind == "f"
    if (
        image.ndim != 3
        or 3 not in (image.shape[0], image.shape[-1])
        or not (is_float or image.dtype == np.uint8)
    ):
        raise ValueError(f"{key} has dtype {image.dtype} and shape {list(image.shape)}; {remedy}")
    if is_float and not (
        np.isfinite(image).all() and image.min(initial=0) >= 0 and image.max(initial=0) <= 1
    ):
        raise ValueError(f"{key} has values that are not finite or outside [0, 1]; {remedy}")
    image = images.parse_image(image)
    if (
        image.shape[-1] != 3
        or min(image.shape) < 1
        or max(image.shape[:2]) > 64 * min(image.shape[:2])
    ):
        raise ValueError(f"{key} has shape {list(image.shape)}, which is no picture; {remedy}")
    return image


def _state(state, dim: int) -> np.ndarray:
    remedy = f"send {dim} finite numbers: position, axis-angle, finger joints"
    if not isinstance(state, np.ndarray):
        raise ValueError(f"{STATE} is a {type(state).__name__} and no array; {remedy}")
    if state.shape != (dim,) or state.dtype.kind not in "fiu":
        raise ValueError(f"{STATE} has dtype {state.dtype} and shape {list(state.shape)}; {remedy}")
    if not np.isfinite(state).all():
        raise ValueError(f"{STATE} is {state.tolist()}; {remedy}")
    return state.astype(np.float64)


def _noise_id(value, arrival: int) -> int:
    if value is None:
        return NUM_NOISE_IDS + arrival % NUM_NOISE_IDS
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, np.integer))
        or not 0 <= value < NUM_NOISE_IDS
    ):
        raise ValueError(f"{NOISE_ID} is {value!r}; send an integer in [0, 2**31), or leave it out")
    return int(value)
