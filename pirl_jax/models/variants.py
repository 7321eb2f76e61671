"""Sizes of the networks, and the source of each number.  Knows no parameter and no array."""

import dataclasses
import math
from typing import Any

from pirl_jax.core import bounds


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters of one expert.

    Those of the feed-forward are not scaled, so they have no alpha.
    """

    attn_rank: int
    attn_alpha: float
    ffn_rank: int
    rslora: bool = False  # divide alpha by sqrt(rank) instead of rank
    # Of fresh adapters: zeros (B is 0, they change nothing) | openpi (both factors random).
    init: str = "zeros"

    @property
    def attn_scale(self) -> float:
        """What the adapter of an attention map is multiplied with."""
        divisor = math.sqrt(self.attn_rank) if self.rslora else self.attn_rank
        return self.attn_alpha / divisor


@dataclasses.dataclass(frozen=True)
class GemmaConfig:
    """One expert (weight set) of the two-expert language transformer."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    lora: LoraConfig | None = None


@dataclasses.dataclass(frozen=True)
class SiglipConfig:
    """The vision tower."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    patch: int  # px


@dataclasses.dataclass(frozen=True)
class Pi0Config:
    """A whole policy network."""

    pi05: bool
    paligemma: GemmaConfig  # expert 0, reads images and prompt
    expert: GemmaConfig  # expert 1, reads state and noisy actions
    siglip: SiglipConfig
    vocab_size: int
    action_dim: int
    action_horizon: int
    max_token_len: int  # tokens a prompt is padded to; the network itself takes any length
    image_size: tuple[int, int] = (224, 224)  # Y, X in px
    dtype: str = "bfloat16"  # of activations; parameters keep their own
    remat: str = "none"  # what the backward pass recomputes, see remat.POLICIES
    attention: str = "auto"  # of the prefix: auto, or a line of attention.IMPLEMENTATIONS

    def __post_init__(self):
        for field in ("depth", "num_heads", "num_kv_heads", "head_dim"):
            one = getattr(self.paligemma, field)
            other = getattr(self.expert, field)
            if one != other:
                raise ValueError(
                    f"model.paligemma_variant and model.action_expert_variant share attention, so"
                    f" {field} must agree; it is {one} and {other}"
                )
        if any(size % self.siglip.patch for size in self.image_size):
            raise ValueError(
                f"model.image_size_px={self.image_size[0]} must be a multiple of the patch"
                f" of {self.siglip.patch} px"
            )
        if self.paligemma.num_heads % self.paligemma.num_kv_heads:
            raise ValueError(
                f"num_heads {self.paligemma.num_heads} must be a multiple of num_kv_heads "
                f"{self.paligemma.num_kv_heads}"
            )
        if self.siglip.width % self.siglip.num_heads:
            raise ValueError(
                f"SigLIP width {self.siglip.width} must divide by its {self.siglip.num_heads} heads"
            )

    @property
    def image_tokens(self) -> int:
        """Tokens of one camera."""
        return math.prod(size // self.siglip.patch for size in self.image_size)


# Gemma 2B of the Gemma report (arXiv:2403.08295, table 1); the 300M action expert keeps its depth
# and heads so that both can share attention, with a narrower residual stream and feed-forward (pi0
# report, arXiv:2410.24164, appendix B).  Adapter ranks are those of the published low-memory
# recipes.  "tiny" is ours: the smallest that has every part; "small" learns the embedded suite on a
# CPU.
GEMMA = {
    "gemma_2b": GemmaConfig(2048, 18, 16384, 8, 1, 256),
    "gemma_300m": GemmaConfig(1024, 18, 4096, 8, 1, 256),
    "gemma_2b_lora": GemmaConfig(2048, 18, 16384, 8, 1, 256, LoraConfig(16, 16.0, 16)),
    "gemma_300m_lora": GemmaConfig(1024, 18, 4096, 8, 1, 256, LoraConfig(32, 32.0, 32)),
    "dummy": GemmaConfig(64, 4, 128, 8, 1, 16),
    "small": GemmaConfig(64, 2, 128, 2, 1, 32),
    "small_expert": GemmaConfig(64, 2, 192, 2, 1, 32),
    "tiny": GemmaConfig(64, 2, 128, 4, 1, 16),
    "tiny_expert": GemmaConfig(32, 2, 64, 4, 1, 16),
}

# So400m: the shape-optimised ViT (arXiv:2305.13035) that PaliGemma uses with patches of 14 px
# (arXiv:2407.07726).
SIGLIP = {
    "so400m": SiglipConfig(1152, 27, 4304, 16, 14),
    "tiny": SiglipConfig(32, 2, 64, 2, 8),
    "small": SiglipConfig(96, 2, 192, 2, 16),
}

# 257152 = 256000 Gemma tokens + 1024 location + 128 segmentation tokens (PaliGemma).  Horizons: 50
# is pi0_base; 10 is what the published pi0.5 LIBERO checkpoint was trained with.  32 is the padded
# action (and state) dimension of both.
_VOCAB = 257152


def _full(pi05: bool, paligemma: str, expert: str) -> Pi0Config:
    return Pi0Config(
        pi05=pi05,
        paligemma=GEMMA[paligemma],
        expert=GEMMA[expert],
        siglip=SIGLIP["so400m"],
        vocab_size=_VOCAB,
        action_dim=32,
        action_horizon=10 if pi05 else 50,
        max_token_len=200 if pi05 else 48,
    )


def _tiny(pi05: bool) -> Pi0Config:
    return Pi0Config(
        pi05=pi05,
        paligemma=GEMMA["tiny"],
        expert=GEMMA["tiny_expert"],
        siglip=SIGLIP["tiny"],
        vocab_size=512,
        action_dim=8,
        action_horizon=10,
        max_token_len=16,
        image_size=(16, 16),
        dtype="float32",
    )


def _small(pi05: bool) -> Pi0Config:
    return Pi0Config(
        pi05=pi05,
        paligemma=GEMMA["small"],
        expert=GEMMA["small_expert"],
        siglip=SIGLIP["small"],
        vocab_size=266,  # of the byte tokenizer
        action_dim=8,
        action_horizon=10,
        max_token_len=20,
        image_size=(64, 64),
        dtype="float32",
    )


def pi0_config(name: str, **changes: Any) -> Pi0Config:
    """A whole network by name; `changes` replace fields of Pi0Config.

    Raises: ValueError for an unknown name.
    """
    if name not in PI0:
        raise bounds.unknown("model", name, PI0)
    return dataclasses.replace(PI0[name], **changes)


def with_lora(cfg: Pi0Config, rank: int) -> Pi0Config:
    """Adapters in the VLM's language layers, alpha = rank (scale 1).

    The action expert keeps its own weights.
    """
    lora = LoraConfig(rank, float(rank), rank)
    return dataclasses.replace(cfg, paligemma=dataclasses.replace(cfg.paligemma, lora=lora))


def with_lora_init(cfg: Pi0Config, init: str) -> Pi0Config:
    """Another initialisation of the adapters that there are; a line of LORA_INITS."""

    def changed(expert: GemmaConfig) -> GemmaConfig:
        if expert.lora is None:
            return expert
        return dataclasses.replace(expert, lora=dataclasses.replace(expert.lora, init=init))

    return dataclasses.replace(cfg, paligemma=changed(cfg.paligemma), expert=changed(cfg.expert))


LORA_INITS = ("zeros", "openpi")

PI0 = {
    "pi0": _full(False, "gemma_2b", "gemma_300m"),
    "pi05": _full(True, "gemma_2b", "gemma_300m"),
    "pi0_lora": _full(False, "gemma_2b_lora", "gemma_300m_lora"),
    "pi05_lora": _full(True, "gemma_2b_lora", "gemma_300m_lora"),
    "small": _small(False),
    "small_pi05": _small(True),
    "tiny": _tiny(False),
    "tiny_pi05": _tiny(True),
}
