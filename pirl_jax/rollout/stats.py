"""Metrics of played episodes, named as users of this field grep for them."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from pirl_jax.core import types
from pirl_jax.rollout import stream


def alone(own: object) -> list:
    """What `gather` is for a host without others: one's own -> those of all hosts."""
    return [own]


def episode_metrics(results: Iterable[stream.Result]) -> dict[str, float]:
    """env/*: means over whole episodes; lost ones do not count."""
    played = _played(results)
    return {
        "env/success_once": _mean(result.success for result in played),
        "env/return": _mean(result.reward for result in played),
        "env/episode_len": _mean(result.num_steps for result in played),
        "env/num_trajectories": float(len(played)),
    }


def fault_metrics(
    before: dict[str, int], after: dict[str, int], gather: Callable[[object], list] = alone
) -> dict[str, float]:
    """env/restarts, env/recycled, env/lost_episodes: what the counters of the pools rose by."""
    metrics = dict.fromkeys((f"env/{name}" for name in after), 0.0)
    for rise in gather({name: count - before[name] for name, count in after.items()}):
        for name, count in rise.items():
            metrics[f"env/{name}"] += count
    return metrics


def group_metrics(useful_E: np.ndarray, group_size: int) -> dict[str, float]:
    """rollout/groups*: played, learned from, and dropped ones.

    useful_E: episodes that the update learns from.
    """
    kept = useful_E.reshape(-1, group_size).any(1)
    return {
        "rollout/groups": float(len(kept)),
        "rollout/groups_kept": float(kept.sum()),
        "rollout/groups_dropped": float((~kept).sum()),
    }


def rollout_metrics(
    rollout: types.Rollout, data: object, gather: Callable[[object], list] = alone
) -> dict[str, float]:
    """rollout/*: over the valid decisions; advantages after normalisation.

    data: rows with advantage and return_, from which dynamic sampling has taken those of dropped
    groups.
    """
    valid = rollout.valid_CE
    mine = {
        "rewards": rollout.reward_CE[valid],
        "values": rollout.value_CE[valid],
        "returns": data.return_,
        "advantages": data.advantage,
    }
    hosts = gather(mine)
    whole = {}
    for name in mine:
        whole[name] = np.concatenate([own[name] for own in hosts])
    metrics = {
        "rollout/decisions": float(len(whole["rewards"])),
        "rollout/rewards": float(whole["rewards"].mean()),
        "rollout/values_mean": float(whole["values"].mean()),
    }
    for name in ("returns", "advantages"):
        metrics[f"rollout/{name}_mean"] = float(whole[name].mean())
        metrics[f"rollout/{name}_max"] = float(whole[name].max())
        metrics[f"rollout/{name}_min"] = float(whole[name].min())
    return metrics


def per_task(results: Sequence[stream.Result], instructions: Sequence[str]) -> list[dict]:
    """One row per task.

    Instruction, episodes, successes, mean episode length in control steps, lost episodes.
    """
    names = labels(instructions)
    table = []
    for task in sorted({result.episode.task for result in results}):
        mine = [result for result in results if result.episode.task == task]
        played = _played(mine)
        length = _mean(result.num_steps for result in played) if played else None
        row = {
            "task": task,
            "instruction": names[task],
            "episodes": len(played),
            "lost": len(mine) - len(played),
            "successes": sum(result.success for result in played),
            "episode_len": length,
        }
        table.append(row)
    return table


def labels(instructions: Sequence[str]) -> list[str]:
    """One name per task: its instruction.

    With the number of the task where others have the same (libero_90).
    """
    return [
        text if instructions.count(text) == 1 else f"{text} (task {task})"
        for task, text in enumerate(instructions)
    ]


def _played(results: Iterable[stream.Result]) -> list[stream.Result]:
    return [result for result in results if not result.lost]


def _mean(values: Iterable[float]) -> float:
    values = [float(value) for value in values]
    return float(np.mean(values)) if values else float("nan")
