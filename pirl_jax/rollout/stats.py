"""Metrics of played episodes, named as users of this field grep for them."""

import numpy as np

from pirl_jax.rollout import episodes


def episode_metrics(results: list[episodes.Result]) -> dict[str, float]:
    """env/*: means over whole episodes."""
    return {
        "env/success_once": _mean(result.success for result in results),
        "env/return": _mean(result.reward for result in results),
        "env/episode_len": _mean(result.num_steps for result in results),
        "env/num_trajectories": float(len(results)),
    }


def rollout_metrics(rollout, data) -> dict[str, float]:
    """rollout/*: over the valid decisions; advantages after normalisation.  data: rows with advantage and return_."""
    valid = rollout.valid_CE
    return {
        "rollout/decisions": float(valid.sum()),
        "rollout/rewards": float(rollout.reward_CE[valid].mean()),
        "rollout/values_mean": float(rollout.value_CE[valid].mean()),
        "rollout/returns_mean": float(data.return_.mean()),
        "rollout/returns_max": float(data.return_.max()),
        "rollout/returns_min": float(data.return_.min()),
        "rollout/advantages_mean": float(data.advantage.mean()),
        "rollout/advantages_max": float(data.advantage.max()),
        "rollout/advantages_min": float(data.advantage.min()),
    }


def per_task(results: list[episodes.Result], instructions) -> list[dict]:
    """One row per task: instruction, episodes, successes, mean episode length in control steps."""
    tasks = sorted({result.episode.task for result in results})
    rows = []
    for task in tasks:
        mine = [result for result in results if result.episode.task == task]
        rows.append({
            "task": task, "instruction": instructions[task], "episodes": len(mine),
            "successes": sum(result.success for result in mine), "episode_len": _mean(r.num_steps for r in mine),
        })
    return rows


def _mean(values) -> float:
    return float(np.mean([float(value) for value in values]))
