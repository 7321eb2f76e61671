import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from pirl_jax.core import spec

SPECS = {
    "dense": {
        "kernel": spec.Spec((64, 128), ("embed", "mlp"), ("lecun", 64)),
        "bias": spec.Spec((128,), ("mlp",)),
    },
    "table": spec.Spec((100, 64), ("vocab", "embed"), ("normal", 0.01), jnp.bfloat16),
    "square": spec.Spec((2, 60, 60), ("layers", "embed", "mlp"), ("xavier", 60, 60)),
    "scale": spec.Spec((7,), ("embed",), "ones"),
}


def test_shapes_dtypes_and_count_agree():
    params, shapes = spec.init(jax.random.key(0), SPECS), spec.abstract(SPECS)
    assert jax.tree.map(lambda p: (p.shape, p.dtype), params) == jax.tree.map(
        lambda s: (s.shape, s.dtype), shapes
    )
    assert spec.count(SPECS) == 64 * 128 + 128 + 100 * 64 + 2 * 60 * 60 + 7


def test_initialisers_have_the_promised_spread():
    params = spec.init(jax.random.key(0), SPECS)
    np.testing.assert_allclose(params["dense"]["kernel"].std(), 1 / 8, rtol=0.03)
    assert (
        np.abs(params["dense"]["kernel"]).max() <= 2 / 8 / 0.8796
    )  # cut at two standard deviations
    np.testing.assert_allclose(params["table"].astype(jnp.float32).std(), 0.01, rtol=0.03)
    limit = np.sqrt(6 / 120)
    assert 0.98 * limit < np.abs(params["square"]).max() <= limit
    assert not params["dense"]["bias"].any() and (params["scale"] == 1).all()


def test_a_new_leaf_leaves_the_others_alone():
    more = {"new": spec.Spec((3,), (None,), ("normal", 1.0)), **SPECS}
    before, after = (spec.flatten(spec.init(jax.random.key(0), specs)) for specs in (SPECS, more))
    for path, leaf in before.items():
        np.testing.assert_array_equal(leaf, after[path])
    assert not np.array_equal(before["square"][0], before["square"][1])


def test_flatten_round_trip():
    flat = spec.flatten(SPECS)
    assert list(flat) == ["dense/kernel", "dense/bias", "table", "square", "scale"]
    assert spec.unflatten(flat) == SPECS


def test_shardings_follow_the_rules_where_sizes_divide():
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    rules = {"embed": "fsdp", "mlp": "fsdp", "vocab": ("data", "fsdp"), "layers": "data"}
    placed = spec.flatten(spec.shardings(SPECS, mesh, rules))
    assert {path: s.spec for path, s in placed.items()} == {
        "dense/kernel": PartitionSpec("fsdp", None),  # fsdp is taken by the first axis
        "dense/bias": PartitionSpec("fsdp"),
        "table": PartitionSpec(None, "fsdp"),  # 100 does not divide by 8
        "square": PartitionSpec("data", "fsdp", None),
        "scale": PartitionSpec(None),  # 7 does not divide by 4
    }


def test_sharded_init_equals_plain_init():
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    placed = spec.shardings(SPECS, mesh, [("embed", "fsdp")])
    params = spec.init(jax.random.key(0), SPECS, placed)
    assert params["dense"]["kernel"].sharding == placed["dense"]["kernel"]
    jax.tree.map(np.testing.assert_array_equal, params, spec.init(jax.random.key(0), SPECS))


def test_mistakes_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match="one logical axis per dimension"):
        spec.Spec((2, 3), ("embed",))
    with pytest.raises(ValueError, match=r"initialiser='he' does not exist.*lecun"):
        spec.Spec((2,), ("embed",), "he")
