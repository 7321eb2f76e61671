"""Memory and arithmetic of LIBERO recipes at full size, from shapes; or programs for a --target.

Nothing is allocated, no accelerator is needed.  Without a target every recipe twice: as published,
and made small the way configs/libero_spatial_ppo_pi0_24gb.py is.  With one, what its compiler says
of every program of any recipe (docs/targets.md).
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
from pirl_jax.run import command, config, devices, outlook, plan, program_table, recipes

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
        "--recipes",
        "--config",
        default=",".join(published),
        help="names or files, separated by commas",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="override a field of every recipe, for example mesh.fsdp=8",
    )
    parser.add_argument(
        "--limit-gb",
        type=command.number(float, 1e-3, 1e6),
        default=24.0,
        help="device memory that a small recipe should fit, 10^9 bytes",
    )
    outlook.add_arguments(parser)


def run(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """{recipe: {"memory, GB": {size: {part: value}}, "FLOP per row": {pass: {...}}}}

    A pass has baseline, ours and ratio (policy/flops.py savings).  With a target: {recipe: what
    outlook.report says}.
    """
    names = options.recipes.split(",")
    if options.target:
        return {
            pathlib.Path(name).stem: outlook.answer(options, _settings(name, options))
            for name in names
        }
    outlook.require_target(options)
    # Of one device, however many this machine has.
    mesh = meshes.make_mesh(1, 1, jax.devices()[:1])
    return {pathlib.Path(name).stem: _recipe(name, mesh, options) for name in names}


def _settings(recipe: str, options: argparse.Namespace) -> config.Settings:
    page = recipes.load_recipe(recipe, "--recipes")
    return config.settings(command.override(page, [f"--config.{one}" for one in options.set]))


def _recipe(recipe: str, mesh: jax.sharding.Mesh, options: argparse.Namespace) -> dict[str, Any]:
    settings = _settings(recipe, options)
    devices.setup_jax(settings)
    env_spec = _env_spec(recipe, settings)
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


def _env_spec(recipe: str, settings: config.Settings) -> base.EnvSpec:
    """What the plan needs to know of the suite, without a simulator."""
    suite = settings.raw.env.suite
    if not files.members(suite):
        raise ValueError(
            f"--recipes has {recipe}, whose env.suite={suite!r} is not LIBERO's; "
            f"give LIBERO recipes"
        )
    return outlook.env_spec(settings)


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
    """Memory, two lines per recipe, then arithmetic, one line per recipe; or a table per recipe."""
    of_targets = []
    for recipe, row in result.items():
        if "programs" in row:
            of_targets.append(f"\n{recipe} on {program_table.as_text(row)}")
    if of_targets:
        return "\n".join(of_targets)
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
