import json

import analytic_network
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_files

from pirl_jax.core import spec
from pirl_jax.models import heads


@pytest.fixture(scope="module")
def arrays(vectors):
    with np.load(vectors / "rlinf" / "d_heads.npz") as file:
        return {name: file[name] for name in file.files}


def read(arrays, case, prefix="in/value_head."):
    """The reference numbers its linear layers 0, 2, 4, ... and stores weights as [out,in]."""
    weights = [
        name
        for name in arrays
        if name.startswith(f"{case}/{prefix}mlp") and name.endswith("weight")
    ]
    numbers = sorted(int(name.split(".")[-2]) for name in weights)
    names = [*(f"layer_{i}" for i in range(len(numbers) - 1)), "out"]
    head = {}
    for name, number in zip(names, numbers, strict=True):
        weight = arrays[f"{case}/{prefix}mlp.{number}.weight"]
        bias = arrays.get(f"{case}/{prefix}mlp.{number}.bias", np.zeros(len(weight), np.float32))
        head[name] = {"kernel": jnp.asarray(weight.T), "bias": jnp.asarray(bias)}
    return {"value_head": head}


# The third reference case (tanh, two outputs) is no value head of any recipe.
@pytest.mark.parametrize("case", ["value_head_0_relu", "value_head_1_relu"])
def test_value_and_gradients_equal_the_reference(arrays, case):
    params, x = read(arrays, case), jnp.asarray(arrays[f"{case}/in/x"])
    y, pullback = jax.vjp(heads.value, params, x)
    grad_params, grad_x = pullback(jnp.ones_like(y))
    expected = read(arrays, case, "out/grad.")["value_head"]
    np.testing.assert_allclose(y, arrays[f"{case}/out/y"][:, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grad_x, arrays[f"{case}/out/grad_x"], rtol=1e-4, atol=1e-5)
    if not json.loads(arrays[f"{case}/meta"].item())["bias_last"]:
        expected["out"]["bias"] = grad_params["value_head"]["out"]["bias"]
    jax.tree.map(
        lambda ours, ref: np.testing.assert_allclose(ours, ref, rtol=1e-4, atol=1e-5),
        grad_params["value_head"],
        expected,
    )


@pytest.mark.parametrize("chunked", [0, 1])
@pytest.mark.parametrize("detached", [0, 1])
def test_value_from_suffix_equals_the_reference(arrays, chunked, detached):
    case = f"value_from_suffix_chunk{chunked}_detach{detached}"
    meta = json.loads(arrays[f"{case}/meta"].item())
    chunk = meta["action_chunk"] if meta["chunk_critic_input"] else None
    params, feature = read(arrays, case), jnp.asarray(arrays[f"{case}/in/suffix_out"])

    def run(feature):
        return heads.suffix_value(params, feature, chunk=chunk, detach=meta["detach_critic_input"])

    y, pullback = jax.vjp(run, feature)
    np.testing.assert_allclose(y, arrays[f"{case}/out/value"], rtol=1e-4, atol=1e-5)
    (grad,) = pullback(jnp.ones_like(y))
    np.testing.assert_allclose(grad, arrays[f"{case}/out/grad_suffix_out"], rtol=1e-4, atol=1e-5)


VLM_CASES = [
    f"value_from_vlm_{name}_libero_{mode}_{n}img"
    for name in ("pi05", "pi0")
    for mode, n in (
        ("mean_token", 1),
        ("mean_token", 2),
        ("mean_token", 3),
        ("last_token", 2),
        ("first_token", 2),
    )
]


@pytest.mark.parametrize("case", reference_files.having("rlinf/d_heads.npz", VLM_CASES))
def test_value_from_vlm_equals_the_reference(arrays, case):
    """With the reference's choice of tokens, padding among them, given as the mask."""
    meta = json.loads(arrays[f"{case}/meta"].item())
    hidden = arrays[f"{case}/in/prefix_output"]
    mask = analytic_network.reference_tokens(hidden.shape[1], meta["num_images_in_input"])
    pooled = heads.pool(hidden, jnp.broadcast_to(mask, hidden.shape[:2]), meta["value_vlm_mode"])
    np.testing.assert_allclose(
        heads.value(read(arrays, case), pooled), arrays[f"{case}/out/value"], rtol=1e-4, atol=1e-5
    )


def test_value_from_the_tokens_that_exist_equals_the_other_port(arrays):
    case = "value_from_prefix_openpi_rlinf"
    pooled = heads.pool(
        arrays[f"{case}/in/prefix_output"],
        jnp.asarray(arrays[f"{case}/in/prefix_mask"]),
        "mean_token",
    )
    np.testing.assert_allclose(
        heads.value(read(arrays, case), pooled), arrays[f"{case}/out/value"], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("mode", heads.POOLS)
def test_padding_never_enters_a_pooled_state(mode):
    hidden = np.random.default_rng(0).normal(size=(3, 6, 4)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0], [0, 1, 0, 0, 0, 1]], bool)
    by_hand = {
        "mean_token": lambda h: h.mean(0),
        "first_token": lambda h: h[0],
        "last_token": lambda h: h[-1],
    }[mode]
    want = [by_hand(h[m]) for h, m in zip(hidden, mask, strict=True)]
    hidden[~mask] = np.nan
    np.testing.assert_allclose(
        heads.pool(jnp.asarray(hidden), jnp.asarray(mask), mode), want, rtol=1e-6
    )
    gradient = jax.grad(lambda h: heads.pool(h, jnp.asarray(mask), mode).sum())(jnp.asarray(hidden))
    assert (gradient[~mask] == 0).all() and (gradient[mask].sum(-1) != 0).any()


def test_unknown_pool_lists_the_choices():
    with pytest.raises(
        ValueError, match="value_vlm_mode='max' does not exist; choose one of: mean_token"
    ):
        heads.pool(jnp.zeros((1, 2, 3)), jnp.ones((1, 2), bool), "max")


# noise_net_1 (mish) and noise_net_2 (a constant std) are options that no recipe and no field has.
def test_noise_std_and_gradients_equal_the_reference(arrays):
    case, file = "noise_net_0", ArraysAsFile(arrays)
    bounds = tuple(json.loads(arrays[f"{case}/meta"].item())["noise_logvar_range"])
    params, _ = analytic_network.weights(file, f"{case}/in/")
    params = {"noise_head": params["noise_head"]}
    std, pullback = jax.vjp(
        lambda p, x: heads.noise_std(p, x, bounds), params, jnp.asarray(arrays[f"{case}/in/x"])
    )
    grad_params, grad_x = pullback(jnp.ones_like(std))
    np.testing.assert_allclose(std, arrays[f"{case}/out/std"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(grad_x, arrays[f"{case}/out/grad_x"], rtol=1e-4, atol=1e-6)
    want = {name.replace("out/grad.", "out/noise_head."): x for name, x in arrays.items()}
    expected, _ = analytic_network.weights(
        ArraysAsFile(want), f"{case}/out/noise_head.".replace("noise_head.", "")
    )
    expected = {"noise_head": expected["noise_head"]}
    jax.tree.map(
        lambda ours, ref: np.testing.assert_allclose(ours, ref, rtol=1e-4, atol=1e-6),
        grad_params,
        expected,
    )


class ArraysAsFile(dict):
    """What analytic_network.weights reads of an opened npz file."""

    files = property(lambda self: list(self))


def test_noise_head_has_the_reference_shapes_and_start():
    """1024 -> 128 -> 64 -> 32, torch's default start: uniform in +-1 / sqrt(inputs), biases too.

    Std inside its bounds.
    """
    params = spec.init(jax.random.key(0), heads.noise_specs(1024, 32))
    layers = params["noise_head"]
    assert [layer["kernel"].shape for layer in layers.values()] == [
        (1024, 128),
        (128, 64),
        (64, 32),
    ]
    for layer in layers.values():
        limit = 1 / np.sqrt(len(layer["kernel"]))
        np.testing.assert_allclose(
            [layer["kernel"].max(), -layer["kernel"].min()], limit, rtol=0.01
        )
        assert 0 < abs(layer["bias"]).max() <= limit
    std = heads.noise_std(
        params,
        100 * jax.random.normal(jax.random.key(1), (2, 5, 1024)).astype(jnp.bfloat16),
        (0.08, 0.16),
    )
    assert (
        std.dtype == jnp.float32
        and std.shape == (2, 5, 32)
        and std.min() >= 0.08 - 1e-6
        and std.max() <= 0.16 + 1e-6
    )


@pytest.mark.parametrize("case", ["value_head_init_pi0", "value_head_init_pi05_vlm"])
def test_initial_values_have_the_reference_spread(arrays, case):
    meta = json.loads(arrays[f"{case}/meta"].item())
    specs = heads.value_specs(meta["input_dim"], tuple(meta["hidden_sizes"]))
    for i, layer in enumerate(spec.init(jax.random.key(0), specs)["value_head"].values()):
        shape, std = (arrays[f"{case}/out/mlp.{2 * i}.weight.{name}"] for name in ("shape", "std"))
        assert layer["kernel"].shape == tuple(shape[::-1])
        # The last layer has few weights, so its measured spread scatters.
        np.testing.assert_allclose(layer["kernel"].std(), std, rtol=0.3 if shape[0] == 1 else 0.02)
        assert not layer["bias"].any()


def test_value_is_float32_on_bfloat16_features():
    params = spec.init(jax.random.key(0), heads.value_specs(8, (4,)))
    assert heads.suffix_value(params, jnp.ones((2, 3, 8), jnp.bfloat16)).dtype == jnp.float32
