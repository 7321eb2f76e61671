"""Folders of runs and evaluations as training and the evaluate command leave them, without either.

The tests of train and evaluate read real ones.
"""

import json

from pirl_jax.core import atomic
from pirl_jax.monitor import report
from pirl_jax.recipes import tabletop_small

TASKS = ("lift the red cube", "push the blue ball")
START = {
    "first_iteration": 0,
    "command": ["/somewhere/train.py", "--config", "configs/tabletop_small.py"],
    "git": "abc",
    "python": "3.11",
    "platform": "p",
    "cpu_cores": 2,
    "devices": ["cpu:cpu"],
    "packages": {"jax": "0.10"},
}


def evaluation(folder, outcomes, tasks=TASKS, lost=(), **protocol):
    """outcomes: {(task, start state): (success, control steps)}; lost: [(task, start state)]."""
    episodes = []
    for (task, start), (success, steps) in outcomes.items():
        place = {"task": task, "init_state": start, "success": success, "steps": steps}
        counts = {"decisions": steps // 5, "reward": float(success), "thrown": False}
        episodes.append(place | counts)
    per_task = []
    counts = {}
    for number, words in enumerate(tasks):
        own = [row for row in episodes if row["task"] == number]
        successes = sum(row["success"] for row in own)
        gone = sum(task == number for task, _ in lost)
        row = {"task": number, "instruction": words, "episodes": len(own), "lost": gone}
        per_task.append(row | {"successes": successes, "episode_len": 1.0})
        if own:
            counts[words] = (successes, len(own))
    folder.mkdir(parents=True, exist_ok=True)
    rules = {"suite": "tabletop", "max_episode_steps": 50, "seed": 42} | protocol
    atomic.write_json(
        folder / "evaluation.json",
        {
            "policy": {"name": folder.name, "iteration": 0},
            "protocol": rules,
            "table": report.success_table({folder.name: counts}),
            "per_task": per_task,
            "episodes": episodes,
            "lost_episodes": [{"task": task, "init_state": start} for task, start in lost],
            "environment": START,
        },
    )
    return folder


def outcomes(solved, count=10):
    """Of both tasks; the first `solved` start states of each succeed."""
    return {
        (t, s): (s < solved, 20 + s if s < solved else 50) for t in (0, 1) for s in range(count)
    }


def rows(count):
    """Of metrics.jsonl: a rollout each, an evaluation before the first."""
    found = [{"iteration": 0, "eval/success_once": 0.3, "eval/num_trajectories": 20}]
    for k in range(count):
        time = {"time/env": 2.0, "time/update": 1.0, "time/idle": 0.5, "time/iteration": 3.5}
        learned = {"actor/approx_kl3": 0.01 * k, "critic/explained_variance": "nan"}
        played = {"env/success_once": 0.25, "env/num_trajectories": 8, "env/return": 0.25}
        found.append({"iteration": k, "env/restarts": float(k == 1)} | played | learned | time)
    return found


def run(folder, before=3, after=6, iterations=4, finished=True, start=START, **fields):
    """A run of tabletop_small; fields: section__field=value of its configuration."""
    page = tabletop_small.get_config()
    page.num_iterations = iterations
    for name, value in fields.items():
        section, field = name.split("__")
        page[section][field] = value
    folder.mkdir(parents=True)
    atomic.write_json(folder / "config.json", page.to_dict())
    atomic.write_json(folder / "environment.json", [start])
    lines = [json.dumps(row) + "\n" for row in rows(iterations)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    evaluation(folder / "evaluation" / "before", outcomes(before))
    if finished:
        evaluation(folder / "evaluation" / "after", outcomes(after))
        atomic.write_json(folder / "table.json", {})
    return folder
