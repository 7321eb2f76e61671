"""Every field of the page has a test that sees it off its neutral value.

The table at the end names the test of each field, and the last tests hold the table against the page and against the source of
the tests. Before it: the fields of which nothing but the way from the page to their user can be tested here.
"""

import ast
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base, quickstart
from configs import probe as recipe
from pirl_jax.core import types
from pirl_jax.envs import experts
from pirl_jax.learner import sft
from pirl_jax.models import pi0
from pirl_jax.policy import flow
from pirl_jax.rollout import starts
from pirl_jax.run import config, simulators, steps, teach

TESTS = pathlib.Path(__file__).parents[1]


def changed(page, **fields):
    """The page with {section__field: value}, checked."""
    for name, value in fields.items():
        section, field = name.split("__")
        page[section][field] = value
    return config.settings(page)


# ---- the way from the page to its users ---------------------------------------------------------


def test_sizes_of_the_network():
    model = changed(
        recipe.get_config(),
        model__action_dim=9,
        model__action_horizon=6,
        model__max_token_len=21,
        model__image_size_px=24,
        model__lora_rank=3,
        model__is_lora=True,
        model__lora_init="openpi",
        model__gradient_checkpointing="dots",
        model__attention="xla",
        model__value_hidden=(5, 4),
        model__pi05=True,
        model__dtype="bfloat16",
    ).policy.model
    assert (model.action_dim, model.action_horizon, model.max_token_len) == (9, 6, 21)
    assert model.image_size == (24, 24) and (model.remat, model.attention) == ("dots", "xla")
    assert (model.pi05, model.dtype) == (True, "bfloat16")
    lora = model.paligemma.lora
    assert (lora.attn_rank, lora.ffn_rank, lora.init) == (3, 3, "openpi")
    assert lora.attn_scale == 1.0


POLICY = dict(
    num_steps=3,
    noise_method="flow_cps",
    noise_level=0.3,
    noise_logvar_range=(0.2, 0.4),
    joint_logprob=True,
    joint_mean=True,
    action_chunk=2,
    action_env_dim=6,
    value_hidden=(5, 4),
    value_after_vlm=True,
    value_vlm_mode="last_token",
    detach_critic_input=True,
    chunk_critic_input=True,
)


@pytest.mark.parametrize("field", POLICY)
def test_fields_of_the_policy_reach_it(field):
    settings = changed(recipe.get_config(), **{f"model__{field}": POLICY[field]})
    plain = config.settings(recipe.get_config())
    assert getattr(settings.policy, field) == POLICY[field] != getattr(plain.policy, field)


def test_fields_of_the_optimiser_reach_it():
    values = dict(
        lr=0.1,
        value_lr=0.2,
        b1=0.3,
        b2=0.4,
        eps=0.5,
        weight_decay=0.6,
        clip_grad=0.7,
        schedule="cosine",
        warmup_steps=8,
        decay_steps=90,
        min_lr_ratio=0.11,
    )
    optim = changed(recipe.get_config(), **{f"optim__{k}": v for k, v in values.items()}).optim
    assert {name: getattr(optim, name) for name in values} == values


def test_fields_of_sft_reach_its_steps():
    settings = changed(
        quickstart.get_config(),
        sft__lr=0.1,
        sft__weight_decay=0.2,
        sft__warmup_steps=3,
        sft__steps=40,
        sft__ema=0.9,
        sft__augment=True,
    ).sft
    optim = settings.optimizer
    assert (optim.lr, optim.weight_decay, optim.warmup_steps, optim.decay_steps) == (
        0.1,
        0.2,
        3,
        40,
    )
    assert (settings.ema_decay, settings.augment) == (0.9, True)


@pytest.fixture
def simulators_asked(monkeypatch):
    """What the suites and the pool are asked for; nothing starts."""
    asked = {}

    class Pool:
        def __init__(self, make_env, num_envs, num_workers, **kwargs):
            asked["pool"] = dict(num_envs=num_envs, num_workers=num_workers, **kwargs)

        def __enter__(self):
            raise KeyboardInterrupt

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(simulators.pools, "EnvPool", Pool)
    monkeypatch.setattr(simulators, "_check_machine", lambda *args: {})
    monkeypatch.setattr(simulators.backends, "require", lambda backend: None)
    return asked


def test_fields_of_the_simulators_reach_the_suite(simulators_asked):
    settings = changed(
        base.get_config(),
        env__image_size_px=40,
        env__max_episode_steps=33,
        env__render_quality="light",
        env__cached_tasks=5,
        env__protocol="openpi",
        env__assets="/somewhere",
    )
    make_env = simulators.env_factory(settings)
    assert isinstance(make_env, functools.partial) and make_env.args == ("libero_spatial",)
    assert make_env.keywords == dict(
        assets="/somewhere",
        image_size_px=40,
        max_episode_steps=33,
        protocol="openpi",
        render_quality="light",
        cached_tasks=5,
    )
    settings = changed(
        quickstart.get_config(),
        env__image_size_px=40,
        env__max_episode_steps=33,
        env__render_quality="light",
        env__spread=0.4,
    )
    assert simulators.env_factory(settings).keywords == dict(
        image_size_px=40, max_episode_steps=33, render_quality="light", spread=0.4
    )


def test_fields_of_the_pool_reach_it(simulators_asked):
    values = dict(
        timeout_s=7.0,
        restarts_per_hour=3,
        recycle_episodes=11,
        recycle_growth_gb=0.25,
        render_devices=(1, 0),
    )
    fields = {f"env__{name}": value for name, value in values.items()}
    settings = changed(recipe.get_config(), env__num_workers=4, **fields)
    with pytest.raises(KeyboardInterrupt), simulators.open_envs(settings, 6):
        pass
    assert simulators_asked["pool"] == dict(num_envs=6, num_workers=4) | values


def test_demonstrations_are_disturbed_and_drawn_as_the_page_says(monkeypatch, simulators_asked):
    """Noise, seed, number and training states reach the expert; another seed draws other states."""
    asked = []

    class Here:
        """Runs at once, in this process."""

        def __init__(self, *args, **kwargs):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def submit(self, work, *args):
            result = work(*args)
            return type("Done", (), dict(result=lambda self: result))()

    class Env:
        def close(self):
            pass

    def collect(env, task, init_states, seed, noise):
        asked.append((task, init_states, seed, noise))
        return [{"success": True}] * len(init_states)

    monkeypatch.setattr(teach.concurrent.futures, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(simulators, "env_factory", lambda settings: Env)
    monkeypatch.setattr(experts, "collect_demonstrations", collect)
    chosen, drawn = starts.Starts((0, 2), range(10, 40), range(40, 50)), []
    for seed in (1, 2):
        page = quickstart.get_config()
        page.seed = seed
        settings = changed(page, sft__demonstrations=6, sft__action_noise=0.3, env__num_workers=2)
        assert len(teach.collect(settings, chosen)) == 12
        assert [(task, len(states)) for task, states, *_ in asked] == [
            (0, 3),
            (0, 3),
            (2, 3),
            (2, 3),
        ]
        assert {(given, noise) for _, _, given, noise in asked} == {(seed, 0.3)}
        drawn += [tuple(asked[i][1] + asked[i + 1][1]) for i in (0, 2)]
        asked.clear()
    assert all(len(set(states)) == 6 and set(states) <= set(range(10, 40)) for states in drawn)
    assert len(set(drawn)) == 4, "seed and task both count"


def test_demonstrations_of_a_batch_are_drawn_by_the_key():
    encoded = np.arange(50), np.arange(50)
    drawn = {}
    for key in (0, 1):
        batches = teach.batches(encoded, 8, jax.random.key(key))
        drawn[key] = [tuple(next(batches)[0]) for _ in range(2)]
    assert len({*drawn[0], *drawn[1]}) == 4 and len(drawn[0][0]) == 8


# ---- who draws which noise ----------------------------------------------------------------------


def test_every_decision_draws_by_its_number_and_the_key(monkeypatch):
    """Explore and exploit; the keys of the rows stand where actions should."""
    seen = lambda key_B: jax.random.key_data(key_B)[:, 0]  # noqa: E731
    monkeypatch.setattr(flow, "prefill", lambda *args: None)
    monkeypatch.setattr(pi0, "prefill", lambda *args, **kwargs: None)
    monkeypatch.setattr(flow, "sample_chain", lambda p, key_B, *args: (None, seen(key_B)))
    monkeypatch.setattr(flow, "sample_actions", lambda p, key_B, *args: seen(key_B))
    settings = changed(recipe.get_config(), model__noise_level=0.123)
    explore, exploit = steps.decisions.__wrapped__(settings.policy, False)
    for decide in (lambda *args: explore(*args)[1], exploit):
        one, other = (
            np.asarray(decide(None, jax.random.key(key), np.array([3, 4, 3]), None))
            for key in (0, 1)
        )
        assert one[0] == one[2] != one[1] and (one != other).all()


def test_the_anchor_measures_what_the_page_says(monkeypatch):
    """And against the anchor's own steps, without a gradient into them."""
    ones = jnp.ones((2, 3, 8))

    def chain_steps(params, *args):
        step = flow.Step(
            velocity=params * ones, mean=3 * params * ones, std=ones, value=ones[:, 0, 0]
        )
        return [step, step]

    monkeypatch.setattr(flow, "chain_steps", chain_steps)
    chain = types.Chain(
        x=jnp.zeros((2, 2, 3, 8)),
        x_next=jnp.zeros((2, 2, 3, 8)),
        j=jnp.zeros((2, 2), int),
        level=jnp.ones(2),
        log_prob=None,
        value=None,
    )
    want = {"velocity_mse": 4.0, "kl": 2 * 2 * 7 * 36 / 2}
    for anchor, value in want.items():
        settings = changed(recipe.get_config(), algorithm__anchor=anchor, model__action_chunk=2)
        log_prob = steps.log_prob_fn(settings)
        *_, distance_B = log_prob(jnp.float32(3.0), chain, None, jnp.float32(1.0))
        np.testing.assert_allclose(distance_B, [value] * 2, rtol=1e-6)
        assert log_prob(jnp.float32(3.0), chain, None)[3] == 0.0
        into_anchor = jax.grad(lambda a, f=log_prob: f(jnp.float32(3.0), chain, None, a)[3].sum())
        assert into_anchor(jnp.float32(1.0)) == 0.0


def test_the_sft_term_of_a_run_draws_by_its_seed(monkeypatch):
    seeds = []
    monkeypatch.setattr(sft, "make_loss", lambda cfg, seed: seeds.append(seed))
    for seed in (5, 6):
        page = recipe.get_config()
        page.seed = seed
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "fsdp"))
        steps.updater.__wrapped__(config.settings(page), mesh)
    assert seeds == [5, 6]
