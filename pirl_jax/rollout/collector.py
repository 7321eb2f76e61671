"""Collects a rollout: plays a stream of episodes with the exploring policy and keeps in a book what
the update needs, nothing else."""

from collections.abc import Callable, Iterable

import jax
import numpy as np

from pirl_jax.core import endings, rows, types
from pirl_jax.rollout import actor as actors
from pirl_jax.rollout import film as films
from pirl_jax.rollout import stream as streams

Decision = tuple[int, int]  # (episode, decision)


class Book:
    """Decisions of a rollout as they come in, by (decision, episode)."""

    def __init__(self, num_decisions: int, buffer: rows.Buffer | None = None):
        """num_decisions: until the time limit.  buffer: where context rows stay on the devices."""
        self.num_decisions = num_decisions
        self._buffer = buffer
        # One more row: the observation after the last decision.
        shape = (num_decisions + 1, 0)
        self._grids = {
            "reward": np.zeros(shape, np.float32),
            "value": np.zeros(shape, np.float32),
            "terminated": np.zeros(shape, bool),
            "truncated": np.zeros(shape, bool),
        }
        self._chain: dict[Decision, types.Chain] = {}
        self._version: dict[Decision, int] = {}
        # A context row of the buffer is its place there.
        self._context: dict[Decision, object] = {}
        # The last (decisions, positions in the batch, context), while it crosses to the host.
        self._arriving: tuple | None = None

    def make_room(self, num_episodes: int) -> None:
        """For so many episodes in all."""
        for name, grid in self._grids.items():
            missing = num_episodes - grid.shape[1]
            self._grids[name] = np.pad(grid, ((0, 0), (0, missing)))

    def outcome(self, turn: streams.Turn) -> None:
        """What the previous decisions brought."""
        at = turn.decision, turn.episode
        self._grids["reward"][at] = turn.step.reward
        self._grids["terminated"][at] = turn.step.terminated
        self._grids["truncated"][at] = turn.step.truncated

    def decision(
        self,
        turn: streams.Turn,
        chain: types.Chain,
        context: object,
        going: np.ndarray,
        valued: np.ndarray,
        version: int,
    ) -> None:
        """The new decisions of the episodes that go on, and the values that somebody reads.

        Args:
          chain: host arrays of the whole batch.
          context: what the policy conditioned on, of the whole batch; arrays on the devices come to
            the host meanwhile (`settle`), or stay in the buffer.
          going, valued: [n] bool, slots of the turn.
          version: the iteration whose parameters decided.
        """
        at_valued = turn.decision[valued], turn.episode[valued]
        self._grids["value"][at_valued] = chain.value[turn.row[valued]]
        row = turn.row[going]
        episodes = turn.episode[going].tolist()
        decisions = list(zip(episodes, turn.decision[going].tolist(), strict=True))
        self._chain |= zip(decisions, rows.split(chain, row), strict=True)
        self._version |= dict.fromkeys(decisions, version)
        if self._buffer is not None:
            places = self._buffer.write(context, row).at_R
            self._context |= zip(decisions, places, strict=True)
            return
        # At full size a row is 10 MB: it crosses while the simulators run and the next batch is
        # computed.
        for leaf in jax.tree.leaves(context):
            if isinstance(leaf, jax.Array):
                leaf.copy_to_host_async()
        self._arriving = decisions, row, context

    def settle(self) -> None:
        """Wait until the context of the last decisions has reached the host."""
        if self._arriving is not None:
            decisions, row, context = self._arriving
            self._context |= zip(decisions, rows.split(jax.device_get(context), row), strict=True)
            self._arriving = None

    def forget(self, episodes: Iterable[int]) -> None:
        """They are played again from their start, or never."""
        episodes = list(episodes)
        if not episodes:
            return
        for grid in self._grids.values():
            grid[:, episodes] = 0
        self.discard(episodes)

    def discard(self, episodes: Iterable[int]) -> None:
        """Rows of these episodes go, which may be megabytes each; rewards and ends stay."""
        self.settle()
        useless = set(episodes)
        if self._buffer is not None:
            places = (at for (e, _), at in self._context.items() if e in useless)
            self._buffer.free(places)
        self._chain = _without(self._chain, useless)
        self._version = _without(self._version, useless)
        self._context = _without(self._context, useless)

    def rollout(self, results: list[streams.Result]) -> types.Rollout:
        """Everything as arrays, but for the context (core/rows.py).

        Rows are ordered by (episode, decision); a lost episode has no valid decision.

        Raises:
          endings.Failure: every episode was lost.
        """
        order = sorted(self._chain)
        if not order:
            raise endings.Failure(
                f"all {len(results)} episodes of the rollout were lost with their simulators; "
                f"the warnings above say why"
            )
        chains = [self._chain[decision] for decision in order]
        context = [self._context[decision] for decision in order]
        if self._buffer is not None:
            context = rows.OnDevice(self._buffer, np.array(context, np.int32))
        length_E = np.array([result.num_decisions for result in results])
        decision_C1 = np.arange(self.num_decisions)[:, None]
        return types.Rollout(
            context=context,
            chain=jax.tree.map(lambda *leaves: np.stack(leaves), *chains),
            episode_R=np.array([e for e, _ in order], np.int32),
            decision_R=np.array([c for _, c in order], np.int32),
            reward_CE=self._grids["reward"][1:],
            value_CE=self._grids["value"][:-1],
            next_value_CE=self._grids["value"][1:],
            terminated_CE=self._grids["terminated"][1:],
            truncated_CE=self._grids["truncated"][1:],
            valid_CE=decision_C1 < length_E,
            version_R=np.array([self._version[decision] for decision in order], np.int32),
        )


def collect(
    actor: actors.Actor,
    params: dict,
    key: jax.Array,
    stream: streams.Stream,
    timers: streams.Timers,
    *,
    version: int = 0,
    book: Book | None = None,
    group_size: int = 1,
    bootstrap_truncated: bool = False,
    advance: Callable[[int, str], None] | None = None,
    film: films.Film | None = None,
) -> Book:
    """Play a stream to its end with exploration, and keep its decisions.

    Args:
      timers: measures "inference", and "transfer", the wait for context rows.
      version: the iteration whose parameters these are.
      book: of the episodes that the stream played before it was extended; None starts one.
      group_size: consecutive episodes that belong together; it and the actor's share name the
        episodes among those of all hosts.
      bootstrap_truncated: the last observation of a truncated episode gets a value, for which the
        policy runs once more.
      advance: shows progress: (count, note).
      film: keeps the images of some episodes.
    """
    if book is None:
        limit = actors.max_decisions(stream.envs.spec, actor.action_chunk)
        book = Book(limit, actor.buffer)
    book.make_room(len(stream.episodes))
    for turn in stream.turns(timers):
        chain = None
        book.forget(turn.lost)
        book.outcome(turn)
        going = ~turn.finished
        valued = going | (turn.step.truncated & bootstrap_truncated)
        if valued.any():
            with timers.measure("inference"):
                id_B = actors.batch_ids(
                    turn, stream.batch_size, book.num_decisions, actor.share, group_size
                )
                obs = actor.encode(turn, stream.batch_size)
                chain, actions_BHA, context = actor.explore(params, key, *actor.put((id_B, obs)))
            # Of the decision before this one, while the devices compute.
            with timers.measure("transfer"):
                book.settle()
            with timers.measure("inference"):
                chain, actions_BHA = jax.device_get((chain, actions_BHA))
                kept = obs if context is None else context
                book.decision(turn, chain, kept, going, valued, version)
                actions_nIa = actor.decode(actions_BHA, turn)
        if film is not None:
            film.see(turn, stream.results, _values(turn, chain, valued))
        if chain is not None:
            stream.send(turn, actions_nIa)
        if advance and turn.ended:
            advance(0, _note(stream))
    with timers.measure("transfer"):
        book.settle()
    return book


def _note(stream: streams.Stream) -> str:
    total = len(stream.episodes)
    return f"rollout {total - stream.num_left}/{total} episodes"


def _values(turn: streams.Turn, chain: types.Chain | None, valued: np.ndarray) -> np.ndarray:
    """[n] the critic's estimates; nan where nobody asked for one."""
    if chain is None:
        return np.full(len(turn.row), np.nan)
    return np.where(valued, chain.value[turn.row], np.nan)


def _without(decisions: dict[Decision, object], episodes: set[int]) -> dict[Decision, object]:
    """Less those of some episodes."""
    return {name: row for name, row in decisions.items() if name[0] not in episodes}
