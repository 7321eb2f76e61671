import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pirl_jax.core import spec
from pirl_jax.models import heads


@pytest.fixture(scope="module")
def arrays(vectors):
    with np.load(vectors / "rlinf" / "d_heads.npz") as file:
        return {name: file[name] for name in file.files}


def read(arrays, case, prefix="in/value_head."):
    """The reference numbers its linear layers 0, 2, 4, ... and stores weights as [out,in]."""
    weights = [name for name in arrays if name.startswith(f"{case}/{prefix}mlp") and name.endswith("weight")]
    numbers = sorted(int(name.split(".")[-2]) for name in weights)
    names = [*(f"layer_{i}" for i in range(len(numbers) - 1)), "out"]
    head = {}
    for name, number in zip(names, numbers):
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
    jax.tree.map(lambda ours, ref: np.testing.assert_allclose(ours, ref, rtol=1e-4, atol=1e-5),
                 grad_params["value_head"], expected)


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
    grad, = pullback(jnp.ones_like(y))
    np.testing.assert_allclose(grad, arrays[f"{case}/out/grad_suffix_out"], rtol=1e-4, atol=1e-5)


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
