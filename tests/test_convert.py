import json
import sys

import ml_dtypes
import numpy as np
import pytest

from pirl_jax import convert
from pirl_jax.core import locks
from pirl_jax.models import variants
from pirl_jax.policy import normalize
from pirl_jax.run import config, recipes
from pirl_jax.weights import (
    adapters,
    folders,
    safetensors,
    sizes,
    sources,
    targets,
    torch_names,
)
from tests.weights import conftest


@pytest.fixture
def run(tmp_path):
    """A run directory with a value head and statistics."""
    source = conftest.random_source("tiny_pi05", with_heads=True)
    targets.write_pirl(tmp_path / "run", source)
    normalize.save(tmp_path / "run" / "assets" / "norm_stats.json", normalize.identity(8, 7))
    return tmp_path / "run"


def command(capsys, *arguments) -> str:
    convert.main(["convert", *map(str, arguments)])
    return capsys.readouterr().out


def failure(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as caught:
        convert.main(["convert", *map(str, arguments)])
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_our_run_to_openpi_and_back(run, tmp_path, capsys):
    torch = tmp_path / "torch"
    out = command(capsys, run, torch, "--to", "openpi_torch", "--verify")
    for part in (
        "pirl, 57 arrays",
        "pi0.5 (PaliGemma 64 x 2, expert 32)",
        "value_head/out/bias: left out",
        "lm_head.weight: zeros",
        "verified: 51 arrays equal bit by bit; actions of a fixed batch differ by 0 at most",
        "norm stats: ",
    ):
        assert part in out
    assert (torch / "physical-intelligence" / "libero" / "norm_stats.json").is_file()
    out = command(capsys, torch, tmp_path / "jax", "--to", "openpi_jax", "--asset-id", "libero")
    unused = "paligemma_with_expert.gemma_expert.lm_head.weight"
    assert f"ignored {unused}: output head of the action expert" in out
    assert (tmp_path / "jax" / "assets" / "libero" / "norm_stats.json").is_file()
    before = sources.open_source(run)
    after = sources.open_source(tmp_path / "jax")
    conftest.assert_same(after, {path: before.read(path) for path in after.shapes})


def test_a_conversion_that_is_ended_leaves_nothing(run, tmp_path, capsys, monkeypatch):
    asked = [run, tmp_path / "jax", "--to", "openpi_jax"]
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(convert, "_save_stats", lambda *_: sys.exit(143))
        command(capsys, *asked)
    assert not [*(tmp_path / "jax").glob("[!.]*")]
    assert f"wrote {tmp_path / 'jax'}" in command(capsys, *asked)


def test_rounding_says_its_error_and_what_it_does_to_actions(run, tmp_path, capsys):
    asked = ["--to", "openpi_torch", "--dtype", "bfloat16", "--heads", "--verify"]
    out = command(capsys, run, tmp_path / "half", *asked)
    assert "rounded to bfloat16: largest absolute error 0.0" in out
    assert "value_head" not in out
    half = sources.open_source(tmp_path / "half")
    assert set(half.dtypes.values()) == {np.dtype(ml_dtypes.bfloat16)}
    assert len(half.shapes) == 57
    difference = float(out.split("differ by ")[1].split(" ")[0])
    assert 0 < difference < 1


def test_adapters_are_merged_or_kept_apart(vectors, tmp_path, capsys):
    lora = vectors / "openpi" / "orbax_pi0_lora_tiny"
    out = command(capsys, lora, tmp_path / "merged", "--to", "openpi_torch", "--merge-lora")
    assert "adapters: " not in out
    out = command(capsys, lora, tmp_path / "alone", "--to", "pirl", "--adapters-only")
    assert "no whole network" in out
    asked = ["--to", "pirl", "--lora-scale", "2", "--verify", "--adapters"]
    out = command(capsys, lora, tmp_path / "again", *asked, tmp_path / "alone")
    assert "adapters: PaliGemma rank 2, alpha 4, expert rank 2, alpha 4" in out
    assert "differ by 0 at most" in out


def test_raw_weights_and_statistics_from_elsewhere(vectors, tmp_path, capsys):
    trained = vectors / "openpi" / "orbax_pi0_tiny"
    stats = tmp_path / "norm_stats.json"
    normalize.save(stats, normalize.identity(8, 7))
    for raw in ([], ["--raw"]):
        folder = tmp_path / f"out{len(raw)}"
        command(capsys, trained, folder, "--to", "openpi_jax", "--norm-stats", stats, *raw)
        expected = sources.open_source(trained, raw=bool(raw))
        conftest.assert_same(sources.open_source(folder), conftest.arrays_of(expected))
        assets = folder / "assets" / "physical-intelligence" / "libero"
        saved = normalize.load(assets / "norm_stats.json")
        np.testing.assert_array_equal(saved.state.q99, np.ones(8))


def test_a_merge_changes_the_policy_by_rounding_only(vectors):
    source = sources.open_source(vectors / "openpi" / "orbax_pi0_lora_tiny")
    merged = convert.actions(adapters.merge(source))
    np.testing.assert_allclose(merged, convert.actions(source), atol=2e-5)


def test_verify_notices_a_changed_bit():
    source = conftest.random_source("tiny")
    changed = {path: np.array(source.read(path)) for path in source.shapes}
    bias = changed["action_out_proj/bias"]
    bias[0] = np.nextafter(bias[0], np.float32(9))
    with pytest.raises(ValueError, match="differs from what was written in action_out_proj/bias"):
        convert.parity(source, conftest.memory_source(changed, source.cfg), source)


def test_two_conversions_into_one_folder(vectors, tmp_path, capsys):
    trained = vectors / "openpi" / "orbax_pi0_tiny"
    with locks.writing(tmp_path / "new", ""), pytest.raises(SystemExit) as exit_:
        command(capsys, trained, tmp_path / "new", "--to", "openpi_jax")
    said = capsys.readouterr().err
    assert exit_.value.code == 2 and "is in use by process" in said and said.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_damaged_checkpoint_is_not_converted(run, tmp_path, capsys):
    newest = folders.standing(run / "checkpoints")[-1]
    folder = run / "checkpoints" / str(newest)
    largest = max(folder.rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    said = failure(capsys, run, tmp_path / "new", "--to", "openpi_torch")
    assert f"checkpoint {folder} is damaged" in said and "has another checksum" in said
    assert not (tmp_path / "new").exists()


def test_what_is_converted_is_not_removed_meanwhile(run, tmp_path, capsys, monkeypatch):
    """The run that it belongs to still trains."""
    (newest,) = folders.standing(run / "checkpoints")
    removed = []

    def writing(*args, **options):
        removed.append(folders.remove(run / "checkpoints", newest))
        return []

    monkeypatch.setattr(convert, "convert", writing)
    command(capsys, run, tmp_path / "new", "--to", "openpi_torch")
    assert removed == [False] and folders.remove(run / "checkpoints", newest)


def test_mistakes_are_sentences(run, tmp_path, vectors, capsys):
    lora = vectors / "openpi" / "orbax_pi0_lora_tiny"
    typo = tmp_path / "typo"
    new = tmp_path / "new"
    for said, source, folder, asked in (
        ("is not empty; give a new folder", run, run, "--to pirl"),
        ("there is no checkpoint at", typo, new, "--to pirl"),
        ("merge adapters first (--merge-lora)", lora, new, "--to openpi_torch"),
        ("needs --to pirl", lora, new, "--to openpi_jax --adapters-only"),
        ("adapters alone are none", lora, new, "--to pirl --adapters-only --verify"),
        ("no normalisation statistics at", run, new, "--to pirl --norm-stats typo.json"),
    ):
        assert said in failure(capsys, source, folder, *asked.split())
    assert not new.exists()


def test_a_network_of_unknown_size_is_described_by_a_recipe(tmp_path, capsys, monkeypatch):
    """The remedy of the error is an option of the command that prints it."""
    cfg = config.settings(recipes.load_recipe("probe")).policy.network
    arrays = {path: np.ones(shape, np.float32) for path, shape in sizes.shapes_of(cfg).items()}
    targets.write_openpi_torch(tmp_path / "src", conftest.memory_source(arrays, cfg))
    asked = [tmp_path / "src", tmp_path / "out", "--to", "pirl"]
    # Sizes that only the recipe knows.
    known = {name: size for name, size in variants.GEMMA.items() if size != cfg.expert}
    monkeypatch.setattr(sizes.variants, "GEMMA", known)
    said = failure(capsys, *asked)
    assert "which is no known size" in said and "give --config RECIPE" in said
    monkeypatch.undo()
    wrong = "--config.model.action_horizon=9"
    said = failure(capsys, *asked, "--config=probe", wrong)
    assert f"action_horizon is {cfg.action_horizon} in the checkpoint" in said
    assert "pi0 (PaliGemma" in command(capsys, *asked, "--config=probe")


def test_the_network_of_a_recipe_comes_before_those_that_are_known(monkeypatch):
    cfg = variants.pi0_config("tiny")
    monkeypatch.setattr(sizes.variants, "GEMMA", {})
    shapes = {}
    for entries in torch_names.by_path(sizes.shapes_of(cfg)).values():
        shapes |= {entry.name: entry.tensor_shape for entry in entries}
    assert sizes.infer_torch(shapes, cfg).expert == cfg.expert
    with pytest.raises(ValueError, match="give --config RECIPE"):
        sizes.infer_torch(shapes)


def test_a_horizon_that_nobody_knows_is_not_written(tmp_path, capsys):
    """It is in no tensor, and readers believe config.json."""
    targets.write_openpi_jax(tmp_path / "jax", conftest.random_source("tiny"))
    command(capsys, tmp_path / "jax", tmp_path / "one", "--to", "openpi_torch")
    assert "action_horizon" not in json.loads((tmp_path / "one" / "config.json").read_text())

    says = {"action_dim": 8, "action_horizon": 7}
    (tmp_path / "one" / "config.json").write_text(json.dumps(says))
    command(capsys, tmp_path / "one", tmp_path / "two", "--to", "openpi_torch")
    assert json.loads((tmp_path / "two" / "config.json").read_text())["action_horizon"] == 7


@pytest.mark.parametrize("asset_id", ["../..", "/tmp/elsewhere", "a/../../b"])
def test_no_data_set_leads_out_of_the_folder(run, tmp_path, capsys, asset_id):
    said = failure(
        capsys, run, tmp_path / "in" / "out", "--to", "openpi_torch", f"--asset-id={asset_id}"
    )
    assert "is no name of a data set" in said and not (tmp_path / "in").exists()


@pytest.mark.parametrize(
    "name, changed, shown",
    [
        ("action_in_proj.weight", "action_input.weight", "action_input.weight"),
        (torch_names.EMBEDDING, "paligemma.embed.weight", "for the first of them the file has"),
        (
            torch_names.VISION + "embeddings.position_embedding.weight",
            "vit.position_embedding.weight",
            "vit.position_embedding.weight",
        ),
    ],
)
def test_names_that_do_not_fit_are_shown_with_those_the_file_has(
    tmp_path, capsys, name, changed, shown
):
    targets.write_openpi_torch(tmp_path, conftest.random_source("tiny"))
    path = tmp_path / "model.safetensors"
    tensors = {changed if key == name else key: x for key, x in safetensors.read(path).items()}
    layout = {key: (x.shape, x.dtype) for key, x in tensors.items()}
    safetensors.write(tmp_path / "other.safetensors", layout, iter(tensors.values()), {})
    said = failure(capsys, tmp_path / "other.safetensors", tmp_path / "new", "--to", "pirl")
    assert f"{name} missing" in said and shown in said and len(said) < 900


def test_what_the_result_cannot_say_is_printed_as_flags(tmp_path, capsys):
    targets.write_openpi_torch(tmp_path / "src", conftest.random_source("tiny_pi05"))
    says = {"type": "pi05", "chunk_size": 10, "tokenizer_max_length": 99}
    modes = dict.fromkeys(("STATE", "ACTION"), "QUANTILES")
    says["normalization_mapping"] = modes
    (tmp_path / "src" / "config.json").write_text(json.dumps(says))
    said = command(capsys, tmp_path / "src", tmp_path / "out", "--to", "pirl")
    first = said.partition("\n")[0]
    assert first.startswith("pi0.5 of LeRobot, ") and first.endswith("quantiles, horizon 10")
    flags = [f"--config.model.{x}" for x in ("action_horizon=10", "max_token_len=99")]
    assert f"give it with {' '.join(flags)} --config.model.norm_mode=quantile\n" in said
    said = command(capsys, tmp_path / "src", tmp_path / "torch", "--to", "openpi_torch")
    assert flags[0] not in said and f"give it with {flags[1]} " in said
