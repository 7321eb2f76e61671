"""Memory and arithmetic of LIBERO recipes at full size, from shapes.

Nothing is allocated, no accelerator is needed.
Every recipe twice: as published, and made small the way configs/libero_spatial_ppo_pi0_24gb.py is.
"""

import argparse
from collections.abc import Mapping
import pathlib
from typing import Any

import jax

from pirl_jax.core import mesh as meshes
from pirl_jax.envs import base
from pirl_jax.envs.libero import files
from pirl_jax.monitor import columns
from pirl_jax.policy import flops
from pirl_jax.run import command, config, devices, plan, recipes

GB = 1e9
SMALL = {
    "model.frozen_dtype": "bfloat16",
    "model.gradient_checkpointing": "dots",
    "rollout.num_envs": 32,
    "rollout.episodes_per_iteration": 64,
    "algorithm.minibatch_size": 256,
    "algorithm.microbatch_size": 32,
}
SMALL_GROUPS = 8  # GRPO: episodes come in whole groups
NUM_INIT_STATES = 50  # of every LIBERO task
# Column -> what it sums up of a plan.
MEMORY_COLUMNS = {
    "weights": ("frozen weights", "weights that train, float32"),
    "optim.": ("optimiser",),
    "rollout": ("rollout",),
    "update": ("gradients, activations, microbatches",),
    "step": ("optimiser step",),
    "total": ("total",),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    published = [name for name in recipes.names() if name.endswith(("_pi0", "_pi05"))]
    parser.add_argument(
        "--recipes", default=",".join(published), help="names or files, separated by commas"
    )
    parser.add_argument(
        "--limit-gb",
        type=command.number(float, 1e-3, 1e6),
        default=24.0,
        help="device memory that a small recipe should fit, 10^9 bytes",
    )
    parser.add_argument(
        "--prompt-tokens",
        type=command.number(int, 1, 10_000),
        default=32,
        help="padded prompt; LIBERO's prompts have at most 32 tokens",
    )


def run(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """{recipe: {"memory, GB": {size: {part: value}}, "FLOP per row": {pass: {...}}}}

    A pass has baseline, ours and ratio (policy/flops.py savings).
    """
    # Of one device, however many this machine has.
    mesh = meshes.make_mesh(1, 1, jax.devices()[:1])
    names = options.recipes.split(",")
    return {pathlib.Path(name).stem: _recipe(name, mesh, options) for name in names}


def _recipe(recipe: str, mesh: jax.sharding.Mesh, options: argparse.Namespace) -> dict[str, Any]:
    settings = config.settings(recipes.load_recipe(recipe, "--recipes"))
    devices.setup_jax(settings)
    env_spec = _env_spec(recipe, settings.raw.env)
    memory = {}
    # thorough: a plan that does not fit is of interest here, to the last executable.
    for size, changes in (("as published", {}), ("small", _small(settings))):
        needed = plan.measure(
            config.changed(settings, changes),
            mesh,
            options.prompt_tokens,
            env_spec,
            limit=int(GB * options.limit_gb),
            thorough=True,
        )
        memory[size] = _in_gb(needed)
    tokens = flops.Tokens(len(env_spec.cameras), options.prompt_tokens)
    batch = config.decision_batch(settings.raw, settings.raw.rollout.num_envs)
    return {
        "memory, GB": memory,
        "FLOP per row": flops.savings(settings.policy, tokens, "kept", batch),
    }


def _env_spec(recipe: str, env: Any) -> base.EnvSpec:
    """What the plan needs to know of the suite, without a simulator.  env: the page's section."""
    if not files.members(env.suite):
        raise ValueError(
            f"--recipes has {recipe}, whose env.suite={env.suite!r} is not LIBERO's; "
            f"give LIBERO recipes"
        )
    limit = env.max_episode_steps
    if not limit:
        limit = max(map(files.PROTOCOLS[env.protocol].limit, files.members(env.suite)))
    return base.EnvSpec(
        suite=env.suite,
        instructions=(),
        num_init_states=NUM_INIT_STATES,
        max_episode_steps=limit,
        image_size_px=env.image_size_px,
    )


def _small(settings: config.Settings) -> dict[str, Any]:
    group_size = settings.raw.algorithm.group_size
    if group_size == 1:
        return SMALL
    return SMALL | {"rollout.episodes_per_iteration": SMALL_GROUPS * group_size}


def _in_gb(needed: plan.Plan) -> dict[str, float | bool]:
    parts = needed.resident | needed.work
    parts |= {"total": needed.total, "kept prefixes": needed.host}
    in_gb = {part: round(size / GB, 2) for part, size in parts.items()}
    return in_gb | {"fits": needed.total <= needed.limit}


def as_text(result: Mapping[str, Any]) -> str:
    """Memory, two lines per recipe, then arithmetic, one line per recipe."""
    memory = []
    arithmetic = []
    for recipe, row in result.items():
        for size, parts in row["memory, GB"].items():
            memory.append([f"{recipe}, {size}", *_memory_cells(parts)])
        savings = row["FLOP per row"]
        arithmetic.append([recipe, _savings(savings["rollout"]), _savings(savings["update"])])
    memory_header = ["GB of one device; host: kept prefixes", *MEMORY_COLUMNS, "fits", "host"]
    arithmetic_header = ["GFLOP per row, straightforward / ours", "rollout", "update"]
    tables = [
        columns.aligned(memory, memory_header),
        columns.aligned(arithmetic, arithmetic_header),
    ]
    return "\n" + "\n\n".join(tables)


def _memory_cells(parts: Mapping[str, float | bool]) -> list[str]:
    cells = []
    for names in MEMORY_COLUMNS.values():
        size = sum(parts[name] for name in names)
        cells.append(f"{size:.1f}")
    cells.append("yes" if parts["fits"] else "no")
    cells.append(f"{parts['kept prefixes']:.1f}")
    return cells


def _savings(flop: Mapping[str, float]) -> str:
    """Of one pass."""
    return f"{flop['baseline'] / GB:.0f} / {flop['ours'] / GB:.0f} ({flop['ratio']:.2f}x)"
