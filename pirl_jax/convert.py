"""Convert a pi0 or pi0.5 checkpoint between formats, exactly, and say what was done.

    python -m pirl_jax.convert SRC DST --to openpi_torch --verify

SRC: a run of ours; a step of openpi's JAX trainer; a folder with model.safetensors (openpi, RLinf, LeRobot), one shard
or many; RLinf's full_weights.pt or the folder that holds it.  DST: a new folder.  Numbers change only where --dtype or
--merge-lora ask for it.
"""

import argparse
import dataclasses
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from pirl_jax.core import mesh as meshes
from pirl_jax.core import spec, types
from pirl_jax.models import pi0
from pirl_jax.policy import normalize
from pirl_jax.run import command
from pirl_jax.weights import adapters, assets, sources, targets


def convert(
    source: sources.Source,
    folder: pathlib.Path,
    to: str,
    *,
    dtype: str = "",
    heads: bool = False,
    asset_id: str = "",
    norm_stats: str = "",
    verify: bool = False,
) -> list[str]:
    """Write `source` into `folder` -> lines that say what was done."""
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; give a new folder")
    if verify and source.cfg is None:
        raise ValueError(
            "--verify runs the policy, and adapters alone are none; convert them back onto their base to verify"
        )
    stats = _stats(source, asset_id, norm_stats)
    lines = [describe("read", source)] + [
        f"  ignored {name}: {reason}" for name, reason in source.ignored.items()
    ]
    written, errors = targets.cast(source, dtype) if dtype else (source, {})
    notes = targets.WRITERS[to](folder, written, heads or to == "pirl")
    lines += [f"  {name}: {reason}" for name, reason in notes.items()]
    if errors:
        worst = max(errors, key=errors.get)
        lines.append(f"rounded to {dtype}: largest absolute error {errors[worst]:.3g}, in {worst}")
    if stats:
        paths = assets.save(folder, stats[0], to, asset_id)
        lines.append(f"norm stats: {stats[1]} -> {', '.join(str(path) for path in paths)}")
    else:
        lines.append(
            "norm stats: none found near the weights; give --norm-stats FILE, or copy them by hand"
        )
    if source.cfg is None:
        return [*lines, f"wrote {folder} ({to})"]
    result = sources.open_source(folder, source.cfg)
    lines.append(describe("wrote", result))
    return lines + (parity(source, result, written) if verify else [])


def describe(verb: str, source: sources.Source) -> str:
    count = sum(int(np.prod(shape)) for shape in source.shapes.values())
    kinds = ", ".join(sorted({dtype.name for dtype in source.dtypes.values()}))
    line = f"{verb} {source.location}: {source.format}, {len(source.shapes)} arrays, {count:,} parameters, {kinds}"
    cfg = source.cfg
    if cfg is None:
        return f"{line}; no whole network"
    sizes = f"PaliGemma {cfg.paligemma.width} x {cfg.paligemma.depth}, expert {cfg.expert.width}"
    family = f"{'pi0.5' if cfg.pi05 else 'pi0'} ({sizes})"
    ranks = [
        f"{name} rank {of.lora.attn_rank}, alpha {of.lora.attn_alpha:g}"
        for name, of in (("PaliGemma", cfg.paligemma), ("expert", cfg.expert))
        if of.lora
    ]
    return f"{line}; {family}{'; adapters: ' + ', '.join(ranks) if ranks else ''}"


def _stats(source, asset_id, given):
    return (normalize.load(given), given) if given else assets.find(source.location, asset_id)


def parity(source: sources.Source, result: sources.Source, written: sources.Source) -> list[str]:
    """Read the result back: against what was to be written bit by bit, and against the source as a policy."""
    wrong = [
        path for path in result.shapes if not _same_bits(result.read(path), written.read(path))
    ]
    if wrong:
        raise ValueError(
            f"{result.location} differs from what was written in {', '.join(wrong)}; the disk or the format is at fault"
        )
    before, after = actions(source), actions(result)
    error = np.abs(before - after).max()
    return [
        f"verified: {len(result.shapes)} arrays equal bit by bit; "
        f"actions of a fixed batch differ by {error:.3g} at most "
        f"(largest action {np.abs(before).max():.3g})"
    ]


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return (
        a.dtype == b.dtype and a.shape == b.shape and all(map(np.array_equal, _bits(a), _bits(b)))
    )


def _bits(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}")


def actions(source: sources.Source) -> np.ndarray:
    """Two Euler steps on one fixed random observation, in float32 -> [1,H,A]."""
    cfg = dataclasses.replace(source.cfg, dtype="float32")
    declared = pi0.specs(cfg)
    layout = spec.shardings(declared, meshes.make_mesh(devices=jax.devices()[:1]), meshes.RULES)
    params, _ = sources.load(source, declared, layout)
    draw = np.random.default_rng(0)
    obs = types.Observation(
        images=jnp.asarray(draw.integers(0, 256, (1, 2, *cfg.image_size, 3), dtype=np.uint8)),
        image_mask=jnp.ones((1, 2), bool),
        state=jnp.asarray(draw.standard_normal((1, cfg.action_dim)), jnp.float32),
        tokens=jnp.asarray(draw.integers(0, cfg.vocab_size, (1, 8)), jnp.int32),
        token_mask=jnp.ones((1, 8), bool),
    )
    noise = jnp.asarray(draw.standard_normal((1, cfg.action_horizon, cfg.action_dim)), jnp.float32)
    return np.asarray(jax.jit(pi0.sample, static_argnums=(3, 4))(params, noise, obs, cfg, 2))


def _arguments(argv) -> argparse.Namespace:
    parser = command.Parser("pirl convert", __doc__)
    parser.add_argument("source", metavar="SRC")
    parser.add_argument("folder", metavar="DST", type=pathlib.Path)
    parser.add_argument("--to", required=True, choices=targets.WRITERS)
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="",
        help="round or widen; default: as stored",
    )
    parser.add_argument(
        "--raw", action="store_true", help="the weights that trained, not their moving average"
    )
    parser.add_argument(
        "--adapters",
        metavar="DIR",
        help="put these adapters (--adapters-only) onto SRC, their base",
    )
    parser.add_argument(
        "--adapters-only",
        action="store_true",
        help="leave out what adapters froze; needs --to pirl",
    )
    parser.add_argument("--merge-lora", action="store_true", help="fold adapters into the weights")
    parser.add_argument(
        "--lora-scale",
        type=float,
        default=1.0,
        help="alpha / rank of the attention's adapters; 1: as published",
    )
    parser.add_argument(
        "--heads",
        action="store_true",
        help="keep value and noise head; RLinf reads them, openpi does not",
    )
    parser.add_argument(
        "--norm-stats",
        metavar="FILE",
        default="",
        help="norm_stats.json where none lies near the weights",
    )
    parser.add_argument(
        "--asset-id", default="", help=f"data set of the statistics; default {assets.LIBERO_ID}"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read the result back and run both policies on a fixed batch",
    )
    return parser.parse_args(argv)


def prepare(args: argparse.Namespace) -> sources.Source:
    """The source as the arguments want it."""
    source = sources.open_source(args.source, raw=args.raw)
    if args.adapters:
        source = adapters.overlay(source, sources.open_source(args.adapters, whole=False))
    source = adapters.scaled(source, args.lora_scale)
    if args.adapters_only and (args.merge_lora or args.to != "pirl"):
        raise ValueError(
            "--adapters-only keeps adapters as they are: it needs --to pirl and no --merge-lora"
        )
    if args.merge_lora:
        source = adapters.merge(source)
    return adapters.only(source) if args.adapters_only else source


def main(argv: list[str]) -> None:
    """argv: as sys.argv, the program's name first."""
    args = _arguments(argv[1:])
    with command.user_errors():
        lines = convert(
            prepare(args),
            args.folder,
            args.to,
            dtype=args.dtype,
            heads=args.heads,
            asset_id=args.asset_id,
            norm_stats=args.norm_stats,
            verify=args.verify,
        )
    print("\n".join(lines))


if __name__ == "__main__":
    main(sys.argv)
