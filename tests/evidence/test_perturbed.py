"""What perturbs a trained task, and what that showed: start and end on the same episodes."""

import pytest

from pirl_jax import evaluate
from pirl_jax.envs.libero import files, plus
from pirl_jax.envs.libero import perturbed as data
from pirl_jax.evidence import cells, perturbed
from pirl_jax.run import command, config
from tests import run_folders

CELLS = [cell for cell in cells.TABLE.cells if cell.perturbed]


def played(cell, kind):
    """Settings of the evaluation that its command line means."""
    settings, arguments = perturbed.evaluations(cell)[kind]
    fields = {**cell.settings, **settings}
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    argv = ["evaluate", f"--config={cell.recipe}", *flags, "--checkpoint=runs/x", *arguments]
    options, raw = command.parse(argv, evaluate._parser())
    return evaluate._perturbed(options, config.settings(raw)).raw


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_every_perturbation_of_the_trained_tasks_and_no_other_task(cell, libero_pro, libero_plus):
    own = set(cell.settings["env.tasks"])
    suite = cell.settings["env.suite"]
    pro = played(cell, perturbed.PRO).env
    tasks = files.tasks(pro.suite, data.folders())
    found = [tasks[number] for number in pro.tasks]
    suites = {suite, *(f"{suite}_{dimension}" for dimension in files.PRO_DIMENSIONS)}
    assert {task.suite for task in found} == suites
    assert {task.number for task in found} == own and len(found) == len(own) * len(suites)
    assert pro.render_quality == "exact" and pro.split == "published"
    of_plus = played(cell, perturbed.PLUS).env
    tasks = files.tasks(of_plus.suite, data.folders())
    found = [tasks[number] for number in of_plus.tasks]
    assert {files.perturbed(task).number for task in found} == own
    assert {task.suite.rpartition("_")[2] for task in found} == set(plus.DIMENSIONS)
    others = [task for n, task in enumerate(tasks) if n not in of_plus.tasks]
    assert not own & {files.perturbed(task).number for task in others[::97]}


def test_one_entry_per_dimension_paired_by_episode(tmp_path, libero_plus):
    cell = CELLS[0]
    pro = {"suite": "libero_object,libero_object_swap"}
    of_plus = {"suite": "libero_object_plus_camera,libero_object_plus_robot"}
    cameras = len(files.tasks("libero_object_plus_camera", data.folders()))
    names = ["words"] * (cameras + 1)
    for run, solved in (("start", 1), ("end", 3)):
        folder = tmp_path / run / "evaluation"
        own = {(task, state): (state < solved, 20) for task in (0, 10) for state in range(4)}
        own[10, 3] = (run == "start", 20)
        run_folders.evaluation(folder / perturbed.PRO, own, names[:11], **pro)
        own = {(0, 0): (run == "end", 20), (cameras, 0): (True, 20)}
        run_folders.evaluation(folder / perturbed.PLUS, own, names, **of_plus)
    found = perturbed.result(cell, 1, tmp_path / "start", tmp_path / "end")
    assert (found["cell"], found["seed"]) == (cell.name, 1)
    dimensions = found["dimensions"]
    assert set(dimensions) == {*pro["suite"].split(","), *of_plus["suite"].split(",")}
    swap = dimensions["libero_object_swap"]
    assert (swap["before"]["successes"], swap["after"]["successes"]) == (2, 3)
    change = swap["change"]
    assert (change["pairs"], change["gained"], change["lost"]) == (4, 2, 1)
    assert dimensions["libero_object_plus_camera"]["change"]["gained"] == 1
    assert dimensions["libero_object_plus_robot"]["change"]["rate"] == 0
    assert found["evaluations"][perturbed.PRO]["git"] == "abc"
