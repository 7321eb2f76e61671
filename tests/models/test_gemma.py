import jax.numpy as jnp
import numpy as np
import pytest
import reference_files

from pirl_jax.models import gemma


@pytest.mark.parametrize(
    "name",
    [
        "train/kv_",
        "train/prefix_out",
        "train/suffix_out",
        "prefill/kv_",
        "prefill/prefix_out",
        "decode/suffix_out",
    ],
)
def test_keys_values_and_hidden_states_equal_the_reference(case, name):
    if case.recorded(name):  # all-bfloat16 runs of the reference recorded fewer arrays
        case.check(name, 3e-4)


HEADS = reference_files.having("openpi/data_small.npz", ["rope/16", "rope/256"])


@pytest.mark.parametrize("case", HEADS)
def test_rope_equals_the_reference(vectors, case):
    with np.load(vectors / "openpi" / "data_small.npz") as file:
        x, positions, out = (file[f"{case}/{name}"] for name in ("x", "positions", "out"))
    # Angles go up to 856 rad, where one float32 ulp is 6e-5 rad; the compiler may round the
    # division either way.
    np.testing.assert_allclose(gemma.rope(jnp.asarray(x), jnp.asarray(positions)), out, atol=3e-4)
