"""Benchmarks: ours against a baseline in the same run, medians of interleaved repeats.

    python -m pirl_jax.bench env [--tasks libero_object:0,libero_spatial:0]
    python -m pirl_jax.bench plan [--recipes libero_spatial_ppo_pi0] [--limit-gb 24]
    python -m pirl_jax.bench plan --target tpu:v5e:2x4 [--config libero_spatial_ppo_pi0]
                                  [--set mesh.fsdp=8]
    python -m pirl_jax.bench targets --output FILE.json [--resume] [--targets cuda:h100:8]
    python -m pirl_jax.bench update|rollout|latency [--recipes ...] [--size full|scaled]
                                                    [--batch 32]
    python -m pirl_jax.bench end2end [--recipe quickstart] [--iterations 4]
    python -m pirl_jax.bench async [--recipes quickstart,libero_small] [--record]
    python -m pirl_jax.bench placements

All take [--repeats 5] [--output FILE.json].
Prints a table and writes JSON with the command, the machine and the package versions.
Quote ratios: the machine's speed drifts, and a ratio of interleaved repeats does not.
"""

import argparse
from collections.abc import Callable
import functools
import sys
import types
from typing import NamedTuple

from pirl_jax.bench import asynchronous, end2end, env, placements, plan, policy, results, targets
from pirl_jax.core import paths
from pirl_jax.run import command, preemption


class Benchmark(NamedTuple):
    """What the command needs of a benchmark."""

    what: str  # one line for --help
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], dict]  # -> what the JSON holds
    as_text: Callable[[dict], str]  # that dict -> table


@preemption.watching("the benchmark is not finished")
def main(argv: list[str]) -> None:
    parser = command.Parser("pirl bench", __doc__)
    commands = parser.add_subparsers(dest="benchmark", required=True)
    for name, benchmark in BENCHMARKS.items():
        subparser = commands.add_parser(name, help=benchmark.what)
        benchmark.add_arguments(subparser)
        subparser.add_argument(
            "--repeats",
            type=command.number(int, 1),
            default=5,
            help="interleaved repeats of every measurement",
        )
        subparser.add_argument("--output", type=command.path, help="where the JSON goes")
    options = parser.parse_args(argv[1:])
    benchmark = BENCHMARKS[options.benchmark]
    with command.user_errors():
        if options.output:
            # Before hours of measurements.
            paths.require_writable_file(options.output, "--output")
        result = benchmark.run(options)
    print(benchmark.as_text(result))
    if options.output:
        with command.known_endings():
            results.write(options.output, options.benchmark, result, argv[1:])
        print(f"results in {options.output}")


def _of_module(module: types.ModuleType) -> Benchmark:
    first_line = module.__doc__.partition("\n")[0]
    return Benchmark(first_line, module.add_arguments, module.run, module.as_text)


def _of_policy(run: Callable[[argparse.Namespace], dict], recipes: str, batch: int) -> Benchmark:
    """run: one of the three measurements of policy.py; recipes and batch: its defaults."""
    add_arguments = functools.partial(policy.add_arguments, recipes=recipes, batch=batch)
    first_line = run.__doc__.partition("\n")[0]
    return Benchmark(first_line, add_arguments, run, policy.as_text)


BOTH_MODELS = "libero_spatial_ppo_pi0,libero_object_ppo_pi05"
BENCHMARKS = {
    "env": _of_module(env),
    "plan": _of_module(plan),
    "targets": _of_module(targets),
    "update": _of_policy(policy.update, BOTH_MODELS, 32),
    "rollout": _of_policy(policy.rollout, BOTH_MODELS, 32),
    "latency": _of_policy(policy.latency, BOTH_MODELS, 1),
    "end2end": _of_module(end2end),
    "async": _of_module(asynchronous),
    "placements": _of_module(placements),
}

if __name__ == "__main__":
    main(sys.argv)
