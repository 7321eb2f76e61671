"""Where compiled programs are kept."""

import pathlib

import jax
import pytest

from pirl_jax.core import page, paths
from pirl_jax.envs import caches
from pirl_jax.run import config, devices


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """What jax is told, and a stand-in for a home that nobody can write."""
    told = {}
    monkeypatch.setattr(jax.config, "update", told.__setitem__)
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(caches, "can_write", lambda place: home not in place.parents)
    monkeypatch.setattr(caches, "_stand_in", lambda: tmp_path / "stand_in")
    return told


def settings(folder):
    fields = page.Page().as_dict()
    fields["run"]["compilation_cache"] = folder
    return config.settings(fields)


def test_a_home_that_cannot_be_written_is_said(kept, tmp_path, caplog):
    devices.setup_jax(settings(page.Run.compilation_cache))
    assert kept["jax_compilation_cache_dir"] == str(tmp_path / "stand_in" / "compiled")
    assert f"is {tmp_path / 'stand_in' / 'compiled'}" in caplog.text


def test_a_folder_of_the_users_is_taken_or_refused(kept, tmp_path, caplog):
    devices.setup_jax(settings(str(tmp_path / "mine")))
    assert kept["jax_compilation_cache_dir"] == str(tmp_path / "mine") and not caplog.text
    with pytest.raises(ValueError, match=r"^run\.compilation_cache=/proc/x cannot be written"):
        devices.setup_jax(settings("/proc/x"))


def test_a_home_that_can_be_written_stays_the_place(kept, monkeypatch):
    monkeypatch.setattr(caches, "can_write", lambda place: True)
    devices.setup_jax(settings(page.Run.compilation_cache))
    home = paths.absolute(page.Run.compilation_cache)
    assert pathlib.Path(kept["jax_compilation_cache_dir"]) == home


def test_none_at_all(kept):
    devices.setup_jax(settings(""))
    assert not kept
