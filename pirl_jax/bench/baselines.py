"""What `pirl_jax.bench env` puts into worker processes, behind one contract.

Stock LIBERO, ours and the bare physics.  Stock LIBERO is played as openpi's example plays it: a
hard reset, the stored init state, ten idle steps, both cameras rendered at every step, the end at
success.
"""

from collections.abc import Callable, Sequence
import functools
import time
from typing import Any, NamedTuple

import mujoco
import numpy as np

from pirl_jax.envs import base, expert_tasks, experts, panda
from pirl_jax.envs.libero import files, stock
from pirl_jax.envs.libero import render as libero_render
from pirl_jax.envs.libero import simulator as libero_sim
from pirl_jax.envs.libero import suite as libero

CONTROL_S = 1 / 20  # simulated time of one control step
PROTOCOL = "openpi"


class Stock:
    """LIBERO's own OffScreenRenderEnv (`render`) or ControlEnv without cameras."""

    def __init__(
        self, suite: str, assets: str | None, image_size_px: int, render: bool = True
    ) -> None:
        protocol = files.PROTOCOLS[PROTOCOL]
        self.spec = libero.make(suite, assets, image_size_px, protocol=PROTOCOL).spec
        self._suite = suite
        self._assets = files.find_assets(assets)
        self._render = render
        self._settle_steps = protocol.settle_steps
        self._limits = protocol.max_episode_steps  # by suite
        self._task: int | None = None
        self._env: Any = None

    def reset(self, task: int, init_state: int) -> base.TimeStep:
        """A hard reset, the init state, the settle steps: what every episode of stock costs."""
        if task != self._task:
            self.close()
            self._env = self._build(task)
            self._task = task
        # robosuite draws from numpy's global state; openpi's example seeds it.
        np.random.seed(0)  # noqa: NPY002 - robosuite takes no Generator
        self._env.reset()
        self._env.set_init_state(files.init_states(self._suite, task)[init_state])
        self._elapsed = 0
        for _ in range(self._settle_steps):
            observation, *_ = self._env.step(libero_sim.IDLE_ACTION)
        return self._observe(observation, success=False, num_steps=0)

    def step_chunk(self, actions_Ia: np.ndarray, record: bool = False) -> base.TimeStep:
        """Renders at every step, as stock does."""
        num_steps = 0
        for action in actions_Ia:
            observation, _, success, _ = self._env.step(action)
            num_steps += 1
            if success:
                break
        self._elapsed += num_steps
        return self._observe(observation, success, num_steps)

    def close(self) -> None:
        if self._env is not None:
            self._env.close()

    def _build(self, task: int) -> Any:
        simulator, _ = stock.import_libero(self._assets)
        file = str(files.bddl_file(self._suite, task))
        size = self.spec.image_size_px
        if self._render:
            return simulator(bddl_file_name=file, camera_heights=size, camera_widths=size)
        # OffScreenRenderEnv only forces the renderer on; its base class leaves the choice.
        control_env = simulator.__mro__[1]
        return control_env(bddl_file_name=file, use_camera_obs=False, has_offscreen_renderer=False)

    def _observe(self, observation: dict, success: bool, num_steps: int) -> base.TimeStep:
        position = observation["robot0_eef_pos"]
        quaternion = observation["robot0_eef_quat"]
        gripper = observation["robot0_gripper_qpos"]
        limit = self._limits[files.tasks(self._suite)[self._task].suite]
        return base.TimeStep(
            images=self._images(observation),
            state=panda.state_vector(position, quaternion, gripper),
            reward=float(success),
            terminated=bool(success),
            truncated=self._elapsed >= limit,
            num_steps=num_steps,
        )

    def _images(self, observation: dict) -> np.ndarray:
        """[2,Y,X,3] uint8, black without rendering."""
        if not self._render:
            size = self.spec.image_size_px
            return np.zeros((2, size, size, 3), np.uint8)
        images = [observation[f"{camera}_image"] for camera in panda.CAMERAS]
        return np.stack([libero_render.upright(image) for image in images])


class StockBare(Stock):
    """Stock without pictures; the reward of a chunk is the seconds it took, as with Bare."""

    def __init__(self, suite: str, assets: str | None, image_size_px: int) -> None:
        super().__init__(suite, assets, image_size_px, render=False)

    def step_chunk(self, actions_Ia: np.ndarray, record: bool = False) -> base.TimeStep:
        start_s = time.perf_counter()
        for action in actions_Ia:
            observation, *_ = self._env.step(action)
        step = self._observe(observation, success=False, num_steps=len(actions_Ia))
        step.reward = time.perf_counter() - start_s
        return step


class Bare:
    """Ours without pictures: every control step of a chunk, nothing else.

    floor: time mj_step alone instead: as many physics steps from the same states under the same
      controls, which no control loop can go below.
    """

    def __init__(
        self, suite: str, assets: str | None, image_size_px: int, floor: bool = False
    ) -> None:
        self._env = libero.make(suite, assets, image_size_px, protocol=PROTOCOL)
        self.spec = self._env.spec
        self._floor = floor

    def reset(self, task: int, init_state: int) -> base.TimeStep:
        self._first = self._env.reset(task, init_state)
        return self._first

    def step_chunk(self, actions_Ia: np.ndarray, record: bool = False) -> base.TimeStep:
        simulator = self._env.simulator
        timed_s = 0.0
        for action in actions_Ia:
            if self._floor:
                # Before the step: its states, under the controls of the step before.
                timed_s += _physics_s(simulator.model, simulator.data)
            start_s = time.perf_counter()
            simulator.step(action)
            if not self._floor:
                timed_s += time.perf_counter() - start_s
        return base.TimeStep(
            images=self._first.images,
            state=self._first.state,
            reward=timed_s,  # the way to the parent: nobody else needs it here
            terminated=False,
            truncated=False,
            num_steps=len(actions_Ia),
        )

    def close(self) -> None:
        self._env.close()


def factories(
    suite: str, assets: str | None, image_size_px: int
) -> dict[str, Callable[[], base.Env]]:
    """Name -> picklable constructor of everything that is compared."""
    arguments = (suite, assets, image_size_px)
    ours = functools.partial(libero.make, *arguments, protocol=PROTOCOL)
    return {
        "stock": functools.partial(Stock, *arguments),
        "ours": ours,
        "ours light": functools.partial(ours, render_quality="light"),
        "stock, no rendering": functools.partial(StockBare, *arguments),
        "ours, no rendering": functools.partial(Bare, *arguments),
        "mj_step alone": functools.partial(Bare, *arguments, floor=True),
    }


class Demonstration(NamedTuple):
    """An episode that the scripted expert solved."""

    init_state: int
    actions: np.ndarray  # [control steps, 7]


def demonstration(
    suite: str, assets: str | None, task: int, init_states: Sequence[int]
) -> Demonstration | None:
    """The first episode of these that the expert solves; None: no expert, or none solved."""
    if task not in expert_tasks.having(suite):
        return None
    env = libero.make(suite, assets, image_size_px=64, protocol=PROTOCOL, render_quality="light")
    try:
        for init_state in init_states:
            (episode,) = experts.collect_demonstrations(env, task, [init_state], noise=0.0)
            if episode["success"]:
                return Demonstration(init_state, episode["actions"])
    finally:
        env.close()
    return None


def _physics_s(model: mujoco.MjModel, data: mujoco.MjData) -> float:
    """Seconds of the 25 physics steps of one control step, from this state, on a copy."""
    copy = mujoco.MjData(model)
    # With controls, warm starts and time: the copy goes on exactly as the original would.
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(model, kind))
    mujoco.mj_getState(model, data, state, kind)
    mujoco.mj_setState(model, copy, state, kind)
    count = round(CONTROL_S / model.opt.timestep)
    start_s = time.perf_counter()
    for _ in range(count):
        mujoco.mj_step(model, copy)
    return time.perf_counter() - start_s
