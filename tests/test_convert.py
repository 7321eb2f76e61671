import sys

import ml_dtypes
import numpy as np
import pytest

from pirl_jax import convert
from pirl_jax.core import locks
from pirl_jax.policy import normalize
from pirl_jax.weights import adapters, folders, sources, targets
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
