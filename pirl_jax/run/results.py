"""The files of an evaluation: what was measured and how, every episode, a table, videos; and the
table of a run.

evaluation.json     policy, protocol, table with Wilson intervals, per task and suite, episodes,
                    versions, renderer, simulator as imported
table.txt           the table
videos/             one MP4 per recorded episode, written as soon as it ends
episodes.jsonl      of the command only: one line per finished episode, from which an interrupted
                    evaluation continues
"""

from collections.abc import Callable, Sequence
import math
import pathlib
import re

from pirl_jax.core import atomic, endings, outside, page
from pirl_jax.envs import base, child
from pirl_jax.envs.libero import files, identity
from pirl_jax.monitor import log, report, video
from pirl_jax.rollout import starts, stats, stream
from pirl_jax.run import config, perturbations, simulators

MOST_LINES = 200  # of a table for a terminal; evaluation.json has every task


def protocol(
    settings: config.Settings, spec: base.EnvSpec, playable: starts.Starts, per_task: int
) -> dict:
    """Everything the success rate of a policy depends on besides the policy."""
    env = settings.raw.env
    rules = config.rules(settings.raw)
    found = simulators.played(settings)
    return {
        "name": env.protocol if rules else f"{env.suite}'s own",
        "suite": env.suite,
        "tasks": list(playable.tasks),
        "split": env.split,
        "init_states": _bounds(playable.evaluate[: per_task or None]),
        "trained_on_init_states": _bounds(playable.train),
        "max_episode_steps": _limits(env, rules, spec),
        "settle_steps": rules.settle_steps if rules else 0,
        "wording": _wordings(env),
        "data": perturbations.data(env),
        "action_chunk": settings.policy.model.action_chunk,
        "denoise_steps": settings.policy.model.num_steps,
        "image_size_px": env.image_size_px,
        "render_quality": env.render_quality,
        "spread": env.spread,
        "seed": settings.raw.seed,
        "assets": simulators.assets(settings),
        "simulator": found and identity.without_folders(found),
    }


def _bounds(states: range) -> list[int]:
    """[first, last)"""
    return [states.start, states.stop]


def _limits(
    env: page.Env, rules: files.Protocol | None, spec: base.EnvSpec
) -> int | dict[str, int]:
    """Control steps until truncation: a number, or by the suite a task comes from."""
    if env.max_episode_steps or rules is None:
        return spec.max_episode_steps
    return {suite: rules.limit(suite) for suite in files.members(env.suite)}


def _wordings(env: page.Env) -> dict[str, str]:
    """Whose words the instructions of each of LIBERO's suites are."""
    return {suite: files.wording(suite, env.wording) for suite in files.members(env.suite)}


def successes(
    results: Sequence[stream.Result], instructions: Sequence[str]
) -> dict[str, tuple[int, int]]:
    """{task: (successes, episodes)}, the form the report takes.

    A task all of whose episodes were lost is not in it.

    Raises:
      endings.Failure: all episodes were lost.
    """
    counts = _counts(stats.per_task(results, instructions))
    if not counts:
        raise endings.Failure(
            f"all {len(results)} episodes of the evaluation were lost with their simulators; "
            f"the warnings above say why"
        )
    return counts


def rate(successes: dict[str, tuple[int, int]]) -> float:
    """Of all episodes together; not-a-number where all were lost."""
    won = sum(succeeded for succeeded, _ in successes.values())
    played = sum(count for _, count in successes.values())
    return won / played if played else math.nan


def _counts(table: list[dict]) -> dict[str, tuple[int, int]]:
    """{task: (successes, episodes)} of the tasks that have episodes."""
    played = [row for row in table if row["episodes"]]
    return {row["instruction"]: (row["successes"], row["episodes"]) for row in played}


def write(
    directory: pathlib.Path,
    settings: config.Settings,
    measured: dict,
    results: Sequence[stream.Result],
    instructions: Sequence[str],
    policy_name: str,
) -> str:
    """evaluation.json and table.txt -> the table.

    measured: {"policy": ..., "protocol": ...}, JSON dicts.
    """
    counts = {policy_name: successes(results, instructions)}
    per_task = stats.per_task(results, instructions)
    suites = _suites(settings.raw.env, per_task)
    table = report.success_table(counts, suites if len(suites) > 1 else {})
    per_suite = report.success_table(counts, suites)["rows"][policy_name]["suites"]
    total = stats.episode_metrics(results)
    perturbed = perturbations.table(settings.raw.env.suite, results)
    contents = {
        "table": table,
        "per_task": per_task,
        "per_suite": per_suite,
        "perturbations": perturbed,
        "episode_len": total["env/episode_len"],
        "num_episodes": int(total["env/num_trajectories"]),
        "lost_episodes": [row(result) for result in results if result.lost],
        "episodes": [row(result) for result in results if not result.lost],
        "renderer": simulators.renderer(settings),
        "simulator": simulators.played(settings),
        "environment": log.environment(),
    }
    directory.mkdir(parents=True, exist_ok=True)
    atomic.write_json(directory / "evaluation.json", measured | contents)
    if len(per_task) > MOST_LINES:
        table = _without_tasks(table)
    lengths = {row["instruction"]: row["episode_len"] for row in per_task if row["episodes"]}
    thrown = sum(result.thrown for result in results)
    about = _about(measured["protocol"], total, len(results), thrown)
    parts = [report.as_text(table, lengths), *perturbations.as_text(perturbed), about]
    text = "\n".join(parts)
    atomic.write_text(directory / "table.txt", text + "\n")
    return text


def _without_tasks(table: dict) -> dict:
    """For a reader: thousands of lines say nothing."""
    rows = {name: row | {"tasks": {}} for name, row in table["rows"].items()}
    return table | {"rows": rows}


def _about(protocol: dict, total: dict[str, float], count: int, thrown: int) -> str:
    """One line under the table: under which rules, and what is not in it."""
    first, last = protocol["init_states"]
    text = (
        f"protocol {protocol['name']}, split {protocol['split']} "
        f"(start states {first} to {last - 1} of each task), "
        f"rendering {protocol['render_quality']}, seed {protocol['seed']}; mean episode length "
        f"{total['env/episode_len']:.1f} control steps"
    )
    lost = count - int(total["env/num_trajectories"])
    if lost:
        text += f"; {lost} episodes lost with their simulators"
    if thrown:
        text += f"; the start states of {thrown} episodes throw an object (thrown in the rows)"
    return text


def _suites(env: page.Env, per_task: list[dict]) -> dict[str, list[str]]:
    """{suite: its tasks}; a list has several."""
    found = {}
    suite = env.suite
    tasks = files.tasks(suite, perturbations.folders(env)) if files.members(suite) else ()
    for row in per_task:
        own = tasks[row["task"]].suite if tasks else suite
        if row["episodes"]:
            found.setdefault(own, []).append(row["instruction"])
    return found


def read_successes(directory: pathlib.Path) -> dict[str, tuple[int, int]] | None:
    """What `write` left in a directory, as `successes` gives it; None: nothing was evaluated.

    Raises:
      ValueError: the file is damaged.
    """
    path = directory / "evaluation.json"
    if not path.exists():
        return None
    remedy = f"move {directory} away"
    table = outside.part(outside.read_json(path, remedy=remedy), "per_task", list, path, remedy)
    for row in table:
        outside.part(row, "instruction", str, path, remedy)
        episodes = outside.part(row, "episodes", int, path, remedy)
        successes = outside.part(row, "successes", int, path, remedy)
        if not 0 <= successes <= episodes:
            raise ValueError(f"{path} has {successes} successes of {episodes} episodes; {remedy}")
    return _counts(table)


def write_comparison(
    run_dir: pathlib.Path,
    raw: page.Page,
    after: dict[str, tuple[int, int]],
) -> str:
    """table.json and table.txt of a run -> success rates before (where evaluated) and after it.

    Raises:
      endings.Failure: the evaluation before the run is damaged.
    """
    rows = {}
    try:
        before = read_successes(run_dir / "evaluation" / "before")
    except ValueError as error:
        raise endings.Failure(f"the run is complete, but not its table: {error}") from error
    if before:
        taught = raw.sft.demonstrations or (raw.sft.dataset and raw.sft.steps)
        rows["SFT" if taught else "before"] = before
    rows[report.algorithm_name(raw.algorithm.loss, raw.algorithm.adv_type)] = after
    table = report.success_table(rows)
    atomic.write_json(run_dir / "table.json", table)
    text = report.as_text(table)
    atomic.write_text(run_dir / "table.txt", text + "\n")
    return text


ROW = {
    "task": int,
    "init_state": int,
    "success": bool,
    "steps": int,
    "decisions": int,
    "reward": float,
}
FROM_START = "remove the file to play all episodes again"

# ---- one episode -----------------------------------------------------------------------------


def row(result: stream.Result) -> dict:
    """An episode as evaluation.json and episodes.jsonl have it."""
    return {
        "task": result.episode.task,
        "init_state": result.episode.init_state,
        "success": result.success,
        "steps": result.num_steps,
        "decisions": result.num_decisions,
        "reward": result.reward,
        "thrown": result.thrown,
    }


def from_row(row: dict, where: pathlib.Path | str = "a row") -> stream.Result:
    """The Result that `row` was made from, less its frames.

    where: the file, for the error.

    Raises:
      ValueError: a field is missing or of another kind.
    """
    values = {name: outside.part(row, name, kind, where, FROM_START) for name, kind in ROW.items()}
    return stream.Result(
        stream.Episode(values["task"], values["init_state"]),
        success=values["success"],
        reward=values["reward"],
        num_steps=values["steps"],
        num_decisions=values["decisions"],
        thrown=row.get("thrown") is True,  # files of earlier versions do not say
    )


def finished(
    rows: Sequence[dict], episodes: Sequence[stream.Episode], where: pathlib.Path
) -> dict[int, stream.Result]:
    """The results in an episodes.jsonl, by index into `episodes`.

    Raises:
      ValueError: a row is damaged, or of an episode that is none of these.
    """
    index = {episode: e for e, episode in enumerate(episodes)}
    done = {}
    for row in rows:
        result = from_row(row, where)
        if result.episode not in index:
            raise ValueError(
                f"{where} has task {result.episode.task} from start state "
                f"{result.episode.init_state}, which this evaluation does not play; {FROM_START}"
            )
        done[index[result.episode]] = result
    return done


def chosen_videos(choice: str) -> Callable[[stream.Episode, bool], bool]:
    """all | failures | task:init,task:init,... -> which episodes are filmed, by name and success.

    Raises:
      ValueError: it is none of these.
    """
    if choice in ("all", "failures"):
        return lambda episode, success: choice == "all" or not success
    if not re.fullmatch(r"\d+:\d+(,\d+:\d+)*", choice):
        raise ValueError(
            f"--videos={choice} is no choice of episodes; give all, failures, "
            f"or pairs like --videos=0:40,3:41"
        )
    pairs = {tuple(map(int, pair.split(":"))) for pair in choice.split(",")}
    return lambda episode, success: (episode.task, episode.init_state) in pairs


def require_played(choice: str, episodes: Sequence[stream.Episode]) -> None:
    """The pairs of a choice of videos are among the episodes.

    Raises:
      ValueError: names the first one that is not.
    """
    played = set(map(_pair, episodes))
    for pair in choice.split(",") if ":" in choice else ():
        if pair not in played:
            raise ValueError(
                f"--videos={choice} asks for {pair}, which is not played; the first and the last "
                f"of the {len(episodes)} episodes are {_pair(episodes[0])} and "
                f"{_pair(episodes[-1])}"
            )


def _pair(episode: stream.Episode) -> str:
    return f"{episode.task}:{episode.init_state}"


def first_videos(
    episodes: Sequence[stream.Episode], count: int
) -> Callable[[stream.Episode, bool], bool]:
    """The same for the first ones of a list."""
    first = frozenset(episodes[:count])
    return lambda episode, success: episode in first


def film(directory: pathlib.Path, result: stream.Result, instructions: Sequence[str]) -> None:
    """Write the video of an episode and let its frames go."""
    episode = result.episode
    outcome = "success" if result.success else "failure"
    name = f"task_{episode.task}_init_{episode.init_state}_{outcome}.mp4"
    caption = f"task {episode.task}: {instructions[episode.task]}"
    with child.shielded():  # the encoder
        video.write_episode(directory / "videos" / name, result.frames, caption, result.success)
    result.frames = None
