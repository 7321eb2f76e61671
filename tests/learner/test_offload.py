"""What no episode needs goes to the host and comes back, bit for bit; parameters stay."""

import dataclasses

import jax
import numpy as np
import pytest

from pirl_jax.core import mesh as meshes
from pirl_jax.core import page
from pirl_jax.learner import offload
from pirl_jax.learner import state as states
from pirl_jax.weights import store
from tests.learner import test_state

FIELDS = ("opt_state", "ema", "anchor")


@pytest.fixture
def state():
    """Sharded and replicated arrays of all parts, with odd bits."""
    mesh = meshes.make_mesh(4, 2)
    params = test_state.make_params(mesh)
    made = states.create(
        params, page.Optim(lr=0.1), test_state.is_expert, mesh, ema=True, anchor=True
    )
    odd = np.array([[np.nan, -0.0], [np.inf, 1e-45]] * 4, np.float32)
    split = made.ema["expert"]["w"].sharding
    return made.replace(ema={"expert": {"w": jax.device_put(odd, split)}})


def bits(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def kinds(tree):
    return {x.sharding.memory_kind for x in jax.tree.leaves(tree)}


def layouts(tree):
    return [x.sharding for x in jax.tree.leaves(tree)]


def test_there_and_back_again_nothing_has_changed(state):
    moving = offload.Offload(enabled=True)
    before = bits(state)
    lay = layouts(state)
    with jax.transfer_guard("disallow"):
        away = moving.away(state)
    for name in FIELDS:
        assert kinds(getattr(away, name)) == {"pinned_host"}
        assert all(x.is_deleted() for x in jax.tree.leaves(getattr(state, name))), "room is made"
    assert kinds(away.params) == {"device"} and away.params is state.params
    assert bits(away) == before
    again = moving.away(away)
    assert bits(again) == before, "what is away stays there"
    with jax.transfer_guard("disallow"):
        back = moving.back(again)
    assert kinds(back) == {"device"} and layouts(back) == lay and bits(back) == before
    assert all(x.is_deleted() for x in jax.tree.leaves(away.opt_state))
    assert bits(moving.back(back)) == before


def test_a_checkpoint_is_the_same_from_either_state(state, tmp_path):
    moving = offload.Offload(enabled=True)
    place = store.Store(tmp_path)
    place.save(1, state)
    place.wait()
    place.save(2, moving.back(moving.away(state)))
    place.wait()
    like = {name: np.zeros(x.shape, x.dtype) for name, x in place.saved_leaves(1).items()}
    first, second = (place.restore(like, number)[0] for number in (1, 2))
    place.close()
    assert bits(first) == bits(second)


def test_an_average_that_is_away_acts_from_a_copy(state):
    moving = offload.Offload(enabled=True)
    expected = bits(states.acting_params(state))
    away = moving.away(state)
    acting = moving.acting(away)
    assert bits(acting) == expected and kinds(acting) == {"device"}
    assert kinds(away.ema) == {"pinned_host"}, "and stays there"


def test_an_average_that_plays_stays(state):
    away = dataclasses.replace(offload.Offload(enabled=True), keeps_average=True).away(state)
    assert kinds(away.ema) == {"device"} and kinds(away.anchor) == {"pinned_host"}


def test_what_is_not_enabled_moves_nothing(state):
    moving = offload.Offload(enabled=False)
    assert moving.away(state) is state and moving.back(state) is state
