"""Networks from the reference's PyTorch files compute what PyTorch and JAX computed there."""

import dataclasses

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import reference_files

from pirl_jax.core import spec
from pirl_jax.weights import sources
from tests.models import conftest as models

pytestmark = reference_files.only_complete  # its images would be a tenth of tests/golden

TOLERANCES = {
    "suffix/tokens": 3e-4,
    "siglip/base_0_rgb/tokens": 1e-5,
    "train/v_t": 3e-4,
    "decode/v_t": 3e-4,
    "train/loss": 3e-4,
    "loss_elementwise": 3e-4,
    "sample/num_steps_4": 1e-3,
    "sample/num_steps_10": 1e-3,
}


@pytest.fixture(scope="module")
def case(torch_case):
    with np.load(torch_case.expected) as file:
        arrays = {name: file[name] for name in file.files if not name.startswith("params/")}
    cfg = dataclasses.replace(torch_case.cfg, dtype="float32")
    flow = [jnp.asarray(arrays[f"in/{name}"]) for name in ("actions", "noise", "time")]
    return torch_case, cfg, arrays, models.observation(arrays), flow


def network(folder, cfg, dtype=None):
    source = sources.open_source(folder, cfg)
    return spec.unflatten({path: jnp.asarray(source.read(path, dtype)) for path in source.shapes})


def test_results_in_float32(case):
    torch_case, cfg, arrays, obs, flow = case
    params, noise = network(torch_case.folder, cfg), jnp.asarray(arrays["in/sample_noise"])
    ours = models._everything(params, obs, *flow, cfg=cfg)
    ours["train/loss"] = ours["loss_elementwise"] = models._loss(params, obs, *flow, cfg=cfg)
    for steps in (4, 10):
        ours[f"sample/num_steps_{steps}"] = models._sample(params, noise, obs, steps, cfg=cfg)
    compared = [name for name in arrays if name.startswith(("jax_out/", "torch_out/"))]
    assert len(compared) == 10
    for name in compared:
        key, want = name.split("/", 1)[1], arrays[name]
        want = (
            want.mean(-1) if key == "loss_elementwise" else want
        )  # ours is the mean over the action dims
        limit = TOLERANCES[key] * max(1.0, np.abs(want).max())
        assert np.abs(ours[key] - want).max() <= limit, name


def test_samples_of_the_bfloat16_file(case):
    torch_case, cfg, arrays, obs, _ = case
    params = network(torch_case.bfloat16, cfg, ml_dtypes.bfloat16)
    got = models._sample(
        params,
        jnp.asarray(arrays["in/sample_noise"]),
        obs,
        10,
        cfg=dataclasses.replace(cfg, dtype="bfloat16"),
    )
    want = arrays["torch_bf16_out/sample/num_steps_10"]
    assert np.abs(np.asarray(got, np.float32) - want).max() <= 3e-2 * np.abs(want).max()
