"""Start states: the split, RLinf's draws and orders, and that an iteration's list depends on seed
and iteration alone."""

import itertools
import json

import numpy as np
import pytest

from pirl_jax.rollout import starts
from pirl_jax.rollout import stream as episodes

LIBERO = starts.Starts(tuple(range(10)), range(50), range(50))


@pytest.fixture(scope="module")
def reference(vectors):
    """case -> (its settings, its arrays), where one process holds all environments."""
    table, found = np.load(vectors / "rlinf" / "f_reset_ids.npz", allow_pickle=True), {}
    for name in {name.split("/")[0] for name in table.files if name.endswith("_proc0/meta")}:
        arrays = {
            key.rpartition("/")[2]: table[key]
            for key in table.files
            if key.startswith(f"{name}/out/")
        }
        found[name] = json.loads(str(table[f"{name}/meta"])), arrays
    return found


def of(meta) -> starts.Starts:
    tasks = meta["task_id_filter"] or range(len(meta["bins"]))
    return starts.Starts(tuple(tasks), range(meta["bins"][0]), range(meta["bins"][0]))


def pairs(names):
    return [(name.task, name.init_state) for name in names]


def by_id(out, row):
    """The task and trial arrays of row 0 belong to another draw; the ids were reset."""
    return [divmod(int(number), 50) for number in out["reset_state_ids"][row]]


def cases(reference, **wanted):
    chosen = [
        case
        for case in reference.values()
        if all(case[0].get(name) == value for name, value in wanted.items())
    ]
    return [
        case
        for case in chosen
        if len(set(case[0]["bins"])) == 1 and case[0].get("specific_reset_id") is None
    ]


def test_the_first_draw_is_that_of_rlinf(reference):
    found = cases(reference, use_ordered_reset_state_ids=False)
    assert len(found) >= 4 and max(meta["group_size"] for meta, _ in found) == 8
    for meta, out in found:
        names = starts.training(
            of(meta), meta["num_envs"], meta["group_size"], "uniform", meta["seed"], 0
        )
        assert pairs(names) == by_id(out, 0)


def test_ordered_starts_are_those_of_rlinf_on_one_process(reference):
    """Its shuffle has seed 0 always; nine rollouts stay within the first pass."""
    ((meta, out),) = cases(reference, use_ordered_reset_state_ids=True, total_num_processes=1)
    for iteration in range(9):
        names = starts.training(
            of(meta), meta["num_envs"], meta["group_size"], "ordered", 0, iteration
        )
        assert pairs(names) == by_id(out, iteration)


def test_evaluation_has_the_order_of_rlinf(reference):
    ((meta, out),) = cases(reference, is_eval=True, total_num_processes=1)
    assert pairs(starts.evaluation(of(meta), 0)) == list(
        zip(out["task_ids"], out["trial_ids"], strict=True)
    )


def test_a_pass_has_every_start_once_and_the_next_another_order():
    few = starts.Starts((3, 5), range(7), range(0))
    names = [pairs(starts.training(few, 12, 2, "ordered", 1, iteration)) for iteration in range(7)]
    assert all(name[0::2] == name[1::2] for name in names), "groups share their start"
    stream = [pair for name in names for pair in name[0::2]]
    everything = sorted((task, state) for task in (3, 5) for state in range(7))
    passes = [stream[first : first + 14] for first in (0, 14, 28)]
    assert all(sorted(one) == everything for one in passes) and passes[0] != passes[1] != passes[2]


@pytest.mark.parametrize("order", starts.ORDERS)
def test_a_list_is_a_function_of_seed_and_iteration(order):
    def draw(seed, iteration):
        return starts.training(LIBERO, 512, 8, order, seed, iteration)

    assert draw(42, 7) == draw(42, 7)
    assert draw(42, 7) != draw(42, 8) and draw(42, 7) != draw(43, 7)
    assert len(draw(42, 7)) == 512 and len(set(draw(42, 7))) <= 64


def test_uniform_draws_only_the_training_starts_of_the_chosen_tasks():
    names = starts.training(
        starts.Starts((8, 2), range(10, 13), range(13, 20)), 3000, 1, "uniform", 0, 0
    )
    counts = np.unique(pairs(names), axis=0, return_counts=True)
    assert {tuple(pair) for pair in counts[0]} == {
        (task, state) for task in (2, 8) for state in (10, 11, 12)
    }
    assert counts[1].min() > 430, "500 of each, std 20"


def test_evaluation_plays_each_once_and_tasks_alternate():
    held_out = starts.Starts((2, 0), range(0, 800), range(800, 1000))
    names = starts.evaluation(held_out, 3)
    assert pairs(names) == [(2, 800), (0, 800), (2, 801), (0, 801), (2, 802), (0, 802)]
    assert len(set(starts.evaluation(held_out, 0))) == 400
    assert isinstance(names[0], episodes.Episode)


@pytest.mark.parametrize(
    "num, train, evaluate",
    [
        (50, range(40), range(40, 50)),
        (1000, range(800), range(800, 1000)),
        (2, range(1), range(1, 2)),
    ],
)
def test_the_held_out_split(num, train, evaluate):
    assert starts.split("held_out", num) == (train, evaluate)
    assert starts.split("published", num) == (range(num), range(num))


def test_nothing_can_be_held_out_of_one_start():
    with pytest.raises(
        ValueError,
        match="needs at least 2 start states per task, but the suite has 1; "
        r"set env\.split=published",
    ):
        starts.split("held_out", 1)


@pytest.mark.parametrize("count, group_size, hosts", [(12, 1, 1), (12, 2, 3), (7, 1, 2), (8, 4, 2)])
def test_hosts_share_a_list_of_episodes_without_parting_a_group(count, group_size, hosts):
    names = [(e // group_size, e) for e in range(count)]  # group, episode
    shares = [starts.Share(host, hosts) for host in range(hosts)]
    played = [share.of(names, group_size) for share in shares]
    assert sorted(itertools.chain.from_iterable(played)) == sorted(names)
    for share, mine in zip(shares, played, strict=True):
        assert [names[share.number(e, group_size)] for e in range(len(mine))] == mine
        assert len({group for group, _ in mine}) == len(mine) / group_size
    if group_size == 1:
        assert starts.joined(played) == names


@pytest.mark.parametrize("order", starts.ORDERS)
def test_what_replaces_episodes_depends_on_what_was_played(order):
    def draw(seed, iteration, played):
        return starts.training(LIBERO, 64, 8, order, seed, iteration, played)

    lists = [draw(42, 7, 0), draw(42, 7, 64), draw(42, 7, 128), draw(42, 8, 64), draw(43, 7, 64)]
    assert len({tuple(pairs(names)) for names in lists}) == len(lists)
    assert draw(42, 7, 64) == draw(42, 7, 64)


def test_an_order_depends_on_the_seed_and_the_pass():
    few = starts.Starts((0,), range(9), range(0))
    orders = {
        tuple(pairs(starts.training(few, 9, 1, "ordered", seed, iteration)))
        for seed in (0, 1)
        for iteration in (0, 1)
    }
    assert len(orders) == 4


# ---- lists of suites --------------------------------------------------------------------------

TWO = starts.Starts(tuple(range(12)), range(5), range(0), ((0, 1), tuple(range(2, 12))))


def draw(order, balance, count=21, iterations=4, group_size=1, played=0):
    found = []
    for iteration in range(iterations):
        found += starts.training(TWO, count, group_size, order, 3, iteration, played, balance)
    return found


@pytest.mark.parametrize("order", starts.ORDERS)
@pytest.mark.parametrize("played", [0, 7])
def test_suites_of_a_list_take_turns_whatever_their_size(order, played):
    found = draw(order, "suites", played=played)
    in_small = [name.task < 2 for name in found]
    assert sum(in_small) == 42 and in_small[:4] == [True, False, True, False]
    assert {name.task for name in found} == set(range(12))
    assert found == draw(order, "suites", played=played)
    by_task = sum(name.task < 2 for name in draw("uniform", "tasks", count=600))
    assert by_task == pytest.approx(2400 / 6, abs=60)


def test_each_suite_in_order_has_each_start_once_before_any_twice():
    found = pairs(draw("ordered", "suites", count=20, iterations=5))
    small = [pair for pair in found if pair[0] < 2]
    large = [pair for pair in found if pair[0] >= 2]
    assert len(small) == len(large) == 50 == len(set(large))
    for first in range(0, 50, 10):
        assert len(set(small[first : first + 10])) == 10


def test_groups_stay_together_when_suites_take_turns():
    found = draw("uniform", "suites", count=12, iterations=1, group_size=3)
    assert [found[i] == found[i - i % 3] for i in range(12)] == [True] * 12
    assert [name.task < 2 for name in found[::3]] == [True, False, True, False]


def test_one_suite_is_drawn_as_ever():
    for order in starts.ORDERS:
        plain = starts.training(LIBERO, 30, 1, order, 3, 1)
        assert plain == starts.training(LIBERO, 30, 1, order, 3, 1, 0, "suites")
