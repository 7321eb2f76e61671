import collections
import decimal
import json
import pathlib
import pickle
import zipfile

import pytest

from pirl_jax.weights import claims, opcodes, pickled, resolve

QUANTILES = {"VISUAL": "IDENTITY", "STATE": "QUANTILES", "ACTION": "QUANTILES"}
MEANS = {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}
# As LeRobot writes it after training pi0.5 on LIBERO.
PI05 = {
    "type": "pi05",
    "input_features": {
        "observation.images.image": {"type": "VISUAL", "shape": [3, 256, 256]},
        "observation.images.image2": {"type": "VISUAL", "shape": [3, 256, 256]},
        "observation.images.empty_camera_0": {"type": "VISUAL", "shape": [3, 224, 224]},
        "observation.state": {"type": "STATE", "shape": [8]},
    },
    "output_features": {"action": {"type": "ACTION", "shape": [7]}},
    "chunk_size": 50,
    "n_action_steps": 10,
    "max_action_dim": 32,
    "image_resolution": [224, 224],
    "tokenizer_max_length": 200,
    "normalization_mapping": QUANTILES,
}
STEPS = [
    {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
    {"registry_name": "normalizer_processor", "config": {"norm_map": QUANTILES}},
    {"registry_name": "pi05_prepare_state_tokenizer_processor_step", "config": {}},
    {"registry_name": "tokenizer_processor", "config": {"max_length": 200}},
]


def said(folder, config=None, steps=None, training=None):
    for name, tree in (
        ("config.json", config),
        ("policy_preprocessor.json", steps and {"steps": steps}),
        ("train_config.json", training),
    ):
        if tree is not None:
            (folder / name).write_text(json.dumps(tree))
    place = resolve.Place("safetensors", folder, folder, None)
    return claims.read(place)


def values(found):
    return {claim.field: claim.value for claim in found.claims}


def test_lerobots_files_say_how_the_policy_sees_and_acts(tmp_path):
    found = said(tmp_path, PI05, STEPS, {"policy": {"chunk_size": 50}})
    assert found.maker == "LeRobot"
    assert values(found) == {
        "pi05": True,
        "action_horizon": 50,
        "action_dim": 32,
        "action_env_dim": 7,
        "image_size_px": 224,
        "max_token_len": 200,
        "norm_mode": "quantile",
        "discrete_state": True,
        "delta_actions": False,
    }
    cameras = ["observation.images.image", "observation.images.image2"]
    assert found.notes == {"action_steps": 10, "images": cameras}


def test_another_policy_of_lerobot_says_other_things(tmp_path):
    steps = [
        {"registry_name": "pi0_new_line_processor", "config": {}},
        {"registry_name": "tokenizer_processor", "config": {"max_length": 48}},
    ]
    config = {"type": "pi0", "chunk_size": 30, "normalization_mapping": MEANS}
    found = values(said(tmp_path, config, steps))
    assert (found["pi05"], found["norm_mode"], found["discrete_state"]) == (False, "zscore", False)
    assert (found["action_horizon"], found["max_token_len"]) == (30, 48)


def test_openpis_config_and_files_without_one(tmp_path):
    config = {"action_dim": 32, "action_horizon": 10, "precision": "bfloat16"}
    found = said(tmp_path, config)
    assert (found.maker, values(found)) == ("openpi", {"action_dim": 32, "action_horizon": 10})
    assert found.notes == {"precision": "bfloat16"}
    (tmp_path / "config.json").unlink()
    assert said(tmp_path).claims == ()


def test_a_run_of_ours_says_what_its_weights_learned_with(tmp_path):
    page = {"model": {"action_horizon": 5, "norm_mode": "quantile", "dtype": "float32"}}
    (tmp_path / "config.json").write_text(json.dumps(page))
    step = tmp_path / "checkpoints" / "3"
    found = claims.read(resolve.Place("pirl", step / "state", step, 3))
    assert values(found) == {"action_horizon": 5, "norm_mode": "quantile"}
    assert found.claims[0].source == f"model.action_horizon of {tmp_path / 'config.json'}"


MIXED = {"STATE": "MEAN_STD", "ACTION": "QUANTILES"}
RELATIVE = {"registry_name": "relative_actions_processor", "config": {"enabled": True}}
ORDER = {
    "observation.images.wrist": {"type": "VISUAL"},
    "observation.images.front": {"type": "VISUAL"},
}
ONE = {"observation.images.front": {"type": "VISUAL"}}


@pytest.mark.parametrize(
    "config, steps, training, sentence",
    [
        ({"STATE": "MIN_MAX"}, None, None, "normalization_mapping.STATE of .* is MIN_MAX, a way"),
        ({"ACTION": "QUANTILE10"}, None, None, "normalization_mapping.ACTION of .* is QUANTILE10"),
        ({"STATE": 3}, None, None, "normalization_mapping.STATE of .* is 3, a way to normalise"),
        (MIXED, None, None, "mapping.STATE of .* says norm_mode=zscore and .*ACTION .* quantile"),
        (MEANS, STEPS, None, "normalization_mapping.STATE of .*config.json says norm_mode=zscore"),
        (QUANTILES, None, {"normalization_mapping": MEANS}, "policy.normalization_mapping.STATE"),
        (QUANTILES, [RELATIVE], None, "relative_actions_processor of .* is enabled"),
    ],
)
def test_ways_to_normalise_are_read_and_never_guessed(tmp_path, config, steps, training, sentence):
    config = {"type": "pi05", "normalization_mapping": config}
    training = training and {"policy": training}
    with pytest.raises(ValueError, match=sentence) as caught:
        said(tmp_path, config, steps, training)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"type": "smolvla"}, "type of .* is smolvla, a policy that is not known here"),
        ({"input_features": ORDER}, "wrist before observation.images.front"),
        ({"input_features": ONE}, "have 1 cameras .* and the simulators 2"),
        ({"image_resolution": [224, 448]}, r"image_resolution of .* is \[224, 448\], and pictures"),
        ({"chunk_size": "50"}, 'chunk_size of .* is "50" and should be a whole number'),
        ({"tokenizer_max_length": 48}, "says max_token_len=48 and .* says 200; one of them"),
    ],
)
def test_what_does_not_fit_here_is_a_sentence_with_file_and_key(tmp_path, change, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        said(tmp_path, PI05 | change, STEPS)
    assert str(pathlib.Path(tmp_path)) in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "train_config.json", "policy_preprocessor.json"])
def test_files_that_do_not_parse_are_named(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps(PI05))
    for content in ("", '{"type"', "version https://git-lfs.github.com/spec/v1\n", "\x00\x01"):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=str(tmp_path / name)):
            said(tmp_path)


# ---- openpi's PyTorch trainer --------------------------------------------------------------------


class Harmful:
    """Would write a file if anybody unpickled it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (pathlib.Path.touch, (self.path,))


class Plain:
    """As most classes are pickled: made anew, then given its attributes."""

    def __init__(self, value):
        self.value = value


def metadata(path, tree):
    """As torch.save writes a dict: an archive with a pickle of protocol 2."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata/data.pkl", pickle.dumps(tree, protocol=2))


def trained(folder, **model):
    """What scripts/train_pytorch.py keeps, whose configuration holds objects of many classes."""
    config = {
        "name": "pi05_libero",
        "exp_name": "mine",
        "model": {"action_dim": 32, "action_horizon": 10, "pi05": True} | model,
        "data": {"repo_id": "physical-intelligence/libero", "extra_delta_transform": False},
        "freeze_filter": Harmful(folder / "touched"),
        "assets_base_dir": pathlib.PurePosixPath("assets"),
        "ema_decay": None,
        "optimizer": Plain([Plain(0.9), {"b2": 0.95}]),
        "frozen": frozenset({3}),
        "seen": {1, 2},
        "lr": decimal.Decimal(3),
        "by_number": {3: "x"},
        "ordered": collections.OrderedDict(a=[1]),
        "counted": collections.deque([1, 2]),
    }
    return {"global_step": 30000, "config": config, "timestamp": 1.5}


def test_the_trainers_metadata_are_read_without_running_anything(tmp_path):
    metadata(tmp_path / "metadata.pt", trained(tmp_path, discrete_state_input=False))
    found = said(tmp_path)
    assert values(found) == {
        "action_dim": 32,
        "action_horizon": 10,
        "pi05": True,
        "discrete_state": False,
        "delta_actions": False,
        "norm_mode": "quantile",
    }
    assert found.notes == {"name": "pi05_libero", "exp_name": "mine"}
    assert not (tmp_path / "touched").exists()
    config = pickled.settings(tmp_path / "metadata.pt")["config"]
    left_out = {name for name, value in config.items() if type(value) is opcodes.Opaque}
    objects = ["freeze_filter", "assets_base_dir", "seen", "lr", "optimizer", "frozen"]
    assert left_out == {*objects, "ordered", "counted"} and config["by_number"] == {}


def test_metadata_and_config_must_agree(tmp_path):
    metadata(tmp_path / "metadata.pt", trained(tmp_path))
    with pytest.raises(ValueError, match=r"config.json says action_horizon=50 and .*metadata.pt"):
        said(tmp_path, {"action_horizon": 50})


@pytest.mark.parametrize("content", [b"", b"PK", pickle.dumps({}), b"version https://git-lfs"])
def test_metadata_that_are_not_read_are_on_the_record(tmp_path, content):
    (tmp_path / "metadata.pt").write_bytes(content)
    found = said(tmp_path, {"action_horizon": 50})
    assert values(found) == {"action_horizon": 50} and "metadata.pt" in found.notes["unread"]
