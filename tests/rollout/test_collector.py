"""The book of a rollout, and the test of the design: right after a rollout the probability ratio is
1."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from pirl_jax.core import endings, page, rows, spec, types
from pirl_jax.core import mesh as meshes
from pirl_jax.envs import probes
from pirl_jax.envs.pool import queue
from pirl_jax.learner import objective, optimizer, update
from pirl_jax.learner import state as states
from pirl_jax.models import pi0
from pirl_jax.monitor import timeline
from pirl_jax.policy import normalize, observation, tokenizer
from pirl_jax.recipes import probe as recipe
from pirl_jax.rollout import actor as actors
from pirl_jax.rollout import collector, film, starts
from pirl_jax.rollout import stream as streams
from pirl_jax.run import config, policies, steps
from tests import at_once, pools

TWO_GROUPS = page.Rollout(num_groups=2, lockstep=True)
LENGTHS = [2, 0, 3, 1, 5]  # init state s of the fake pool: s + 1 decisions, success where s is even


@pytest.fixture
def actor():
    """Values its observations by 10 s + (chunks so far) and remembers the ids it was given."""
    transform = observation.Transform(
        tokenizer.ByteTokenizer(),
        normalize.identity(8, 7),
        norm_mode="zscore",
        delta_actions=False,
        discrete_state=False,
        image_size_px=2,
        resize="host",
        max_token_len=8,
        action_dim=8,
        env_action_dim=7,
    )

    def explore(params, key, id_B, obs):
        value_B = np.round(
            10 * obs.state[:, 1] + obs.state[:, 2]
        )  # up to the EPS of the normalisation
        actions_BHA = np.repeat(value_B[:, None, None], 4, 1) * np.ones(8, np.float32)
        seen.append((id_B, value_B))
        return (
            types.Chain(
                actions_BHA, actions_BHA, j=id_B, level=value_B, log_prob=-value_B, value=value_B
            ),
            actions_BHA,
            None,
        )

    seen = []
    result = actors.Actor(
        transform,
        ("push", "pick", "place"),
        3,
        explore,
        lambda *args: explore(*args)[1],
        put=lambda x: x,
    )
    result.seen = seen
    return result


@pytest.fixture
def collected(actor, make_pool):
    episodes = [streams.Episode(e % 3, state) for e, state in enumerate(LENGTHS)]
    return play(actor, make_pool(4), episodes, TWO_GROUPS)


def play(actor, pool, episodes, schedule, bootstrap_truncated=True):
    """-> the rollout, the results."""
    stream = streams.Stream(pool, episodes, schedule, 1)
    book = collect(actor, stream, bootstrap_truncated=bootstrap_truncated)
    return book.rollout(stream.results), stream.results


def collect(actor, stream, **how):
    return collector.collect(actor, None, None, stream, timeline.Timers(), **how)


def test_the_book_by_decision_and_episode(collected):
    rollout, _ = collected
    c, s = np.arange(6)[:, None], np.array(LENGTHS)
    np.testing.assert_array_equal(rollout.valid_CE, c <= s)
    np.testing.assert_array_equal(rollout.reward_CE, c <= s)
    np.testing.assert_array_equal(rollout.terminated_CE, (c == s) & (s % 2 == 0))
    np.testing.assert_array_equal(rollout.truncated_CE, (c == s) & (s % 2 == 1))
    value_CE = np.where(c <= s, 10 * s + c, 0)
    np.testing.assert_array_equal(rollout.value_CE[rollout.valid_CE], value_CE[rollout.valid_CE])
    # also after a time limit: the value of the final observation; nothing follows a success
    next_CE = np.where(rollout.terminated_CE, 0, value_CE + 1)
    np.testing.assert_array_equal(
        rollout.next_value_CE[rollout.valid_CE], next_CE[rollout.valid_CE]
    )


@pytest.mark.parametrize(
    "schedule", [TWO_GROUPS, page.Rollout(num_groups=2)], ids=["lockstep", "as ready"]
)
def test_the_policy_does_not_run_for_values_that_nobody_reads(
    actor, make_pool, collected, schedule
):
    """Two slots, served one by one: the policy runs once per decision, with a bootstrap once more
    per truncated episode."""
    episodes, calls = [streams.Episode(e % 3, state) for e, state in enumerate(LENGTHS)], {}
    decisions, truncated = sum(state + 1 for state in LENGTHS), sum(state % 2 for state in LENGTHS)
    for bootstrap in (False, True):
        actor.seen.clear()
        rollout, _ = play(actor, make_pool(2), episodes, schedule, bootstrap_truncated=bootstrap)
        calls[bootstrap] = len(actor.seen)
        ends = rollout.terminated_CE | rollout.truncated_CE
        want_CE = (
            collected[0].next_value_CE
            if bootstrap
            else np.where(ends, 0, collected[0].next_value_CE)
        )
        np.testing.assert_array_equal(rollout.next_value_CE, want_CE)
        jax.tree.map(
            np.testing.assert_array_equal,
            *(
                r.replace(next_value_CE=0, value_CE=np.where(r.valid_CE, r.value_CE, 0))
                for r in (rollout, collected[0])
            ),
        )
    assert calls == {False: decisions, True: decisions + truncated}


def evaluate(actor, pool, **how):
    """-> the results of playing without exploration."""
    stream = streams.Stream(pool, [streams.Episode(0, s) for s in LENGTHS], TWO_GROUPS, 1, **how)
    timers = timeline.Timers()
    decide = actors.exploiting(actor, None, None, pool.spec, stream.batch_size, timers)
    for turn in stream.turns(timers):
        if not turn.finished.all():
            stream.send(turn, decide(turn))
    return stream.results


def test_evaluation_does_not_run_the_policy_on_last_observations(actor, make_pool):
    evaluate(actor, make_pool(2))
    assert len(actor.seen) == sum(state + 1 for state in LENGTHS)


@pytest.mark.parametrize("faults", [(), {3}, {9, 21}], ids=str)
def test_more_episodes_join_the_rollout(actor, make_pool, collected, faults):
    """Played in three rounds it is the rollout of one round, without the rows that nobody needs."""
    episodes = [streams.Episode(e % 3, state) for e, state in enumerate(LENGTHS)]
    stream = streams.Stream(make_pool(4, faults=faults), episodes[:1], TWO_GROUPS, 1)
    book = collect(actor, stream, bootstrap_truncated=True)
    for first in (1, 3):
        stream.extend(episodes[first : first + 2])
        assert collect(actor, stream, book=book, bootstrap_truncated=True) is book
        if first == 1:
            book.discard([0])
    rollout, results = book.rollout(stream.results), stream.results
    assert results == collected[1]
    grids = [name for name in vars(rollout) if name.endswith("_CE")]
    for name in grids:
        np.testing.assert_array_equal(
            getattr(rollout, name), getattr(collected[0], name), err_msg=name
        )

    def whole(rollout):
        context = rows.take(rollout.context, np.arange(len(rollout.context)))
        return context, rollout.chain, rollout.decision_R, rollout.episode_R

    kept = collected[0].episode_R != 0
    want = jax.tree.map(lambda x: x[kept], whole(collected[0]))
    jax.tree.map(np.testing.assert_array_equal, whole(rollout), want)


def test_rows_are_the_valid_decisions_in_order(collected):
    rollout, results = collected
    expected = [(e, c) for e, s in enumerate(LENGTHS) for c in range(s + 1)]
    assert list(zip(rollout.episode_R, rollout.decision_R, strict=True)) == expected
    values = [10 * LENGTHS[e] + c for e, c in expected]
    np.testing.assert_array_equal(rollout.chain.value, values)
    context = rows.take(rollout.context, np.arange(len(expected)))
    np.testing.assert_allclose(context.state[:, 1:3] @ [10, 1], values, rtol=1e-5)
    tokens = tokenizer.tokenize(tokenizer.ByteTokenizer(), "place", 8)[0]
    np.testing.assert_array_equal(context.tokens[rollout.episode_R == 2], np.tile(tokens, (4, 1)))
    assert [result.num_decisions for result in results] == [s + 1 for s in LENGTHS]


def test_every_decision_has_a_key_of_its_own(collected, actor):
    rollout, _ = collected
    assert len(set(rollout.chain.j)) == len(
        rollout.chain.j
    )  # the fake chain keeps the id where j belongs
    np.testing.assert_array_equal(rollout.chain.j, rollout.episode_R * 6 + rollout.decision_R)
    assert {len(id_B) for id_B, _ in actor.seen} == {2}, "every batch has the size of a group"


def test_evaluation_plays_the_same_episodes(actor, make_pool):
    results = evaluate(actor, make_pool(4), record=[1])
    assert [result.success for result in results] == [True, True, False, False, False]
    assert [bool(result.frames) for result in results] == [False, True, False, False, False]


def test_serving_who_is_ready_gives_the_same_rollout(actor, make_pool, collected):
    episodes = [streams.Episode(e % 3, state) for e, state in enumerate(LENGTHS)]
    pool = make_pool(4, hurry=lambda slot: -slot)
    rollout, results = play(actor, pool, episodes, page.Rollout(num_groups=2))
    assert results == collected[1]
    jax.tree.map(np.testing.assert_array_equal, rollout, collected[0])


@pytest.mark.parametrize("faults", [{3}, {1, 2}, {0, 1}, {9, 21}], ids=str)
def test_a_lost_simulator_leaves_no_trace(actor, make_pool, collected, faults):
    """Its episode is played again; the rollout is that of the undisturbed run."""
    episodes = [streams.Episode(e % 3, state) for e, state in enumerate(LENGTHS)]
    rollout, results = play(actor, make_pool(4, faults=faults), episodes, TWO_GROUPS)
    assert results == collected[1]
    jax.tree.map(np.testing.assert_array_equal, rollout, collected[0])


@pytest.mark.parametrize("faults", [{3}, {1, 2}, {0, 1}, {9, 21}], ids=str)
def test_a_lost_simulator_gives_its_rows_on_the_devices_back(actor, make_pool, collected, faults):
    """The buffer has room for what is kept in the end and for nothing besides."""
    mesh = meshes.make_mesh(1, 1, jax.devices()[:1])
    explore = actor.explore

    def keeping(*args):
        chain, actions_BHA, _ = explore(*args)
        return chain, actions_BHA, meshes.put_batch(chain.value, mesh)

    buffer = rows.Buffer(mesh)
    buffer.clear(sum(LENGTHS) + len(LENGTHS))
    episodes = [streams.Episode(e % 3, state) for e, state in enumerate(LENGTHS)]
    keeper = dataclasses.replace(actor, explore=keeping, buffer=buffer)
    rollout, results = play(keeper, make_pool(4, faults=faults), episodes, TWO_GROUPS)
    assert results == collected[1]
    np.testing.assert_array_equal(rows.put(rollout.context, mesh), collected[0].chain.value)


@pytest.mark.parametrize("faults", [(), {3}, {1, 2}], ids=str)
def test_a_film_changes_nothing_and_renders_nothing(actor, make_pool, collected, faults):
    """It has every decision of its episodes, with the value that was estimated, and the end."""
    pool = make_pool(4, faults=faults)
    send = pool.send

    def without_frames(slots, actions, record):
        assert not any(record)
        send(slots, actions, record)

    pool.send = without_frames
    episodes = [streams.Episode(e % 3, state) for e, state in enumerate(LENGTHS)]
    stream = streams.Stream(pool, episodes, TWO_GROUPS, 1)
    taken = film.Film([0, 2, 3, 99])
    book = collect(actor, stream, bootstrap_truncated=True, film=taken)
    jax.tree.map(np.testing.assert_array_equal, book.rollout(stream.results), collected[0])
    assert taken.shots.pop(99) == []
    for e, shots in taken.shots.items():
        decisions = LENGTHS[e] + 1
        assert [shot.step for shot in shots] == [3 * c for c in range(decisions + 1)]
        assert [shot.reward for shot in shots] == list(range(decisions + 1))
        values = [10 * LENGTHS[e] + c for c in range(decisions)]
        assert [shot.value for shot in shots[:-1]] == values
        # A success has no value: nothing follows.
        assert np.isnan(shots[-1].value) == (LENGTHS[e] % 2 == 0)


def test_an_episode_that_stays_lost_never_reaches_the_learner(actor, make_pool):
    """One slot; the first episode is lost in its third decision, then in its second reset."""
    episodes = [streams.Episode(0, 4), streams.Episode(1, 1)]
    pool = make_pool(1, faults={3, 4})
    rollout, results = play(
        actor, pool, episodes, page.Rollout(num_groups=1), bootstrap_truncated=False
    )
    assert [result.lost for result in results] == [True, False]
    np.testing.assert_array_equal(rollout.valid_CE.sum(0), [0, 2])
    assert rollout.episode_R.tolist() == [1, 1] and len(rollout.chain.value) == 2
    for array_CE in (
        rollout.reward_CE,
        rollout.value_CE,
        rollout.next_value_CE,
        rollout.terminated_CE,
        rollout.truncated_CE,
    ):
        assert not array_CE[:, 0].any()
    settings = config.settings(recipe.get_config())
    data = objective.with_advantages(rollout, settings.raw.algorithm)
    assert np.isfinite(data.advantage).all() and len(data.advantage) == 2


def test_a_rollout_without_any_episode_is_an_error(actor, make_pool):
    pool, episodes = make_pool(1, faults={0, 1}), [streams.Episode(0, 1)]
    with pytest.raises(
        endings.Failure, match="all 1 episodes of the rollout were lost with their simulators"
    ):
        play(actor, pool, episodes, page.Rollout(num_groups=1))


@pytest.fixture(scope="module", params=["host", "device", "recompute", "trained"])
def learned(request):
    """A rollout of 80 decisions and one epoch on it -> name, rollout, metrics, parameters."""
    page = recipe.get_config()
    page.model.update(
        train_expert_only=request.param != "trained", num_steps=4, noise_level=1.0, action_chunk=2
    )
    page.rollout.prefix_cache = "auto" if request.param == "trained" else request.param
    page.algorithm.update(update_epochs=1)
    settings, mesh = config.settings(page), meshes.make_mesh(1, 1, jax.devices()[:1])
    with (
        pools.start(
            functools.partial(probes.make, "delayed", chunk=2), num_envs=16, num_workers=1
        ) as envs,
        queue.ReadyQueue(envs) as pool,
    ):
        to_model = policies.transform(
            settings, policies.given_stats(settings), pool.spec.instructions
        )
        actor = policies.actor(settings, mesh, to_model, pool.spec.instructions)
        if actor.buffer is not None:
            actor.buffer.clear(100)
        params = policies.fresh_params(settings, mesh, jax.random.key(3))
        key = jax.random.key(4)
        stream = streams.Stream(pool, [streams.Episode(0, 0)] * 40, TWO_GROUPS, 1)
        with jax.transfer_guard("disallow"):
            book = collector.collect(actor, params, key, stream, timeline.Timers())
        rollout = book.rollout(stream.results)
    trains = optimizer.trainable(settings.policy.network, page.model.train_expert_only)
    state = states.create(params, settings.raw.optim, trains, mesh)
    updater = update.Updater(
        steps.log_prob_fn(settings), settings.raw.algorithm, settings.raw.optim, trains, mesh
    )
    data = objective.with_advantages(rollout, settings.raw.algorithm)
    with jax.transfer_guard("disallow"):
        state, metrics = at_once.learn(updater, state, data, key)
    return request.param, rollout, metrics, jax.device_get(state.params)


def test_right_after_a_rollout_the_ratio_is_one(learned):
    """What is left is float32: the two graphs round a mean to about 1e-7, and the log-probability
    divides that by the std and adds it up over the executed entries.  Few entries and a large std
    (here at least 0.29) leave room below 1e-5; with the recipes' 35 entries and std 0.14 the
    largest of some thousand rows is at 2e-5."""
    name, rollout, metrics, _ = learned
    kind = {
        "host": pi0.Prefix,
        "device": int,
        "recompute": types.Observation,
        "trained": types.Observation,
    }[name]
    at_80 = rollout.context.at_R.tolist() if name == "device" else rollout.context
    assert (
        len(at_80) == 80
        and isinstance(at_80[0], kind)
        and set(rollout.chain.j[:, 0]) == {0, 1, 2, 3}
    )
    assert metrics["actor/first_ratio_max_dev"] < 1e-5 < metrics["actor/ratio_max_dev"]


HOST = {}


def test_wherever_the_prefix_lies_the_update_is_the_same(learned):
    """A kept prefix is the same bits here and there.

    Computed again it is rounded anew (1e-7 of its size), and a step of Adam turns that into 1e-3 of
    the step where a gradient is small; the step is 1e-3.
    """
    name, _, _, params = learned
    if name == "host":
        HOST.update(spec.flatten(params))
    for path, x in spec.flatten(params).items() if name in ("device", "recompute") else ():
        np.testing.assert_allclose(
            x, HOST[path], rtol=0, atol=0 if name == "device" else 1e-5, err_msg=path
        )


# ---- guards: who draws which noise --------------------------------------------------------------


@pytest.mark.parametrize("group_size", [1, 2])
def test_hosts_name_their_decisions_apart(actor, make_pool, group_size):
    """Two hosts: together they give the numbers of all episodes, each once."""
    numbers = []
    for host in (0, 1):
        actor.share = starts.Share(host, 2)
        stream = streams.Stream(make_pool(2), [streams.Episode(0, 2)] * 4, TWO_GROUPS, 1)
        rollout = collect(actor, stream, group_size=group_size).rollout(stream.results)
        place_R = actor.share.number(rollout.episode_R, group_size)
        np.testing.assert_array_equal(rollout.chain.j, place_R * 6 + rollout.decision_R)
        numbers += rollout.chain.j.tolist()
    assert sorted(numbers) == [e * 6 + c for e in range(8) for c in range(3)]


def test_evaluations_of_two_hosts_draw_differently(actor, make_pool):
    seen = []
    for host in (0, 1):
        actor.share = starts.Share(host, 2)
        actor.seen.clear()
        pool = make_pool(1)
        decide = actors.exploiting(actor, None, None, pool.spec, 1, timeline.Timers())
        stream = streams.Stream(pool, [streams.Episode(0, 2)] * 2, page.Rollout(num_groups=1), 1)
        for turn in stream.turns(timeline.Timers()):
            if not turn.finished.all():
                stream.send(turn, decide(turn))
        seen.append([int(id_B[0]) for id_B, _ in actor.seen])
    assert seen == [[0, 1, 2, 12, 13, 14], [6, 7, 8, 18, 19, 20]]


def test_every_row_says_which_parameters_decided(actor, make_pool):
    """Two rounds of one rollout by different ones."""
    episodes = [streams.Episode(e % 3, state) for e, state in enumerate(LENGTHS)]
    stream = streams.Stream(make_pool(4), episodes[:2], TWO_GROUPS, 1)
    book = collect(actor, stream, version=3)
    stream.extend(episodes[2:])
    rollout = collect(actor, stream, book=book, version=4).rollout(stream.results)
    assert rollout.version_R.dtype == np.int32
    np.testing.assert_array_equal(rollout.version_R, np.where(rollout.episode_R < 2, 3, 4))
