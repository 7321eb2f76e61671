"""Two threads that play and learn: what they hand over, how they end, what devices bear."""

import functools
import re
import threading
import time
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pirl_jax.core import endings
from pirl_jax.core import mesh as meshes
from pirl_jax.run import exchange as exchanges

BATCHES = 6
COLLECTIVE = re.compile(r"(all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)")


def nothing():
    """No simulator sleeps here."""


def made(timeout_s=60.0, clock=time.monotonic):
    return exchanges.Exchange(0, timeout_s, clock)


def played(exchange, ahead, log):
    """Batches of one episode, each of which notes the version it was played with."""
    for batch in range(BATCHES):
        version = exchange.await_version(max(batch - ahead, 0))
        exchange.playing()
        log.append((batch, version))
        exchange.hand_over((batch, version))


def learned(exchange, log=None):
    taken = []
    for version in range(BATCHES):
        taken.append(exchange.take())
        exchange.learning()
        exchange.publish(version + 1)
    return taken


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_batches_come_in_order_and_are_never_staler_than_they_may_be(ahead):
    exchange = made()
    log = []
    taken = exchanges.both(
        exchange, lambda: played(exchange, ahead, log), lambda: learned(exchange), nothing
    )
    assert taken == log and [batch for batch, _ in taken] == list(range(BATCHES))
    lags = [batch - version for batch, version in taken]
    assert min(lags) >= 0 and max(lags) <= ahead
    assert exchange.version == BATCHES


def test_one_batch_waits_and_no_more():
    """However far ahead one may play: what is played meanwhile is the third, in hand."""
    exchange = made()
    log = []
    seen = []

    def learn():
        while len(log) < 2:
            time.sleep(0.001)
        with exchange._changed:  # nothing moves while it is looked at
            seen.append(len(exchange._batch))
        return learned(exchange)

    exchanges.both(exchange, lambda: played(exchange, BATCHES, log), learn, nothing)
    assert seen == [1]


# ---- ends ---------------------------------------------------------------------------------------


class BrokenError(Exception):
    """What goes wrong in these tests."""


def breaks():
    raise BrokenError("the first one")


def frames(error):
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


def no_thread_is_left():
    return not [thread for thread in threading.enumerate() if thread.name == "rollout"]


def playing_breaks(exchange):
    def play():
        exchange.await_version(0)
        breaks()

    return play, lambda: learned(exchange)


def learning_breaks(exchange):
    def learn():
        exchange.take()
        breaks()

    return lambda: played(exchange, 1, []), learn


def publishing_breaks(exchange):
    """What was copied half is nobody's parameters."""

    def learn():
        exchange.take()
        exchange.publish(breaks())

    return lambda: played(exchange, 0, []), learn


def learning_breaks_and_then_playing(exchange):
    def play():
        try:
            played(exchange, 1, [])
        finally:
            raise RuntimeError("because of the first one")

    return play, learning_breaks(exchange)[1]


ENDS = [playing_breaks, learning_breaks, publishing_breaks, learning_breaks_and_then_playing]


@pytest.mark.parametrize("end", ENDS)
def test_the_first_error_ends_both_sides_with_its_traceback(end):
    exchange = made()
    play, learn = end(exchange)
    start_s = time.monotonic()
    with pytest.raises(BrokenError, match="the first one") as raised:
        exchanges.both(exchange, play, learn, nothing)
    assert "breaks" in frames(raised.value)
    assert time.monotonic() - start_s < 10 and no_thread_is_left()
    assert exchange.version == 0


def test_an_interrupt_is_an_error_like_others():
    exchange = made()

    def learn():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exchanges.both(exchange, lambda: played(exchange, 0, []), learn, nothing)
    assert no_thread_is_left()


def test_who_sleeps_until_a_simulator_answers_is_woken_up():
    exchange = made()
    answer = threading.Event()

    def play():
        exchange.hand_over(0)
        answer.wait()
        raise RuntimeError("no simulator answered")

    def learn():
        exchange.take()
        breaks()

    with pytest.raises(BrokenError):
        exchanges.both(exchange, play, learn, answer.set, end_s=0.05)
    assert answer.is_set()


@pytest.mark.parametrize("fails", [False, True], ids=["learned", "failed"])
def test_a_rollout_that_never_ends_ends_the_run_all_the_same(fails):
    exchange = made()
    answer = threading.Event()
    error = BrokenError if fails else endings.Failure
    try:
        with pytest.raises(error, match=r"the first one|simulators do not answer"):
            exchanges.both(exchange, answer.wait, breaks if fails else nothing, nothing, end_s=0.01)
    finally:
        answer.set()


@pytest.mark.parametrize("silent", ["rollout", "learner"])
def test_silence_ends_with_the_name_of_who_is_silent(silent, monkeypatch):
    """A side that says that it is at work may be waited for as long as it likes."""
    monkeypatch.setattr(exchanges, "LOOK_S", 0.001)
    now = [0.0]
    exchange = made(timeout_s=10.0, clock=lambda: now[0])
    says, waits = exchange.playing, exchange.take
    if silent == "learner":
        says, waits = exchange.learning, lambda: exchange.await_version(1)
    found = []

    def wait():
        try:
            waits()
        except endings.Failure as error:
            found.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    for _ in range(5):
        now[0] += 9.0
        says()
    time.sleep(0.02)
    assert thread.is_alive() and not found
    now[0] += 11.0
    thread.join()
    assert f"waits for the {silent}, which has not answered for 11 s" in found[0]
    assert "rollout.learner_timeout_s=10" in found[0]


# ---- on devices ---------------------------------------------------------------------------------


@functools.cache
def sides():
    """Jitted: what learns on devices 0-3, with a sum over them, and what plays on 4-7, each device
    by itself."""
    learns = meshes.make_mesh(devices=jax.devices()[:4])
    plays = meshes.make_mesh(devices=jax.devices()[4:])

    def step(w, rows_B):
        def loss(w):
            return ((rows_B @ w) ** 2).mean()

        return w - 0.1 * jax.grad(loss)(w)

    layout = meshes.replicated(learns)
    step = jax.jit(step, donate_argnums=0, out_shardings=layout)
    decide = jax.jit(lambda w, x_B: jnp.tanh(x_B @ w) + 0.1 * x_B)
    return learns, plays, step, decide


def observation(batch, turn):
    return np.random.default_rng((batch, turn)).normal(size=(8, 8)).astype(np.float32)


TURNS = 20


def batch_of(plays, decide, params, batch):
    """Decisions of a batch, one after another: each waits for its actions, as simulators do."""
    rows = []
    for turn in range(TURNS):
        x_B = meshes.put_batch(observation(batch, turn), plays)
        rows.append(jax.device_get(decide(params, x_B)))
    return rows


def update(learns, step, w, rows, said):
    """A step for each decision, one on its way at a time."""
    for rows_B in rows:
        w = jax.block_until_ready(step(w, meshes.put_batch(rows_B, learns)))
        said()
    return w


def published(w, plays):
    """A copy, complete where it is played with."""
    return jax.block_until_ready(jax.device_put(w, meshes.replicated(plays)))


def start(learns):
    return meshes.replicate(0.3 * np.eye(8, dtype=np.float32), learns)


def in_turns(ahead):
    """What the threads must come to, from one."""
    learns, plays, step, decide = sides()
    w = start(learns)
    versions = [published(w, plays)]
    for batch in range(BATCHES):
        rows = batch_of(plays, decide, versions[max(batch - ahead, 0)], batch)
        w = update(learns, step, w, rows, nothing)
        versions.append(published(w, plays))
    return np.asarray(w)


@pytest.mark.parametrize("ahead", [0, 1])
def test_both_sides_on_devices_of_their_own(ahead):
    """A learner with a sum over its devices beside decisions that have none: neither waits for the
    other, and the parameters are those of one thread to the bit."""
    learns, plays, step, decide = sides()
    want = in_turns(ahead)  # which has compiled everything before a thread starts
    w = start(learns)
    exchange = exchanges.Exchange(0, 60.0)
    versions = {0: published(w, plays)}

    def play():
        with jax.transfer_guard("disallow"):
            for batch in range(BATCHES):
                exchange.await_version(max(batch - ahead, 0))
                exchange.playing()
                params = versions[max(batch - ahead, 0)]
                exchange.hand_over(batch_of(plays, decide, params, batch))

    def learn():
        learned = w
        for version in range(BATCHES):
            rows = exchange.take()
            learned = update(learns, step, learned, rows, exchange.learning)
            versions[version + 1] = published(learned, plays)
            exchange.publish(version + 1)
        return learned

    with jax.transfer_guard("disallow"):
        found = exchanges.both(exchange, play, learn, nothing)
    np.testing.assert_array_equal(np.asarray(found), want)


def test_the_rule_that_makes_it_safe():
    """Two programs with a collective may not be started by two threads: the one that plays has
    none, and that the learner's has one says that the search can find it."""
    learns, plays, step, decide = sides()
    rows_B = observation(0, 0)
    deciding = decide.lower(published(start(learns), plays), meshes.put_batch(rows_B, plays))
    learning = step.lower(start(learns), meshes.put_batch(rows_B, learns))
    assert not COLLECTIVE.search(deciding.compile().as_text())
    assert COLLECTIVE.search(learning.compile().as_text())
