"""Evaluate a policy: every (task, start state) of the protocol once, without exploration noise.

    python -m pirl_jax.evaluate --checkpoint runs/quickstart
    python -m pirl_jax.evaluate --checkpoint runs/libero --config.env.protocol=openpi --videos failures --output runs/openpi
    python -m pirl_jax.evaluate --policy expert --config configs/quickstart.py
    python -m pirl_jax.evaluate --policy ws://localhost:8000 --config configs/libero_spatial_ppo_pi05.py    # any openpi server

Without --config the configuration is the run's own.  Writes evaluation.json, table.txt and videos/ into the output folder, and
episodes.jsonl as it goes: the same command again plays what is missing.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import sys

import jax
import numpy as np

from pirl_jax.core import types
from pirl_jax.envs.pool import queue
from pirl_jax.monitor import journal, progress, timeline
from pirl_jax.rollout import collector, starts, stream
from pirl_jax.run import command, config, devices, policies, results, simulators
from pirl_jax.serving import client


@dataclasses.dataclass
class Evaluation:
    """What lives as long as the command."""

    settings: config.Settings
    pool: queue.ReadyQueue
    chosen: starts.Starts
    decide: stream.Decide
    schedule: stream.Schedule
    measured: dict  # policy and protocol, as the results name them
    output: pathlib.Path
    resources: contextlib.ExitStack  # closes pool and journal


def policy(settings, mesh, actor, params, spec, batch_size: int, timers) -> stream.Decide:
    """The actions of a network.  The start noise of the flow is drawn from the configured seed and the episode alone: two
    policies are compared on equal terms, and an episode is the same whichever others are played beside it."""
    return collector.exploit(
        actor, params, policies.evaluation_key(settings, mesh), spec, batch_size, timers
    )


def play(
    pool,
    names,
    schedule,
    decide,
    timers,
    *,
    name="evaluation",
    record=(),
    done=None,
    finished=None,
    begun=None,
):
    """Play the episodes that `done` does not know -> list of episodes.Result.  Shows progress.  See episodes.play."""

    def note(e, result):
        if finished:
            finished(e, result)
        step(1)

    done = done or {}
    with (
        progress.track(name, total=len(names) - len(done), unit="episodes") as step,
        jax.transfer_guard("disallow"),
    ):
        return stream.play(
            pool,
            names,
            schedule,
            decide,
            timers,
            record=record,
            done=done,
            finished=note,
            begun=begun,
        )


def main(argv: list[str]) -> None:
    """argv: as sys.argv, the program's name first."""
    with command.user_errors():
        values, raw = command.parse(argv, _parser())
        this = prepare(values, config.settings(raw))
    with this.resources:
        print(measure(this, values.videos))
        print(f"results in {this.output}")


def _parser() -> command.Parser:
    parser = command.Parser("pirl evaluate", __doc__)
    parser.add_argument(
        "--policy",
        default="checkpoint",
        help=f"checkpoint | {' | '.join(POLICIES)} | ws://HOST:PORT",
    )
    parser.add_argument("--api-key", help="of the server at ws://; default $PIRL_API_KEY")
    parser.add_argument("--checkpoint", help="run directory that holds checkpoints/")
    parser.add_argument(
        "--iteration", type=int, default=-1, help="which checkpoint; -1 = the newest"
    )
    parser.add_argument(
        "--output", help="where results go; default RUN_DIR/evaluation/checkpoint_N"
    )
    parser.add_argument(
        "--videos", help="all | failures | task:init,...; default: the first eval.num_videos"
    )
    return parser


# ---- prepare: everything a user can get wrong ends here, in one sentence -------------------------------------------------


def prepare(values, settings) -> Evaluation:
    """Simulators, policy, output folder."""
    results.chosen_videos(values.videos or "all")
    served = values.policy.startswith(("ws://", "wss://"))
    if not served and values.policy not in ("checkpoint", *POLICIES):
        raise types.unknown("--policy", values.policy, ("checkpoint", *POLICIES, "ws://HOST:PORT"))
    if values.policy == "checkpoint" and not values.checkpoint:
        raise ValueError(
            "--checkpoint is missing; give the directory of a run, or --policy random | expert"
        )
    num_envs = settings.raw.eval.num_envs or settings.raw.rollout.num_envs
    with contextlib.ExitStack() as stack:
        if served or values.policy == "checkpoint":
            prepared = (_served if served else _network)(values, settings, num_envs, stack)
            pool, decide, schedule, named, output = prepared
        else:
            make_env = simulators.expert_factory(settings) if values.policy == "expert" else None
            pool = stack.enter_context(simulators.open_envs(settings, num_envs, make_env))
            decide = POLICIES[values.policy](settings, pool.spec)
            schedule = dataclasses.replace(
                settings.schedule, num_groups=num_envs
            )  # nothing is gained by batches
            named, output = (
                {"name": values.policy},
                pathlib.Path("runs", f"{values.policy}_{settings.raw.env.suite}"),
            )
        chosen = config.playable(settings.raw, pool.spec)
        protocol = results.protocol(
            settings, pool.spec, chosen, settings.raw.eval.episodes_per_task
        )
        measured = {"policy": named, "protocol": protocol}
        output = pathlib.Path(values.output) if values.output else output
        return Evaluation(
            settings, pool, chosen, decide, schedule, measured, output, stack.pop_all()
        )


def _network(values, settings, num_envs, stack):
    """The policy of a checkpoint -> pool, decision function, schedule, its name, the default output folder."""
    devices.setup_jax(settings)
    mesh = devices.mesh(settings)
    run_dir = policies.run_directory(values.checkpoint)
    params, norm_stats = policies.load_policy(settings, run_dir, values.iteration, mesh)
    identity = policies.checkpoint_identity(run_dir, values.iteration)
    pool = stack.enter_context(simulators.open_envs(settings, num_envs))
    chosen, instructions = config.playable(settings.raw, pool.spec), pool.spec.instructions
    to_model = policies.transform(
        settings, norm_stats, [instructions[task] for task in chosen.tasks], only_these=True
    )
    actor = policies.actor(settings, mesh, to_model, instructions)
    batch_size = config.decision_batch(settings.raw, num_envs)
    decide = policy(settings, mesh, actor, params, pool.spec, batch_size, timeline.Timers())
    own = (
        identity["iteration"] is not None
    )  # foreign checkpoints' folders are not ours to write into
    output = (
        run_dir / "evaluation" / f"checkpoint_{identity['iteration']}"
        if own
        else pathlib.Path("runs", run_dir.name)
    )
    named = {"name": "checkpoint", **identity, "model": dataclasses.asdict(settings.raw.model)}
    return pool, decide, settings.schedule, named, output


def _served(values, settings, num_envs, stack):
    """The same of a policy behind openpi's protocol."""
    api_key = values.api_key or os.environ.get("PIRL_API_KEY", "")
    count = config.decision_batch(settings.raw, num_envs)
    opened, metadata = stack.enter_context(client.connections(values.policy, api_key, count))
    pool = stack.enter_context(simulators.open_envs(settings, num_envs))
    decide = client.decide(opened, metadata, pool.spec, settings.policy.model.action_chunk)
    named = {
        "name": values.policy,
        "server": json.loads(json.dumps(metadata, default=str)),
    }  # others' may hold arrays
    return (
        pool,
        decide,
        settings.schedule,
        named,
        pathlib.Path("runs", f"served_{settings.raw.env.suite}"),
    )


def _random(settings, spec) -> stream.Decide:
    """Uniform actions, drawn by seed, episode and decision: an episode is the same whichever others are played beside it."""
    shape_IA = settings.policy.model.action_chunk, spec.action_dim

    def decide(turn):
        names = zip(turn.episode.tolist(), turn.decision.tolist(), strict=True)
        return np.stack(
            [
                np.random.default_rng([settings.raw.seed, *name]).uniform(-1, 1, shape_IA)
                for name in names
            ]
        )

    return decide


def _expert(settings, spec) -> stream.Decide:
    """The simulators of expert_factory choose themselves; they want a chunk of any numbers."""
    chunk_IA = np.zeros((settings.policy.model.action_chunk, spec.action_dim))
    return lambda turn: np.repeat(chunk_IA[None], len(turn.row), 0)


# ---- measure -----------------------------------------------------------------------------------------------------------


def measure(this: Evaluation, videos: str | None) -> str:
    """Play what is missing and write the results -> the table."""
    raw, instructions = this.settings.raw, this.pool.spec.instructions
    names = starts.evaluation(this.chosen, raw.eval.episodes_per_task)
    wanted = (
        results.chosen_videos(videos)
        if videos
        else lambda name, _: name in names[: raw.eval.num_videos]
    )
    with command.user_errors():
        notes = journal.Journal(this.output / "episodes.jsonl", this.measured)
    with notes:
        index = {name: e for e, name in enumerate(names)}
        done = {index[result.episode]: result for result in map(results.from_row, notes.rows)}
        if done:
            print(f"{len(done)} of {len(names)} episodes are in {notes.path}; playing the others")

        def finished(e, result):
            if result.frames and wanted(result.episode, result.success):
                results.film(this.output, result, instructions)
            result.frames = None
            if not result.lost:
                notes.append(results.row(result))

        played = play(
            this.pool,
            names,
            this.schedule,
            this.decide,
            timeline.Timers(),
            done=done,
            finished=finished,
            record=[e for e, name in enumerate(names) if wanted(name, False)],
        )
    return results.write(
        this.output,
        this.settings,
        this.measured,
        played,
        instructions,
        this.measured["policy"]["name"],
    )


POLICIES = {"random": _random, "expert": _expert}

if __name__ == "__main__":
    main(sys.argv)
