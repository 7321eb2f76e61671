import dataclasses

import numpy as np
import pytest

from pirl_jax.policy import normalize
from pirl_jax.weights import assets, safetensors
from tests.weights import conftest


def assert_equal(a, b):
    for x, y in ((a.state, b.state), (a.actions, b.actions)):
        for field in dataclasses.fields(normalize.Stats):
            np.testing.assert_array_equal(getattr(x, field.name), getattr(y, field.name))


@pytest.mark.parametrize(
    "target, location, places",
    [
        ("openpi_jax", "params", 1),
        ("openpi_torch", "", 2),
        ("openpi_torch", "model.safetensors", 2),
        ("pirl", "checkpoints/7/state", 1),
    ],
)
def test_what_is_saved_is_found_from_where_the_weights_lie(tmp_path, target, location, places):
    paths = assets.save(tmp_path, conftest.make_stats(), target)
    place = tmp_path / location
    if place.suffix:
        place.touch()
    else:
        place.mkdir(parents=True, exist_ok=True)
    found, where = assets.find(place)
    assert_equal(found, conftest.make_stats())
    assert len(paths) == places and where in map(str, paths)


def test_openpis_own_checkpoint_has_its_statistics(vectors):
    found, _ = assets.find(vectors / "openpi" / "orbax_pi05_tiny" / "3" / "params")
    assert_equal(found, normalize.load(vectors / "openpi" / "norm_stats.json"))


def test_rlinfs_places(tmp_path):
    normalize.save(
        tmp_path / "physical-intelligence" / "libero" / "norm_stats.json", conftest.make_stats()
    )
    assert_equal(assets.find(tmp_path)[0], conftest.make_stats())
    weights = tmp_path / "actor" / "model_state_dict" / "full_weights.pt"
    weights.parent.mkdir(parents=True)
    weights.touch()
    assert_equal(assets.find(weights)[0], conftest.make_stats())


def test_several_data_sets_want_a_choice(tmp_path):
    normalize.save(tmp_path / "assets" / "droid" / "norm_stats.json", conftest.make_stats(scale=3))
    normalize.save(tmp_path / "assets" / "libero" / "norm_stats.json", conftest.make_stats())
    with pytest.raises(
        ValueError, match=r"assets/droid/norm_stats.json, assets/libero/norm_stats.json.*--asset-id"
    ):
        assets.find(tmp_path)
    assert_equal(assets.find(tmp_path, "libero")[0], conftest.make_stats())
    assert assets.find(tmp_path, "aloha") is None


@pytest.mark.parametrize(
    "file, state, action",
    [
        ("policy_preprocessor_step_5_normalizer_processor", "observation.state", "action"),
        ("model", "normalize_inputs.buffer_observation_state", "unnormalize_outputs.buffer_action"),
    ],
)
def test_lerobots_places(tmp_path, file, state, action):
    stats = conftest.make_stats()
    tensors = {
        f"{name}.{field.name}": getattr(of, field.name).astype(np.float32)
        for name, of in ((state, stats.state), (action, stats.actions))
        for field in dataclasses.fields(normalize.Stats)
    }
    path = tmp_path / f"{file}.safetensors"
    safetensors.write(
        path, {name: (x.shape, x.dtype) for name, x in tensors.items()}, iter(tensors.values()), {}
    )
    found, where = assets.find(tmp_path)
    assert_equal(found, stats)
    assert where == str(path)


@pytest.mark.parametrize(
    "wrong, said",
    [
        (np.zeros((10, 7), np.float32), r"action.mean of .* has shape \[10, 7\]"),
        (np.zeros(6, np.float32), r"action.std of .* has shape \[7\] .* as the mean \(6\)"),
        (np.full(7, np.nan, np.float32), "action.mean of .* is not finite"),
        (np.zeros(1 << 16, np.uint8), r"action.mean of .* has shape \[65536\]"),
    ],
)
def test_lerobots_statistics_are_vectors_of_one_length(tmp_path, wrong, said):
    tensors = {"action.mean": wrong, "action.std": np.ones(7, np.float32)}
    tensors |= {f"observation.state.{field}": np.ones((1, 8)) for field in ("mean", "std")}
    path = tmp_path / "policy_preprocessor_step_5_normalizer_processor.safetensors"
    layout = {name: (x.shape, x.dtype) for name, x in tensors.items()}
    safetensors.write(path, layout, iter(tensors.values()), {})
    with pytest.raises(ValueError, match=said) as caught:
        assets.find(tmp_path)
    assert str(path) in str(caught.value)


def test_statistics_that_are_a_pointer_are_named_where_several_lie(tmp_path):
    for data_set in ("a", "b"):
        normalize.save(tmp_path / "assets" / data_set / "norm_stats.json", conftest.make_stats())
    path = tmp_path / "assets" / "b" / "norm_stats.json"
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=f"^{path} is a Git LFS pointer"):
        assets.find(tmp_path)
