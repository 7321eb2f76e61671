"""Memory and arithmetic of LIBERO recipes at full size, from shapes: nothing is allocated, no accelerator is needed.

Every recipe twice: as published, and made small the way configs/libero_spatial_ppo_pi0_24gb.py is.
"""

import argparse
import pathlib

import jax

from pirl_jax.core import mesh as meshes
from pirl_jax.envs import base
from pirl_jax.envs.libero import files
from pirl_jax.policy import flops
from pirl_jax.run import config, devices, plan, recipes

SMALL = {
    "model.frozen_dtype": "bfloat16",
    "model.gradient_checkpointing": "dots",
    "rollout.num_envs": 32,
    "rollout.episodes_per_iteration": 64,
    "algorithm.minibatch_size": 256,
    "algorithm.microbatch_size": 32,
}
NUM_INIT_STATES = 50


def add_arguments(parser) -> None:
    published = sorted(
        str(path)
        for path in pathlib.Path("configs").glob("libero_*.py")
        if path.stem.endswith(("_pi0", "_pi05"))
    )
    parser.add_argument(
        "--recipes",
        type=lambda text: text.split(","),
        default=published,
        help="files, separated by commas",
    )
    parser.add_argument(
        "--limit-gb",
        type=float,
        default=24.0,
        help="device memory that a small recipe should fit, 10^9 bytes",
    )
    parser.add_argument(
        "--prompt-tokens",
        type=int,
        default=32,
        help="padded prompt; LIBERO's prompts have at most 32 tokens",
    )


def run(options: argparse.Namespace) -> dict:
    """{recipe: {"memory, GB": {size: {part: value}}, "FLOP per row": {pass: {baseline, ours, ratio}}}}"""
    one = meshes.make_mesh(1, 1, jax.devices()[:1])
    return {pathlib.Path(name).stem: _recipe(name, one, options) for name in options.recipes}


def _recipe(name: str, one, options) -> dict:
    settings = config.settings(recipes.load_recipe(name))
    devices.setup_jax(settings)
    env = settings.raw.env
    if env.suite not in files.SUITES:
        raise ValueError(
            f"--recipes has {name}, whose env.suite={env.suite!r} is not LIBERO's; give LIBERO recipes"
        )
    limit = env.max_episode_steps or files.PROTOCOLS[env.protocol].max_episode_steps[env.suite]
    env_spec = base.EnvSpec(env.suite, (), NUM_INIT_STATES, limit, env.image_size_px)
    memory = {}
    for size, changes in {"as published": {}, "small": SMALL}.items():
        if settings.raw.algorithm.group_size > 1 and changes:
            episodes = 8 * settings.raw.algorithm.group_size
            changes = changes | {"rollout.episodes_per_iteration": episodes}
        changed = config.changed(settings, changes)
        made = plan.measure(
            changed,
            one,
            options.prompt_tokens,
            env_spec,
            limit=int(1e9 * options.limit_gb),
            thorough=True,
        )
        parts = made.resident | made.work | {"total": made.total, "kept prefixes": made.host}
        memory[size] = {part: round(value / 1e9, 2) for part, value in parts.items()} | {
            "fits": made.total <= made.limit
        }
    tokens = flops.Tokens(len(env_spec.cameras), options.prompt_tokens)
    batch = config.decision_batch(settings.raw, settings.raw.rollout.num_envs)
    return {
        "memory, GB": memory,
        "FLOP per row": flops.savings(settings.policy, tokens, "kept", batch),
    }


def as_text(result: dict) -> str:
    """Two lines per recipe."""
    head = ("weights", "optim.", "rollout", "update", "step", "total", "fits", "host")
    lines = [
        "",
        f"{'GB of one device; host: kept prefixes':<44}" + "".join(f"{name:>9}" for name in head),
    ]
    for recipe, row in result.items():
        for size, m in row["memory, GB"].items():
            values = (
                m["frozen weights"] + m["weights that train, float32"],
                m["optimiser"],
                m["rollout"],
                m["gradients, activations, microbatches"],
                m["optimiser step"],
                m["total"],
                "yes" if m["fits"] else "no",
                m["kept prefixes"],
            )
            lines.append(
                f"{recipe + ', ' + size:<44}"
                + "".join(f"{x if isinstance(x, str) else f'{x:.1f}':>9}" for x in values)
            )
    lines += ["", f"{'GFLOP per row, straightforward / ours':<44}{'rollout':>24}{'update':>27}"]
    for recipe, row in result.items():
        cells = (
            f"{x['baseline'] / 1e9:.0f} / {x['ours'] / 1e9:.0f} ({x['ratio']:.2f}x)"
            for x in row["FLOP per row"].values()
        )
        lines.append(f"{recipe:<44}" + "".join(f"{cell:>26}" for cell in cells))
    return "\n".join(lines)
