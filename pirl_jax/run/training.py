"""What lives as long as a training run, opened in the order in which mistakes are cheap.

Refuses to know the loop that uses it.
"""

import argparse
from collections.abc import Iterable, Sequence
import contextlib
import dataclasses
import functools
import pathlib
import sys

import jax
import ml_collections

from pirl_jax.core import locks, outside, paths, rng
from pirl_jax.core import mesh as meshes
from pirl_jax.envs.pool import queue
from pirl_jax.learner import offload, publish, replay
from pirl_jax.learner import state as states
from pirl_jax.monitor import log, mirror, progress, services, timeline
from pirl_jax.rollout import actor as actors
from pirl_jax.rollout import film as filming
from pirl_jax.rollout import starts
from pirl_jax.rollout import stream as streams
from pirl_jax.run import (
    checkpoints,
    config,
    devices,
    films,
    hosts,
    learnable,
    own_data,
    pages,
    plan,
    policies,
    recording,
    rollouts,
    schedule,
    shapes,
    simulators,
    steps,
)
from pirl_jax.weights import folders, store


@dataclasses.dataclass
class Run:
    """What lives as long as the run."""

    settings: config.Settings
    key: jax.Array
    mesh: jax.sharding.Mesh  # of what learns
    envs: queue.ReadyQueue
    playable: starts.Starts
    directory: log.RunDir
    page: pages.Page
    store: store.Store
    timers: timeline.Timers
    first_iteration: int  # 0: a fresh run
    # What is played next, whose simulators start while the devices work; None: nothing yet.
    stream: streams.Stream | None = None
    actor: actors.Actor | None = None
    # Episodes of the scripted expert, where SFT or co-training asked for them.
    demonstrations: list[dict] | None = None
    dataset: own_data.Dataset | None = None  # somebody's demonstrations, likewise
    rollbacks: int = 0  # how often the run has gone back (run/divergence.py)
    started_from: checkpoints.Record | None = None  # of a fresh run from a checkpoint

    @functools.cached_property
    def plays(self) -> jax.sharding.Mesh:
        """The devices of this host's rollouts and evaluations."""
        return devices.playing(self.settings, self.mesh)

    @functools.cached_property
    def publish(self) -> publish.Publisher:
        """Parameters from the devices that learn to those that play."""
        return publish.Publisher(steps.trainable(self.settings), self.mesh, self.plays)

    @functools.cached_property
    def offload(self) -> offload.Offload:
        """Where the state lies while episodes are played."""
        return steps.offload(self.settings)

    @property
    def instructions(self) -> tuple[str, ...]:
        return self.envs.spec.instructions

    def playing(self, state: states.TrainState) -> dict:
        """The parameters that play a rollout: the average, where the algorithm learns from it."""
        return states.acting_params(state) if self.settings.plays_average else state.params

    def keep_film(
        self, taken: filming.Film | None, iteration: int, played: Sequence[streams.Result]
    ) -> None:
        """Videos of what was filmed of a rollout, for everybody who shows them.  None: nothing."""
        if taken is None:
            return
        with self.timers.measure("video"):
            made = films.write(taken, self.settings.raw, iteration, played, self.envs.spec)
            self.directory.show_videos(iteration, made)

    def iteration_key(self, iteration: int) -> jax.Array:
        """Where an iteration draws from; after each rollback from somewhere else."""
        key = rng.named(self.key, "iteration", iteration)
        return rng.named(key, "rollback", self.rollbacks) if self.rollbacks else key

    def next_stream(self, iteration: int) -> streams.Stream:
        """The rollout of an iteration, whose simulators start now."""
        raw = self.settings.raw
        episodes = rollouts.episodes(raw, self.playable, iteration)
        return streams.Stream(
            self.envs, episodes, raw.rollout, raw.env.cached_tasks, batch=iteration
        )

    def take_stream(self) -> streams.Stream | None:
        """It is played once."""
        stream = self.stream
        self.stream = None
        return stream


def agreed(
    raw: ml_collections.ConfigDict, options: argparse.Namespace
) -> ml_collections.ConfigDict:
    """The page with what the checkpoint to start from says about itself.

    Raises:
      ValueError: its files contradict the page.
    """
    if options.resume == "auto" and raw.run.directory:
        path = paths.absolute(raw.run.directory)
        if log.holds_run(path):
            return checkpoints.agreed_again(raw, path, options.fields)
    if raw.model.checkpoint:
        path = paths.absolute(raw.model.checkpoint)
        return checkpoints.agreed(raw, path, given=options.fields)
    return raw


def prepare(
    settings: config.Settings,
    raw: ml_collections.ConfigDict,
    resume: str,
    stack: contextlib.ExitStack,
) -> Run:
    """Mesh, simulators, run directory, checkpoint store; the stack closes them.

    Raises:
      ValueError: what the user asks for is impossible here.
    """
    learnable.check(settings.raw)
    schedule.require(settings.raw)
    path = pathlib.Path(settings.raw.run.directory)
    timers = recording.stopwatches(settings.raw, path)
    _require_writable(settings, path)
    standing = _claim(path, resume, stack)
    resume_at = standing.resume_at
    _note([*settings.older_names, *schedule.remarks(settings.raw, resume_at or 0)])
    # A run that has begun goes on without them.
    if resume_at is None and not jax.process_index():
        mirror.check(settings.backends, _labels(settings))
    if resume_at:
        _check_resumable(settings, path, resume_at)
    started_from = None if resume_at else policies.check_start(settings)
    mesh = devices.mesh(settings)
    _note(devices.remarks(settings))
    if resume_at:
        _check_state(settings, mesh, path, resume_at)
    envs = stack.enter_context(simulators.open_envs(settings, raw.rollout.num_envs))
    playable = config.playable(settings.raw, envs.spec)
    dataset = own_data.of_run(settings, envs.spec, resume_at, stack)
    stats = policies.identity_stats(settings)
    to_model = policies.transform_for(settings, stats, envs.spec.instructions, playable.tasks)
    # Simulators start while functions are compiled and weights are loaded or taught.
    stream = _first_stream(settings, envs, playable, resume_at or 0)
    with progress.track("compiling"):
        settings, planned = plan.choose(settings, mesh, to_model.max_token_len, envs.spec)
    print(planned)
    # Last: a wrong start leaves no directory behind, and a standing run as it is.
    directory = _open_directory(path, raw, settings, resume_at, stack)
    checkpoints = _open_store(directory, raw.run.keep, standing, stack)
    return Run(
        settings=settings,
        key=jax.random.key(raw.seed),
        mesh=mesh,
        envs=envs,
        playable=playable,
        directory=directory,
        page=pages.Page(path, raw.run.report_every if directory.writes else 0),
        store=checkpoints,
        timers=recording.listening(timers, settings.raw, mesh.size, envs),
        first_iteration=resume_at or 0,
        stream=stream,
        dataset=dataset,
        started_from=started_from,
    )


def _require_writable(settings: config.Settings, path: pathlib.Path):
    """Where the run and its videos go."""
    paths.require_writable(path, "run.directory")
    if settings.raw.video.train:
        paths.require_writable(films.directory(settings.raw), "video.directory")


def _note(sentences: Iterable[str]) -> None:
    """The first host says it for all."""
    for sentence in () if jax.process_index() else sentences:
        print(f"note: {sentence}", file=sys.stderr)


@dataclasses.dataclass(frozen=True)
class _Standing:
    """What stands in the run directory."""

    resume_at: int | None  # None: no run; 0: one without a checkpoint after its start
    damaged: dict[int, str]  # newer checkpoints, and what is wrong with them

    def tell(self, path: pathlib.Path) -> None:
        """Of a loss; nothing where there is none."""
        for number, wrong in self.damaged.items():
            print(
                f"checkpoint {number} of {path} is damaged ({wrong}) and set aside as "
                f"{number}.damaged; going on from {self.resume_at}"
            )


def _open_store(
    directory: log.RunDir, keep: int, standing: _Standing, stack: contextlib.ExitStack
) -> store.Store:
    """Of checkpoints; damaged ones go out of its way."""
    if directory.writes:
        folders.set_aside(directory.path / "checkpoints", standing.damaged)
    standing.tell(directory.path)
    checkpoints = store.Store(directory.path / "checkpoints", keep=keep)
    stack.callback(checkpoints.close)
    hosts.check_storage(checkpoints.directory)
    return checkpoints


def _claim(path: pathlib.Path, resume: str, stack: contextlib.ExitStack) -> _Standing:
    """Be the only one who writes in the run directory; nothing that stands there changes.

    The first host speaks for all, also where it refuses.
    """
    found = None
    refused = ""
    if not jax.process_index():
        try:
            remedy = "wait for its end or stop it, or give another run.directory"
            stack.enter_context(locks.writing(path, remedy))
            found = _look(path, resume)
        except ValueError as error:
            refused = str(error)
    found, refused = meshes.gather((found, refused))[0]
    if refused:
        raise ValueError(refused)
    return found


def _check_resumable(settings: config.Settings, path: pathlib.Path, iteration: int) -> None:
    """What stands there is what the iterations from this one on need.

    Raises:
      ValueError: the run has more than it is asked for.
      endings.Failure: successes that it would learn from again are gone.
    """
    wanted = settings.raw.num_iterations
    if iteration > wanted:
        raise ValueError(
            f"num_iterations={wanted} but {path} already has {iteration}; give at least that many"
        )
    earlier = replay.of_run(path, settings.raw.algorithm)
    if earlier is not None and iteration < wanted:
        earlier.check(iteration)


def _check_state(
    settings: config.Settings, mesh: jax.sharding.Mesh, path: pathlib.Path, iteration: int
) -> None:
    """What was saved is what these settings make.

    Raises:
      ValueError: lists what is not.
    """
    _, state = shapes.state(settings, mesh)
    saved = store.Store(path / "checkpoints", create=False)
    try:
        saved.require_fit(state, iteration)
    except ValueError as error:
        raise _about_dtypes(settings, path) or error from error
    finally:
        saved.close()


def _about_dtypes(settings: config.Settings, path: pathlib.Path) -> ValueError | None:
    """Where types changed, which frozen weights are stored in; None: they did not."""
    page = path / "config.json"
    model = outside.read_json(page).get("model") if page.is_file() else None
    for field in ("dtype", "frozen_dtype"):
        now = getattr(settings.raw.model, field)
        was = model.get(field, now) if isinstance(model, dict) else now
        if was != now:
            return ValueError(
                f"model.{field}={now}, but {path} stores frozen weights as model.{field}={was} "
                f"does; resume with that, or start another run with model.checkpoint={path}"
            )
    return None


def _look(path: pathlib.Path, resume: str) -> _Standing:
    if not log.holds_run(path):
        return _Standing(None, {})
    if resume == "never":
        raise log.standing_run_error(path)
    found = folders.newest(path / "checkpoints")
    if found.newest == 0 and not log.began(path):
        raise ValueError(
            f"{path} holds a checkpoint without a run, as a conversion leaves it; start from it "
            f"with model.checkpoint={path} in another run.directory"
        )
    return _Standing(found.newest or 0, found.damaged)


def _labels(settings: config.Settings) -> services.Labels:
    """What the run is called elsewhere."""
    section = settings.raw.run
    return services.Labels(section.project_name, section.experiment_name, section.offline)


def _open_directory(
    path: pathlib.Path,
    raw: ml_collections.ConfigDict,
    settings: config.Settings,
    resume_at: int | None,
    stack: contextlib.ExitStack,
) -> log.RunDir:
    directory = log.RunDir(
        path,
        raw.to_dict(),
        resume_at,
        backends=settings.backends,
        labels=_labels(settings),
        writes=not jax.process_index(),
    )
    stack.callback(directory.close)
    for line in directory.changed:
        print(f"changed since the last start: {line}")
    for line in directory.lost:
        print(f"damaged since the last start: {line}")
    return directory


def _first_stream(
    settings: config.Settings, envs: queue.ReadyQueue, playable: starts.Starts, iteration: int
) -> streams.Stream | None:
    """What is played first from this iteration on."""
    raw = settings.raw
    if raw.eval.baseline and not iteration:
        whole = starts.evaluation(playable, raw.eval.episodes_per_task)
        episodes = hosts.share().of(whole)
    elif config.begins_with_rollout(raw, iteration):
        episodes = rollouts.episodes(raw, playable, iteration)
    else:
        return None
    return streams.Stream(
        envs, episodes, settings.raw.rollout, settings.raw.env.cached_tasks, batch=iteration
    )
