"""Recipes on accelerators that are not here: every recipe on every target, row by row into a file.

A row takes minutes to an hour, so each is written when it is known, and --resume goes on with those
that the file lacks.  Compiled, not run (docs/targets.md).
"""

import argparse
from collections.abc import Iterator, Mapping
import pathlib
import sys
from typing import Any

import jax

from pirl_jax.bench import results
from pirl_jax.envs import caches
from pirl_jax.monitor import columns, log
from pirl_jax.run import (
    accelerators,
    command,
    config,
    estimates,
    outlook,
    recipes,
    topology,
)

NAME = "targets"
TARGETS = (
    "cuda:h100:8",
    "cuda:h100:1",
    "cuda:rtx4090:1",
    "tpu:v6e:2x4",
    "tpu:v5p:2x2x1",
    "tpu:v5e:2x4",
)
# The two models and the two algorithms in one suite come first: they have most of the programs.
SUITES = ("spatial", "10", "object", "goal")
ALGORITHMS = ("ppo", "grpo")
MODELS = ("pi0", "pi05")
GB = 1e9
UNKNOWN = "not compiled yet"
# What a table shows of a row's programs, by how their names begin.
TIMED = {"decision": "rollout decision", "microbatch": "update microbatch", "step": "optimiser"}


def published() -> list[str]:
    """The sixteen recipes, the most different ones first."""
    names = []
    for suite in SUITES:
        for algorithm in ALGORITHMS:
            names += [f"libero_{suite}_{algorithm}_{model}" for model in MODELS]
    return names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recipes", default=",".join(published()), help="names or files, separated by commas"
    )
    parser.add_argument("--targets", default=",".join(TARGETS), help="separated by commas")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the rows that --output lacks",
    )
    outlook.add_request_arguments(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """{"rows": [row], "programs": {key: what estimates.read says}}

    A row is what outlook.report says of a recipe on a target, with the keys of its programs.

    Raises:
      ValueError: the request makes no sense.
    """
    # A plan is made on a laptop as on a machine whose devices are somebody's.
    jax.config.update("jax_platforms", "cpu")
    if options.output is None:
        raise ValueError("--output is missing; rows are written there one by one")
    targets = [accelerators.parse(text) for text in options.targets.split(",")]
    names = options.recipes.split(",")
    pages = {name: config.settings(recipes.load_recipe(name, "--recipes")) for name in names}
    result = {"rows": [], "programs": {}}
    if options.resume and options.output.exists():
        result = results.read(options.output, NAME, "--output")
    for target in targets:
        topology.require_wheel(target)
    folder = options.compiled or caches.folder("targets")
    for key, kept in result["programs"].items():
        estimates.write(folder, key, kept)
    for name, target in _missing(result, names, targets):
        request = outlook.Request(
            settings=pages[name],
            target=target,
            env_spec=outlook.env_spec(pages[name]),
            prompt_tokens=options.prompt_tokens,
            folder=folder,
            limit_s=60 * options.compile_minutes,
        )
        print(f"{pathlib.Path(name).stem} on {target.text}", flush=True)
        _add(result, pathlib.Path(name).stem, outlook.report(request), folder)
        results.write(options.output, NAME, result, sys.argv[1:])
    return result


def _missing(
    result: dict[str, Any], names: list[str], targets: list[accelerators.Target]
) -> Iterator[tuple[str, accelerators.Target]]:
    """One recipe on all targets, then the next."""
    known = {(row["recipe"], row["target"]) for row in result["rows"]}
    for name in names:
        for target in targets:
            if (pathlib.Path(name).stem, target.text) not in known:
                yield name, target


def _add(result: dict[str, Any], recipe: str, report: dict[str, Any], folder: pathlib.Path) -> None:
    """The row, and those of its programs that are new."""
    keys = {}
    for name, program in report.pop("programs").items():
        keys[name] = program["digest"]
        result["programs"][program["digest"]] = estimates.read(folder, program["digest"])
    revision = log.git_revision(pathlib.Path(__file__).parents[2])
    row = {"recipe": recipe, "revision": revision} | report | {"programs": keys}
    result["rows"].append(row)


# ---- tables ------------------------------------------------------------------------------------


def as_text(result: dict[str, Any]) -> str:
    """A line per row."""
    rows = [[row["recipe"], row["target"], *_cells(result, row)] for row in result["rows"]]
    return columns.aligned(rows, ["recipe", "target", *HEADER])


HEADER = (
    "fits",
    "microbatch",
    "prefixes",
    "checkpointing",
    "GB of",
    "decision ms",
    "microbatch ms",
    "step ms",
    "exchanged MB, microbatch and step",
)


def _cells(result: dict[str, Any], row: dict[str, Any]) -> list[str]:
    choices = row["choices"]
    needs = f"{row['plan']['total'] / GB:.1f}" if row["plan"] else "-"
    cells = [
        verdict(row),
        str(choices["algorithm.microbatch_size"]),
        choices["rollout.prefix_cache"],
        choices["model.gradient_checkpointing"],
        f"{needs} of {row['limit'] / GB:.1f}",
    ]
    programs = [_program(result, row, begins) for begins in TIMED.values()]
    chip = accelerators.parse(row["target"]).chip
    cells += [_times(program, chip) for program in programs]
    return [*cells, " and ".join(map(_exchanged, programs[1:]))]


def verdict(row: Mapping[str, Any]) -> str:
    """Whether a recipe fits a target, or what makes it fit."""
    if row["fits"]:
        return "as published"
    changes = " ".join(f"{name}={value}" for name, value in row["changes"].items())
    return f"with {changes}" if changes else "no"


def _program(result: dict[str, Any], row: dict[str, Any], begins: str) -> dict[str, Any]:
    """What estimates.read says of it."""
    (key,) = (key for name, key in row["programs"].items() if name.startswith(begins))
    return result["programs"][key]


def _times(kept: Mapping[str, Any], chip: accelerators.Chip) -> str:
    """Milliseconds, estimated where the compiler estimates them, and at the roofline."""
    if "given_up_s" in kept:
        return f"given up after {kept['given_up_s'] / 60:.0f} min"
    if "refused" in kept:
        return "refused"
    program = estimates.from_dict(kept["estimate"])
    roofline = f"{1e3 * program.roofline_s(chip):.3g}"
    seconds = program.estimated_s(chip)
    return f"({roofline})" if seconds is None else f"{1e3 * seconds:.3g} ({roofline})"


def _exchanged(kept: Mapping[str, Any]) -> str:
    if "estimate" not in kept:
        return "-"
    return f"{sum(kept['estimate']['collectives'].values()) / 1e6:.0f}"


def as_markdown(result: dict[str, Any]) -> str:
    """The tables of docs/targets.md: what fits, and what the programs take."""
    lines = [
        f"| recipe | {' | '.join(f'`{target}`' for target in TARGETS)} |",
        f"|{'---|' * (1 + len(TARGETS))}",
    ]
    known = {(row["recipe"], row["target"]): row for row in result["rows"]}
    for recipe in published():
        cells = []
        for target in TARGETS:
            row = known.get((recipe, target))
            cells.append(_overview(row) if row else UNKNOWN)
        lines.append(f"| `{recipe}` | {' | '.join(cells)} |")
    names = " | ".join(HEADER[1:])
    lines += ["", f"| recipe | target | {names} |", f"|{'---|' * (1 + len(HEADER))}"]
    shown = {}
    for row in result["rows"]:
        cells = _cells(result, row)[1:]
        same = (row["target"], *cells, *row["programs"].values())
        shown.setdefault(same, (cells, []))[1].append(row["recipe"])
    for (target, *_), (cells, recipe_names) in shown.items():
        of = ", ".join(f"`{name}`" for name in recipe_names)
        lines.append(f"| {of} | `{target}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _overview(row: dict[str, Any]) -> str:
    if not row["plan"]:
        return verdict(row)
    return f"{verdict(row)}, {row['plan']['total'] / GB:.1f} GB"


def main(argv: list[str]) -> None:
    """Prints the tables of a file, for docs/targets.md.

    python -m pirl_jax.bench.targets docs/bench/targets.json
    """
    print(as_markdown(results.read(command.path(argv[1]), NAME, "file")))


if __name__ == "__main__":
    main(sys.argv)
