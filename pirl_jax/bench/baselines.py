"""What `pirl_jax.bench env` puts into worker processes: stock LIBERO, ours and the bare physics, behind one contract.

Stock LIBERO is played as openpi's example plays it: a hard reset, the stored init state, ten idle steps, both cameras
rendered at every step, the end at success.
"""

import functools
import time

import mujoco
import numpy as np

from pirl_jax.envs import base, experts
from pirl_jax.envs.libero import files, stock
from pirl_jax.envs.libero import render as libero_render
from pirl_jax.envs.libero import simulator as libero_sim
from pirl_jax.envs.libero import suite as libero


class Stock:
    """LIBERO's own OffScreenRenderEnv (`render`) or ControlEnv without cameras."""

    def __init__(
        self, suite: str, assets, image_size_px: int, render: bool = True, protocol: str = "openpi"
    ):
        self.spec = _spec(suite, assets, image_size_px, protocol)
        self._suite, self._render, self._assets = suite, render, files.find_assets(assets)
        self._settle_steps = files.PROTOCOLS[protocol].settle_steps
        self._limits = files.PROTOCOLS[protocol].max_episode_steps
        self._task = self._env = None

    def reset(self, task: int, init_state: int) -> base.TimeStep:
        if task != self._task:
            self.close()
            self._env, self._task = self._build(task), task
        np.random.seed(0)
        self._env.reset()
        self._env.set_init_state(files.init_states(self._suite, task)[init_state])
        self._elapsed = 0
        for _ in range(self._settle_steps):
            observation, *_ = self._env.step(libero_sim.IDLE_ACTION)
        return self._observe(observation, False, 0)

    def step_chunk(self, actions_IA: np.ndarray, record: bool = False) -> base.TimeStep:
        for count, action in enumerate(actions_IA, 1):
            observation, _, success, _ = self._env.step(action)
            if success:
                break
        self._elapsed += count
        return self._observe(observation, success, count)

    def close(self) -> None:
        if self._env is not None:
            self._env.close()

    def _build(self, task: int):
        simulator, _ = stock.import_libero(self._assets)
        size, file = self.spec.image_size_px, str(files.bddl_file(self._suite, task))
        if self._render:
            return simulator(bddl_file_name=file, camera_heights=size, camera_widths=size)
        control_env = simulator.__mro__[1]  # OffScreenRenderEnv only forces the renderer on
        return control_env(bddl_file_name=file, use_camera_obs=False, has_offscreen_renderer=False)

    def _observe(self, observation: dict, success: bool, num_steps: int) -> base.TimeStep:
        images = np.zeros((2, self.spec.image_size_px, self.spec.image_size_px, 3), np.uint8)
        if self._render:
            images = np.stack(
                [libero_render.upright(observation[f"{camera}_image"]) for camera in libero.CAMERAS]
            )
        position, quat, gripper = (
            observation[f"robot0_{name}"] for name in ("eef_pos", "eef_quat", "gripper_qpos")
        )
        state = libero_sim.state_vector(position, quat, gripper)
        limit = self._limits[files.tasks(self._suite)[self._task].suite]
        return base.TimeStep(
            images, state, float(success), bool(success), self._elapsed >= limit, num_steps
        )


class Bare:
    """Ours without pictures: every control step of a chunk, nothing else.

    floor: time mj_step alone instead: as many physics steps from the same states under the same controls, which no
    control loop can go below.
    """

    def __init__(self, suite: str, assets, image_size_px: int, floor: bool = False):
        self._env = libero.make(suite, assets, image_size_px, protocol="openpi")
        self.spec, self._floor = self._env.spec, floor

    def reset(self, task: int, init_state: int) -> base.TimeStep:
        self._step = self._env.reset(task, init_state)
        return self._step

    def step_chunk(self, actions_IA: np.ndarray, record: bool = False) -> base.TimeStep:
        simulator, timed_s = self._env.simulator, 0.0
        for action in actions_IA:
            if self._floor:
                timed_s += _physics_s(simulator.model, simulator.data)
                simulator.step(action)
            else:
                start_s = time.perf_counter()
                simulator.step(action)
                timed_s += time.perf_counter() - start_s
        # The reward carries the time to the parent: nobody else needs it here.
        return base.TimeStep(
            self._step.images, self._step.state, timed_s, False, False, len(actions_IA)
        )

    def close(self) -> None:
        self._env.close()


class StockBare(Stock):
    """Stock without pictures, timed alike."""

    def __init__(self, suite: str, assets, image_size_px: int):
        super().__init__(suite, assets, image_size_px, render=False)

    def step_chunk(self, actions_IA: np.ndarray, record: bool = False) -> base.TimeStep:
        start_s = time.perf_counter()
        for action in actions_IA:
            observation, *_ = self._env.step(action)
        step = self._observe(observation, False, len(actions_IA))
        step.reward = time.perf_counter() - start_s
        return step


def factories(suite: str, assets, image_size_px: int) -> dict[str, functools.partial]:
    """Name -> picklable constructor of everything that is compared."""
    arguments = (suite, assets, image_size_px)
    return {
        "stock": functools.partial(Stock, *arguments),
        "ours": functools.partial(libero.make, *arguments, protocol="openpi"),
        "ours light": functools.partial(
            libero.make, *arguments, protocol="openpi", render_quality="light"
        ),
        "stock, no rendering": functools.partial(StockBare, *arguments),
        "ours, no rendering": functools.partial(Bare, *arguments),
        "mj_step alone": functools.partial(Bare, *arguments, floor=True),
    }


def demonstration(
    suite: str, assets, task: int, init_states: list[int]
) -> tuple[int, np.ndarray] | None:
    """(init state, actions [T,7]) of the first episode that the scripted expert solves; None: no expert, or none solved."""
    if not experts.available(suite):
        return None
    env = libero.make(suite, assets, image_size_px=64, protocol="openpi", render_quality="light")
    try:
        for init_state in init_states:
            (episode,) = experts.collect_demonstrations(env, task, [init_state], noise=0.0)
            if episode["success"]:
                return init_state, episode["actions"]
    finally:
        env.close()
    return None


def _physics_s(model: mujoco.MjModel, data: mujoco.MjData) -> float:
    """Seconds of the 25 physics steps that one control step takes, from this state, on a copy."""
    copy = mujoco.MjData(model)
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(model, kind))
    mujoco.mj_getState(model, data, state, kind)
    mujoco.mj_setState(model, copy, state, kind)
    count = round(1 / 20 / model.opt.timestep)
    start_s = time.perf_counter()
    for _ in range(count):
        mujoco.mj_step(model, copy)
    return time.perf_counter() - start_s


def _spec(suite: str, assets, image_size_px: int, protocol: str) -> base.EnvSpec:
    """The spec of our env of this suite, without a simulator."""
    return libero.make(suite, assets, image_size_px, protocol=protocol).spec
