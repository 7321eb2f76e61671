"""The tensors of openpi's PyTorch port, RLinf and LeRobot, where each lies in our tree.

One table for both directions.  Knows names, shapes and the order of axes; no file and no network.

Letters of the axes as in the dimension key (core/types.py): Y, X and 3 are the pixels and the
colour of a patch, T the image tokens.  Besides, i and o are the inputs and outputs of a dense
layer, and 1 is an axis of size 1.
"""

import collections
from collections.abc import Iterable, Mapping
import dataclasses
import difflib
import math
import re

import numpy as np

from pirl_jax.core import outside

MOST_NEAREST = 3  # names that an error shows for one that is missing


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.  It exists in a model that has its path."""

    name: str  # in PyTorch; "{n}" is the layer
    path: str  # in our tree, where layers are stacked on the first axis
    axes: (
        str  # ours > theirs; ours behind layer and slot, letters that theirs merges stand together
    )
    slot: tuple[int, ...] = ()  # of a stacked axis that follows the layer axis


PALIGEMMA = "paligemma_with_expert.paligemma."
EXPERT = "paligemma_with_expert.gemma_expert."
# Tied: files hold it under one of two names, openpi's under the first.
EMBEDDING = PALIGEMMA + "lm_head.weight"
EMBEDDING_ALIAS = PALIGEMMA + "model.language_model.embed_tokens.weight"
UNUSED_HEAD = EXPERT + "lm_head.weight"

VISION = PALIGEMMA + "model.vision_tower.vision_model."
_VISION_ROWS = [
    Row("embeddings.patch_embedding.weight", "embedding/kernel", "YX3D>D,3,Y,X"),
    Row("embeddings.patch_embedding.bias", "embedding/bias", "D>D"),
    Row("embeddings.position_embedding.weight", "pos_embedding", "1TD>1T,D"),
    Row("post_layernorm.weight", "Transformer/encoder_norm/scale", "D>D"),
    Row("post_layernorm.bias", "Transformer/encoder_norm/bias", "D>D"),
]
_VISION_LAYER_ROWS = [
    Row("layer_norm1.weight", "LayerNorm_0/scale", "D>D"),
    Row("layer_norm1.bias", "LayerNorm_0/bias", "D>D"),
    Row("layer_norm2.weight", "LayerNorm_1/scale", "D>D"),
    Row("layer_norm2.bias", "LayerNorm_1/bias", "D>D"),
    Row("mlp.fc1.weight", "MlpBlock_0/Dense_0/kernel", "DF>F,D"),
    Row("mlp.fc1.bias", "MlpBlock_0/Dense_0/bias", "F>F"),
    Row("mlp.fc2.weight", "MlpBlock_0/Dense_1/kernel", "FD>D,F"),
    Row("mlp.fc2.bias", "MlpBlock_0/Dense_1/bias", "D>D"),
    Row("self_attn.q_proj.weight", "MultiHeadDotProductAttention_0/query/kernel", "DNh>Nh,D"),
    Row("self_attn.k_proj.weight", "MultiHeadDotProductAttention_0/key/kernel", "DNh>Nh,D"),
    Row("self_attn.v_proj.weight", "MultiHeadDotProductAttention_0/value/kernel", "DNh>Nh,D"),
    Row("self_attn.q_proj.bias", "MultiHeadDotProductAttention_0/query/bias", "Nh>Nh"),
    Row("self_attn.k_proj.bias", "MultiHeadDotProductAttention_0/key/bias", "Nh>Nh"),
    Row("self_attn.v_proj.bias", "MultiHeadDotProductAttention_0/value/bias", "Nh>Nh"),
    Row("self_attn.out_proj.weight", "MultiHeadDotProductAttention_0/out/kernel", "NhD>D,Nh"),
    Row("self_attn.out_proj.bias", "MultiHeadDotProductAttention_0/out/bias", "D>D"),
]
# "_x" is the expert's suffix.  A network whose experts have as many key heads as query heads has
# qkv_einsum, any other q_einsum and kv_einsum.
_GEMMA_LAYER_ROWS = [
    Row("self_attn.q_proj.weight", "attn/q_einsum_x/w", "NDh>Nh,D"),
    Row("self_attn.k_proj.weight", "attn/kv_einsum_x/w", "KDh>Kh,D", (0,)),
    Row("self_attn.v_proj.weight", "attn/kv_einsum_x/w", "KDh>Kh,D", (1,)),
    Row("self_attn.q_proj.weight", "attn/qkv_einsum_x/w", "NDh>Nh,D", (0,)),
    Row("self_attn.k_proj.weight", "attn/qkv_einsum_x/w", "NDh>Nh,D", (1,)),
    Row("self_attn.v_proj.weight", "attn/qkv_einsum_x/w", "NDh>Nh,D", (2,)),
    Row("self_attn.o_proj.weight", "attn/attn_vec_einsum_x/w", "NhD>D,Nh"),
    Row("mlp.gate_proj.weight", "mlp_x/gating_einsum", "DF>F,D", (0,)),
    Row("mlp.up_proj.weight", "mlp_x/gating_einsum", "DF>F,D", (1,)),
    Row("mlp.down_proj.weight", "mlp_x/linear", "FD>D,F"),
]
# A scale, or the dense layer of a norm that is conditioned on time.
_NORM_ROWS = [
    Row("weight", "scale", "D>D"),
    Row("dense.weight", "Dense_0/kernel", "io>o,i"),
    Row("dense.bias", "Dense_0/bias", "o>o"),
]
_LINEAR_ROWS = [Row("weight", "kernel", "io>o,i"), Row("bias", "bias", "o>o")]
_LINEARS = (
    "action_in_proj",
    "action_out_proj",
    "state_proj",
    "action_time_mlp_in",
    "action_time_mlp_out",
    "time_mlp_in",
    "time_mlp_out",
)
# Our head -> RLinf's name, step of its counter (the value head counts activations too).
HEADS = {
    "value_head": ("value_head.mlp.{}.", 2),
    "noise_head": ("noise_head.mlp_logvar.moduleList.{}.linear_1.", 1),
}


def _placed(name: str, path: str, rows: Iterable[Row]) -> list[Row]:
    """Rows behind a common beginning of their names and one of their paths."""
    return [dataclasses.replace(row, name=name + row.name, path=path + row.path) for row in rows]


def _expert_rows(root: str, suffix: str) -> list[Row]:
    llm = "PaliGemma/llm/"
    layer = root + "layers.{n}."
    rows = [
        *_placed(layer, llm + "layers/", _GEMMA_LAYER_ROWS),
        *_placed(layer + "input_layernorm.", llm + "layers/pre_attention_norm_x/", _NORM_ROWS),
        *_placed(layer + "post_attention_layernorm.", llm + "layers/pre_ffw_norm_x/", _NORM_ROWS),
        *_placed(root + "norm.", llm + "final_norm_x/", _NORM_ROWS),
    ]
    return [dataclasses.replace(row, path=row.path.replace("_x/", f"{suffix}/")) for row in rows]


def _all_rows() -> list[Row]:
    vision_layer = VISION + "encoder.layers.{n}."
    projector = PALIGEMMA + "model.multi_modal_projector.linear."
    rows = [
        *_placed(VISION, "PaliGemma/img/", _VISION_ROWS),
        *_placed(vision_layer, "PaliGemma/img/Transformer/encoderblock/", _VISION_LAYER_ROWS),
        *_placed(projector, "PaliGemma/img/head/", _LINEAR_ROWS),
        Row(EMBEDDING, "PaliGemma/llm/embedder/input_embedding", "VD>V,D"),
        *_expert_rows(PALIGEMMA + "model.language_model.", ""),
        *_expert_rows(EXPERT + "model.", "_1"),
    ]
    for name in _LINEARS:
        rows += _placed(f"{name}.", f"{name}/", _LINEAR_ROWS)
    return rows


ROWS = _all_rows()


# ---- what a model has ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor: part `index` of the array at `path`, rearranged by `axes`."""

    name: str
    path: str
    index: tuple[int, ...]
    axes: str  # as in Row
    part_shape: tuple[int, ...]  # of that part of our array
    tensor_shape: tuple[int, ...]  # of the tensor


def entries(shapes: Mapping[str, tuple]) -> list[Entry]:
    """Every tensor of a model whose arrays have these shapes.

    Covers each array whole, or not at all.
    """
    found = []
    for row in ROWS + _head_rows(shapes):
        if row.path not in shapes:
            continue
        shape = shapes[row.path]
        if "{n}" not in row.name:
            found.append(_entry(row, row.name, row.slot, shape))
            continue
        for n in range(shape[0]):
            found.append(_entry(row, row.name.format(n=n), (n, *row.slot), shape))
    return found


def _entry(row: Row, name: str, index: tuple[int, ...], shape: tuple[int, ...]) -> Entry:
    part_shape = shape[len(index) :]
    ours, theirs = row.axes.split(">")
    sizes = dict(zip(ours, part_shape, strict=True))
    tensor_shape = []
    for merged in theirs.split(","):
        tensor_shape.append(math.prod(sizes[axis] for axis in merged))
    return Entry(name, row.path, index, row.axes, part_shape, tuple(tensor_shape))


def by_path(shapes: Mapping[str, tuple]) -> dict[str, list[Entry]]:
    """The tensors of each of our arrays.

    Raises: ValueError for arrays without a place in PyTorch's layout.
    """
    parts = collections.defaultdict(list)
    for entry in entries(shapes):
        parts[entry.path].append(entry)
    homeless = sorted(shapes.keys() - parts.keys())
    if homeless:
        raise ValueError(
            f"PyTorch's layout has no place for {', '.join(homeless)}; "
            f"merge adapters first (--merge-lora)"
        )
    return dict(parts)


# ---- RLinf's heads: layers counted from the input, the last one is our `out` ---------------------


def head_shapes(tensors: Mapping[str, tuple]) -> dict[str, tuple]:
    """Shapes of our heads, from those of RLinf's.

    Raises: ValueError for a weight that is no matrix.
    """
    shapes = {}
    for head in HEADS:
        weights = _head_weights(tensors, head)
        for i, name in enumerate(weights):
            layer = _head_layer(head, i, len(weights))
            weight_shape = tuple(tensors[name])  # (out, in)
            if len(weight_shape) != 2:
                raise ValueError(
                    f"{name} has shape {list(weight_shape)}, and layers of a head have 2 axes; "
                    f"give another checkpoint"
                )
            shapes[f"{layer}kernel"] = weight_shape[::-1]
            shapes[f"{layer}bias"] = weight_shape[:1]
    return shapes


def _head_weights(tensors: Iterable[str], head: str) -> list[str]:
    """Names of the weights of a head, from the input to the output."""
    weights = []
    for name in tensors:
        if name.startswith(f"{head}.") and _COUNTED.search(name) and name.endswith(".weight"):
            weights.append(name)
    return sorted(weights, key=_counter)


_COUNTED = re.compile(r"\.([0-9]{1,6})\.")


def _counter(name: str) -> int:
    """12 of "value_head.mlp.12.weight": as text it would come before 2."""
    return int(_COUNTED.search(name)[1])


def _head_rows(shapes: Iterable[str]) -> list[Row]:
    kernels = [path for path in shapes if path.endswith("/kernel")]
    num_layers = collections.Counter(path.split("/")[0] for path in kernels)
    rows = []
    for head, (name, step) in HEADS.items():
        for i in range(num_layers[head]):
            layer = _head_layer(head, i, num_layers[head])
            rows += _placed(name.format(step * i), layer, _LINEAR_ROWS)
    return rows


def _head_layer(head: str, i: int, num_layers: int) -> str:
    return f"{head}/out/" if i == num_layers - 1 else f"{head}/layer_{i}/"


# ---- arrays --------------------------------------------------------------------------------------


def to_torch(part: np.ndarray, entry: Entry) -> np.ndarray:
    """Our part of an array -> the tensor."""
    ours, theirs = entry.axes.split(">")
    turned = part.transpose([ours.index(axis) for axis in theirs.replace(",", "")])
    tensor = np.empty(turned.shape, turned.dtype)
    copy_into(tensor, turned)
    return tensor.reshape(entry.tensor_shape)


def from_torch(tensor: np.ndarray, entry: Entry) -> np.ndarray:
    """The tensor -> our part of an array (a view where it can be)."""
    ours, theirs = entry.axes.split(">")
    sizes = dict(zip(ours, entry.part_shape, strict=True))
    order = theirs.replace(",", "")
    split = tensor.reshape([sizes[axis] for axis in order])
    return split.transpose([order.index(axis) for axis in ours])


def copy_into(out: np.ndarray, x: np.ndarray) -> None:
    """out[...] = x, for arrays of one shape.

    In strips: a large matrix whose rows are a power of two apart turns 4 times faster that way.
    """
    strip = max(1, x.shape[-1]) if x.flags.c_contiguous else 16
    for i in range(0, out.shape[-1], strip):
        out[..., i : i + strip] = x[..., i : i + strip]


# ---- names in files -> names of the table --------------------------------------------------------

# Parts of a name that wrappers leave, wherever they wrap: FSDP, torch.compile, DDP, DeepSpeed and
# Lightning; classes of policies.  No module of the table is called so.
WRAPPERS = (
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_orig_mod",
    "_forward_module",
    "module",
    "policy",
    "actor",
)
# Pattern -> replacement, one after the other.
_SPELLINGS = {
    rf"(?<![^.])(?:{'|'.join(WRAPPERS)})\.": "",
    # "model." is a wrapper, too (LeRobot's), but where transformers has a module of that name.
    r"(?<!\.paligemma\.)(?<!\.gemma_expert\.)(?<!\.language_model\.)(?<![^.])model\.": "",
    r"\.(paligemma|gemma_expert)\.model\.(?:model\.)+": r".\1.model.",
    # LeRobot's first releases, and transformers before 4.52: parts of PaliGemma one level higher.
    r"\.paligemma\.(vision_tower|multi_modal_projector|language_model)\.": r".paligemma.model.\1.",
    # Transformers 5 leaves out "vision_model".
    r"\.vision_tower\.(?!vision_model\.)": ".vision_tower.vision_model.",
    r"\.language_model\.model\.": ".language_model.",
    r"\.paligemma\.model\.language_model\.lm_head\.": ".paligemma.lm_head.",
}
# Pattern of a whole name -> why it is not used.
IGNORED = {
    re.escape(UNUSED_HEAD): "output head of the action expert, which nothing reads",
    re.escape(EXPERT) + r"model\.embed_tokens\.weight": (
        "token embedding of the action expert, which nothing reads"
    ),
    r".*\.(rotary_emb\.inv_freq|position_ids)": "a constant that the model computes",
    r"(un)?normalize_(inputs|targets|outputs)\.buffer_.*": (
        "statistics of a data set; give them as norm_stats.json"
    ),
    r"noise_head\.logvar_(min|max)": ("bounds of the noise, a setting of the policy and no weight"),
}


def canonical(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """-> (tensors under the names of the table, ignored: name in the file -> reason).

    Raises: ValueError where two tensors come to one name.
    """
    named: dict[str, np.ndarray] = {}
    ignored: dict[str, str] = {}
    origin: dict[str, str] = {}  # name in the table -> name in the file
    for original, tensor in tensors.items():
        name = _canonical_name(original)
        reason = _reason_to_ignore(name)
        if reason:
            ignored[original] = reason
            continue
        if name in named:
            raise ValueError(
                f"the checkpoint holds {name} twice, as {origin[name]} and as {original}; "
                f"keep one of them"
            )
        named[name] = tensor
        origin[name] = original
    if EMBEDDING_ALIAS in named:
        if EMBEDDING in named:
            used = origin[EMBEDDING_ALIAS]
            ignored[origin[EMBEDDING]] = f"output head tied to {used}, which is used"
        named[EMBEDDING] = named.pop(EMBEDDING_ALIAS)
    return named, ignored


def _canonical_name(name: str) -> str:
    for pattern, replacement in _SPELLINGS.items():
        name = re.sub(pattern, replacement, name)
    return name


def nearest(name: str, names: Iterable[str]) -> str:
    """Of the names in a file, the few that come closest to one of the table, for an error."""
    names = list(names)
    # Letters in common say little where names are long: first by what they end in.
    tail = ".".join(name.split(".")[-2:])
    ending = [other for other in names if other.endswith(tail)]
    close = difflib.get_close_matches(name, ending or names, n=MOST_NEAREST, cutoff=0.3)
    return outside.listed(close or names[:MOST_NEAREST])


def _reason_to_ignore(name: str) -> str:
    """Empty: the tensor is used."""
    for pattern, reason in IGNORED.items():
        if re.fullmatch(pattern, name):
            return reason
    return ""
