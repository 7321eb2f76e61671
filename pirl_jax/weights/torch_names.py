"""The tensors of openpi's PyTorch port, RLinf and LeRobot, where each lies in our tree: one table for both directions.

A row: name in PyTorch ("{n}" is the layer), our path, slot of a stacked axis that follows the layer axis, and the axes,
ours > theirs; letters that stand together behind ">" are one axis of the tensor.  Axes as in core/types.py, plus P, Q
(pixels of a patch), C (colour), T (image tokens), I, O (in, out), 1.  A row exists in a model that has its path.
"""

import collections
from collections.abc import Mapping
import dataclasses
import math
import re

import numpy as np

PALIGEMMA, EXPERT = "paligemma_with_expert.paligemma.", "paligemma_with_expert.gemma_expert."
EMBEDDING = (
    PALIGEMMA + "lm_head.weight"
)  # tied: files hold it under one of two names, openpi's under this one
EMBEDDING_ALIAS = PALIGEMMA + "model.language_model.embed_tokens.weight"
UNUSED_HEAD = EXPERT + "lm_head.weight"

_VISION = PALIGEMMA + "model.vision_tower.vision_model."
_VISION_ROWS = [
    ("embeddings.patch_embedding.weight", "embedding/kernel", (), "PQCD>D,C,P,Q"),
    ("embeddings.patch_embedding.bias", "embedding/bias", (), "D>D"),
    ("embeddings.position_embedding.weight", "pos_embedding", (), "1TD>1T,D"),
    ("post_layernorm.weight", "Transformer/encoder_norm/scale", (), "D>D"),
    ("post_layernorm.bias", "Transformer/encoder_norm/bias", (), "D>D"),
]
_VISION_LAYER_ROWS = [
    ("layer_norm1.weight", "LayerNorm_0/scale", (), "D>D"),
    ("layer_norm1.bias", "LayerNorm_0/bias", (), "D>D"),
    ("layer_norm2.weight", "LayerNorm_1/scale", (), "D>D"),
    ("layer_norm2.bias", "LayerNorm_1/bias", (), "D>D"),
    ("mlp.fc1.weight", "MlpBlock_0/Dense_0/kernel", (), "DF>F,D"),
    ("mlp.fc1.bias", "MlpBlock_0/Dense_0/bias", (), "F>F"),
    ("mlp.fc2.weight", "MlpBlock_0/Dense_1/kernel", (), "FD>D,F"),
    ("mlp.fc2.bias", "MlpBlock_0/Dense_1/bias", (), "D>D"),
    *(
        (
            f"self_attn.{name[0]}_proj.weight",
            f"MultiHeadDotProductAttention_0/{name}/kernel",
            (),
            "DNh>Nh,D",
        )
        for name in ("query", "key", "value")
    ),
    *(
        (
            f"self_attn.{name[0]}_proj.bias",
            f"MultiHeadDotProductAttention_0/{name}/bias",
            (),
            "Nh>Nh",
        )
        for name in ("query", "key", "value")
    ),
    ("self_attn.out_proj.weight", "MultiHeadDotProductAttention_0/out/kernel", (), "NhD>D,Nh"),
    ("self_attn.out_proj.bias", "MultiHeadDotProductAttention_0/out/bias", (), "D>D"),
]
# "_x" is the expert's suffix.  Norms hold a scale, or the dense layer of a time-conditioned norm.
_GEMMA_LAYER_ROWS = [
    ("self_attn.q_proj.weight", "attn/q_einsum_x/w", (), "NDh>Nh,D"),
    ("self_attn.k_proj.weight", "attn/kv_einsum_x/w", (0,), "KDh>Kh,D"),
    ("self_attn.v_proj.weight", "attn/kv_einsum_x/w", (1,), "KDh>Kh,D"),
    *(
        (f"self_attn.{name}_proj.weight", "attn/qkv_einsum_x/w", (i,), "NDh>Nh,D")
        for i, name in enumerate("qkv")
    ),
    ("self_attn.o_proj.weight", "attn/attn_vec_einsum_x/w", (), "NhD>D,Nh"),
    ("mlp.gate_proj.weight", "mlp_x/gating_einsum", (0,), "DF>F,D"),
    ("mlp.up_proj.weight", "mlp_x/gating_einsum", (1,), "DF>F,D"),
    ("mlp.down_proj.weight", "mlp_x/linear", (), "FD>D,F"),
]
_NORM_ROWS = [
    ("weight", "scale", (), "D>D"),
    ("dense.weight", "Dense_0/kernel", (), "IO>O,I"),
    ("dense.bias", "Dense_0/bias", (), "O>O"),
]
_LINEARS = (
    "action_in_proj",
    "action_out_proj",
    "state_proj",
    "action_time_mlp_in",
    "action_time_mlp_out",
    "time_mlp_in",
    "time_mlp_out",
)
_LINEAR_ROWS = [("weight", "kernel", (), "IO>O,I"), ("bias", "bias", (), "O>O")]


def _placed(name: str, path: str, rows) -> list[tuple]:
    return [(name + row[0], path + row[1], *row[2:]) for row in rows]


def _expert_rows(root: str, suffix: str) -> list[tuple]:
    llm, layer = "PaliGemma/llm/", root + "layers.{n}."
    rows = [
        *_placed(layer, llm + "layers/", _GEMMA_LAYER_ROWS),
        *_placed(layer + "input_layernorm.", llm + "layers/pre_attention_norm_x/", _NORM_ROWS),
        *_placed(layer + "post_attention_layernorm.", llm + "layers/pre_ffw_norm_x/", _NORM_ROWS),
        *_placed(root + "norm.", llm + "final_norm_x/", _NORM_ROWS),
    ]
    return [(name, path.replace("_x/", f"{suffix}/"), *rest) for name, path, *rest in rows]


ROWS = [
    *_placed(_VISION, "PaliGemma/img/", _VISION_ROWS),
    *_placed(
        _VISION + "encoder.layers.{n}.",
        "PaliGemma/img/Transformer/encoderblock/",
        _VISION_LAYER_ROWS,
    ),
    *_placed(
        PALIGEMMA + "model.multi_modal_projector.linear.", "PaliGemma/img/head/", _LINEAR_ROWS
    ),
    (EMBEDDING, "PaliGemma/llm/embedder/input_embedding", (), "VD>V,D"),
    *_expert_rows(PALIGEMMA + "model.language_model.", ""),
    *_expert_rows(EXPERT + "model.", "_1"),
    *(row for name in _LINEARS for row in _placed(f"{name}.", f"{name}/", _LINEAR_ROWS)),
]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor: part `index` of the array at `path`, rearranged by `axes`."""

    name: str
    path: str
    index: tuple[int, ...]
    axes: str
    ours: tuple[int, ...]  # shape of that part
    shape: tuple[int, ...]  # shape of the tensor


def entries(shapes: Mapping[str, tuple]) -> list[Entry]:
    """Every tensor of a model whose arrays have these shapes.  Covers each array whole, or not at all."""
    result = []
    for name, path, slot, axes in ROWS + _head_rows(shapes):
        if path not in shapes:
            continue
        layers = range(shapes[path][0]) if "{n}" in name else (None,)
        for n in layers:
            index = slot if n is None else (n, *slot)
            ours = shapes[path][len(index) :]
            sizes = dict(zip(axes.partition(">")[0], ours, strict=True))
            shape = tuple(
                math.prod(sizes[axis] for axis in group)
                for group in axes.partition(">")[2].split(",")
            )
            result.append(Entry(name.format(n=n), path, index, axes, ours, shape))
    return result


def by_path(shapes: Mapping[str, tuple]) -> dict[str, list[Entry]]:
    """The tensors of each of our arrays; an array without a place in PyTorch's layout is an error."""
    parts = collections.defaultdict(list)
    for entry in entries(shapes):
        parts[entry.path].append(entry)
    homeless = sorted(shapes.keys() - parts.keys())
    if homeless:
        raise ValueError(
            f"PyTorch's layout has no place for {', '.join(homeless)}; merge adapters first (--merge-lora)"
        )
    return dict(parts)


def head_shapes(tensors: Mapping[str, tuple]) -> dict[str, tuple]:
    """Shapes of our heads, from those of RLinf's."""
    shapes = {}
    for head in HEADS:
        names = [
            name for name in tensors if name.startswith(f"{head}.") and name.endswith(".weight")
        ]
        names.sort(key=lambda name: int(re.search(r"\.(\d+)\.", name)[1]))
        for i, name in enumerate(names):
            layer = f"{head}/{'out' if name == names[-1] else f'layer_{i}'}"
            shapes |= {
                f"{layer}/kernel": tuple(tensors[name])[::-1],
                f"{layer}/bias": tuple(tensors[name])[:1],
            }
    return shapes


def _head_rows(shapes) -> list[tuple]:
    """RLinf's value head and noise head: layers counted from the input, the last one is our `out`."""
    layers = collections.Counter(path.split("/")[0] for path in shapes if path.endswith("/kernel"))
    rows = []
    for head, (form, step) in HEADS.items():
        for i in range(layers[head]):
            layer = "out" if i == layers[head] - 1 else f"layer_{i}"
            rows += _placed(form.format(step * i), f"{head}/{layer}/", _LINEAR_ROWS)
    return rows


# Our head -> RLinf's name, step of its counter (the value head counts activations too).
HEADS = {
    "value_head": ("value_head.mlp.{}.", 2),
    "noise_head": ("noise_head.mlp_logvar.moduleList.{}.linear_1.", 1),
}


def to_torch(part: np.ndarray, entry: Entry) -> np.ndarray:
    """Our part of an array -> the tensor."""
    ours, theirs = entry.axes.split(">")
    turned = part.transpose([ours.index(axis) for axis in theirs.replace(",", "")])
    tensor = np.empty(turned.shape, turned.dtype)
    copy_into(tensor, turned)
    return tensor.reshape(entry.shape)


def from_torch(tensor: np.ndarray, entry: Entry) -> np.ndarray:
    """The tensor -> our part of an array (a view where it can be)."""
    ours, theirs = entry.axes.split(">")
    sizes, order = dict(zip(ours, entry.ours, strict=True)), theirs.replace(",", "")
    return tensor.reshape([sizes[axis] for axis in order]).transpose(
        [order.index(axis) for axis in ours]
    )


def copy_into(out: np.ndarray, x: np.ndarray) -> None:
    """out[...] = x, in strips: a large matrix whose rows are a power of two apart turns 4 times faster that way."""
    strip = max(1, x.shape[-1]) if x.flags.c_contiguous else 16
    for i in range(0, out.shape[-1], strip):
        out[..., i : i + strip] = x[..., i : i + strip]


# Names in files -> names of the table.  LeRobot puts "model." in front; its first releases, and transformers before
# 4.52, have the parts of PaliGemma one level higher; transformers 5 leaves out "vision_model".
_SPELLINGS = [
    (r"(?:_fsdp_wrapped_module|_checkpoint_wrapped_module)\.", ""),  # sharded PyTorch trainers
    (
        r"^(?:module\.|_orig_mod\.|model\.)+"
        r"(?=paligemma_with_expert\.|action_|state_proj\.|time_mlp_|value_head\.|noise_head\.)",
        "",
    ),
    (
        r"\.paligemma\.(vision_tower|multi_modal_projector|language_model)\.",
        r".paligemma.model.\1.",
    ),
    (r"\.vision_tower\.(?!vision_model\.)", ".vision_tower.vision_model."),
    (r"\.language_model\.model\.", ".language_model."),
    (r"\.paligemma\.model\.language_model\.lm_head\.", ".paligemma.lm_head."),
]
IGNORED = {
    re.escape(UNUSED_HEAD): "output head of the action expert, which nothing reads",
    re.escape(EXPERT)
    + r"model\.embed_tokens\.weight": "token embedding of the action expert, which nothing reads",
    r".*\.(rotary_emb\.inv_freq|position_ids)": "a constant that the model computes",
    r"(un)?normalize_(inputs|targets|outputs)\.buffer_.*": "statistics of a data set; give them as norm_stats.json",
    r"noise_head\.logvar_(min|max)": "bounds of the noise, a setting of the policy and no weight",
}


def canonical(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors under the names of the table, and what is ignored: name in the file -> reason."""
    named, ignored, origin = {}, {}, {}
    for original, tensor in tensors.items():
        name = original
        for pattern, replacement in _SPELLINGS:
            name = re.sub(pattern, replacement, name)
        reasons = [reason for pattern, reason in IGNORED.items() if re.fullmatch(pattern, name)]
        if reasons:
            ignored[original] = reasons[0]
        elif name in named:
            raise ValueError(
                f"the checkpoint holds {name} twice, as {origin[name]} and as {original}; keep one of them"
            )
        else:
            named[name], origin[name] = tensor, original
    if EMBEDDING_ALIAS in named:
        if EMBEDDING in named:
            ignored[origin[EMBEDDING]] = (
                f"output head tied to {origin[EMBEDDING_ALIAS]}, which is used"
            )
        named[EMBEDDING] = named.pop(EMBEDDING_ALIAS)
    return named, ignored
