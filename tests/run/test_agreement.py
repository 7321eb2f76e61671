"""Several hosts, a thread each: whatever moment one of them is asked to end or loses its policy,
all have made the same updates, and none waits in a computation that another does not join."""

import random
import threading
import time

import pytest

from pirl_jax.core import endings
from pirl_jax.envs.pool import queue
from pirl_jax.run import agreement, hosts, schedule
from tests.run import test_schedule

coarse = test_schedule.coarse  # a fixture: looks in virtual time
SPAN = range(3, 7)
HOSTS = 3
JOIN_S = 10.0  # real seconds, after which a computation is not joined any more


class Store:
    """See agreement.Store."""

    def __init__(self):
        self.lock = threading.Lock()
        self.words = {}
        self.names = {}

    def first(self, name, word):
        with self.lock:
            return self.words.setdefault(name, word)

    def said(self, name):
        with self.lock:
            return self.words.get(name)

    def tell(self, name, index):
        with self.lock:
            self.names.setdefault(name, set()).add(index)

    def told(self, name):
        with self.lock:
            return set(self.names.get(name, ()))


class Computations:
    """Of all hosts: each begins once everybody is there."""

    def __init__(self):
        self.lock = threading.Lock()
        self.meetings = {}

    def join(self, name):
        with self.lock:
            meeting = self.meetings.setdefault(name, threading.Barrier(HOSTS))
        meeting.wait(JOIN_S)


class Host(test_schedule.Work):
    """One of them; after so many looks at its simulators `ending` comes up, if any."""

    def __init__(self, index, seed, shared, ending=None, looks=0):
        store, self.computations, self.asked = shared
        gate = schedule.Gate(SPAN, 1)
        super().__init__(seed, gate, budget=test_schedule.MOST)
        self.agreed = agreement.Agreement(store, index, HOSTS, "test", 1e9, clock=self.clock)
        self.ending = ending
        self.looks = looks
        self.lag = self.draws.randrange(40)  # looks until it hears of a signal to another host
        self.over = SPAN.start - 1

    def can_decide(self, timeout_s):
        self.looks -= 1
        if self.asked.is_set():
            self.lag -= 1
        if isinstance(self.ending, queue.Interrupted) and self.looks <= 0:
            self.asked.set()
            raise self.ending
        if self.asked.is_set() and self.lag <= 0:
            raise queue.Interrupted
        return super().can_decide(timeout_s)

    def decide(self):
        if isinstance(self.ending, endings.Diverged) and self.looks <= 0:
            raise self.ending
        super().decide()

    def is_complete(self, batch):
        if self.over < batch and super().is_complete(batch):
            self.over = batch
        return self.agreed.begins(batch, self.over >= batch)

    def awaits_others(self, batch):
        return self.over >= batch

    def ends(self, batch, ending):
        return self.agreed.ends(batch, ending)

    def update(self, batch):
        assert not self.stream.left(batch)
        for number in range(batch % 3 + 1):
            self.computations.join((batch, number))
            yield test_schedule.Pending(self.clock, self.clock() + self.draws.random())
        self.log.append(("learn", batch))
        return {"batch": batch}

    def publish(self, version):
        self.computations.join(("publish", version))
        super().publish(version)

    def rest(self, seconds):
        self.clock.rest(seconds)
        time.sleep(1e-4)  # others have work

    def play(self, outcome):
        """outcome: receives the kind of its end, and how many updates it has made."""
        order = schedule.Schedule(
            self, self.gate, in_turns=False, timeout_s=1e9, clock=self.clock, rest=self.rest
        )
        kind = None
        try:
            for _ in SPAN:
                order.learned()
        except (queue.Interrupted, endings.Diverged) as ending:
            order.settled(ending)
            if order.version < SPAN.stop:  # else it ends as if nothing had been
                kind = type(ending)
        learned = [batch for what, batch in self.log if what == "learn"]
        outcome.append((kind, order.version, learned))


def together(seed, ending):
    """-> what became of each host.  One of them, at some moment, raises `ending`."""
    draws = random.Random(seed)
    shared = (Store(), Computations(), threading.Event())
    first = draws.randrange(HOSTS)
    outcomes = []
    threads = []
    for index in range(HOSTS):
        mine = ending if index == first else None
        host = Host(index, HOSTS * seed + index, shared, mine, draws.randrange(1000))
        thread = threading.Thread(target=host.play, args=(outcomes,), daemon=True)
        threads.append(thread)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(4 * JOIN_S)
    assert len(outcomes) == HOSTS, "one of them waits, or has failed"
    return outcomes


def test_all_begin_the_same_updates():
    for kind, version, learned in together(0, None):
        assert kind is None and version == SPAN.stop and learned == list(SPAN)


@pytest.mark.parametrize(
    "ending", [queue.Interrupted(), endings.Diverged("no number")], ids=["asked", "diverged"]
)
def test_all_end_after_the_same_update(ending):
    versions = set()
    for seed in range(40):
        outcomes = together(seed, ending)
        for outcome in outcomes:
            assert outcome == outcomes[0]
        kind, version, learned = outcomes[0]
        assert learned == list(range(SPAN.start, version))
        assert kind in (None, type(ending))
        versions.add(version)
    assert {SPAN.start, SPAN.start + 1, SPAN.stop} <= versions, "at all moments"


def alone(store, index, clock, timeout_s=60.0):
    return agreement.Agreement(store, index, 2, "test", timeout_s, clock=clock)


def test_the_first_word_stands():
    clock = test_schedule.Clock()
    store = Store()
    mine, other = (alone(store, index, clock) for index in range(2))
    assert not mine.begins(0, True)
    assert other.begins(0, True), "all parts are over"
    clock.rest(1.0)
    assert mine.ends(0, queue.Interrupted()) and mine.begins(0, True)
    assert not mine.ends(1, endings.Diverged("the actions are NaN"))
    for is_over in (False, True):
        clock.rest(1.0)
        with pytest.raises(endings.Diverged, match=r"^the actions are NaN$"):
            other.begins(1, is_over)
    assert not other.ends(1, queue.Interrupted()), "nothing was begun"


def test_a_host_that_never_comes_is_named():
    clock = test_schedule.Clock()
    mine = alone(Store(), 1, clock)
    assert not mine.begins(4, True)
    clock.rest(59.0)
    assert not mine.begins(4, True)
    clock.rest(2.0)
    with pytest.raises(endings.Failure, match=r"host 0 of 2 .* iteration 4, 60 s .*learner_timeo"):
        mine.begins(4, True)


def test_a_single_host_asks_nobody():
    mine = agreement.Agreement(None, 0, 1, "test", 1.0)
    assert mine.begins(0, True) and not mine.begins(1, False)
    assert not mine.ends(1, queue.Interrupted())


def test_the_store_of_hosts_keeps_the_first_word(monkeypatch):
    kept = {}

    class Client:
        def key_value_set(self, name, word, allow_overwrite=False):
            if name in kept and not allow_overwrite:
                raise hosts.jax.errors.JaxRuntimeError(f"ALREADY_EXISTS: {name}")
            kept[name] = word

        def key_value_try_get(self, name):
            if name not in kept:
                raise hosts.jax.errors.JaxRuntimeError(f"NOT_FOUND: {name}")
            return kept[name]

        def key_value_dir_get(self, name):
            return [(key, word) for key, word in kept.items() if key.startswith(f"{name}/")]

    monkeypatch.setattr(hosts, "_store", Client)
    store = hosts.Store()
    assert store.said("a") is None and store.first("a", "begin") == "begin"
    assert store.first("a", "end") == "begin" and store.said("a") == "begin"
    assert store.told("over") == set()
    for index in (0, 11, 11):
        store.tell("over", index)
    assert store.told("over") == {0, 11}
