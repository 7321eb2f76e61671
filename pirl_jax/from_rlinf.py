"""A recipe out of the YAML of an embodied openpi run of RLinf, and what became of each key.

    python -m pirl_jax.from_rlinf libero_spatial_ppo_openpi.yaml [--output RECIPE.py]

`train`, `evaluate` and `serve` take such YAML as --config, too.  docs/rlinf.md has the table.
"""

import pathlib
import shlex
import sys

from pirl_jax.core import atomic, outside, paths
from pirl_jax.run import command, config, learnable, preemption
from pirl_jax.run.rlinf import translation


@preemption.watching("nothing was translated")
def main(argv: list[str]) -> None:
    parser = command.Parser("pirl from-rlinf", __doc__)
    parser.add_argument("config", type=command.path, help="the YAML that RLinf is started with")
    parser.add_argument(
        "--output", type=command.path, help="the recipe; default: the YAML's name, in this folder"
    )
    options = parser.parse_args(argv[1:])
    with command.user_errors():
        output = options.output or paths.absolute(f"{options.config.stem}.py")
        _require_place(output)
        found = translation.translate(options.config)
        with outside.named(options.config):
            learnable.check(config.settings(found.page()).raw)
        output.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(output, translation.as_recipe(found))
    print(translation.as_text(found))
    following = shlex.join(["pirl", "train", "--config", str(output)])
    print(f"\nrecipe in {output}; {following}")


def _require_place(output: pathlib.Path) -> None:
    """A new Python file, or one that this command wrote."""
    if output.suffix != ".py":
        raise ValueError(f"--output={output} is no recipe; give a name that ends in .py")
    if output.is_file() and "by pirl from-rlinf." not in output.read_text(errors="replace")[:999]:
        raise ValueError(f"--output={output} holds something else; choose another name")
    paths.require_writable_file(output, "--output")


if __name__ == "__main__":
    main(sys.argv)
