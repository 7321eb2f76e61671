"""Benchmarks: ours against a baseline in the same run, medians of interleaved repeats.

    python -m pirl_jax.bench env [--tasks libero_object:0,libero_spatial:0] [--repeats 5] [--output FILE.json]
    python -m pirl_jax.bench plan [--recipes configs/libero_spatial_ppo_pi0.py] [--limit-gb 24]
    python -m pirl_jax.bench update|rollout|latency [--recipes ...] [--size full|scaled] [--batch 32]
    python -m pirl_jax.bench end2end [--recipe configs/quickstart.py] [--iterations 4]

Prints a table and writes JSON with the command, the machine and the package versions.  Quote ratios: the machine's speed drifts,
and a ratio of interleaved repeats does not.
"""

from collections.abc import Callable
import functools
import pathlib
import sys
from typing import NamedTuple

from pirl_jax.bench import end2end, env, plan, policy
from pirl_jax.monitor import log
from pirl_jax.run import command


class Benchmark(NamedTuple):
    what: str
    add_arguments: Callable  # (argparse parser)
    run: Callable  # options -> dict for the JSON
    as_text: Callable  # that dict -> table


def main(argv: list[str]) -> None:
    parser = command.Parser("pirl bench", __doc__)
    commands = parser.add_subparsers(dest="benchmark", required=True)
    for name, benchmark in BENCHMARKS.items():
        one = commands.add_parser(name, help=benchmark.what)
        benchmark.add_arguments(one)
        one.add_argument(
            "--repeats", type=int, default=5, help="interleaved repeats of every measurement"
        )
        one.add_argument("--output", type=pathlib.Path, help="where the JSON goes")
    options = parser.parse_args(argv[1:])
    benchmark = BENCHMARKS[options.benchmark]
    with command.user_errors():
        result = benchmark.run(options)
    command_line = {
        "command": ["python", "-m", "pirl_jax.bench", *argv[1:]]
    }  # argv[0] is a path of this machine
    result = {
        "benchmark": options.benchmark,
        "result": result,
        "environment": log.environment() | command_line,
    }
    print(benchmark.as_text(result["result"]))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        log.write_json(options.output, result)
        print(f"results in {options.output}")


def _of_module(module):
    return Benchmark(
        module.__doc__.partition("\n")[0], module.add_arguments, module.run, module.as_text
    )


def _of_policy(run, recipes, batch):
    add_arguments = functools.partial(policy.add_arguments, recipes=recipes, batch=batch)
    return Benchmark(run.__doc__, add_arguments, run, policy.as_text)


_BOTH = "configs/libero_spatial_ppo_pi0.py,configs/libero_object_ppo_pi05.py"
BENCHMARKS = {
    "env": _of_module(env),
    "plan": _of_module(plan),
    "update": _of_policy(policy.update, _BOTH, 32),
    "rollout": _of_policy(policy.rollout, _BOTH, 32),
    "latency": _of_policy(policy.latency, _BOTH, 1),
    "end2end": _of_module(end2end),
}

if __name__ == "__main__":
    main(sys.argv)
