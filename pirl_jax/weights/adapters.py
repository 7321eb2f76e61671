"""Low-rank adapters in checkpoints: folded into the weights, kept alone, put back onto a base.  See models/lora.py."""

import dataclasses

import numpy as np

from pirl_jax.models import pi0
from pirl_jax.weights import sizes, sources


def merge(source: sources.Source) -> sources.Source:
    """The same policy without adapters.  Sums in float32; a bfloat16 weight becomes float32 where its adapter is."""
    factors = {path: _factors(path) for path in source.shapes if _factors(path)[0] in source.shapes}
    if not factors:
        raise ValueError(f"{source.location} holds no adapters; leave --merge-lora out")
    dtypes = {
        path: np.result_type(*(source.dtypes[name] for name in (path, *factors.get(path, ()))))
        for path in source.shapes
    }

    def fetch(path, dtype):
        if path not in factors:
            return source.fetch(path, dtype)
        w, a, b = (source.fetch(name, np.float32) for name in (path, *factors[path]))
        scale = _scale(path, source.cfg)
        w = np.array(w)  # a fetched array may be a read-only view
        for w_layer, a_layer, b_layer in zip(w, a, b, strict=True):
            if "attn_vec_einsum" in path:
                b_layer = b_layer.sum(0)  # the adapter's quirk: B is summed over heads
            w_layer += scale * (a_layer @ b_layer)
        return w.astype(dtype, copy=False)

    shapes = {path: shape for path, shape in source.shapes.items() if "lora_" not in path}
    cfg = dataclasses.replace(
        source.cfg,
        paligemma=dataclasses.replace(source.cfg.paligemma, lora=None),
        expert=dataclasses.replace(source.cfg.expert, lora=None),
    )
    return dataclasses.replace(
        source, shapes=shapes, dtypes={path: dtypes[path] for path in shapes}, fetch=fetch, cfg=cfg
    )


def only(source: sources.Source) -> sources.Source:
    """What training with adapters changes: them, and all that they do not freeze (vision tower, projections, heads)."""
    frozen = pi0.frozen_by_lora(source.cfg)
    if not frozen:
        raise ValueError(f"{source.location} holds no adapters, so there is nothing to keep apart")
    shapes = {path: shape for path, shape in source.shapes.items() if path not in frozen}
    return dataclasses.replace(
        source, shapes=shapes, dtypes={path: source.dtypes[path] for path in shapes}, cfg=None
    )


def overlay(base: sources.Source, top: sources.Source) -> sources.Source:
    """A base checkpoint with the arrays of another one added, or put in place of its own."""
    own = {path: shape for path, shape in top.shapes.items() if path not in base.shapes}
    odd = [path for path in own if "lora_" not in path and not path.startswith(sources.HEADS)]
    if odd:
        raise ValueError(
            f"{top.location} has {', '.join(sorted(odd))}, which {base.location} lacks; give the base it was trained on"
        )
    shared = {path: shape for path, shape in base.shapes.items() if path in top.shapes}
    sources.account(shared, {path: top.shapes[path] for path in shared}, top.location)

    def fetch(path, dtype):
        return (top if path in top.shapes else base).fetch(path, dtype)

    shapes = {**base.shapes, **top.shapes}
    return dataclasses.replace(
        base,
        shapes=shapes,
        dtypes={**base.dtypes, **top.dtypes},
        fetch=fetch,
        ignored={**base.ignored, **top.ignored},
        cfg=sizes.infer(shapes),
    )


def scaled(source: sources.Source, alpha_over_rank: float) -> sources.Source:
    """The scale of attention adapters, which no tensor tells."""

    def change(cfg):
        lora = cfg.lora and dataclasses.replace(
            cfg.lora, attn_alpha=alpha_over_rank * cfg.lora.attn_rank
        )
        return dataclasses.replace(cfg, lora=lora)

    cfg = source.cfg
    return dataclasses.replace(
        source,
        cfg=dataclasses.replace(cfg, paligemma=change(cfg.paligemma), expert=change(cfg.expert)),
    )


def _factors(path: str) -> tuple[str, str]:
    """Paths of A and B of a weight: beside an attention's `w`, behind the name of a feed-forward's."""
    stem = path.removesuffix("w") if path.endswith("/w") else f"{path}_"
    return f"{stem}lora_a", f"{stem}lora_b"


def _scale(path: str, cfg) -> float:
    if "/mlp" in path:
        return 1.0  # the feed-forward's adapters ignore alpha
    return (cfg.expert if "einsum_1/" in path else cfg.paligemma).lora.attn_scale
