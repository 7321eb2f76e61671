"""Benchmarks: ours against a baseline in the same run, medians of interleaved repeats.

    python -m pirl_jax.bench env [--tasks libero_object:0,libero_spatial:0] [--repeats 5] [--output FILE.json]

Prints a table and writes JSON with the command, the machine and the package versions.  Quote ratios: the machine's speed drifts,
and a ratio of interleaved repeats does not.
"""

import argparse
import pathlib
import sys

from pirl_jax import bench_env
from pirl_jax import command
from pirl_jax.monitor import log


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="pirl_jax.bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="benchmark", required=True)
    for name, module in BENCHMARKS.items():
        one = commands.add_parser(name, help=module.__doc__.partition("\n")[0])
        module.add_arguments(one)
        one.add_argument("--repeats", type=int, default=5, help="interleaved repeats of every measurement")
        one.add_argument("--output", type=pathlib.Path, help="where the JSON goes")
    options = parser.parse_args(argv[1:])
    module = BENCHMARKS[options.benchmark]
    with command.user_errors():
        result = module.run(options)
    command_line = {"command": ["python", "-m", "pirl_jax.bench", *argv[1:]]}  # argv[0] is a path of this machine
    result = {"benchmark": options.benchmark, "result": result, "environment": log.environment() | command_line}
    print(module.as_text(result["result"]))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        log.write_json(options.output, result)
        print(f"results in {options.output}")


BENCHMARKS = {"env": bench_env}

if __name__ == "__main__":
    main(sys.argv)
