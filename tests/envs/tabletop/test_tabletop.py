"""The embedded suite: contract, determinism, goals, controller law, pictures."""

import itertools
import logging

import mujoco
import numpy as np
import pytest

from pirl_jax.envs import panda, servo
from pirl_jax.envs.tabletop import scene
from pirl_jax.envs.tabletop import suite as tabletop

STILL = np.array([0, 0, 0, 0, 0, 0, -1.0])


@pytest.fixture(scope="module")
def env():
    env = tabletop.make(image_size_px=64)
    yield env
    env.close()


def place(env, name, xyz_m):
    env.data.joint(name).qpos[:] = *xyz_m, 1, 0, 0, 0
    env.data.joint(name).qvel[:] = 0
    mujoco.mj_forward(env.model, env.data)


def replay(env, task, init_state, actions_Ia):
    steps = [env.reset(task, init_state)]
    steps += [env.step_chunk(actions_Ia[:5]), env.step_chunk(actions_Ia[5:])]
    return steps, np.concatenate([env.data.qpos, env.data.qvel])


def test_contract(env):
    step = env.reset(0, 0)
    assert env.spec.num_tasks == len(tabletop.TASKS)
    assert env.spec.instructions[0] == "lift the red cube"
    assert step.images.shape == (2, 64, 64, 3) and step.images.dtype == np.uint8
    assert step.images.flags.c_contiguous
    assert step.state.shape == (8,) and step.state.dtype == np.float32
    assert step.reward == 0.0 and step.num_steps == 0
    assert not step.terminated and not step.truncated
    step = env.step_chunk(np.tile(STILL, (3, 1)), record=True)
    assert step.num_steps == 3 and len(step.frames) == 3
    np.testing.assert_array_equal(step.frames[-1], step.images[0])
    assert not set(tabletop.TRAIN_INIT_STATES) & set(tabletop.TEST_INIT_STATES)


def test_an_episode_is_a_function_of_its_name_and_actions(env):
    actions_Ia = np.random.default_rng(1).uniform(-1, 1, (12, 7))
    first, state = replay(env, 2, 7, actions_Ia)
    replay(env, 3, 100, -actions_Ia)
    other = tabletop.make(tasks=("move", "stack"), image_size_px=64)
    for again, state_again in (replay(env, 2, 7, actions_Ia), replay(other, 1, 7, actions_Ia)):
        np.testing.assert_array_equal(state, state_again)
        for step, repeated in zip(first, again, strict=True):
            np.testing.assert_array_equal(step.images, repeated.images)
            np.testing.assert_array_equal(step.state, repeated.state)
    other.close()


def places_m(task, init_state, spread=1.0):
    """[3,2] x and y of the three objects."""
    return [place[:2] for place in tabletop.placement(task, init_state, spread).values()]


def test_placements_keep_their_distance_and_differ():
    episodes = list(itertools.product(range(len(tabletop.TASKS)), range(0, 1000, 10)))
    xy_m = np.array([places_m(*episode) for episode in episodes])
    for first, second in ((0, 1), (0, 2), (1, 2)):
        apart_m = np.linalg.norm(xy_m[:, first] - xy_m[:, second], axis=-1)
        assert apart_m.min() >= tabletop.CLEARANCE_M
    assert np.all(np.abs(xy_m) <= np.array(list(tabletop.REACH_M.values())))
    assert len({tuple(row.ravel()) for row in xy_m}) == len(episodes)


def test_everything_rests_after_a_reset(env):
    start = env.reset(0, 3)
    red = env.position("red").copy()
    step = env.step_chunk(np.tile(STILL, (20, 1)))
    np.testing.assert_allclose(step.state, start.state, atol=1e-3)
    np.testing.assert_allclose(env.position("red"), red, atol=1e-3)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("sign", (-1, 1))
def test_a_delta_action_moves_the_gripper_along_its_axis(env, axis, sign):
    before = env.reset(0, 0).state
    action_a = STILL.copy()
    action_a[axis] = sign * 0.3
    moved = env.step_chunk(np.tile(action_a, (6, 1))).state[:3] - before[:3]
    # of 6 x 15 mm: each goal starts from the pose that lags behind
    assert 0.015 < sign * moved[axis] < 0.09
    assert np.abs(np.delete(moved, axis)).max() < 0.01


def test_actions_beyond_one_are_clipped_and_the_gripper_takes_eight_steps(env):
    wild = np.array([3, -2, 0, 0, 0, 0, 0.1])
    tame = np.array([1, -1, 0, 0, 0, 0, 1.0])
    env.reset(0, 0)
    state = env.step_chunk(np.tile(wild, (7, 1))).state
    assert env._grip < 1.0
    env.reset(0, 0)
    np.testing.assert_array_equal(state, env.step_chunk(np.tile(tame, (7, 1))).state)
    env.step_chunk(tame[None])
    assert env._grip == pytest.approx(1.0)


def test_success_predicates(env):
    above_table_m = scene.TABLE_TOP_M + scene.CUBE_HALF_M
    for task, name in ((0, "red"), (1, "green")):
        env.reset(task, 0)
        place(env, name, (0, 0.05, above_table_m + 0.039))
        assert not env.tasks[task].success(env)
        place(env, name, (0, 0.05, above_table_m + 0.041))
        assert env.tasks[task].success(env)
    env.reset(2, 0)
    green = env.position("green").copy()
    place(env, "red", servo.raised(green, 2 * scene.CUBE_HALF_M + 0.001))
    assert not env.tasks[2].success(env)  # above, not on it
    step = env.step_chunk(np.tile(STILL, (10, 1)))
    assert step.terminated and step.reward == 1.0 and step.num_steps < 10 and not step.truncated
    env.reset(3, 0)
    target = env.position("target").copy()
    place(env, "red", (target[0] + 0.035, target[1], above_table_m))
    assert not env.tasks[3].success(env)
    place(env, "red", (target[0] + 0.025, target[1], above_table_m + 0.02))
    assert not env.tasks[3].success(env)  # hovers
    place(env, "red", (target[0] + 0.025, target[1], above_table_m))
    assert env.tasks[3].success(env)


def test_no_reset_succeeds_at_once(env):
    for task in range(env.spec.num_tasks):
        env.reset(task, 11)
        assert not env.tasks[task].success(env)


def test_time_limit_and_misuse():
    env = tabletop.make(tasks=("lift",), image_size_px=16, max_episode_steps=4)
    with pytest.raises(ValueError, match="reset"):
        env.step_chunk(STILL[None])
    env.reset(0, 0)
    step = env.step_chunk(np.tile(STILL, (10, 1)))
    assert step.truncated and not step.terminated and step.num_steps == 4 and step.reward == 0.0
    with pytest.raises(ValueError, match="reset"):
        env.step_chunk(STILL[None])
    with pytest.raises(ValueError, match="init_state 1000"):
        env.reset(0, 1000)
    with pytest.raises(ValueError, match="task 1"):
        env.reset(1, 0)
    with pytest.raises(ValueError, match="lift_green"):
        tabletop.make(tasks=("fly",))
    with pytest.raises(ValueError, match="exact"):
        tabletop.make(render_quality="ugly")
    env.close()
    env.close()  # twice is fine


@pytest.mark.parametrize("quality", scene.QUALITIES)
def test_cubes_target_and_fingers_are_seen(quality):
    env = tabletop.make(image_size_px=64, render_quality=quality)
    agent, wrist = env.reset(0, 800).images.astype(int)
    states = [env.step_chunk(np.tile(STILL, (2, 1))).state]
    env.close()
    for view in (agent, wrist):
        red, green, blue = (view[..., i] - view.sum(-1) / 3 > 50 for i in range(3))
        assert red.sum() > 20 and green.sum() > 20 and blue.sum() > 20
    columns = np.nonzero(agent[..., 0] - agent.sum(-1) / 3 > 50)[1]
    # mirrored, as LIBERO's rotated pictures
    assert (columns.mean() > 32) == (tabletop.placement(0, 800)["red"][1] < 0)
    dark = agent[:20].max(-1) < 90  # the fingers, against the table
    assert dark.sum() > 5 or quality == "exact"
    assert np.isfinite(states[0]).all()


def test_both_qualities_have_the_same_physics():
    actions_Ia = np.random.default_rng(2).uniform(-1, 1, (10, 7))
    states = []
    for quality in scene.QUALITIES:
        env = tabletop.make(image_size_px=16, render_quality=quality)
        env.reset(0, 5)
        states.append(env.step_chunk(actions_Ia).state)
        env.close()
    np.testing.assert_array_equal(*states)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of robosuite at import
def test_torques_equal_robosuite(env):
    """The same state and goals give the torques of robosuite's OSC_POSE.

    Its rotations pass through float32.
    """
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    theirs_module = pytest.importorskip("robosuite.controllers.osc")
    from robosuite.utils.binding_utils import MjSim

    env.reset(0, 0)
    sim = MjSim(env.model)
    data = sim.data._data
    data.qpos[:] = env.data.qpos
    arm = list(range(7))
    places = {"joints": arm, "qpos": arm, "qvel": arm}
    limits = (-np.ones(7), np.ones(7))
    theirs = theirs_module.OperationalSpaceController(sim, panda.GRIP_SITE, places, limits)
    rng = np.random.default_rng(0)
    for i in range(8):
        action_a = rng.uniform(-1.5, 1.5, 7)
        if i % 3 == 0:
            action_a[3:6] = 0  # no rotation: the goal's is kept
        data.qpos[:] = env.data.qpos
        data.qvel[:] = env.data.qvel
        theirs.new_update = True
        theirs.set_goal(action_a[:6])
        env._arm.set_goal(action_a[:6])
        np.testing.assert_allclose(
            env._arm.torques(), theirs.run_controller(), rtol=1e-5, atol=1e-4
        )
        env._control_step(action_a)


@pytest.mark.parametrize("task", range(len(tabletop.TASKS)))
def test_every_start_state_has_room_for_all(task):
    """A shrunk area may lie within the clearance of what was placed first: all are placed anew."""
    for init_state in [*range(0, 1000, 50), 800]:
        xy_m = np.array(places_m(task, init_state, spread=0.5))
        apart_m = np.linalg.norm(xy_m[:, None] - xy_m[None], axis=-1) + np.eye(len(xy_m))
        assert apart_m.min() >= tabletop.CLEARANCE_M - 1e-12


def test_a_smaller_spread_draws_the_manipulated_cube_together():
    """In the env itself; the other objects keep their area."""
    places = {}
    for spread in (1.0, 0.2):
        env = tabletop.make(tasks=("lift",), image_size_px=16, spread=spread)
        for init_state in range(20):
            env.reset(0, init_state)
            found = places.setdefault(spread, {"red": [], "green": []})
            for name, xy in found.items():
                xy.append(env.data.body(name).xpos[:2].copy())
        env.close()
    size = {s: {n: np.ptp(xy, axis=0) for n, xy in found.items()} for s, found in places.items()}
    assert (size[0.2]["red"] < 0.3 * size[1.0]["red"]).all()
    assert (size[0.2]["green"] > 0.5 * size[1.0]["green"]).all()
