"""Low-rank adapters in checkpoints: folded into the weights, kept alone, put back onto a base.

See models/lora.py for what an adapter computes.  Knows no file format.
"""

import dataclasses
from typing import Any

import numpy as np

from pirl_jax.models import pi0, variants
from pirl_jax.weights import accounting, sizes, sources


def merge(source: sources.Source) -> sources.Source:
    """The same policy without adapters.

    Sums in float32; a bfloat16 weight becomes float32 where its adapter is.
    Raises: ValueError for a checkpoint without adapters.
    """
    factors = _all_factors(source)
    if not factors:
        raise ValueError(f"{source.location} holds no adapters; leave --merge-lora out")
    kept = [path for path in source.shapes if "lora_" not in path]
    dtypes = {}
    for path in kept:
        summands = (path, *factors.get(path, ()))
        dtypes[path] = np.result_type(*(source.dtypes[name] for name in summands))

    def fetch(path: str, dtype: Any) -> np.ndarray:
        if path not in factors:
            return source.fetch(path, dtype)
        return _merged(source, path, factors[path]).astype(dtype, copy=False)

    cfg = source.cfg
    return dataclasses.replace(
        source,
        shapes={path: source.shapes[path] for path in kept},
        dtypes=dtypes,
        fetch=fetch,
        cfg=_with_lora(cfg, paligemma=None, expert=None),
    )


def _all_factors(source: sources.Source) -> dict[str, tuple[str, str]]:
    """Path of each weight that has an adapter -> paths of its factors A and B."""
    factors = {}
    for path in source.shapes:
        # Beside an attention's `w`, behind the name of a feed-forward's weight.
        stem = path.removesuffix("w") if path.endswith("/w") else f"{path}_"
        if f"{stem}lora_a" in source.shapes:
            factors[path] = (f"{stem}lora_a", f"{stem}lora_b")
    return factors


def _merged(source: sources.Source, path: str, factors: tuple[str, str]) -> np.ndarray:
    """w + scale * a b, float32."""
    w = np.array(source.fetch(path, np.float32))  # a fetched array may be a read-only view
    a = source.fetch(factors[0], np.float32)  # as w, but for the last axis: the rank
    b = source.fetch(factors[1], np.float32)  # as w, but for the one before the last: the rank
    scale = _scale(path, source.cfg)
    # Layer by layer: the product of a whole stack would be as large as the stack once more.
    for w_layer, a_layer, b_layer in zip(w, a, b, strict=True):
        if "attn_vec_einsum" in path:
            # Quirk of the published adapters: B is summed over heads.
            b_layer = b_layer.sum(0)
        w_layer += scale * (a_layer @ b_layer)
    return w


def _scale(path: str, cfg: variants.Pi0Config) -> float:
    if "/mlp" in path:
        return 1.0  # the feed-forward's adapters ignore alpha
    # Arrays of expert 1 have "_1" behind their names.
    expert = cfg.expert if "einsum_1/" in path else cfg.paligemma
    return expert.lora.attn_scale


def only(source: sources.Source) -> sources.Source:
    """What training with adapters changes.

    That is the adapters, and all that they do not freeze (vision tower, projections, heads).
    Raises: ValueError for a checkpoint without adapters.
    """
    frozen = pi0.frozen_by_lora(source.cfg)
    if not frozen:
        raise ValueError(f"{source.location} holds no adapters, so there is nothing to keep apart")
    kept = [path for path in source.shapes if path not in frozen]
    return dataclasses.replace(
        source,
        shapes={path: source.shapes[path] for path in kept},
        dtypes={path: source.dtypes[path] for path in kept},
        cfg=None,
    )


def overlay(base: sources.Source, top: sources.Source) -> sources.Source:
    """A base checkpoint with the arrays of another one added, or put in place of its own.

    Raises: ValueError where `top` was trained on another base.
    """
    added = [path for path in top.shapes if path not in base.shapes]
    foreign = [path for path in added if not _may_be_added(path)]
    if foreign:
        raise ValueError(
            f"{top.location} has {', '.join(sorted(foreign))}, which {base.location} lacks; "
            f"give the base it was trained on"
        )
    replaced = [path for path in base.shapes if path in top.shapes]
    accounting.require_shapes(
        {path: base.shapes[path] for path in replaced},
        {path: top.shapes[path] for path in replaced},
        top.location,
    )

    def fetch(path: str, dtype: Any) -> np.ndarray:
        holder = top if path in top.shapes else base
        return holder.fetch(path, dtype)

    shapes = {**base.shapes, **top.shapes}
    return dataclasses.replace(
        base,
        shapes=shapes,
        dtypes={**base.dtypes, **top.dtypes},
        fetch=fetch,
        ignored={**base.ignored, **top.ignored},
        cfg=sizes.infer(shapes),
    )


def _may_be_added(path: str) -> bool:
    return "lora_" in path or path.startswith(sources.HEADS)


def scaled(source: sources.Source, alpha_over_rank: float) -> sources.Source:
    """The scale of attention adapters, which no tensor tells."""
    cfg = source.cfg
    return dataclasses.replace(
        source,
        cfg=_with_lora(
            cfg,
            paligemma=_with_scale(cfg.paligemma.lora, alpha_over_rank),
            expert=_with_scale(cfg.expert.lora, alpha_over_rank),
        ),
    )


def _with_scale(
    lora: variants.LoraConfig | None, alpha_over_rank: float
) -> variants.LoraConfig | None:
    if lora is None:
        return None
    return dataclasses.replace(lora, attn_alpha=alpha_over_rank * lora.attn_rank)


def _with_lora(
    cfg: variants.Pi0Config,
    paligemma: variants.LoraConfig | None,
    expert: variants.LoraConfig | None,
) -> variants.Pi0Config:
    return dataclasses.replace(
        cfg,
        paligemma=dataclasses.replace(cfg.paligemma, lora=paligemma),
        expert=dataclasses.replace(cfg.expert, lora=expert),
    )
