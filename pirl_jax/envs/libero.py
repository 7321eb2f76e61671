"""The one LIBERO adapter: stock LIBERO physics behind the contract of `base.py`.

What differs from LIBERO's own environment, on purpose: an episode depends on (task, init state, seed) alone; a chunk
is rendered once, from the state after its last step (stock observations lag that state by one 2 ms substep); an
episode ends at success; no reset is retried for ever.  Files and imports are the business of `libero_files.py`.
"""

import contextlib
import functools
import os
import pathlib
from typing import Callable, Sequence

import mujoco
import numpy as np

from pirl_jax.envs import base, libero_files

CAMERAS = ("agentview", "robot0_eye_in_hand")
NUM_INIT_STATES = 50  # stored per task
IDLE_ACTION = np.array([0, 0, 0, 0, 0, 0, -1.0])  # no motion, open gripper; what openpi plays while objects settle
RESET_ATTEMPTS = 10  # draws of the poses in a scene before giving up; the first one nearly always succeeds


class Libero:
    """One suite.  The simulator of a task is built by the first reset to that task and lives until the task changes."""

    def __init__(self, spec: base.EnvSpec, assets: pathlib.Path, limits: Sequence[int], settle_steps: int, seed: int):
        self.spec = spec
        self._limits = limits  # control steps until truncation, by task
        self._settle_steps, self._seed = settle_steps, seed
        self._make_simulator, self._placement_error = libero_files.import_libero(assets)
        self._task, self._simulator = None, None
        self._elapsed = None  # control steps of the episode; None: no episode is under way

    def reset(self, task: int, init_state: int) -> base.TimeStep:
        if task not in range(self.spec.num_tasks):
            raise base.error("task", task, range(self.spec.num_tasks))
        if init_state not in range(self.spec.num_init_states):
            raise base.error("init state", init_state, range(self.spec.num_init_states))
        self._elapsed = None
        if task != self._task:
            self.close()
            self._simulator = self._draw(functools.partial(self._build, task), task, init_state)
            self._task = task
        self._draw(self._reset_simulator, task, init_state)
        self._simulator.set_init_state(libero_files.init_states(self.spec.suite, task)[init_state])
        for _ in range(self._settle_steps):
            self._control_step(IDLE_ACTION)
        self._elapsed = 0
        return self._observe(success=False, num_steps=0, frames=None)

    def step_chunk(self, actions_IA: np.ndarray, record: bool = False) -> base.TimeStep:
        if self._elapsed is None:
            raise RuntimeError("no episode is under way; call reset first")
        frames = [] if record else None
        success, num_steps = False, 0
        for action in actions_IA[: self._limits[self._task] - self._elapsed]:
            success = self._control_step(action)
            num_steps += 1
            if record:
                frames.append(self._render(CAMERAS[0]))
            if success:
                break
        self._elapsed += num_steps
        step = self._observe(success, num_steps, frames)
        if step.terminated or step.truncated:
            self._elapsed = None
        return step

    def close(self) -> None:
        if self._simulator is not None:
            self._use_own_context()
            self._simulator.close()
            self._task, self._simulator = None, None

    def _build(self, task: int):
        simulator = self._make_simulator(
            bddl_file_name=str(libero_files.bddl_file(self.spec.suite, task)),
            use_camera_obs=False,  # stock camera observables render at every control step
            hard_reset=False,  # a hard reset re-creates the model and the GL context: seconds, and leaked memory
            ignore_done=True,  # the time limit is ours
        )
        for name in simulator.env.observation_names:
            simulator.env.modify_observable(name, "enabled", False)  # `_state` reads the final state instead
        return simulator

    def _reset_simulator(self) -> None:
        """The inner reset; the outer one swallows every exception and retries for ever."""
        gripper = self._simulator.robots[0].gripper
        gripper.current_action = np.zeros(gripper.dof)  # survives all but a hard reset
        self._simulator.env.reset()

    def _draw(self, function: Callable, task: int, init_state: int):
        """Call `function` with numpy's global generator, which LIBERO draws poses from, seeded by the episode.

        Poses of fixtures (cabinet, stove) are drawn at every reset and are not part of the stored init state.
        """
        for attempt in range(RESET_ATTEMPTS):
            try:
                with _seeded((self._seed, task, init_state, attempt)):
                    return function()
            except self._placement_error as error:
                last = error
        raise RuntimeError(f"no valid placement in {RESET_ATTEMPTS} draws (seed {self._seed})") from last

    def _control_step(self, action: np.ndarray) -> bool:
        """One control step of 50 ms; whether the goal holds after it."""
        _, _, success, _ = self._simulator.env.step(np.asarray(action, np.float64))
        self._refresh()
        return bool(success)

    def _refresh(self) -> None:
        """Poses of bodies, cameras and lights for the state after the step: mj_step leaves those of the state before.

        Not mj_forward: that would change the solver's warm start, and a chunk's length would change the trajectory.
        """
        model, data = self._simulator.sim.model._model, self._simulator.sim.data._data
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_camlight(model, data)

    def _observe(self, success: bool, num_steps: int, frames: list | None) -> base.TimeStep:
        return base.TimeStep(
            images=np.stack([self._render(camera) for camera in CAMERAS]),
            state=self._state(),
            reward=float(success),
            terminated=success,
            truncated=not success and self._elapsed >= self._limits[self._task],
            num_steps=num_steps,
            frames=frames,
        )

    def _state(self) -> np.ndarray:
        robot, data = self._simulator.robots[0], self._simulator.sim.data
        position_m = data.site_xpos[robot.eef_site_id]
        quat_wxyz = data.get_body_xquat(robot.robot_model.eef_name)
        gripper_m = data.qpos[robot._ref_gripper_joint_pos_indexes]
        return state_vector(position_m, np.roll(quat_wxyz, -1), gripper_m)

    def _render(self, camera: str) -> np.ndarray:
        self._use_own_context()
        size = self.spec.image_size_px
        return upright(self._simulator.sim.render(width=size, height=size, camera_name=camera))

    def _use_own_context(self) -> None:
        """robosuite draws into, and frees from, whichever context is current: perhaps another env's of this worker."""
        self._simulator.sim._render_context_offscreen.gl_ctx.make_current()


def make(
    suite: str,
    assets: str | os.PathLike | None = None,
    image_size_px: int = 256,
    max_episode_steps: int | None = None,
    protocol: str = "rlinf",
    seed: int = 0,
    render_quality: str = "exact",
    cached_tasks: int = 2,
) -> Libero:
    """An env of one suite.  `max_episode_steps` defaults to the protocol's, `assets` to $PIRL_LIBERO_ASSETS or LIBERO's own."""
    if suite not in libero_files.SUITES:
        raise base.error("suite", suite, libero_files.SUITES)
    if protocol not in libero_files.PROTOCOLS:
        raise base.error("protocol", protocol, libero_files.PROTOCOLS)
    rules, tasks = libero_files.PROTOCOLS[protocol], libero_files.tasks(suite)
    limits = [max_episode_steps or rules.max_episode_steps[task.suite] for task in tasks]
    spec = base.EnvSpec(
        suite=suite,
        instructions=tuple(libero_files.instruction(task.name) for task in tasks),
        num_init_states=NUM_INIT_STATES,
        max_episode_steps=max(limits),
        image_size_px=image_size_px,
    )
    return Libero(spec, libero_files.find_assets(assets), limits, rules.settle_steps, seed)


def axis_angle(quat_xyzw: np.ndarray) -> np.ndarray:
    """Rotation vector [3] (rad), angle in [0, 2 pi]: q and -q are not identified (as robosuite, openpi and RLinf)."""
    w = np.clip(quat_xyzw[3], -1.0, 1.0)
    sine = np.sqrt(1.0 - w * w)
    if sine == 0.0:
        return np.zeros(3)
    return quat_xyzw[:3] * 2.0 * np.arccos(w) / sine


def state_vector(position_m: np.ndarray, quat_xyzw: np.ndarray, gripper_m: np.ndarray) -> np.ndarray:
    """The policy's state [8] float32: end-effector position, its rotation vector, two finger joint positions."""
    return np.concatenate([position_m, axis_angle(quat_xyzw), gripper_m]).astype(np.float32)


def upright(image_YX3: np.ndarray) -> np.ndarray:
    """Turn OpenGL's bottom-up image by 180 degrees: upright, and mirrored as in all published LIBERO data."""
    return np.ascontiguousarray(image_YX3[::-1, ::-1])


@contextlib.contextmanager
def _seeded(entropy: tuple[int, ...]):
    state = np.random.get_state()
    np.random.seed(entropy)
    try:
        yield
    finally:
        np.random.set_state(state)
