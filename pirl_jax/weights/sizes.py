"""Family and sizes of a network, read off the shapes of its parameters.  Never off a path or a file's name.

What shapes do not say comes from the given configuration, else from what the family publishes: action horizon, prompt
length, compute dtype, alpha of adapters (published: alpha = rank), and in PyTorch's layout, which merges heads, their
number.
"""

from collections.abc import Mapping
import dataclasses
import math

from pirl_jax.models import variants
from pirl_jax.weights import torch_names

_ATTN, _MLP = "PaliGemma/llm/layers/attn/", "PaliGemma/llm/layers/mlp"
_BLOCK = "PaliGemma/img/Transformer/encoderblock/"
_FROM_SETTINGS = ("action_horizon", "max_token_len", "dtype", "remat", "attention")


def infer(
    shapes: Mapping[str, tuple], given: variants.Pi0Config | None = None
) -> variants.Pi0Config:
    """Our paths -> shapes of the arrays; contradictions with `given` are a ValueError that lists all of them."""
    needed = [
        "PaliGemma/img/embedding/kernel",
        "PaliGemma/img/pos_embedding",
        "PaliGemma/llm/embedder/input_embedding",
        f"{_BLOCK}MlpBlock_0/Dense_0/kernel",
        f"{_BLOCK}MultiHeadDotProductAttention_0/query/kernel",
        "action_in_proj/kernel",
        *(f"{_ATTN}attn_vec_einsum{end}/w" for end in ("", "_1")),
        *(f"{_MLP}{end}/linear" for end in ("", "_1")),
    ]
    lacking = [path for path in needed if path not in shapes]
    if lacking:
        raise ValueError(f"no whole pi0 or pi0.5 checkpoint: {', '.join(lacking)} missing")
    patch, vision_width = shapes[needed[0]][0], shapes[needed[0]][-1]
    depth, _, vision_mlp = shapes[f"{_BLOCK}MlpBlock_0/Dense_0/kernel"]
    vision_heads = shapes[f"{_BLOCK}MultiHeadDotProductAttention_0/query/kernel"][2]
    pi05 = "time_mlp_in/kernel" in shapes
    found = variants.pi0_config(
        "pi05" if pi05 else "pi0",
        paligemma=_gemma(shapes, "", given and given.paligemma),
        expert=_gemma(shapes, "_1", given and given.expert),
        siglip=variants.SiglipConfig(vision_width, depth, vision_mlp, vision_heads, patch),
        vocab_size=shapes["PaliGemma/llm/embedder/input_embedding"][0],
        action_dim=shapes["action_in_proj/kernel"][0],
        image_size=_image_size(shapes["PaliGemma/img/pos_embedding"][1], patch, given),
        **({name: getattr(given, name) for name in _FROM_SETTINGS} if given else {}),
    )
    wrong = contradictions(found, given) if given else []
    if wrong:
        raise ValueError(
            f"the checkpoint contradicts the configuration: {'; '.join(wrong)}; mend the model section of the recipe"
        )
    return found


def contradictions(found: variants.Pi0Config, given: variants.Pi0Config) -> list[str]:
    """Adapters of the configuration that the checkpoint lacks are none: they start fresh."""
    ours, theirs = (_flat(dataclasses.asdict(cfg)) for cfg in (found, given))
    names = [name for name in {**ours, **theirs} if not (".lora." in name and name not in ours)]
    return [
        f"{name} is {ours.get(name)} in the checkpoint and {theirs.get(name)} in the configuration"
        for name in names
        if ours.get(name) != theirs.get(name)
    ]


def _flat(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        elif name != "lora":  # None; the fields of adapters are listed one by one
            flat[prefix + name] = value
    return flat


def _gemma(shapes, end: str, given: variants.GemmaConfig | None) -> variants.GemmaConfig:
    depth, heads, head_dim, width = shapes[f"{_ATTN}attn_vec_einsum{end}/w"]
    kv_heads = (
        shapes[f"{_ATTN}kv_einsum{end}/w"][2] if f"{_ATTN}kv_einsum{end}/w" in shapes else heads
    )
    lora = None
    if f"{_ATTN}attn_vec_einsum{end}/lora_a" in shapes:
        attn_rank = shapes[f"{_ATTN}attn_vec_einsum{end}/lora_a"][-1]
        ffn_rank = shapes.get(f"{_MLP}{end}/linear_lora_a", (attn_rank,))[-1]
        lora = variants.LoraConfig(attn_rank, float(attn_rank), ffn_rank)
        if given and given.lora:  # what no tensor tells
            lora = dataclasses.replace(given.lora, attn_rank=attn_rank, ffn_rank=ffn_rank)
    return variants.GemmaConfig(
        width, depth, shapes[f"{_MLP}{end}/linear"][1], heads, kv_heads, head_dim, lora
    )


def _image_size(tokens: int, patch: int, given) -> tuple[int, int]:
    if given and given.siglip.patch == patch and given.image_tokens == tokens:
        return (
            given.image_size
        )  # of a picture that is not square the number of tokens tells too little
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ValueError(
            f"{tokens} image tokens are no square picture; give the configuration of the model"
        )
    return (side * patch,) * 2


def split_heads(
    tensors: Mapping[str, tuple], given: variants.Pi0Config | None = None
) -> variants.Pi0Config:
    """Sizes of the network from shapes under the names of torch_names.py, whose entries split the heads by them."""
    roots = {
        "": torch_names.PALIGEMMA + "model.language_model.",
        "_1": torch_names.EXPERT + "model.",
    }
    vision = torch_names.PALIGEMMA + "model.vision_tower.vision_model."
    needed = [
        f"{vision}embeddings.patch_embedding.weight",
        f"{vision}embeddings.position_embedding.weight",
        f"{vision}encoder.layers.0.mlp.fc1.weight",
        torch_names.EMBEDDING,
        "action_in_proj.weight",
        *(
            f"{root}layers.0.{name}.weight"
            for root in roots.values()
            for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj")
        ),
    ]
    lacking = [name for name in needed if name not in tensors]
    if lacking:
        raise ValueError(
            f"no pi0 or pi0.5 checkpoint of openpi, RLinf or LeRobot: {', '.join(lacking)} missing"
        )
    experts = [
        _known_gemma(tensors, root, given and (given.expert if end else given.paligemma))
        for end, root in roots.items()
    ]
    vision_width, _, patch, _ = tensors[needed[0]]
    siglip = _known_siglip(
        vision_width,
        _depth(tensors, f"{vision}encoder."),
        tensors[needed[2]][0],
        patch,
        given and given.siglip,
    )
    pi05 = "time_mlp_in.weight" in tensors
    return variants.pi0_config(
        "pi05" if pi05 else "pi0",
        paligemma=experts[0],
        expert=experts[1],
        siglip=siglip,
        vocab_size=tensors[torch_names.EMBEDDING][0],
        action_dim=tensors["action_in_proj.weight"][1],
        image_size=_image_size(tensors[needed[1]][0], patch, given),
    )


def _depth(tensors, root: str) -> int:
    return len(
        {
            name.removeprefix(root).split(".")[1]
            for name in tensors
            if name.startswith(f"{root}layers.")
        }
    )


def _known_gemma(tensors, root, given):
    q, width = tensors[f"{root}layers.0.self_attn.q_proj.weight"]
    kv = tensors[f"{root}layers.0.self_attn.k_proj.weight"][0]
    mlp_dim, depth = tensors[f"{root}layers.0.mlp.gate_proj.weight"][0], _depth(tensors, root)
    for cfg in [given] * (given is not None) + list(variants.GEMMA.values()):
        if (cfg.width, cfg.depth, cfg.mlp_dim) == (width, depth, mlp_dim) and (
            cfg.num_heads * cfg.head_dim,
            cfg.num_kv_heads * cfg.head_dim,
        ) == (q, kv):
            return dataclasses.replace(cfg, lora=None)
    raise ValueError(
        f"{root} has width {width}, {depth} layers, feed-forward {mlp_dim}, queries {q} and keys {kv} wide, which is "
        f"no known size: PyTorch's layout does not tell the number of heads; give the configuration of the model"
    )


def _known_siglip(width, depth, mlp_dim, patch, given):
    for cfg in [given] * (given is not None) + list(variants.SIGLIP.values()):
        if (cfg.width, cfg.depth, cfg.mlp_dim, cfg.patch) == (width, depth, mlp_dim, patch):
            return cfg
    raise ValueError(
        f"the vision tower has width {width}, {depth} layers, feed-forward {mlp_dim}, patches of {patch} px, which "
        f"is no known size: PyTorch's layout does not tell the number of heads; give the configuration of the model"
    )
