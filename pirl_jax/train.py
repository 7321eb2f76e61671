"""Fine-tune a policy by reinforcement learning.

    python -m pirl_jax.train --config configs/quickstart.py [--config.a.b=value ...]
                             [--resume auto] [--hosts auto]
    python -m pirl_jax.train --config RECIPE --plan-only [--target tpu:v5e:2x4]

Chapters: prepare (run/training.py: everything a user can get wrong ends there, in one sentence),
teach (run/lessons.py, where the recipe asks for SFT), iterate (rollout, update), finish
(evaluation, table, curve, video).
"""

from collections.abc import Iterator
import contextlib
import sys

import jax

from pirl_jax.core import endings, rng, types
from pirl_jax.core import mesh as meshes
from pirl_jax.envs.pool import queue
from pirl_jax.learner import in_parts
from pirl_jax.learner import state as states
from pirl_jax.monitor import log, panel, report, timeline
from pirl_jax.policy import normalize
from pirl_jax.rollout import actor as actors
from pirl_jax.rollout import film as filming
from pirl_jax.rollout import starts, stats
from pirl_jax.rollout import stream as streams
from pirl_jax.run import (
    apart,
    checkpoints,
    command,
    config,
    devices,
    divergence,
    evaluation,
    films,
    hosts,
    learning,
    lessons,
    outlook,
    overlap,
    policies,
    preemption,
    results,
    rollouts,
    schedule,
    steps,
    training,
)
from pirl_jax.weights import frozen


def main(argv: list[str]) -> None:
    resume = preemption.how_to_resume(argv)
    with (
        preemption.watching(resume, preemption.TRY_AGAIN) as watch,
        contextlib.ExitStack() as stack,
    ):
        with command.user_errors():
            options, raw = command.parse(argv, _parser())
            raw = training.agreed(raw, options)
            settings = config.settings(raw)
            outlook.require_target(options, "output")
            if options.target and not options.plan_only:
                raise ValueError(
                    f"--target={options.target} is for --plan-only; a run uses the devices here"
                )
            if options.plan_only:
                outlook.plan_only(options, settings)
                return
            devices.setup_jax(settings)
            stack.enter_context(hosts.joined(options.hosts, watch))
            run = training.prepare(settings, raw, options.resume, stack)
            guard = divergence.Guard(run)
        with command.known_endings():
            learn(run, guard, watch)


def _parser() -> command.Parser:
    parser = command.Parser("pirl train", __doc__)
    hosts.add_argument(parser)
    parser.add_argument(
        "--resume",
        choices=("never", "auto"),
        default="never",
        help="auto: continue the run in run.directory",
    )
    parser.add_argument(
        "--plan-only",
        action="store_true",
        help="print what the run would need and end, for the devices here or for a --target",
    )
    outlook.add_arguments(parser)
    parser.add_argument("--output", type=command.path, help="JSON of --plan-only --target")
    return parser


def learn(run: training.Run, guard: divergence.Guard, watch: preemption.Watch) -> None:
    """To the end of the run, back from where it diverges.

    Raises:
      endings.Failure: it ends before.
    """
    state = first_state(run)
    while state is not None:
        cause = ""
        try:
            finish(run, iterate(run, state, guard, watch))
        except endings.Diverged as error:
            cause = str(error)
        # Before anything is loaded: a state that is of no use may fill the devices.
        state = None
        run.publish.forget()
        if cause:
            guard.roll_back(cause)
            state = _resumed(run)


def first_state(run: training.Run) -> states.TrainState:
    """State before the first iteration of this start.

    From the run's own checkpoint, another run's, or taught.
    """
    if run.first_iteration:
        return _resumed(run)
    settings = run.settings
    checkpoint = settings.raw.model.checkpoint
    if checkpoint:
        with command.user_errors():
            params, norm_stats = policies.load_policy(
                settings, checkpoint, -1, run.mesh, to_teach=settings.raw.sft.by_dataset
            )
        if settings.raw.sft.by_dataset:
            params, norm_stats = lessons.by_dataset(run, params, norm_stats)
        else:
            run.actor = lessons.actor(run, norm_stats)
    elif run.dataset is not None:
        params = policies.fresh_params(settings, run.mesh, rng.named(run.key, "params"))
        params, norm_stats = lessons.by_dataset(run, params, None)
    elif settings.raw.sft.demonstrations:
        params, norm_stats = lessons.scripted(run)
    else:
        with command.user_errors():
            norm_stats = policies.given_stats(settings)
        params = policies.fresh_params(settings, run.mesh, rng.named(run.key, "params"))
        run.actor = lessons.actor(run, norm_stats)
    if run.directory.writes:
        normalize.save(policies.norm_stats_path(run.directory.path), norm_stats)
        if run.started_from is not None:
            checkpoints.save(run.directory.path, run.started_from)
    policies.keep_exact(settings, params, run.directory.path)
    state = steps.train_state(settings, params, run.mesh)
    if settings.raw.eval.baseline:
        _evaluate(run, state.params, 0, "before", settings.raw.eval.episodes_per_task)
    run.store.save(0, divergence.checked(state, 0))
    return state


def _resumed(run: training.Run) -> states.TrainState:
    params = policies.fresh_params(run.settings, run.mesh, run.key)
    template = steps.train_state(run.settings, params, run.mesh)
    with command.user_errors():
        norm_stats = normalize.load(policies.norm_stats_path(run.directory.path))
        state, _ = run.store.restore(template, run.first_iteration)
    run.actor = lessons.actor(run, norm_stats)
    lost = frozen.lost(run.store.directory / str(run.first_iteration))
    if lost and run.directory.writes:
        print(f"warning: {lost}; training goes on without it", file=sys.stderr)
    print(f"resumed {run.directory.path} after iteration {run.first_iteration}")
    return state


# ---- iterate ---------------------------------------------------------------------------------


def iterate(
    run: training.Run,
    state: states.TrainState,
    guard: divergence.Guard,
    watch: preemption.Watch,
) -> states.TrainState:
    """The training loop.

    Asked to end, it finishes the update that is under way, or drops the rollout, and saves.

    Raises:
      endings.Preempted: it was; the run goes on from that checkpoint as if nothing had been.
      endings.Diverged: there is nothing to go on with.
    """
    raw = run.settings.raw
    learner = learning.of_run(run)
    run.timers.take()
    counted = panel.watching(raw.num_iterations, before=run.first_iteration)
    with watch.patient(run.envs.interrupt), counted as board:
        for span in schedule.spans(raw, run.first_iteration):
            state = run.offload.away(state)
            with _resumable(run, state, span.start, watch):
                state = _span(run, learner, state, span, guard, board, watch)
        run.store.finish(raw.num_iterations, state)
    return state


@contextlib.contextmanager
def _resumable(
    run: training.Run, state: states.TrainState, iteration: int, watch: preemption.Watch
) -> Iterator[None]:
    """Where the iteration is interrupted before its updates begin, all hosts save its start."""
    try:
        hosts.meet(watch)
        yield
    except queue.Interrupted:
        state = run.offload.back(state)
        run.store.finish(iteration, divergence.checked(state, iteration))
        raise watch.ending(f"iteration {iteration} is saved") from None


def _span(
    run: training.Run,
    learner: learning.Learner,
    state: states.TrainState,
    span: range,
    guard: divergence.Guard,
    board: panel.Board,
    watch: preemption.Watch,
) -> states.TrainState:
    """From one barrier to the next: the evaluation, iterations with their rows, the checkpoint."""
    raw = run.settings.raw
    evaluated = {}
    # At the start of an iteration, not at its end: a resumed run has the same evaluations.
    if config.evaluation_due(raw, span.start):
        count = raw.eval.episodes_during_training or raw.eval.episodes_per_task
        acting = run.offload.acting(state)
        evaluated = _evaluate(run, acting, span.start, f"iteration_{span.start}", count)

    def ended(iteration: int, metrics: dict[str, float]) -> None:
        if evaluated and iteration == span.start:
            gap = results.rate(evaluated) - metrics["env/success_once"]
            metrics["rollout/exploration_gap"] = gap
        _ended(run, iteration, metrics, guard, board)

    if raw.rollout.max_staleness:
        play = apart.play if apart.applies(run) else overlap.play
        state = play(run, learner, state, span, board, watch, ended)
    else:
        with jax.transfer_guard("disallow"):
            state, metrics = _iteration(run, learner, state, span.start, board)
        ended(span.start, metrics)
    due = span.stop % raw.run.save_every == 0 or span.stop == raw.num_iterations
    # One that failed is made good with the state of today.
    if run.store.failed() or due:
        with run.timers.measure("save"):
            run.store.save(span.stop, divergence.checked(state, span.stop))
    return state


def _ended(
    run: training.Run,
    iteration: int,
    metrics: dict[str, float],
    guard: divergence.Guard,
    board: panel.Board,
) -> None:
    """An iteration is over, and nothing of it is saved yet: its row."""
    if iteration == run.first_iteration:  # its updates included
        metrics["time/to_first_update"] = run.timers.age_s()
    if run.rollbacks:
        metrics["run/rollbacks"] = float(run.rollbacks)
    row = run.directory.write(iteration, metrics)
    board.finished(row)
    guard.watch(iteration, row)
    run.page.follow(iteration, run.timers)


def _iteration(
    run: training.Run,
    learner: learning.Learner,
    state: states.TrainState,
    iteration: int,
    board: panel.Board,
) -> tuple[states.TrainState, dict]:
    """One rollout and its updates -> state, metrics."""
    key = run.iteration_key(iteration)
    faults = run.envs.counters()
    published = run.publish(run.playing(state))
    with hosts.together():
        film = films.begin(run.settings.raw)
        rollout, played = _rollout(run, published, key, iteration, board, film)
    _start_next(run, iteration + 1)
    run.keep_film(film, iteration, played)
    with run.timers.measure("update"):
        lesson = learning.lesson(run, learner, state, rollout, played, iteration)
        state, metrics = in_parts.drained(lesson)
    metrics |= stats.fault_metrics(faults, run.envs.counters(), meshes.gather)
    return state, metrics | run.timers.take()


def _start_next(run: training.Run, iteration: int) -> None:
    """The simulators start on the next rollout while the learner works."""
    raw = run.settings.raw
    if config.begins_with_rollout(raw, iteration):
        run.stream = run.next_stream(iteration)


def _rollout(
    run: training.Run,
    params: dict,
    key: jax.Array,
    iteration: int,
    board: panel.Board,
    film: filming.Film | None,
) -> tuple[types.Rollout, list[streams.Result]]:
    """Episodes of one iteration."""
    settings = run.settings
    actor = policies.at_iteration(run.actor, settings, iteration, run.plays)
    if actor.buffer is not None:
        limit = actors.max_decisions(run.envs.spec, actor.action_chunk)
        actor.buffer.clear(hosts.most_episodes(settings.raw) * limit)
    stream = run.take_stream() or run.next_stream(iteration)
    key = meshes.replicate(rng.named(key, "actions"), run.plays)
    return rollouts.play(
        settings, run.playable, iteration, stream, actor, params, key, run.timers, board, film
    )


def _evaluate(
    run: training.Run, params: dict, iteration: int, name: str, per_task: int, num_videos: int = 0
) -> dict[str, tuple[int, int]]:
    """Evaluate, write metrics and files under evaluation/<name>; {task: (successes, episodes)}."""
    settings = run.settings
    envs = run.envs
    whole = starts.evaluation(run.playable, per_task)
    protocol = results.protocol(settings, envs.spec, run.playable, per_task)
    with run.timers.measure("eval"):
        batch_size = config.decision_batch(settings.raw, envs.num_envs)
        published = run.publish(params)
        this = evaluation.Evaluation(
            settings=settings,
            envs=envs,
            rollout=settings.raw.rollout,
            cached_tasks=settings.raw.env.cached_tasks,
            decide=evaluation.network(
                settings, run.plays, run.actor, published, envs.spec, batch_size, timeline.Timers()
            ),
            episodes=hosts.share().of(whole),
            measured={"policy": {"name": name, "iteration": iteration}, "protocol": protocol},
            directory=run.directory.path / "evaluation" / name,
            filmed=results.first_videos(whole, num_videos),
        )
        with hosts.together():
            played = this.play(run.take_stream() or this.start(), name=f"evaluation ({name})")
    played = starts.joined(meshes.gather(played))
    metrics = stats.episode_metrics(played)
    metrics = {name.replace("env/", "eval/"): value for name, value in metrics.items()}
    run.directory.write(iteration, metrics)
    if run.directory.writes:
        this.write(played)
        rows = stats.per_task(played, run.instructions)
        films = sorted((this.directory / "videos").glob("*.mp4"))
        run.directory.show(iteration, f"evaluation/{name}", rows, films)
    return results.successes(played, run.instructions)


# ---- finish ----------------------------------------------------------------------------------


def finish(run: training.Run, state: states.TrainState) -> None:
    """Final evaluation on start states that training never saw, the table, the curve, the video.

    Says where each lies.
    """
    raw = run.settings.raw
    acting = states.acting_params(state)
    per_task = raw.eval.episodes_per_task
    after = _evaluate(run, acting, raw.num_iterations, "after", per_task, raw.eval.num_videos)
    if not run.directory.writes:
        return
    path = run.directory.path
    print(results.write_comparison(path, raw, after))
    report.learning_curve(path / "learning_curve.png", log.read(path), title=path.name)
    run.page.finish()
    train = run.playable.train
    held = run.playable.evaluate[: per_task or None]
    print(
        f"split {raw.env.split}: evaluation on start states {held[0]} to {held[-1]} of each task, "
        f"training on {train[0]} to {train[-1]}"
    )
    files = {
        "page": "report.html",
        "table": "table.json",
        "learning curve": "learning_curve.png",
        "videos": "evaluation/after/videos",
        "TensorBoard log": "tensorboard",
        "checkpoint": f"checkpoints/{raw.num_iterations}",
        "metrics": "metrics.jsonl",
    }
    for name, file in files.items():
        if (path / file).exists():
            print(f"{name + ':':<17}{path / file}")


if __name__ == "__main__":
    main(sys.argv)
