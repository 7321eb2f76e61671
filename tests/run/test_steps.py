"""What the compiled functions make of the parameters: which of them may be stored rounded."""

import math
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pirl_jax.core import mesh as meshes
from pirl_jax.core import spec
from pirl_jax.learner import state as states
from pirl_jax.models import pi0
from pirl_jax.policy import flow
from pirl_jax.recipes import probe as recipe
from pirl_jax.run import config, policies, shapes, steps
from pirl_jax.weights import frozen, sources, store

MESH = meshes.make_mesh(1, 1, jax.devices()[:1])
PLACES = {"slice", "squeeze", "reshape", "dynamic_slice", "gather", "transpose"}


def _settings(**changes):
    page = recipe.get_config()
    page.model.update(dtype="bfloat16", **changes)
    return config.settings(page)


def _inner(eqn):
    """(jaxpr, its inputs as those of the equation) of every function that an equation calls."""
    for value in jax.tree.leaves(
        list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
    ):
        inner = getattr(value, "jaxpr", value)
        if hasattr(inner, "eqns"):
            yield inner, eqn.invars[-len(inner.invars) :]


def _uses(jaxpr, var, found):
    """Types to which a variable is cast; "itself" where something else becomes of it."""
    for eqn in jaxpr.eqns:
        if not any(x is var for x in eqn.invars):
            continue
        inner = list(_inner(eqn))
        if eqn.primitive.name == "convert_element_type":
            found.add(str(eqn.params["new_dtype"]))
        elif eqn.primitive.name in PLACES:
            _uses(jaxpr, eqn.outvars[0], found)
        elif not inner:
            found.add("itself")
        for called, inputs in inner:
            for own, outer in zip(called.invars, inputs, strict=True):
                if outer is var:
                    _uses(called, own, found)


def _uses_of(function, params, *rest):
    """Path -> what `function` makes of the parameter."""
    jaxpr = jax.make_jaxpr(function)(params, *rest).jaxpr
    uses = {}
    for path, var in zip(spec.flatten(params), jaxpr.invars, strict=False):
        _uses(jaxpr, var, uses.setdefault(path, set()))
    return uses


@pytest.mark.parametrize("pi05", [False, True])
def test_what_is_stored_rounded_is_cast_before_every_use_and_nothing_else_is(pi05):
    """Rollout, evaluation and server, update: hence the same bits out."""
    settings = _settings(pi05=pi05)
    declared = flow.specs(settings.policy)
    params, _ = shapes.state(settings, MESH)
    as_stored = spec.abstract(declared)
    env_spec = types.SimpleNamespace(cameras=("a",), image_size_px=16)
    args, context = shapes.decision(settings, MESH, 16, env_spec, params)
    _, key, id_B, obs, *_ = args
    explore, exploit = steps.decisions(settings.policy, settings.keep_prefix, MESH)
    chain, actions_BHA, _ = jax.eval_shape(explore, *args)
    log_prob = steps.log_prob_fn(settings)
    imitation = steps.imitation_fn(settings)

    def update(params, chain, context):
        return jax.tree.map(jnp.sum, log_prob(params, chain, context)[:3])

    number = jax.ShapeDtypeStruct((), jnp.int32)
    consumers = [
        _uses_of(explore, as_stored, key, id_B, obs),
        _uses_of(exploit, as_stored, key, id_B, obs),
        _uses_of(update, as_stored, chain, context),
        _uses_of(update, as_stored, chain, obs),
        _uses_of(imitation, as_stored, actions_BHA, context, number, number),
        _uses_of(steps.displacement(settings.policy, MESH), as_stored, chain, obs),
    ]
    for path in spec.flatten(as_stored):
        uses = set().union(*(consumer[path] for consumer in consumers))
        assert pi0.is_rounded(path) == (uses == {"bfloat16"}), f"{path}: {uses}"


@pytest.mark.parametrize("pi05", [False, True])
def test_what_is_cast_once_per_minibatch_gives_the_same_sums(pi05):
    settings = _settings(pi05=pi05, train_expert_only=False)
    state = steps.train_state(
        settings, policies.fresh_params(settings, MESH, jax.random.key(0)), MESH
    )
    updater = steps.updater(settings, MESH)
    rounded = updater.rounded(state)
    types_of = {path: str(x.dtype) for path, x in spec.flatten(rounded.params).items()}
    assert types_of == {path: steps.used_dtype(settings, path) for path in types_of}
    own = updater.rounded.own(state)
    assert set(spec.flatten(own)) == {path for path in types_of if types_of[path] != "float32"}

    env_spec = types.SimpleNamespace(cameras=("a",), image_size_px=16)
    args, context = shapes.decision(settings, MESH, 16, env_spec, state.params)
    _, batch = shapes.update(settings, MESH, state, args, context)
    draw = np.random.default_rng(0)

    def drawn(x):
        if x.dtype == bool or np.issubdtype(x.dtype, np.integer):
            return np.ones(x.shape, x.dtype)
        return draw.uniform(0.1, 0.9, x.shape).astype(x.dtype)

    batch = jax.tree.map(drawn, batch)
    plain, _ = updater.add(state, None, batch)
    sums, _ = updater.add(rounded, None, batch)
    assert {x.dtype for x in jax.tree.leaves(sums.grads)} == {jnp.dtype("float32")}
    for path, x in spec.flatten(plain.grads).items():
        np.testing.assert_array_equal(x, spec.flatten(sums.grads)[path], path)
    assert any(np.abs(x).max() > 0 for x in jax.tree.leaves(sums.grads))


def test_a_run_gives_back_the_frozen_weights_in_float32(tmp_path):
    """Written once, named by every checkpoint; who wants bfloat16 does not need them."""
    settings = _settings()
    params = policies.fresh_params(settings, MESH, jax.random.key(0))
    before = jax.device_get(spec.flatten(params))
    policies.keep_exact(settings, params, tmp_path / "run")
    state = steps.train_state(settings, params, MESH)
    learned, kept = states.partition(state.params, steps.trainable(settings))
    for path, x in spec.flatten(kept).items():
        assert x.dtype == (jnp.bfloat16 if pi0.is_rounded(path) else jnp.float32)
    assert {x.dtype for x in jax.tree.leaves(learned)} == {jnp.dtype("float32")}
    saved = store.Store(tmp_path / "run" / "checkpoints")
    for iteration in (0, 3):
        saved.save(iteration, state)
    saved.close()
    source = sources.open_source(tmp_path / "run", settings.policy.network)
    for path, x in before.items():
        np.testing.assert_array_equal(source.read(path), x)

    (tmp_path / "run" / frozen.FOLDER).rename(tmp_path / "run" / "elsewhere")
    acting, _ = sources.load(source, steps.acting_specs(settings), _layout(settings))
    for path, x in spec.flatten(acting).items():
        np.testing.assert_array_equal(x, before[path].astype(x.dtype))
    source = sources.open_source(tmp_path / "run", settings.policy.network)
    with pytest.raises(ValueError, match=r"in bfloat16, and .*frozen, .* is not there; copy it"):
        sources.load(source, flow.specs(settings.policy), _layout(settings))
    # Before a run directory of another run is made.
    starting = config.changed(settings, {"model.checkpoint": str(tmp_path / "run")})
    with pytest.raises(ValueError, match=r"in bfloat16, and .*frozen, .* is not there; copy it"):
        policies.check_start(starting)
    # A run that goes on without them still says that its weights are rounded.
    again = store.Store(tmp_path / "run" / "checkpoints")
    again.restore(state)
    again.save(4, state)
    again.close()
    source = sources.open_source(tmp_path / "run", settings.policy.network)
    with pytest.raises(ValueError, match=r"checkpoints.4 keeps .*frozen, .* is not there; copy it"):
        source.read("PaliGemma/img/head/kernel")
    other = store.Store(tmp_path / "run" / frozen.FOLDER)
    other.save(0, {"params": {"w": np.ones(3, np.float32)}})
    other.close()
    with pytest.raises(ValueError, match=r"does not hold the frozen weights of .*checkpoints.4;"):
        source.read("PaliGemma/img/head/kernel")


@pytest.mark.parametrize("frozen_dtype", ["float32", "bfloat16"])
def test_what_acts_from_a_checkpoint_is_what_was_trained(tmp_path, frozen_dtype):
    """Not the weights before they were rounded: the run learned with the rounded ones."""
    settings = _settings(frozen_dtype=frozen_dtype)
    params = policies.fresh_params(settings, MESH, jax.random.key(0))
    policies.keep_exact(settings, params, tmp_path / "run")
    state = steps.train_state(settings, params, MESH)
    saved = store.Store(tmp_path / "run" / "checkpoints")
    saved.save(0, state)
    saved.close()
    acting, _ = policies.load_policy(settings, tmp_path / "run", -1, MESH, acts=True)
    trained = spec.flatten(state.params)
    for path, x in spec.flatten(acting).items():
        np.testing.assert_array_equal(x, trained[path].astype(x.dtype), err_msg=path)


def _lowered_decision(settings, mesh):
    params, _ = shapes.state(settings, mesh)
    env_spec = types.SimpleNamespace(cameras=("a",), image_size_px=16)
    args, _ = shapes.decision(settings, mesh, 16, env_spec, params)
    explore, _ = steps.decisions(settings.policy, settings.keep_prefix, mesh)
    return explore, args


@pytest.mark.parametrize("pi05", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_split_weights_come_together_once_and_nothing_computed_travels(pi05):
    """One decision where fsdp=8; not even in the loop over denoise steps."""
    page = recipe.get_config()
    page.model.pi05 = pi05
    settings = config.settings(page)
    mesh = meshes.make_mesh(1, 8)
    explore, args = _lowered_decision(settings, mesh)
    gathered = 0
    for line in explore.lower(*args).compile().as_text().splitlines():
        found = COLLECTIVE.search(line)
        if not found:
            continue
        kind = found["kind"]
        assert kind == "all-gather" or "/gather" in line, f"tokens' embeddings alone: {line}"
        assert "while/body" not in line, line
        if kind == "all-gather" and "/gather" not in line:
            gathered += 4 * math.prod(int(size) for size in found["shape"].split(",") if size)
    split = 0
    for path, x in spec.flatten(args[0]).items():
        is_table = "input_embedding" in path
        if x.sharding.shard_shape(x.shape) != x.shape and not is_table:
            split += 4 * x.size
    # Less: keys and values alone are wanted of the last layer of the prefix.
    assert 0.5 * split < gathered < 1.1 * split


COLLECTIVE = re.compile(
    r"= \(?f32\[(?P<shape>[\d,]*)\]\S* .*?"
    r"(?P<kind>all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)(-start)?\("
)


@pytest.mark.slow
@pytest.mark.parametrize("pi05", [False, True])
def test_split_weights_decide_as_whole_ones_do(pi05):
    page = recipe.get_config()
    page.model.pi05 = pi05
    settings = config.settings(page)
    decided = []
    for mesh in (MESH, meshes.make_mesh(2, 4)):
        explore, args = _lowered_decision(settings, mesh)
        params = policies.fresh_params(settings, mesh, jax.random.key(0))
        key = meshes.replicate(jax.random.key(1), mesh)
        draw = np.random.default_rng(0)

        def some(x, draw=draw):
            return (draw.random(x.shape) * 9).astype(x.dtype)

        id_B, obs = meshes.put_batch(jax.tree.map(some, args[2:]), mesh)
        decided.append(np.asarray(explore(params, key, id_B, obs)[1]))
    np.testing.assert_allclose(*decided, rtol=1e-4, atol=1e-5)


def _layout(settings):
    return spec.shardings(flow.specs(settings.policy), MESH, meshes.RULES)


def test_float32_networks_keep_nothing_beside_their_checkpoints():
    settings = config.settings(recipe.get_config())
    params = spec.abstract(flow.specs(settings.policy))
    assert not steps.rounded(settings, params)
