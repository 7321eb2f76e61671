"""The pi0 and pi0.5 policies: images, prompt and state -> velocity field over action chunks.

Two passes.  `prefill` runs the vision tower and expert 0 over images and prompt, once per observation; `velocity` runs
expert 1 over (state,) noisy actions at a flow time, against the kept keys and values.  Knows no sampling method but the
plain ODE and no reinforcement learning.  Flow time: t = 1 is noise, t = 0 is action.
"""

import re

from flax import struct
import jax
import jax.numpy as jnp

from pirl_jax.core import spec, types
from pirl_jax.models import gemma, linear, resize, siglip, variants


@struct.dataclass
class Prefix:
    """What the suffix needs of an observation.  A pure function of it, so it may be kept while the VLM is frozen."""

    k: jax.Array  # [L,B,S,K,h] rotated keys, compute dtype
    v: jax.Array  # [L,B,S,K,h]
    mask: jax.Array  # [B,S] bool, valid tokens
    state: jax.Array  # [B,A] for the state token of pi0
    hidden: jax.Array | None = None  # [B,S,D] final states of expert 0, only on request
    pooled: jax.Array | None = (
        None  # [B,D] float32, one state out of `hidden` for a critic (policy/flow.py prefill)
    )


def specs(cfg: variants.Pi0Config) -> dict:
    """Declarations of all parameters; the paths are those of openpi's JAX checkpoints."""
    width, A = cfg.expert.width, cfg.action_dim

    def linear(fan_in, fan_out, axes):
        kernel = spec.Spec((fan_in, fan_out), axes, ("lecun", fan_in))
        return {"kernel": kernel, "bias": spec.Spec((fan_out,), axes[1:])}

    tree = {
        "PaliGemma": {
            "llm": gemma.specs((cfg.paligemma, cfg.expert), (False, cfg.pi05), cfg.vocab_size),
            "img": siglip.specs(cfg.siglip, cfg.image_tokens, cfg.paligemma.width),
        },
        "action_in_proj": linear(A, width, ("action", "embed")),
        "action_out_proj": linear(width, A, ("embed", "action")),
    }
    mlp = "time_mlp" if cfg.pi05 else "action_time_mlp"
    tree[f"{mlp}_in"] = linear(width if cfg.pi05 else 2 * width, width, ("embed", "mlp"))
    tree[f"{mlp}_out"] = linear(width, width, ("mlp", "embed"))
    if not cfg.pi05:
        tree["state_proj"] = linear(A, width, ("action", "embed"))
    return tree


def frozen_by_lora(cfg: variants.Pi0Config) -> frozenset[str]:
    """Paths that adapters replace in training: the language weights of an expert that has adapters.

    Vision tower and projections stay trainable, and so does an expert without adapters.
    """
    paths = [path for path in spec.flatten(specs(cfg)) if "/llm/" in path and "lora" not in path]
    of_expert_1 = {path for path in paths if re.search(r"_1(/|$)", path)}
    frozen = set()
    if cfg.paligemma.lora is not None:
        frozen |= set(paths) - of_expert_1
    if cfg.expert.lora is not None:
        frozen |= of_expert_1
    return frozenset(frozen)


def prefill(
    params: dict, obs: types.Observation, cfg: variants.Pi0Config, *, hidden: bool = False
) -> Prefix:
    """Vision tower and expert 0, once per observation.  `hidden` also returns expert 0's final states."""
    x_BSD, mask_BS = embed_prefix(params, obs, cfg)
    attend_BSS = attention_mask(mask_BS, jnp.zeros(mask_BS.shape[1], bool))
    out, k, v = gemma.forward(
        params["PaliGemma"]["llm"],
        x_BSD,
        positions(mask_BS),
        attend_BSS,
        cfg.paligemma,
        expert=0,
        remat_policy=cfg.remat,
        hidden=hidden,
        attend_by=cfg.attention,
    )
    return Prefix(k, v, mask_BS, obs.state, out)


def modulations(params: dict, t_N: jax.Array, cfg: variants.Pi0Config) -> dict | None:
    """What pi0.5's norms make of flow times, N rows.  pi0 mixes the time into its tokens: None."""
    if not cfg.pi05:
        return None
    return gemma.modulations(
        params["PaliGemma"]["llm"], condition(params, t_N, cfg), expert=1, dtype=cfg.dtype
    )


def velocity(
    params: dict,
    prefix: Prefix,
    x_BHA: jax.Array,
    t_B: jax.Array,
    cfg: variants.Pi0Config,
    modulation: dict | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Velocity (noise - action) at flow time t: v [B,H,A] float32, and final states of the action tokens [B,H,D].

    modulation: modulations(params, t_B, cfg) where the caller has them already.
    """
    hidden_BTD, _, _ = decode(params, prefix, x_BHA, t_B, cfg, modulation)
    feature_BHD = hidden_BTD[:, -x_BHA.shape[1] :]
    return _linear(params["action_out_proj"], feature_BHD).astype(jnp.float32), feature_BHD


def flow_matching_loss(
    params: dict,
    obs: types.Observation,
    actions_BHA: jax.Array,
    noise_BHA: jax.Array,
    time_B: jax.Array,
    cfg: variants.Pi0Config,
) -> jax.Array:
    """Squared error of the velocity, mean over all action dimensions (padding included) -> [B,H].

    Gradients reach expert 0 and the vision tower through the keys and values.
    """
    t = time_B[:, None, None]
    x_BHA = t * noise_BHA + (1 - t) * actions_BHA
    v_BHA, _ = velocity(params, prefill(params, obs, cfg), x_BHA, time_B, cfg)
    return jnp.square(v_BHA - (noise_BHA - actions_BHA)).mean(-1)


def sample_time(key: jax.Array, batch: int) -> jax.Array:
    """Flow times of the training loss: Beta(1.5, 1) in (0.001, 1), more weight on noise."""
    return jax.random.beta(key, 1.5, 1.0, (batch,)) * 0.999 + 0.001


def sample(
    params: dict,
    key_or_noise: jax.Array,
    obs: types.Observation,
    cfg: variants.Pi0Config,
    num_steps: int | jax.Array,
) -> jax.Array:
    """Euler steps of the flow ODE from t = 1 to 0 -> actions [B,H,A] float32.

    A key draws the initial noise; an array [B,H,A] is the initial noise.  `num_steps` may be traced.
    """
    x = key_or_noise
    B = obs.state.shape[0]
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.normal(x, (B, cfg.action_horizon, cfg.action_dim))
    prefix = prefill(params, obs, cfg)

    def step(i, x_BHA):
        t = jnp.asarray(1 - i / num_steps, jnp.float32)
        v_BHA, _ = velocity(params, prefix, x_BHA, jnp.full(B, t), cfg)
        return x_BHA - v_BHA / num_steps

    return jax.lax.fori_loop(0, num_steps, step, x)


def embed_prefix(
    params: dict, obs: types.Observation, cfg: variants.Pi0Config
) -> tuple[jax.Array, jax.Array]:
    """Tokens of all cameras, then of the prompt: [B,S,D] in the compute dtype, and their validity [B,S]."""
    B, V = obs.images.shape[:2]
    images = to_float(resize.with_pad(obs.images, *cfg.image_size)).reshape(
        B * V, *cfg.image_size, 3
    )
    seen = siglip.encode(params["PaliGemma"]["img"], images, cfg.siglip, cfg.dtype, cfg.remat)
    tokens_per_image, width = seen.shape[1:]
    text = gemma.embed(params["PaliGemma"]["llm"], obs.tokens, cfg.dtype)
    x_BSD = jnp.concatenate([seen.reshape(B, V * tokens_per_image, width), text], axis=1)
    mask_BS = jnp.concatenate(
        [jnp.repeat(obs.image_mask, tokens_per_image, axis=1), obs.token_mask], axis=1
    )
    return x_BSD, mask_BS


def condition(params: dict, t_N: jax.Array, cfg: variants.Pi0Config) -> jax.Array:
    """pi0.5: flow times -> conditions of the expert's norms [N,D]."""
    time_ND = time_embedding(t_N, cfg.expert.width)
    return jax.nn.silu(
        _linear(params["time_mlp_out"], jax.nn.silu(_linear(params["time_mlp_in"], time_ND)))
    )


def embed_suffix(
    params: dict, state_BA: jax.Array, x_BHA: jax.Array, t_B: jax.Array, cfg: variants.Pi0Config
) -> tuple[jax.Array, jax.Array]:
    """Tokens of expert 1 [B,T,D], and which of them start an attention block [T]."""
    action_BHD = _linear(params["action_in_proj"], x_BHA)
    H = x_BHA.shape[1]
    if cfg.pi05:
        return action_BHD, jnp.arange(H) == 0
    time_BD = time_embedding(t_B, cfg.expert.width)
    time_BHD = jnp.broadcast_to(time_BD[:, None].astype(action_BHD.dtype), action_BHD.shape)
    hidden = _linear(params["action_time_mlp_in"], jnp.concatenate([action_BHD, time_BHD], axis=-1))
    action_BHD = _linear(params["action_time_mlp_out"], jax.nn.silu(hidden))
    state_B1D = _linear(params["state_proj"], state_BA)[:, None]
    return jnp.concatenate([state_B1D, action_BHD], axis=1), jnp.arange(1 + H) < 2


def decode(
    params: dict,
    prefix: Prefix,
    x_BHA: jax.Array,
    t_B: jax.Array,
    cfg: variants.Pi0Config,
    modulation: dict | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Expert 1 over the whole suffix: final states [B,T,D], its keys and values [L,B,T,K,h]."""
    x_BTD, starts_T = embed_suffix(params, prefix.state, x_BHA, t_B, cfg)
    mask_BTS, position_BT = suffix_attention(prefix.mask, starts_T)
    # Not by cfg.attention: few queries, and an odd number of them, which fused kernels do not take.
    return gemma.forward(
        params["PaliGemma"]["llm"],
        x_BTD.astype(cfg.dtype),
        position_BT,
        mask_BTS,
        cfg.expert,
        expert=1,
        remat_policy=cfg.remat,
        past=(prefix.k, prefix.v),
        modulation=modulation or modulations(params, t_B, cfg),
    )


def attention_mask(valid_BT: jax.Array, starts_T: jax.Array) -> jax.Array:
    """[B,T,T]: a query sees the valid keys of its own and all earlier blocks.  `starts_T`: first token of a block."""
    block_T = jnp.cumsum(starts_T)
    visible_TT = block_T[None, :] <= block_T[:, None]
    return visible_TT[None] & valid_BT[:, None, :] & valid_BT[:, :, None]


def positions(valid_BT: jax.Array) -> jax.Array:
    """Valid tokens are counted from 0; padding repeats the previous position (-1 before the first valid token)."""
    return jnp.cumsum(valid_BT, axis=1) - 1


def suffix_attention(prefix_mask_BS: jax.Array, starts_T: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mask [B,T,S+T] and positions [B,T] of the suffix, all of whose tokens are valid."""
    B, T = prefix_mask_BS.shape[0], starts_T.shape[0]
    valid_BT = jnp.ones((B, T), bool)
    past_BTS = jnp.broadcast_to(prefix_mask_BS[:, None], (B, T, prefix_mask_BS.shape[1]))
    mask_BTS = jnp.concatenate([past_BTS, attention_mask(valid_BT, starts_T)], axis=2)
    return mask_BTS, prefix_mask_BS.sum(1, keepdims=True) + positions(valid_BT)


def time_embedding(
    t_B: jax.Array, width: int, min_period: float = 4e-3, max_period: float = 4.0
) -> jax.Array:
    """Sines then cosines of t at width / 2 geometrically spaced periods: [B,width] float32."""
    fraction = jnp.linspace(0.0, 1.0, width // 2)
    period = min_period * (max_period / min_period) ** fraction
    # The fastest angle is near 1571 rad, where float32 resolves 1.2e-4 rad: keep this order of operations.
    angle = t_B[:, None] * (1.0 / period * 2 * jnp.pi)[None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def to_float(images: jax.Array) -> jax.Array:
    """uint8 -> float32 in [-1, 1]; float images pass."""
    return images.astype(jnp.float32) / 255.0 * 2.0 - 1.0 if images.dtype == jnp.uint8 else images


def _linear(params: dict, x: jax.Array) -> jax.Array:
    """Affine map in the wider of the dtypes of x and params."""
    y = linear.einsum("BTD,DF->BTF", x, params["kernel"]) if x.ndim == 3 else x @ params["kernel"]
    return y + params["bias"].reshape((1,) * (y.ndim - 1) + (-1,))
