"""One page to look at runs and evaluations: curves, every episode, what changed, where time went.

    python -m pirl_jax.report runs/quickstart --output page.html
    python -m pirl_jax.report runs/a runs/b runs/c/evaluation/after --output page.html

The page is one file, asks no server for anything, and holds the videos as far as there is room.
Also of a run that still trains.  Several are compared, each with the first, on equal start states.
"""

import sys

from pirl_jax.core import paths
from pirl_jax.run import command, preemption, records, story


@preemption.watching("no page was written")
def main(argv: list[str]) -> None:
    parser = command.Parser("pirl report", __doc__)
    parser.add_argument(
        "sources",
        nargs="+",
        type=command.path,
        metavar="RUN|EVALUATION",
        help="directories of runs or of evaluations",
    )
    parser.add_argument("--output", type=command.path, required=True, help="where the page goes")
    parser.add_argument(
        "--video-mb",
        type=command.number(int, 0),
        default=story.MOST_VIDEO_BYTES >> 20,
        help="most megabytes of videos in the page; others are links to their files",
    )
    options = parser.parse_args(argv[1:])
    with command.user_errors():
        paths.require_writable_file(options.output, "--output")
        found = [records.read(folder) for folder in options.sources]
        story.write(options.output, found, options.video_mb << 20)
    print(f"page in {options.output}")


if __name__ == "__main__":
    main(sys.argv)
