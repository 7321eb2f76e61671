import dataclasses

import jax
import numpy as np
import pytest

from pirl_jax.core import spec
from pirl_jax.models import pi0
from pirl_jax.weights import adapters, sources, targets
from tests.models import conftest as models
from tests.weights import conftest

LORA_CASES = models.existing(["pi0_lora", "pi05_lora", "pi05_lora_expert_only"])


def case_source(case) -> sources.Source:
    return conftest.memory_source(
        {path: np.asarray(x) for path, x in spec.flatten(case.params).items()}, case.cfg
    )


@pytest.mark.parametrize("name", LORA_CASES)
def test_merged_weights_give_the_reference_velocity(vectors, name):
    """Ranks differ from alpha here, and attention and feed-forward scale differently.

    openpi's own numbers decide.
    """
    case = models.load_case(vectors, name)
    merged = adapters.merge(case_source(case))
    assert not any("lora" in path for path in merged.shapes)
    assert merged.cfg.expert.lora is None
    assert merged.cfg.paligemma.lora is None
    declared = pi0.specs(merged.cfg)
    params, notes = sources.load(merged, declared, conftest.layout(declared))
    assert not notes
    actions, noise, time = case.inputs("actions", "noise", "time")
    x = time[:, None, None] * noise + (1 - time[:, None, None]) * actions

    @jax.jit
    def velocity(params, obs, x, t):
        prefix = pi0.prefill(params, obs, merged.cfg)
        return pi0.velocity(params, prefix, x, t, merged.cfg)[0]

    expected = case.arrays["out/train/v_t"]
    atol = 3e-4 * max(1, np.abs(expected).max())
    np.testing.assert_allclose(velocity(params, case.obs, x, time), expected, atol=atol, rtol=0)


@pytest.mark.parametrize("name", LORA_CASES)
def test_merging_is_the_product_of_the_factors_to_float32(vectors, name):
    """By einsum in float64, with the reference's equations written out."""
    case = models.load_case(vectors, name)
    source = case_source(case)
    merged = adapters.merge(source)
    flat = {path: source.read(path).astype(np.float64) for path in source.shapes}
    changed = 0
    for path in merged.shapes:
        w = flat[path]
        stem = path.removesuffix("w") if path.endswith("/w") else f"{path}_"
        if f"{stem}lora_a" in flat:
            a = flat[f"{stem}lora_a"]
            b = flat[f"{stem}lora_b"]
            expert = case.cfg.expert if "_1/" in path else case.cfg.paligemma
            scale = 1.0 if "/mlp" in path else expert.lora.attn_scale
            equation = "LNhr,LMrD->LNhD" if "attn_vec" in path else "...dr,...rh->...dh"
            w = w + scale * np.einsum(equation, a, b)
            changed += 1
        np.testing.assert_allclose(merged.read(path), w, rtol=1e-5, atol=1e-6, err_msg=path)
    adapted = [cfg for cfg in (case.cfg.paligemma, case.cfg.expert) if cfg.lora is not None]
    assert changed == 5 * len(adapted)


def test_a_bfloat16_weight_is_not_rounded_again(vectors):
    source = sources.open_source(vectors / "openpi" / "orbax_pi0_lora_tiny")
    merged = adapters.merge(source)
    adapted = "PaliGemma/llm/layers/attn/q_einsum/w"
    assert source.dtypes[adapted] == "bfloat16"
    assert merged.dtypes[adapted] == np.float32
    other = "PaliGemma/llm/embedder/input_embedding"
    assert merged.dtypes[other] == source.dtypes[other]
    with pytest.raises(ValueError, match="holds no adapters; leave --merge-lora out"):
        adapters.merge(merged)


def test_adapters_alone_go_back_onto_their_base(vectors, tmp_path):
    source = sources.open_source(vectors / "openpi" / "orbax_pi0_lora_tiny")
    frozen = pi0.frozen_by_lora(source.cfg)
    alone = adapters.only(source)
    assert not set(alone.shapes) & frozen
    assert "action_in_proj/kernel" in alone.shapes
    targets.write_pirl(tmp_path, alone)
    reopened = sources.open_source(tmp_path, whole=False)
    assert reopened.cfg is None
    base = {}
    for path, shape in source.shapes.items():
        if path in frozen:
            base[path] = source.read(path)
        elif "lora" not in path:
            base[path] = np.zeros(shape, source.dtypes[path])
    whole = adapters.overlay(conftest.memory_source(base, None), reopened)
    assert whole.cfg == source.cfg
    conftest.assert_same(whole, {path: source.read(path) for path in source.shapes})


def test_adapters_of_another_base_are_an_error():
    base = conftest.random_source("tiny")
    top = conftest.random_source("tiny_pi05")
    with pytest.raises(ValueError, match=r"memory has .*time_mlp_in/bias, .*which memory lacks"):
        adapters.overlay(base, top)
    wider = dataclasses.replace(base, shapes=base.shapes | {"action_in_proj/bias": (5,)})
    with pytest.raises(ValueError, match=r"action_in_proj/bias is \[5\] and should be \[32\]"):
        adapters.overlay(base, wider)
    with pytest.raises(ValueError, match="nothing to keep apart"):
        adapters.only(base)


def test_scale_of_adapters_is_alpha_over_rank(vectors):
    source = sources.open_source(vectors / "openpi" / "orbax_pi0_lora_tiny")
    path = "PaliGemma/llm/layers/attn/q_einsum_1/w"
    base = source.read(path, np.float32)
    once = adapters.merge(source).read(path)
    thrice = adapters.merge(adapters.scaled(source, 3.0)).read(path)
    np.testing.assert_allclose(thrice - base, 3 * (once - base), atol=1e-6)
    assert np.abs(once - base).max() > 1e-5
