"""The files of an evaluation: what was measured and how, every episode, a table for people, videos.

evaluation.json     policy, protocol, table with Wilson intervals, per task and suite, episodes, versions, renderer
table.txt           the table
videos/             one MP4 per recorded episode, written as soon as it ends
episodes.jsonl      of the command only: one line per finished episode, from which an interrupted evaluation continues
"""

from collections.abc import Callable
import json
import pathlib
import re

from pirl_jax.envs import base
from pirl_jax.envs.libero import files
from pirl_jax.monitor import log, report, video
from pirl_jax.rollout import starts, stats, stream
from pirl_jax.run import config, simulators


def protocol(settings, spec: base.EnvSpec, chosen: starts.Starts, per_task: int) -> dict:
    """Everything the success rate of a policy depends on besides the policy."""
    env, rules = settings.raw.env, config.rules(settings.raw)
    return {
        "name": env.protocol if rules else f"{env.suite}'s own",
        "suite": env.suite,
        "tasks": list(chosen.tasks),
        "split": env.split,
        "init_states": _bounds(chosen.evaluate[: per_task or None]),
        "trained_on_init_states": _bounds(chosen.train),
        "max_episode_steps": _limits(env, rules, spec),
        "settle_steps": rules.settle_steps if rules else 0,
        "action_chunk": settings.policy.model.action_chunk,
        "denoise_steps": settings.policy.model.num_steps,
        "image_size_px": env.image_size_px,
        "render_quality": env.render_quality,
        "spread": env.spread,
        "seed": settings.raw.seed,
    }


def _bounds(states: range) -> list[int]:
    """[first, last)"""
    return [states.start, states.stop]


def _limits(env, rules, spec):
    """Control steps until truncation: a number, or by the suite a task comes from."""
    if env.max_episode_steps or rules is None:
        return spec.max_episode_steps
    return {suite: rules.max_episode_steps[suite] for suite in files.SUITES[env.suite]}


def successes(results, instructions) -> dict[str, tuple[int, int]]:
    """{task: (successes, episodes)}, the form the report takes; a task all of whose episodes were lost is not in it."""
    rows = stats.per_task(results, instructions)
    counts = {
        row["instruction"]: (row["successes"], row["episodes"]) for row in rows if row["episodes"]
    }
    if not counts:
        raise RuntimeError(
            f"all {len(results)} episodes of the evaluation were lost with their simulators; see the log"
        )
    return counts


def write(
    directory: pathlib.Path, settings, measured: dict, results, instructions, policy_name: str
) -> str:
    """evaluation.json and table.txt -> the table.  measured: {"policy": ..., "protocol": ...}, JSON dicts."""
    counts, rows = successes(results, instructions), stats.per_task(results, instructions)
    suites = _suites(settings.raw.env.suite, rows)
    table = report.success_table({policy_name: counts}, suites if len(suites) > 1 else {})
    total = stats.episode_metrics(results)
    directory.mkdir(parents=True, exist_ok=True)
    log.write_json(
        directory / "evaluation.json",
        measured
        | {
            "table": table,
            "per_task": rows,
            "per_suite": report.success_table({policy_name: counts}, suites)["rows"][policy_name][
                "suites"
            ],
            "episode_len": total["env/episode_len"],
            "num_episodes": int(total["env/num_trajectories"]),
            "lost_episodes": [row(result) for result in results if result.lost],
            "episodes": [row(result) for result in results if not result.lost],
            "renderer": simulators.renderer(settings),
            "environment": log.environment(),
        },
    )
    text = "\n".join(
        [
            report.as_text(
                table, {row["instruction"]: row["episode_len"] for row in rows if row["episodes"]}
            ),
            _about(measured["protocol"], total, len(results)),
        ]
    )
    (directory / "table.txt").write_text(text + "\n")
    return text


def _about(protocol, total, count):
    first, last = protocol["init_states"]
    lost = count - int(total["env/num_trajectories"])
    return (
        f"protocol {protocol['name']}, split {protocol['split']} (start states {first} to {last - 1} of each task), "
        f"rendering {protocol['render_quality']}, seed {protocol['seed']}; mean episode length "
        f"{total['env/episode_len']:.1f} control steps"
        + (f"; {lost} episodes lost with their simulators" if lost else "")
    )


def _suites(suite, rows) -> dict[str, list[str]]:
    """{suite: its tasks}; libero_130 has five."""
    found = {}
    for row in rows:
        own = files.tasks(suite)[row["task"]].suite if suite in files.SUITES else suite
        if row["episodes"]:
            found.setdefault(own, []).append(row["instruction"])
    return found


def read_successes(directory: pathlib.Path) -> dict[str, tuple[int, int]] | None:
    """What `write` left in a directory, as `successes` gives it; None where nothing was evaluated."""
    path = directory / "evaluation.json"
    if not path.exists():
        return None
    rows = json.loads(path.read_text())["per_task"]
    return {
        row["instruction"]: (row["successes"], row["episodes"]) for row in rows if row["episodes"]
    }


# ---- one episode -------------------------------------------------------------------------------------------------------


def row(result: stream.Result) -> dict:
    """An episode as evaluation.json and episodes.jsonl have it."""
    return {
        "task": result.episode.task,
        "init_state": result.episode.init_state,
        "success": result.success,
        "steps": result.num_steps,
        "decisions": result.num_decisions,
        "reward": result.reward,
    }


def from_row(row: dict) -> stream.Result:
    """The Result that `row` was made from, less its frames."""
    name = stream.Episode(row["task"], row["init_state"])
    return stream.Result(name, row["success"], row["reward"], row["steps"], row["decisions"])


def chosen_videos(choice: str) -> Callable[[stream.Episode, bool], bool]:
    """all | failures | task:init,task:init,... -> which episodes are filmed, by name and success."""
    if choice in ("all", "failures"):
        return lambda name, success: choice == "all" or not success
    if not re.fullmatch(r"\d+:\d+(,\d+:\d+)*", choice):
        raise ValueError(
            f"--videos={choice} is no choice of episodes; give all, failures, or pairs like --videos=0:40,3:41"
        )
    pairs = {tuple(map(int, pair.split(":"))) for pair in choice.split(",")}
    return lambda name, success: (name.task, name.init_state) in pairs


def film(directory: pathlib.Path, result: stream.Result, instructions) -> None:
    """Write the video of an episode and let its frames go."""
    name = f"task_{result.episode.task}_init_{result.episode.init_state}_{'success' if result.success else 'failure'}.mp4"
    caption = f"task {result.episode.task}: {instructions[result.episode.task]}"
    video.write_episode(directory / "videos" / name, result.frames, caption, result.success)
    result.frames = None
