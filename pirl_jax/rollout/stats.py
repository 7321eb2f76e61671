"""Metrics of played episodes, named as users of this field grep for them."""

import numpy as np

from pirl_jax.rollout import stream


def episode_metrics(results: list[stream.Result]) -> dict[str, float]:
    """env/*: means over whole episodes; lost ones do not count."""
    played = _played(results)
    return {
        "env/success_once": _mean(result.success for result in played),
        "env/return": _mean(result.reward for result in played),
        "env/episode_len": _mean(result.num_steps for result in played),
        "env/num_trajectories": float(len(played)),
    }


def fault_metrics(
    before: dict[str, int], after: dict[str, int], gather=lambda x: [x]
) -> dict[str, float]:
    """env/restarts, env/recycled, env/lost_episodes: what the counters of the pools rose by.  gather: one's own -> those of all hosts."""
    hosts = gather({name: count - before[name] for name, count in after.items()})
    return {f"env/{name}": float(sum(rise[name] for rise in hosts)) for name in after}


def group_metrics(useful_E, group_size: int) -> dict[str, float]:
    """rollout/groups*: played, learned from, and dropped ones.  useful_E: episodes that the update learns from."""
    kept = useful_E.reshape(-1, group_size).any(1)
    return {
        "rollout/groups": float(len(kept)),
        "rollout/groups_kept": float(kept.sum()),
        "rollout/groups_dropped": float((~kept).sum()),
    }


def rollout_metrics(rollout, data, gather=lambda x: [x]) -> dict[str, float]:
    """rollout/*: over the valid decisions; advantages after normalisation.  data: rows with advantage and return_, from which
    dynamic sampling has taken those of dropped groups.  gather: one's own -> those of all hosts."""
    valid = rollout.valid_CE
    mine = rollout.reward_CE[valid], rollout.value_CE[valid], data.return_, data.advantage
    reward, value, return_, advantage = map(np.concatenate, zip(*gather(mine), strict=True))
    return {
        "rollout/decisions": float(len(reward)),
        "rollout/rewards": float(reward.mean()),
        "rollout/values_mean": float(value.mean()),
        "rollout/returns_mean": float(return_.mean()),
        "rollout/returns_max": float(return_.max()),
        "rollout/returns_min": float(return_.min()),
        "rollout/advantages_mean": float(advantage.mean()),
        "rollout/advantages_max": float(advantage.max()),
        "rollout/advantages_min": float(advantage.min()),
    }


def per_task(results: list[stream.Result], instructions) -> list[dict]:
    """One row per task: instruction, episodes, successes, mean episode length in control steps, lost episodes."""
    names, rows = labels(instructions), []
    for task in sorted({result.episode.task for result in results}):
        mine = [result for result in results if result.episode.task == task]
        played = _played(mine)
        rows.append(
            {
                "task": task,
                "instruction": names[task],
                "episodes": len(played),
                "lost": len(mine) - len(played),
                "successes": sum(result.success for result in played),
                "episode_len": _mean(r.num_steps for r in played) if played else None,
            }
        )
    return rows


def labels(instructions) -> list[str]:
    """One name per task: its instruction, with the number of the task where others have the same (libero_90)."""
    return [
        text if instructions.count(text) == 1 else f"{text} (task {task})"
        for task, text in enumerate(instructions)
    ]


def _played(results):
    return [result for result in results if not result.lost]


def _mean(values) -> float:
    values = [float(value) for value in values]
    return float(np.mean(values)) if values else float("nan")
