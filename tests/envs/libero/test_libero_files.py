"""LIBERO's files: all suites, the benchmark's wording, init states without torch; its import."""

import ast
import io
import os
import pathlib
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from pirl_jax.envs.libero import files, stock
from pirl_jax.envs.libero import suite as suites

ROOT = pathlib.Path(__file__).parents[3]
STOCK = (*files.OWN_FILES, *files.LISTS)  # what hf-libero brings


@pytest.mark.parametrize("suite", STOCK)
def test_instructions_are_the_benchmarks(suite):
    """LIBERO's own function, cut out of a file that could not be imported without torch."""
    tree = ast.parse((files.package() / "benchmark" / "__init__.py").read_text())
    (function,) = [
        node for node in tree.body if getattr(node, "name", "") == "grab_language_from_filename"
    ]
    scope = {}
    exec(compile(ast.Module([function], []), "benchmark", "exec"), scope)
    tasks = files.tasks(suite)
    assert len(tasks) == {"libero_90": 90, "libero_130": 130}.get(suite, 10) == len(set(tasks))
    for task in tasks:
        assert files.instruction(task.name) == scope["grab_language_from_filename"](
            task.name + ".bddl"
        )


@pytest.mark.parametrize("suite", STOCK)
def test_init_states_of_every_task(suite):
    for task in range(len(files.tasks(suite))):
        states = files.init_states(suite, task)
        assert states.shape[0] == suites.NUM_INIT_STATES and states.dtype == np.float64
        assert np.isfinite(states).all()
        assert files.bddl_file(suite, task).is_file()
    assert "torch" not in sys.modules


def test_an_init_state_file_cannot_run_code(tmp_path, monkeypatch):
    class Evil:
        def __reduce__(self):
            return os.system, ("true",)

    monkeypatch.setattr(files, "package", lambda: tmp_path)
    monkeypatch.setattr(files, "tasks", lambda suite, folders: (files.Task(suite, "evil"),))
    folder = tmp_path / "init_files" / "libero_evil"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "evil.pruned_init", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Evil(), protocol=2))
    with pytest.raises(ValueError, match=r"asks for (posix|nt)\.system"):
        files.init_states("libero_evil", 0)


def test_unpickler_reads_both_numpy_generations():
    written = pickle.dumps(np.arange(3.0), protocol=2)
    old = written.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != written
    for data in (old, written):
        np.testing.assert_array_equal(
            files._ArrayUnpickler(io.BytesIO(data)).load(), np.arange(3.0)
        )


def test_assets_come_from_argument_then_variable(tmp_path, monkeypatch):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        for name in files.ASSET_FOLDERS:
            (folder / name).mkdir(parents=True)
    monkeypatch.setenv("PIRL_LIBERO_ASSETS", str(folders[1]))
    assert files.find_assets(folders[0]) == folders[0]
    assert files.find_assets(None) == folders[1]


def test_missing_assets_are_named_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.delenv("PIRL_LIBERO_ASSETS", raising=False)
    with pytest.raises(ValueError, match=r"nowhere.*set PIRL_LIBERO_ASSETS"):
        files.find_assets(tmp_path / "nowhere")
    monkeypatch.setattr(files, "package", lambda: tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match="LIBERO assets are not in"):
        files.find_assets(None)


def test_config_folder_is_private_complete_and_written_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = stock._config_folder(pathlib.Path("/some/assets"))
    assert folder.parent == tmp_path / "pirl_jax"
    lines = (folder / "config.yaml").read_text().splitlines()
    keys = ["benchmark_root", "bddl_files", "init_states", "datasets", "assets"]
    assert [line.split(":")[0] for line in lines] == keys
    assert lines[-1] == 'assets: "/some/assets"'
    before = (folder / "config.yaml").stat().st_mtime_ns
    assert stock._config_folder(pathlib.Path("/some/assets")) == folder
    assert (folder / "config.yaml").stat().st_mtime_ns == before
    assert os.listdir(folder) == ["config.yaml"]
    assert stock._config_folder(pathlib.Path("/other")) != folder


def test_import_asks_nothing_and_needs_nothing_heavy(libero_assets, tmp_path):
    """A fresh process, stdin closed, an empty home: no question, output, log file or torch."""
    code = f"""
import builtins, logging, sys
sys.path.insert(0, {str(ROOT)!r})
real = logging.FileHandler
def refuse(*a, **k): raise AssertionError("a log file is opened")
logging.FileHandler = refuse
from pirl_jax.envs.libero import suite
suite.make("libero_goal", {str(libero_assets)!r})
heavy = [m for m in ("torch", "transformers", "robomimic", "wandb", "jax") if m in sys.modules]
print(heavy)
"""
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "MPLCONFIGDIR": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path),
    }
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert not (tmp_path / ".libero").exists()
