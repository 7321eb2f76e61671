import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from pirl_jax.core import spec
from pirl_jax.models import lora
from pirl_jax.models import pi0
from pirl_jax.models import variants

ADAPTER = variants.LoraConfig(attn_rank=2, attn_alpha=3.0, ffn_rank=2)
EQUATIONS = {"BTD_NDH_BTNH": "BTD,NDh->BTNh", "BSD_2KDH_2BSKH": "BSD,ZKDh->ZBSKh", "BTNH_NHD_BTD": "BTNh,NhD->BTD"}


def load(vectors, folder):
    with np.load(vectors / "openpi" / "data_small.npz") as file:
        return {key.removeprefix(folder): jnp.asarray(file[key]) for key in file.files if key.startswith(folder)}


@pytest.mark.parametrize("name, equation", EQUATIONS.items())
def test_einsum_equals_the_reference(vectors, name, equation):
    arrays = load(vectors, f"lora_einsum/{name}/")
    np.testing.assert_allclose(lora.einsum(arrays, equation, arrays["x"], ADAPTER), arrays["out"], rtol=1e-5, atol=1e-5)


def test_rank_stabilised_scale_divides_by_the_root_of_the_rank(vectors):
    arrays = load(vectors, "lora_einsum/BTD_NDH_BTNH/")
    equation = EQUATIONS["BTD_NDH_BTNH"]
    base = lora.einsum(arrays, equation, arrays["x"], None)
    plain = lora.einsum(arrays, equation, arrays["x"], ADAPTER) - base
    stabilised = lora.einsum(arrays, equation, arrays["x"], dataclasses.replace(ADAPTER, rslora=True)) - base
    np.testing.assert_allclose(stabilised, plain * np.sqrt(2), rtol=1e-4, atol=1e-5)


def test_feed_forward_equals_the_reference(vectors):
    arrays = load(vectors, "lora_ffn/")
    np.testing.assert_allclose(lora.feed_forward(arrays, arrays["x"], ADAPTER), arrays["out"], rtol=1e-5, atol=1e-5)


def test_frozen_parameters_equal_the_reference(case):
    assert sorted(pi0.frozen_by_lora(case.cfg)) == sorted(case.settings["frozen_by_get_freeze_filter"])


@pytest.mark.parametrize("paligemma, expert, frozen", [
    ("gemma_2b_lora", "gemma_300m", 9), ("gemma_2b", "gemma_300m_lora", 8),
    ("gemma_2b_lora", "gemma_300m_lora", 17), ("gemma_2b", "gemma_300m", 0)])
def test_number_of_frozen_leaves_of_pi0(paligemma, expert, frozen):
    cfg = variants.pi0_config("pi0", paligemma=variants.GEMMA[paligemma], expert=variants.GEMMA[expert])
    assert len(pi0.frozen_by_lora(cfg)) == frozen


def test_adapters_only_add_leaves():
    plain, adapted = (spec.flatten(pi0.specs(variants.pi0_config(name))) for name in ("pi05", "pi05_lora"))
    added = {path: leaf for path, leaf in adapted.items() if path not in plain}
    assert {path: adapted[path] for path in plain} == plain
    assert all("lora" in path and leaf.init == ("normal", 0.01) for path, leaf in added.items())
