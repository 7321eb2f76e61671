"""AdamW with two learning rates, one gradient clip, and the rules that say which parameters train.

Parameters are nested dicts; a rule is a predicate on the '/'-joined path.  What does not train is
left out of the tree that the optimiser sees, so it has neither moments nor gradients.
"""

from collections.abc import Callable
import re

import jax
import jax.numpy as jnp
import optax

from pirl_jax.core import page, spec
from pirl_jax.models import pi0, variants


def learning_rates(cfg: page.Optim, step: int | jax.Array) -> dict[str, jax.Array]:
    """Learning rate of each parameter group at a step (of what the caller counts, from 0).

    Both follow one curve.
    """
    factor = SCHEDULES[cfg.schedule](cfg, jnp.asarray(step, jnp.float32))
    return {"policy": cfg.lr * factor, "value": cfg.value_lr * factor}


def init(cfg: page.Optim, params: dict) -> optax.OptState:
    """Optimiser state of the parameters that train."""
    return _transform(cfg).init(params)


def apply(
    cfg: page.Optim,
    grads: dict,
    opt_state: optax.OptState,
    params: dict,
    schedule_step: int | jax.Array,
    freeze_policy: bool | jax.Array = False,
    skip: bool | jax.Array = False,
    skip_idle: bool | jax.Array = False,
) -> tuple[dict, optax.OptState, dict]:
    """One step -> params, opt_state, metrics.

    A gradient that is not finite leaves everything as it was, and so does skip; skip_idle does
    where the gradient is 0 everywhere: weights would only decay.  freeze_policy
    spares the policy; the moments of the rest stay 0 meanwhile, but its bias correction ages: its
    first steps afterwards are shorter than those of a fresh Adam, never longer.  Both may be
    traced.
    """

    def thawed(group: str, g: jax.Array) -> jax.Array:
        return g if group == "value" else jnp.where(freeze_policy, 0.0, g)

    grads = _by_group(thawed, grads)
    norm = optax.tree.norm(grads)
    updates, new_opt_state = _transform(cfg).update(grads, opt_state, params)
    rates = learning_rates(cfg, schedule_step)
    rates["policy"] = jnp.where(freeze_policy, 0.0, rates["policy"])

    def moved(group: str, p: jax.Array, u: jax.Array) -> jax.Array:
        return (p - rates[group] * u).astype(p.dtype)

    new_params = _by_group(moved, params, updates)
    is_idle = skip_idle & (norm == 0)
    good = jnp.isfinite(norm) & jnp.logical_not(skip | is_idle)
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(good, new, old), (new_params, new_opt_state), (params, opt_state)
    )
    metrics = {
        "grad_norm": norm,
        "lr": rates["policy"],
        "value_lr": rates["value"],
        "skipped": 1.0 - good,
    }
    return params, opt_state, metrics


def _transform(cfg: page.Optim) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(cfg.clip_grad),
        optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps),
        optax.add_decayed_weights(cfg.weight_decay),
    )


def _by_group(fn: Callable[..., jax.Array], tree: dict, *trees: dict) -> dict:
    """fn(group, leaf, ...) over nested dicts of the same structure."""
    others = [spec.flatten(other) for other in trees]
    out = {}
    for path, leaf in spec.flatten(tree).items():
        group = "value" if path.startswith("value_head/") else "policy"
        out[path] = fn(group, leaf, *(other[path] for other in others))
    return spec.unflatten(out)


# ---- schedules: factor in [0, 1] -------------------------------------------------------------


def _constant(cfg: page.Optim, step: jax.Array) -> jax.Array:
    return jnp.minimum(1.0, step / cfg.warmup_steps) if cfg.warmup_steps else jnp.ones_like(step)


def _cosine_from(cfg: page.Optim, step: jax.Array) -> jax.Array:
    """Half a cosine from 1 at warmup_steps to min_lr_ratio at decay_steps, then constant."""
    progress = jnp.clip((step - cfg.warmup_steps) / (cfg.decay_steps - cfg.warmup_steps), 0.0, 1.0)
    return cfg.min_lr_ratio + (1.0 - cfg.min_lr_ratio) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))


def _cosine(cfg: page.Optim, step: jax.Array) -> jax.Array:
    warm = step / max(cfg.warmup_steps, 1)
    return jnp.where(step < cfg.warmup_steps, warm, _cosine_from(cfg, step))


def _openpi_cosine(cfg: page.Optim, step: jax.Array) -> jax.Array:
    """Warm-up from 1 / (warmup_steps + 1), so that the very first step moves."""
    first = 1.0 / (cfg.warmup_steps + 1)
    warm = first + (1.0 - first) * step / max(cfg.warmup_steps, 1)
    return jnp.where(step < cfg.warmup_steps, warm, _cosine_from(cfg, step))


SCHEDULES: dict[str, Callable] = {
    "constant": _constant,
    "cosine": _cosine,
    "openpi_cosine": _openpi_cosine,
}


# ---- what trains ------------------------------------------------------------


def trainable(model: variants.Pi0Config, train_expert_only: bool) -> Callable[[str], bool]:
    """Predicate on paths.

    train_expert_only freezes the VLM: everything under PaliGemma but expert 1 and adapters.
    Weights that adapters replace are frozen in any case (pi0.frozen_by_lora).
    """
    replaced = pi0.frozen_by_lora(model)

    def predicate(path: str) -> bool:
        # Only inside llm does _1 mean expert 1: the image tower has a LayerNorm_1 and a Dense_1 of
        # its own.
        of_vlm = path.startswith("PaliGemma/") and not re.search(r"^PaliGemma/llm/.*_1(/|$)", path)
        return path not in replaced and not (train_expert_only and of_vlm and "lora_" not in path)

    return predicate
