"""What learns from the rollouts of a run, and what it is reminded of.

That is demonstrations beside them, and own successes of earlier iterations.

Refuses to know how episodes are played.
"""

from collections.abc import Callable, Iterator
import dataclasses
import time

import jax
import numpy as np

from pirl_jax.core import rng, types
from pirl_jax.learner import objective, proximal, replay, update
from pirl_jax.learner import state as states
from pirl_jax.run import steps, teach, training


@dataclasses.dataclass(frozen=True)
class Learner:
    """What learns, and what it is reminded of."""

    updater: update.Updater
    demonstrations: tuple[types.Observation, np.ndarray] | None  # encoded; of co-training
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
    return Learner(updater, _encoded(run), earlier, evaluate)


def _encoded(run: training.Run) -> tuple[types.Observation, np.ndarray] | None:
    """What co-training draws from.  A resumed run plays the same demonstrations again."""
    if not run.settings.raw.algorithm.sft_loss_weight:
        return None
    if run.demonstrations is None:
        run.store.wait()  # this takes minutes, in which a signal ends the run at once
        run.demonstrations = teach.collect(run.settings, run.playable)
    return teach.encode(run.settings, run.actor.transform, run.demonstrations)
