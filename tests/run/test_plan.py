"""The memory plan: its shapes are those of the run, its choices and its refusals, and full-size
plans on this machine."""

import math
import pathlib

import jax
import numpy as np
import pytest

from pirl_jax.core import mesh as meshes
from pirl_jax.core import rng
from pirl_jax.envs import base
from pirl_jax.envs.libero import files
from pirl_jax.learner import objective
from pirl_jax.recipes import probe as recipe
from pirl_jax.rollout import actor as actors
from pirl_jax.run import candidates, config, plan, policies, recipes, shapes, steps

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
ENV = base.EnvSpec("probe_conditioned", ("go",), 50, 8, 16)
PROMPT = 16


def _settings(**changes):
    settings = config.settings(recipe.get_config())
    return config.changed(
        settings,
        {"algorithm.microbatch_size": 8} | {n.replace("__", "."): x for n, x in changes.items()},
    )


@pytest.fixture(scope="module")
def mesh():
    return meshes.make_mesh(1, 1, jax.devices()[:1])


@pytest.fixture(scope="module")
def need(mesh):
    """The plan of the probe recipe, compiled once."""
    return plan.measure(_settings(rollout__prefix_cache="host"), mesh, PROMPT, ENV)


def _describe(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), tree)


@pytest.mark.parametrize("devices", [1, 8])
def test_shapes_of_the_training_state_are_those_it_will_have(devices):
    mesh = meshes.make_mesh(1, devices, jax.devices()[:devices])
    settings = _settings(
        algorithm__ema_decay=0.9, algorithm__anchor_coef=0.1, model__frozen_dtype="bfloat16"
    )
    _, declared = shapes.state(settings, mesh)
    state = steps.train_state(
        settings, policies.fresh_params(settings, mesh, jax.random.key(0)), mesh
    )
    assert _describe(declared) == _describe(state)
    assert shapes.size(declared) == sum(
        x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state)
    )


@pytest.mark.parametrize("shape, anneal", [((1, 1), False), ((2, 2), True)])
def test_the_run_uses_what_the_plan_compiled(shape, anneal):
    """Real arrays of a rollout and of an update find the executables of the plan."""
    mesh = meshes.make_mesh(*shape, jax.devices()[: math.prod(shape)])
    settings = _settings(
        rollout__prefix_cache="host",
        model__noise_anneal=anneal,
        algorithm__microbatch_size=8 // mesh.size,
    )
    plan.measure(settings, mesh, PROMPT, ENV)
    cfg = settings.policy
    rows = config.decision_batch(settings.raw, settings.raw.rollout.num_envs)
    params, state = shapes.state(settings, mesh)
    (_, _, id_B, obs, *_), _ = shapes.decision(settings, mesh, PROMPT, ENV, params)
    state = steps.train_state(
        settings, policies.fresh_params(settings, mesh, jax.random.key(0)), mesh
    )
    ones = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), (id_B, obs))
    id_B, obs = meshes.put_batch(ones, mesh)
    key = meshes.replicate(rng.named(jax.random.key(0), "actions"), mesh)
    explore, exploit = steps.decisions(cfg, settings.keep_prefix, mesh)
    actor = actors.Actor(None, (), 1, explore, exploit, put=None)
    actor, compiled = policies.at_iteration(actor, settings, 0, mesh), []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name)
    )
    chain, actions_BHA, context = actor.explore(state.params, key, id_B, obs)
    assert actions_BHA.shape == (rows, cfg.model.action_horizon, cfg.model.action_dim)
    assert not [name for name in compiled if "backend_compile" in name]
    data = objective.Minibatch(
        *jax.device_get((context, chain, chain.value, chain.value)), np.ones(rows, np.float32)
    )
    part = jax.tree.map(lambda x: x[:8], data)
    updater, compiled[:] = steps.updater(settings, mesh), []
    state, _ = updater.minibatch(state, [part, part])
    assert int(state.step) == 1
    assert (
        len([name for name in compiled if "backend_compile" in name]) == 1
    )  # the zeros that sums start from


def test_the_table_adds_up(need):
    text = str(need)
    assert need.total == sum(need.resident.values()) + max(need.work.values())
    assert (
        f"{need.total / plan.GIB:.2f} GiB of {need.limit / plan.GIB:.2f}" in text
        and "prefix cache host" in text
    )
    assert min(need.resident.values()) > 0 and min(need.work.values()) > 0
    row = (
        2 * (2 * 4 + PROMPT) * 2 * 16 * 4
    )  # keys and values of 2 layers, 1 head of 16, float32; 2 cameras of 4 patches
    assert (
        need.host == pytest.approx(64 * 2 * row, rel=0.05) and need.host >= 64 * 2 * row
    )  # mask and state come on top


def test_open_choices_are_filled_in(mesh, need):
    settings = _settings(algorithm__microbatch_size=0, model__gradient_checkpointing="none")
    chosen, made = plan.choose(settings, mesh, PROMPT, ENV)
    assert (
        (chosen.raw.algorithm.microbatch_size, chosen.prefix_cache)
        == (32, "host")
        == (made.microbatch_size, made.prefix_cache)
    )
    smaller, made = plan.choose(settings, mesh, PROMPT, ENV, limit=need.total)
    # Of which the rollout needs most: room enough for twice the rows in an update.
    assert made.fits and smaller.raw.algorithm.microbatch_size == 16


def test_prefixes_that_fit_nowhere_are_computed_again(mesh, need, monkeypatch):
    monkeypatch.setattr(plan, "HOST_SHARE", 0.9 * need.host / plan.psutil.virtual_memory().total)
    chosen, made = plan.choose(_settings(), mesh, PROMPT, ENV)
    assert chosen.prefix_cache == "recompute" and made.host < need.host
    with pytest.raises(
        ValueError,
        match="kept prefixes need .* this host can spare; this fits: "
        r"--config\.rollout\.prefix_cache=auto",
    ):
        plan.choose(_settings(rollout__prefix_cache="host"), mesh, PROMPT, ENV)


def _exhausted(*args, **kwargs):
    raise jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, 67.0G exceeds available HBM (15.75G).\nmore"
    )


def test_a_program_that_the_compiler_refuses_does_not_fit(mesh, need, monkeypatch):
    """XLA:TPU compiles nothing that is too large; the next candidate is smaller."""
    compile_ = jax.stages.Lowered.compile
    asked = []

    def compiling(lowered, options=None):
        asked.append(lowered)
        return _exhausted() if len(asked) == 3 else compile_(lowered)

    monkeypatch.setattr(jax.stages.Lowered, "compile", compiling)
    settings = _settings(
        algorithm__microbatch_size=0,
        algorithm__minibatch_size=16,
        model__gradient_checkpointing="none",
    )
    chosen, made = plan.choose(settings, mesh, PROMPT, ENV)
    assert made.fits and chosen.raw.algorithm.microbatch_size == 8
    assert len(asked) == 6


def test_where_all_are_refused_the_sentence_is_the_compiler_s(mesh, monkeypatch):
    monkeypatch.setattr(jax.stages.Lowered, "compile", _exhausted)
    with pytest.raises(
        ValueError,
        match=r"the compiler refuses the rollout: RESOURCE_EXHAUSTED: .* \(15\.75G\)\.; no choice",
    ):
        settings = _settings(
            rollout__prefix_cache="recompute",
            algorithm__microbatch_size=0,
            model__gradient_checkpointing="full",
        )
        plan.choose(settings, mesh, PROMPT, ENV)
    made = plan.measure(_settings(), mesh, PROMPT, ENV)
    assert not made.fits and "does not fit: rollout: RESOURCE_EXHAUSTED" in str(made)


def test_another_fault_of_the_compiler_is_no_matter_of_size(mesh, monkeypatch):
    def broken(*args):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    monkeypatch.setattr(jax.stages.Lowered, "compile", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL: a bug"):
        plan.choose(_settings(), mesh, PROMPT, ENV)


class _Described:
    """A device that only its compiler knows: whoever asks it for its memory is told off."""

    def __init__(self, kind):
        self.device_kind = kind
        self.client = self

    def local_devices(self):
        return []

    def memory_stats(self):
        raise jax.errors.JaxRuntimeError("MemoryStats is only supported for addressable devices")


def test_a_device_that_is_not_there_is_asked_nothing():
    assert plan.device_limit(_Described("TPU v5 lite")) == int(15.75 * plan.GIB)
    assert plan._host_memory([_Described("TPU v5 lite")]) == 512 * plan.GIB
    with pytest.raises(ValueError, match="TPU v99 exists only for its compiler and has no line"):
        plan.device_limit(_Described("TPU v99"))
    assert plan.device_limit(jax.devices()[0]) == plan.psutil.virtual_memory().total


def test_prefixes_on_the_device_count_with_what_moves_them(mesh, need):
    """And with room for groups that are replaced."""
    settings = _settings(rollout__prefix_cache="device")
    made = plan.measure(settings, mesh, PROMPT, ENV)
    assert made.resident["prefix cache"] == need.host and not made.host
    rows = shapes.kept_rows(settings, mesh, ENV)
    assert rows == 2 * settings.raw.rollout.episodes_per_iteration
    # A microbatch of rows is what comes out of a reading.
    assert made.work["reading kept prefixes"] >= 8 * need.host // rows
    assert made.work["writing kept prefixes"] > 0


@pytest.mark.slow
def test_what_does_not_fit_names_the_smallest_change(mesh, need):
    with pytest.raises(
        ValueError,
        match=r"rollout and update need .* this fits: --config\.algorithm\.microbatch_size=0$",
    ):
        plan.choose(_settings(algorithm__microbatch_size=32), mesh, PROMPT, ENV, limit=need.total)
    with pytest.raises(
        ValueError, match=r"no choice of microbatch, checkpointing or cache fits: raise mesh\.fsdp"
    ):
        plan.choose(_settings(), mesh, PROMPT, ENV, limit=10_000)


@pytest.mark.slow
def test_a_trained_vlm_keeps_no_prefix(mesh):
    chosen, made = plan.choose(_settings(model__train_expert_only=False), mesh, PROMPT, ENV)
    assert chosen.prefix_cache == "recompute" and made.resident["frozen weights"] == 0


def test_pi0_ppo_with_a_frozen_vlm_fits_24_gb(mesh):
    """At full size, from shapes."""
    settings = config.settings(recipes.load_recipe(CONFIGS / "libero_spatial_ppo_pi0_24gb.py"))
    rules = files.PROTOCOLS[settings.raw.env.protocol]
    env = base.EnvSpec(
        "libero_spatial", ("go",), 50, rules.max_episode_steps["libero_spatial"], 256
    )
    made = plan.measure(settings, mesh, 32, env, limit=24 * 10**9, thorough=True)
    assert made.total < made.limit
    assert (
        2 * 2.9e9 < made.resident["frozen weights"] < 2 * 3.0e9
    )  # bfloat16: tower 0.4e9, embedder 0.5e9, language layers 2e9
    assert made.host == pytest.approx(3072 * 544 * 18 * 2 * 256 * 2, rel=0.01)


def test_microbatches_divide_over_the_devices():
    assert list(candidates._halves(2048, 1))[:3] == [128, 64, 32]
    assert list(candidates._halves(96, 3)) == [32, 16, 8, 4, 2, 1]
    assert list(candidates._halves(2048, 8))[:2] == [128, 64]
    assert list(candidates._halves(1024, 256)) == [4, 2, 1]
    with pytest.raises(
        ValueError,
        match=r"algorithm\.minibatch_size=32 has no part that divides over the 3 devices of the",
    ):
        plan.choose(
            _settings(algorithm__microbatch_size=0),
            meshes.make_mesh(3, 1, jax.devices()[:3]),
            PROMPT,
            ENV,
        )
