"""The model of the loop: exact where it can be computed by hand, bounded staleness, and the table
of the specification in small."""

import dataclasses

import numpy as np
import pytest

from pirl_jax.run import loop_model

# Seconds of an iteration as an earlier model of another author had them: 8 devices of 150 TFLOP/s,
# 512 episodes of 12 to 48 decisions, 128 slots, 4 epochs.  (TFLOP of the update per row, seconds of
# a chunk) -> a column each of PLACEMENTS.
EARLIER = {
    (0.11, 0.25): (116, 150, 147, 109, 134, 100),
    (0.11, 1.0): (292, 321, 318, 252, 271, 242),
    (0.11, 2.0): (526, 551, 555, 448, 462, 438),
    (4.1, 0.25): (352, 387, 1094, 981, 491, 295),
    (4.1, 1.0): (530, 558, 1263, 979, 488, 299),
    (4.1, 2.0): (764, 787, 1505, 973, 535, 440),
}
# devices of the rollout and of the learner, separate, max_staleness
PLACEMENTS = {
    "sync shared": (8, 8, False, 0),
    "sync hybrid 4/8": (4, 8, False, 0),
    "sync separate 6/2": (6, 2, True, 0),
    "async separate 6/2": (6, 2, True, 1),
    "async separate 4/4": (4, 4, True, 1),
    "async shared": (8, 8, False, 1),
}
SMALLER = 8  # episodes, slots, cores and devices: the seconds stay
RATE = 150e12 / SMALLER
SLOTS = 128 // SMALLER

ONE = loop_model.Simulators(1, 1, 1, chunk_s=(2.0,), reset_s=(3.0,), decisions=(4,))
PROGRAMS = loop_model.Programs(decision_s=1.0, microbatch_s=5.0, step_s=0.5, finish_s=0.25)
TWICE = loop_model.Schedule(episodes=2, epochs=3, minibatch_rows=4, microbatch_rows=2)


def seconds(update_tflop: float, chunk_s: float) -> list[float]:
    """Of each placement, from the model."""
    rng = np.random.default_rng(1)
    # A third fails and lasts to the limit.
    lengths = np.where(rng.random(500) < 0.3, 48, rng.integers(12, 49, 500))
    spread = np.exp(0.3 * rng.standard_normal(500))
    simulators = loop_model.Simulators(
        SLOTS,
        workers=SLOTS,
        cores=88 / SMALLER,
        chunk_s=chunk_s * spread / spread.mean(),
        reset_s=(chunk_s / 2,),
        decisions=lengths,
    )
    found = []
    for rollout, actor, separate, staleness in PLACEMENTS.values():
        programs = loop_model.Programs(
            decision_s=2.67e12 * SLOTS / 2 / (rollout * RATE),
            microbatch_s=update_tflop * 1e12 * 16 / (actor * RATE),
        )
        schedule = loop_model.Schedule(
            512 // SMALLER,
            epochs=4,
            minibatch_rows=256,
            microbatch_rows=16,
            num_groups=2,
            max_staleness=staleness,
            separate=separate,
        )
        found.append(loop_model.run(simulators, programs, schedule, iterations=2).iteration_s)
    return found


@pytest.mark.parametrize("case", EARLIER)
def test_the_table_of_the_specification_has_its_shape(case):
    """Against shared devices in turn; and who is clearly faster than whom."""
    found = np.array(seconds(*case))
    expected = np.array(EARLIER[case])
    np.testing.assert_allclose(found / found[0], expected / expected[0], rtol=0.25)
    wrong = []
    names = list(PLACEMENTS)
    for i, slower in enumerate(names):
        for j, faster in enumerate(names):
            if expected[i] > 1.1 * expected[j] and found[i] <= found[j]:
                wrong.append(f"{slower} is not slower than {faster}")
    assert not wrong, wrong


def test_one_slot_takes_what_a_hand_computes():
    """The first reset of an iteration happens while the learner works."""
    outcome = loop_model.run(ONE, PROGRAMS, TWICE, iterations=3)
    # 8 rows: 2 minibatches of 2 microbatches, 3 times; one reset between two episodes.
    update = 3 * 2 * (2 * 5.0 + 0.5) + 0.25
    assert outcome.decisions == 8
    assert outcome.update_s == pytest.approx(update)
    assert outcome.inference_s == pytest.approx(8 * 1.0)
    assert outcome.simulators_s == pytest.approx(8 * 2.0 + 3.0)
    assert outcome.idle_s == pytest.approx(0.0)
    assert outcome.iteration_s == pytest.approx(update + 8 * 1.0 + 8 * 2.0 + 3.0)


def test_what_waits_behind_the_learner_is_hidden_with_staleness():
    """One slot and one device: an iteration takes its programs, or its simulation and decisions."""
    staleness = dataclasses.replace(TWICE, max_staleness=1, separate=True)
    outcome = loop_model.run(ONE, PROGRAMS, staleness, iterations=3)
    assert outcome.iteration_s == pytest.approx(3 * 2 * (2 * 5.0 + 0.5) + 0.25)
    short = dataclasses.replace(PROGRAMS, microbatch_s=0.1, step_s=0.0)
    outcome = loop_model.run(ONE, short, staleness, iterations=3)
    assert outcome.iteration_s == pytest.approx(8 * 1.0 + 8 * 2.0 + 2 * 3.0)


def test_what_counts_is_the_middle_of_a_run():
    """As many decisions are made in an iteration as are learned from, also where they overlap."""
    stale = dataclasses.replace(TWICE, max_staleness=1)
    for schedule in (TWICE, stale, dataclasses.replace(stale, separate=True)):
        outcome = loop_model.run(ONE, PROGRAMS, schedule, iterations=4)
        assert outcome.decisions == pytest.approx(8, abs=0.5)


def test_cores_are_shared():
    """Two workers on one core take twice as long; with a core each they do not."""
    given = dataclasses.replace(ONE, slots=2, workers=2, cores=2)
    schedule = dataclasses.replace(TWICE, num_groups=1)
    alone = loop_model.run(given, PROGRAMS, schedule)
    shared = loop_model.run(dataclasses.replace(given, cores=1), PROGRAMS, schedule)
    assert alone.simulators_s == pytest.approx(4 * 2.0)
    assert shared.simulators_s == pytest.approx(2 * 4 * 2.0)


def test_programs_on_the_cores_slow_simulators_down():
    """While half of the slots are decided for, the other half steps on the same cores."""
    given = dataclasses.replace(ONE, slots=2, workers=2, cores=2)
    schedule = dataclasses.replace(TWICE, episodes=4, num_groups=2)
    own = loop_model.run(given, PROGRAMS, schedule)
    programs = dataclasses.replace(PROGRAMS, decision_threads=2.0)
    assert loop_model.run(given, programs, schedule).inference_s > 1.2 * own.inference_s


def random_case(seed: int) -> tuple:
    rng = np.random.default_rng(seed)
    workers = int(rng.integers(1, 5))
    groups = int(rng.integers(1, 3))
    simulators = loop_model.Simulators(
        slots=groups * workers * int(rng.integers(1, 3)),
        workers=workers,
        cores=float(rng.uniform(0.5, 5)),
        chunk_s=rng.uniform(0.1, 2, 20),
        reset_s=rng.uniform(0.1, 2, 20),
        decisions=rng.integers(1, 9, 20),
    )
    programs = loop_model.Programs(
        decision_s=rng.uniform(0.01, 1),
        microbatch_s=rng.uniform(0.01, 3),
        finish_s=rng.uniform(0, 1),
        decision_threads=float(rng.choice([0.0, 2.0])),
        update_threads=float(rng.choice([0.0, 1.5])),
    )
    schedule = loop_model.Schedule(
        episodes=int(rng.integers(3, 13)),
        epochs=2,
        minibatch_rows=16,
        microbatch_rows=8,
        num_groups=groups,
        lockstep=bool(rng.integers(2)),
        max_staleness=int(rng.integers(3)),
        separate=bool(rng.integers(2)),
        barrier_every=int(rng.integers(3)),
    )
    return simulators, programs, schedule


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_staler_than_allowed_and_nothing_is_lost(seed):
    """Under random durations; the parts are the whole; a seed repeats."""
    simulators, programs, schedule = random_case(seed)
    outcome = loop_model.run(simulators, programs, schedule, seed=seed)
    assert outcome.max_lag <= schedule.max_staleness
    if schedule.barrier_every:
        assert outcome.max_lag < schedule.barrier_every
    parts = outcome.simulators_s + outcome.inference_s + outcome.update_s + outcome.idle_s
    assert parts == pytest.approx(outcome.iteration_s)
    assert 0 < outcome.slot_use <= 1
    assert 0 <= outcome.workers_idle <= 1
    assert outcome == loop_model.run(simulators, programs, schedule, seed=seed)
    assert outcome != loop_model.run(simulators, programs, schedule, seed=seed + 1)
    # Every batch is played whole, so that it is learned from: the same decisions in any order.
    in_turn = dataclasses.replace(schedule, max_staleness=0)
    played = loop_model.run(simulators, programs, in_turn, seed=seed)
    drained = dataclasses.replace(schedule, barrier_every=1)
    assert played.max_lag == 0
    assert loop_model.run(simulators, programs, drained, seed=seed).decisions == played.decisions


def test_a_size_that_is_none_is_refused():
    with pytest.raises(ValueError, match="needs workers above 0, not 0"):
        loop_model.run(dataclasses.replace(ONE, workers=0), PROGRAMS, TWICE)
