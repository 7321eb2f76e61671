"""Physics of LIBERO tasks against the stock environment, bit by bit; saving and restoring."""

import pickle

import mujoco
import numpy as np
import pytest

from pirl_jax.envs.libero import control, files
from pirl_jax.envs.libero import simulator as libero_sim

# robosuite, LIBERO and numba warn about themselves when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore")

SETTLE_STEPS = 3
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (100, 7))
ACTIONS[5:8, 3:6] = 0  # no rotation: the controller keeps its old goal
ACTIONS[8:10, 6] = 0  # the gripper holds


@pytest.fixture(scope="module")
def build(libero_assets):
    """Simulators by task, built once; the tests below leave any state in them."""
    built = {}

    def get(suite, task):
        if (suite, task) not in built:
            built[suite, task] = libero_sim.Simulator(
                suite, task, libero_assets, SETTLE_STEPS, seed=0
            )
        return built[suite, task]

    yield get
    for simulator in built.values():
        simulator.close()


def physics(data):
    return np.concatenate([[data.time], data.qpos, data.qvel, data.qacc_warmstart])


def stock_episode(libero_assets, suite, task, init_states, actions):
    """LIBERO's own environment, hard resets, the same draw of poses: physics after settling and after every action.

    Stock adds a sampler of open and closed joints at every hard reset, which shifts its draws: removed here.
    """
    files.import_libero(libero_assets)
    from libero.libero.envs import env_wrapper

    stock = env_wrapper.ControlEnv(
        bddl_file_name=str(files.bddl_file(suite, task)),
        use_camera_obs=False,
        has_offscreen_renderer=False,
    )
    for init_state in init_states:
        stock.env.object_property_initializers.clear()
        with libero_sim.seeded((0, task, init_state, 0)):
            stock.env.reset()
        stock.set_init_state(files.init_states(suite, task)[init_state])
        for _ in range(SETTLE_STEPS):
            stock.step(libero_sim.IDLE_ACTION)
        yield init_state, physics(stock.sim.data._data), None
        for action in actions:
            _, _, success, _ = stock.step(action)
            yield init_state, physics(stock.sim.data._data), success
    stock.close()


def assert_stock(simulator, episodes, actions):
    steps = iter(())
    for init_state, expected, success in episodes:
        if success is None:
            simulator.start(init_state)
            steps = iter(actions)
        else:
            assert simulator.step(next(steps)) == success
        np.testing.assert_array_equal(physics(simulator.data), expected)


def test_trajectory_is_stock_liberos(build, libero_assets):
    simulator = build("libero_object", 0)
    assert_stock(
        simulator, stock_episode(libero_assets, "libero_object", 0, [1, 3], ACTIONS[:12]), ACTIONS
    )


@pytest.mark.parametrize("init_state", [3, 5])
def test_soft_reset_is_a_hard_reset(build, libero_assets, init_state):
    """An open drawer.  In init state 5 an object touches the cabinet, whose pose is drawn: any other draw shows."""
    simulator = build("libero_10", 3)
    simulator.start(0)
    simulator.step(ACTIONS[0])
    assert_stock(
        simulator, stock_episode(libero_assets, "libero_10", 3, [init_state], ACTIONS[:2]), ACTIONS
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "suite, task",
    [
        ("libero_spatial", 0),
        ("libero_object", 0),
        ("libero_goal", 0),
        ("libero_10", 2),
        ("libero_90", 0),
    ],
)
def test_a_hundred_actions_are_stock_liberos(build, libero_assets, suite, task):
    simulator = build(suite, task)
    simulator.start(7)
    assert_stock(simulator, stock_episode(libero_assets, suite, task, [1], ACTIONS), ACTIONS)


@pytest.mark.slow
def test_more_resets_of_the_open_drawer_are_hard_resets(build, libero_assets):
    assert_stock(
        build("libero_10", 3),
        stock_episode(libero_assets, "libero_10", 3, range(0, 50, 5), ACTIONS[:2]),
        ACTIONS,
    )


def test_a_snapshot_continues_anywhere(build, libero_assets):
    """Pickled, after other episodes, and in a simulator that has never been reset."""
    simulator = build("libero_10", 3)
    simulator.start(5)
    for action in ACTIONS[:6]:  # the next action keeps the goal rotation of an earlier one
        simulator.step(action)
    text = pickle.dumps(simulator.snapshot())
    assert len(text) < 20_000

    def go_on(one):
        rows = [(one.step(action), one.state(), physics(one.data)) for action in ACTIONS[6:12]]
        return [np.array(column) for column in zip(*rows)]

    expected = go_on(simulator)
    simulator.start(2)
    other = libero_sim.Simulator("libero_10", 3, libero_assets, SETTLE_STEPS, seed=0)
    for one in (simulator, other):
        one.restore(pickle.loads(text))
        for ours, theirs in zip(go_on(one), expected):
            np.testing.assert_array_equal(ours, theirs)
    other.close()
    assert len(control._operational_space.signatures) == 1, (
        "a restored array of another layout: 10 s to compile"
    )


def test_data_shows_the_final_state(build):
    """A full forward pass moves nothing that cameras see, and does not touch the future."""
    simulator = build("libero_object", 0)
    simulator.start(0)
    simulator.step(ACTIONS[0])
    seen = [
        getattr(simulator.data, name).copy()
        for name in ("xpos", "geom_xpos", "site_xpos", "cam_xpos", "cam_xmat")
    ]
    before = simulator.snapshot().physics
    mujoco.mj_forward(simulator.model, simulator.data)
    for name, values in zip(("xpos", "geom_xpos", "site_xpos", "cam_xpos", "cam_xmat"), seen):
        np.testing.assert_array_equal(getattr(simulator.data, name), values, err_msg=name)
    np.testing.assert_array_equal(simulator.snapshot().physics, before)


def test_contact_check_is_stocks(build):
    simulator = build("libero_spatial", 5)  # a bowl stands on a ramekin
    simulator.start(0)
    for _ in range(10):
        simulator.step(libero_sim.IDLE_ACTION)
    env, ours = simulator.task_env, simulator.task_env.check_contact
    models = [*env.objects_dict.values(), *env.fixtures_dict.values(), env.robots[0].gripper]
    pairs = [(a, b) for a in models for b in models]
    stock = [type(env).check_contact(env, a, b) for a, b in pairs]
    assert [ours(a, b) for a, b in pairs] == stock and 0 < sum(stock) < len(stock)
    assert ours(models[0]) == type(env).check_contact(env, models[0])  # anything else is passed on


def test_a_stove_glows_with_its_episode(build):
    simulator = build("libero_goal", 7)  # turn on the stove
    simulator.start(0)
    cold, stove = simulator.snapshot(), simulator.task_env.fixtures_dict["flat_stove_1"]
    knob = simulator.task_env.sim.model.get_joint_qpos_addr(stove.joints[0])
    colors = simulator.model.site_rgba.copy()
    simulator.data.qpos[knob] = 1.5
    assert simulator.step(libero_sim.IDLE_ACTION), "the goal"
    hot = simulator.snapshot()
    assert np.sum(simulator.model.site_rgba != colors) == 1
    simulator.restore(cold)
    np.testing.assert_array_equal(simulator.model.site_rgba, colors)
    simulator.restore(hot)
    assert np.sum(simulator.model.site_rgba != colors) == 1


def test_poses_that_never_fit_end(build, monkeypatch):
    """LIBERO itself would try for ever."""
    simulator, tries = build("libero_object", 0), []

    def fail():
        tries.append(np.random.uniform())
        raise simulator._placement_error("no room")

    monkeypatch.setattr(simulator.task_env, "reset", fail)
    with pytest.raises(RuntimeError, match="no valid placement in 10 draws"):
        simulator.start(0)
    assert len(set(tries)) == len(tries) == 10


def test_wrong_settle_steps(libero_assets):
    with pytest.raises(ValueError, match="settle_steps 0: the first step"):
        libero_sim.Simulator("libero_object", 0, libero_assets, 0, seed=0)
