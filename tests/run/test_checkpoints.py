"""One answer for every command, of small checkpoints in the layouts of others."""

import argparse
import json
import shutil

import numpy as np
import pytest

from pirl_jax import convert, serve
from pirl_jax.policy import normalize
from pirl_jax.recipes import base
from pirl_jax.recipes import probe as recipe
from pirl_jax.run import checkpoints, command, config, policies, training
from pirl_jax.weights import assets, folders, resolve, sizes, sources, store, targets
from tests.weights import conftest, test_claims


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """pi0 of the recipe's size in openpi's PyTorch layout, with statistics and config.json."""
    folder = tmp_path_factory.mktemp("openpi")
    network = config.settings(recipe.get_config()).policy.network
    draw = np.random.default_rng(0)
    arrays = {}
    for path, shape in sizes.shapes_of(network).items():
        arrays[path] = draw.standard_normal(shape, np.float32)
    targets.write_openpi_torch(folder, conftest.memory_source(arrays, network))
    assets.save(folder, conftest.make_stats(), "openpi_torch")
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy to change."""
    return shutil.copytree(made, tmp_path / "some checkpoint")


def page(**model):
    found = recipe.get_config()
    found.model.norm_stats = ""
    found.model.update(model)
    return found


def say(folder, **fields):
    (folder / "config.json").write_text(json.dumps(fields))


# ---- agreement -----------------------------------------------------------------------------------


def test_files_decide_what_the_page_leaves_open(folder, capsys):
    say(folder, **test_claims.PI05)
    (folder / "policy_preprocessor.json").write_text(json.dumps({"steps": test_claims.STEPS}))
    agreed = checkpoints.agreed(base.get_config(), folder)
    model = agreed.model
    assert (model.pi05, model.action_horizon, model.max_token_len) == (True, 50, 200)
    assert (model.norm_mode, model.discrete_state, model.delta_actions) == ("quantile", True, False)
    said = capsys.readouterr().out
    assert f"model.norm_mode=quantile is taken from normalization_mapping.STATE of {folder}" in said
    # What agrees is not said, and changes nothing.
    checkpoints.agreed(agreed, folder)
    assert not capsys.readouterr().out


OTHER_MODE = test_claims.PI05 | {"normalization_mapping": test_claims.MEANS}


def test_what_the_command_line_sets_is_decided_also_where_it_is_the_default(folder):
    say(folder, **test_claims.PI05)
    fields = ("norm_mode", "action_horizon", "pi05")
    with pytest.raises(ValueError, match=r"norm_mode is quantile .* and zscore") as caught:
        checkpoints.agreed(base.get_config(), folder, given=[f"model.{name}" for name in fields])
    # 50 is what the files say, too.
    assert "action_horizon" not in str(caught.value) and "pi05 is True" in str(caught.value)


CONTRADICTIONS = [
    ({"action_horizon": 9}, {"action_horizon": 5}, "action_horizon is 5 .* and 9 in the conf"),
    ({"norm_mode": "quantile"}, OTHER_MODE, "norm_mode is zscore .*STATE of .* and quantile"),
    ({"preset": "pi0_libero"}, test_claims.PI05, "pi05 is True .* and False in the configuration"),
    ({"preset": "pi0_libero"}, {"type": "pi0", "chunk_size": 30}, "action_horizon is 30 .* 50"),
    ({"max_token_len": 100}, {"type": "pi05", "tokenizer_max_length": 200}, "200 .* and 100"),
]


@pytest.mark.parametrize("model, says, sentence", CONTRADICTIONS)
def test_a_contradiction_names_both_values_the_file_and_flags_that_agree(
    folder, model, says, sentence
):
    say(folder, **says)
    wrong = base.get_config()
    wrong.model.update(model)
    with pytest.raises(ValueError, match=sentence) as caught:
        checkpoints.agreed(wrong, folder)
    said = str(caught.value)
    assert f"of {folder / 'config.json'})" in said
    # The flags do what they say they do.
    flags = [word for word in said.split() if word.startswith("--config.")]
    checkpoints.agreed(command.override(wrong, flags), folder)


# ---- the record ----------------------------------------------------------------------------------


def test_what_was_found_is_said_before_anything_is_loaded(folder, capsys, monkeypatch):
    settings = config.settings(page())
    monkeypatch.setattr(sources.Source, "read", None)
    with checkpoints.held(folder) as place:
        record = policies.look(settings, place).record
    said = capsys.readouterr().out
    horizon = settings.policy.network.action_horizon
    assert said.startswith("pi0 of openpi, 89 tensors (")
    assert said.endswith(f"norm_stats.json, mean and std, horizon {horizon}\n")
    assert record.says["action_horizon"] == [horizon, f"action_horizon of {folder / 'config.json'}"]
    assert json.loads(json.dumps(record.as_json()))["maker"] == "openpi"
    with pytest.raises(AttributeError):
        record.step = 3


@pytest.mark.parametrize("layout", ["experiment", "lerobot", "checkpoints", "shards"])
def test_every_command_finds_the_same(made, tmp_path, layout, monkeypatch, capsys):
    """train, evaluate and serve by `look`, convert by its source."""
    there = tmp_path / "there"
    inner, step = {
        "experiment": ("2000", 2000),
        "lerobot": ("checkpoints/002000/pretrained_model", 2000),
        "checkpoints": ("checkpoints", None),
        "shards": ("", None),
    }[layout]
    shutil.copytree(made, there / inner)
    if layout == "shards":
        (there / "model.safetensors").rename(there / "model-00001-of-00001.safetensors")
    settings = config.settings(page(checkpoint=str(there / (inner if step is None else ""))))
    path = settings.raw.model.checkpoint
    started = policies.check_start(settings)
    values = serve._parser().parse_args([f"--checkpoint={path}", "--max-batch=1"])
    _, metadata = serve.prepare(values, settings)
    assert metadata["checkpoint"]["found"] == started.as_json() and started.step == step
    convert.main(["convert", path, str(tmp_path / "out"), "--to", "pirl"])
    assert f"read {started.path}: openpi_torch" in capsys.readouterr().out
    assert started.statistics.startswith(str(there / inner))


def test_statistics_of_another_robot_are_named_with_their_file(folder):
    for path in folder.rglob("norm_stats.json"):
        normalize.save(path, conftest.make_stats(14, 14))
    with checkpoints.held(folder) as place, pytest.raises(ValueError) as caught:
        policies.look(config.settings(page()), place)
    assert f"{folder}/assets" in str(caught.value) and "14 dims" in str(caught.value)


def test_a_run_keeps_what_it_started_from_for_its_resumes(folder, tmp_path):
    settings = config.settings(page(checkpoint=str(folder)))
    record = policies.check_start(settings)
    run = tmp_path / "run"
    checkpoints.save(run, record)
    (run / "metrics.jsonl").write_text("")
    (run / "config.json").write_text("{}")
    shutil.rmtree(folder)
    resumed = page(checkpoint=str(folder), action_horizon=50)
    resumed.run.directory = str(run)
    auto = argparse.Namespace(resume="auto", fields=())
    agreed = training.agreed(resumed, auto)
    assert agreed.model.action_horizon == record.action_horizon
    # A flag is not passed over, whatever it says.
    agreed.model.action_horizon = 50
    flag = argparse.Namespace(resume="auto", fields=("model.action_horizon",))
    assert training.agreed(agreed, flag).model.action_horizon == 50
    with pytest.raises(ValueError, match="there is no checkpoint at"):
        training.agreed(resumed, argparse.Namespace(resume="never", fields=()))


# ---- held ----------------------------------------------------------------------------------------


def empty_run(path):
    state = path / "checkpoints" / "8" / "state"
    state.mkdir(parents=True)
    (state / "_METADATA").touch()
    return state.parent


def test_a_checkpoint_that_goes_away_while_it_is_read(tmp_path, monkeypatch):
    """The run that it belongs to still trains, and keeps the newest ones only."""
    folder = empty_run(tmp_path / "run")
    settings = config.settings(recipe.get_config())

    def reading(place, network):
        shutil.rmtree(place.folder)
        raise RuntimeError("a page of the words of a library")

    monkeypatch.setattr(policies.sources, "open_source", reading)
    monkeypatch.setattr(checkpoints.folders, "require_intact", lambda folder: None)
    said = f"checkpoint {folder} went away while it was read; its run still trains: run the same"
    with pytest.raises(ValueError, match=f"^{said}"):
        policies.load_policy(settings, tmp_path / "run", 8, None)


def test_other_errors_of_reading_stay_what_they_are(tmp_path, monkeypatch):
    empty_run(tmp_path)
    monkeypatch.setattr(checkpoints, "REMOVAL_S", 0.1)

    def reading(place, network):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(policies.sources, "open_source", reading)
    monkeypatch.setattr(checkpoints.folders, "require_intact", lambda folder: None)
    settings = config.settings(recipe.get_config())
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        policies.load_policy(settings, tmp_path, 8, None)


def test_readers_of_a_run_hear_of_damage_and_hold_what_they_read(tmp_path):
    saved = store.Store(tmp_path / "checkpoints", keep=1)
    saved.protect(1)
    for iteration in (1, 2):
        saved.save(iteration, {"params": {"w": np.ones(2)}})
        saved.wait()
    with checkpoints.held(tmp_path) as place:
        saved.save(3, {"params": {"w": np.ones(2)}})
        saved.wait()
        named = checkpoints.identity(place)
        assert (place.step, named["iteration"], named["run"]) == (2, 2, str(tmp_path))
    saved.close()
    assert folders.standing(tmp_path / "checkpoints") == [1, 3]
    (tmp_path / "checkpoints" / "3" / "state" / "manifest.ocdbt").write_bytes(b"")
    for path, iteration in ((tmp_path, -1), (tmp_path / "checkpoints", 3)):
        with pytest.raises(ValueError, match=r"3 is damaged \(.*manifest.*--iteration 1\)"):
            policies.load_policy(config.settings(recipe.get_config()), path, iteration, None)
    assert folders.standing(tmp_path / "checkpoints") == [1, 3]
    one = tmp_path / "checkpoints" / "1"
    with pytest.raises(ValueError, match="1 is step 1, not iteration 3"):
        policies.load_policy(config.settings(recipe.get_config()), one, 3, None)
    with checkpoints.held(one) as place:
        assert place == resolve.find(one) and place.run == tmp_path
