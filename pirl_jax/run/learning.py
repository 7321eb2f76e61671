"""What learns from the rollouts of a run, and what it is reminded of.

That is demonstrations beside them, and own successes of earlier iterations.

Refuses to know how episodes are played.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import time

import jax

from pirl_jax.core import mesh as meshes
from pirl_jax.core import rng, types
from pirl_jax.learner import exploration, in_parts, objective, proximal, replay, update
from pirl_jax.learner import state as states
from pirl_jax.rollout import stats
from pirl_jax.rollout import stream as streams
from pirl_jax.run import own_data, rollouts, shapes, steps, teach, training


@dataclasses.dataclass(frozen=True)
class Learner:
    """What learns, and what it is reminded of."""

    updater: update.Updater
    demonstrations: teach.Examples | None  # of co-training
    replay: replay.Replay | None  # own successes of earlier iterations
    evaluate: Callable  # what older rows are looked at again with (learner/proximal.py)

    def catching_up(
        self, state: states.TrainState, rollout: types.Rollout, version: int
    ) -> proximal.Passes:
        """Before objective.with_advantages, where older parameters may have played.

        version: the iteration whose update begins, with the parameters of `state`.
        """
        start_s = time.monotonic()
        cfg = self.updater.cfg
        mesh = self.updater.mesh
        passes = proximal.catching_up(self.evaluate, state.params, rollout, version, cfg, mesh)
        rollout, metrics = yield from passes
        if metrics:
            metrics["time/recompute"] = time.monotonic() - start_s
        return rollout, metrics

    def batches(self, batch_size: int, key: jax.Array) -> Iterator | None:
        """Of demonstrations, one for every update."""
        if self.demonstrations is None:
            return None
        return teach.batches(self.demonstrations, batch_size, rng.named(key, "demonstrations"))

    def with_earlier(
        self, data: objective.Minibatch, iteration: int, key: jax.Array
    ) -> objective.Minibatch:
        """Rows of an iteration, and of earlier ones what is learned from again."""
        if self.replay is None:
            return data
        return self.replay.extended(data, iteration, rng.generator(rng.named(key, "replay")))


def of_run(run: training.Run) -> Learner:
    """Asked for once the actor knows its transform: demonstrations are encoded by it."""
    earlier = replay.of_run(run.directory.path, run.settings.raw.algorithm)
    updater = steps.updater(run.settings, run.mesh)
    evaluate = steps.proximal(run.settings, run.mesh)
    return Learner(updater, _examples(run), earlier, evaluate)


def lesson(
    run: training.Run,
    learner: Learner,
    state: states.TrainState,
    rollout: types.Rollout,
    played: Sequence[streams.Result],
    iteration: int,
    in_flight: int = update.IN_FLIGHT,
) -> in_parts.Parts:
    """All that is learned from the episodes of an iteration -> state, metrics.

    Args:
      rollout: with the values and log-probabilities that the loss compares with.
      in_flight: see update.learn_in_parts.
    """
    raw = run.settings.raw
    key = run.iteration_key(iteration)
    data = objective.with_advantages(rollout, raw.algorithm)
    displaced = moved(run, run.playing(state), data, rng.named(key, "moved"))
    demonstrations = learner.batches(raw.sft.batch_size, key)
    rows = learner.with_earlier(data, iteration, key)
    shuffle = rng.named(key, "shuffle")
    state = run.offload.back(state)
    state, metrics = yield from update.learn_in_parts(
        learner.updater, state, rows, shuffle, demonstrations, in_flight
    )
    metrics |= displaced | rollouts.metrics(raw.algorithm, played)
    return state, metrics | stats.rollout_metrics(rollout, data, meshes.gather)


def moved(
    run: training.Run, params: dict, data: objective.Minibatch, key: jax.Array
) -> dict[str, float]:
    """How far exploration moves decisions; unknown where the rows are no longer their steps."""
    if not steps.measures_displacement(run.settings):
        return {}
    size = shapes.sample_rows(run.settings, run.mesh)
    displacement = steps.displacement(run.settings.policy, run.mesh)
    return exploration.metrics(displacement, params, data, size, key, run.mesh)


def _examples(run: training.Run) -> teach.Examples | None:
    """What co-training draws from.  A resumed run plays the same demonstrations again."""
    if not run.settings.raw.algorithm.sft_loss_weight:
        return None
    if run.dataset is not None:
        own_data.remember(run.directory, run.dataset)
        return own_data.examples(run.settings, run.dataset, run.actor.transform.stats)
    if run.demonstrations is None:
        run.store.wait()  # this takes minutes, in which a signal ends the run at once
        run.demonstrations = teach.collect(run.settings, run.playable)
    return teach.encode(run.settings, run.actor.transform, run.demonstrations)
