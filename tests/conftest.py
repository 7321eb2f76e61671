"""Eight virtual CPU devices, warnings as errors, one compilation cache, one door to the vectors."""

import os
import pathlib
import shutil
import signal

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling is the cost of these tests: the CPU compiler's optimisations and fusion emitters cost
# 5 times what they save.
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false",
    )
)
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("PYOPENGL_PLATFORM", os.environ["MUJOCO_GL"])

import jax
import pytest
import reference_files

from pirl_jax.envs.libero import files, perturbed

ROOT = pathlib.Path(__file__).parents[1]

# A job in the background ignores SIGINT, and so would all commands that the tests start.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


@pytest.fixture(scope="session")
def vectors() -> pathlib.Path:
    """Folder of the reference vectors (openpi/, rlinf/): all, or the part that is committed."""
    return reference_files.FOLDER


@pytest.fixture(scope="session")
def libero_assets() -> pathlib.Path:
    """LIBERO's meshes and scenes: $PIRL_LIBERO_ASSETS, else those of the installed packages."""
    try:
        return files.find_assets(None)
    except files.NotInstalledError as error:  # named and not there, or half there, is an error
        pytest.skip(f"LIBERO's assets are not installed: {error}")


@pytest.fixture(scope="session")
def libero_pro() -> pathlib.Path:
    """LIBERO-PRO's task files and start states, where they are."""
    return _unpacked(perturbed.folders().pro, "libero_pro")


@pytest.fixture(scope="session")
def libero_plus() -> pathlib.Path:
    """The same of LIBERO-Plus."""
    return _unpacked(perturbed.folders().plus, "libero_plus")


def _unpacked(folder: pathlib.Path, name: str) -> pathlib.Path:
    if not (folder / perturbed.ORIGIN).is_file():
        pytest.skip(f"LIBERO: {name} is not in {folder}; run: pirl download {name}")
    return folder


# A browser that asks nobody for anything.
OFFLINE = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


@pytest.fixture(scope="module")
def chromium():
    """Debian's; the one that the package would download is not needed."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("Chromium is not installed")
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=OFFLINE)
        yield browser
        browser.close()


# Files that one process works on for minutes.  Begun last, they would leave the other idle.
LONGEST = (
    "test_train.py",
    "test_serve.py",
    "test_evaluate.py",
    "test_plan.py",
    "test_collector.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; the order within a file stays."""

    def place(item: pytest.Item) -> int:
        name = item.path.name
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=place)
