import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pirl_jax.core import mesh as meshes
from pirl_jax.core import page
from pirl_jax.learner import state as states

CFG = page.Optim(lr=0.1)


def make_params(mesh):
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    tree = {"vlm": {"w": np.ones((4, 4), np.float32)}, "expert": {"w": np.ones((8, 2), np.float32)}}
    return tree | {"expert": {"w": jax.device_put(tree["expert"]["w"], split)}}


def is_expert(path):
    return path.startswith("expert/")


def test_partition_and_merge_are_inverse():
    params = {"a": {"b": 1, "c": 2}, "d": 3}
    chosen, rest = states.partition(params, lambda path: path in ("a/b", "d"))
    assert chosen == {"a": {"b": 1}, "d": 3} and rest == {"a": {"c": 2}}
    assert states.merge(chosen, rest) == params


def test_create():
    mesh = meshes.make_mesh(4, 2)
    state = states.create(
        make_params(mesh), CFG, is_expert, mesh, ema=True, frozen_dtype=lambda path: jnp.bfloat16
    )
    assert (
        state.params["vlm"]["w"].dtype == jnp.bfloat16
        and state.params["expert"]["w"].dtype == jnp.float32
    )
    assert state.ema.keys() == {"expert"}
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim == 2]
    assert [m.shape for m in moments] == [(8, 2), (8, 2)]  # nothing for the frozen leaf
    # moments and average lie where their parameter lies; everything else is on the whole mesh
    for x in (*moments, state.ema["expert"]["w"]):
        assert x.sharding == state.params["expert"]["w"].sharding
    assert all(x.sharding.mesh == mesh for x in jax.tree.leaves(state))


def test_create_refuses_to_train_nothing():
    mesh = meshes.make_mesh(8, 1)
    with pytest.raises(ValueError, match="no parameter trains"):
        states.create({"w": np.ones(2)}, CFG, lambda path: False, mesh)


def test_acting_params_are_the_average():
    mesh = meshes.make_mesh(8, 1)
    params = {"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32)}
    state = states.create(params, CFG, lambda path: path == "a", mesh, ema=True)
    state = state.replace(ema={"a": state.ema["a"] + 1.0})
    acting = states.acting_params(state)
    assert (acting["a"] == 1).all() and (acting["b"] == 0).all()
    assert states.acting_params(state.replace(ema=None)) is state.params


def test_a_step_keeps_the_layout():
    mesh = meshes.make_mesh(4, 2)
    state = states.create(make_params(mesh), CFG, is_expert, mesh)
    before = states.shardings(state)
    old = state.params["expert"]["w"]

    def step(state, frozen, x):
        assert frozen.keys() == {"vlm"} and state.params.keys() == {"expert"}
        # a computation whose natural output layout is another one
        w = jax.lax.with_sharding_constraint(
            state.params["expert"]["w"] + x, meshes.replicated(mesh)
        )
        return state.replace(step=state.step + 1, params={"expert": {"w": w}}), w.sum()

    jitted = states.Step(step, is_expert, mesh)
    state, total = jitted(state, meshes.replicate(np.float32(1), mesh))
    state, total = jitted(state, meshes.replicate(np.float32(1), mesh))
    assert states.shardings(state) == before and old.is_deleted()
    assert total == 3 * 16 and state.step == 2


def test_a_step_donates_what_it_changes_and_nothing_else():
    """Who holds the frozen parameters or the anchor (an actor, another learner) goes on."""
    mesh = meshes.make_mesh(4, 2)
    state = states.create(make_params(mesh), CFG, is_expert, mesh, ema=True, anchor=True)
    held = [state.params["vlm"]["w"], state.anchor["expert"]["w"]]
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim == 2]
    given = [state.params["expert"]["w"], state.ema["expert"]["w"], *moments]
    before = jax.device_get(held)

    def step(state, frozen):
        assert state.anchor is None
        changed = jax.tree.map(lambda x: x + 1, (state.params, state.opt_state, state.ema))
        params, opt_state, ema = changed
        return state.replace(params=params, opt_state=opt_state, ema=ema), frozen["vlm"]["w"].sum()

    state, _ = states.Step(step, is_expert, mesh)(state)
    assert all(x.is_deleted() for x in given) and not any(x.is_deleted() for x in held)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(held), before)
    assert state.params["vlm"]["w"] is held[0] and state.anchor["expert"]["w"] is held[1]
    assert (state.params["expert"]["w"] == 2).all()
