"""When which batch may start and who works next, in virtual time: random durations of chunks and of
microbatches, simulators that are lost, groups that are replaced.  Nobody sleeps."""

import dataclasses
import itertools
import random

import numpy as np
import pytest

from pirl_jax.core import endings, page
from pirl_jax.envs import base
from pirl_jax.envs.pool import queue
from pirl_jax.monitor import timeline
from pirl_jax.recipes import base as recipe
from pirl_jax.rollout import stream as streams
from pirl_jax.run import config, schedule

EPISODES = 12  # of a batch
MOST = 20  # with those that replace some
NUM_ENVS = 8


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Looks are cheap in virtual time, but not free."""
    monkeypatch.setattr(schedule, "POLL_S", 0.2)


class Clock:
    """Virtual seconds."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def rest(self, seconds):
        self.now += seconds


class Pool:
    """Simulators that answer after random times, or are lost; episodes of s + 1 chunks."""

    spec = base.EnvSpec("fake", ("push", "pick"), 6, max_episode_steps=18, image_size_px=2)

    def __init__(self, clock, draws, loss):
        self.num_envs = NUM_ENVS
        self.slot_workers = np.arange(NUM_ENVS)
        self.clock, self.draws, self.loss = clock, draws, loss
        self.playing, self.due = {}, {}

    def reset(self, slots, tasks, init_states):
        for slot, state in zip(slots, init_states, strict=True):
            self._post(int(slot), (state, 0))

    def send(self, slots, actions, record):
        for slot in map(int, slots):
            state, chunks = self.playing[slot]
            self._post(slot, (state, chunks + 1))

    def _post(self, slot, playing):
        assert slot not in self.due, "one request at a time"
        self.playing[slot] = playing
        self.due[slot] = self.clock() + self.draws.expovariate(1.0)

    def ready(self, wanted, timeout_s):
        times = sorted(self.due.values())
        until = self.clock() + timeout_s
        if len(times) >= wanted:
            until = min(until, times[wanted - 1])
        self.clock.now = max(self.clock.now, until)
        return sum(time <= self.clock() for time in times)

    def get(self, batch, slots=None):
        if slots is None:
            slots = sorted(self.due, key=self.due.get)[:batch]
        assert len(slots) == batch
        self.clock.now = max([self.clock.now, *(self.due.pop(int(slot)) for slot in slots)])
        states = [self.playing[int(slot)] for slot in slots]
        over = np.array([chunks > state for state, chunks in states])
        none = np.zeros(batch, bool)
        lost = np.array([self.draws.random() < self.loss for _ in slots])
        step = base.TimeStep(
            images=np.zeros((batch, 2, 2, 2, 3), np.uint8),
            state=np.zeros((batch, 8), np.float32),
            reward=np.zeros(batch, np.float32),
            terminated=over & ~lost,
            truncated=none,
            num_steps=np.ones(batch, np.int32),
            frames=None,
            thrown=none,
            lost=lost,
        )
        return np.array(slots), step


@dataclasses.dataclass
class Pending:
    """A microbatch on its way."""

    clock: Clock
    due_s: float

    def is_ready(self):
        return self.clock() >= self.due_s


class Work:
    """Plays a stream in virtual time, and writes down what happens."""

    num_slots = NUM_ENVS

    def __init__(self, seed, gate, *, loss=0.0, budget=EPISODES, lockstep=False, pace=1.0):
        self.clock, self.gate, self.budget, self.pace = Clock(), gate, budget, pace
        self.draws = random.Random(seed)
        self.names = random.Random(0)  # the same episodes whatever the durations
        self.pool = Pool(self.clock, self.draws, loss)
        self.lockstep = lockstep
        self.stream = None
        self.version = None
        self.decided = {}  # batch -> versions of its decisions
        self.log = []

    @property
    def under_way(self):
        return self.stream.under_way

    def episodes(self, count):
        draw = self.names.randrange
        return [streams.Episode(draw(2), draw(6)) for _ in range(count)]

    def admit(self, batch):
        assert self.version >= self.gate.version_of(batch)
        names = self.episodes(EPISODES)
        self.log.append(("admit", batch))
        if self.stream is None:
            how = page.Rollout(num_groups=2, lockstep=self.lockstep)
            self.stream = streams.Stream(self.pool, names, how, 1, batch=batch)
        else:
            self.stream.admit(batch, names)

    def can_decide(self, timeout_s):
        return self.stream.is_ready(timeout_s)

    def decide(self):
        before = self.stream._playing.copy()
        turn = self.stream.turn(timeline.Timers())
        self.log.append(("decide", turn.slot.tolist()))
        self.clock.rest(0.1)
        for batch, part in self.stream.by_batch(turn).items():
            self.decided.setdefault(batch, []).extend([self.version] * int((~part.finished).sum()))
        self.stream.send(turn, np.zeros((len(turn.row), 3, 7), np.float32))
        waiting = [b for b, each in self.stream._batches.items() if each.waiting]
        after = self.stream._playing
        started = [self.stream._batch_of[e] for e in after[after != before] if e >= 0]
        assert (after >= 0).all() or not waiting, "a free slot takes what waits"
        assert not waiting or max(started, default=-1) <= min(waiting), "the oldest batch first"

    def is_complete(self, batch):
        if self.stream.left(batch):
            return False
        played = self.stream.of(batch)
        more = min(self.draws.choice([0, 0, 4]), self.budget - len(played))
        if more:
            self.stream.extend(self.episodes(more), batch)
        return not more

    def awaits_others(self, batch):
        return False

    def ends(self, batch, ending):
        return False

    def update(self, batch):
        assert not self.stream.left(batch), "only whole batches are learned"
        for number in range(self.draws.randrange(1, 6)):
            self.log.append(("part", number))
            yield Pending(self.clock, self.clock() + self.draws.random() * 10 * self.pace)
        self.log.append(("learn", batch))
        return {"batch": batch}

    def publish(self, version):
        self.version = version
        self.log.append(("publish", version))


def played(seed, span, max_staleness, **how):
    """-> work, the order of its batches, rows of metrics."""
    gate = schedule.Gate(span, max_staleness)
    work = Work(seed, gate, **how)
    order = schedule.Schedule(
        work,
        gate,
        in_turns=work.lockstep,
        timeout_s=1e9,
        clock=work.clock,
        rest=work.clock.rest,
    )
    return work, [order.learned() for _ in span]


@pytest.mark.parametrize("max_staleness", [0, 1, 2, 4])
@pytest.mark.parametrize("loss, budget", [(0.0, EPISODES), (0.05, MOST)], ids=["calm", "rough"])
@pytest.mark.parametrize("pace", [0.1, 1.0], ids=["fast learner", "slow learner"])
def test_nothing_is_dropped_and_nothing_is_staler_than_asked_for(max_staleness, loss, budget, pace):
    span = range(3, 8)
    for seed in range(3):
        how = {"loss": loss, "budget": budget, "pace": pace}
        work, rows = played(seed, span, max_staleness, **how)
        assert [row["batch"] for row in rows] == list(span), "in order, each once"
        assert [what for what in work.log if what[0] == "learn"] == [("learn", b) for b in span]
        for batch in span:
            lags = batch - np.array(work.decided[batch])
            assert lags.max() <= max_staleness and lags.min() >= 0
            assert min(work.decided[batch]) >= span.start, "nothing crosses a barrier"
            results = work.stream.of(batch)
            assert EPISODES <= len(results) <= budget
            assert all(result.lost or result.success for result in results)
            assert loss or not any(result.lost for result in results)
        assert not work.pool.due and work.stream.num_left == 0, "nothing stays under way"
        for row in rows:
            assert 0 <= row["rollout/slot_use"] <= 1 and row["time/gate_wait"] >= 0


def test_staleness_fills_the_slots():
    """A slow learner: one iteration ahead, the slots never wait for the end of an update."""
    seconds, use = {}, {}
    for max_staleness in (0, 1):
        work, rows = played(0, range(8), max_staleness, pace=0.5)
        seconds[max_staleness] = work.clock()
        use[max_staleness] = np.mean([row["rollout/slot_use"] for row in rows[1:-1]])
    assert seconds[1] < 0.8 * seconds[0] and use[1] > use[0] + 0.1


def test_a_wait_of_another_thread_counts_in_the_row_in_which_it_was():
    clock = Clock()
    meter = schedule.Meter(clock)
    meter.tick(used=0.25, is_learning=True, is_gated=True)
    shares = []
    for _ in range(2):  # a wait of 8 s, in the middle of which a row ends
        clock.rest(4.0)
        meter.lasts()
        shares.append(meter.take())
    meter.tick(used=1.0, is_learning=True, is_gated=True)
    assert meter.take()["time/gate_wait"] == 0.0, "no second of it twice"
    assert [row["time/gate_wait"] for row in shares] == [3.0, 3.0]
    assert [row["rollout/slot_use"] for row in shares] == [0.25, 0.25]


def test_in_lockstep_the_order_does_not_depend_on_time():
    """Simulators and devices take other times; who follows whom is the same."""
    logs = []
    for seed in (1, 2):
        gate = schedule.Gate(range(5), 1)
        work = Work(seed, gate, lockstep=True)
        work.is_complete = lambda batch, stream=work: not stream.stream.left(batch)
        parts = itertools.cycle([3, 1, 2])
        work.update = lambda batch, w=work, parts=parts: update_of(w, batch, next(parts))
        order = schedule.Schedule(
            work, gate, in_turns=True, timeout_s=1e9, clock=work.clock, rest=work.clock.rest
        )
        for _ in gate.span:
            order.learned()
        logs.append(work.log)
    assert logs[0] == logs[1]


def update_of(work, batch, count):
    for number in range(count):
        work.log.append(("part", number))
        yield Pending(work.clock, work.clock() + work.draws.random())
    work.log.append(("learn", batch))
    return {"batch": batch}


def test_a_learner_that_never_answers_ends_the_run():
    gate = schedule.Gate(range(3), 1)
    work = Work(0, gate)
    work.update = lambda batch: iter([Pending(work.clock, float("inf"))])
    order = schedule.Schedule(
        work, gate, in_turns=False, timeout_s=60.0, clock=work.clock, rest=work.clock.rest
    )
    with pytest.raises(endings.Failure, match=r"60 s \(rollout.learner_timeout_s\).*the update"):
        order.learned()
    assert work.clock() < 1000


def test_a_version_that_was_not_published_does_not_count():
    gate = schedule.Gate(range(3), 1)
    work = Work(0, gate)
    order = schedule.Schedule(
        work, gate, in_turns=False, timeout_s=60.0, clock=work.clock, rest=work.clock.rest
    )

    def fails(version):
        raise RuntimeError("no room")

    work.publish = fails
    with pytest.raises(RuntimeError, match="no room"):
        order.learned()
    assert order.version == 0 and ("admit", 2) not in work.log


def test_an_update_under_way_is_finished_and_nothing_new_begins():
    gate = schedule.Gate(range(3), 1)
    work = Work(0, gate)
    order = schedule.Schedule(
        work, gate, in_turns=False, timeout_s=1e9, clock=work.clock, rest=work.clock.rest
    )
    asked = queue.Interrupted()
    assert order.settled(asked) is None and order.version == 0
    while not any(what == "part" for what, _ in work.log):
        order._step()
    decisions = sum(what == "decide" for what, _ in work.log)
    assert order.settled(asked) == {"batch": 0} and order.version == 1
    assert sum(what == "decide" for what, _ in work.log) == decisions
    assert ("admit", 2) not in work.log


@pytest.mark.parametrize(
    "max_staleness, first, spans",
    [
        (0, 0, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7)]),
        (1, 0, [(0, 3), (3, 4), (4, 6), (6, 7)]),
        (2, 2, [(2, 3), (3, 4), (4, 6), (6, 7)]),
        (1, 7, []),
    ],
)
def test_spans_end_where_something_is_saved_or_evaluated(max_staleness, first, spans):
    fields = recipe.get_config()
    fields.num_iterations = 7
    fields.run.save_every = 3
    fields.eval.every = 4
    fields.rollout.max_staleness = max_staleness
    found = schedule.spans(config.settings(fields).raw, first)
    assert [(span.start, span.stop) for span in found] == spans


def settings(**fields):
    found = recipe.get_config()
    found.rollout.max_staleness = 1
    for name, value in fields.items():
        section, field = name.split("__")
        found[section][field] = value
    return config.settings(found).raw


@pytest.mark.parametrize(
    "fields, first, said",
    [
        ({}, 0, []),
        ({"rollout__max_staleness": 0, "run__save_every": 1}, 3, []),
        ({"run__save_every": 2}, 0, ["with run.save_every=2 there is one so often"]),
        ({"eval__every": 1}, 0, ["with eval.every=1 there is one so often"]),
        ({"rollout__lockstep": True}, 0, ["rollout.weight_switch=batch"]),
        ({"rollout__lockstep": True, "rollout__weight_switch": "batch"}, 0, []),
        ({"run__save_every": 5}, 10, []),
        ({"run__save_every": 5}, 7, ["iteration 7 was saved while later ones were played"]),
    ],
)
def test_what_is_said_beforehand(fields, first, said):
    found = schedule.remarks(settings(**fields), first)
    assert len(found) == len(said)
    assert all(words in sentence for words, sentence in zip(said, found, strict=True))
