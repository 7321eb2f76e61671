"""The trainings that docs/results.md rests on: played cell by cell, and the tables out of them.

    python -m pirl_jax.evidence play [a b c ...] [--seeds 0,1] [--runs DIR]
    python -m pirl_jax.evidence tables

`play` resumes each cell where it stopped and writes results as they come; asked to end, it ends
with 75, and the same command goes on.  Rows: docs/results.md.  `tables` writes the tables and the
curves of that page anew, from the results alone.
"""

import argparse
import pathlib
import re
import sys

from pirl_jax.core import endings, paths
from pirl_jax.evidence import cells, play, programs, tables
from pirl_jax.run import command, preemption

ROOT = pathlib.Path(__file__).parents[2]


def main(argv: list[str]) -> None:
    with preemption.watching("the same command goes on", preemption.TRY_AGAIN) as watch:
        _main(argv, watch)


def _main(argv: list[str], watch: preemption.Watch) -> None:
    parser = command.Parser("python -m pirl_jax.evidence", __doc__)
    commands = parser.add_subparsers(dest="what", required=True)
    player = commands.add_parser("play", help="train and evaluate what has no results yet")
    player.add_argument("rows", nargs="*", metavar="ROW", help="of the table; none: all")
    player.add_argument("--seeds", type=_seeds, default=(), help="0,1,2; default: each cell's own")
    player.add_argument(
        "--runs",
        type=command.path,
        default=ROOT.parent / f"{ROOT.name}.evidence",
        help="folder of the runs; default: beside the checkout",
    )
    writer = commands.add_parser("tables", help="tables and curves out of the results")
    writer.add_argument(
        "--page", type=command.path, default=ROOT / "docs" / "results.md", help="where they stand"
    )
    for one in (player, writer):
        one.add_argument(
            "--results",
            type=command.path,
            default=ROOT / "docs" / "results" / "evidence",
            help="folder of the results",
        )
    options = parser.parse_args(argv[1:])
    with command.user_errors():
        _require_places(options)
    if options.what == "play":
        _play(options, watch)
    else:
        with command.user_errors():
            tables.write(options.page, options.results, cells.TABLE)
        print(f"tables in {options.page}")


def _require_places(options: argparse.Namespace) -> None:
    """An installed package has no docs/ of its own.

    Raises:
      ValueError: nobody has said where results lie.
    """
    if not (ROOT / "docs").is_dir() and options.results.is_relative_to(ROOT):
        raise ValueError(
            f"--results is missing, and {ROOT} is no checkout, whose docs/results would be meant; "
            f"give --results DIR"
        )


def _seeds(value: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+([, ]\d+)*", value):
        raise argparse.ArgumentTypeError(f"{value!r} must be numbers like 0,1,2")
    return tuple(map(int, re.split("[, ]", value)))


def _play(options: argparse.Namespace, watch: preemption.Watch) -> None:
    with command.user_errors():
        wanted = play.chosen(cells.TABLE, options.rows, options.seeds)
        to_perturb = play.to_perturb(cells.TABLE, options.rows, options.seeds)
        places = play.Places(options.runs, options.results)
        paths.require_writable(places.runs, "--runs")
        paths.require_writable(places.results, "--results")
    started = programs.Programs(places.runs / "costs")
    player = play.Player(cells.TABLE, places, started)
    with command.known_endings(), watch.patient(started.interrupt):
        try:
            failed = play.play_all(player, wanted, to_perturb, places)
        except endings.Preempted:
            raise watch.ending("what was under way is saved") from None
    if failed:
        print(f"error: these failed: {', '.join(failed)}; the lines above say why", file=sys.stderr)
        sys.exit(endings.Failure.code)


if __name__ == "__main__":
    main(sys.argv)
