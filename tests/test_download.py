"""The download command with a stand-in for the hub: where files go, what is verified, what failures say."""

import shutil
import sys
import types

import pytest

from pirl_jax import download


@pytest.fixture
def assets(libero_assets):
    return libero_assets


@pytest.fixture
def hub(monkeypatch):
    """A huggingface_hub whose snapshot_download is `hub.serve`."""
    module = types.ModuleType("huggingface_hub")
    module.constants = types.SimpleNamespace(ENDPOINT="https://mirror.example")
    module.calls = []
    module.serve = lambda folder: None

    def snapshot_download(**arguments):
        module.calls.append(arguments)
        module.serve(arguments["local_dir"])

    module.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


@pytest.fixture(autouse=True)
def nothing_there(monkeypatch, tmp_path):
    monkeypatch.delenv("PIRL_LIBERO_ASSETS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def run(capsys, *arguments):
    download.main(["download", *arguments])
    return capsys.readouterr().out


def fails(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_:
        download.main(["download", *arguments])
    said = capsys.readouterr().err
    assert exit_.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1
    return said


def test_assets_go_where_they_are_found(capsys, hub, assets, tmp_path):
    hub.serve = lambda folder: shutil.copytree(assets, folder)
    said = run(capsys, "assets")
    folder = tmp_path / "home" / ".cache" / "libero" / "assets"
    assert hub.calls == [{"repo_id": "lerobot/libero-assets", "repo_type": "dataset", "local_dir": folder}]
    assert f"complete in {folder}; which is found without further settings" in said
    assert "complete" in run(capsys, "assets") and len(hub.calls) == 1, "a complete folder asks no server"


def test_another_folder_is_told_with_the_setting(capsys, hub, assets, tmp_path):
    hub.serve = lambda folder: shutil.copytree(assets, folder)
    assert f"give it as --config.env.assets={tmp_path / 'other'}" in run(capsys, "assets", "--to", str(tmp_path / "other"))


def test_an_existing_folder_is_verified_without_the_hub(capsys, assets, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setenv("PIRL_LIBERO_ASSETS", str(assets))
    assert "found without further settings" in run(capsys, "assets")


def test_an_incomplete_download_is_told(capsys, hub, assets, tmp_path):
    def serve(folder):
        shutil.copytree(assets, folder)
        (folder / "textures" / "gray_ceramic_tile.png").unlink()

    hub.serve = serve
    assert "1 asset files are missing in" in (said := fails(capsys, "assets", "--to", str(tmp_path / "other")))
    assert "(textures/gray_ceramic_tile.png); run the same command again" in said


def test_without_network(capsys, hub, tmp_path):
    def serve(folder):
        raise ConnectionError("no route\nto host")

    hub.serve = serve
    said = fails(capsys, "assets")
    assert "downloading lerobot/libero-assets from https://mirror.example failed (no route to host)" in said
    assert f"copy LIBERO's assets to {tmp_path / 'home' / '.cache' / 'libero' / 'assets'} by hand, or set env.assets" in said


def test_without_huggingface_hub(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "huggingface_hub is not installed; run: pip install huggingface_hub; or copy" in fails(capsys, "assets")


def test_unknown_target(capsys):
    with pytest.raises(SystemExit):
        download.main(["download", "weights"])
    assert "choose from" in capsys.readouterr().err
