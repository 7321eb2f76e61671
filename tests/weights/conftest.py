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
from pirl_jax.policy import normalize
from pirl_jax.weights import sources


def memory_source(params: dict[str, np.ndarray], cfg) -> sources.Source:
    """Flat arrays as a checkpoint."""
    return sources.Source(
        format="memory",
        location=pathlib.Path("memory"),
        shapes={path: x.shape for path, x in params.items()},
        dtypes={path: x.dtype for path, x in params.items()},
        fetch=lambda path, dtype: params[path].astype(dtype, copy=False),
        ignored={},
        cfg=cfg,
    )


def arrays_of(source: sources.Source) -> dict[str, np.ndarray]:
    """All of a checkpoint, in the dtypes it is stored in."""
    return {path: source.read(path) for path in source.shapes}


def random_source(name: str, seed: int = 0, with_heads: bool = False) -> sources.Source:
    """A network of variants.PI0 with random parameters, also where the initialiser is zeros."""
    cfg = variants.pi0_config(name)
    tree = pi0.specs(cfg)
    if with_heads:
        tree = tree | heads.value_specs(cfg.expert.width, (7, 5))
    draw = np.random.default_rng(seed)
    params = {}
    for path, leaf in spec.flatten(tree).items():
        params[path] = 0.1 * draw.standard_normal(leaf.shape, np.float32)
    return memory_source(params, cfg)


def reference_config(settings: dict) -> variants.Pi0Config:
    """Configuration of the reference's PyTorch cases."""
    same = ("pi05", "vocab_size", "action_dim", "action_horizon", "max_token_len")
    return variants.Pi0Config(
        paligemma=variants.GemmaConfig(**settings["paligemma"]),
        expert=variants.GemmaConfig(**settings["action_expert"]),
        siglip=variants.SiglipConfig(**settings["siglip"]),
        **{name: settings[name] for name in same},
    )


@dataclasses.dataclass
class TorchCase:
    # model.safetensors in float32; in bfloat16 where tests/golden is all there is.
    folder: pathlib.Path
    bfloat16: pathlib.Path  # the same in bfloat16
    expected: pathlib.Path  # what the reference computed with it
    cfg: variants.Pi0Config
    params: dict[str, np.ndarray]  # what the file was converted from, in its type


TORCH_CASES = reference_files.existing("openpi/{}_torch_tiny/expected.npz", ("pi0", "pi05"))


@pytest.fixture(scope="session", params=TORCH_CASES)
def torch_case(request, vectors):
    folder = vectors / "openpi" / f"{request.param}_torch_tiny"
    half = folder.with_name(f"{folder.name}_bf16")
    params = {}
    with np.load(folder / "expected.npz") as file:
        settings = json.loads(file["config_json"].item())
        for key in file.files:
            if key.startswith("params/"):
                params[key.removeprefix("params/")] = file[key]
    cfg = reference_config(settings)
    files = folder
    if not reference_files.COMPLETE:
        files = half
        params = _with_those_left_out(half, cfg, params)
    return TorchCase(files, half, folder / "expected.npz", cfg, params)


def _with_those_left_out(folder, cfg, params):
    """tests/golden names only the smaller parameters, in float32; the others are as in the file."""
    source = sources.open_source(folder, cfg)
    assert len(params) > 0.8 * len(source.shapes) and set(params) < set(source.shapes)
    recorded = {path: x.astype(ml_dtypes.bfloat16) for path, x in params.items()}
    return {path: source.read(path) for path in source.shapes} | recorded


def make_stats(state_dim=8, action_dim=7, scale=1.0) -> normalize.NormStats:
    """Means 0, 1, 2 ... times `scale`, all else the same in every dimension."""

    def stats_of(dim):
        return normalize.Stats(
            np.arange(dim) * scale, np.ones(dim), np.full(dim, -1.0), np.full(dim, 2.0)
        )

    return normalize.NormStats(stats_of(state_dim), stats_of(action_dim))


def layout(declared) -> dict:
    """Everything on the first device."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return spec.unflatten(dict.fromkeys(spec.flatten(declared), device))


def assert_same(source: sources.Source, expected: dict[str, np.ndarray]) -> None:
    """Bit for bit, dtypes included."""
    assert set(source.shapes) == set(expected)
    for path, x in expected.items():
        y = source.read(path)
        assert y.dtype == x.dtype == source.dtypes[path], path
        assert y.shape == x.shape, path
        bits = f"u{x.itemsize}"
        expected_bits = np.ascontiguousarray(x).view(bits)
        np.testing.assert_array_equal(y.view(bits), expected_bits, err_msg=path)
