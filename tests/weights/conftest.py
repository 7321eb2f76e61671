"""Checkpoints in memory, and those of the reference programs."""

import dataclasses
import json
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest
import reference_files

from pirl_jax.core import spec
from pirl_jax.models import heads, pi0, variants
from pirl_jax.weights import sources


def memory_source(params: dict[str, np.ndarray], cfg) -> sources.Source:
    """Flat arrays as a checkpoint."""
    return sources.Source(
        "memory",
        pathlib.Path("memory"),
        {path: x.shape for path, x in params.items()},
        {path: x.dtype for path, x in params.items()},
        lambda path, dtype: params[path].astype(dtype, copy=False),
        {},
        cfg,
    )


def random_source(name: str, seed: int = 0, with_heads: bool = False) -> sources.Source:
    """A network of variants.PI0 with random parameters, also where the initialiser is zeros."""
    cfg = variants.pi0_config(name)
    tree = pi0.specs(cfg) | (heads.value_specs(cfg.expert.width, (7, 5)) if with_heads else {})
    draw = np.random.default_rng(seed)
    params = {
        path: 0.1 * draw.standard_normal(leaf.shape, np.float32)
        for path, leaf in spec.flatten(tree).items()
    }
    return memory_source(params, cfg)


def reference_config(settings: dict) -> variants.Pi0Config:
    """Configuration of the reference's PyTorch cases."""
    gemma = [variants.GemmaConfig(**settings[name]) for name in ("paligemma", "action_expert")]
    same = {
        name: settings[name]
        for name in ("pi05", "vocab_size", "action_dim", "action_horizon", "max_token_len")
    }
    return variants.Pi0Config(
        paligemma=gemma[0],
        expert=gemma[1],
        siglip=variants.SiglipConfig(**settings["siglip"]),
        **same,
    )


@dataclasses.dataclass
class TorchCase:
    folder: (
        pathlib.Path
    )  # model.safetensors in float32; in bfloat16 where tests/golden is all there is
    bfloat16: pathlib.Path  # the same in bfloat16
    expected: pathlib.Path  # what the reference computed with it
    cfg: variants.Pi0Config
    params: dict[str, np.ndarray]  # what the file was converted from, in its type


TORCH_CASES = reference_files.existing("openpi/{}_torch_tiny/expected.npz", ("pi0", "pi05"))


@pytest.fixture(scope="session", params=TORCH_CASES)
def torch_case(request, vectors):
    folder = vectors / "openpi" / f"{request.param}_torch_tiny"
    half = folder.with_name(folder.name + "_bf16")
    with np.load(folder / "expected.npz") as file:
        settings = json.loads(file["config_json"].item())
        params = {
            key.removeprefix("params/"): file[key]
            for key in file.files
            if key.startswith("params/")
        }
    cfg, files = reference_config(settings), folder
    if not reference_files.COMPLETE:
        files, params = half, _with_those_left_out(half, cfg, params)
    return TorchCase(files, half, folder / "expected.npz", cfg, params)


def _with_those_left_out(folder, cfg, params):
    """tests/golden names only the smaller parameters, in float32; the others are as in the file."""
    source = sources.open_source(folder, cfg)
    assert len(params) > 0.8 * len(source.shapes) and set(params) < set(source.shapes)
    recorded = {path: x.astype(ml_dtypes.bfloat16) for path, x in params.items()}
    return {path: source.read(path) for path in source.shapes} | recorded


def layout(declared) -> dict:
    """Everything on the first device."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: device, declared, is_leaf=lambda leaf: isinstance(leaf, spec.Spec)
    )


def assert_same(source: sources.Source, expected: dict[str, np.ndarray]) -> None:
    """Bit for bit, dtypes included."""
    assert set(source.shapes) == set(expected)
    for path, x in expected.items():
        y = source.read(path)
        assert y.dtype == x.dtype == source.dtypes[path] and y.shape == x.shape, path
        np.testing.assert_array_equal(
            y.view(f"u{y.itemsize}"), np.ascontiguousarray(x).view(f"u{x.itemsize}"), err_msg=path
        )
