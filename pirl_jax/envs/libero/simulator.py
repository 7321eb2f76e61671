"""One LIBERO task as physics: stock qpos and qvel bit by bit at a quarter of the cost.

Predicates are stock too.  What differs from LIBERO's environment, on purpose: an episode depends
on (task, init state, seed) alone; it can be saved and restored; no observation is sampled inside
a step; no reset is retried for ever.  Draws no images.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import pathlib
from typing import TypeVar

import mujoco
import numpy as np

from pirl_jax.envs import panda
from pirl_jax.envs.libero import control, custom, files, plus, plus_assets, stock

# No motion, open gripper; what openpi plays while objects settle.
IDLE_ACTION = np.array([0, 0, 0, 0, 0, 0, -1.0])
# Draws of the poses in a scene before giving up; the first one nearly always succeeds.
RESET_ATTEMPTS = 10
# While a start state of LIBERO's settles no object moves aside by half as much, and afterwards none
# has a hundredth of this speed.
THROWN_M = 0.05
AT_REST_M_S = 0.01
SUBSTEPS = 25  # physics steps of 2 ms in a control step of 50 ms
# All that mj_step depends on, the solver's warm start included.
STATE = mujoco.mjtState.mjSTATE_INTEGRATION

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a simulator is built from."""

    suite: str  # one that has files
    task: int  # of that suite
    assets: pathlib.Path
    settle_steps: int  # idle control steps after every reset
    seed: int  # of the poses that LIBERO draws at a reset
    light: bool = False  # lighter visual meshes; physics is the same
    folders: files.Folders = files.NOWHERE  # of perturbed suites

    def bddl_file(self) -> pathlib.Path:
        """Scene and goal."""
        return files.bddl_file(self.suite, self.task, self.folders)

    def number(self) -> int:
        """Of the task in LIBERO: perturbed ones have fixtures where the original has them."""
        stored = files.tasks(self.suite, self.folders)[self.task]
        if custom.is_folder(self.suite):
            return custom.number(stored.name)
        return files.perturbed(stored).number

    def remedy(self) -> str:
        """What to do about start states that do not fit."""
        if custom.is_folder(self.suite):
            return "write start states of this very scene"
        return "install LIBERO again"

    def variant(self) -> plus.Variant | None:
        """What the task changes, where it is LIBERO-Plus's."""
        return files.tasks(self.suite, self.folders)[self.task].variant

    def scene(self) -> plus_assets.Scene | None:
        """That of LIBERO-Plus's own which the task is played in."""
        return plus_assets.scene_of(self.bddl_file()) if self.variant() else None

    def init_states(self) -> np.ndarray:
        """See files.init_states."""
        return files.init_states(self.suite, self.task, self.folders)


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """All that the rest of an episode depends on; fits any simulator of the same task.

    About 6 KB; can be pickled.
    """

    physics: np.ndarray  # STATE
    model: tuple[np.ndarray, ...]  # stock.RESET_FIELDS
    goal_position_m: np.ndarray  # of the controller
    goal_rotation: np.ndarray  # an action without rotation keeps it
    grip_2: np.ndarray  # the gripper's ramp
    thrown: bool  # see Simulator


class Simulator:
    """One built task.

    `data` always shows the final state of the last step: poses of bodies, sites and cameras.
    Contacts and forces in it are those at the beginning of its last physics step, as after
    mj_step.
    """

    def __init__(self, setup: Setup):
        """Takes seconds.

        Raises:
            ValueError: settle_steps is less than 1, or LIBERO is not installed.
        """
        if setup.settle_steps < 1:
            raise ValueError(
                f"settle_steps {setup.settle_steps}: the first step is part of a reset;"
                " choose 1 or more"
            )
        self._setup = setup
        folder = setup.folders.plus_assets
        _, self._placement_error = stock.import_libero(setup.assets, folder)
        self.task_env = self._draw(self._build, init_state=0)
        self._robot = self.task_env.robots[0]
        # mujoco's own objects, without robosuite's wrappers
        self.model = self.task_env.sim.model._model
        self.data = self.task_env.sim.data._data
        self._compiled = self.task_env.compiled  # stock.RESET_FIELDS before any reset
        self._end_effector = self.model.body(self._robot.robot_model.eef_name).id
        self._fingers = self._robot._ref_gripper_joint_pos_indexes
        self._control = control.ArmControl(self.model, self.data, self._robot)
        if setup.variant():
            self._perturb(setup.variant())
        # Whether an object was thrown while the start state of the episode settled.
        self.thrown = False

    def start(self, init_state: int) -> None:
        """Reset, load the stored init state, let the objects settle.

        Raises:
            RuntimeError: LIBERO found no place for its fixtures.
            ValueError: the stored states are those of another model.
        """
        self._draw(self._reset, init_state)
        stored = self._setup.init_states()[init_state]
        width = 1 + self.model.nq + self.model.nv
        if len(stored) != width:
            raise ValueError(
                f"the init states of {self._setup.suite} task {self._setup.task} have "
                f"{len(stored)} numbers, but its model has {width}; {self._setup.remedy()}"
            )
        self.task_env.sim.set_state_from_flattened(stored)
        mujoco.mj_forward(self.model, self.data)
        self._control = control.ArmControl(self.model, self.data, self._robot)
        for i in range(self._setup.settle_steps):
            self._control_step(IDLE_ACTION, first=i == 0)
        self._refresh()
        self.thrown = self._is_thrown(stored)

    def step(self, action_a: np.ndarray) -> bool:
        """One control step of 50 ms; whether the goal holds after it."""
        self._control_step(np.asarray(action_a, np.float64))
        # as stock: poses and contacts of the last physics step's start
        success = bool(self.task_env._check_success())
        self._refresh()
        return success

    def state(self) -> np.ndarray:
        """The policy's state [8] float32; see panda.state_vector."""
        data = self.data
        return panda.state_vector(
            data.site_xpos[self._robot.eef_site_id],
            np.roll(data.xquat[self._end_effector], -1),  # MuJoCo's has w first
            data.qpos[self._fingers],
        )

    def snapshot(self) -> Snapshot:
        """The episode as it stands."""
        physics = np.empty(mujoco.mj_stateSize(self.model, STATE))
        mujoco.mj_getState(self.model, self.data, physics, STATE)
        controller = self._robot.controller
        return Snapshot(
            physics=physics,
            model=tuple(getattr(self.model, name).copy() for name in stock.RESET_FIELDS),
            goal_position_m=controller.goal_pos.copy(),
            goal_rotation=controller.goal_ori.copy(),
            grip_2=self._robot.gripper.current_action.copy(),
            thrown=self.thrown,
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Go on with that episode; the one that stands here is lost."""
        self._set_model(snapshot.model)
        mujoco.mj_setState(self.model, self.data, snapshot.physics, STATE)
        controller = self._robot.controller
        controller.goal_pos = snapshot.goal_position_m.copy()
        controller.goal_ori = snapshot.goal_rotation.copy()
        self._robot.gripper.current_action = snapshot.grip_2.copy()
        self.thrown = snapshot.thrown
        # contacts of this episode; leaves the warm start alone
        mujoco.mj_forward(self.model, self.data)
        self._refresh()

    def close(self) -> None:
        """Let go of everything that is large."""
        self.task_env.close()
        self.task_env = None
        self.model = None
        self.data = None
        self._robot = None
        self._control = None

    def _build(self) -> object:
        setup = self._setup
        folder = setup.folders.plus_assets
        return stock.build_task(setup.bddl_file(), setup.light, setup.scene(), folder)

    def _perturb(self, variant: plus.Variant) -> None:
        """The camera of a task of LIBERO-Plus, and the arm pose that a reset begins with.

        The stored start state puts its own arm pose in place of that one, as in the benchmark; the
        controller, which still pulls towards the drawn one, remains.
        """
        if variant.pose:
            self._robot.init_qpos = plus.arm_pose(variant.pose)
        if variant.view != plus.STOCK_VIEW:
            camera = self.model.camera(panda.CAMERAS[0])
            position_m, quaternion = plus.moved_camera(camera.pos, camera.quat, variant.view)
            camera.pos[:] = position_m
            camera.quat[:] = quaternion

    def _reset(self) -> None:
        """The inner reset; LIBERO's outer one swallows every exception and retries for ever.

        A hard reset starts from a new model and a new gripper, so this one gives both their
        first values back: objects are drawn relative to the fixtures, and the poses of the last
        episode must not show.  Stock hard resets also add one more sampler of open and closed
        joints each time, which shifts the draw of the fixtures' poses; an episode then depends
        on the number of resets before it wherever something touches a fixture (libero_10 task 3,
        init state 5).  Ours has the one sampler of a new environment.
        """
        self._set_model(self._compiled)
        self._robot.gripper.current_action = np.zeros(self._robot.gripper.dof)
        for observable in self.task_env._observables.values():
            observable.set_enabled(False)
        self.task_env.reset()

    def _set_model(self, fields: Sequence[np.ndarray]) -> None:
        for name, values in zip(stock.RESET_FIELDS, fields, strict=True):
            getattr(self.model, name)[:] = values

    def _draw(self, function: Callable[[], Result], init_state: int) -> Result:
        """Call `function` with the global generator that LIBERO draws from seeded by the episode.

        Poses of fixtures (cabinet, stove) are drawn at every reset and are not part of the
        stored init state.
        """
        seed = self._setup.seed
        task = self._setup.number()
        for attempt in range(RESET_ATTEMPTS):
            try:
                with seeded((seed, task, init_state, attempt)):
                    return function()
            except self._placement_error as error:
                last = error
        raise RuntimeError(f"no valid placement in {RESET_ATTEMPTS} draws (seed {seed})") from last

    def _control_step(self, action_a: np.ndarray, first: bool = False) -> None:
        """Stock's own step runs four passes over the dynamics where one does.

        They compute the same numbers again.  The first physics step after a reset is robosuite's
        own: its controller still holds the arm of before the init state was loaded, and acts on
        it.
        """
        grip_direction = float(np.sign(action_a[6]))
        for i in range(SUBSTEPS):
            mujoco.mj_step1(self.model, self.data)
            if first and i == 0:
                self.task_env._pre_action(action_a, policy_step=True)
            else:
                if i == 0:
                    self._control.set_goal(action_a[:6])
                self._control.apply(self._robot.gripper.current_action, grip_direction)
            mujoco.mj_step2(self.model, self.data)

    def _is_thrown(self, stored: np.ndarray) -> bool:
        """Whether an object that is fixed to nothing has left its place, or is about to.

        Objects are stored above the table and fall straight onto it.
        """
        free = self.model.jnt_type == mujoco.mjtJoint.mjJNT_FREE
        place_n1 = self.model.jnt_qposadr[free, None]
        speed_n1 = self.model.jnt_dofadr[free, None]
        aside_n2 = self.data.qpos[place_n1 + np.arange(2)] - stored[1 + place_n1 + np.arange(2)]
        velocity_n3 = self.data.qvel[speed_n1 + np.arange(3)]
        aside_m = np.linalg.norm(aside_n2, axis=1)
        fast_m_s = np.linalg.norm(velocity_n3, axis=1)
        return bool((aside_m > THROWN_M).any() or (fast_m_s > AT_REST_M_S).any())

    def _refresh(self) -> None:
        """Poses of bodies, cameras and lights for the state after the step.

        mj_step leaves those of the state before.  Then the looks that follow the state: a stove
        that is on glows.
        """
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)
        self.task_env._post_process()


# The global generator is legacy, but it is the one that LIBERO draws from.
@contextlib.contextmanager
def seeded(entropy: Sequence[int]) -> Iterator[None]:
    """Seed numpy's global generator inside the block; outside nobody notices."""
    before = np.random.get_state()  # noqa: NPY002  (see above)
    np.random.seed(entropy)  # noqa: NPY002  (see above)
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002  (see above)
