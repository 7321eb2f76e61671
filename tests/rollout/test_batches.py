"""Batches that are played side by side, by parameters that change meanwhile: what is stored is that
of whoever decided, and of each batch as if it were alone."""

import jax
import numpy as np
import pytest

from pirl_jax.core import mesh as meshes
from pirl_jax.core import page, rows
from pirl_jax.monitor import timeline
from pirl_jax.recipes import probe as recipe
from pirl_jax.rollout import collector
from pirl_jax.rollout import stream as streams
from pirl_jax.run import config, policies, steps

TWO_GROUPS = page.Rollout(num_groups=2)
LENGTHS = {5: [2, 0, 3, 1, 5, 4, 2, 1, 3, 0, 5, 2], 6: [1, 4, 0, 2, 3, 5, 1, 2, 4, 0, 3, 2]}


@pytest.fixture(scope="module")
def settings():
    fields = recipe.get_config()
    fields.model.update(num_steps=4, noise_level=1.0, action_chunk=2)
    fields.rollout.prefix_cache = "recompute"
    return config.settings(fields)


@pytest.fixture(scope="module")
def mesh():
    return meshes.make_mesh(1, 1, jax.devices()[:1])


@pytest.fixture(scope="module")
def actor(settings, mesh):
    instructions = ("push", "pick", "place")
    to_model = policies.transform(settings, policies.given_stats(settings), instructions)
    return policies.actor(settings, mesh, to_model, instructions)


@pytest.fixture(scope="module")
def params(settings, mesh):
    """Of three versions."""
    return [policies.fresh_params(settings, mesh, jax.random.key(v)) for v in range(3)]


def episodes(batch):
    return [streams.Episode(e % 3, state) for e, state in enumerate(LENGTHS[batch])]


def keys(batch):
    return jax.random.key(batch)


def side_by_side(actor, pool, acting, schedule=TWO_GROUPS):
    """Both batches in one stream; acting: (batch, number of the turn) -> Acting."""
    stream = streams.Stream(pool, episodes(5), schedule, 1, batch=5)
    stream.admit(6, episodes(6))
    collected = collector.Collector(actor, stream, timeline.Timers(), most_open=2)
    for batch in LENGTHS:
        book = collector.new_book(actor, stream)
        book.make_room(len(stream.of(batch)))
        collected.open(batch, book, collector.Draws(keys(batch)))
    mixed = 0
    for number, turn in enumerate(stream.turns(timeline.Timers())):
        mixed += len(stream.by_batch(turn)) == 2
        with jax.transfer_guard("disallow"):
            collected.decide(turn, lambda batch, now=number: acting(batch, now))
    assert mixed > 1, "some turns hold both batches"
    return {batch: collected.close(batch).rollout(stream.of(batch)) for batch in LENGTHS}


@pytest.mark.parametrize("lockstep", [False, True], ids=["as ready", "lockstep"])
def test_a_batch_beside_another_is_what_it_is_alone(actor, params, make_pool, lockstep):
    """A key of its own, whatever stands in the other rows; parameters of its own, too."""
    schedule = page.Rollout(num_groups=2, lockstep=lockstep)
    played = {5: collector.Acting(params[0], 4), 6: collector.Acting(params[1], 5)}
    together = side_by_side(actor, make_pool(16), lambda batch, _: played[batch], schedule)
    for batch, rollout in together.items():
        stream = streams.Stream(make_pool(16), episodes(batch), schedule, 1)
        how = {"version": played[batch].version}
        book = collector.collect(
            actor, played[batch].params, keys(batch), stream, timeline.Timers(), **how
        )
        alone = book.rollout(stream.results)
        jax.tree.map(np.testing.assert_array_equal, rollout.chain.j, alone.chain.j)
        grids = [name for name in vars(alone) if name.endswith(("_R", "_CE"))]
        for name in [name for name in grids if "value" not in name]:
            np.testing.assert_array_equal(getattr(rollout, name), getattr(alone, name))
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
            (rollout.chain, rollout.value_CE, rollout.next_value_CE),
            (alone.chain, alone.value_CE, alone.next_value_CE),
        )


def test_versions_that_change_inside_an_episode(settings, actor, params, make_pool):
    """Under the stored version the log-prob is the stored one, under the others it is not."""
    played = [collector.Acting(each, version) for version, each in enumerate(params)]
    found = side_by_side(actor, make_pool(16), lambda _, turn: played[turn // 3 % 3])
    log_prob = jax.jit(steps.log_prob_fn(settings))
    for rollout in found.values():
        inside = [set(rollout.version_R[rollout.episode_R == e]) for e in range(12)]
        assert max(map(len, inside)) > 1, "some episodes saw several"
        index_R = np.resize(np.arange(len(rollout.version_R)), 48)
        chain = jax.tree.map(lambda x, index=index_R: np.asarray(x)[index], rollout.chain)
        context = rows.take(rollout.context, index_R)
        for version, each in enumerate(params):
            again, *_ = jax.device_get(log_prob(each, chain, context))
            off_R = np.abs(again - chain.log_prob).max((1, 2))
            mine_R = rollout.version_R[index_R] == version
            assert off_R[mine_R].max() < 1e-3 < np.median(off_R[~mine_R])
