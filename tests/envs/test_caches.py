"""Caches where nobody can write: every process finds the same stand-in, and it is said once."""

import importlib.util
import logging
import os
import pathlib
import tempfile

import pytest

from pirl_jax.envs import caches
from pirl_jax.envs.libero import kept
from pirl_jax.envs.pool import worker
from pirl_jax.run import simulators


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A home that nobody can write, and a temporary folder."""
    for cached in (caches.can_write, caches._stand_in):
        cached.cache_clear()
    monkeypatch.setenv("HOME", "/proc/nobody")
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "NUMBA_CACHE_DIR", "MPLCONFIGDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    beside = [tmp_path / "ours", pathlib.Path("/proc/robosuite")]  # one of them read-only
    monkeypatch.setattr(caches, "_beside_compiled", lambda: beside)
    asked = (caches.can_write, caches._stand_in)
    yield tmp_path
    for cached in asked:
        cached.cache_clear()


def stand_in(places):
    return places / f"pirl_jax_{os.getuid()}"


def test_a_home_that_cannot_be_written(places):
    assert caches.users("meshes") == pathlib.Path("/proc/nobody/.cache/pirl_jax/meshes")
    assert caches.folder("meshes") == stand_in(places) / "meshes"
    assert stand_in(places).stat().st_mode & 0o777 == 0o700, "numba runs what lies there"
    assert caches.variables() == {
        "NUMBA_CACHE_DIR": str(stand_in(places) / "numba"),
        "MPLCONFIGDIR": str(stand_in(places) / "matplotlib"),
    }
    assert worker.environment().items() >= caches.variables().items()
    assert f"are kept in {stand_in(places)}" in caches.moved()
    paths = kept.make("meshes", {"0" * 24 + ".obj": lambda: b"v"})
    assert [path.read_bytes() for path in paths.values()] == [b"v"]
    assert stand_in(places) / "meshes" in next(iter(paths.values())).parents


def test_it_is_said_once(places, caplog):
    simulators._say_where_caches_are.cache_clear()
    with caplog.at_level(logging.WARNING):
        simulators._say_where_caches_are()
        simulators._say_where_caches_are()
    assert caplog.text.count("set XDG_CACHE_HOME to a folder that can be written") == 1
    simulators._say_where_caches_are.cache_clear()


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "NUMBA_CACHE_DIR"])
def test_a_place_of_the_users_is_taken(variable, places, monkeypatch):
    monkeypatch.setenv(variable, str(places / "mine"))
    expected = {"NUMBA_CACHE_DIR": str(places / "mine")} if variable.startswith("NUMBA") else {}
    found = caches.variables()
    assert found.keys() - {"MPLCONFIGDIR"} == expected.keys() and found.items() >= expected.items()
    assert not (places / "mine").exists(), "nothing is made by asking"


def test_numba_beside_what_it_compiles(places, monkeypatch):
    monkeypatch.setattr(caches, "_beside_compiled", lambda: [places / "a", places / "b"])
    assert "NUMBA_CACHE_DIR" not in caches.variables()


def test_every_file_that_numba_compiles_is_thought_of():
    """A cache beside the file of each; robosuite's are in one folder, too."""
    robosuite = importlib.util.find_spec("robosuite").submodule_search_locations[0]
    compiled = set()
    for root in (pathlib.Path(caches.__file__).parents[1], pathlib.Path(robosuite)):
        for path in root.rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if "njit(cache=True)" in text or "jit_decorator\n" in text:
                compiled.add(path.parent / "__pycache__")
    assert compiled == set(caches._beside_compiled())


def test_nothing_is_said_where_all_can_be_written(places, monkeypatch):
    monkeypatch.setenv("HOME", str(places))
    assert caches.moved() == "" and caches.variables() == {}
    assert caches.folder("meshes") == places / ".cache" / "pirl_jax" / "meshes"


def test_what_was_made_before_is_found(places, monkeypatch):
    """An image whose cache was filled when it was built."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(places / "image"))
    made = places / "image" / "pirl_jax" / "meshes" / "a.obj"
    made.parent.mkdir(parents=True)
    made.write_text("v")
    monkeypatch.setattr(caches, "can_write", lambda place: stand_in(places) == place)
    assert caches.find("meshes", "a.obj") == made
    assert caches.find("meshes", "b.obj") == stand_in(places) / "meshes" / "b.obj"


def test_a_stand_in_that_others_can_change(places):
    stand_in(places).mkdir(mode=0o777)
    stand_in(places).chmod(0o777)
    with pytest.raises(
        ValueError, match="is not a folder of this user's alone; set XDG_CACHE_HOME"
    ):
        caches.folder("meshes")


def test_a_stand_in_that_is_a_link(places):
    (places / "elsewhere").mkdir(mode=0o700)
    stand_in(places).symlink_to(places / "elsewhere")
    with pytest.raises(
        ValueError, match="is not a folder of this user's alone; set XDG_CACHE_HOME"
    ):
        caches.folder("meshes")


def test_no_place_at_all(places, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nowhere")
    with pytest.raises(ValueError, match=r"no cache can be written, .*; set XDG_CACHE_HOME to a"):
        caches.variables()
