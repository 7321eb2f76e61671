"""Collects rollouts: plays a stream of episodes with the exploring policy and keeps what the update
needs in a book of each batch, nothing else."""

from collections.abc import Callable, Iterable
import dataclasses

import jax
import jax.numpy as jnp
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


@dataclasses.dataclass(frozen=True)
class Acting:
    """Parameters that play, and the iteration whose they are."""

    params: dict
    version: int


@dataclasses.dataclass(frozen=True)
class Draws:
    """Where the decisions of a batch draw their noise from."""

    key: jax.Array
    # Where batches mix, of those with an annealed noise level; else the actor knows it.
    level: np.float32 | None = None


@dataclasses.dataclass(frozen=True)
class _Open:
    """A batch that is played."""

    book: Book
    draws: Draws
    film: films.Film | None


@dataclasses.dataclass(frozen=True)
class _Call:
    """What parameters of one version made of all rows of a turn."""

    version: int
    batches: set[int]  # which of the rows count
    chain: types.Chain
    actions_BHA: jax.Array
    context: object


class Collector:
    """Decides for the batches of a stream and keeps a book of each."""

    def __init__(
        self,
        actor: actors.Actor,
        stream: streams.Stream,
        timers: streams.Timers,
        *,
        most_open: int = 1,
        group_size: int = 1,
        bootstrap_truncated: bool = False,
    ):
        """
        Args:
          timers: measures "inference", and "transfer", the wait for context rows.
          most_open: batches that are played at a time; with more than one, each row draws from the
            key of its own batch.
          group_size: consecutive episodes that belong together; it and the actor's share name the
            episodes among those of all hosts.
          bootstrap_truncated: the last observation of a truncated episode gets a value, for which
            the policy runs once more.
        """
        self._actor = actor
        self._stream = stream
        self._timers = timers
        self._most_open = most_open
        self._group_size = group_size
        self._bootstrap_truncated = bootstrap_truncated
        self._open: dict[int, _Open] = {}
        self._keys: jax.Array | None = None  # of all open batches, by number modulo most_open

    def open(self, batch: int, book: Book, draws: Draws, film: films.Film | None = None) -> None:
        """A batch that the stream has admitted.  film: keeps the images of some episodes."""
        self._open[batch] = _Open(book, draws, film)
        keys = [draws.key] * self._most_open
        for number, each in self._open.items():
            keys[number % self._most_open] = each.draws.key
        self._keys = keys[0] if self._most_open == 1 else _stacked(*keys)

    def close(self, batch: int) -> Book:
        """It is over; its rows are all in the book."""
        book = self._open.pop(batch).book
        with self._timers.measure("transfer"):
            book.settle()
        return book

    def book(self, batch: int) -> Book:
        """Of an open batch."""
        return self._open[batch].book

    def film(self, batch: int) -> films.Film | None:
        """Of an open batch."""
        return self._open[batch].film

    def decide(self, turn: streams.Turn, acting: Callable[[int], Acting]) -> None:
        """Book what a turn of the stream brings, and answer it.  acting: who plays a batch."""
        parts = self._stream.by_batch(turn)
        for batch, part in parts.items():
            self._open[batch].book.forget(part.lost)
            self._open[batch].book.outcome(part)
        used = {batch: part for batch, part in parts.items() if self._valued(part).any()}
        calls, obs = self._explored(turn, used, acting) if used else ([], None)
        with self._timers.measure("inference"):
            actions_nIa = self._kept(turn, used, calls, obs) if used else None
        for batch, part in parts.items():
            film = self._open[batch].film
            if film is not None:
                chain = next((call.chain for call in calls if batch in call.batches), None)
                values_n = _values(part, chain, self._valued(part))
                film.see(part, self._stream.of(batch), values_n)
        if actions_nIa is not None:
            self._stream.send(turn, actions_nIa)

    def _valued(self, turn: streams.Turn) -> np.ndarray:
        """[n] bool: slots whose observation somebody wants a value of, and most of them a move."""
        return ~turn.finished | (turn.step.truncated & self._bootstrap_truncated)

    def _explored(
        self, turn: streams.Turn, parts: dict[int, streams.Turn], acting: Callable[[int], Acting]
    ) -> tuple[list[_Call], types.Observation]:
        """The decisions of a turn, on the host; one call for each version that plays."""
        with self._timers.measure("inference"):
            batch_size = self._stream.batch_size
            id_B, more = self._draws(parts, batch_size)
            obs = self._actor.encode(turn, batch_size)
            id_B, on_devices, more = self._actor.put((id_B, obs, more))
            playing = {batch: acting(batch) for batch in parts}
            calls = []
            for version in sorted({each.version for each in playing.values()}):
                batches = {batch for batch, each in playing.items() if each.version == version}
                params = playing[min(batches)].params
                made = self._actor.explore(params, self._keys, id_B, on_devices, *more)
                calls.append(_Call(version, batches, *made))
        # Of the decision before this one, while the devices compute.
        with self._timers.measure("transfer"):
            for each in self._open.values():
                each.book.settle()
        with self._timers.measure("inference"):
            for i, call in enumerate(calls):
                chain, actions_BHA = jax.device_get((call.chain, call.actions_BHA))
                calls[i] = dataclasses.replace(call, chain=chain, actions_BHA=actions_BHA)
        return calls, obs

    def _draws(self, parts: dict[int, streams.Turn], batch_size: int) -> tuple[np.ndarray, tuple]:
        """[B] names of the decisions; where batches may mix, also their levels, keys' places."""
        id_B = np.zeros(batch_size, np.int32)
        index_B = np.zeros(batch_size, np.int32)
        level_B = np.zeros(batch_size, np.float32)
        for batch, part in parts.items():
            each = self._open[batch]
            id_B[part.row] = actors.decision_ids(
                part, each.book.num_decisions, self._actor.share, self._group_size
            )
            index_B[part.row] = batch % self._most_open
            if each.draws.level is not None:
                level_B[part.row] = each.draws.level
        if self._most_open == 1:
            return id_B, ()
        has_levels = all(each.draws.level is not None for each in self._open.values())
        return id_B, (level_B if has_levels else None, index_B)

    def _kept(
        self,
        turn: streams.Turn,
        parts: dict[int, streams.Turn],
        calls: list[_Call],
        obs: types.Observation,
    ) -> np.ndarray:
        """Into the books -> actions [n,I,a] of the turn."""
        actions_BHA = np.array(calls[0].actions_BHA)
        for call in calls:
            kept = obs if call.context is None else call.context
            for batch in sorted(call.batches):
                part = parts[batch]
                actions_BHA[part.row] = call.actions_BHA[part.row]
                self._open[batch].book.decision(
                    part, call.chain, kept, ~part.finished, self._valued(part), call.version
                )
        return self._actor.decode(actions_BHA, turn)


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
    """Play a stream of one batch to its end with exploration, and keep its decisions.

    Args:
      version: the iteration whose parameters these are.
      book: of the episodes that the stream played before it was extended; None starts one.
      advance: shows progress: (count, note).

    The others as those of Collector.
    """
    if book is None:
        book = new_book(actor, stream)
    book.make_room(len(stream.episodes))
    collector = Collector(
        actor,
        stream,
        timers,
        group_size=group_size,
        bootstrap_truncated=bootstrap_truncated,
    )
    collector.open(stream.first, book, Draws(key), film)
    for turn in stream.turns(timers):
        collector.decide(turn, lambda _: Acting(params, version))
        if advance and turn.ended:
            advance(0, _note(stream))
    return collector.close(stream.first)


def new_book(actor: actors.Actor, stream: streams.Stream) -> Book:
    """An empty one for a batch of the stream."""
    limit = actors.max_decisions(stream.envs.spec, actor.action_chunk)
    return Book(limit, actor.buffer)


@jax.jit
def _stacked(*keys: jax.Array) -> jax.Array:
    return jnp.stack(keys)


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
