"""Convert a pi0 or pi0.5 checkpoint between formats, exactly, and say what was done.

    python -m pirl_jax.convert SRC DST --to openpi_torch --verify

SRC: a run of ours; an experiment of openpi's trainers or of LeRobot, or one step of it; a folder
with model.safetensors (openpi, RLinf, LeRobot), one shard or many; RLinf's full_weights.pt or the
folder that holds it.
DST: a new folder.
Numbers change only where --dtype or --merge-lora ask for it.
"""

import argparse
from collections.abc import Iterator
import contextlib
import dataclasses
import pathlib
import shutil
import sys

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from pirl_jax.core import locks, paths, secrets, spec, types
from pirl_jax.core import mesh as meshes
from pirl_jax.models import pi0, variants
from pirl_jax.policy import normalize
from pirl_jax.run import checkpoints, command, config, preemption
from pirl_jax.weights import adapters, assets, claims, resolve, sources, targets

# Of the policy that --verify runs.
EULER_STEPS = 2
NUM_CAMERAS = 2
PROMPT_TOKENS = 8


def convert(
    source: sources.Source,
    folder: pathlib.Path,
    to: str,
    *,
    dtype: str = "",
    heads: bool = False,
    asset_id: str = "",
    norm_stats: pathlib.Path | None = None,
    verify: bool = False,
) -> list[str]:
    """Write `source` into `folder` -> lines that say what was done.

    to: key of targets.WRITERS; the other arguments are those of the command.
    Raises: ValueError before anything is written, or where --verify finds a difference.
    """
    _require_new(folder)
    if verify and source.cfg is None:
        raise ValueError(
            "--verify runs the policy, and adapters alone are none; "
            "convert them back onto their base to verify"
        )
    stats = _find_stats(source, asset_id, norm_stats)
    if source.cfg is not None and source.place is not None:
        # Before anything is read.
        print(checkpoints.record(source, stats[1] if stats else ""), flush=True)
    if stats is not None and to != "pirl":
        assets.require_moments(stats[0])
    lines = [describe("read", source)]
    lines += [f"  ignored {name}: {reason}" for name, reason in source.ignored.items()]
    written = source
    errors: dict[str, float] = {}
    if dtype:
        written, errors = targets.cast(source, dtype)
    # Of our own runs the heads are a part, asked for or not.
    with _whole_or_absent(folder):
        notes = targets.WRITERS[to](folder, written, heads or to == "pirl")
        where = _save_stats(folder, stats, to, asset_id)
    lines += [f"  {name}: {reason}" for name, reason in notes.items()]
    if errors:
        worst = max(errors, key=errors.get)
        lines.append(f"rounded to {dtype}: largest absolute error {errors[worst]:.3g}, in {worst}")
    lines.append(where)
    if source.cfg is None:
        return [*lines, f"wrote {folder} ({to})"]
    result = sources.open_source(folder, source.cfg)
    lines += _unsaid(source, result)
    lines.append(describe("wrote", result))
    if verify:
        lines.append(parity(source, result, written))
    return lines


@contextlib.contextmanager
def _whole_or_absent(folder: pathlib.Path) -> Iterator[None]:
    """Half a checkpoint would be in the way of the next attempt, or taken for a whole one."""
    was_there = folder.exists()
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        if was_there:
            folder.mkdir()
        raise


def _require_new(folder: pathlib.Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a new folder")
    if folder.exists() and any(path.name != locks.NAME for path in folder.iterdir()):
        raise ValueError(f"{folder} is not empty; give a new folder")
    paths.require_writable(folder, "DST")


def _find_stats(
    source: sources.Source, asset_id: str, given: pathlib.Path | None
) -> tuple[normalize.NormStats, str] | None:
    """-> (statistics, where they lie)."""
    if given:
        return normalize.load(given), str(given)
    return assets.find(source.place, asset_id, "--norm-stats")


def _save_stats(
    folder: pathlib.Path,
    found: tuple[normalize.NormStats, str] | None,
    to: str,
    asset_id: str,
) -> str:
    """-> line that says what was done."""
    if found is None:
        return (
            "norm stats: none found near the weights; give --norm-stats FILE, or copy them by hand"
        )
    stats, where = found
    paths = assets.save(folder, stats, to, asset_id)
    return f"norm stats: {where} -> {', '.join(str(path) for path in paths)}"


def _unsaid(source: sources.Source, result: sources.Source) -> list[str]:
    """What files beside the source said of it, and no file of the result can say."""
    said = claims.read(source.place).claims if source.place else ()
    again = {claim.field for claim in claims.read(result.place).claims}
    flags = []
    for claim in said:
        # Tensors tell the family and the dims.
        if claim.field not in again | {"pi05", "action_dim"}:
            flags.append(f"--config.model.{claim.field}={claim.value}")
    if not flags:
        return []
    return [f"no file of the result says how it is used; give it with {' '.join(flags)}"]


def describe(verb: str, source: sources.Source) -> str:
    """One line on what a checkpoint is."""
    count = sum(int(np.prod(shape)) for shape in source.shapes.values())
    kinds = sorted({dtype.name for dtype in source.dtypes.values()})
    line = (
        f"{verb} {source.location}: {source.format}, {len(source.shapes)} arrays, "
        f"{count:,} parameters, {', '.join(kinds)}"
    )
    cfg = source.cfg
    if cfg is None:
        return f"{line}; no whole network"
    family = "pi0.5" if cfg.pi05 else "pi0"
    paligemma = f"PaliGemma {cfg.paligemma.width} x {cfg.paligemma.depth}"
    line += f"; {family} ({paligemma}, expert {cfg.expert.width})"
    ranks = _ranks("PaliGemma", cfg.paligemma) + _ranks("expert", cfg.expert)
    if ranks:
        line += f"; adapters: {', '.join(ranks)}"
    return line


def _ranks(name: str, gemma: variants.GemmaConfig) -> list[str]:
    if gemma.lora is None:
        return []
    return [f"{name} rank {gemma.lora.attn_rank}, alpha {gemma.lora.attn_alpha:g}"]


# ---- --verify ------------------------------------------------------------------------------------


def parity(source: sources.Source, result: sources.Source, written: sources.Source) -> str:
    """Read the result back -> line that says how it compares.

    Against what was to be written it is compared bit by bit, and against the source as a policy.
    Raises: ValueError where a bit differs.
    """
    wrong = []
    for path in result.shapes:
        if not _same_bits(result.read(path), written.read(path)):
            wrong.append(path)
    if wrong:
        raise ValueError(
            f"{result.location} differs from what was written in {', '.join(wrong)}; "
            f"the disk or the format is at fault"
        )
    before_BHA = actions(source)
    after_BHA = actions(result)
    error = np.abs(before_BHA - after_BHA).max()
    return (
        f"verified: {len(result.shapes)} arrays equal bit by bit; "
        f"actions of a fixed batch differ by {error:.3g} at most "
        f"(largest action {np.abs(before_BHA).max():.3g})"
    )


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Not `==`: NaN is to be the same NaN, and -0 is not 0."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    # By parts: the comparison of a stacked array would be as large as the array.
    pairs = zip(_bits(a), _bits(b), strict=True)
    return all(np.array_equal(a_part, b_part) for a_part, b_part in pairs)


def _bits(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}")


def actions(source: sources.Source) -> np.ndarray:
    """Two Euler steps on one fixed random observation, in float32 -> [1,H,A]."""
    cfg = dataclasses.replace(source.cfg, dtype="float32")
    declared = pi0.specs(cfg)
    one_device = meshes.make_mesh(devices=jax.devices()[:1])
    layout = spec.shardings(declared, one_device, meshes.RULES)
    params, _ = sources.load(source, declared, layout)
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (1, NUM_CAMERAS, *cfg.image_size, 3), dtype=np.uint8)
    state = draw.standard_normal((1, cfg.action_dim))
    tokens = draw.integers(0, cfg.vocab_size, (1, PROMPT_TOKENS))
    noise_BHA = draw.standard_normal((1, cfg.action_horizon, cfg.action_dim))
    obs = types.Observation(
        images=jnp.asarray(images),
        image_mask=jnp.ones((1, NUM_CAMERAS), bool),
        state=jnp.asarray(state, jnp.float32),
        tokens=jnp.asarray(tokens, jnp.int32),
        token_mask=jnp.ones((1, PROMPT_TOKENS), bool),
    )
    sample = jax.jit(pi0.sample, static_argnums=(3, 4))
    actions_BHA = sample(params, jnp.asarray(noise_BHA, jnp.float32), obs, cfg, EULER_STEPS)
    return np.asarray(actions_BHA)


# ---- the command ---------------------------------------------------------------------------------


def _parser() -> command.Parser:
    parser = command.Parser("pirl convert", __doc__)
    parser.add_argument("source", metavar="SRC", type=command.path)
    parser.add_argument("folder", metavar="DST", type=command.path)
    parser.add_argument("--to", required=True, choices=targets.WRITERS)
    parser.add_argument(
        "--iteration",
        type=command.number(int, -1),
        default=-1,
        help="which checkpoint of a run or step of an experiment; -1 = the newest",
    )
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
        type=command.path,
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
        type=command.number(float, 1e-6, 1e6),
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
        type=command.path,
        help="norm_stats.json where none lies near the weights",
    )
    parser.add_argument(
        "--asset-id",
        type=_asset_id,
        help=f"data set of the statistics; default {assets.LIBERO_ID}",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read the result back and run both policies on a fixed batch",
    )
    return parser


def _asset_id(value: str) -> str:
    """A data set's name, for argparse."""
    try:
        return assets.require_id(command.text(value))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def prepare(
    args: argparse.Namespace,
    stack: contextlib.ExitStack,
    given: variants.Pi0Config | None = None,
) -> sources.Source:
    """The source as the arguments want it, which stays until the stack closes.

    given: the network of --config.

    Raises: ValueError where they contradict each other, or the source.
    """
    place = _intact(args.source, stack, args.iteration)
    source = sources.open_source(place, given, raw=args.raw)
    source = _with_horizon(source, given)
    if args.adapters:
        patch = sources.open_source(_intact(args.adapters, stack), whole=False)
        source = adapters.overlay(source, patch)
    source = adapters.scaled(source, args.lora_scale)
    if args.adapters_only and (args.merge_lora or args.to != "pirl"):
        raise ValueError(
            "--adapters-only keeps adapters as they are: it needs --to pirl and no --merge-lora"
        )
    if args.merge_lora:
        source = adapters.merge(source)
    return adapters.only(source) if args.adapters_only else source


def _intact(path: pathlib.Path, stack: contextlib.ExitStack, iteration: int = -1) -> resolve.Place:
    """A run that still trains does not remove it meanwhile."""
    return stack.enter_context(checkpoints.held(path, iteration))


def _with_horizon(source: sources.Source, given: variants.Pi0Config | None) -> sources.Source:
    """The horizon, which no tensor tells, as the files beside the weights say it."""
    if given is not None:
        return source
    said = {claim.field: claim.value for claim in claims.read(source.place).claims}
    if "action_horizon" not in said:
        return dataclasses.replace(source, tells_horizon=False)
    cfg = dataclasses.replace(source.cfg, action_horizon=said["action_horizon"])
    return dataclasses.replace(source, cfg=cfg)


def _given(
    args: argparse.Namespace, page: ml_collections.ConfigDict | None
) -> variants.Pi0Config | None:
    """The network that --config describes; None: it was left out."""
    if page is None:
        return None
    return config.settings(
        checkpoints.agreed(page, args.source, args.iteration, args.fields)
    ).policy.network


@preemption.watching("the checkpoint is not converted")
def main(argv: list[str]) -> None:
    """argv: as sys.argv, the program's name first."""
    with command.user_errors(), contextlib.ExitStack() as stack:
        args, page = command.parse(argv, _parser(), needs_page=False)
        source = prepare(args, stack, _given(args, page))
        _require_new(args.folder)
        # Two at once would both find the folder empty.
        with locks.writing(args.folder, "give a new folder"):
            lines = convert(
                source,
                args.folder,
                args.to,
                dtype=args.dtype,
                heads=args.heads,
                asset_id=args.asset_id or "",
                norm_stats=args.norm_stats,
                verify=args.verify,
            )
    print(secrets.text("\n".join(lines)))


if __name__ == "__main__":
    main(sys.argv)
