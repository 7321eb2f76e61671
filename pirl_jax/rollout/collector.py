"""Collects a rollout: plays episodes with the exploring policy and keeps what the update needs, nothing else."""

from collections.abc import Callable
import dataclasses
import functools

import jax
import numpy as np

from pirl_jax.core import rows, types
from pirl_jax.policy import observation
from pirl_jax.rollout import starts, stream


@dataclasses.dataclass
class Actor:
    """A policy as the rollout sees it: how to encode, decide and decode.  `explore` and `exploit` are jitted."""

    transform: observation.Transform
    instructions: tuple[str, ...]
    action_chunk: int
    explore: Callable  # (params, key, id_B, Observation) -> (Chain, actions_BHA, context rows)
    exploit: Callable  # (params, key, id_B, Observation) -> actions_BHA
    put: Callable  # host arrays with leading axis B -> device arrays
    # Each is called once, with the raw states [n,S] of the first decision; copies of the actor share the list.
    at_first: list[Callable] = dataclasses.field(default_factory=list)
    buffer: rows.Buffer | None = (
        None  # where context rows stay on the devices; None: they come to the host
    )
    share: starts.Share = starts.Share()  # which episodes of all these are

    def encode(self, turn: stream.Turn, batch_size: int):
        """Turn -> Observation with exactly batch_size rows; rows without a slot repeat the first one."""
        source = np.zeros(batch_size, int)
        source[turn.row] = np.arange(len(turn.row))
        step = turn.step
        while self.at_first:
            self.at_first.pop()(step.state)
        prompts = [self.instructions[task] for task in turn.task[source]]
        return observation.encode(self.transform, step.images[source], step.state[source], prompts)

    def decode(self, actions_BHA, turn: stream.Turn) -> np.ndarray:
        """Normalised actions of the batch -> the executed chunk [n,I,a] of each slot in simulator units."""
        actions_nHA = np.asarray(actions_BHA)[turn.row]
        return observation.decode(self.transform, actions_nHA, turn.step.state)[
            :, : self.action_chunk
        ]


def collect(
    actor: Actor,
    params,
    key,
    pool,
    names: list[stream.Episode],
    schedule: stream.Schedule,
    timers,
    *,
    group_size=1,
    bootstrap_truncated=False,
    more=None,
    finished=None,
    begun=None,
):
    """Play `names` with exploration -> (types.Rollout, list of episodes.Result).  Lost episodes have no valid decision.

    timers: measures "inference", and "transfer", the time spent waiting for context rows on their way to the host.
    bootstrap_truncated: the last observation of a truncated episode gets a value, for which the policy runs once more.
    group_size: consecutive episodes that belong together; it and the actor's share name the episodes among those of all hosts.
    more: results so far -> (fresh episodes to play too, indices of episodes whose rows nobody needs); asked until there are none.
    begun: see episodes.play.
    """
    book = _Book(len(names), max_decisions(pool.spec, actor.action_chunk), actor.buffer)
    batch_size = pool.num_envs // schedule.num_groups

    def decide(turn):
        going = ~turn.finished
        valued = going | (turn.step.truncated & bootstrap_truncated)
        book.outcome(turn)
        if not valued.any():
            return None
        with timers.measure("inference"):
            id_B = _batch_ids(turn, batch_size, book.num_decisions, actor.share, group_size)
            obs = actor.encode(turn, batch_size)
            chain, actions_BHA, context = actor.explore(params, key, *actor.put((id_B, obs)))
        with timers.measure(
            "transfer"
        ):  # of the decision before this one, while the devices compute
            book.settle()
        with timers.measure("inference"):
            chain, actions_BHA = jax.device_get((chain, actions_BHA))
            book.decision(turn, chain, obs if context is None else context, going, valued)
            return actor.decode(actions_BHA, turn)

    play = functools.partial(stream.play, pool, schedule=schedule, decide=decide, timers=timers)
    results = play(names, finished=finished, forget=book.forget, begun=begun)
    while more is not None:
        fresh, useless = more(results)
        book.discard(useless)
        if not fresh:
            break
        names = names + fresh
        book.grow(len(fresh))
        results = play(names, finished=finished, forget=book.forget, done=dict(enumerate(results)))
    with timers.measure("transfer"):
        book.settle()
    return book.rollout(results), results


def exploit(actor: Actor, params, key, spec, batch_size: int, timers) -> stream.Decide:
    """The decision function without exploration noise, for evaluations."""
    limit = max_decisions(spec, actor.action_chunk)

    def decide(turn):
        if turn.finished.all():
            return None
        with timers.measure("inference"):
            id_B = _batch_ids(turn, batch_size, limit, actor.share)
            actions_BHA = actor.exploit(
                params, key, *actor.put((id_B, actor.encode(turn, batch_size)))
            )
            return actor.decode(jax.device_get(actions_BHA), turn)

    return decide


def decision_ids(
    turn: stream.Turn, num_decisions: int, share=starts.Share(), group_size: int = 1
) -> np.ndarray:
    """[n], one number per (episode, decision): a row draws its noise by name, wherever it stands in a batch and on whichever host."""
    return share.number(turn.episode, group_size) * num_decisions + np.minimum(
        turn.decision, num_decisions - 1
    )


def _batch_ids(
    turn: stream.Turn, batch_size: int, num_decisions: int, share, group_size: int = 1
) -> np.ndarray:
    """[B] int32, decision_ids at their rows."""
    id_B = np.zeros(batch_size, np.int32)
    id_B[turn.row] = decision_ids(turn, num_decisions, share, group_size)
    return id_B


def max_decisions(spec, action_chunk: int) -> int:
    """C: decisions until the time limit."""
    return -(-spec.max_episode_steps // action_chunk)


class _Book:
    """Decisions of a rollout as they come in, by (decision, episode)."""

    def __init__(self, num_episodes: int, num_decisions: int, buffer: rows.Buffer | None):
        self.num_decisions, self.buffer = num_decisions, buffer
        shape = (
            num_decisions + 1,
            num_episodes,
        )  # one more row: the observation after the last decision
        self.reward = np.zeros(shape, np.float32)
        self.value = np.zeros(shape, np.float32)
        self.terminated = np.zeros(shape, bool)
        self.truncated = np.zeros(shape, bool)
        self.chain, self.context = (
            {},
            {},
        )  # (episode, decision) -> row; a context row of the buffer is its place there
        self.arriving = (
            None  # the last (names, positions in the batch, context) while it crosses to the host
        )

    def outcome(self, turn: stream.Turn):
        """What the previous decisions brought."""
        c, e = turn.decision, turn.episode
        self.reward[c, e] = turn.step.reward
        self.terminated[c, e] = turn.step.terminated
        self.truncated[c, e] = turn.step.truncated

    def decision(self, turn: stream.Turn, chain: types.Chain, context, going, valued):
        """The new decisions of the episodes that go on, and the values that somebody reads."""
        c, e = turn.decision, turn.episode
        self.value[c[valued], e[valued]] = chain.value[turn.row[valued]]
        names, row = list(zip(e[going].tolist(), c[going].tolist(), strict=True)), turn.row[going]
        self.chain |= zip(names, _split(chain, row), strict=True)
        if self.buffer is not None:
            self.context |= zip(names, self.buffer.write(context, row).at_R, strict=True)
            return
        for leaf in jax.tree.leaves(context):
            if isinstance(leaf, jax.Array):
                leaf.copy_to_host_async()
        self.arriving = names, row, context

    def settle(self):
        """Wait until the context of the last decisions has reached the host."""
        if self.arriving is not None:
            names, row, context = self.arriving
            self.context |= zip(names, _split(jax.device_get(context), row), strict=True)
            self.arriving = None

    def grow(self, num_episodes: int):
        """Room for more episodes."""
        for name in ("reward", "value", "terminated", "truncated"):
            setattr(self, name, np.pad(getattr(self, name), ((0, 0), (0, num_episodes))))

    def forget(self, e: int):
        """The episode is played again from its start, or never."""
        for array in (self.reward, self.value, self.terminated, self.truncated):
            array[:, e] = 0
        self.discard([e])

    def discard(self, useless):
        """Rows of these episodes go, which may be megabytes each; rewards and ends stay."""
        self.settle()
        useless = set(useless)
        if self.buffer is not None:
            self.buffer.free(at for (e, _), at in self.context.items() if e in useless)
        self.chain, self.context = (
            {k: v for k, v in x.items() if k[0] not in useless} for x in (self.chain, self.context)
        )

    def rollout(self, results: list[stream.Result]) -> types.Rollout:
        """Everything as arrays, but for the context (core/rows.py); rows ordered by (episode, decision)."""
        order = sorted(self.chain)
        if not order:
            raise RuntimeError(
                f"all {len(results)} episodes of the rollout were lost with their simulators; see the log"
            )
        chain = jax.tree.map(lambda *leaves: np.stack(leaves), *[self.chain[key] for key in order])
        context = [self.context[key] for key in order]
        if self.buffer is not None:
            context = rows.OnDevice(self.buffer, np.array(context, np.int32))
        lengths_E = np.array([result.num_decisions for result in results])
        steps_C1 = np.arange(self.num_decisions)[:, None]
        return types.Rollout(
            context=context,
            chain=chain,
            episode_R=np.array([e for e, _ in order], np.int32),
            decision_R=np.array([c for _, c in order], np.int32),
            reward_CE=self.reward[1:],
            value_CE=self.value[:-1],
            next_value_CE=self.value[1:],
            terminated_CE=self.terminated[1:],
            truncated_CE=self.truncated[1:],
            valid_CE=steps_C1 < lengths_E,
        )


def _split(batch, index_n):
    """Rows of a batch, as views."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], batch) for i in index_n]
