"""Caches where nobody can write: every process finds the same stand-in, and it is said once."""

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
    # robosuite beside its own cache, in a folder like that
    monkeypatch.setattr(caches, "_beside_robosuite", lambda: [pathlib.Path("/proc/robosuite")])
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
    assert "NUMBA_CACHE_DIR" not in caches.variables()
    assert not (places / "mine").exists(), "nothing is made by asking"


def test_numba_beside_robosuite(places, monkeypatch):
    monkeypatch.setattr(caches, "_beside_robosuite", lambda: [places])
    assert "NUMBA_CACHE_DIR" not in caches.variables()


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
