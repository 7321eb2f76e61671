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


# ---- which devices play, and which learn ----------------------------------------------------


def placed(rollout="all", actor="all", **mesh):
    fields = page.Page().as_dict()
    fields["placement"].update(rollout=rollout, actor=actor)
    fields["mesh"].update(mesh)
    return config.settings(fields)


def numbers(mesh):
    return [device.id for device in mesh.devices.flat], dict(mesh.shape)


@pytest.mark.parametrize(
    "fields, learns, plays",
    [
        (dict(), (range(8), 8, 1), (range(8), 8, 1)),
        (dict(fsdp=2), (range(8), 4, 2), (range(8), 4, 2)),
        (dict(rollout="4-7"), (range(8), 8, 1), (range(4, 8), 4, 1)),
        (dict(rollout="4-7", fsdp=2), (range(8), 4, 2), (range(4, 8), 2, 2)),
        (dict(rollout="4-7", fsdp=8), (range(8), 1, 8), (range(4, 8), 4, 1)),
        (dict(rollout="2-5", actor="6-7"), ((6, 7), 2, 1), (range(2, 6), 4, 1)),
        (dict(rollout="2-5", actor="6-7", fsdp=2), ((6, 7), 1, 2), (range(2, 6), 4, 1)),
        (dict(actor="0,2"), ((0, 2), 2, 1), (range(8), 8, 1)),
        (dict(rollout="1", actor="1"), ((1,), 1, 1), ((1,), 1, 1)),
    ],
)
def test_devices_of_the_roles(fields, learns, plays):
    """Whole rows of the learner's mesh where there are any, else a whole copy on every device."""
    settings = placed(**fields)
    mesh = devices.mesh(settings)
    for found, (ids, data, fsdp) in ((mesh, learns), (devices.playing(settings, mesh), plays)):
        assert numbers(found) == (list(ids), {"data": data, "fsdp": fsdp})
    own = devices.playing(settings, mesh)
    assert set(devices.acting(settings).devices.flat) == set(own.devices.flat)


def test_devices_that_are_not_here_are_named_by_their_key():
    with pytest.raises(ValueError, match=r"placement.rollout='6-9' names device 8, .* has 8 devic"):
        devices.mesh(placed(rollout="6-9"))
    with pytest.raises(ValueError, match=r"mesh\.fsdp=4 does not divide the 2 devices"):
        devices.mesh(placed(rollout="2-5", actor="6-7", fsdp=4))
    with pytest.raises(ValueError, match=r"multiple of the 7 devices of placement\.rollout=0-6"):
        devices.mesh(placed(rollout="0-6"))
