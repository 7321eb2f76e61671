"""What a LIBERO worker does first, tried once before a run and with a worker's variables.

Imports that fail, drivers, a LIBERO that is another one, tasks of somebody's own that cannot be
played: all of it would end every worker in the same way.  Run as `python -m
pirl_jax.envs.libero.preflight QUESTION`, where the question is the JSON of `Question`.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import pathlib
import re
import sys
from typing import Any

from pirl_jax.envs import child
from pirl_jax.envs.libero import assets as asset_files
from pirl_jax.envs.libero import custom, files

TIMEOUT_S = 300.0  # imports from a network disk, and numba's first compilation
TASK_S = 60.0  # for each task of somebody's own
EXAMPLES = "LIBERO's own in its folder bddl_files are examples"
# LIBERO evaluates these as Python.
YAW = re.compile(r":yaw_rotation\s*\(\s*\(([^()]*)\)", re.IGNORECASE)
NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+|pi)(e-?\d{1,2})?([*/](\d+\.?\d*|pi))?", re.IGNORECASE)
REMEDIES = {  # of what an import says
    "MUJOCO_EGL_DEVICE_ID": "unset MUJOCO_EGL_DEVICE_ID and name EGL devices in env.render_devices",
    "no locator available": "set NUMBA_CACHE_DIR to a folder that can be written",
    "No module named": files.INSTALL_SIMULATORS,
}
DOCTOR = "run python -m pirl_jax.doctor"


@dataclasses.dataclass(frozen=True)
class Question:
    """What workers are going to play."""

    assets: str
    plus_assets: str | None = None
    folder: str | None = None  # of tasks of somebody's own
    tasks: tuple[int, ...] = ()  # of these; (): all


def ask(question: Question, variables: Mapping[str, str | None]) -> dict[str, dict[str, Any]]:
    """Which simulator workers with these variables import (see identity.imported).

    Raises:
        ValueError: they would fail, and why.
    """
    timeout_s = TIMEOUT_S
    if question.folder:
        timeout_s += TASK_S * len(_numbers(question))
    text = json.dumps(dataclasses.asdict(question))
    arguments = ["-m", "pirl_jax.envs.libero.preflight", text]
    try:
        return child.ask([*child.PYTHON_FLAGS, *arguments], variables, timeout_s)
    except child.ChildError as error:
        said = str(error)
        # A sentence of ours has its remedy.
        if "; " not in said:
            said = f"simulators do not start here ({said}); {DOCTOR}"
        raise ValueError(said) from error


def answer(question: Question) -> dict[str, dict[str, Any]]:
    """In the process."""
    try:
        from pirl_jax.envs.libero import identity, stock

        plus_assets = pathlib.Path(question.plus_assets) if question.plus_assets else None
        stock.import_libero(pathlib.Path(question.assets), plus_assets)
        found = identity.imported()
    except ValueError as error:
        if "; " in str(error):
            raise
        raise _no_start(error) from error
    except Exception as error:  # an import may raise anything
        raise _no_start(error) from error
    for task in _numbers(question) if question.folder else ():
        check(question.folder, task, pathlib.Path(question.assets))
    return found


def _numbers(question: Question) -> Sequence[int]:
    count = len(custom.names(question.folder))
    # A task that does not exist is refused where the suite is known.
    return [task for task in question.tasks or range(count) if task < count]


def _no_start(error: Exception) -> ValueError:
    said = " ".join(f"{type(error).__name__}: {error}".split())
    remedy = next((text for part, text in REMEDIES.items() if part in said), DOCTOR)
    return ValueError(f"simulators do not start here ({said}); {remedy}")


# ---- a task of somebody's own --------------------------------------------------------------------


def check(folder: str, task: int, assets: pathlib.Path) -> None:
    """A task can be played from its first start state; LIBERO is imported.

    Raises:
        ValueError: it cannot.
    """
    from pirl_jax.envs.libero import simulator as simulators

    bddl = files.bddl_file(folder, task)
    check_text(bddl)
    states = files.init_states(folder, task)
    setup = simulators.Setup(folder, task, assets, settle_steps=1, seed=0)
    try:
        simulator = simulators.Simulator(setup)
        model = simulator.model
        width = 1 + model.nq + model.nv
        if states.shape[1] == width:
            simulator.start(init_state=0)
            simulator.step(simulators.IDLE_ACTION)  # asks for the goal
        simulator.close()
    except Exception as error:  # whatever LIBERO makes of a file
        raise _unplayable(bddl, error) from error
    if states.shape[1] != width:
        path = files.init_file(folder, task)
        raise ValueError(
            f"{path} has start states of {states.shape[1]} numbers, but the scene of {bddl.name}"
            f" has {width} (1 + {model.nq} + {model.nv}: time, qpos, qvel); write start states of"
            " this very scene"
        )


def check_text(bddl: pathlib.Path) -> None:
    """What LIBERO's own errors would not name.

    Raises:
        ValueError: one sentence with the file.
    """
    from libero.libero.envs import base_object, bddl_base_domain, bddl_utils, predicates

    text = bddl.read_text(encoding="utf-8")
    for words in YAW.findall(text):
        for word in words.split():
            if not NUMBER.fullmatch(word):
                raise _unplayable(bddl, ValueError(f"yaw_rotation {word} is no number"))
    try:
        problem = bddl_utils.robosuite_parse_problem(str(bddl))
        kinds = {*problem["objects"], *problem["fixtures"]}
        goals = [state[0] for state in problem["goal_state"]]
    except Exception as error:  # its parser raises bare ones
        raise _unplayable(bddl, error) from error
    files.own_wording(bddl)
    scenes = bddl_base_domain.TASK_MAPPING
    known = base_object.OBJECTS_DICT.keys() | asset_files.IN_THE_SCENE | {"coffee_table"}
    for what, name, table in (
        ("a scene", problem["problem_name"], scenes),
        *(("an object", kind, known) for kind in sorted(kinds)),
        *(("a goal", goal, predicates.VALIDATE_PREDICATE_FN_DICT) for goal in goals),
    ):
        if name not in table:
            raise ValueError(
                f"{bddl} asks for {what} {name!r}, which LIBERO does not have; choose one of:"
                f" {', '.join(sorted(table))}"
            )


def _unplayable(bddl: pathlib.Path, error: Exception) -> ValueError:
    said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return ValueError(f"{bddl} cannot be played ({said}); correct it: {EXAMPLES}")


def _main(text: str) -> dict:
    fields = json.loads(text)
    return answer(Question(**fields | {"tasks": tuple(fields["tasks"])}))


if __name__ == "__main__":
    child.answer(lambda: _main(sys.argv[1]))
