"""LIBERO-PRO's tasks live: built, reset, stepped and rendered in workers, as in training."""

import functools

import numpy as np
import pytest

from pirl_jax import evaluate
from pirl_jax.envs.libero import files, plus, suite
from pirl_jax.envs.libero import simulator as simulators
from tests import pools

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

IMAGE_PX = 64


def live(assets, folder, suites, tasks):
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


def test_one_task_of_each_suite(libero_assets, libero_pro):
    """A perturbed task looks different; that of `_lan` and `_task` starts elsewhere."""
    suites = ",".join(files.PRO_SUITES)
    chosen = [10 * place + 1 + place % 4 for place in range(16)]
    pictures, _ = live(libero_assets, libero_pro, suites, chosen)
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
@pytest.mark.parametrize("suites", [",".join(files.PRO_SUITES), "libero_130"])
def test_every_task(libero_assets, libero_pro, suites):
    count = len(files.tasks(suites))
    pictures, thrown = live(libero_assets, libero_pro, suites, list(range(count)))
    assert len({picture.tobytes() for picture in pictures}) == count
    if suites == "libero_130":
        assert not any(thrown), "LIBERO's own start states throw nothing"


# (suite, task, start state) -> what a measurement over twenty more steps says
THROWN = {
    ("libero_spatial_task", 2, 21): True,  # across the table
    ("libero_spatial_lan", 0, 9): True,
    ("libero_spatial_lan", 0, 0): True,  # at rest again, 7 cm aside
    ("libero_spatial_lan", 1, 9): False,
    ("libero_spatial", 5, 7): False,  # falls 16 cm, straight down
}


def test_start_states_that_throw_an_object_are_flagged(libero_assets, libero_pro):
    found = {}
    for name, task, init_state in THROWN:
        setup = simulators.Setup(
            name, task, libero_assets, 10, seed=0, folders=files.Folders(pro=libero_pro)
        )
        simulator = simulators.Simulator(setup)
        simulator.start(init_state)
        found[name, task, init_state] = simulator.thrown
        # It is of the episode, not of the simulator.
        kept = simulator.snapshot()
        simulator.thrown = not kept.thrown
        simulator.restore(kept)
        assert simulator.thrown == kept.thrown
        simulator.close()
    assert found == THROWN


def test_the_command_plays_a_suite_and_its_perturbations(
    tmp_path, libero_assets, libero_pro, capsys, monkeypatch
):
    """Two start states of one task of each; again, it plays nothing, and tells the same."""
    monkeypatch.setenv("PIRL_LIBERO_PRO", str(libero_pro))
    fields = {
        "env.suite": "libero_object",
        "env.tasks": "3",
        "env.assets": libero_assets,
        "env.image_size_px": 32,
        "env.num_workers": 1,
        "env.render_quality": "light",
        "env.max_episode_steps": 5,
        "env.timeout_s": 300.0,
        "rollout.num_envs": 2,
        "eval.episodes_per_task": 2,
        "eval.num_videos": 0,
    }
    command = [
        "evaluate",
        "--config=libero_object_ppo_pi0",
        "--policy=random",
        "--pro=all",
        f"--output={tmp_path}",
    ]
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    evaluate.main(command)
    said = capsys.readouterr().out
    for name in files.PRO_DIMENSIONS:
        (line,) = [
            line
            for line in said.splitlines()
            if line.startswith(f"libero_object_{name} ") and "pairs" in line
        ]
        assert "0/2" in line and "2 pairs" in line
    played = (tmp_path / "episodes.jsonl").read_bytes()
    assert played.count(b"\n") == 11
    table = (tmp_path / "table.txt").read_text()
    evaluate.main(command)
    assert "10 of 10 episodes are in" in capsys.readouterr().out
    assert (tmp_path / "episodes.jsonl").read_bytes() == played
    assert (tmp_path / "table.txt").read_text() == table
