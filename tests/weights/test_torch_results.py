"""Networks from the reference's PyTorch files compute what PyTorch and JAX computed there."""

import dataclasses
import pathlib

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import reference_files

from pirl_jax.core import spec
from pirl_jax.models import variants
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


@dataclasses.dataclass
class Case:
    folder: pathlib.Path
    bfloat16: pathlib.Path
    cfg: variants.Pi0Config
    arrays: dict[str, np.ndarray]  # inputs and results of the reference

    @property
    def obs(self):
        return models.observation(self.arrays)

    def inputs(self, *names):
        return [jnp.asarray(self.arrays[f"in/{name}"]) for name in names]


@pytest.fixture(scope="module")
def case(torch_case):
    with np.load(torch_case.expected) as file:
        arrays = {name: file[name] for name in file.files if not name.startswith("params/")}
    cfg = dataclasses.replace(torch_case.cfg, dtype="float32")
    return Case(torch_case.folder, torch_case.bfloat16, cfg, arrays)


def network(folder, cfg, dtype=None):
    source = sources.open_source(folder, cfg)
    return spec.unflatten({path: jnp.asarray(source.read(path, dtype)) for path in source.shapes})


def test_results_in_float32(case):
    cfg = case.cfg
    params = network(case.folder, cfg)
    flow = case.inputs("actions", "noise", "time")
    (noise,) = case.inputs("sample_noise")
    ours = models._everything(params, case.obs, *flow, cfg=cfg)
    loss = models._loss(params, case.obs, *flow, cfg=cfg)
    ours |= {"train/loss": loss, "loss_elementwise": loss}
    for steps in (4, 10):
        ours[f"sample/num_steps_{steps}"] = models._sample(params, noise, case.obs, steps, cfg=cfg)
    compared = [name for name in case.arrays if name.startswith(("jax_out/", "torch_out/"))]
    assert len(compared) == 10
    for name in compared:
        want = case.arrays[name]
        key = name.split("/", 1)[1]
        if key == "loss_elementwise":
            want = want.mean(-1)  # ours is the mean over the action dims
        limit = TOLERANCES[key] * max(1.0, np.abs(want).max())
        assert np.abs(ours[key] - want).max() <= limit, name


def test_samples_of_the_bfloat16_file(case):
    params = network(case.bfloat16, case.cfg, ml_dtypes.bfloat16)
    cfg = dataclasses.replace(case.cfg, dtype="bfloat16")
    (noise,) = case.inputs("sample_noise")
    got = models._sample(params, noise, case.obs, 10, cfg=cfg)
    want = case.arrays["torch_bf16_out/sample/num_steps_10"]
    assert np.abs(np.asarray(got, np.float32) - want).max() <= 3e-2 * np.abs(want).max()
