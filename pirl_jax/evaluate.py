"""Evaluate a policy: every (task, start state) of the protocol once, without exploration noise.

    python -m pirl_jax.evaluate --config configs/libero_spatial_ppo_pi0.py --checkpoint runs/libero_spatial_ppo_pi0

Writes evaluation.json, the table and videos into RUN_DIR/evaluation (or --output).
"""

import contextlib
import json
import pathlib
import sys

from absl import flags
import jax
import numpy as np

from pirl_jax import build
from pirl_jax import config
from pirl_jax.core import rng
from pirl_jax.monitor import log
from pirl_jax.monitor import progress
from pirl_jax.monitor import report
from pirl_jax.monitor import timeline
from pirl_jax.monitor import video
from pirl_jax.rollout import collector
from pirl_jax.rollout import episodes
from pirl_jax.rollout import stats


def protocol(raw, tasks, episodes_per_task: int) -> list[episodes.Episode]:
    """The evaluated episodes; tasks alternate, so that an interrupted evaluation has seen all of them."""
    first = raw.eval.init_states[0]
    return [episodes.Episode(task, first + i) for i in range(episodes_per_task) for task in tasks]


def run(settings, actor, params, pool, tasks, episodes_per_task: int, timers, *, name="evaluation", num_videos=0):
    """Play the protocol -> (list of episodes.Result, metrics eval/*).

    The start noise of the flow is drawn from the configured seed alone: two policies are compared on equal terms.
    """
    names = protocol(settings.raw, tasks, episodes_per_task)
    key = rng.named(jax.random.key(settings.raw.seed), "evaluation")
    with progress.track(name, total=len(names), unit="episodes") as step, jax.transfer_guard("disallow"):
        results = collector.evaluate(
            actor, params, key, pool, names, settings.raw.rollout.num_groups, timers,
            record=range(min(num_videos, len(names))), progress=step,
        )
    metrics = stats.episode_metrics(results)
    return results, {name.replace("env/", "eval/"): value for name, value in metrics.items()}


def successes(results, instructions) -> dict[str, tuple[int, int]]:
    """{instruction: (successes, episodes)}, the form the report takes."""
    return {row["instruction"]: (row["successes"], row["episodes"]) for row in stats.per_task(results, instructions)}


def write(directory: pathlib.Path, settings, results, instructions, policy_name: str) -> dict:
    """evaluation.json with the table, every episode and what it was measured with; videos of the recorded episodes."""
    table = report.success_table({policy_name: successes(results, instructions)})
    directory.mkdir(parents=True, exist_ok=True)
    log.write_json(directory / "evaluation.json", {
        "table": table,
        "per_task": stats.per_task(results, instructions),
        "protocol": {
            "suite": settings.raw.env.suite, "init_states": list(settings.raw.eval.init_states), "seed": settings.raw.seed,
            "trained_on_init_states": list(settings.raw.env.train_init_states),
            "render_quality": settings.raw.env.render_quality, "num_steps": settings.policy.num_steps,
            "action_chunk": settings.policy.action_chunk, "protocol": settings.raw.env.protocol,
        },
        "episodes": [
            {"task": r.episode.task, "init_state": r.episode.init_state, "success": r.success, "steps": r.num_steps}
            for r in results
        ],
        "environment": log.environment(),
    })
    recorded = [
        {"frames": r.frames, "instruction": instructions[r.episode.task], "success": r.success} for r in results if r.frames
    ]
    if recorded:
        video.write_episodes(directory / "episodes.mp4", recorded)
    return table


def read_successes(directory: pathlib.Path) -> dict[str, tuple[int, int]] | None:
    """What `write` left in a directory, as `successes` gives it; None where nothing was evaluated."""
    path = directory / "evaluation.json"
    if not path.exists():
        return None
    return {row["instruction"]: (row["successes"], row["episodes"]) for row in json.loads(path.read_text())["per_task"]}


def _flags(values):
    flags.DEFINE_string("checkpoint", None, "run directory that holds checkpoints/", flag_values=values)
    flags.DEFINE_integer("iteration", -1, "which checkpoint; -1 = the newest", flag_values=values)
    flags.DEFINE_string("output", None, "where results go; default RUN_DIR/evaluation", flag_values=values)


def main(argv):
    with config.user_errors():
        values, raw = config.parse(argv, _flags)
        if not values.checkpoint:
            raise ValueError("--checkpoint is missing; give the directory of a run, for example runs/quickstart")
        settings = config.settings(raw)
        build.setup_jax(settings)
        mesh = build.mesh(settings)
        run_dir = build.run_directory(values.checkpoint)
        params, norm_stats = build.load_policy(settings, run_dir, values.iteration, mesh)
        num_envs = settings.raw.eval.num_envs or settings.raw.rollout.num_envs
        envs = contextlib.ExitStack()
        pool = envs.enter_context(build.open_envs(settings, num_envs))
    with envs:
        with config.user_errors():
            tasks = config.tasks(settings.raw, pool.spec)
            to_model = build.transform(settings, norm_stats, [pool.spec.instructions[task] for task in tasks])
        actor = build.actor(settings, mesh, to_model, pool.spec.instructions)
        results, _ = run(
            settings, actor, params, pool, tasks, settings.raw.eval.episodes_per_task, timeline.Timers(),
            num_videos=settings.raw.eval.num_videos,
        )
    output = pathlib.Path(values.output) if values.output else run_dir / "evaluation"
    table = write(output, settings, results, pool.spec.instructions, "policy")
    print(report.as_text(table))
    print(f"mean episode length {np.mean([r.num_steps for r in results]):.1f} control steps; results in {output}")


if __name__ == "__main__":
    main(sys.argv)
