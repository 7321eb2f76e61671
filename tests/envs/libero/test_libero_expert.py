"""The scripted expert solves real LIBERO tasks; grasps on geometry counted by hand."""

import itertools

import numpy as np
import pytest

from pirl_jax.envs import experts, servo
from pirl_jax.envs.libero import expert, files
from pirl_jax.envs.libero import suite as suites

# robosuite, LIBERO and numba warn about themselves when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore")


def _blank(env, camera):
    return np.zeros((2, 2, 3), np.uint8)


@pytest.fixture(scope="module")
def make(libero_assets):
    with pytest.MonkeyPatch.context() as patch:  # what the expert does not look at
        patch.setattr(suites.Libero, "_render", _blank)
        yield lambda suite: suites.make(suite, libero_assets, image_size_px=2)


def solve(env, task, init_state, noise=0.0):
    """Control steps until success; None: not solved."""
    env.reset(task, init_state)
    act = experts.expert(env)
    rng = np.random.default_rng(init_state)
    for num_steps in itertools.count(1):
        step = env.step_chunk(experts.perturbed(act(), noise, rng)[None])
        if step.terminated or step.truncated:
            return num_steps if step.terminated else None


def touching(scene, grasp):
    """How many points of the hand are too near to something."""
    return np.sum(scene.room(expert._hand_points(grasp)) < expert.TOUCH_M)


def test_grasp_and_episode_of_one_task(make):
    """Cream cheese, flat on the floor: 18 mm high, 43 mm by 81 mm, its short side along y.

    Closing along y the hand would touch what stands beside, so it turns by one step of 22.5
    degrees, in which the fingers still hold it.
    """
    env = make("libero_object")
    env.reset(1, 0)
    scene = expert.Scene(env)
    corners = scene.corners(scene.thing)
    np.testing.assert_allclose(np.sort(np.ptp(corners, 0)), [0.018, 0.043, 0.081], atol=2e-3)
    grasp = expert._best_grasp(scene)
    np.testing.assert_allclose(grasp.point_m[:2], scene.position()[:2], atol=2e-3)
    tips_z = grasp.point_m[2] - expert.TIP_M
    assert abs(tips_z - corners[:, 2].min()) < 1e-9, "the fingertips end on the floor"
    assert np.isclose(grasp.direction_rad, np.pi / 2 - np.pi / 8)
    along_y = expert.Grasp(grasp.point_m, np.pi / 2)
    assert touching(scene, along_y) > 0 and touching(scene, grasp) == 0
    assert 0.0 < scene.opening_m() - 0.07 < 0.02
    inside_m = scene.room(grasp.point_m[None])[0]
    above_m = scene.room(servo.raised(grasp.point_m, 0.3)[None])[0]
    assert inside_m < 0.0 < above_m
    assert solve(env, 1, 0) is not None
    env.close()


def test_every_task_has_one_goal_the_script_can_read(make):
    """Without a simulator: each task has one goal, (on | in) of an object that a hand can grip."""
    for suite in files.WITH_EXPERT:
        for task in range(10):
            goal = files.bddl_file(suite, task).read_text().split("(:goal")[1]
            words = goal.replace("(", " ").replace(")", " ").split()
            assert words[0] == "And" and words[1] in ("On", "In") and len(words) == 4


@pytest.mark.slow
@pytest.mark.parametrize("suite, task", [("libero_object", 7), ("libero_spatial", 4)])
def test_solves_nine_of_ten(make, suite, task):
    """The tallest carton, and a bowl in an open drawer; actions disturbed as in demonstrations."""
    env = make(suite)
    solved = [solve(env, task, init_state, noise=0.1) is not None for init_state in range(10)]
    env.close()
    assert sum(solved) >= 9


@pytest.mark.slow
def test_demonstrations_of_libero(make):
    env = make("libero_object")
    (episode,) = experts.collect_demonstrations(env, 5, [3], seed=1)
    env.close()
    length = len(episode["actions"])
    assert episode["success"] and 60 < length < 200
    assert episode["instruction"].startswith("pick up the tomato sauce")
    assert episode["images"].shape == (length, 2, 2, 2, 3)
    assert episode["state"].shape == (length, 8)
