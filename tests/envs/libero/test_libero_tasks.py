"""Tasks of LIBERO, LIBERO-PRO and LIBERO-Plus live: built, reset, stepped, drawn in workers."""

import functools

import numpy as np
import pytest

from pirl_jax.envs.libero import files, plus, suite
from tests import pools

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

IMAGE_PX = 64
TASKS = {name: 90 if name == "libero_90" else 10 for name in (*files.OWN_FILES, *files.PRO_SUITES)}


def live(assets, suites, tasks, folder=None):
    """Reset, five random steps and pictures of each task; -> first pictures, whether thrown."""
    make = functools.partial(
        suite.make, suites, assets, image_size_px=IMAGE_PX, cached_tasks=1, pro_files=folder
    )
    actions = np.random.default_rng(0).uniform(-1, 1, (2, 5, 7))
    pictures, thrown = [], []
    with pools.start(make, num_envs=2, timeout_s=300) as envs:
        for first in range(0, len(tasks), 2):
            pair = tasks[first : first + 2]
            slots = list(range(len(pair)))
            envs.reset(slots, pair, [task % 50 for task in pair])
            start = envs.recv(slots)
            envs.send(slots, actions[: len(pair)])
            end = envs.recv(slots)
            assert not start.lost.any() and not end.lost.any(), pair
            assert (end.num_steps == 5).all() and np.isfinite(end.state).all(), pair
            assert not end.terminated.any(), f"{pair}: nothing was done, and it counts"
            contrast = start.images.reshape(len(pair), 2, -1).std(-1)
            assert (contrast > 15).all(), f"{pair}: a camera shows nothing"
            moved = np.abs(end.state[:, :3] - start.state[:, :3]).max(1)
            assert (moved > 1e-3).all(), f"{pair}: the arm does not move"
            pictures += list(start.images[:, 0])
            thrown += start.thrown.tolist()
    return pictures, thrown


def one_of_each(names):
    """A task of each suite, by its number in the list of them: the second to the fifth."""
    chosen, before = [], 0
    for place, name in enumerate(names):
        chosen.append(before + 1 + place % 4)
        before += TASKS[name]
    return chosen


def test_one_task_of_each_suite(libero_assets):
    names = files.OWN_FILES
    pictures, thrown = live(libero_assets, ",".join(names), one_of_each(names))
    assert len({picture.tobytes() for picture in pictures}) == 5
    assert not any(thrown), "LIBERO's own start states throw nothing"


def test_one_task_of_each_suite_of_libero_pro(libero_assets, libero_pro):
    """A perturbed task looks different; that of `_lan` and `_task` starts elsewhere."""
    names = files.PRO_SUITES
    pictures, _ = live(libero_assets, ",".join(names), one_of_each(names), libero_pro)
    assert len({picture.tobytes() for picture in pictures}) == 16


def test_one_task_of_each_dimension_of_libero_plus(libero_assets, libero_plus):
    """Camera and noise change the picture, the arm's pose the motion, and nothing the wrong one."""
    names = [f"libero_goal_plus_{dimension}" for dimension in plus.DIMENSIONS]
    folders = files.Folders(plus=libero_plus)
    (task,) = [task for task in files.tasks("libero_goal") if task.name == "turn_on_the_stove"]
    make = functools.partial(
        suite.make, cached_tasks=1, assets=libero_assets, image_size_px=IMAGE_PX
    )
    found = {}
    for name in ("libero_goal", *names):
        env = make(name, plus_files=libero_plus, wording="bddl")
        number = task.number
        if name != "libero_goal":
            (number, *_) = [
                other.number
                for other in files.tasks(name, folders)
                if other.variant.task == task.name
            ]
        start = env.reset(number, 0)
        found[name] = start, env.spec.instructions[number], env.simulator.data.qpos.copy()
        assert not start.thrown and start.images.std(axis=(1, 2, 3)).min() > 15
        env.close()
    (own, words, qpos), *others = found.values()
    for dimension, (start, said, theirs) in zip(plus.DIMENSIONS, others, strict=True):
        same = [np.array_equal(*pair) for pair in zip(start.images, own.images, strict=True)]
        still = np.array_equal(qpos, theirs)
        expected = {
            "camera": ([False, True], True, True),
            "robot": ([False, False], False, True),
            "language": ([True, True], True, False),
            "noise": ([False, True], True, True),
            "layout": ([False, False], False, True),
        }
        assert (same, still, said == words) == expected[dimension], dimension


@pytest.mark.every_task
@pytest.mark.parametrize("name", files.OWN_FILES)
def test_every_task(libero_assets, name):
    pictures, thrown = live(libero_assets, name, list(range(TASKS[name])))
    assert len({picture.tobytes() for picture in pictures}) == len(files.tasks(name))
    assert not any(thrown)


@pytest.mark.every_task
@pytest.mark.parametrize("name", files.PRO_SUITES)
def test_every_task_of_libero_pro(libero_assets, libero_pro, name):
    pictures, _ = live(libero_assets, name, list(range(TASKS[name])), libero_pro)
    assert len({picture.tobytes() for picture in pictures}) == len(files.tasks(name))
