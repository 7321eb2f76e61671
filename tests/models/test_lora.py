import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pirl_jax.core import mesh as meshes
from pirl_jax.core import spec, types
from pirl_jax.models import linear, lora, pi0, remat, variants

ADAPTER = variants.LoraConfig(attn_rank=2, attn_alpha=3.0, ffn_rank=2)
EQUATIONS = {
    "BTD_NDH_BTNH": "BTD,NDh->BTNh",
    "BSD_2KDH_2BSKH": "BSD,ZKDh->ZBSKh",
    "BTNH_NHD_BTD": "BTNh,NhD->BTD",
}


def load(vectors, folder):
    with np.load(vectors / "openpi" / "data_small.npz") as file:
        return {
            key.removeprefix(folder): jnp.asarray(file[key])
            for key in file.files
            if key.startswith(folder)
        }


@pytest.mark.parametrize("name, equation", EQUATIONS.items())
def test_einsum_equals_the_reference(vectors, name, equation):
    arrays = load(vectors, f"lora_einsum/{name}/")
    np.testing.assert_allclose(
        lora.einsum(arrays, equation, arrays["x"], ADAPTER), arrays["out"], rtol=1e-5, atol=1e-5
    )


def test_rank_stabilised_scale_divides_by_the_root_of_the_rank(vectors):
    arrays = load(vectors, "lora_einsum/BTD_NDH_BTNH/")
    equation = EQUATIONS["BTD_NDH_BTNH"]
    base = lora.einsum(arrays, equation, arrays["x"], None)
    plain = lora.einsum(arrays, equation, arrays["x"], ADAPTER) - base
    stabilised = (
        lora.einsum(arrays, equation, arrays["x"], dataclasses.replace(ADAPTER, rslora=True)) - base
    )
    np.testing.assert_allclose(stabilised, plain * np.sqrt(2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("platform, many", [("cpu", False), ("tpu", False), ("tpu", True)])
def test_feed_forward_equals_the_reference(vectors, platform, many, monkeypatch):
    monkeypatch.setattr(meshes, "platform", lambda: platform)
    monkeypatch.setattr(linear, "_are_many", lambda x_RD: many)
    arrays = load(vectors, "lora_ffn/")
    np.testing.assert_allclose(
        lora.feed_forward(arrays, arrays["x"], ADAPTER), arrays["out"], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("adapter", [None, ADAPTER])
def test_gate_and_up_are_one_contraction_but_on_cpu(adapter, many, monkeypatch):
    """And of many rows, whose gradients never stand in one array.  No product that recomputation
    does twice; rows and tokens are one axis where they are widest."""
    monkeypatch.setattr(linear, "_are_many", lambda x_RD: many)
    params = spec.abstract(lora.feed_forward_specs(3, 8, 16, adapter))
    x_BTD = jax.ShapeDtypeStruct((2, 3, 8), jnp.float32)

    def loss(params, x_BTD):
        def layer(x_BTD, params):
            return x_BTD + lora.feed_forward(params, x_BTD, adapter), None

        return jax.lax.scan(remat.wrap(layer, "dots"), x_BTD, params)[0].sum()

    products = {}
    for platform in ("cpu", "tpu"):
        monkeypatch.setattr(meshes, "platform", lambda platform=platform: platform)
        text = str(jax.make_jaxpr(jax.grad(loss))(params, x_BTD))
        products[platform] = text.count("dot_general")
        assert ("f32[2,3,16]" in text) == (platform == "cpu")
        assert ("f32[1,8,16] = slice" in text) == (platform == "cpu" or many)
        assert ("f32[2,6,16] = " in text) == (platform == "tpu" and not many)
    pairs = 2 if adapter else 1  # the weights, and their factors A
    assert products["cpu"] - products["tpu"] == (0 if many else 3 * pairs), "forward, two gradients"


@pytest.mark.parametrize("many", [False, True])
def test_gradients_of_gate_and_up_are_those_of_two_products(many, monkeypatch):
    """And by float32 weights they are not rounded to the rows' bfloat16."""
    monkeypatch.setattr(linear, "_are_many", lambda x_RD: many)
    draw = np.random.default_rng(0)
    x_RD, *ys = (jnp.asarray(draw.normal(size=(5, size)), "bfloat16") for size in (3, 4, 4))
    w_ZDW = jnp.asarray(draw.normal(size=(2, 3, 4)), jnp.float32)

    def apart(x_RD, w_ZDW):
        return tuple(x_RD.astype(jnp.float32) @ w_DW for w_DW in w_ZDW.astype("bfloat16"))

    got, pull = jax.vjp(linear.side_by_side, x_RD, w_ZDW)
    want, pull_apart = jax.vjp(apart, x_RD, w_ZDW.astype("bfloat16").astype(jnp.float32))
    of_x, of_w = pull(tuple(ys))
    want_x, _ = pull_apart(tuple(y.astype(jnp.float32) for y in ys))
    for mine, exact in zip(got, want, strict=True):
        np.testing.assert_allclose(mine.astype(jnp.float32), exact, rtol=0.01, atol=0.03)
    np.testing.assert_allclose(of_x.astype(jnp.float32), want_x, rtol=0.01, atol=0.06)
    assert of_w.dtype == jnp.float32
    exact_w = np.stack([np.asarray(x_RD, np.float32).T @ np.asarray(y, np.float32) for y in ys])
    np.testing.assert_allclose(of_w, exact_w, rtol=1e-5, atol=1e-5)


def test_frozen_parameters_equal_the_reference(case):
    assert sorted(pi0.frozen_by_lora(case.cfg)) == sorted(
        case.settings["frozen_by_get_freeze_filter"]
    )


@pytest.mark.parametrize(
    "paligemma, expert, frozen",
    [
        ("gemma_2b_lora", "gemma_300m", 9),
        ("gemma_2b", "gemma_300m_lora", 8),
        ("gemma_2b_lora", "gemma_300m_lora", 17),
        ("gemma_2b", "gemma_300m", 0),
    ],
)
def test_number_of_frozen_leaves_of_pi0(paligemma, expert, frozen):
    cfg = variants.pi0_config(
        "pi0", paligemma=variants.GEMMA[paligemma], expert=variants.GEMMA[expert]
    )
    assert len(pi0.frozen_by_lora(cfg)) == frozen


def test_adapters_only_add_leaves():
    plain, adapted = (
        spec.flatten(pi0.specs(variants.pi0_config(name))) for name in ("pi05", "pi05_lora")
    )
    added = {path: leaf for path, leaf in adapted.items() if path not in plain}
    assert {path: adapted[path] for path in plain} == plain
    assert added and all("lora" in path for path in added)


def test_fresh_adapters_change_nothing_unless_openpis_initialisation_is_chosen():
    cfg = variants.pi0_config("pi05_lora")
    for init, factor_b in (("zeros", "zeros"), ("openpi", ("normal", 0.01))):
        added = spec.flatten(pi0.specs(variants.with_lora_init(cfg, init)))
        assert {leaf.init for path, leaf in added.items() if path.endswith("lora_a")} == {
            ("normal", 0.01)
        }
        assert {leaf.init for path, leaf in added.items() if path.endswith("lora_b")} == {factor_b}


def test_adapters_of_the_vlm_alone():
    """model.is_lora: rank and alpha are one number.

    The action expert keeps its weights and none of them is frozen by it.
    """
    cfg = variants.with_lora(variants.pi0_config("pi0"), 32)
    assert (
        cfg.paligemma.lora == variants.LoraConfig(32, 32.0, 32)
        and cfg.paligemma.lora.attn_scale == 1
        and cfg.expert.lora is None
    )
    added = (
        spec.flatten(pi0.specs(cfg)).keys()
        - spec.flatten(pi0.specs(variants.pi0_config("pi0"))).keys()
    )
    assert added and all(
        path.startswith("PaliGemma/llm/layers/") and "_1/" not in path for path in added
    )


@pytest.mark.slow
def test_adapters_train_the_same_with_recomputation():
    """gradient_checkpointing saves memory and changes nothing, adapters included."""
    rng = np.random.default_rng(0)
    base = variants.with_lora(variants.pi0_config("tiny"), 2)
    params = spec.init(
        jax.random.key(0), pi0.specs(variants.with_lora_init(base, "openpi"))
    )  # B = 0 has no gradient to A
    adapters = {path: x for path, x in spec.flatten(params).items() if "lora" in path}
    obs = types.Observation(
        images=jnp.asarray(rng.integers(0, 256, (2, 1, 16, 16, 3), np.uint8)),
        image_mask=jnp.ones((2, 1), bool),
        state=jnp.asarray(rng.normal(size=(2, 8)), jnp.float32),
        tokens=jnp.ones((2, 3), jnp.int32),
        token_mask=jnp.ones((2, 3), bool),
    )

    def gradients(policy):
        cfg = dataclasses.replace(base, remat=policy)

        def loss(adapters):
            merged = spec.unflatten(spec.flatten(params) | adapters)
            prefix = pi0.prefill(merged, obs, cfg, hidden=True)
            return (prefix.hidden**2).mean() + (prefix.hidden * jnp.arange(64)[None, None]).mean()

        return jax.jit(jax.grad(loss))(adapters)

    kept, again = gradients("none"), gradients("full")
    assert all(abs(x).max() > 0 for x in kept.values())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-8), kept, again)
