"""Counts from shapes, held against three others.

XLA's own, the declared parameters, and arithmetic by hand.
"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import pytest

from pirl_jax.core import page, spec, types
from pirl_jax.learner import optimizer
from pirl_jax.learner import state as states
from pirl_jax.models import pi0, siglip, variants
from pirl_jax.policy import flops, flow
from pirl_jax.run import config, recipes

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
B = 2
TOKENS = flops.Tokens(cameras=2, prompt=16)
# XLA counts norms, softmaxes and activations too, at least 0.5 % and at most 3 % at these widths;
# never less than the products.
MOST = 1.03


def _config(pi05):
    """Wide enough for matrix products to dominate, as they do at full size."""
    paligemma, expert = (
        variants.GemmaConfig(256, 2, 1024, 4, 1, 64),
        variants.GemmaConfig(128, 2, 512, 4, 1, 64),
    )
    tower = variants.SiglipConfig(192, 2, 768, 3, 8)
    network = variants.Pi0Config(pi05, paligemma, expert, tower, 64, 8, 10, 16, (48, 48), "float32")
    model = page.Model(num_steps=3, value_after_vlm=pi05, detach_critic_input=False)
    return flow.Policy(network, model)


def _inputs(cfg):
    """Abstract Observation, Prefix, Chain of B rows."""
    m, S, array = cfg.network, TOKENS.count(cfg.network), jax.ShapeDtypeStruct
    H, A = m.action_horizon, m.action_dim
    obs = types.Observation(
        array((B, 2, *m.image_size, 3), jnp.float32),
        array((B, 2), bool),
        array((B, A), jnp.float32),
        array((B, TOKENS.prompt), jnp.int32),
        array((B, TOKENS.prompt), bool),
    )
    kv, row = array((2, B, S, 1, m.paligemma.head_dim), jnp.float32), array((B,), jnp.float32)
    prefix = pi0.Prefix(
        kv, kv, array((B, S), bool), obs.state, None, array((B, m.paligemma.width), jnp.float32)
    )
    x = array((B, 1, H, A), jnp.float32)
    return (
        obs,
        prefix,
        types.Chain(x, x, array((B, 1), jnp.int32), row, array((B, 5, 7), jnp.float32), row),
    )


def _xla(function, *args):
    """FLOPs per row of the compiled function, so that branches nobody takes are gone."""
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"] / B


def _gradient(cfg, train_expert_only, context, chain):
    learned, frozen = states.partition(
        spec.abstract(flow.specs(cfg)), optimizer.trainable(cfg.network, train_expert_only)
    )

    def loss(learned, frozen, chain, context):
        log_prob_BIa, _, value_B = flow.chain_log_prob(
            states.merge(learned, frozen), chain, context, cfg
        )
        return log_prob_BIa.sum() + value_B.sum()

    return _xla(jax.grad(loss), learned, frozen, chain, context)


@pytest.mark.parametrize("pi05", [False, True])
def test_forward_passes_are_what_xla_counts(pi05):
    cfg = _config(pi05)
    m, params = cfg.network, spec.abstract(flow.specs(cfg))
    obs, prefix, chain = _inputs(cfg)
    image, x_BHA, t_B = (
        obs.images.update(shape=(B, 48, 48, 3)),
        chain.x.update(shape=(B, 10, 8)),
        chain.level,
    )

    def encode(p, x):
        return siglip.encode(p["PaliGemma"]["img"], x, m.siglip, m.dtype, m.remat)

    for got, counted in (
        (_xla(encode, params, image), flops.vision(m)),
        (
            _xla(lambda p, obs: pi0.prefill(p, obs, m, hidden=True), params, obs),
            flops.prefix(m, TOKENS, hidden=True),
        ),
        (
            _xla(lambda *args: pi0.velocity(*args, m), params, prefix, x_BHA, t_B),
            flops.denoise(m, TOKENS.count(m)),
        ),
    ):
        assert 1.0 <= got / counted < MOST


@pytest.mark.parametrize("pi05", [False, True])
def test_an_update_with_a_kept_prefix_is_what_xla_counts(pi05):
    cfg = _config(pi05)
    _, prefix, chain = _inputs(cfg)
    got = _gradient(cfg, True, prefix, chain)
    assert 1.0 <= got / flops.update(cfg, TOKENS, "kept", conditions=cfg.model.num_steps / B) < MOST


@pytest.mark.parametrize("vlm", ["frozen", "lora", "trained"])
def test_an_update_through_the_vlm_is_what_xla_counts(vlm):
    cfg = _config(pi05=True)
    if vlm == "lora":
        cfg = dataclasses.replace(cfg, network=variants.with_lora(cfg.network, 8))
    obs, _, chain = _inputs(cfg)
    got = _gradient(cfg, vlm != "trained", obs, chain)
    assert 1.0 <= got / flops.update(cfg, TOKENS, vlm, conditions=cfg.model.num_steps / B) < MOST


@pytest.mark.parametrize("name", ["pi0", "pi05"])
def test_full_size_by_hand(name):
    """Twice the weights that a token meets, and two products of queries with keys and values."""
    m, tokens = variants.pi0_config(name), flops.Tokens(2, 32)
    S = 2 * 256 + 32
    tower = 27 * (4 * 1152**2 + 2 * 1152 * 4304) + 588 * 1152 + 1152 * 2048
    assert flops.vision(m) == 256 * 2 * tower + 27 * 4 * 256**2 * 1152
    layer = 2048 * (2 * 2048 + 2 * 256 + 3 * 16384)
    whole = 2 * flops.vision(m) + 18 * (2 * S * layer + 4 * S**2 * 2048)
    assert flops.prefix(m, tokens, hidden=True) == whole
    assert (
        flops.prefix(m, tokens, hidden=False)
        == whole - 2 * S * (layer - 2048 * 512) - 4 * S**2 * 2048
    )
    T = {"pi0": 51, "pi05": 10}[name]
    expert = 18 * (2 * T * 1024 * (2 * 2048 + 2 * 256 + 3 * 4096) + 4 * T * (S + T) * 2048)
    ends = {
        "pi0": 2 * (2 * 50 * 32 * 1024 + 50 * 3 * 1024**2 + 32 * 1024),
        "pi05": 2 * (2 * 10 * 32 * 1024 + 2 * 1024**2 + 37 * 3 * 1024**2),
    }
    assert flops.denoise(m, S) == expert + ends[name]


def test_the_weights_counted_are_the_weights_declared():
    m = variants.pi0_config("pi05")
    flat = spec.flatten(pi0.specs(m))
    layers = {
        path: leaf for path, leaf in flat.items() if "/llm/layers/" in path and "norm" not in path
    }
    of_vlm = spec.count(
        {
            path: leaf
            for path, leaf in layers.items()
            if not path.split("/")[-2].endswith("_1") and "_1/" not in path
        }
    )
    assert flops.language(m.paligemma, 1, 0) == 2 * of_vlm
    assert flops.language(m.expert, 1, 0) == 2 * (spec.count(layers) - of_vlm)


RECIPES = [
    f"libero_{suite}_{algorithm}_{model}"
    for suite in ("spatial", "object", "goal", "10")
    for algorithm in ("ppo", "grpo")
    for model in ("pi0", "pi05")
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_the_recipes_save(recipe):
    """An update does at least 15 times less arithmetic.

    A decision of the rollout 1.4 (pi0) and 1.6 (pi0.5) times less.
    """
    settings = config.settings(recipes.load_recipe(CONFIGS / f"{recipe}.py"))
    saved = flops.savings(settings.policy, flops.Tokens(2, 32), "kept", batch=32)
    assert saved["update"]["ratio"] > (200 if settings.policy.network.pi05 else 37)
    assert saved["rollout"]["ratio"] > (1.7 if settings.policy.network.pi05 else 1.5)


def test_an_unknown_treatment_of_the_vlm_is_a_sentence():
    with pytest.raises(
        ValueError, match="vlm='warm' does not exist; choose one of: kept, frozen, lora, trained"
    ):
        flops.update(_config(False), TOKENS, "warm")
