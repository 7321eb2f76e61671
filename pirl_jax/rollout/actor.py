"""A policy as the rollout sees it: encode a turn, decide, decode the actions; and how decisions get
their noise.  Refuses to know what decides and who keeps the decisions."""

from collections.abc import Callable
import dataclasses

import jax
import numpy as np

from pirl_jax.core import endings, rows, types
from pirl_jax.envs import base
from pirl_jax.policy import observation
from pirl_jax.rollout import starts
from pirl_jax.rollout import stream as streams

# Of a normalised action, in standard deviations of the data (or half ranges).  Untrained networks
# and bold exploration stay below 20; after a few steps at a thousand times the right rate it is
# thousands.
ABSURD = 1000.0


@dataclasses.dataclass
class Actor:
    """How to encode, decide and decode.  `explore` and `exploit` are jitted."""

    transform: observation.Transform
    instructions: tuple[str, ...]
    action_chunk: int
    # (params, key, id_B, Observation) -> (Chain, actions_BHA, context rows)
    explore: Callable
    exploit: Callable  # (params, key, id_B, Observation) -> actions_BHA
    put: Callable  # host arrays with leading axis B -> device arrays
    # Each is called once, with the raw states [n,S] of the first decision; copies of the actor
    # share the list.
    at_first: list[Callable] = dataclasses.field(default_factory=list)
    # Where context rows stay on the devices; None: they come to the host.
    buffer: rows.Buffer | None = None
    share: starts.Share = starts.ALONE  # which episodes of all these are

    def encode(self, turn: streams.Turn, batch_size: int) -> types.Observation:
        """Exactly batch_size rows; those without a slot repeat the first one."""
        # Always as many rows: every size would be a program of its own.
        source = np.zeros(batch_size, int)
        source[turn.row] = np.arange(len(turn.row))
        while self.at_first:
            self.at_first.pop()(turn.step.state)
        prompts = [self.instructions[task] for task in turn.task[source]]
        return observation.encode(
            self.transform, turn.step.images[source], turn.step.state[source], prompts
        )

    def decode(self, actions_BHA: np.ndarray, turn: streams.Turn) -> np.ndarray:
        """Normalised actions of the batch -> the executed chunk [n,I,a] in simulator units.

        Raises:
          endings.Diverged: actions that no working policy chooses, for any of the slots.
        """
        actions_nHA = np.asarray(actions_BHA)[turn.row]
        _check_actions(actions_nHA[:, : self.action_chunk, : self.transform.env_action_dim])
        decoded = observation.decode(self.transform, actions_nHA, turn.step.state)
        return decoded[:, : self.action_chunk]


def _check_actions(actions_nIa: np.ndarray) -> None:
    size_nIa = np.abs(actions_nIa)
    if (size_nIa < ABSURD).all():  # not-a-number is not below either
        return
    count = np.count_nonzero(~np.isfinite(actions_nIa))
    if count:
        raise endings.Diverged(
            f"the policy acts non-finite: {count} of the {actions_nIa.size} numbers of its actions "
            f"are not finite, so its parameters are of no use"
        )
    raise endings.Diverged(
        f"the policy acts absurdly: it chose a normalised action of {size_nIa.max():.4g}, beyond "
        f"{ABSURD:g}, so its parameters are of no use"
    )


def exploiting(
    actor: Actor,
    params: dict,
    key: jax.Array,
    spec: base.EnvSpec,
    batch_size: int,
    timers: streams.Timers,
) -> streams.Decide:
    """Decides without exploration noise, for evaluations.  timers: measures "inference"."""
    limit = max_decisions(spec, actor.action_chunk)

    def decide(turn: streams.Turn) -> np.ndarray:
        with timers.measure("inference"):
            id_B = batch_ids(turn, batch_size, limit, actor.share)
            obs = actor.encode(turn, batch_size)
            actions_BHA = actor.exploit(params, key, *actor.put((id_B, obs)))
            return actor.decode(jax.device_get(actions_BHA), turn)

    return decide


def max_decisions(spec: base.EnvSpec, action_chunk: int) -> int:
    """C: decisions until the time limit."""
    return -(-spec.max_episode_steps // action_chunk)


def decision_ids(
    turn: streams.Turn,
    num_decisions: int,
    share: starts.Share = starts.ALONE,
    group_size: int = 1,
) -> np.ndarray:
    """[n], one number per (episode, decision).

    A row draws its noise by name, wherever it stands in a batch and on whichever host.
    """
    first = share.number(turn.episode, group_size) * num_decisions
    # The observation after the last decision is only valued, and shares the number of that one.
    return first + np.minimum(turn.decision, num_decisions - 1)


def batch_ids(
    turn: streams.Turn,
    batch_size: int,
    num_decisions: int,
    share: starts.Share,
    group_size: int = 1,
) -> np.ndarray:
    """[B] int32, decision_ids at their rows; 0 in those without a slot."""
    id_B = np.zeros(batch_size, np.int32)
    id_B[turn.row] = decision_ids(turn, num_decisions, share, group_size)
    return id_B
