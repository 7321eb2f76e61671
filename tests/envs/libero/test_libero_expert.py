"""The scripted expert solves real LIBERO tasks; its grasps on geometry that can be counted by hand."""

import numpy as np
import pytest

from pirl_jax.envs import experts
from pirl_jax.envs.libero import expert, files
from pirl_jax.envs.libero import suite as libero

# robosuite, LIBERO and numba warn about themselves when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def make(libero_assets):
    with pytest.MonkeyPatch.context() as patch:  # what the expert does not look at
        patch.setattr(libero.Libero, "_render", lambda self, camera: np.zeros((2, 2, 3), np.uint8))
        yield lambda suite: libero.make(suite, libero_assets, image_size_px=2)


def solve(env, task, init_state, noise=0.0):
    """Control steps until success; None: not solved."""
    env.reset(task, init_state)
    act, steps, rng = experts.expert(env), 0, np.random.default_rng(init_state)
    while True:
        step = env.step_chunk(experts.perturbed(act(), noise, rng)[None])
        steps += 1
        if step.terminated or step.truncated:
            return steps if step.terminated else None


def test_grasp_and_episode_of_one_task(make):
    """Cream cheese, flat on the floor: 18 mm high, 43 mm by 81 mm, its short side along y.  Closing along y the hand
    would touch what stands beside, so it turns by one step of 22.5 degrees, in which the fingers still hold it."""
    env = make("libero_object")
    env.reset(1, 0)
    scene = expert.Scene(env)
    corners = scene.corners(scene.thing)
    np.testing.assert_allclose(np.sort(np.ptp(corners, 0)), [0.018, 0.043, 0.081], atol=2e-3)
    point, direction_rad = expert._grasp(scene)
    np.testing.assert_allclose(point[:2], scene.position()[:2], atol=2e-3)
    assert abs(point[2] - (corners[:, 2].min() + expert.TIP_M)) < 1e-9, (
        "the fingertips end on the floor"
    )
    assert np.isclose(direction_rad, np.pi / 2 - np.pi / 8)
    touching = [
        np.sum(scene.room(expert._hand_points(point, a)) < expert.TOUCH_M)
        for a in (np.pi / 2, direction_rad)
    ]
    assert touching[0] > 0 and touching[1] == 0
    assert 0.0 < scene.opening_m() - 0.07 < 0.02
    assert scene.room(point[None])[0] < 0.0 < scene.room(point[None] + [0.0, 0.0, 0.3])[0]
    assert solve(env, 1, 0) is not None
    env.close()


def test_every_task_has_one_goal_the_script_can_read(make):
    """Without a simulator: the goal of each task is one (on | in) of an object that a hand can grip."""
    for suite in files.WITH_EXPERT:
        for task in range(10):
            goal = files.bddl_file(suite, task).read_text().split("(:goal")[1]
            words = goal.replace("(", " ").replace(")", " ").split()
            assert words[0] == "And" and words[1] in ("On", "In") and len(words) == 4


@pytest.mark.slow
@pytest.mark.parametrize("suite, task", [("libero_object", 7), ("libero_spatial", 4)])
def test_solves_nine_of_ten(make, suite, task):
    """The tallest carton, and a bowl inside of an open drawer; the actions disturbed as in demonstrations."""
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
    assert (
        episode["success"]
        and 60 < length < 200
        and episode["instruction"].startswith("pick up the tomato sauce")
    )
    assert episode["images"].shape == (length, 2, 2, 2, 3) and episode["state"].shape == (length, 8)
