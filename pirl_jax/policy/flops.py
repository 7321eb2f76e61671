"""Arithmetic of the policy, counted from shapes.

FLOPs of matrix products, a multiply-add being two: what a row (one decision) costs in each pass,
ours and the straightforward one.  Model FLOPs: what gradient checkpointing computes a second time
is not counted, nor are norms, softmaxes and the like (a few per cent).  Knows shapes only.
"""

import dataclasses
import itertools

from pirl_jax.core import bounds
from pirl_jax.models import heads, variants
from pirl_jax.policy import flow


@dataclasses.dataclass(frozen=True)
class Tokens:
    """What the prefix of one row consists of."""

    cameras: int
    prompt: int  # tokens that the prompt is padded to

    def count(self, cfg: variants.Pi0Config) -> int:
        """All of them."""
        return self.cameras * cfg.image_tokens + self.prompt


def vision(cfg: variants.Pi0Config) -> int:
    """The vision tower, one image."""
    T = cfg.image_tokens
    tower = cfg.siglip
    projections = _dense(4 * tower.width, tower.width)
    attention = 4 * T * tower.width
    feed_forward = _dense(2 * tower.width, tower.mlp_dim)
    block = projections + feed_forward + attention
    stem = _dense(tower.patch**2 * 3, tower.width)
    head = _dense(tower.width, cfg.paligemma.width)
    return T * (tower.depth * block + stem + head)


def language(cfg: variants.GemmaConfig, tokens: int, keys: int, skip_last: bool = False) -> int:
    """All layers of one expert over `tokens` that attend to `keys`.

    skip_last: of the last layer only its keys and values.
    """
    D, h = cfg.width, cfg.head_dim
    N, K = cfg.num_heads, cfg.num_kv_heads
    keys_values = _dense(D, 2 * K * h)
    queries_and_out = 2 * _dense(D, N * h)
    attention = 4 * keys * N * h
    feed_forward = 3 * _dense(D, cfg.mlp_dim)
    rest = queries_and_out + feed_forward + attention
    return tokens * (cfg.depth * keys_values + (cfg.depth - skip_last) * rest)


def adapters(cfg: variants.GemmaConfig, tokens: int) -> int:
    """The low-rank part of an expert's linear maps."""
    if cfg.lora is None:
        return 0
    D, h, r = cfg.width, cfg.head_dim, cfg.lora.attn_rank
    N, K = cfg.num_heads, cfg.num_kv_heads
    inputs = (N + 2 * K) * (_dense(D, r) + _dense(r, h))
    # The rank activations of the output are summed over heads (models/lora.py), so B is used once.
    output = N * _dense(h, r) + _dense(r, D)
    feed_forward = 3 * _dense(D + cfg.mlp_dim, cfg.lora.ffn_rank)
    return tokens * cfg.depth * (inputs + output + feed_forward)


def prefix(cfg: variants.Pi0Config, tokens: Tokens, hidden: bool) -> int:
    """Vision tower and expert 0.

    hidden: the last layer too, which only a critic on the VLM reads.
    """
    S = tokens.count(cfg)
    tower = tokens.cameras * vision(cfg)
    layers = language(cfg.paligemma, S, S, not hidden)
    return tower + layers + adapters(cfg.paligemma, S)


def denoise(cfg: variants.Pi0Config, prefix_tokens: int, conditions: float = 1.0) -> float:
    """Expert 1 once: one denoise step.

    conditions: flow times per row that pi0.5 makes conditions of; J / B where shared.
    """
    H, A = cfg.action_horizon, cfg.action_dim
    D = cfg.expert.width
    T = _suffix_tokens(cfg)
    ends = 2 * H * _dense(A, D)
    if cfg.pi05:
        norms = 2 * cfg.expert.depth + 1
        ends += conditions * (2 * _dense(D, D) + norms * _dense(D, 3 * D))
    else:
        ends += H * _dense(3 * D, D) + _dense(A, D)
    layers = language(cfg.expert, T, prefix_tokens + T)
    return ends + layers + adapters(cfg.expert, T)


def critic(cfg: flow.Policy) -> int:
    """The value head, one row."""
    if not cfg.model.add_value_head:
        return 0
    reader = cfg.network.paligemma if cfg.model.value_after_vlm else cfg.network.expert
    return _stack(reader.width, *cfg.model.value_hidden, 1)


def noise_head(cfg: flow.Policy) -> int:
    """The learned std of flow_noise, one row."""
    if cfg.model.noise_method != "flow_noise":
        return 0
    one_action = _stack(cfg.network.expert.width, *heads.NOISE_HIDDEN, cfg.network.action_dim)
    return cfg.network.action_horizon * one_action


def step(cfg: flow.Policy, tokens: Tokens, conditions: float = 1.0) -> float:
    """A denoise step with its heads, forward."""
    network = denoise(cfg.network, tokens.count(cfg.network), conditions)
    return network + critic(cfg) + noise_head(cfg)


def rollout(
    cfg: flow.Policy, tokens: Tokens, hidden: bool | None = None, conditions: float = 1.0
) -> float:
    """One decision: prefix and J denoise steps.

    hidden: None asks whether the critic reads the VLM's output.
    """
    hidden = reads_vlm(cfg) if hidden is None else hidden
    return prefix(cfg.network, tokens, hidden) + cfg.model.num_steps * step(cfg, tokens, conditions)


def update(
    cfg: flow.Policy,
    tokens: Tokens,
    vlm: str,
    hidden: bool | None = None,
    conditions: float = 1.0,
) -> float:
    """One row of one update epoch, forward and backward.  vlm: a line of VLM.

    What trains costs twice its forward pass in the backward pass; frozen weights that gradients
    pass through cost it once.

    Raises: ValueError for an unknown vlm.
    """
    if vlm not in VLM:
        raise bounds.unknown("vlm", vlm, VLM)
    hidden = reads_vlm(cfg) if hidden is None else hidden
    draws_one = cfg.nft is not None and cfg.nft.steps == "one"
    scored = cfg.model.num_steps if cfg.model.noise_steps == "all" and not draws_one else 1
    total = 3 * scored * step(cfg, tokens, conditions)
    model = cfg.network
    S = tokens.count(model)
    if vlm in ("kept", "frozen"):
        total -= scored * _slopes_of_prefix(model, S)
    if vlm == "kept":
        return total
    tower = tokens.cameras * vision(model)
    layers = language(model.paligemma, S, S, not hidden)
    if vlm == "trained":
        return total + 3 * (tower + layers)
    if vlm == "lora":
        # Gradients pass through the frozen layers on their way to the adapters.
        return total + (tower + 2 * layers + 3 * adapters(model.paligemma, S))
    return total + (tower + layers)


def _slopes_of_prefix(cfg: variants.Pi0Config, prefix_tokens: int) -> int:
    """By the keys and values of the prefix, of one denoise step: two products, which nobody asks
    for where no gradient reaches the VLM (models/attention.py)."""
    expert = cfg.expert
    pairs = _suffix_tokens(cfg) * prefix_tokens
    return 4 * expert.depth * pairs * expert.num_heads * expert.head_dim


def _suffix_tokens(cfg: variants.Pi0Config) -> int:
    """Of one denoise step; pi0 has a state token."""
    return cfg.action_horizon + (not cfg.pi05)


def reads_vlm(cfg: flow.Policy) -> bool:
    """A critic on the VLM's output needs its last layer."""
    return cfg.model.add_value_head and cfg.model.value_after_vlm


def baseline(cfg: flow.Policy) -> Tokens:
    """The straightforward prefix: three cameras, prompts padded to their limit."""
    return Tokens(3, cfg.network.max_token_len)


def savings(cfg: flow.Policy, tokens: Tokens, vlm: str, batch: int) -> dict[str, dict[str, float]]:
    """FLOPs per row, {pass: {baseline, ours, ratio}}.

    The baseline computes three cameras, full padding, the whole prefix and every condition for each
    row, decision and epoch; that it also does so for rows after an episode's end is not counted.

    vlm: what ours does in the update; batch: rows that share the conditions of the J flow times.
    """
    wide = baseline(cfg)
    recomputed = "frozen" if vlm == "kept" else vlm
    return {
        "rollout": _compared(
            rollout(cfg, wide, hidden=True),
            rollout(cfg, tokens, conditions=1 / batch),
        ),
        "update": _compared(
            update(cfg, wide, recomputed, hidden=True),
            update(cfg, tokens, vlm, conditions=cfg.model.num_steps / batch),
        ),
    }


def _compared(baseline: float, ours: float) -> dict[str, float]:
    return {"baseline": baseline, "ours": ours, "ratio": baseline / ours}


def _stack(*sizes: int) -> int:
    return sum(_dense(fan_in, fan_out) for fan_in, fan_out in itertools.pairwise(sizes))


def _dense(fan_in: int, fan_out: int) -> int:
    return 2 * fan_in * fan_out


# What an update does with the VLM: nothing (its prefix was kept) | forward | forward, adapters
# learn | all of it learns.
VLM = ("kept", "frozen", "lora", "trained")
