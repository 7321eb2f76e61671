"""Family and sizes of a network, read off the shapes of its parameters; never off a file's name.

What shapes do not say comes from the given configuration, else from what the family publishes:
action horizon, prompt length, compute dtype, alpha of adapters (published: alpha = rank), and in
PyTorch's layout, which merges heads, their number.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import math
from typing import Any

from pirl_jax.core import spec
from pirl_jax.models import pi0, variants
from pirl_jax.weights import torch_names

# Arrays that tell the sizes, with their axes (the dimension key of core/types.py).
TOKEN_EMBEDDING = "PaliGemma/llm/embedder/input_embedding"  # [V,D]
_PATCHES = "PaliGemma/img/embedding/kernel"  # [Y,X,3,D]
_POSITIONS = "PaliGemma/img/pos_embedding"  # [1,T,D]
_VISION_LAYERS = "PaliGemma/img/Transformer/encoderblock/"
_VISION_MLP = _VISION_LAYERS + "MlpBlock_0/Dense_0/kernel"  # [layer,D,F]
_VISION_QUERY = _VISION_LAYERS + "MultiHeadDotProductAttention_0/query/kernel"  # [layer,D,N,h]
_ACTION_IN = "action_in_proj/kernel"  # [A,D]
# Beginnings of the names of both experts; expert 1 has "_1" behind them.
_ATTENTION = "PaliGemma/llm/layers/attn/"
_MLP = "PaliGemma/llm/layers/mlp"
# Path -> number of axes.
_NEEDED = {
    _PATCHES: 4,
    _POSITIONS: 3,
    TOKEN_EMBEDDING: 2,
    _VISION_MLP: 3,
    _VISION_QUERY: 4,
    _ACTION_IN: 2,
    _ATTENTION + "attn_vec_einsum/w": 4,
    _ATTENTION + "attn_vec_einsum_1/w": 4,
    _MLP + "/linear": 3,
    _MLP + "_1/linear": 3,
}
# Fields of a configuration that no shape tells.
_FROM_SETTINGS = ("action_horizon", "max_token_len", "dtype", "remat", "attention")


def shapes_of(cfg: variants.Pi0Config) -> dict[str, tuple[int, ...]]:
    """Our paths -> shapes of the arrays, without the heads that reinforcement learning adds."""
    return {path: leaf.shape for path, leaf in spec.flatten(pi0.specs(cfg)).items()}


def infer(
    shapes: Mapping[str, tuple], given: variants.Pi0Config | None = None
) -> variants.Pi0Config:
    """The inverse of `shapes_of`: the network that arrays of these shapes are of.

    Raises: ValueError where a part is missing, and one that lists all contradictions with `given`.
    """
    _require(_NEEDED, shapes, "no whole pi0 or pi0.5 checkpoint")
    patch_px = shapes[_PATCHES][0]
    vision_depth, _, vision_mlp_dim = shapes[_VISION_MLP]
    siglip = variants.SiglipConfig(
        width=shapes[_PATCHES][-1],
        depth=vision_depth,
        mlp_dim=vision_mlp_dim,
        num_heads=shapes[_VISION_QUERY][2],
        patch=patch_px,
    )
    settings = {}
    if given is not None:
        settings = {name: getattr(given, name) for name in _FROM_SETTINGS}
    found = variants.pi0_config(
        _family(shapes, "time_mlp_in/kernel"),
        paligemma=_gemma(shapes, "", given and given.paligemma),
        expert=_gemma(shapes, "_1", given and given.expert),
        siglip=siglip,
        vocab_size=shapes[TOKEN_EMBEDDING][0],
        action_dim=shapes[_ACTION_IN][0],
        image_size=_image_size(shapes[_POSITIONS][1], patch_px, given),
        **settings,
    )
    if given is not None:
        _require_agreement(found, given)
    return found


def _require(needed: Mapping[str, int], shapes: Mapping[str, tuple], otherwise: str) -> None:
    """needed: name -> number of axes, none of which is empty."""
    lacking = [name for name in needed if name not in shapes]
    if lacking:
        near = torch_names.nearest(lacking[0], shapes)
        raise ValueError(
            f"{otherwise}: {', '.join(lacking)} missing; for the first of them the file has "
            f"{near or 'nothing'}"
        )
    for name, axes in needed.items():
        shape = shapes[name]
        if len(shape) != axes or 0 in shape:
            raise ValueError(
                f"{otherwise}: {name} has shape {list(shape)} and should have {axes} axes"
            )


def _family(shapes: Mapping[str, tuple], time_mlp: str) -> str:
    """Only pi0.5 gives the time to the norms of the expert, through a network of its own."""
    return "pi05" if time_mlp in shapes else "pi0"


def _gemma(
    shapes: Mapping[str, tuple], suffix: str, given: variants.GemmaConfig | None
) -> variants.GemmaConfig:
    """One expert.  suffix: "" or "_1"."""
    out = f"{_ATTENTION}attn_vec_einsum{suffix}"
    key_value = f"{_ATTENTION}kv_einsum{suffix}/w"
    depth, num_heads, head_dim, width = shapes[f"{out}/w"]  # [layer,N,h,D]
    num_kv_heads = num_heads
    if key_value in shapes:  # else queries, keys and values share one array
        _require({key_value: 5}, shapes, "no whole pi0 or pi0.5 checkpoint")
        num_kv_heads = shapes[key_value][2]  # [layer,2,K,D,h]
    lora = None
    if f"{out}/lora_a" in shapes:
        ranks = {f"{out}/lora_a": 4}
        feed_forward = f"{_MLP}{suffix}/linear_lora_a"
        if feed_forward in shapes:
            ranks[feed_forward] = 3
        _require(ranks, shapes, "no adapters of pi0 or pi0.5")
        attn_rank = shapes[f"{out}/lora_a"][-1]
        # Adapters may be on attention alone.
        ffn_rank = shapes[feed_forward][-1] if feed_forward in shapes else attn_rank
        lora = variants.LoraConfig(attn_rank, float(attn_rank), ffn_rank)
        if given and given.lora:
            # Alpha and its rule, which no tensor tells.
            lora = dataclasses.replace(given.lora, attn_rank=attn_rank, ffn_rank=ffn_rank)
    return variants.GemmaConfig(
        width=width,
        depth=depth,
        mlp_dim=shapes[f"{_MLP}{suffix}/linear"][1],  # [layer,F,D]
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        lora=lora,
    )


def _image_size(
    num_tokens: int, patch_px: int, given: variants.Pi0Config | None
) -> tuple[int, int]:
    """-> (Y, X) in px."""
    # Of a picture that is not square the number of tokens tells too little.
    if given and given.siglip.patch == patch_px and given.image_tokens == num_tokens:
        return given.image_size
    side = math.isqrt(num_tokens)
    if side * side != num_tokens:
        raise ValueError(
            f"{num_tokens} image tokens are no square picture; give --config RECIPE, whose model "
            f"section describes this network"
        )
    return (side * patch_px, side * patch_px)


def _require_agreement(found: variants.Pi0Config, given: variants.Pi0Config) -> None:
    in_checkpoint = _fields(found)
    in_configuration = _fields(given)
    wrong = []
    for name in {**in_checkpoint, **in_configuration}:
        # Adapters of the configuration that the checkpoint lacks start fresh.
        if ".lora." in name and name not in in_checkpoint:
            continue
        ours = in_checkpoint.get(name)
        theirs = in_configuration.get(name)
        if ours != theirs:
            wrong.append(f"{name} is {ours} in the checkpoint and {theirs} in the configuration")
    if wrong:
        raise ValueError(
            f"the checkpoint contradicts the configuration: {'; '.join(wrong)}; "
            f"mend the model section of the recipe"
        )


def _fields(cfg: variants.Pi0Config) -> dict[str, Any]:
    """Field -> value, at every depth: "expert.lora.attn_rank"."""
    fields = {}
    for path, value in spec.flatten(dataclasses.asdict(cfg)).items():
        name = path.replace("/", ".")
        if not name.endswith(".lora"):  # None: no adapters, so none of their fields either
            fields[name] = value
    return fields


# ---- PyTorch's layout ----------------------------------------------------------------------------


def infer_torch(
    tensors: Mapping[str, tuple], given: variants.Pi0Config | None = None
) -> variants.Pi0Config:
    """Names of torch_names.py -> shapes of the tensors: sizes of the network they are of.

    PyTorch merges heads and head_dim into one axis.  Whoever splits it needs their number, and only
    `given` and the known sizes tell that.
    Raises: ValueError where a part is missing or a size is unknown.
    """
    paligemma = torch_names.PALIGEMMA + "model.language_model."
    expert = torch_names.EXPERT + "model."
    patches = torch_names.VISION + "embeddings.patch_embedding.weight"
    positions = torch_names.VISION + "embeddings.position_embedding.weight"
    vision_mlp = torch_names.VISION + "encoder.layers.0.mlp.fc1.weight"
    matrices = [positions, vision_mlp, torch_names.EMBEDDING, "action_in_proj.weight"]
    for root in (paligemma, expert):
        matrices += [f"{root}layers.0.{name}.weight" for name in _NEEDED_OF_EXPERT]
    needed = {patches: 4} | dict.fromkeys(matrices, 2)
    _require(needed, tensors, "no pi0 or pi0.5 checkpoint of openpi, RLinf or LeRobot")
    width, _, patch_px, _ = tensors[patches]  # [D,3,Y,X]
    vision = _VisionSizes(
        width=width,
        depth=_depth(tensors, torch_names.VISION + "encoder."),
        mlp_dim=tensors[vision_mlp][0],
        patch=patch_px,
    )
    return variants.pi0_config(
        _family(tensors, "time_mlp_in.weight"),
        paligemma=_known_gemma(tensors, paligemma, given and given.paligemma),
        expert=_known_gemma(tensors, expert, given and given.expert),
        siglip=_known_siglip(vision, given and given.siglip),
        vocab_size=tensors[torch_names.EMBEDDING][0],
        action_dim=tensors["action_in_proj.weight"][1],
        image_size=_image_size(tensors[positions][0], patch_px, given),
    )


_NEEDED_OF_EXPERT = ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj")


@dataclasses.dataclass(frozen=True)
class _ExpertSizes:
    """What shapes of PyTorch tell of an expert."""

    width: int
    depth: int
    mlp_dim: int
    query: int  # heads times head_dim
    key: int


@dataclasses.dataclass(frozen=True)
class _VisionSizes:
    """And of the vision tower."""

    width: int
    depth: int
    mlp_dim: int
    patch: int  # px


def _depth(tensors: Iterable[str], root: str) -> int:
    layers = [name for name in tensors if name.startswith(f"{root}layers.")]
    return len({name.removeprefix(root).split(".")[1] for name in layers})


def _known_gemma(
    tensors: Mapping[str, tuple], root: str, given: variants.GemmaConfig | None
) -> variants.GemmaConfig:
    query, width = tensors[f"{root}layers.0.self_attn.q_proj.weight"]  # [Nh,D]
    sizes = _ExpertSizes(
        width=width,
        depth=_depth(tensors, root),
        mlp_dim=tensors[f"{root}layers.0.mlp.gate_proj.weight"][0],  # [F,D]
        query=query,
        key=tensors[f"{root}layers.0.self_attn.k_proj.weight"][0],  # [Kh,D]
    )
    for cfg in _candidates(given, variants.GEMMA):
        known = _ExpertSizes(
            width=cfg.width,
            depth=cfg.depth,
            mlp_dim=cfg.mlp_dim,
            query=cfg.num_heads * cfg.head_dim,
            key=cfg.num_kv_heads * cfg.head_dim,
        )
        if known == sizes:
            # Adapters are no part of these files.
            return dataclasses.replace(cfg, lora=None)
    raise ValueError(
        f"{root} has width {width}, {sizes.depth} layers, feed-forward {sizes.mlp_dim}, "
        f"queries {query} and keys {sizes.key} wide, which is no known size: {_HEADS_UNKNOWN}"
    )


def _known_siglip(
    sizes: _VisionSizes, given: variants.SiglipConfig | None
) -> variants.SiglipConfig:
    for cfg in _candidates(given, variants.SIGLIP):
        if _VisionSizes(cfg.width, cfg.depth, cfg.mlp_dim, cfg.patch) == sizes:
            return cfg
    raise ValueError(
        f"the vision tower has width {sizes.width}, {sizes.depth} layers, "
        f"feed-forward {sizes.mlp_dim}, patches of {sizes.patch} px, "
        f"which is no known size: {_HEADS_UNKNOWN}"
    )


_HEADS_UNKNOWN = (
    "PyTorch's layout does not tell the number of heads; give --config RECIPE, whose model section "
    "describes this network"
)


def _candidates(given: Any, known: Mapping[str, Any]) -> list[Any]:
    """What is given comes before what is published."""
    published = list(known.values())
    return published if given is None else [given, *published]
