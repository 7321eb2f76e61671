"""One LIBERO task as physics: stock qpos and qvel bit by bit, stock predicates, a quarter of the stock cost; no images.

What differs from LIBERO's environment, on purpose: an episode depends on (task, init state, seed) alone; it can be
saved and restored; no observation is sampled inside a step; no reset is retried for ever.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import functools
import pathlib

import mujoco
import numpy as np

from pirl_jax.envs.libero import control, files, meshes

IDLE_ACTION = np.array(
    [0, 0, 0, 0, 0, 0, -1.0]
)  # no motion, open gripper; what openpi plays while objects settle
RESET_ATTEMPTS = (
    10  # draws of the poses in a scene before giving up; the first one nearly always succeeds
)
SUBSTEPS = 25  # physics steps of 2 ms in a control step of 50 ms
RESET_FIELDS = (
    "body_pos",
    "body_quat",
    "site_rgba",
)  # of the model; a reset moves fixtures and hides sites
STATE = (
    mujoco.mjtState.mjSTATE_INTEGRATION
)  # all that mj_step depends on, the solver's warm start included


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """All that the rest of an episode depends on; fits any simulator of the same task.  About 6 KB; can be pickled."""

    physics: np.ndarray
    model: tuple[np.ndarray, ...]  # RESET_FIELDS
    goal_position_m: np.ndarray  # of the controller; an action without rotation keeps the rotation
    goal_rotation: np.ndarray
    grip_2: np.ndarray  # the gripper's ramp


class Simulator:
    """One built task.  `data` always shows the final state of the last step: poses of bodies, sites and cameras.

    Contacts and forces in `data` are those at the beginning of its last physics step, as after mj_step.
    """

    def __init__(
        self,
        suite: str,
        task: int,
        assets: pathlib.Path,
        settle_steps: int,
        seed: int,
        light: bool = False,
    ):
        """light: lighter visual meshes; physics is the same."""
        if settle_steps < 1:
            raise ValueError(
                f"settle_steps {settle_steps}: the first step is part of a reset; choose 1 or more"
            )
        self._suite, self._task, self._seed, self._settle_steps = suite, task, seed, settle_steps
        self._light = light
        _, self._placement_error = files.import_libero(assets)
        self.task_env = self._draw(self._build, init_state=0)
        sim, self._robot = self.task_env.sim, self.task_env.robots[0]
        self.model, self.data = sim.model._model, sim.data._data
        self._compiled = self.task_env.compiled  # RESET_FIELDS before any reset
        self._eef_body = sim.model.body_name2id(self._robot.robot_model.eef_name)
        self._fingers = self._robot._ref_gripper_joint_pos_indexes
        self.task_env.check_contact = _ContactCheck(self.task_env)
        self._control = control.ArmControl(self.model, self.data, self._robot)

    def start(self, init_state: int) -> None:
        """Reset, load the stored init state, let the objects settle."""
        self._draw(self._reset, init_state)
        self.task_env.sim.set_state_from_flattened(
            files.init_states(self._suite, self._task)[init_state]
        )
        mujoco.mj_forward(self.model, self.data)
        self._control = control.ArmControl(self.model, self.data, self._robot)
        for i in range(self._settle_steps):
            self._control_step(IDLE_ACTION, first=i == 0)
        self._refresh()

    def step(self, action_A: np.ndarray) -> bool:
        """One control step of 50 ms; whether the goal holds after it."""
        self._control_step(np.asarray(action_A, np.float64))
        success = bool(
            self.task_env._check_success()
        )  # as stock: poses and contacts of the last physics step's start
        self._refresh()
        return success

    def state(self) -> np.ndarray:
        """The policy's state [8] float32: end-effector position, its rotation vector, two finger joint positions."""
        data = self.data
        quat_xyzw = np.roll(data.xquat[self._eef_body], -1)
        return state_vector(
            data.site_xpos[self._robot.eef_site_id], quat_xyzw, data.qpos[self._fingers]
        )

    def snapshot(self) -> Snapshot:
        physics = np.empty(mujoco.mj_stateSize(self.model, STATE))
        mujoco.mj_getState(self.model, self.data, physics, STATE)
        controller = self._robot.controller
        return Snapshot(
            physics=physics,
            model=tuple(getattr(self.model, name).copy() for name in RESET_FIELDS),
            goal_position_m=controller.goal_pos.copy(),
            goal_rotation=controller.goal_ori.copy(),
            grip_2=self._robot.gripper.current_action.copy(),
        )

    def restore(self, snapshot: Snapshot) -> None:
        self._set_model(snapshot.model)
        mujoco.mj_setState(self.model, self.data, snapshot.physics, STATE)
        controller = self._robot.controller
        controller.goal_pos, controller.goal_ori = (
            snapshot.goal_position_m.copy(),
            snapshot.goal_rotation.copy(),
        )
        self._robot.gripper.current_action = snapshot.grip_2.copy()
        mujoco.mj_forward(
            self.model, self.data
        )  # contacts of this episode; leaves the warm start alone
        self._refresh()

    def close(self) -> None:
        self.task_env.close()
        self.task_env = self.model = self.data = self._robot = self._control = None

    def _build(self):
        from libero.libero.envs import bddl_utils
        import robosuite

        path = str(files.bddl_file(self._suite, self._task))
        return _task_class(bddl_utils.get_problem_info(path)["problem_name"], self._light)(
            path,
            robots=["Panda"],
            controller_configs=robosuite.load_controller_config(default_controller="OSC_POSE"),
            initialization_noise=None,
            use_camera_obs=False,
            has_offscreen_renderer=False,
            control_freq=20,
            hard_reset=False,  # a hard reset compiles the model again: seconds, and leaked memory
            ignore_done=True,  # the time limit is ours
        )

    def _reset(self) -> None:
        """The inner reset; LIBERO's outer one swallows every exception and retries for ever.

        A hard reset starts from a new model and a new gripper, so this one gives both their first values back: objects
        are drawn relative to the fixtures, and the poses of the last episode must not show.  Stock hard resets also
        add one more sampler of open and closed joints each time, which shifts the draw of the fixtures' poses; an
        episode then depends on the number of resets before it wherever something touches a fixture (libero_10 task 3,
        init state 5).  Ours has the one sampler of a new environment.
        """
        self._set_model(self._compiled)
        self._robot.gripper.current_action = np.zeros(self._robot.gripper.dof)
        for observable in self.task_env._observables.values():
            observable.set_enabled(False)
        self.task_env.reset()

    def _set_model(self, fields) -> None:
        for name, values in zip(RESET_FIELDS, fields):
            getattr(self.model, name)[:] = values

    def _draw(self, function: Callable, init_state: int):
        """Call `function` with numpy's global generator, which LIBERO draws poses from, seeded by the episode.

        Poses of fixtures (cabinet, stove) are drawn at every reset and are not part of the stored init state.
        """
        for attempt in range(RESET_ATTEMPTS):
            try:
                with seeded((self._seed, self._task, init_state, attempt)):
                    return function()
            except self._placement_error as error:
                last = error
        raise RuntimeError(
            f"no valid placement in {RESET_ATTEMPTS} draws (seed {self._seed})"
        ) from last

    def _control_step(self, action_A: np.ndarray, first: bool = False) -> None:
        """Stock's own step runs four passes over the dynamics where one does: they compute the same numbers again.

        The first physics step after a reset is robosuite's own: its controller still holds the arm of before the init
        state was loaded, and acts on it.
        """
        grip_direction = float(np.sign(action_A[6]))
        for i in range(SUBSTEPS):
            mujoco.mj_step1(self.model, self.data)
            if first and i == 0:
                self.task_env._pre_action(action_A, policy_step=True)
            else:
                if i == 0:
                    self._control.set_goal(action_A[:6])
                self._control.apply(self._robot.gripper.current_action, grip_direction)
            mujoco.mj_step2(self.model, self.data)

    def _refresh(self) -> None:
        """Poses of bodies, cameras and lights for the state after the step: mj_step leaves those of the state before.

        Then the looks that follow the state: a stove that is on glows.
        """
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)
        self.task_env._post_process()


class _ContactCheck:
    """`task_env.check_contact` of two models in one numpy expression; LIBERO's predicates spend their time in it."""

    def __init__(self, task_env):
        self._sim, self._stock, self._members = task_env.sim, task_env.check_contact, {}

    def __call__(self, one, other=None) -> bool:
        if not (hasattr(one, "contact_geoms") and hasattr(other, "contact_geoms")):
            return self._stock(one, other)
        first, second = self._geoms(one), self._geoms(other)
        a, b = self._sim.data._data.contact.geom.T
        return bool(np.any(first[a] & second[b] | first[b] & second[a]))

    def _geoms(self, model) -> np.ndarray:
        """[geoms] bool: those that count as this model's contacts."""
        if model not in self._members:
            geoms = np.zeros(self._sim.model.ngeom, bool)
            geoms[[self._sim.model.geom_name2id(name) for name in model.contact_geoms]] = True
            self._members[model] = geoms
        return self._members[model]


@functools.cache
def _task_class(problem_name: str, light: bool):
    """LIBERO's class for this kind of scene; its model is compiled by us, and what it held before a reset is kept."""
    from libero.libero.envs import bddl_base_domain
    from robosuite.utils import binding_utils

    problem = bddl_base_domain.TASK_MAPPING[problem_name]

    class Task(problem):
        def _initialize_sim(self, xml_string=None):
            xml = self.model.get_xml()
            self.sim = binding_utils.MjSim(
                meshes.compile_model(meshes.lighten(xml) if light else xml)
            )
            self.sim.forward()
            self.initialize_time(self.control_freq)
            self.compiled = tuple(getattr(self.sim.model, name).copy() for name in RESET_FIELDS)

    Task.__name__ = problem.__name__  # LIBERO compares it to the file's
    return Task


def axis_angle(quat_xyzw: np.ndarray) -> np.ndarray:
    """Rotation vector [3] (rad), angle in [0, 2 pi]: q and -q are not identified (as robosuite, openpi and RLinf)."""
    w = np.clip(quat_xyzw[3], -1.0, 1.0)
    sine = np.sqrt(1.0 - w * w)
    if sine == 0.0:
        return np.zeros(3)
    return quat_xyzw[:3] * 2.0 * np.arccos(w) / sine


def state_vector(
    position_m: np.ndarray, quat_xyzw: np.ndarray, gripper_m: np.ndarray
) -> np.ndarray:
    """[8] float32 in the order of all published LIBERO data."""
    return np.concatenate([position_m, axis_angle(quat_xyzw), gripper_m]).astype(np.float32)


@contextlib.contextmanager
def seeded(entropy: tuple[int, ...]):
    state = np.random.get_state()
    np.random.seed(entropy)
    try:
        yield
    finally:
        np.random.set_state(state)
