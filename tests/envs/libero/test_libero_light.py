"""Light meshes and textures made before a run: once per machine, with progress, errors said."""

import os
import pickle

import pytest

from pirl_jax.envs import caches, child
from pirl_jax.envs.libero import kept, light, meshes, suite, textures
from pirl_jax.envs.libero import simulator as simulators
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
        setups = pickle.loads(bytes.fromhex(arguments[-1]))
        calls.append([setup.task for setup in setups])
        return {}

    monkeypatch.setattr(child, "ask", ask)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    return calls


def setups(tasks, assets, seed=0):
    return [
        simulators.Setup("libero_90", task, assets, settle_steps=10, seed=seed, light=True)
        for task in tasks
    ]


def missing(tasks, assets, seed=0):
    """Of the tasks, those that are not prepared."""
    return [task.setup.task for task in light.missing(setups(tasks, assets, seed))]


def prepare(tasks, assets):
    """-> the counts that progress was told."""
    counts = []
    light.prepare(light.missing(setups(tasks, assets)), {}, counts.append)
    return counts


def test_once_per_machine_and_again_where_something_changed(cache, asked, tmp_path, monkeypatch):
    (tmp_path / "assets").mkdir()
    assets = tmp_path / "assets"
    assert missing((0, 3), assets) == [0, 3]
    assert prepare((0, 3), assets) == [1, 1]
    assert missing((0, 3), assets, seed=7) == [], "pictures do not depend on it"
    assert missing((0, 1), assets) == [1]
    (assets / "new.png").touch()
    assert missing((0, 3), assets) == [0, 3]
    (assets / "new.png").unlink()
    assert missing((0, 3), assets) == []
    monkeypatch.setattr(textures, "RECIPE", ("other",))
    assert missing((0, 3), assets) == [0, 3]


def test_few_tasks_are_shared_and_many_are_dealt_out(cache, asked, tmp_path):
    assert prepare((5,), tmp_path / "1") == [1]
    assert asked == [[5]] * 2
    asked.clear()
    assert prepare(range(10), tmp_path / "2") == [4, 4, 2]
    assert sorted(asked) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_of_thousands_of_tasks_some_stand_for_all(cache, tmp_path):
    assert len(missing(range(light.MAX_TASKS), tmp_path)) == light.MAX_TASKS
    some = missing(range(2000), tmp_path)
    assert 100 < len(some) <= light.MAX_TASKS and some[-1] > 1900
    assert missing(range(2000), tmp_path) == some, "the same at every start"


def test_a_process_that_fails_is_a_sentence_and_leaves_no_note(cache, tmp_path, monkeypatch):
    def ask(*arguments):
        raise child.ChildError("crashed with SIGSEGV")

    monkeypatch.setattr(child, "ask", ask)
    with pytest.raises(ValueError, match=r"of libero_90 0 could .*SIGSEGV\); run .*doctor, or set"):
        prepare((0,), tmp_path)
    assert missing((0,), tmp_path) == [0]


def test_what_was_long_unused_goes(cache, tmp_path, monkeypatch):
    for name in (meshes.FOLDER, textures.FOLDER):
        kept.make(name, {f"{0:012x}": lambda: bytes(10)})
    monkeypatch.setattr(kept.trim, "__defaults__", (5,))
    assert missing((), tmp_path) == []
    assert not [*(cache / meshes.FOLDER).iterdir(), *(cache / textures.FOLDER).iterdir()]


@pytest.mark.slow
def test_a_simulator_finds_all_of_it(libero_assets, cache, monkeypatch):
    """Nothing is left for the simulators of a run to make, and little of it lies on the disk."""
    env = suite.make("libero_object", libero_assets, image_size_px=16, render_quality="light")
    light.prepare(light.missing([env.setup(0)]), worker.environment(), lambda count: None)
    for module, maker in ((meshes, "_lighter_file"), (textures, "smaller")):
        monkeypatch.setattr(module, maker, lambda *_: pytest.fail("made by a simulator"))
    env.reset(0, 0)
    env.close()
    made = [path for name in (meshes.FOLDER, textures.FOLDER) for path in (cache / name).iterdir()]
    assert len(made) > 50 and sum(path.stat().st_size for path in made) < 10e6
    assert all(caches.folder(path.parent.name) == path.parent for path in made)
