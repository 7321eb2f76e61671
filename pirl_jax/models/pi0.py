"""The pi0 and pi0.5 policies: images, prompt and state -> velocity field over action chunks.

Two passes.  `prefill` runs the vision tower and expert 0 over images and prompt, once per
observation; `velocity` runs expert 1 over (state,) noisy actions at a flow time, against the kept
keys and values.  Knows no sampling method but the plain ODE and no reinforcement learning.  Flow
time: t = 1 is noise, t = 0 is action.
"""

import re

from flax import struct
import jax
from jax import Array
import jax.numpy as jnp

from pirl_jax.core import mesh as meshes
from pirl_jax.core import spec, types
from pirl_jax.models import attention, gemma, linear, resize, siglip, variants

_UNSEEN = 2**30  # rank of a key that no query sees


@struct.dataclass
class Prefix:
    """What the suffix needs of an observation.

    A pure function of it, so it may be kept while the VLM is frozen.
    """

    k: Array  # [L,B,S,K,h] rotated keys, compute dtype
    v: Array  # [L,B,S,K,h]
    mask: Array  # [B,S] bool, valid tokens
    state: Array  # [B,A] for the state token of pi0
    hidden: Array | None = None  # [B,S,D] final states of expert 0, only on request
    # [B,D] float32, one state out of `hidden` for a critic (policy/flow.py prefill).
    pooled: Array | None = None


def specs(cfg: variants.Pi0Config) -> dict:
    """Declarations of all parameters; the paths are those of openpi's JAX checkpoints."""
    A = cfg.action_dim
    D = cfg.expert.width

    def project(fan_in: int, fan_out: int, *axes: str) -> dict:
        return linear.specs((fan_in, fan_out), axes, ("lecun", fan_in))

    experts = (cfg.paligemma, cfg.expert)
    tree = {
        "PaliGemma": {
            "llm": gemma.specs(experts, (False, cfg.pi05), cfg.vocab_size),
            "img": siglip.specs(cfg.siglip, cfg.image_tokens, cfg.paligemma.width),
        },
        "action_in_proj": project(A, D, "action", "embed"),
        "action_out_proj": project(D, A, "embed", "action"),
    }
    if cfg.pi05:
        tree["time_mlp_in"] = project(D, D, "embed", "mlp")
        tree["time_mlp_out"] = project(D, D, "mlp", "embed")
    else:
        tree["action_time_mlp_in"] = project(2 * D, D, "embed", "mlp")
        tree["action_time_mlp_out"] = project(D, D, "mlp", "embed")
        tree["state_proj"] = project(A, D, "action", "embed")
    return tree


def frozen_by_lora(cfg: variants.Pi0Config) -> frozenset[str]:
    """Paths that adapters replace in training: the language weights of an expert with adapters.

    Vision tower and projections stay trainable, and so does an expert without adapters.
    """
    frozen = set()
    for path in spec.flatten(specs(cfg)):
        of_expert_1 = re.search(r"_1(/|$)", path)
        expert = cfg.expert if of_expert_1 else cfg.paligemma
        is_weight = "/llm/" in path and "lora" not in path
        if is_weight and expert.lora is not None:
            frozen.add(path)
    return frozenset(frozen)


def is_rounded(path: str) -> bool:
    """Whether a parameter is cast to the compute dtype before every use.

    Such a one may be stored in it: that gives the same bits.  The others matter in float32: scales
    of norms, embedder, patches, positions, projections of actions and times, heads.
    """
    return bool(_ROUNDED.match(path))


_ROUNDED = re.compile(
    r"PaliGemma/(img/(head|Transformer/encoderblock/M)"
    r"|llm/(layers/(attn|mlp)|(layers/.*|final_norm)_1/Dense_0))"
)


def prefill(
    params: dict, obs: types.Observation, cfg: variants.Pi0Config, *, hidden: bool = False
) -> Prefix:
    """Vision tower and expert 0, once per observation.

    `hidden` also returns expert 0's final states.
    """
    x_BSD, mask_BS = embed_prefix(params, obs, cfg)
    one_block_S = jnp.zeros(mask_BS.shape[1], bool)
    out, k, v = gemma.forward(
        params["PaliGemma"]["llm"],
        x_BSD,
        positions(mask_BS),
        sight(mask_BS, one_block_S),
        cfg.paligemma,
        expert=0,
        remat_policy=cfg.remat,
        hidden=hidden,
        attend_by=cfg.attention,
    )
    return Prefix(k, v, mask_BS, obs.state, out)


def for_many_steps(params: dict, cfg: variants.Pi0Config) -> dict:
    """The same parameters for a loop over denoise steps.

    Where they are split over devices, those of the steps are brought together here, in the type in
    which they are used, and not in every step anew.
    """
    if not meshes.is_split():
        return params
    flat = {}
    for path, x in spec.flatten(params).items():
        of_prefix = path.startswith("PaliGemma/") and not re.search(r"_1(/|$)", path)
        used = x.astype(cfg.dtype) if is_rounded(path) else x
        flat[path] = x if of_prefix else meshes.whole(used)
    return spec.unflatten(flat)


def modulations(params: dict, t_B: Array, cfg: variants.Pi0Config) -> dict | None:
    """What pi0.5's norms make of flow times, a row each.

    None for pi0, which mixes the time into its tokens.
    """
    if not cfg.pi05:
        return None
    cond_BD = condition(params, t_B, cfg)
    return gemma.modulations(params["PaliGemma"]["llm"], cond_BD, expert=1, dtype=cfg.dtype)


def velocity(
    params: dict,
    prefix: Prefix,
    x_BHA: Array,
    t_B: Array,
    cfg: variants.Pi0Config,
    modulation: dict | None = None,
) -> tuple[Array, Array]:
    """Velocity (noise - action) at flow time t.

    modulation: modulations(params, t_B, cfg) where the caller has them already.

    Returns: v [B,H,A] float32, and final states of the action tokens [B,H,D].
    """
    H = x_BHA.shape[1]
    hidden_BTD, _, _ = decode(params, prefix, x_BHA, t_B, cfg, modulation)
    feature_BHD = hidden_BTD[:, -H:]
    v_BHA = meshes.by_rows(_linear(params["action_out_proj"], feature_BHD))
    return v_BHA.astype(jnp.float32), feature_BHD


def flow_matching_loss(
    params: dict,
    obs: types.Observation,
    actions_BHA: Array,
    noise_BHA: Array,
    time_B: Array,
    cfg: variants.Pi0Config,
) -> Array:
    """Squared error of the velocity, mean over all action dimensions (padding included) -> [B,H].

    Gradients reach expert 0 and the vision tower through the keys and values.
    """
    prefix = prefill(params, obs, cfg)
    error_BHA = flow_matching_error(params, prefix, actions_BHA, noise_BHA, time_B, cfg)
    return jnp.square(error_BHA).mean(-1)


def flow_matching_error(
    params: dict,
    prefix: Prefix,
    actions_BHA: Array,
    noise_BHA: Array,
    time_B: Array,
    cfg: variants.Pi0Config,
) -> Array:
    """Velocity less the one that leads from the noise to the actions [B,H,A]."""
    t_B11 = time_B[:, None, None]
    x_BHA = t_B11 * noise_BHA + (1 - t_B11) * actions_BHA
    v_BHA, _ = velocity(params, prefix, x_BHA, time_B, cfg)
    return v_BHA - (noise_BHA - actions_BHA)


def sample_time(key: Array, batch: int) -> Array:
    """Flow times of the training loss: Beta(1.5, 1) in (0.001, 1), more weight on noise."""
    return jax.random.beta(key, 1.5, 1.0, (batch,)) * 0.999 + 0.001


def sample(
    params: dict,
    key_or_noise: Array,
    obs: types.Observation,
    cfg: variants.Pi0Config,
    num_steps: int | Array,
) -> Array:
    """Euler steps of the flow ODE from t = 1 to 0 -> actions [B,H,A] float32.

    A key draws the initial noise; an array [B,H,A] is the initial noise.  `num_steps` may be
    traced.
    """
    B = obs.state.shape[0]
    start_BHA = key_or_noise
    if jnp.issubdtype(key_or_noise.dtype, jax.dtypes.prng_key):
        shape = (B, cfg.action_horizon, cfg.action_dim)
        start_BHA = jax.random.normal(key_or_noise, shape)
    prefix = prefill(params, obs, cfg)

    def step(j: Array, x_BHA: Array) -> Array:
        t = jnp.asarray(1 - j / num_steps, jnp.float32)
        v_BHA, _ = velocity(params, prefix, x_BHA, jnp.full(B, t), cfg)
        return x_BHA - v_BHA / num_steps

    return jax.lax.fori_loop(0, num_steps, step, start_BHA)


def embed_prefix(
    params: dict, obs: types.Observation, cfg: variants.Pi0Config
) -> tuple[Array, Array]:
    """Tokens of all cameras, then of the prompt.

    Returns: tokens [B,S,D] in the compute dtype, and their validity [B,S].
    """
    B, V = obs.images.shape[:2]
    vision = params["PaliGemma"]["img"]
    language = params["PaliGemma"]["llm"]
    # Cameras are rows of one batch: the tower never looks at two images together.
    images = to_float(resize.with_pad(obs.images, *cfg.image_size))
    images = images.reshape(B * V, *cfg.image_size, 3)
    seen = siglip.encode(vision, images, cfg.siglip, cfg.dtype, cfg.remat)
    _, image_tokens, width = seen.shape
    seen_BSD = seen.reshape(B, V * image_tokens, width)
    text_BPD = gemma.embed(language, obs.tokens, cfg.dtype)
    seen_mask_BS = jnp.repeat(obs.image_mask, image_tokens, axis=1)

    x_BSD = jnp.concatenate([seen_BSD, text_BPD], axis=1)
    mask_BS = jnp.concatenate([seen_mask_BS, obs.token_mask], axis=1)
    return x_BSD, mask_BS


def condition(params: dict, t_B: Array, cfg: variants.Pi0Config) -> Array:
    """pi0.5: flow times -> conditions of the expert's norms [B,D]."""
    time_BD = time_embedding(t_B, cfg.expert.width)
    # Of flow times, which all rows of a batch may have in common.
    hidden_BF = jax.nn.silu(linear.affine(params["time_mlp_in"], time_BD, is_batch=False))
    return jax.nn.silu(linear.affine(params["time_mlp_out"], hidden_BF, is_batch=False))


def embed_suffix(
    params: dict, state_BA: Array, x_BHA: Array, t_B: Array, cfg: variants.Pi0Config
) -> tuple[Array, Array]:
    """Tokens of expert 1 [B,T,D], and which of them start an attention block [T]."""
    action_BHD = meshes.by_rows(_linear(params["action_in_proj"], meshes.by_rows(x_BHA)))
    H = x_BHA.shape[1]
    if cfg.pi05:
        return action_BHD, jnp.arange(H) == 0
    time_BD = meshes.by_rows(time_embedding(t_B, cfg.expert.width))
    time_B1D = time_BD[:, None].astype(action_BHD.dtype)
    time_BHD = jnp.broadcast_to(time_B1D, action_BHD.shape)
    both = jnp.concatenate([action_BHD, time_BHD], axis=-1)
    hidden_BHF = meshes.by_rows(_linear(params["action_time_mlp_in"], both))
    action_BHD = _linear(params["action_time_mlp_out"], jax.nn.silu(hidden_BHF))
    action_BHD = meshes.by_rows(action_BHD)
    state_B1D = meshes.by_rows(_linear(params["state_proj"], state_BA))[:, None]
    x_BTD = jnp.concatenate([state_B1D, action_BHD], axis=1)
    # The state token is a block of its own; the first action token starts the other.
    return x_BTD, jnp.arange(1 + H) < 2


def decode(
    params: dict,
    prefix: Prefix,
    x_BHA: Array,
    t_B: Array,
    cfg: variants.Pi0Config,
    modulation: dict | None = None,
) -> tuple[Array, Array, Array]:
    """Expert 1 over the whole suffix: final states [B,T,D], its keys and values [L,B,T,K,h]."""
    x_BTD, starts_T = embed_suffix(params, prefix.state, x_BHA, t_B, cfg)
    seen, position_BT = suffix_attention(prefix.mask, starts_T)
    # Plain attention: few queries, and an odd number of them, which fused kernels do not take.
    return gemma.forward(
        params["PaliGemma"]["llm"],
        x_BTD.astype(cfg.dtype),
        position_BT,
        seen,
        cfg.expert,
        expert=1,
        remat_policy=cfg.remat,
        past=(prefix.k, prefix.v),
        modulation=modulation or modulations(params, t_B, cfg),
    )


def sight(valid_BT: Array, starts_T: Array) -> attention.Sight:
    """Of T tokens of each other: a query sees the valid keys of its own and all earlier blocks.

    `starts_T`: first token of a block.  A query that is not valid sees nothing.
    """
    block_T = jnp.cumsum(starts_T, dtype=jnp.int32)[None]
    return attention.Sight(
        query_BT=jnp.where(valid_BT, block_T, -1), key_BS=jnp.where(valid_BT, block_T, _UNSEEN)
    )


def positions(valid_BT: Array) -> Array:
    """Valid tokens are counted from 0; padding repeats the previous position.

    That is -1 before the first valid token.
    """
    return jnp.cumsum(valid_BT, axis=1) - 1


def suffix_attention(prefix_mask_BS: Array, starts_T: Array) -> tuple[attention.Sight, Array]:
    """What the suffix sees of prefix and itself, and its positions [B,T]; all its tokens are valid
    and see all of the prefix that is."""
    B = prefix_mask_BS.shape[0]
    T = starts_T.shape[0]
    valid_BT = jnp.ones((B, T), bool)
    own = sight(valid_BT, starts_T)
    past_BS = jnp.where(prefix_mask_BS, 0, _UNSEEN)
    both = attention.Sight(own.query_BT, jnp.concatenate([past_BS, own.key_BS], axis=1))
    prefix_length_B1 = prefix_mask_BS.sum(1, keepdims=True)
    return both, prefix_length_B1 + positions(valid_BT)


def time_embedding(
    t_B: Array, width: int, min_period: float = 4e-3, max_period: float = 4.0
) -> Array:
    """Sines then cosines of t at width / 2 geometrically spaced periods: [B,width] float32."""
    fraction = jnp.linspace(0.0, 1.0, width // 2)
    period = min_period * (max_period / min_period) ** fraction
    # The fastest angle is near 1571 rad, where float32 resolves 1.2e-4 rad: keep this order of
    # operations.
    frequency = 1.0 / period * 2 * jnp.pi
    angle = t_B[:, None] * frequency[None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def to_float(images: Array) -> Array:
    """uint8 -> float32 in [-1, 1]; float images pass."""
    if images.dtype != jnp.uint8:
        return images
    return images.astype(jnp.float32) / 255.0 * 2.0 - 1.0


def _linear(params: dict, x: Array) -> Array:
    """Affine layer on [B,T,D] or [B,D], in the wider of the dtypes of x and params."""
    return linear.affine(params, x, "BTD,DW->BTW" if x.ndim == 3 else None)
