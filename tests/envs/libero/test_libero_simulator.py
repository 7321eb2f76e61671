"""Physics of LIBERO tasks against the stock environment, bit by bit; saving and restoring."""

import functools
import itertools
import pickle

import mujoco
import numpy as np
import pytest

from pirl_jax.envs.libero import control, files, stock
from pirl_jax.envs.libero import simulator as simulators

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
            setup = simulators.Setup(suite, task, libero_assets, SETTLE_STEPS, seed=0)
            built[suite, task] = simulators.Simulator(setup)
        return built[suite, task]

    yield get
    for simulator in built.values():
        simulator.close()


def physics(data):
    return np.concatenate([[data.time], data.qpos, data.qvel, data.qacc_warmstart])


def stock_episode(libero_assets, suite, task, init_states, actions):
    """LIBERO's own environment, hard resets, the same draw of poses.

    Yields init state, physics and success after settling and after every action.  Stock adds a
    sampler of open and closed joints at every hard reset, which shifts its draws: removed here.
    """
    stock.import_libero(libero_assets)
    from libero.libero.envs import env_wrapper

    theirs = env_wrapper.ControlEnv(
        bddl_file_name=str(files.bddl_file(suite, task)),
        use_camera_obs=False,
        has_offscreen_renderer=False,
    )
    for init_state in init_states:
        theirs.env.object_property_initializers.clear()
        with simulators.seeded((0, task, init_state, 0)):
            theirs.env.reset()
        theirs.set_init_state(files.init_states(suite, task)[init_state])
        for _ in range(SETTLE_STEPS):
            theirs.step(simulators.IDLE_ACTION)
        yield init_state, physics(theirs.sim.data._data), None
        for action in actions:
            _, _, success, _ = theirs.step(action)
            yield init_state, physics(theirs.sim.data._data), success
    theirs.close()


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
    episodes = stock_episode(libero_assets, "libero_object", 0, [1, 3], ACTIONS[:12])
    assert_stock(simulator, episodes, ACTIONS)


@pytest.mark.parametrize("init_state", [3, 5])
def test_soft_reset_is_a_hard_reset(build, libero_assets, init_state):
    """An open drawer.

    In init state 5 an object touches the cabinet, whose pose is drawn: any other draw shows.
    """
    simulator = build("libero_10", 3)
    simulator.start(0)
    simulator.step(ACTIONS[0])
    episodes = stock_episode(libero_assets, "libero_10", 3, [init_state], ACTIONS[:2])
    assert_stock(simulator, episodes, ACTIONS)


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
    episodes = stock_episode(libero_assets, "libero_10", 3, range(0, 50, 5), ACTIONS[:2])
    assert_stock(build("libero_10", 3), episodes, ACTIONS)


def test_a_snapshot_continues_anywhere(build, libero_assets):
    """Pickled, after other episodes, and in a simulator that has never been reset."""
    simulator = build("libero_10", 3)
    simulator.start(5)
    for action in ACTIONS[:6]:  # the next action keeps the goal rotation of an earlier one
        simulator.step(action)
    pickled = pickle.dumps(simulator.snapshot())
    assert len(pickled) < 20_000

    def go_on(anywhere):
        successes = []
        states = []
        ends = []
        for action in ACTIONS[6:12]:
            successes.append(anywhere.step(action))
            states.append(anywhere.state())
            ends.append(physics(anywhere.data))
        return np.array(successes), np.array(states), np.array(ends)

    expected = go_on(simulator)
    simulator.start(2)
    setup = simulators.Setup("libero_10", 3, libero_assets, SETTLE_STEPS, seed=0)
    other = simulators.Simulator(setup)
    for anywhere in (simulator, other):
        anywhere.restore(pickle.loads(pickled))
        for ours, theirs in zip(go_on(anywhere), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    other.close()
    layouts = control._operational_space.signatures
    assert len(layouts) == 1, "a restored array of another layout: 10 s to compile"


def test_data_shows_the_final_state(build):
    """A full forward pass moves nothing that cameras see, and does not touch the future."""
    simulator = build("libero_object", 0)
    simulator.start(0)
    simulator.step(ACTIONS[0])
    names = ("xpos", "geom_xpos", "site_xpos", "cam_xpos", "cam_xmat")
    seen = [getattr(simulator.data, name).copy() for name in names]
    before = simulator.snapshot().physics
    mujoco.mj_forward(simulator.model, simulator.data)
    for name, values in zip(names, seen, strict=True):
        np.testing.assert_array_equal(getattr(simulator.data, name), values, err_msg=name)
    np.testing.assert_array_equal(simulator.snapshot().physics, before)


def test_contact_check_is_stocks(build):
    simulator = build("libero_spatial", 5)  # a bowl stands on a ramekin
    simulator.start(0)
    for _ in range(10):
        simulator.step(simulators.IDLE_ACTION)
    env = simulator.task_env
    ours = env.check_contact
    theirs = functools.partial(type(env).check_contact, env)
    models = [*env.objects_dict.values(), *env.fixtures_dict.values(), env.robots[0].gripper]
    pairs = list(itertools.product(models, models))
    expected = [theirs(*pair) for pair in pairs]
    assert [ours(*pair) for pair in pairs] == expected
    assert 0 < sum(expected) < len(expected)
    assert ours(models[0]) == theirs(models[0])  # anything else is passed on


def test_a_stove_glows_with_its_episode(build):
    simulator = build("libero_goal", 7)  # turn on the stove
    simulator.start(0)
    cold = simulator.snapshot()
    stove = simulator.task_env.fixtures_dict["flat_stove_1"]
    knob = simulator.task_env.sim.model.get_joint_qpos_addr(stove.joints[0])
    colors = simulator.model.site_rgba.copy()
    simulator.data.qpos[knob] = 1.5
    assert simulator.step(simulators.IDLE_ACTION), "the goal"
    hot = simulator.snapshot()
    assert np.sum(simulator.model.site_rgba != colors) == 1
    simulator.restore(cold)
    np.testing.assert_array_equal(simulator.model.site_rgba, colors)
    simulator.restore(hot)
    assert np.sum(simulator.model.site_rgba != colors) == 1


def test_poses_that_never_fit_end(build, monkeypatch):
    """LIBERO itself would try for ever."""
    simulator = build("libero_object", 0)
    tries = []

    def fail():
        tries.append(np.random.uniform())  # noqa: NPY002  (the generator that LIBERO draws from)
        raise simulator._placement_error("no room")

    monkeypatch.setattr(simulator.task_env, "reset", fail)
    with pytest.raises(RuntimeError, match="no valid placement in 10 draws"):
        simulator.start(0)
    assert len(set(tries)) == len(tries) == 10


def test_wrong_settle_steps(libero_assets):
    setup = simulators.Setup("libero_object", 0, libero_assets, settle_steps=0, seed=0)
    with pytest.raises(ValueError, match="settle_steps 0: the first step"):
        simulators.Simulator(setup)
