"""What a recipe leaves to the memory plan: the choices, the fastest first, and what a user may give
up where none fits.

Refuses to know how memory is measured (run/plan.py).
"""

import collections
from collections.abc import Iterator
import itertools
import math

import jax

from pirl_jax.core import mesh as meshes
from pirl_jax.models import remat
from pirl_jax.run import config, devices

LARGEST_MICROBATCH = 128  # of one device
# How much longer an update takes, where nobody estimates it: one number is worth ten compilations.
# Of prefixes: device and host give the same arithmetic, but rows travel; computing them again is
# most of the arithmetic of an update (policy/flops.py: 37 times at full size).
COST_OF_CACHE = {"device": 1.0, "host": 1.1, "recompute": 40.0}
# Of moments on the host while episodes are played: they travel twice in an iteration.
COST_OF_OFFLOAD = {"off": 1.0, "optimizer": 1.05}
# A microbatch costs what does not depend on its rows, too: about as much as this many rows on each
# device (compiled for v5e and v5p, docs/targets.md).
FIXED_ROWS = 16


def candidates(settings: config.Settings, mesh: jax.sharding.Mesh) -> list[config.Settings]:
    """Settings without open choices, the fastest first.

    Open are rollout.prefix_cache, placement.offload and model.gradient_checkpointing "auto", and
    algorithm.microbatch_size 0.

    Raises:
      ValueError: no microbatch divides over the devices.
    """
    whole = settings.raw.algorithm.minibatch_size
    asked = settings.raw.algorithm.microbatch_size
    # Those that keep prefixes give away as many rows each, too.
    divisor = math.lcm(mesh.size, devices.playing(settings, mesh).size * meshes.hosts(mesh))
    halves = [size for size in _halves(whole, mesh.size) if not size * mesh.size % divisor]
    sizes = [asked] if asked else halves
    if not sizes:
        raise ValueError(
            f"algorithm.minibatch_size={whole} has no part that divides over the {divisor} "
            f"devices of the mesh; make it a multiple of {divisor}"
        )
    found = []
    choices = itertools.product(
        _offloads(settings), _caches(settings, mesh), _policies(settings), sizes
    )
    for offload, cache, policy, size in choices:
        changes = {
            "placement.offload": offload,
            "rollout.prefix_cache": cache,
            "algorithm.microbatch_size": size,
            "model.gradient_checkpointing": policy,
        }
        found.append(config.changed(settings, changes))
    return sorted(found, key=_cost)


def rivals(chosen: config.Settings, others: list[config.Settings]) -> Iterator[config.Settings]:
    """Those that differ from the chosen one in checkpointing alone: what is written and read again
    may cost more than what is computed again."""
    policy = chosen.raw.model.gradient_checkpointing
    for one in others:
        same = config.changed(one, {"model.gradient_checkpointing": policy})
        if same == chosen and one != chosen:
            yield one


def least(settings: config.Settings, mesh: jax.sharding.Mesh) -> config.Settings:
    """The candidate that asks for least memory of a device."""
    return min(candidates(settings, mesh), key=_appetite)


def changes(settings: config.Settings) -> Iterator[dict]:
    """What a user may give up, the smallest first: one by one, then together."""
    raw = settings.raw
    single = []
    if raw.model.frozen_dtype == "float32" and raw.model.dtype == "bfloat16":
        single.append({"model.frozen_dtype": "bfloat16"})
    if raw.rollout.prefix_cache in ("device", "host"):
        single.append({"rollout.prefix_cache": "auto"})
    if raw.algorithm.microbatch_size:
        single.append({"algorithm.microbatch_size": 0})
    if raw.model.gradient_checkpointing not in ("auto", remat.LEAST):
        single.append({"model.gradient_checkpointing": "auto"})
    if raw.placement.offload == "off" and _may_offload(settings):
        single.append({"placement.offload": "auto"})
    for together in range(1, len(single) + 1):
        for some in itertools.combinations(single, together):
            merged = {}
            for change in some:
                merged |= change
            yield merged


def last_resort(mesh: jax.sharding.Mesh) -> str:
    """What a user may do where no change of these fits."""
    if not meshes.spans_hosts(mesh):
        return "raise mesh.fsdp over more devices"
    by_host = collections.Counter(device.process_index for device in mesh.devices.flat)
    return (
        f"with mesh.fsdp={mesh.shape['fsdp']}, over several hosts, each device that plays holds"
        f" all parameters; set mesh.fsdp={min(by_host.values())}, the devices of a host, which"
        f" share them there"
    )


def _cost(one: config.Settings) -> float:
    """Of an update, in units of the fastest."""
    slower = remat.COST[one.raw.model.gradient_checkpointing]
    slower *= COST_OF_OFFLOAD[one.raw.placement.offload]
    rows = one.raw.algorithm.microbatch_size
    return COST_OF_CACHE[one.prefix_cache] * slower * (1 + FIXED_ROWS / rows)


def computed_again(one: config.Settings) -> int:
    """How much the backward pass computes again, as a rank: more of it takes less memory."""
    return list(remat.POLICIES).index(one.raw.model.gradient_checkpointing)


def _appetite(one: config.Settings) -> tuple[int, int, int]:
    """Smaller: less memory of a device."""
    in_the_way = [
        one.prefix_cache == "device",
        one.raw.placement.offload == "off",
        one.prefix_cache == "recompute",
    ]
    rank = sum(4 >> place for place, there in enumerate(in_the_way) if there)
    return rank, -computed_again(one), one.raw.algorithm.microbatch_size


def _policies(settings: config.Settings) -> tuple[str, ...]:
    asked = settings.raw.model.gradient_checkpointing
    return tuple(remat.POLICIES) if asked == "auto" else (asked,)


def _offloads(settings: config.Settings) -> tuple[str, ...]:
    """Where moments may lie while episodes are played."""
    asked = settings.raw.placement.offload
    if asked != "auto":
        return (asked,)
    return ("off", "optimizer") if _may_offload(settings) else ("off",)


def _may_offload(settings: config.Settings) -> bool:
    """Whether those devices play that moments take room on, while nothing is learned."""
    ahead = settings.raw.rollout.max_staleness
    return not ahead and devices.roles(settings).mode != "separate"


def _caches(settings: config.Settings, mesh: jax.sharding.Mesh) -> tuple[str, ...]:
    """Where prefixes may lie."""
    asked = settings.raw.rollout.prefix_cache
    if asked != "auto":
        return (asked,)
    if not settings.keep_prefix:
        return ("recompute",)
    is_apart = devices.roles(settings).mode == "separate"
    plays_on = is_apart and settings.raw.rollout.max_staleness  # schedule.require
    if plays_on or mesh.devices.flat[0].platform == "cpu":  # whose memory is the host's
        return "host", "recompute"
    return "device", "host", "recompute"


def _halves(minibatch_size: int, devices: int) -> Iterator[int]:
    """The largest microbatch of a device, its half, and so on."""
    each, left = divmod(minibatch_size, devices)
    if left:
        return
    sizes = range(min(each, LARGEST_MICROBATCH), 0, -1)
    size = next((size for size in sizes if not each % size), 0)
    while size:
        yield size
        size = 0 if size % 2 else size // 2
