"""Training that has gone wrong for good: how a run notices, and what becomes of it.

It notices by actions that no working policy chooses (rollout/actor.py), by updates that leave
nothing of the policy, by parameters that are not finite when they are to be saved, and by
iterations in a row none of whose gradients was finite.

A checkpoint is healthy once an iteration that began with it, or a later one, has applied an update,
and all rollouts since had the actions of a working policy.  What is not finite is never saved.  The
newest healthy checkpoint is never removed; where the run ends or goes back, it is the newest of
all.

    rollbacks.json     each time the run went back: to which checkpoint, and why

Refuses to know what is learned.
"""

from collections.abc import Mapping
import contextlib

import jax
import jax.numpy as jnp

from pirl_jax.core import atomic, endings, outside
from pirl_jax.core import mesh as meshes
from pirl_jax.envs.pool import queue
from pirl_jax.learner import state as states
from pirl_jax.monitor import log
from pirl_jax.run import config, training
from pirl_jax.weights import folders

STEP = 0.3  # both learning rates are multiplied by it at each rollback
FILE = "rollbacks.json"
# Of a decision, between the policy that played a rollout and those that its updates made of it.  A
# bold update moves it by some nats; a step a thousand times too large by more than 1e6.
MOST_NATS = 1e6


class Guard:
    """Watches one run.

    Where the run went back before this start, its learning rates are smaller from here on, and its
    draws are others.

    Raises:
      ValueError: a rollbacks.json that cannot be read.
    """

    def __init__(self, run: training.Run) -> None:
        self._run = run
        self._settings = run.settings  # with the full step
        self._path = run.directory.path / FILE
        self._proven = -1  # the last iteration that applied an update
        self._skipped = 0  # iterations in a row without a finite gradient
        # The first host speaks for all: it has cut the rows where the run goes on.
        mine = self._standing() if run.directory.writes else None
        self._rollbacks, rows = meshes.gather(mine)[0]
        for row in rows:
            self._note(row["iteration"], row)
        # Nothing better is known than what the run starts from, whose save may be under way.
        run.store.protect(run.first_iteration)
        self._protect()
        self._shrink()
        if self._rollbacks:
            print(
                f"this run has gone back {len(self._rollbacks)} times ({FILE}); "
                f"its step is {self._step()}"
            )

    def watch(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """An iteration is over, and nothing of it is saved yet.

        Raises:
          endings.Diverged: the policy is gone, or nothing has been learned for too long.
        """
        self._note(iteration, metrics)
        # A loss without ratios does not know how far it went; its actions tell (actor.decode).
        nats = metrics.get("actor/approx_kl", 0.0)
        if nats > MOST_NATS:
            raise endings.Diverged(
                f"the updates of iteration {iteration} left nothing of the policy: they moved it "
                f"by {nats:.4g} nats a decision"
            )
        if self._skipped >= self._settings.raw.run.max_skipped_iterations:
            raise endings.Diverged(
                f"no gradient of the last {self._skipped} iterations was finite "
                f"(run.max_skipped_iterations)"
            )
        self._protect()

    def roll_back(self, cause: str) -> None:
        """The run goes on from its last healthy checkpoint, with a smaller step and other draws.

        Its fields say so; what its simulators are doing is waited for and dropped.  A kill in
        between loses nothing: the next start finds the healthy checkpoint, and the same cause.

        Raises:
          endings.Failure: it does not; one sentence.
        """
        run = self._run
        run.store.latest()  # waits for a save; one that failed is of no use any more
        healthy = meshes.gather(self._healthy())[0]
        if healthy is not None:
            run.store.remove_after(healthy)
        self._refuse_to_go_on(cause, healthy)
        self._drop_streams()
        run.directory.go_back(healthy, lambda row: row["iteration"] < healthy or _comes_first(row))
        entry = {"iteration": healthy, "cause": cause, "step": STEP ** (len(self._rollbacks) + 1)}
        self._rollbacks.append(entry)
        if run.directory.writes:
            atomic.write_json(self._path, self._rollbacks)
        run.first_iteration = healthy
        self._skipped = 0
        self._proven = healthy - 1
        self._shrink()
        most = run.settings.raw.run.max_rollbacks
        print(
            f"ROLLBACK {len(self._rollbacks)} of at most {most}: {cause}; back to the checkpoint "
            f"of iteration {healthy}, with other draws and a step of {self._step()}",
            flush=True,
        )

    def _refuse_to_go_on(self, cause: str, healthy: int | None) -> None:
        section = self._settings.raw.run
        smaller = f"a smaller step (it is {self._step()})"
        if healthy is None:
            raise endings.Failure(
                f"{cause}; no checkpoint of {self._run.directory.path} has proven healthy: "
                f"start again with {smaller}"
            )
        stands = (
            f"the last healthy checkpoint is that of iteration {healthy}: "
            f"--resume auto goes on from there, with {smaller}"
        )
        if section.on_divergence == "stop":
            raise endings.Failure(f"{cause}; {stands} or with run.on_divergence=rollback")
        if len(self._rollbacks) >= section.max_rollbacks:
            raise endings.Failure(
                f"{cause}, after {len(self._rollbacks)} rollbacks (run.max_rollbacks); {stands}"
            )

    def _standing(self) -> tuple[list[dict], list[dict]]:
        """What earlier starts left: rollbacks, and the rows of iterations."""
        run = self._run
        rollbacks = []
        if self._path.exists():
            remedy = "remove it, and the run goes on with its full step"
            rollbacks = outside.read_json(self._path, list, remedy)
        rows = log.read(run.directory.path)
        return rollbacks, [row for row in rows if _learned(row)]

    def _note(self, iteration: int, metrics: Mapping[str, float]) -> None:
        if metrics["actor/updates"] > metrics["actor/skipped_updates"]:
            self._proven = iteration
            self._skipped = 0
        elif metrics.get("actor/nonfinite_updates"):  # else it had no signal, which is no fault
            self._skipped += 1

    def _healthy(self) -> int | None:
        """The newest healthy checkpoint."""
        saved = folders.standing(self._run.store.directory)
        return max((each for each in saved if each <= self._proven), default=None)

    def _protect(self) -> None:
        """An older healthy one goes on being protected while the newest is being written."""
        healthy = self._healthy()
        if healthy is not None:
            self._run.store.protect(healthy)

    def _shrink(self) -> None:
        run = self._run
        run.rollbacks = len(self._rollbacks)
        if run.rollbacks:
            run.settings = config.changed(self._settings, self._rates())

    def _rates(self) -> dict[str, float]:
        optim = self._settings.raw.optim
        factor = STEP ** len(self._rollbacks)
        return {"optim.lr": optim.lr * factor, "optim.value_lr": optim.value_lr * factor}

    def _step(self) -> str:
        rates = ", ".join(f"{name}={rate:.4g}" for name, rate in self._rates().items())
        if not self._rollbacks:
            return rates
        return f"{STEP ** len(self._rollbacks):.4g} times the configured one: {rates}"

    def _drop_streams(self) -> None:
        """Simulators answer what they were asked, and nobody listens."""
        envs = self._run.envs
        self._run.stream = None
        with contextlib.suppress(queue.Interrupted):  # the next iteration ends the run
            if envs.num_pending:
                envs.get(envs.num_pending)


def checked(state: states.TrainState, iteration: int) -> states.TrainState:
    """A state that may be saved after so many iterations.

    Raises:
      endings.Diverged: it is not finite.
    """
    leaves = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    if not jax.device_get(_all_finite(leaves)):
        raise endings.Diverged(
            f"the parameters, or their moments, are not finite after {iteration} iterations"
        )
    return state


@jax.jit
def _all_finite(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.isfinite(x).all() for x in leaves]).all()


def _learned(row: Mapping[str, float]) -> bool:
    """Whether a row is that of an iteration."""
    return "actor/updates" in row


def _comes_first(row: Mapping[str, float]) -> bool:
    """Whether a row is of what the run starts from: SFT, the evaluation before."""
    return not row["iteration"] and not _learned(row)
