"""Why a run does not learn, and what to change next: asked of its metrics alone.

    python -m pirl_jax.diagnose RUN_DIR [--output FILE.json]

Also of a run that still trains.  Its thresholds come from small models in simulation
(monitor/diagnosis.py).
"""

from collections.abc import Sequence
import dataclasses
import pathlib
import sys

from pirl_jax.core import atomic, outside, paths
from pirl_jax.monitor import diagnosis, log
from pirl_jax.run import command, preemption


@preemption.watching("nothing was diagnosed")
def main(argv: list[str]) -> None:
    parser = command.Parser("pirl diagnose", __doc__)
    parser.add_argument("run", type=command.path, help="run directory, or its metrics.jsonl")
    parser.add_argument("--output", type=command.path, help="where the JSON goes")
    options = parser.parse_args(argv[1:])
    with command.user_errors():
        if options.output:
            paths.require_writable_file(options.output, "--output")
        answers = read(options.run)
        if options.output:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_json(options.output, [dataclasses.asdict(one) for one in answers])
    print(as_text(answers))


def read(run: pathlib.Path) -> list[diagnosis.Finding]:
    """The answers for one run.

    Raises:
      ValueError: no run, a damaged one, or one without an iteration.
    """
    rows = log.read(run)
    try:
        return diagnosis.findings(rows)
    except ValueError as error:
        name = outside.shown(str(run))
        raise ValueError(f"{name} {error}; give the directory of a run that has begun") from error


def as_text(answers: Sequence[diagnosis.Finding]) -> str:
    """What to change first, then every question with its numbers."""
    first = diagnosis.first(answers)
    lines = [f"next: {first.change}" if first else "next: nothing that the metrics tell", ""]
    for number, answer in enumerate(answers, 1):
        lines.append(f"{number}. {answer.question}  {answer.verdict}")
        lines.append(f"   {answer.seen}")
        if answer.change:
            lines.append(f"   -> {answer.change}")
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv)
