"""Evaluate a policy: every (task, start state) of the protocol once, without exploration noise.

    python -m pirl_jax.evaluate --checkpoint runs/quickstart
    python -m pirl_jax.evaluate --checkpoint runs/libero --config.env.protocol=openpi
                                --videos failures --output runs/openpi
    python -m pirl_jax.evaluate --checkpoint runs/libero --pro all    # LIBERO-PRO beside its suite
    python -m pirl_jax.evaluate --policy expert --config configs/quickstart.py
    python -m pirl_jax.evaluate --policy ws://localhost:8000    # any openpi server
                                --config configs/libero_spatial_ppo_pi05.py

Without --config the configuration is the run's own.  Writes evaluation.json, table.txt and videos/
into the output folder, and episodes.jsonl as it goes: the same command again plays what is missing.
"""

import argparse
from collections.abc import Callable
import contextlib
import dataclasses
import os
import pathlib
import sys

import numpy as np

from pirl_jax.core import bounds, page, paths, secrets
from pirl_jax.envs import base
from pirl_jax.envs.libero import files, plus
from pirl_jax.envs.pool import queue
from pirl_jax.monitor import journal, timeline
from pirl_jax.rollout import starts
from pirl_jax.rollout import stream as streams
from pirl_jax.run import (
    checkpoints,
    command,
    config,
    devices,
    evaluation,
    machine,
    pages,
    perturbations,
    policies,
    preemption,
    results,
    simulators,
)
from pirl_jax.serving import metadata, tls
from pirl_jax.weights import resolve


@dataclasses.dataclass(frozen=True)
class Candidate:
    """The policy that is evaluated, with the simulators it acts in."""

    envs: queue.ReadyQueue
    rollout: page.Rollout  # how its slots are served
    decide: streams.Decide
    identity: dict  # as the results name it
    directory: pathlib.Path  # where results go by default


@preemption.watching("the same command plays what is missing", preemption.TRY_AGAIN)
def main(argv: list[str]) -> None:
    """argv: as sys.argv, the program's name first."""
    with contextlib.ExitStack() as stack:
        with command.user_errors():
            options, raw = command.parse(argv, _parser())
            if options.policy == "checkpoint" and options.checkpoint:
                raw = checkpoints.agreed(raw, options.checkpoint, options.iteration, options.fields)
            settings = config.settings(raw)
            settings = _perturbed(options, settings)
            this = prepare(options, settings, stack)
        with command.known_endings():
            print(measure(this))
            pages.Page(this.directory).finish()
        print(f"results in {this.directory}")


def _perturbed(options: argparse.Namespace, settings: config.Settings) -> config.Settings:
    """With the suites that --pro or --plus ask for."""
    if options.pro and options.plus:
        raise ValueError("--pro and --plus are two evaluations; give one of them")
    if options.pro:
        settings = config.changed(settings, perturbations.with_pro(settings.raw.env, options.pro))
    if options.plus:
        settings = config.changed(settings, perturbations.with_plus(settings.raw.env, options.plus))
    return settings


def _parser() -> command.Parser:
    parser = command.Parser("pirl evaluate", __doc__)
    parser.add_argument(
        "--policy",
        default="checkpoint",
        help=f"checkpoint | {' | '.join(POLICIES)} | ws://HOST:PORT | wss://HOST:PORT",
    )
    parser.add_argument(
        "--tls-ca",
        type=command.path,
        help="whom to trust at wss://, a PEM file; default: the system's",
    )
    parser.add_argument(
        "--api-key", type=command.key, help="of the server at ws://; default $PIRL_API_KEY"
    )
    parser.add_argument(
        "--checkpoint", type=command.path, help="run directory, or a checkpoint of a known format"
    )
    parser.add_argument(
        "--iteration",
        type=command.number(int, -1),
        default=-1,
        help="which checkpoint of a run or step of an experiment; -1 = the newest",
    )
    parser.add_argument(
        "--output",
        type=command.path,
        help="where results go; default RUN_DIR/evaluation/checkpoint_N",
    )
    parser.add_argument(
        "--pro",
        type=command.text,
        metavar="DIMENSIONS",
        help="all, or some of lan,object,swap,task: env.suite and these perturbations of it",
    )
    parser.add_argument(
        "--plus",
        type=command.text,
        metavar="DIMENSIONS",
        help=f"all, or some of {','.join(plus.DIMENSIONS)}, and with env.plus_assets"
        f" {','.join(plus.NEED_ASSETS)}: LIBERO-Plus's tasks for env.suite",
    )
    parser.add_argument(
        "--videos",
        type=command.text,
        help="all | failures | task:init,...; default: the first eval.num_videos",
    )
    return parser


# ---- prepare: everything a user can get wrong ends here, in one sentence ---------------------


def prepare(
    options: argparse.Namespace, settings: config.Settings, stack: contextlib.ExitStack
) -> evaluation.Evaluation:
    """Simulators, policy, output folder; the stack closes them.

    Raises:
      ValueError: what the user asks for does not exist or does not fit.
    """
    filmed = results.chosen_videos(options.videos or "all")
    served = options.policy.startswith(("ws://", "wss://"))
    if not served and options.policy not in ("checkpoint", *POLICIES):
        raise bounds.unknown(
            "--policy", options.policy, ("checkpoint", *POLICIES, "ws://HOST:PORT")
        )
    if options.policy == "checkpoint" and not options.checkpoint:
        raise ValueError(
            "--checkpoint is missing; give the directory of a run, or --policy random | expert"
        )
    paths.require_writable(options.output or _default_place(options), "--output")
    if served:
        candidate = _served(options, settings, stack)
    elif options.policy == "checkpoint":
        candidate = _network(options, settings, stack)
    else:
        candidate = _without_network(options, settings, stack)
    raw = settings.raw
    spec = candidate.envs.spec
    playable = config.playable(raw, spec)
    episodes = starts.evaluation(playable, raw.eval.episodes_per_task)
    results.require_played(options.videos or "all", episodes)
    if not options.videos:
        filmed = results.first_videos(episodes, raw.eval.num_videos)
    protocol = results.protocol(settings, spec, playable, raw.eval.episodes_per_task)
    return evaluation.Evaluation(
        settings=settings,
        envs=candidate.envs,
        rollout=candidate.rollout,
        cached_tasks=raw.env.cached_tasks,
        decide=candidate.decide,
        episodes=episodes,
        measured=secrets.cleaned({"policy": candidate.identity, "protocol": protocol}),
        directory=options.output or candidate.directory,
        filmed=filmed,
    )


def _default_place(options: argparse.Namespace) -> pathlib.Path:
    """Where the results will lie, or a folder above: before anything is loaded."""
    if options.policy == "checkpoint":
        with checkpoints.found(options.checkpoint, options.iteration) as place:
            if place.run is not None:
                return place.run / "evaluation"
    return pathlib.Path("runs")


def _num_envs(settings: config.Settings) -> int:
    return settings.raw.eval.num_envs or settings.raw.rollout.num_envs


def _network(
    options: argparse.Namespace, settings: config.Settings, stack: contextlib.ExitStack
) -> Candidate:
    """The policy of a checkpoint."""
    devices.setup_jax(settings)
    mesh = devices.acting(settings)
    # A run that still trains may write another one in between.
    with checkpoints.held(options.checkpoint, options.iteration) as place:
        opened = policies.look(settings, place)
        params = policies.load(settings, opened, mesh, acts=True)
        identity = checkpoints.identity(place)
    num_envs = _num_envs(settings)
    envs = stack.enter_context(simulators.open_envs(settings, num_envs))
    instructions = envs.spec.instructions
    tasks = config.playable(settings.raw, envs.spec).tasks
    to_model = policies.transform_for(settings, opened.stats, instructions, tasks)
    actor = policies.actor(settings, mesh, to_model, instructions)
    batch_size = config.decision_batch(settings.raw, num_envs)
    decide = evaluation.network(
        settings, mesh, actor, params, envs.spec, batch_size, timeline.Timers()
    )
    named = {
        "name": "checkpoint",
        **identity,
        "model": dataclasses.asdict(settings.raw.model),
        "checkpoint": opened.record.as_json(),
    }
    directory = _results_of(options, place)
    return Candidate(envs, settings.raw.rollout, decide, named, directory)


def _results_of(options: argparse.Namespace, place: resolve.Place) -> pathlib.Path:
    """Where the results of a checkpoint go by default."""
    if place.run is not None:
        directory = place.run / "evaluation" / f"checkpoint_{place.step}"
    else:  # foreign checkpoints' folders are not ours to write into
        name = options.checkpoint.name
        if place.step not in (None, resolve.number(name)):
            name = f"{name}_step_{place.step}"
        directory = pathlib.Path("runs", name)
    for name in ("pro", "plus"):
        if getattr(options, name):
            directory = directory.with_name(f"{directory.name}_{name}")
    return directory


def _served(
    options: argparse.Namespace, settings: config.Settings, stack: contextlib.ExitStack
) -> Candidate:
    """A policy behind openpi's protocol."""
    api_key = options.api_key or os.environ.get("PIRL_API_KEY", "")
    num_envs = _num_envs(settings)
    count = config.decision_batch(settings.raw, num_envs)
    machine.require_openpi_client()
    from pirl_jax.serving import client  # needs openpi-client, which pip cannot bring along

    is_secure = options.policy.startswith("wss://")
    if options.tls_ca and not is_secure:
        raise ValueError(
            f"--tls-ca={options.tls_ca} has no effect without --policy=wss://HOST:PORT"
        )
    verifying = tls.client_context(options.tls_ca) if is_secure else None
    remote = stack.enter_context(client.connect(options.policy, api_key, count, verifying))
    envs = stack.enter_context(simulators.open_envs(settings, num_envs))
    decide = client.decide(remote, envs.spec, settings.policy.model.action_chunk)
    named = {"name": remote.name, "server": metadata.as_json(remote.greeting)}
    directory = pathlib.Path("runs", f"served_{files.title(settings.raw.env.suite)}")
    return Candidate(envs, settings.raw.rollout, decide, named, directory)


def _without_network(
    options: argparse.Namespace, settings: config.Settings, stack: contextlib.ExitStack
) -> Candidate:
    """A policy of POLICIES."""
    make_env = simulators.expert_factory(settings) if options.policy == "expert" else None
    num_envs = _num_envs(settings)
    envs = stack.enter_context(simulators.open_envs(settings, num_envs, make_env))
    decide = POLICIES[options.policy](settings, envs.spec)
    # Nothing is gained by batches.
    rollout = dataclasses.replace(settings.raw.rollout, num_groups=num_envs)
    directory = pathlib.Path("runs", f"{options.policy}_{files.title(settings.raw.env.suite)}")
    return Candidate(envs, rollout, decide, {"name": options.policy}, directory)


def _random(settings: config.Settings, spec: base.EnvSpec) -> streams.Decide:
    """Uniform actions, drawn by seed, episode and decision.

    An episode is the same whichever others are played beside it.
    """
    shape_Ia = settings.policy.model.action_chunk, spec.action_dim

    def decide(turn: streams.Turn) -> np.ndarray:
        chunks = []
        for e, c in zip(turn.episode.tolist(), turn.decision.tolist(), strict=True):
            generator = np.random.default_rng([settings.raw.seed, e, c])
            chunks.append(generator.uniform(-1, 1, shape_Ia))
        return np.stack(chunks)

    return decide


def _expert(settings: config.Settings, spec: base.EnvSpec) -> streams.Decide:
    """The simulators of expert_factory choose themselves; they want a chunk of any numbers."""
    chunk_Ia = np.zeros((settings.policy.model.action_chunk, spec.action_dim))
    return lambda turn: np.repeat(chunk_Ia[None], len(turn.row), 0)


# ---- measure ---------------------------------------------------------------------------------


def measure(this: evaluation.Evaluation) -> str:
    """Play what is missing and write the results -> the table."""
    with command.user_errors():
        notes = journal.Journal(this.directory / "episodes.jsonl", this.measured)
    with notes:
        with command.user_errors():
            done = results.finished(notes.rows, this.episodes, notes.path)
        if done:
            print(
                f"{len(done)} of {len(this.episodes)} episodes are in {notes.path}; "
                f"playing the others"
            )
        played = this.play(this.start(done), notes)
    return this.write(played)


POLICIES: dict[str, Callable] = {"random": _random, "expert": _expert}

if __name__ == "__main__":
    main(sys.argv)
