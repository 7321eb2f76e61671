"""Which simulator was imported, whatever metadata says."""

import os
import shutil

import pytest

from pirl_jax.envs.libero import files, identity, preflight
from pirl_jax.envs.pool import process

# robosuite, LIBERO and numba warn about themselves when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_installed_libero_is_the_pinned_one():
    assert identity.of_libero(files.package()) == identity.PINNED


@pytest.fixture
def copied(tmp_path):
    """A LIBERO of somebody's own, found first."""
    outer = files.package().parent
    shutil.copytree(outer, tmp_path / "libero", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "libero" / "libero"


@pytest.mark.parametrize(
    "name, part",
    [
        ("benchmark/libero_suite_task_map.py", "task map"),
        ("envs/predicates/base_predicates.py", "code"),
        ("bddl_files/libero_goal/turn_on_the_stove.bddl", "tasks"),
        ("init_files/libero_goal/turn_on_the_stove.pruned_init", "tasks"),
    ],
)
def test_what_is_changed_is_named(name, part, copied):
    with (copied / name).open("ab") as file:
        file.write(b"\n# ")
    found = {"libero": {"folder": str(copied), **identity.of_libero(copied)}}
    said = rf"the LIBERO in {copied} is not hf-libero 0\.1\.4 \(its {part} differ\); .*env\.libero="
    with pytest.raises(ValueError, match=said):
        identity.require_pinned(found)


def test_what_is_imported_and_not_what_is_installed(copied, libero_assets):
    """The workers' sys.path decides; metadata would name the installed one."""
    with (copied / "benchmark/libero_suite_task_map.py").open("a") as file:
        file.write("\nlibero_task_map['libero_goal'].reverse()\n")
    variables = process.variables(None)
    before = str(copied.parents[1])
    variables["PYTHONPATH"] = os.pathsep.join([before, variables["PYTHONPATH"]])
    found = preflight.ask(preflight.Question(str(libero_assets)), variables)
    libero = found["libero"]
    assert libero["folder"] == str(copied) and libero["version"] is None
    assert libero["assets"] == str(libero_assets)
    with pytest.raises(ValueError, match="its task map differ"):
        identity.require_pinned(found)
    kept = identity.without_folders(found)
    assert "folder" not in kept["libero"] and "assets" not in kept["libero"]
    assert kept["libero"]["sha256_of_task_map"] != identity.PINNED["sha256_of_task_map"]
    assert found["mujoco"]["version"] == kept["mujoco"]["version"] == "3.3.7"
    assert found["robosuite"]["version"] == "1.4.0"
