"""`pirl COMMAND ...`, the same as `python -m pirl_jax COMMAND ...`.

The only file that names the commands; it loads none but the one asked for.
"""

import importlib
import signal
import sys

from pirl_jax.core import absent
from pirl_jax.run import preemption

COMMANDS = {
    "train": "fine-tune a policy by reinforcement learning",
    "evaluate": "play every start state of a protocol with a policy",
    "serve": "answer openpi's clients with a policy",
    "convert": "turn a checkpoint into another format",
    "download": "fetch published weights, the tokenizer or LIBERO's assets",
    "doctor": "say what on this machine would stop a run, and the remedy",
    "report": "one page to look at: curves, episodes, videos, faults, settings",
    "from-rlinf": "make a recipe of a configuration of RLinf",
    "compare": "put several runs on one sheet",
    "diagnose": "say why a run does not learn, and what to change next",
    "bench": "measure ours against a baseline",
}


def main(argv: list[str] | None = None) -> None:
    """argv: as sys.argv, the program's name first."""
    argv = sys.argv if argv is None else argv
    preemption.outlive_readers()
    if len(argv) < 2 or argv[1] in ("-h", "--help", "help"):
        print(overview())
        return
    name = argv[1]
    if name not in COMMANDS:
        print(f"error: {name!r} is no command; pirl has: {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    # Ctrl-C needs no traceback while modules load; then the command has its own handlers.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    module = "pirl_jax.bench.__main__" if name == "bench" else f"pirl_jax.{name.replace('-', '_')}"
    try:
        command = importlib.import_module(module)
    except ModuleNotFoundError as error:
        said = absent.sentence(error)
        if not said:
            raise
        print(said, file=sys.stderr)
        sys.exit(absent.CODE)
    command.main([f"pirl {name}", *argv[2:]])


def overview() -> str:
    """What there is, one line per command."""
    lines = ["Reinforcement learning of pi0 and pi0.5 in LIBERO.", ""]
    for name, what in COMMANDS.items():
        lines.append(f"  pirl {name:<10} {what}")
    return "\n".join(
        [*lines, "", "pirl COMMAND --help tells more; pirl train --config quickstart is a start."]
    )


if __name__ == "__main__":
    main()
