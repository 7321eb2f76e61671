"""The LIBERO adapter: reference vectors, the chunk rules, and real episodes of two tasks."""

import functools
import json

import mujoco
import numpy as np
import pytest

from pirl_jax.envs import base, panda
from pirl_jax.envs.libero import files, render
from pirl_jax.envs.libero import suite as suites
from tests import pools

# robosuite, LIBERO and numba warn about themselves when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore")

ACTIONS = np.random.default_rng(0).uniform(-1, 1, (10, 7))


class Scripted(suites.Libero):
    """The adapter's own chunk rules on scripted success flags, without a simulator."""

    def __init__(self, flags, limit):
        self.spec = base.EnvSpec("scripted", ("",), 1, limit, image_size_px=2)
        self._flags = iter(flags)
        self._limits = [limit]
        self._task = 0
        self._elapsed = 0

    @property
    def simulator(self):
        return self

    def step(self, action):
        return bool(next(self._flags))

    def state(self):
        return np.zeros(8, np.float32)

    def _render(self, camera):
        return np.zeros((2, 2, 3), np.uint8)


class Listening(Scripted):
    """Keeps the actions that reach the simulator."""

    def __init__(self, flags, limit):
        super().__init__(flags, limit)
        self.received = []

    def step(self, action):
        self.received.append(action)
        return super().step(action)


def test_axis_angle_matches_the_reference(vectors):
    data = np.load(vectors / "rlinf" / "f_libero.npz")
    ours = [panda.axis_angle(quat) for quat in data["quat2axisangle/in/quat_xyzw"]]
    np.testing.assert_allclose(ours, data["quat2axisangle/out/axisangle"], rtol=1e-12, atol=1e-12)


def test_state_and_images_match_the_reference(vectors):
    data = np.load(vectors / "rlinf" / "f_libero.npz")
    for b in range(3):
        robot = {
            name: data[f"wrap_obs/in/robot0_{name}"][b]
            for name in ("eef_pos", "eef_quat", "gripper_qpos")
        }
        state = panda.state_vector(robot["eef_pos"], robot["eef_quat"], robot["gripper_qpos"])
        assert state.dtype == np.float32
        np.testing.assert_array_equal(state, data["wrap_obs/out/states"][b])
        for key, out in (
            ("agentview_image", "main_images"),
            ("robot0_eye_in_hand_image", "wrist_images"),
        ):
            image = render.upright(data[f"wrap_obs/in/{key}"][b])
            assert image.flags.c_contiguous
            np.testing.assert_array_equal(image, data[f"wrap_obs/out/{out}"][b])


CHUNK_RESULTS = (
    "rewards",
    "terminations",
    "truncations",
    "episode_success_once",
    "episode_len",
    "has_final_info",
)


@pytest.mark.parametrize("case", range(16))
def test_chunks_match_the_reference_up_to_the_first_success(vectors, case):
    """The reference steps on after success and past the limit and masks the rest later; we stop.

    So rewards and flags agree for the steps we execute: up to the first success, at most up to
    the limit.  Where it resets by itself, its next chunk starts the next episode, as in our
    slots; where it ignores successes, the first is compared.
    """
    data = np.load(vectors / "rlinf" / "f_libero.npz")
    prefix = f"chunk_step_{case:02d}"
    meta = json.loads(str(data[f"{prefix}/meta"]))
    limit = meta["max_episode_steps"]
    chunk = meta["C"]
    ignores = meta["ignore_terminations"]
    flags = data[f"{prefix}/in/sim_success_flags"]  # [chunks, envs, steps]
    out = {name: data[f"{prefix}/out/{name}"] for name in CHUNK_RESULTS}
    for b in range(meta["B"]):
        env = None
        for k in range(meta["K"]):
            if env is None:
                env = Scripted(flags[k:, b].ravel(), limit)
                elapsed = 0
            step = env.step_chunk(np.zeros((chunk, 7)))
            elapsed += step.num_steps
            executed = slice(0, step.num_steps)
            assert step.reward == out["rewards"][k, b, executed].sum()
            # in these two modes the reference reports an end at the last step of the chunk
            told = slice(0, chunk) if meta["auto_reset"] or ignores else executed
            if step.truncated:  # it plays the chunk to its end, so it may still see a success
                assert elapsed == limit and out["truncations"][k, b, told].any()
            else:
                assert step.terminated == (step.reward > 0) == out["episode_success_once"][k, b]
                assert ignores or step.terminated == out["terminations"][k, b, told].any()
                assert step.terminated or elapsed == out["episode_len"][k, b] < limit
            if step.terminated or step.truncated:
                if ignores or not meta["auto_reset"]:
                    break
                assert out["has_final_info"][k, b]
                env = None


def test_actions_reach_the_simulator_unchanged(vectors):
    data = np.load(vectors / "rlinf" / "f_libero.npz")
    given_BIA = data["prepare_actions_openpi/in/actions"]
    wanted_BIA = data["prepare_actions_openpi/out/actions"]
    for given, wanted in zip(given_BIA, wanted_BIA, strict=True):
        env = Listening([False] * len(given), limit=100)
        env.step_chunk(given)
        np.testing.assert_array_equal(env.received, wanted)


@pytest.mark.parametrize("relative", [0, 1])
def test_rewards_match_the_reference_up_to_the_first_success(vectors, relative):
    """Reward coefficients are the caller's: ours is 1.

    Step penalties (pen1) are not the simulator's business.
    """
    data = np.load(vectors / "rlinf" / "f_libero.npz")
    prefix = f"step_reward_rel{relative}_pen0"
    meta = json.loads(str(data[f"{prefix}/meta"]))
    flags = data[f"{prefix}/in/terminations"]  # [steps, envs]
    for b in range(flags.shape[1]):
        step = Scripted(flags[:, b], limit=100).step_chunk(np.zeros((len(flags), 7)))
        reference = data[f"{prefix}/out/step_reward"][: step.num_steps, b].sum()
        assert step.reward == reference / meta["reward_coef"]


def test_wrong_names():
    sentence = "suite 'libero_30' does not exist; choose one of: libero_spatial"
    with pytest.raises(ValueError, match=sentence):
        suites.make("libero_30")


@pytest.fixture(scope="module")
def spatial(libero_assets):
    env = suites.make("libero_spatial", libero_assets, image_size_px=64, max_episode_steps=25)
    env.reset(0, 0)
    yield env
    env.close()


def test_reset(spatial):
    step = spatial.reset(0, 0)
    instruction = spatial.spec.instructions[0]
    assert instruction.startswith("pick up the black bowl between the plate and the ramekin")
    assert step.images.shape == (2, 64, 64, 3) and step.images.dtype == np.uint8
    assert step.images.flags.c_contiguous
    assert step.images.reshape(2, -1).std(1).min() > 20, "a camera shows nothing"
    assert step.reward == 0 and step.num_steps == 0 and step.frames is None
    assert not step.terminated and not step.truncated
    assert step.state.shape == (8,) and step.state.dtype == np.float32
    stored = files.init_states("libero_spatial", 0)[0]
    assert abs(step.state[7] + step.state[6]) < 1e-4 and step.state[6] > 0.03, "the gripper is open"
    assert np.isfinite(stored).all() and 1.1 < step.state[2] < 1.3, "the hand is above the table"


def test_the_name_of_an_episode_is_all_that_matters(spatial):
    """Same (task, init state): same images, state and trajectory, whatever ran before.

    The other init state differs.  numpy's global generator is not ours to move.
    """

    def episode(init_state, *chunks, record=False):
        first = spatial.reset(0, init_state)
        for chunk in chunks:
            last = spatial.step_chunk(chunk, record)
        return first, last, spatial.simulator.snapshot().physics

    np.random.seed(1)  # noqa: NPY002  (the generator that LIBERO draws from)
    first, last, end = episode(1, ACTIONS[:6])
    other = episode(0, -ACTIONS[:3])
    np.random.seed(2)  # noqa: NPY002  (as above)
    before = np.random.get_state()[1].copy()  # noqa: NPY002  (as above)
    again, split, split_end = episode(1, ACTIONS[:4], ACTIONS[4:6], record=True)
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.state, again.state)
    np.testing.assert_array_equal(end, split_end)
    np.testing.assert_array_equal(last.images, split.images)
    assert not np.array_equal(first.images, other[0].images)
    after = np.random.get_state()[1]  # noqa: NPY002  (as above)
    np.testing.assert_array_equal(after, before)


def test_frames_are_the_executed_steps(spatial):
    spatial.reset(0, 0)
    step = spatial.step_chunk(ACTIONS[:3], record=True)
    assert step.num_steps == len(step.frames) == 3
    np.testing.assert_array_equal(step.frames[-1], step.images[0])
    assert not np.array_equal(step.frames[0], step.frames[-1])


def test_state_and_image_show_the_final_state(spatial):
    """A full mj_forward of the final state must not change what was observed."""
    spatial.reset(0, 0)
    step = spatial.step_chunk(ACTIONS)
    mujoco.mj_forward(spatial.simulator.model, spatial.simulator.data)
    np.testing.assert_array_equal(spatial.simulator.state(), step.state)
    np.testing.assert_array_equal(spatial._render("agentview"), step.images[0])


def test_time_limit_cuts_the_chunk(spatial):
    spatial.reset(0, 0)
    steps = [spatial.step_chunk(ACTIONS) for _ in range(3)]
    assert [step.num_steps for step in steps] == [10, 10, 5]
    assert [step.truncated for step in steps] == [False, False, True] and not steps[-1].terminated
    with pytest.raises(RuntimeError, match="reset"):
        spatial.step_chunk(ACTIONS)


def test_gripper_sign(spatial):
    spatial.reset(0, 0)
    close = np.zeros((12, 7))
    close[:, 6] = 0.01  # only the sign counts
    assert spatial.step_chunk(close).state[6] < 0.01


def test_wrong_episode(spatial):
    with pytest.raises(ValueError, match="task 10 does not exist"):
        spatial.reset(10, 0)
    with pytest.raises(ValueError, match="init state 50 does not exist"):
        spatial.reset(0, 50)


@pytest.mark.slow
def test_two_envs_in_one_process_do_not_swap_images(spatial, libero_assets):
    """A second GL context is created, used and freed; the first env's images must not notice."""
    before = spatial.reset(0, 2)
    other = suites.make("libero_object", libero_assets, image_size_px=64)
    there = other.reset(0, 2)
    between = spatial.reset(0, 2)
    np.testing.assert_array_equal(other.reset(0, 2).images, there.images)
    other.close()
    after = spatial.reset(0, 2)
    for step in (between, after):
        np.testing.assert_array_equal(step.images, before.images)


@pytest.mark.slow
def test_in_a_pool(spatial, libero_assets):
    """Two slots in one worker on different tasks: the images are those of this process."""
    make = functools.partial(suites.make, "libero_spatial", libero_assets, 64)
    with pools.start(make, num_envs=2, num_workers=1, timeout_s=120) as envs:
        envs.reset([0, 1], [0, 4], [1, 1])
        first = envs.recv([0, 1])
        envs.send([0], ACTIONS[None], [True])
        step = envs.recv([0])
    here = spatial.reset(0, 1)
    np.testing.assert_array_equal(first.images[0], here.images)
    np.testing.assert_array_equal(first.state[0], here.state)
    assert not np.array_equal(first.images[1], here.images)
    there = spatial.step_chunk(ACTIONS)
    np.testing.assert_array_equal(step.images[0], there.images)
    assert len(step.frames[0]) == 10 and envs.env_seconds.min() > 0
