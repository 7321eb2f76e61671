"""One attention, whoever computes it.

The fused kernels need a GPU; here the library's own XLA path takes their place.
"""

import functools
import types

import jax
import numpy as np
import pytest

from pirl_jax.core import mesh as meshes
from pirl_jax.core import spec
from pirl_jax.core import types as kinds
from pirl_jax.models import attention, pi0, variants


@pytest.fixture
def fused(monkeypatch):
    """A device with fused attention."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setitem(
        attention.IMPLEMENTATIONS,
        "cudnn",
        functools.partial(attention._library, implementation="xla"),
    )
    attention.tried.cache_clear()
    yield monkeypatch
    attention.tried.cache_clear()


@pytest.mark.parametrize(
    "head_dim, dtype, limit",
    [(256, "float32", 1e-5), (256, "bfloat16", 0.03), (16, "float32", 1e-5)],
)
def test_layout_and_mask_are_those_of_the_library(fused, head_dim, dtype, limit):
    """Values and gradients, many query heads to one key head, padded queries and keys."""
    assert attention.difference("cudnn", head_dim, dtype) < limit
    assert attention.fastest(head_dim, dtype) == "cudnn"


def test_what_computes_other_numbers_is_not_used(fused, caplog):

    def wrong(q, k, v, mask):
        return attention._products(q, k, v, mask | True)

    fused.setitem(attention.IMPLEMENTATIONS, "cudnn", wrong)
    assert attention.fastest(16, "float32") == "xla" and "cuDNN is off by" in caplog.text


def test_what_the_device_refuses_is_not_used(fused, caplog):
    caplog.set_level("INFO")
    fused.setitem(
        attention.IMPLEMENTATIONS,
        "cudnn",
        functools.partial(attention._library, implementation="cudnn"),
    )
    assert (
        attention.fastest(256, "bfloat16") == "xla"
        and "cuDNN refuses head_dim 256 in bfloat16" in caplog.text
    )


def test_without_a_gpu_nothing_is_tried():
    assert attention.fastest(256, "bfloat16") == "xla"


def test_the_devices_of_the_program_are_asked_and_not_those_at_hand(fused, caplog):
    caplog.set_level("INFO")
    with meshes.target(meshes.make_mesh(1, 1, jax.devices()[:1])):  # a CPU
        assert attention.fastest(16, "float32") == "xla"
    assert attention.tried.cache_info().currsize == 0
    fused.setattr(jax, "default_backend", lambda: "cpu")
    elsewhere = types.SimpleNamespace(platform="cuda")
    mesh = types.SimpleNamespace(devices=np.array([[elsewhere]]))
    with meshes.target(mesh):
        assert attention.fastest(16, "float32") == "xla"
    assert "no GPU is here to try cuDNN on" in caplog.text


def test_the_prefix_is_the_same(fused):
    """Traced from within jit, as every caller does.

    Valid tokens only, for what stands in padding is never read.
    """
    cfg = variants.pi0_config("tiny")
    params, rng = spec.init(jax.random.key(0), pi0.specs(cfg)), np.random.default_rng(0)
    obs = kinds.Observation(
        images=rng.integers(0, 256, (3, 2, *cfg.image_size, 3), np.uint8),
        image_mask=np.ones((3, 2), bool),
        state=np.zeros((3, 8), np.float32),
        tokens=rng.integers(1, 99, (3, 6)),
        token_mask=np.arange(6)[None] < np.array([[2], [6], [5]]),
    )
    one, other = (
        jax.jit(functools.partial(pi0.prefill, cfg=variants.pi0_config("tiny", attention=name)))(
            params, obs
        )
        for name in ("auto", "xla")
    )
    assert attention.tried.cache_info().currsize == 1
    for name in ("k", "v"):
        ours, theirs = (
            np.moveaxis(getattr(prefix, name), 0, 2)[np.asarray(prefix.mask)]
            for prefix in (one, other)
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
