"""Fine-tune a policy by reinforcement learning.

    python -m pirl_jax.train --config configs/quickstart.py [--config.a.b=value ...] [--resume auto] [--hosts auto]

Chapters: prepare (everything a user can get wrong ends here, in one sentence), teach (SFT, where the recipe asks for it),
iterate (rollout, update), finish (evaluation, table, curve, video).
"""

import contextlib
import dataclasses
import itertools
import pathlib
import sys

import jax
import numpy as np

from pirl_jax import evaluate
from pirl_jax.core import mesh as meshes
from pirl_jax.core import rng
from pirl_jax.envs.pool import queue
from pirl_jax.learner import state as states
from pirl_jax.learner import update
from pirl_jax.monitor import log, progress, report, timeline
from pirl_jax.policy import normalize
from pirl_jax.rl import groups
from pirl_jax.rollout import collector, starts, stats, stream
from pirl_jax.run import (
    command,
    config,
    devices,
    hosts,
    plan,
    policies,
    results,
    simulators,
    steps,
    teach,
)
from pirl_jax.run import hosts as run_hosts
from pirl_jax.weights import store


@dataclasses.dataclass
class Run:
    """What lives as long as the run."""

    settings: config.Settings
    key: jax.Array
    mesh: jax.sharding.Mesh
    pool: queue.ReadyQueue
    starts: starts.Starts  # what may be played
    directory: log.RunDir
    store: store.Store
    timers: timeline.Timers
    first_iteration: int  # 0: a fresh run
    resources: contextlib.ExitStack  # closes pool, store and directory
    actor: collector.Actor | None = None
    begun: stream.Stream | None = (
        None  # what is played next, whose simulators start while the devices work
    )
    demonstrations: list | None = (
        None  # episodes of the scripted expert, where SFT or co-training asked for them
    )

    @property
    def instructions(self):
        return self.pool.spec.instructions


def main(argv: list[str]) -> None:
    """argv: as sys.argv, the program's name first."""
    with contextlib.ExitStack() as stack:
        with command.user_errors():
            options, raw = command.parse(argv, _parser())
            settings = config.settings(raw)
            devices.setup_jax(settings)
            stack.enter_context(hosts.joined(options.hosts))
            run = open_run(settings, raw, options.resume)
        stack.enter_context(run.resources)
        finish(run, iterate(run, first_state(run)))


def _parser() -> command.Parser:
    parser = command.Parser("pirl train", __doc__)
    run_hosts.add_argument(parser)
    parser.add_argument(
        "--resume",
        choices=("never", "auto"),
        default="never",
        help="auto: continue the run in run.directory",
    )
    return parser


# ---- prepare -----------------------------------------------------------------------------------------------------------


def open_run(settings, raw, resume: str) -> Run:
    """Mesh, simulators, run directory, checkpoint store.  The directory comes last: a wrong start leaves none behind."""
    config.check_training(settings.raw)
    timers, path = timeline.Timers(), pathlib.Path(raw.run.directory)
    standing = meshes.gather(log.holds_run(path))[0]
    if standing and resume == "never":
        raise log.standing(path)
    mesh = devices.mesh(settings)
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(simulators.open_envs(settings, raw.rollout.num_envs))
        chosen = config.playable(settings.raw, pool.spec)
        instructions = [pool.spec.instructions[task] for task in chosen.tasks]
        to_model = policies.transform(
            settings, policies.identity_stats(settings), instructions, only_these=True
        )
        checkpoints = store.Store(path / "checkpoints", keep=raw.run.keep)
        stack.callback(checkpoints.close)
        hosts.check_storage(checkpoints.directory)
        resume_at = (checkpoints.latest() or 0) if standing else None
        if resume_at and resume_at > raw.num_iterations:
            raise ValueError(
                f"num_iterations={raw.num_iterations} but {path} already has {resume_at}; give at least that many"
            )
        begun = begin(settings, pool, chosen, resume_at or 0)
        settings, planned = plan.choose(settings, mesh, to_model.max_token_len, pool.spec)
        print(planned)
        directory = log.RunDir(
            path,
            raw.to_dict(),
            resume_at,
            tensorboard=raw.run.tensorboard,
            wandb=raw.run.wandb,
            writes=not jax.process_index(),
        )
        stack.callback(directory.close)
        for line in directory.changed:
            print(f"changed since the last start: {line}")
        return Run(
            settings,
            jax.random.key(raw.seed),
            mesh,
            pool,
            chosen,
            directory,
            checkpoints,
            timers,
            resume_at or 0,
            stack.pop_all(),
            begun=begun,
        )


def begin(settings, pool, chosen: starts.Starts, iteration: int) -> stream.Stream | None:
    """The simulators start on what is played first, while functions are compiled and weights loaded or taught."""
    raw = settings.raw
    if raw.eval.baseline and not iteration:
        names = run_hosts.share().of(starts.evaluation(chosen, raw.eval.episodes_per_task))
    elif iteration < raw.num_iterations and not _evaluation_due(raw, iteration):
        names = _names(raw, chosen, iteration, run_hosts.episodes_of_host(raw)[0])
    else:
        return None
    return stream.begin(pool, names, settings.schedule)


def first_state(run: Run) -> states.TrainState:
    """State before the first iteration of this start: from the run's own checkpoint, another run's, or taught."""
    settings, model = run.settings, run.settings.raw.model
    if run.first_iteration:
        return _resumed(run)
    if model.checkpoint:
        with command.user_errors():
            params, norm_stats = policies.load_policy(settings, model.checkpoint, -1, run.mesh)
        run.actor = _actor(run, norm_stats)
    elif settings.raw.sft.demonstrations:
        params, norm_stats = _taught(run)
    else:
        with command.user_errors():
            norm_stats = policies.given_stats(settings)
        params = policies.fresh_params(settings, run.mesh, rng.named(run.key, "params"))
        run.actor = _actor(run, norm_stats)
    if run.directory.writes:
        normalize.save(policies.norm_stats_path(run.directory.path), norm_stats)
    if settings.raw.eval.baseline:
        _evaluate(run, params, 0, "before", settings.raw.eval.episodes_per_task)
    state = steps.train_state(settings, params, run.mesh)
    run.store.save(0, state)
    return state


def _resumed(run):
    template = steps.train_state(
        run.settings, policies.fresh_params(run.settings, run.mesh, run.key), run.mesh
    )
    with command.user_errors():
        norm_stats = normalize.load(policies.norm_stats_path(run.directory.path))
        state, _ = run.store.restore(template, run.first_iteration)
    run.actor = _actor(run, norm_stats)
    print(f"resumed {run.directory.path} after iteration {run.first_iteration}")
    return state


def _taught(run):
    """Few-shot SFT from scripted demonstrations -> (params, NormStats)."""
    settings, page = run.settings, run.settings.raw.sft
    with command.user_errors():
        run.demonstrations = demonstrations = teach.collect(settings, run.starts)
    norm_stats = meshes.gather(teach.statistics(demonstrations))[
        0
    ]  # the same on all hosts, whatever their rounding
    run.actor = _actor(run, norm_stats)
    params = policies.fresh_params(settings, run.mesh, rng.named(run.key, "params"))
    print(
        f"SFT on {len(demonstrations)} demonstrations, {sum(len(d['actions']) for d in demonstrations)} control steps"
    )
    with progress.track("SFT", total=page.steps, unit="steps") as step:
        params, metrics = teach.teach(
            settings, params, run.mesh, run.actor.transform, demonstrations, run.key, step
        )
    run.directory.write(0, {f"sft/{name}": value for name, value in metrics.items()})
    return params, norm_stats


def _actor(run, norm_stats):
    played = [run.instructions[task] for task in run.starts.tasks]
    to_model = policies.transform(run.settings, norm_stats, played, only_these=True)
    return policies.actor(run.settings, run.mesh, to_model, run.instructions)


# ---- iterate -----------------------------------------------------------------------------------------------------------


def iterate(run: Run, state: states.TrainState) -> states.TrainState:
    """The training loop."""
    raw = run.settings.raw
    update_minibatch = steps.updater(run.settings, run.mesh)
    encoded = _encoded_demonstrations(run)
    run.timers.read()
    with progress.track(
        "training", total=raw.num_iterations - run.first_iteration, unit="iterations"
    ) as step:
        for iteration in range(run.first_iteration, raw.num_iterations):
            # At the start of an iteration, not at its end: a resumed run then has the same evaluations.
            if _evaluation_due(raw, iteration):
                count = raw.eval.episodes_during_training or raw.eval.episodes_per_task
                _evaluate(
                    run, states.acting_params(state), iteration, f"iteration_{iteration}", count
                )
            with jax.transfer_guard("disallow"):
                state, metrics = _iteration(run, update_minibatch, state, iteration, step, encoded)
            if iteration == run.first_iteration:  # its updates included
                metrics["time/to_first_update"] = run.timers.age_s()
            step(1, timeline.line(run.directory.write(iteration, metrics)))
            if (iteration + 1) % raw.run.save_every == 0 or iteration + 1 == raw.num_iterations:
                with run.timers.measure("save"):
                    run.store.save(iteration + 1, state)
    run.store.wait()
    return state


def _encoded_demonstrations(run):
    """What co-training draws from, or None.  A resumed run plays the same demonstrations again."""
    if not run.settings.raw.algorithm.sft_loss_weight:
        return None
    if run.demonstrations is None:
        run.demonstrations = teach.collect(run.settings, run.starts)
    return teach.encode(run.settings, run.actor.transform, run.demonstrations)


def _iteration(run, update_minibatch, state, iteration, step, encoded):
    """One rollout and its updates -> state, metrics."""
    key, cfg, faults = (
        rng.named(run.key, "iteration", iteration),
        run.settings.raw.algorithm,
        run.pool.counters(),
    )
    raw, (count, most) = run.settings.raw, run_hosts.episodes_of_host(run.settings.raw)
    actor = policies.at_iteration(run.actor, run.settings, iteration, run.mesh)
    if actor.buffer is not None:
        actor.buffer.clear(most * collector.max_decisions(run.pool.spec, actor.action_chunk))
    rollout, played = _rollout(
        run, actor, meshes.local_view(state.params, run.mesh), key, iteration, step
    )
    if iteration + 1 < raw.num_iterations and not _evaluation_due(raw, iteration + 1):
        run.begun = stream.begin(
            run.pool, _names(raw, run.starts, iteration + 1, count), run.settings.schedule
        )
    with run.timers.measure("update"):
        data = update.rows(rollout, cfg)
        drawn = itertools.repeat(None)
        if encoded is not None:
            drawn = teach.batches(encoded, raw.sft.batch_size, rng.named(key, "demonstrations"))
        shuffle = rng.named(key, "shuffle")
        state, metrics = update.update(
            update_minibatch, state, data, shuffle, cfg, demonstrations=lambda: next(drawn)
        )
    played = [result for results in meshes.gather(played) for result in results]
    metrics |= stats.episode_metrics(played) | stats.fault_metrics(
        faults, run.pool.counters(), meshes.gather
    )
    if not cfg.uses_critic:
        metrics |= stats.group_metrics(_useful(played, cfg), cfg.group_size)
    return state, metrics | stats.rollout_metrics(rollout, data, meshes.gather) | run.timers.read()


def _evaluation_due(raw, iteration):
    return bool(raw.eval.every and iteration and iteration % raw.eval.every == 0)


def _rollout(run, actor, params, key, iteration, step):
    """Episodes of one iteration; where the algorithm has a budget for it, groups without a signal are replaced by fresh ones."""
    raw, cfg, done, begun = (
        run.settings.raw,
        run.settings.raw.algorithm,
        itertools.count(1),
        run.begun,
    )
    (count, most), group_size, run.begun = run_hosts.episodes_of_host(raw), cfg.group_size, None

    def more(results):
        useful_E = _useful(results, cfg)
        kept, played = useful_E.reshape(-1, group_size).any(1).sum(), len(results) // group_size
        fresh = groups.fresh(count // group_size, kept, played, most // group_size)
        useless = (
            np.flatnonzero(~useful_E) if kept else ()
        )  # an update needs rows even to skip them
        return _names(raw, run.starts, iteration, fresh * group_size, len(results)), useless

    def finished(e, result):
        step(0, f"rollout {next(done)}/{most} episodes")

    names = _names(raw, run.starts, iteration, count)
    key = meshes.replicate(rng.named(key, "actions"), meshes.local(run.mesh))
    return collector.collect(
        actor,
        params,
        key,
        run.pool,
        names,
        run.settings.schedule,
        run.timers,
        group_size=group_size,
        bootstrap_truncated=cfg.uses_critic and cfg.bootstrap_truncated,
        finished=finished,
        begun=begun,
        more=more if cfg.max_episodes_per_iteration else None,
    )


def _names(raw, chosen, iteration, count, played=0):
    """Which `count` episodes this host plays in an iteration."""
    size, everywhere = raw.algorithm.group_size, count * jax.process_count()
    names = starts.training(
        chosen, everywhere, size, raw.rollout.start_order, raw.seed, iteration, played
    )
    return run_hosts.share().of(names, size)


def _useful(results, cfg):
    """Episodes [E] that the update learns from."""
    return update.useful(
        [result.reward for result in results], [not result.lost for result in results], cfg
    )


def _evaluate(run, params, iteration, name, per_task, num_videos=0):
    """Evaluate, write metrics and files under evaluation/<name> -> {task: (successes, episodes)}."""
    settings, folder = run.settings, run.directory.path / "evaluation" / name
    share = run_hosts.share()
    names = share.of(starts.evaluation(run.starts, per_task))
    batch_size = config.decision_batch(settings.raw, run.pool.num_envs)

    def finished(e, result):
        if result.frames:
            results.film(folder, result, run.instructions)

    begun, run.begun = run.begun, None
    with run.timers.measure("eval"):
        own = meshes.local_view(params, run.mesh)
        decide = evaluate.policy(
            settings, run.mesh, run.actor, own, run.pool.spec, batch_size, timeline.Timers()
        )
        played = evaluate.play(
            run.pool,
            names,
            settings.schedule,
            decide,
            timeline.Timers(),
            name=f"evaluation ({name})",
            record=[e for e in range(len(names)) if share.number(e) < num_videos],
            finished=finished,
            begun=begun,
        )
    played = starts.joined(meshes.gather(played))
    run.directory.write(
        iteration, {n.replace("env/", "eval/"): x for n, x in stats.episode_metrics(played).items()}
    )
    protocol = results.protocol(settings, run.pool.spec, run.starts, per_task)
    measured = {"policy": {"name": name, "iteration": iteration}, "protocol": protocol}
    if run.directory.writes:
        results.write(folder, settings, measured, played, run.instructions, name)
    return results.successes(played, run.instructions)


# ---- finish ------------------------------------------------------------------------------------------------------------


def finish(run: Run, state: states.TrainState) -> None:
    """Final evaluation on start states that training never saw, the table, the curve, the video; says where each lies."""
    raw, path = run.settings.raw, run.directory.path
    acting = states.acting_params(state)
    after = _evaluate(
        run, acting, raw.num_iterations, "after", raw.eval.episodes_per_task, raw.eval.num_videos
    )
    if not run.directory.writes:
        return
    before = results.read_successes(path / "evaluation" / "before")
    name = "SFT" if raw.sft.demonstrations else "before"
    table = report.success_table(
        ({name: before} if before else {}) | {report.algorithm_name(raw.algorithm.adv_type): after}
    )
    log.write_json(path / "table.json", table)
    (path / "table.txt").write_text(report.as_text(table) + "\n")
    report.learning_curve(path / "learning_curve.png", log.read(path), title=path.name)
    print(report.as_text(table))
    train, held = run.starts.train, run.starts.evaluate[: raw.eval.episodes_per_task or None]
    print(
        f"split {raw.env.split}: evaluation on start states {held[0]} to {held[-1]} of each task, "
        f"training on {train[0]} to {train[-1]}"
    )
    for name, file in (
        ("table", "table.json"),
        ("learning curve", "learning_curve.png"),
        ("videos", "evaluation/after/videos"),
        ("TensorBoard log", "tensorboard"),
        ("checkpoint", f"checkpoints/{raw.num_iterations}"),
        ("metrics", "metrics.jsonl"),
    ):
        if (path / file).exists():
            print(f"{name + ':':<17}{path / file}")


if __name__ == "__main__":
    main(sys.argv)
