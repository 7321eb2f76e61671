"""How long an iteration of a recipe takes on a target, from its compiled programs and the speed of
simulators.

Every line says what it rests on: measured, given, modelled (a compiler's estimate) or assumed.
Refuses to know compilers.  Left out: evaluations, SFT, checkpoints, rows that travel between host
and devices, and that simulators reset while the learner works.  A placement's seconds come from the
model of the loop (run/forecast.py).
"""

import argparse
from collections.abc import Mapping, Sequence
import dataclasses
import math
import pathlib
import re
from typing import Any

from pirl_jax.core import outside, page, placement
from pirl_jax.envs import base
from pirl_jax.monitor import columns
from pirl_jax.rollout import actor as actors
from pirl_jax.run import command, config, forecast, loop_model

DAY_S = 86400.0
# How the programs begin that a turn, a microbatch and an optimiser step run.
DECISION = ("rollout decision", "writing")
MICROBATCH = ("update microbatch", "reading")
STEP = ("optimiser step",)
HEADER = ("seconds of an iteration", "s", "what it rests on")
EVENT_BY_EVENT = "modelled: the loop event by event, equal episodes and chunks"
ALONE = "modelled: of devices alone, simulators take no time; --cores adds theirs"
WORKERS = re.compile(r"(\d+) workers, control steps per s.*")


@dataclasses.dataclass(frozen=True)
class Simulators:
    """Of all hosts together."""

    cores: int
    steps_per_core: float  # control steps per second, rendering included
    source: str  # "given", or what measured it

    @property
    def steps_per_s(self) -> float:
        return self.cores * self.steps_per_core


@dataclasses.dataclass(frozen=True)
class Line:
    """A stage of an iteration."""

    stage: str
    seconds: float
    rests_on: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `simulators` and `iteration` are given."""
    parser.add_argument(
        "--cores",
        type=command.number(int, 1),
        help="that simulators have, of all hosts: adds the seconds of an iteration",
    )
    parser.add_argument(
        "--steps-per-core",
        type=command.number(float, 1e-3),
        help="speed of simulators with their pictures, control steps per s; or give --simulators",
    )
    parser.add_argument(
        "--simulators", type=command.path, help="JSON of pirl bench env on such a core"
    )
    parser.add_argument(
        "--episode-share",
        type=command.number(float, 0.01, 1.0),
        default=1.0,
        help="how long episodes are, of their limit",
    )
    parser.add_argument(
        "--of-roofline",
        type=command.number(float, 0.01, 1.0),
        default=0.4,
        help="what GPU programs are assumed to reach, because their compiler estimates no time",
    )


def simulators(options: argparse.Namespace, settings: config.Settings) -> Simulators | None:
    """What the flags say; None: nothing is asked.

    Raises:
      ValueError: cores without a speed, or a speed without cores.
    """
    speeds = [options.steps_per_core, options.simulators]
    if not options.cores and not any(speeds):
        return None
    if not options.cores or all(speeds) or not any(speeds):
        raise ValueError(
            "the seconds of an iteration need --cores and one of --steps-per-core, --simulators"
        )
    if options.steps_per_core:
        return Simulators(options.cores, options.steps_per_core, "given")
    speed = measured_speed(options.simulators, settings.raw.env.render_quality)
    return Simulators(options.cores, speed, f"measured ({options.simulators.name})")


def measured_speed(path: pathlib.Path, quality: str) -> float:
    """Control steps per second of one core, from a file of `pirl bench env`.

    Of the slowest task, at the number of workers where a worker does most.

    quality: env.render_quality.

    Raises:
      ValueError: the file is another one.
    """
    name = "ours light" if quality == "light" else "ours"
    speeds = []
    for rows in outside.read_json(path).get("result", {}).values():
        per_core = []
        for row, values in rows.items():
            workers = WORKERS.fullmatch(row)
            if workers:
                per_core.append(values[name] / int(workers[1]))
        if per_core:
            speeds.append(max(per_core))
    if not speeds:
        raise ValueError(f"{path} holds no speed of simulators; give a file of pirl bench env")
    return min(speeds)


def iteration(
    settings: config.Settings,
    env_spec: base.EnvSpec,
    result: Mapping[str, Any],
    simulators: Simulators,
    episode_share: float,
    of_roofline: float,
) -> dict[str, Any]:
    """{"lines", "iteration_s", "devices_idle", "iterations", "days", "placements", "remarks"} or
    {"why"}

    Args:
      settings: with the choices made.
      result: of run/outlook.py.
      episode_share: how long episodes are, of their limit.
      of_roofline: what GPU programs are assumed to reach of it.
    """
    if why := _unknown(result):
        return {"why": why}
    times = _Times(result["programs"], of_roofline)
    raw = settings.raw
    chunk = settings.policy.model.action_chunk
    episodes = raw.rollout.episodes_per_iteration
    each = _decisions(settings, env_spec, episode_share)
    decisions = episodes * each
    play = Line(
        "simulators",
        decisions * chunk / simulators.steps_per_s,
        f"{simulators.source}: {simulators.steps_per_core:.0f} control steps per s and core, "
        f"{simulators.cores} cores",
    )
    batch = config.decision_batch(raw, raw.rollout.num_envs)
    hosts = result["hosts"]  # each decides for its own
    decide = times.line("decisions", math.ceil(decisions / hosts / batch), DECISION)
    devices = math.prod(result["choices"]["mesh"])
    microbatches = math.ceil(decisions / raw.algorithm.microbatch_rows(devices))
    steps = math.ceil(decisions / raw.algorithm.minibatch_size)
    epochs = raw.algorithm.update_epochs
    learn = times.line("gradients", epochs * microbatches, MICROBATCH)
    step = times.line("optimiser steps", epochs * steps, STEP)
    # In groups, some simulators play while the policy decides for others.
    together = max if raw.rollout.num_groups > 1 else _sum
    rollout_s = together(play.seconds, decide.seconds)
    total = rollout_s + learn.seconds + step.seconds
    busy = decide.seconds + learn.seconds + step.seconds
    predicted = _placements(raw, times, result, simulators, each)
    return {
        "lines": [dataclasses.asdict(line) for line in (play, decide, learn, step)],
        "decisions": decisions,
        "rollout_s": rollout_s,
        "iteration_s": total,
        "devices_idle": 1 - busy / total,
        "iterations": raw.num_iterations,
        "days": raw.num_iterations * total / DAY_S,
        "episode_share": episode_share,
    } | predicted


def of_devices(
    settings: config.Settings,
    env_spec: base.EnvSpec,
    result: Mapping[str, Any],
    episode_share: float,
    of_roofline: float,
) -> dict[str, Any]:
    """{"placements", "remarks"} or {"why"}: as `iteration`, where nobody knows the simulators.

    They are taken to need no time, so that an iteration takes no less.
    """
    if why := _unknown(result):
        return {"why": why}
    raw = settings.raw
    each = _decisions(settings, env_spec, episode_share)
    times = _Times(result["programs"], of_roofline)
    return _placements(raw, times, result, None, each)


def _unknown(result: Mapping[str, Any]) -> str:
    """Why nobody knows the seconds of programs."""
    refused = [name for name, row in result["programs"].items() if "refused" in row]
    return f"no time is known of {', '.join(refused)}" if refused else ""


def _decisions(settings: config.Settings, env_spec: base.EnvSpec, episode_share: float) -> int:
    """Of an episode."""
    chunk = settings.policy.model.action_chunk
    return math.ceil(episode_share * actors.max_decisions(env_spec, chunk))


def _placements(
    raw: page.Page,
    times: "_Times",
    result: Mapping[str, Any],
    simulators: Simulators | None,
    decisions: int,
) -> dict[str, Any]:
    """{"placements": {name: seconds}, "remarks"}: that of the page, first, and shared devices.

    Of one host with its share of episodes, rows and cores, because all do alike at one time.  Every
    episode has as many decisions, every chunk takes as long; without simulators, no time.
    """
    cfg = raw.algorithm
    hosts = result["hosts"]
    count = math.prod(result["choices"]["mesh"]) // hosts
    work = forecast.Work(
        decision=count * times.seconds(*DECISION)[0],
        microbatch=count * times.seconds(*MICROBATCH)[0],
        step_s=times.seconds(*STEP)[0],
    )
    workers = min(raw.env.num_workers, raw.rollout.num_envs)
    playing = loop_model.Simulators(
        slots=raw.rollout.num_envs,
        workers=workers,
        cores=max(1, simulators.cores // hosts) if simulators else workers,
        chunk_s=(raw.model.action_chunk / simulators.steps_per_core if simulators else 0.0,),
        reset_s=(0.0,),
        decisions=(decisions,),
    )
    schedule = loop_model.Schedule(
        raw.rollout.episodes_per_iteration // hosts,
        cfg.update_epochs,
        cfg.minibatch_size // hosts,
        cfg.microbatch_rows(count),
        num_groups=raw.rollout.num_groups,
        lockstep=raw.rollout.lockstep,
    )
    found = forecast.beside_shared(layout(raw, count), work, playing, schedule)
    seconds = {found.layout.name: found.own.iteration_s}
    seconds.setdefault("shared", found.shared.iteration_s)
    # Simulators may hide a slower device.
    return {"placements": seconds, "remarks": list(found.remarks()) if simulators else []}


def layout(raw: page.Page, count: int) -> forecast.Layout:
    """Of the page, on so many devices.

    Raises:
      ValueError: one sentence that names the key of the placement.
    """
    section = raw.placement
    placed = placement.of_page(section.env, section.rollout, section.actor, count)
    return forecast.Layout(
        rollout=len(placed.rollout),
        actor=len(placed.actor),
        separate=placed.mode == "separate",
        max_staleness=raw.rollout.max_staleness,
    )


@dataclasses.dataclass
class _Times:
    """Seconds of programs by how their names begin."""

    programs: Mapping[str, Mapping[str, Any]]
    of_roofline: float

    def seconds(self, *beginnings: str) -> tuple[float, bool]:
        """Of a call of each program; whether their compiler says so.  Of those that a run has not,
        nothing."""
        seconds = 0.0
        is_modelled = True
        for name, row in self.programs.items():
            if not name.startswith(beginnings):
                continue
            own_s = row["estimated_s"]
            if own_s is None:
                is_modelled = False
                own_s = row["roofline_s"] / self.of_roofline
            seconds += own_s + row["exchange_s"]
        return seconds, is_modelled

    def line(self, stage: str, calls: int, beginnings: Sequence[str]) -> Line:
        """So many calls."""
        seconds, is_modelled = self.seconds(*beginnings)
        if is_modelled:
            rests_on = "modelled: the compiler's estimate"
        else:
            rests_on = f"assumed: {self.of_roofline:.0%} of the roofline"
        each = f"{calls} calls of {1e3 * seconds:.1f} ms"
        return Line(stage, calls * seconds, f"{rests_on}, links at their rate; {each}")


def _sum(first: float, second: float) -> float:
    return first + second


def as_text(result: Mapping[str, Any]) -> str:
    """A line per stage, then the iteration."""
    if "why" in result:
        return f"time of an iteration: unknown, {result['why']}"
    if "lines" not in result:
        return columns.aligned(_rows_of_placements(result, ALONE), HEADER, left=3)
    rows = []
    for line in result["lines"]:
        rows.append([line["stage"], f"{line['seconds']:.1f}", line["rests_on"]])
    rows.append(["rollout", f"{result['rollout_s']:.1f}", "modelled: of the first two lines"])
    words = (
        f"modelled: {result['decisions']} decisions",
        f"episodes of {result['episode_share']:.0%} of their limit",
        f"devices idle {result['devices_idle']:.0%}",
        f"{result['iterations']} iterations are {result['days']:.1f} days",
    )
    rows.append(["iteration", f"{result['iteration_s']:.1f}", ", ".join(words)])
    rows += _rows_of_placements(result, EVENT_BY_EVENT)
    table = columns.aligned(rows, HEADER, left=3)
    return "\n".join([table, *(f"warning: {remark}" for remark in result["remarks"])])


def _rows_of_placements(result: Mapping[str, Any], rests_on: str) -> list[list[str]]:
    rows = []
    for name, seconds in result["placements"].items():
        rows.append([f"placement: {name}", f"{seconds:.1f}", rests_on])
    return rows
