"""One attention, whoever computes it.

The fused kernels need a GPU; here the library's own XLA path takes their place.
"""

import functools
import types

import jax
import jax.numpy as jnp
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


def _case():
    """Queries, keys, values; what is seen; a cotangent."""
    draw = np.random.default_rng(0)
    shapes = ((2, 6, 8, 16), (2, 9, 1, 16), (2, 9, 1, 16), (2, 6, 8, 16))
    *inputs, cotangent = (jnp.asarray(draw.standard_normal(shape), jnp.float32) for shape in shapes)
    query_BT = jnp.asarray(draw.integers(0, 3, (2, 6)), jnp.int32)
    key_BS = jnp.asarray(draw.integers(0, 4, (2, 9)), jnp.int32).at[:, 0].set(0)
    return inputs, attention.Sight(query_BT, key_BS), cotangent


def test_nothing_as_large_as_the_logits_is_kept_for_the_gradient():
    """Of all heads, in every layer; and the gradient is that of a selection all the same."""
    (q, k, v), sight, cotangent = _case()

    def by_selection(q, k, v):
        logits = jnp.einsum("BTNh,BSKh->BNTS", q, k)
        logits = jnp.where(sight.mask_BTS[:, None], logits, attention._MASKED)
        return jnp.einsum("BNTS,BSKh->BTNh", jax.nn.softmax(logits), v)

    def ours(q, k, v):
        return attention.attend(q, [(k, v)], sight, "xla")

    out, pull = jax.vjp(ours, q, k, v)
    want, pull_back = jax.vjp(by_selection, q, k, v)
    logits = 2 * 8 * 6 * 9

    def as_large(pull):
        return [x for x in jax.tree.leaves(pull) if x.size == logits]

    assert as_large(pull_back) and not as_large(pull)
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(pull(cotangent), pull_back(cotangent), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_keys_in_parts_are_keys_together_and_a_part_has_a_gradient_of_its_own():
    """Own keys behind those of a prefix, which needs none."""
    (q, k, v), sight, cotangent = _case()

    def in_parts(k_past, v_past, k_own, v_own):
        return attention.attend(q, [(k_past, v_past), (k_own, v_own)], sight, "xla")

    parts = (k[:, :7], v[:, :7], k[:, 7:], v[:, 7:])
    out, pull = jax.vjp(in_parts, *parts)
    want, pull_back = jax.vjp(lambda k, v: attention.attend(q, [(k, v)], sight, "xla"), k, v)
    np.testing.assert_array_equal(out, want)
    k_past, v_past, k_own, v_own = pull(cotangent)
    of_k, of_v = pull_back(cotangent)
    np.testing.assert_allclose(jnp.concatenate([k_past, k_own], axis=1), of_k, rtol=1e-5)
    np.testing.assert_allclose(jnp.concatenate([v_past, v_own], axis=1), of_v, rtol=1e-5)

    def flops(*by):
        def slopes(*parts):
            return jax.grad(lambda *parts: in_parts(*parts).sum(), by)(*parts)

        return jax.jit(slopes).lower(*parts).compile().cost_analysis()["flops"]

    saved = 2 * 2 * 2 * 8 * 6 * 7 * 16  # two products of queries and the prefix
    assert flops(0, 1, 2, 3) - flops(2, 3) == pytest.approx(saved, rel=0.1)


def test_what_computes_other_numbers_is_not_used(fused, caplog):

    def wrong(q, k, v, sight):
        everything = sight._replace(query_BT=sight.query_BT + 9)
        return attention._products(q, k, v, everything)

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
