import dataclasses
import shlex

import numpy as np
import pytest

from pirl_jax.policy import normalize
from pirl_jax.weights import assets, resolve, safetensors
from tests.weights import conftest


def assert_equal(a, b):
    for x, y in ((a.state, b.state), (a.actions, b.actions)):
        for field in dataclasses.fields(normalize.Stats):
            np.testing.assert_array_equal(getattr(x, field.name), getattr(y, field.name))


def weights(path):
    """An empty file of weights -> where a checkpoint is found that has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        safetensors.write(path, {}, iter(()), {})
    else:
        path.touch()
    return resolve.find(path.parent if path.name == "_METADATA" else path)


@pytest.mark.parametrize(
    "target, file, places",
    [
        ("openpi_jax", "params/_METADATA", 1),
        ("openpi_torch", "model.safetensors", 2),
        ("openpi_torch", "full_weights.pt", 2),
        ("openpi_torch", "actor/model_state_dict/full_weights.pt", 2),
        ("pirl", "checkpoints/7/state/_METADATA", 1),
    ],
)
def test_what_is_saved_is_found_from_where_the_weights_lie(tmp_path, target, file, places):
    paths = assets.save(tmp_path, conftest.make_stats(), target)
    found, where = assets.find(weights(tmp_path / file))
    assert_equal(found, conftest.make_stats())
    assert len(paths) == places and where in map(str, paths)


def test_openpis_own_checkpoint_has_its_statistics(vectors):
    found, _ = assets.find(resolve.find(vectors / "openpi" / "orbax_pi05_tiny"))
    assert_equal(found, normalize.load(vectors / "openpi" / "norm_stats.json"))


def test_rlinfs_places(tmp_path):
    folder = tmp_path / "global_step_5"
    place = weights(folder / "actor" / "model_state_dict" / "full_weights.pt")
    assert assets.find(place) is None
    path = folder / "physical-intelligence" / "libero" / "norm_stats.json"
    normalize.save(path, conftest.make_stats())
    assert assets.find(place)[1] == str(path)
    # Consolidated: both files in one folder.
    place = weights(tmp_path / "few" / "full_weights.pt")
    normalize.save(tmp_path / "few" / "norm_stats.json", conftest.make_stats())
    assert_equal(assets.find(place)[0], conftest.make_stats())


@pytest.mark.parametrize(
    "file, neighbour",
    [
        ("a/model.safetensors", "b/norm_stats.json"),
        ("a/model.safetensors", "assets/droid/norm_stats.json"),
        ("a/model.safetensors", "a/2000/norm_stats.json"),
        ("a/model.safetensors", "a/checkpoints/x/norm_stats.json"),
        ("a/params/_METADATA", "b/assets/droid/norm_stats.json"),
        ("a/params/_METADATA", "assets/norm_stats.json"),
        ("runs/a/checkpoints/3/state/_METADATA", "runs/b/assets/norm_stats.json"),
        ("runs/a/checkpoints/3/state/_METADATA", "runs/assets/norm_stats.json"),
        ("a/actor/model_state_dict/full_weights.pt", "b/norm_stats.json"),
        ("model_state_dict/full_weights.pt", "old/physical-intelligence/norm_stats.json"),
    ],
)
def test_statistics_of_a_neighbour_are_nobodys(tmp_path, file, neighbour):
    place = weights(tmp_path / "here" / file)
    normalize.save(tmp_path / "here" / neighbour, conftest.make_stats())
    if neighbour.startswith("old"):
        # A checkpoint of its own in the same folder.
        weights(tmp_path / "here" / "old" / "model.safetensors")
    assert assets.find(place) is None


def test_a_file_among_others_has_no_statistics(tmp_path):
    normalize.save(tmp_path / "norm_stats.json", conftest.make_stats())
    place = weights(tmp_path / "mine.safetensors")
    assert assets.find(place) is not None
    weights(tmp_path / "yours.pt")
    assert assets.find(place) is None


@pytest.mark.parametrize("flag", [assets.FLAG, "--norm-stats"])
def test_several_data_sets_want_a_choice(tmp_path, flag):
    place = weights(tmp_path / "model.safetensors")
    paths = []
    for i, data_set in enumerate(("droid", "physical-intelligence/libero", "my robot")):
        paths.append(tmp_path / "assets" / data_set / "norm_stats.json")
        normalize.save(paths[-1], conftest.make_stats(scale=i))
    with pytest.raises(ValueError, match="statistics of 3 data sets") as caught:
        assets.find(place, flag=flag)
    said = shlex.split(str(caught.value))
    assert {f"{flag}={path}" for path in paths} <= set(said)
    assert assets.find(place, "physical-intelligence/libero")[1] == str(paths[1])
    assert assets.find(place, "libero")[1] == str(paths[1])
    assert assets.find(place, "aloha") is None
    # Part of the folder's own name is no data set.
    assert assets.find(place, tmp_path.name) is None


@pytest.mark.parametrize("wrong", ["../..", "/tmp", "a//b", ".", "a/../b", "", "a b", "x/"])
def test_names_of_data_sets_lead_nowhere_else(tmp_path, wrong):
    with pytest.raises(ValueError, match="is no name of a data set; write one like physical"):
        assets.require_id(wrong)
    if wrong:
        with pytest.raises(ValueError, match="is no name of a data set"):
            assets.save(tmp_path / "new", conftest.make_stats(), "openpi_jax", wrong)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("target", ["openpi_jax", "openpi_torch"])
def test_openpi_reads_no_quantiles_alone(tmp_path, target):
    ours = conftest.make_stats()
    actions = dataclasses.replace(ours.actions, mean=None, std=None)
    stats = dataclasses.replace(ours, actions=actions)
    with pytest.raises(ValueError, match="actions have quantiles alone"):
        assets.save(tmp_path, stats, target)
    assets.save(tmp_path, stats, "pirl")
    assert not (tmp_path / "physical-intelligence").exists()


def test_statistics_of_lerobot_and_of_openpi_in_one_folder(tmp_path):
    save_lerobots(tmp_path / "policy_preprocessor_step_5_normalizer_processor.safetensors")
    place = weights(tmp_path / "model.safetensors")
    path = tmp_path / "norm_stats.json"
    normalize.save(path, conftest.make_stats())
    with pytest.raises(ValueError, match=f"statistics of LeRobot .* and {path}; choose with --con"):
        assets.find(place)


def save_lerobots(path, state="observation.state", action="action"):
    stats = conftest.make_stats()
    tensors = {}
    for name, of in ((state, stats.state), (action, stats.actions)):
        for field in normalize.FIELDS:
            tensors[f"{name}.{field}"] = getattr(of, field).astype(np.float32)
    layout = {name: (x.shape, x.dtype) for name, x in tensors.items()}
    safetensors.write(path, layout, iter(tensors.values()), {})


@pytest.mark.parametrize(
    "file, state, action",
    [
        ("policy_preprocessor_step_5_normalizer_processor", "observation.state", "action"),
        ("model", "normalize_inputs.buffer_observation_state", "unnormalize_outputs.buffer_action"),
    ],
)
def test_lerobots_places(tmp_path, file, state, action):
    path = tmp_path / f"{file}.safetensors"
    save_lerobots(path, state, action)
    if file != "model":
        weights(tmp_path / "model.safetensors")
    found, where = assets.find(resolve.find(tmp_path))
    assert_equal(found, conftest.make_stats())
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
    place = weights(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=said) as caught:
        assets.find(place)
    assert str(path) in str(caught.value)


def test_statistics_that_are_a_pointer_are_named_where_several_lie(tmp_path):
    for data_set in ("a", "b"):
        normalize.save(tmp_path / "assets" / data_set / "norm_stats.json", conftest.make_stats())
    path = tmp_path / "assets" / "b" / "norm_stats.json"
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    place = weights(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"^{path} is a Git LFS pointer"):
        assets.find(place)
