"""The tiny network with which the reference's sampler and whole training iterations were recorded
(vectors' README, d_sampler):

    suffix = tanh(x Wx + t wt + state Ws + pos)
    v = action_out_proj(suffix)
    prefix = tanh(state prefix_W + prefix_P)

It stands in for pi0.velocity; everything else is the repository's own code.
"""

import jax.numpy as jnp
import numpy as np

from pirl_jax.core import page, spec
from pirl_jax.models import heads, pi0, variants
from pirl_jax.policy import flow

TORCH_STACKS = ("value_head.mlp.", "noise_head.mlp_logvar.moduleList.")


def install(monkeypatch):
    """For one test the policy's network is the analytic one."""
    monkeypatch.setattr(pi0, "velocity", velocity)
    monkeypatch.setattr(pi0, "modulations", lambda params, t_N, cfg: None)


def velocity(params, prefix, x_BHA, t_B, cfg, modulation):
    state_BW = (prefix.state @ params["Ws"])[:, None]
    moved = x_BHA @ params["Wx"] + t_B[:, None, None] * params["wt"][None, None]
    feature_BHW = jnp.tanh(moved + state_BW + params["pos"][None])
    out = params["action_out_proj"]
    return feature_BHW @ out["kernel"] + out["bias"][None, None], feature_BHW


def prefix(state_BQ, fixed: dict, cfg: flow.Policy) -> pi0.Prefix:
    """What prefill would give; a critic on the VLM sees the reference's tokens."""
    hidden = jnp.tanh((state_BQ @ fixed["prefix_W"])[:, None] + fixed["prefix_P"][None])
    none = jnp.zeros((len(state_BQ), 0))
    mask_BS = jnp.broadcast_to(reference_tokens(hidden.shape[1]), hidden.shape[:2])
    pooled = (
        heads.pool(hidden, mask_BS, cfg.model.value_vlm_mode) if cfg.model.value_after_vlm else None
    )
    return pi0.Prefix(k=none, v=none, mask=none, state=state_BQ, pooled=pooled)


def reference_tokens(length: int, num_images: int = 2):
    """The tokens that the reference pools: 256 per camera and every language slot (README Q21).

    None of the absent cameras; padding, too.  Three cameras and 200 (pi0.5) or 48 (pi0) slots make
    968 or 816 tokens.
    """
    place = jnp.arange(length)
    return (place < 256 * num_images) | (place >= 3 * 256)


def weights(z, start: str) -> tuple[dict, dict]:
    """Arrays of the file z whose names begin with `start` -> (our tree, what never trains)."""
    flat = {name[len(start) :]: z[name] for name in z.files if name.startswith(start)}
    fixed = {name: flat.pop(name) for name in ("prefix_W", "prefix_P") if name in flat}
    tree = {name: jnp.asarray(x) for name, x in flat.items() if "." not in name}
    for name, x in flat.items():
        if "." in name and "logvar_m" not in name:
            path, is_weight = _path(name, flat), name.endswith("weight")
            tree[f"{path}/{'kernel' if is_weight else 'bias'}"] = jnp.asarray(
                x.T if is_weight else x
            )
    return spec.unflatten(tree), fixed


def _path(name, flat):
    """Torch numbers the layers of a stack; ours are layer_0, ..., out."""
    for stack in TORCH_STACKS:
        if name.startswith(stack):
            number = lambda other, stack=stack: int(other[len(stack) :].split(".")[0])  # noqa: E731
            numbers = sorted({number(other) for other in flat if other.startswith(stack)})
            place = numbers.index(number(name))
            return (
                f"{stack.split('.')[0]}/{'out' if place == len(numbers) - 1 else f'layer_{place}'}"
            )
    return name.split(".")[0]


def policy(meta: dict) -> flow.Policy:
    """The recorded settings, RLinf's choices included: joint is the mean over start and steps."""
    base = variants.pi0_config(
        "tiny", action_dim=meta["action_dim"], action_horizon=meta["action_horizon"]
    )
    names = (
        "num_steps",
        "noise_method",
        "noise_level",
        "ignore_last",
        "action_chunk",
        "action_env_dim",
        "add_value_head",
        "value_after_vlm",
        "value_vlm_mode",
        "detach_critic_input",
        "chunk_critic_input",
    )
    model = page.Model(
        joint_mean=True,
        noise_steps="all" if meta["joint_logprob"] else "one",
        noise_logvar_range=tuple(meta["noise_logvar_range"]),
        **{n: meta[n] for n in names},
    )
    return flow.Policy(base, model)


def randomness(noise, denoise_inds, cfg: flow.Policy):
    """Recorded noise [J+1,B,H,A], indices [B,J] -> the randomness of flow.integrate."""
    j_BU = np.asarray(
        denoise_inds if cfg.model.noise_steps == "all" else denoise_inds[:, :1], np.int32
    )
    eps_BJHA = np.moveaxis(noise[1:], 0, 1)
    noise_BUHA = np.take_along_axis(eps_BJHA, np.maximum(j_BU, 0)[:, :, None, None], axis=1)
    return noise[0], j_BU, noise_BUHA
