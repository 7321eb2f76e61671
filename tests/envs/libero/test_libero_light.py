"""Light meshes and textures made before a run: once per machine, with progress, errors said."""

import os

import pytest

from pirl_jax.envs import child
from pirl_jax.envs.libero import files, kept, light, meshes, suite, textures
from pirl_jax.envs.pool import worker


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pirl_jax"


@pytest.fixture
def asked(monkeypatch):
    """The processes that would be started, by the tasks of each."""
    calls = []

    def ask(arguments, variables, timeout_s):
        calls.append((arguments[-2], [int(task) for task in arguments[-1].split(",")]))
        return {}

    monkeypatch.setattr(child, "ask", ask)
    return calls


def prepared(tasks, assets):
    counts = []
    light.prepare(tasks, assets, {}, counts.append)
    return counts


def test_once_per_machine_and_again_where_something_changed(cache, asked, tmp_path, monkeypatch):
    (tmp_path / "assets").mkdir()
    tasks = light.missing("libero_object", (0, 3), tmp_path / "assets")
    assert [(one.suite, one.task) for one in tasks] == [("libero_object", 0), ("libero_object", 3)]
    assert sum(prepared(tasks, tmp_path / "assets")) == 2
    assert light.missing("libero_object", (0, 3), tmp_path / "assets") == []
    (left,) = light.missing("libero_object", (0, 1), tmp_path / "assets")
    assert left.task == 1
    (tmp_path / "assets" / "new.png").touch()
    assert len(light.missing("libero_object", (0, 3), tmp_path / "assets")) == 2
    (tmp_path / "assets" / "new.png").unlink()
    monkeypatch.setattr(textures, "RECIPE", ("other",))
    assert len(light.missing("libero_object", (0, 3), tmp_path / "assets")) == 2


def test_few_tasks_are_shared_and_many_are_dealt_out(cache, asked, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    one = light.missing("libero_object", (5,), tmp_path)
    assert prepared(one, tmp_path) == [1]
    assert asked == [("libero_object", [5])] * 2
    asked.clear()
    ten = light.missing("libero_90", range(10), tmp_path)
    assert prepared(ten, tmp_path) == [4, 4, 2]
    assert sorted(asked) == [
        ("libero_90", [0, 1, 2, 3]),
        ("libero_90", [4, 5, 6, 7]),
        ("libero_90", [8, 9]),
    ]


def test_a_process_that_fails_is_a_sentence_and_leaves_no_note(cache, tmp_path, monkeypatch):
    def ask(*arguments):
        raise child.ChildError("crashed with SIGSEGV")

    monkeypatch.setattr(child, "ask", ask)
    tasks = light.missing("libero_object", (0,), tmp_path)
    with pytest.raises(
        ValueError, match=r"libero_object, tasks 0, .*SIGSEGV\); run .*doctor, or set"
    ):
        prepared(tasks, tmp_path)
    assert light.missing("libero_object", (0,), tmp_path) == tasks


def test_what_was_long_unused_goes(cache, tmp_path, monkeypatch):
    for name in (meshes.FOLDER, textures.FOLDER):
        kept.make(name, {f"{0:012x}": lambda: bytes(10)})
    monkeypatch.setattr(kept.trim, "__defaults__", (5,))
    light.missing("libero_object", (), tmp_path)
    assert not [*(cache / meshes.FOLDER).iterdir(), *(cache / textures.FOLDER).iterdir()]


@pytest.mark.slow
def test_a_simulator_finds_all_of_it(libero_assets, cache, monkeypatch):
    """Nothing is left for the simulators of a run to make, and little of it lies on the disk."""
    tasks = light.missing("libero_object", (0,), libero_assets)
    light.prepare(tasks, libero_assets, worker.environment(), lambda count: None)
    for module, maker in ((meshes, "_lighter_file"), (textures, "smaller")):
        monkeypatch.setattr(module, maker, lambda *_: pytest.fail("made by a simulator"))
    env = suite.make("libero_object", libero_assets, image_size_px=16, render_quality="light")
    env.reset(0, 0)
    env.close()
    made = [path for name in (meshes.FOLDER, textures.FOLDER) for path in (cache / name).iterdir()]
    assert len(made) > 50 and sum(path.stat().st_size for path in made) < 10e6
    assert all(files.cache_folder(path.parent.name) == path.parent for path in made)
