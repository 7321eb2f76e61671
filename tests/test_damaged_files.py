"""Whatever a file holds, its reader ends in a value or in one sentence with the path.

Never in another exception, a hang, a dead process or more than a gigabyte.  damaged_files.py
damages and reads, in a process of its own with bounds on memory and time.
"""

import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest

from pirl_jax import compare, convert, evaluate, serve, train
from pirl_jax.core import spec
from pirl_jax.models import pi0
from pirl_jax.policy import normalize
from pirl_jax.run import config, recipes
from pirl_jax.weights import targets
from tests import damaged_files
from tests.weights import conftest

SCRIPT = pathlib.Path(__file__).parent / "damaged_files.py"
ROOT = SCRIPT.parents[1]
QUICK = (
    "safetensors",
    "index",
    "network",
    "pt",
    "statistics",
    "tokenizer",
    "configuration",
    "evaluation",
    "run",
    "episodes",
)


def outcomes(folder, kinds, count, seed, timeout):
    """Kind -> what damaged_files.py tells of it."""
    command = [sys.executable, str(SCRIPT), str(folder), ",".join(kinds), str(count), str(seed)]
    last_case = folder / "last_case"
    last_case.write_text("none")
    options = {"capture_output": True, "text": True, "timeout": timeout, "check": False}
    try:
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, **options)
    except subprocess.TimeoutExpired:
        pytest.fail(f"hangs in case {last_case.read_text()}")
    assert done.returncode == 0, f"{last_case.read_text()}: {done.stderr[-2000:]}"
    told = {}
    for line in done.stdout.splitlines():
        told |= json.loads(line)
    return told


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return outcomes(tmp_path_factory.mktemp("damaged"), QUICK, count=40, seed=0, timeout=300)


@pytest.mark.parametrize("kind", QUICK)
def test_a_damaged_file_is_read_or_refused_in_a_sentence(quick, kind):
    told = quick[kind]
    assert not told["wrong"], told
    # Damage that is never noticed or always fatal would try out little.
    assert told["read"] + told["refused"] == 40 and told["refused"] > 10, told


@pytest.mark.slow
@pytest.mark.parametrize("kind", QUICK)
def test_thousands_of_damaged_files(tmp_path, kind):
    told = outcomes(tmp_path, [kind], count=2000, seed=1, timeout=550)[kind]
    assert not told["wrong"], told
    assert told["read"] > 5 and told["refused"] > 500, told


@pytest.mark.slow
def test_damaged_checkpoints_of_openpis_trainer(tmp_path):
    """Its format has checksums of what leads to the arrays, not of every array."""
    told = outcomes(tmp_path, ["orbax"], count=100, seed=1, timeout=550)["orbax"]
    assert not told["wrong"], told
    assert told["refused"] > 10, told


# ---- the commands --------------------------------------------------------------------------------

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7473096344\n"
GOLDEN = SCRIPT.parent / "golden"
PROBE = f"--config={ROOT / 'configs' / 'probe.py'}"
NESTED = '{"a":' * 100_000


def write_header(path, text):
    path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + bytes(64))


def cut(path):
    shutil.copy(GOLDEN / "torch_state_dict.pt", path)
    path.write_bytes(path.read_bytes()[:1000])


# Name of the damaged file -> what lies there.
WEIGHTS = {
    "broken.safetensors": lambda path: write_header(path, '{"a": {"dtype": "F32'),
    "nested.safetensors": lambda path: write_header(path, NESTED),
    "pointer.safetensors": lambda path: path.write_text(POINTER),
    "empty.safetensors": lambda path: path.touch(),
    "full_weights.pt": cut,
    "pointer.pt": lambda path: path.write_text(POINTER),
    "model.safetensors.index.json": lambda path: path.write_text('{"weight_map": '),
    "params/_METADATA": lambda path: path.write_text(POINTER),
}
JSON = {
    "empty": "",
    "cut off": '{"norm_stats": {"state": {',
    "a list": "[]",
    "nested": NESTED,
    "a pointer": POINTER,
    "of another program": '{"observation.state": {"mean": [0.0]}}',
}


@pytest.fixture
def refusal(monkeypatch, capsys, tmp_path):
    """refusal(command, *arguments) -> the sentence that a command ends with."""

    def call(command, *arguments):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as ending:
            command.main([command.__name__, *map(str, arguments)])
        said = capsys.readouterr().err
        assert ending.value.code == 2
        assert said.startswith("error: ") and said.count("\n") == 1 and len(said) < 800, said
        return said

    return call


@pytest.mark.parametrize("name", WEIGHTS)
def test_every_command_that_reads_weights_names_the_damaged_file(refusal, tmp_path, name):
    path = tmp_path / "given" / name
    path.parent.mkdir(parents=True)
    WEIGHTS[name](path)
    # A folder is given where the file is a part of it.
    given = path if path.suffix in (".safetensors", ".pt") else tmp_path / "given"
    common = [PROBE, "--config.run.compilation_cache="]
    for said in (
        refusal(convert, given, tmp_path / "out", "--to", "pirl"),
        refusal(train, *common, f"--config.model.checkpoint={given}"),
        refusal(evaluate, *common, "--checkpoint", given),
        refusal(serve, *common, "--checkpoint", given, "--port", "0"),
    ):
        assert str(path) in said
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["given"], "nothing is left behind"


@pytest.mark.parametrize("name", JSON)
def test_statistics_and_configurations_that_do_not_parse_are_named(refusal, tmp_path, name):
    stats = tmp_path / "these.json"
    stats.write_text(JSON[name])
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(JSON[name])
    source = tmp_path / "source"
    targets.write_openpi_torch(source, conftest.random_source("tiny"))
    common = [PROBE, "--config.run.compilation_cache="]
    for said in (
        refusal(convert, source, tmp_path / "out", "--to", "pirl", "--norm-stats", stats),
        refusal(train, *common, f"--config.model.norm_stats={stats}"),
    ):
        assert str(stats) in said
    for command in (evaluate, serve):
        said = refusal(command, "--checkpoint", run)
        assert str(run / "config.json") in said
        assert "give the recipe with --config" in said or "run git lfs pull" in said
    assert not (tmp_path / "out").exists() and not (tmp_path / "runs").exists()


PLACES = ("config.json", "environment.json", "evaluation/after/evaluation.json")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("text", JSON.values(), ids=JSON)
def test_compare_names_the_damaged_file_of_a_run(refusal, tmp_path, monkeypatch, place, text):
    files = {
        "config.json": {
            "seed": 0,
            "num_iterations": 1,
            "env": {"suite": "tabletop", "tasks": [0]},
            "rollout": {},
            "algorithm": {"adv_type": "gae"},
            "model": damaged_files.MODEL | {"checkpoint": "sft"},
        },
        "environment.json": [dict.fromkeys(compare.MACHINE, "x") | {"command": ["train"]}],
        "evaluation.json": damaged_files.evaluation(),
    }
    before = tmp_path / "sft" / "evaluation" / "after"
    after = tmp_path / "run" / "evaluation" / "after"
    for folder in (before, after):
        folder.mkdir(parents=True)
        (folder / "evaluation.json").write_text(json.dumps(files["evaluation.json"]))
    for name in ("config.json", "environment.json"):
        (tmp_path / "run" / name).write_text(json.dumps(files[name]))
    row = {"iteration": 0, "env/success_once": 1.0, "env/num_trajectories": 8, "time/iteration": 1}
    (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "run" / place).write_text(text)
    said = refusal(compare, tmp_path / "run", "--output", tmp_path / "sheet")
    assert f"{tmp_path / 'run' / place}" in said and not (tmp_path / "sheet.json").exists()
    (tmp_path / "run" / place).write_text(json.dumps(files[pathlib.Path(place).name]))
    monkeypatch.chdir(tmp_path)
    assert compare.summary(tmp_path / "run")["episodes"] == 8, "the others were honest"


def test_a_tokenizer_that_is_another_file_is_named(refusal, tmp_path):
    path = tmp_path / "tokenizer.model"
    for content in (POINTER, "", "not a model"):
        path.write_text(content)
        said = refusal(train, PROBE, f"--config.model.tokenizer={path}")
        assert str(path) in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("to", ["pirl", "openpi_torch", "openpi_jax"])
def test_weights_that_are_not_finite_are_not_converted(refusal, tmp_path, to):
    source = conftest.random_source("tiny")
    params = conftest.arrays_of(source)
    params["state_proj/kernel"][0, 0] = np.nan
    targets.write_openpi_torch(tmp_path / "source", conftest.memory_source(params, source.cfg))
    normalize.save(tmp_path / "source" / "norm_stats.json", normalize.identity(8, 7))
    said = refusal(convert, tmp_path / "source", tmp_path / "out", "--to", to)
    assert f"state_proj.weight in {tmp_path / 'source'} holds NaN or infinity" in said
    out = tmp_path / "out"
    assert not out.exists() or not list(out.iterdir()), "the same command works when it is mended"


def test_statistics_near_a_checkpoint_are_read_before_a_run_begins(refusal, tmp_path):
    network = config.settings(recipes.load_recipe("probe")).policy.network
    params = {}
    for path, leaf in spec.flatten(pi0.specs(network)).items():
        params[path] = np.zeros(leaf.shape, np.float32)
    source = tmp_path / "source"
    targets.write_openpi_torch(source, conftest.memory_source(params, network))
    path = source / "assets" / "norm_stats.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"norm_stats": {"state": {"mean": [[0.0]]}, "actions": {}}}))
    arguments = [f"--config.model.checkpoint={source}", "--config.model.norm_stats="]
    said = refusal(train, PROBE, "--config.run.compilation_cache=", *arguments)
    assert f"state.mean of {path} has 1 rows: statistics of each step" in said
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"], "nothing is left behind"


@pytest.mark.slow
def test_a_process_says_one_sentence_of_a_damaged_checkpoint_of_orbax(tmp_path):
    """Orbax leaves threads behind, whose tracebacks Python would print around it."""
    folder = tmp_path / "params"
    shutil.copytree(GOLDEN / "openpi" / "orbax_pi0_tiny" / "pure_bfloat16" / "params", folder)
    (folder / "manifest.ocdbt").unlink()
    command = [sys.executable, "-m", "pirl_jax.convert", folder, tmp_path / "out", "--to", "pirl"]
    options = {"capture_output": True, "text": True, "check": False}
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(list(map(str, command)), env=environment, cwd=tmp_path, **options)
    assert done.returncode == 2 and done.stderr.startswith("error: "), done.stderr
    assert done.stderr.count("\n") == 1 and str(folder) in done.stderr, done.stderr
