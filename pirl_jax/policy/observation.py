"""What environments speak <-> what the model reads: images, state and instruction in, actions out.

Host code in numpy, once per decision for all rows together.  Knows no network and no simulator.
The order of the steps is openpi's: delta actions in robot units, then normalise, then pad; the
discrete state is normalised and not padded.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import functools

import chex
import numpy as np

from pirl_jax.core import types
from pirl_jax.policy import images, normalize
from pirl_jax.policy import tokenizer as tokenizers


@dataclasses.dataclass(frozen=True, eq=False)
class Transform:
    """How a policy sees and acts; fields of the page's section `model` under their names."""

    tokenizer: tokenizers.Tokenizer
    stats: normalize.NormStats
    norm_mode: str
    delta_actions: bool
    discrete_state: bool
    image_size_px: int
    resize: str  # device: images are handed on as they are, and the model resizes them
    max_token_len: int
    action_dim: int  # of the model: state and actions are zero-padded to it
    env_action_dim: int
    env_state_dim: int = 8


def check(transform: Transform, instructions: Iterable[str]) -> int:
    """Start-up check that every prompt fits; returns the length in tokens of the longest.

    Raises: ValueError when one does not.
    """
    state_dim = transform.env_state_dim if transform.discrete_state else 0
    return tokenizers.check_prompts(
        transform.tokenizer, instructions, transform.max_token_len, state_dim
    )


def encode(
    transform: Transform,
    images_BVYX3: np.ndarray,
    state_BQ: np.ndarray,
    instructions: Sequence[str],
) -> types.Observation:
    """uint8 images, raw state, one instruction per row -> Observation of numpy arrays."""
    chex.assert_shape(images_BVYX3, (len(instructions), None, None, None, 3))
    chex.assert_shape(state_BQ, (len(instructions), transform.env_state_dim))
    chex.assert_type(images_BVYX3, np.uint8)
    if transform.resize == "host":
        size_px = transform.image_size_px
        images_BVYX3 = images.resize_with_pad(images_BVYX3, size_px, size_px)
    state_BQ = normalize.normalize(state_BQ, transform.stats.state, transform.norm_mode)
    tokens_BP, token_mask_BP = _tokenize(transform, instructions, state_BQ)
    return types.Observation(
        images=images_BVYX3,
        image_mask=np.ones(images_BVYX3.shape[:2], bool),
        state=_pad(state_BQ, transform.action_dim),
        tokens=tokens_BP,
        token_mask=token_mask_BP,
    )


def encode_actions(
    transform: Transform, actions_BHA: np.ndarray, state_BQ: np.ndarray
) -> np.ndarray:
    """Environment actions [B,H,a] and the raw state they start from -> float32 targets [B,H,A]."""
    if transform.delta_actions:
        actions_BHA = normalize.delta_actions(actions_BHA, state_BQ)
    actions_BHA = normalize.normalize(actions_BHA, transform.stats.actions, transform.norm_mode)
    return _pad(actions_BHA, transform.action_dim)


def decode(transform: Transform, actions_BHA: np.ndarray, state_BQ: np.ndarray) -> np.ndarray:
    """Model output -> float32 environment actions [B,H,a].

    state_BQ: the raw state that the output was computed from.
    """
    actions_BHA = np.asarray(actions_BHA)[..., : transform.env_action_dim]
    actions_BHA = normalize.unnormalize(actions_BHA, transform.stats.actions, transform.norm_mode)
    if transform.delta_actions:
        actions_BHA = normalize.absolute_actions(actions_BHA, state_BQ)
    return actions_BHA.astype(np.float32)


def _pad(x: np.ndarray, dim: int) -> np.ndarray:
    """Zero-pad the last axis to dim; float32."""
    out = np.zeros((*x.shape[:-1], dim), np.float32)
    out[..., : x.shape[-1]] = x
    return out


def _tokenize(
    transform: Transform, instructions: Sequence[str], state_BQ: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    tokenizer = transform.tokenizer
    max_len = transform.max_token_len
    tokens = []
    masks = []
    for text, state_Q in zip(instructions, state_BQ, strict=True):
        if transform.discrete_state:
            tokens_P, mask_P = tokenizers.tokenize(tokenizer, text, max_len, state_Q)
        else:
            tokens_P, mask_P = _cached_tokenize(tokenizer, text, max_len)
        tokens.append(tokens_P)
        masks.append(mask_P)
    return np.stack(tokens), np.stack(masks)


# A suite has at most a few hundred instructions, and every decision asks for them again.
_cached_tokenize = functools.lru_cache(maxsize=1024)(tokenizers.tokenize)
