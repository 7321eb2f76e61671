"""What workers do first, tried before a run: imports, tasks of somebody's own."""

import os
import re
import shutil

import numpy as np
import pytest

from pirl_jax.envs.libero import files, preflight, stock
from pirl_jax.envs.pool import process

# robosuite, LIBERO and numba warn about themselves when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore")

STOCK = "libero_object"


@pytest.fixture
def libero(libero_assets):
    stock.import_libero(libero_assets)
    return libero_assets


@pytest.fixture
def folder(tmp_path):
    shutil.copy(files.bddl_file(STOCK, 0), tmp_path / "task.bddl")
    shutil.copy(files.init_file(STOCK, 0), tmp_path / "task.pruned_init")
    return tmp_path


def change(folder, before, after):
    path = folder / "task.bddl"
    text, count = re.subn(before, after, path.read_text())
    assert count, before
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "before, after, said",
    [
        (r"\)\s*$", "", "cannot be played (Exception: Missing close parenthesis); correct it: LIB"),
        (r"\(define", "(undefine", "cannot be played (NameError: "),
        (r"(?s).*", "", "cannot be played (Exception: Malformed expression)"),
        ("- milk", "- unicorn", "asks for an object 'unicorn', which LIBERO does not have; choose"),
        (r"\(In ", "(Behind ", "asks for a goal 'behind', which LIBERO does not have; choose one"),
        ("LIBERO_Floor", "LIBERO_Moon", "asks for a scene 'libero_moon_manipulation', which"),
        (
            r"\(:target floor\)",
            "(:target floor) (:yaw_rotation ((9**9**9 0)))",
            "yaw_rotation 9**9**9 is no number",
        ),
        ("robosuite", "gibson", "cannot be played (Exception: Different domain specified"),
        (r"\(:language[^()]*\)", "", "has no instruction that can be read"),
    ],
)
def test_a_file_that_libero_cannot_read(before, after, said, folder, libero):
    path = change(folder, before, after)
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        preflight.check(str(folder), 0, libero)
    assert str(path) in str(error.value) and "; " in str(error.value)


def test_every_yaw_of_liberos_own_tasks_is_a_number():
    words = set()
    for path in (files.package() / "bddl_files").rglob("*.bddl"):
        for found in preflight.YAW.findall(path.read_text()):
            words.update(found.split())
    assert len(words) > 5
    assert not [word for word in words if not preflight.NUMBER.fullmatch(word)]


@pytest.mark.slow
def test_a_goal_of_what_is_not_in_the_scene(folder, libero):
    change(folder, r"\(In alphabet_soup_1", "(In alphabet_soup_7")
    with pytest.raises(ValueError, match=r"task\.bddl cannot be played \(.*alphabet_soup_7"):
        preflight.check(str(folder), 0, libero)


@pytest.mark.slow
def test_start_states_of_another_scene(folder, libero):
    states = files.init_states(STOCK, 0)
    (folder / "task.pruned_init").unlink()
    np.save(folder / "task.npy", states[:, :-1])
    said = r"task\.npy has start states of (\d+) numbers, but the scene of task\.bddl has (\d+) \("
    with pytest.raises(ValueError, match=said) as error:
        preflight.check(str(folder), 0, libero)
    (found, wanted) = re.search(said, str(error.value)).groups()
    assert (int(found), int(wanted)) == (states.shape[1] - 1, states.shape[1])


@pytest.mark.slow
def test_a_task_that_can_be_played(folder, libero):
    preflight.check(str(folder), 0, libero)


def test_simulators_that_do_not_start(libero_assets, tmp_path):
    """In the environment of the workers: their modules, their variables."""
    question = preflight.Question(assets=str(libero_assets))
    broken = tmp_path / "robosuite"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise OSError('libGL is of another architecture')")
    (broken / "macros.py").write_text("")
    variables = process.variables(None)
    variables["PYTHONPATH"] = os.pathsep.join([str(tmp_path), variables["PYTHONPATH"]])
    with pytest.raises(ValueError, match="OSError: libGL is of another architecture") as error:
        preflight.ask(question, variables)
    assert str(error.value).startswith("simulators do not start here (")
    assert str(error.value).endswith("run python -m pirl_jax.doctor")
