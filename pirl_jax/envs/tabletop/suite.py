"""The embedded suite `tabletop`: a Panda, two cubes and a target mark on a table, in MuJoCo; needs no download.

    env = tabletop.make(tasks=("lift",), image_size_px=64)
    step = env.reset(task=0, init_state=tabletop.TRAIN_INIT_STATES[0])      # TimeStep: images [V,Y,X,3], state [8]
    step = env.step_chunk(actions_IA)                                       # actions [I,7] in [-1, 1]

Same contract as LIBERO (OSC_POSE delta actions, 20 Hz, two cameras rotated by 180 degrees, 8-D state, sparse
success), but built for speed on a CPU: physics at 200 Hz (robosuite: 500; the expert's success and episode lengths
are the same), a reset is a state load, simple shapes are drawn.  Measured on one slow core: 0.6 ms per control step,
0.6 ms per observation of two 64-px cameras, 0.8 ms per reset.  Every task shares one scene, so only the instruction
says what to do.  An episode is a pure function of (task, init_state, actions).
"""

from collections.abc import Callable
import dataclasses

import mujoco
import numpy as np

from pirl_jax.envs import base
from pirl_jax.envs.tabletop import control, scene

NUM_INIT_STATES = 1000
TRAIN_INIT_STATES, TEST_INIT_STATES = range(0, 800), range(800, 1000)
PLACEMENT_SEED = 20240
CONTROL_HZ = 20
SUBSTEPS = round(1.0 / CONTROL_HZ / scene.TIMESTEP_S)
GRIPPER_RATE = (
    5.0 * scene.TIMESTEP_S
)  # per substep; robosuite: 0.01 per 2 ms: 8 control steps for the full range
HOME_QPOS = (
    0.0,
    0.40112,
    0.0,
    -2.37992,
    0.0,
    2.78104,
    0.78583,
)  # gripper straight down, 17 cm above the table
OPEN_QPOS = (0.04, -0.04)
ARM_JOINTS = tuple(f"robot0_joint{i}" for i in range(1, 8))
SITE, WRIST = "gripper0_grip_site", "robot0_right_hand"
REACH_M = {
    "red": (0.06, 0.09),
    "green": (0.09, 0.13),
    "target": (0.09, 0.13),
}  # half width in x and y of the placement
CLEARANCE_M = 0.11  # between centres: room for the open fingers
MAX_YAW_RAD = 0.25
MAX_DRAWS = 20_000  # of a place for one object, before all are drawn anew; it takes 0.1 s
LIFT_M, REACHED_M, REST_M, REST_SPEED_M_S = 0.04, 0.03, 0.005, 0.05


@dataclasses.dataclass(frozen=True)
class Task:
    """One instruction with its goal predicate; `manipulated` and `goal` tell the scripted expert what to do."""

    instruction: str
    max_episode_steps: int
    success: Callable[["Tabletop"], bool]
    manipulated: str
    goal: str | None = None  # None: up; otherwise the body to bring it to


class Tabletop:
    """One simulator; see envs/base.py for the contract."""

    def __init__(
        self,
        tasks: tuple[str, ...],
        image_size_px: int,
        max_episode_steps: int,
        render_quality: str,
        spread: float,
    ):
        self._spread = spread
        self.tasks = tuple(TASKS[name] for name in tasks)
        self._task_index = [
            list(TASKS).index(name) for name in tasks
        ]  # a placement does not depend on the selection
        self.spec = base.EnvSpec(
            "tabletop",
            tuple(task.instruction for task in self.tasks),
            NUM_INIT_STATES,
            max_episode_steps,
            image_size_px,
            control_hz=CONTROL_HZ,
        )
        self.model = scene.build(render_quality)
        self.data = mujoco.MjData(self.model)
        self._cameras = scene.Cameras(self.model, image_size_px, render_quality)
        self._arm = control.OperationalSpaceController(
            self.model, self.data, ARM_JOINTS, SITE, HOME_QPOS
        )
        self._site, self._wrist = self.model.site(SITE).id, self.model.body(WRIST).id
        self._torque_limit = self.model.actuator_ctrlrange[:7, 1].copy()
        self._grip = -1.0  # -1 open, +1 closed: where the fingers' servo stands
        self._step, self._over, self.task = 0, True, 0

    def reset(self, task: int, init_state: int) -> base.TimeStep:
        if not 0 <= task < len(self.tasks):
            raise base.error("task", task, range(len(self.tasks)))
        if not 0 <= init_state < NUM_INIT_STATES:
            raise ValueError(
                f"init_state {init_state} does not exist; choose one in 0..{NUM_INIT_STATES - 1}"
            )
        self.task, self._step, self._over, self._grip = task, 0, False, -1.0
        data = self.data
        mujoco.mj_resetData(self.model, data)
        data.qpos[:9] = HOME_QPOS + OPEN_QPOS
        for name, (x, y, yaw) in placement(
            self._task_index[task], init_state, self._spread
        ).items():
            if name == "target":
                data.mocap_pos[0, :2] = x, y
            else:
                on_table = (x, y, scene.TABLE_TOP_M + scene.CUBE_HALF_M)
                data.joint(name).qpos[:] = *on_table, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)
        mujoco.mj_forward(self.model, data)
        self._arm.reset()
        return self._time_step(0.0, False, 0, None)

    def step_chunk(self, actions_IA: np.ndarray, record: bool = False) -> base.TimeStep:
        if self._over:
            raise ValueError(
                "this episode is over; call reset(task, init_state) before the next step_chunk"
            )
        frames, success, done = [] if record else None, False, 0
        for action_A in actions_IA:
            self._control_step(np.asarray(action_A, np.float64))
            self._step, done = self._step + 1, done + 1
            success = self.tasks[self.task].success(self)
            if record:
                frames.append(self._cameras.render(self.data, num_cameras=1)[0])
            if success or self._step >= self.spec.max_episode_steps:
                self._over = True
                break
        return self._time_step(float(success), success, done, frames)

    def close(self) -> None:
        self._cameras.close()

    def position(self, name: str) -> np.ndarray:
        """World position [3] (m) of `red`, `green` or `target` (privileged: for success predicates and experts)."""
        return self.data.body(name).xpos

    def grip_pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Position [3] and rotation [3,3] of the point between the fingertips."""
        return self.data.site_xpos[self._site], self.data.site_xmat[self._site].reshape(3, 3)

    def touches(self, first: str, *others: str) -> bool:
        """Whether the cube `first` touches one of the others; "gripper" means any geom of the robot."""
        geom = self.model.geom(first).id
        pairs = self.data.contact.geom
        partners = [
            self.model.geom(int(b if a == geom else a)).name for a, b in pairs if geom in (a, b)
        ]
        partners = [
            "gripper" if name.startswith(("gripper0_", "robot0_")) else name for name in partners
        ]
        return any(name in others for name in partners)

    def _control_step(self, action_A):
        """1/20 s: one goal, SUBSTEPS physics steps.  `data` is fresh (after mj_step1) before and after."""
        model, data, limit, grip_sign = (
            self.model,
            self.data,
            self._torque_limit,
            np.sign(action_A[6]),
        )
        self._arm.set_goal(action_A[:6])
        for _ in range(SUBSTEPS):
            self._grip = min(1.0, max(-1.0, self._grip + GRIPPER_RATE * grip_sign))
            data.ctrl[:7] = np.clip(self._arm.torques(), -limit, limit)
            data.ctrl[7:9] = 0.02 * (1.0 - self._grip), -0.02 * (1.0 - self._grip)
            mujoco.mj_step2(model, data)
            mujoco.mj_step1(model, data)

    def _time_step(self, reward, success, num_steps, frames):
        position, rotvec = self.data.site_xpos[self._site], axis_angle(self.data.xquat[self._wrist])
        state = np.concatenate([position, rotvec, self.data.qpos[7:9]])
        truncated = not success and self._step >= self.spec.max_episode_steps
        return base.TimeStep(
            self._cameras.render(self.data),
            state.astype(np.float32),
            reward,
            success,
            truncated,
            num_steps,
            frames,
        )


def make(
    tasks=None,
    image_size_px: int = 64,
    max_episode_steps: int | None = None,
    render_quality: str = "light",
    spread: float = 1.0,
) -> Tabletop:
    """The env; `tasks`: names of TASKS (None: all); `max_episode_steps` None: the longest budget of these tasks; `spread`
    scales the area in which the manipulated cube starts (1: 12 x 18 cm)."""
    names = tuple(TASKS) if tasks is None else tuple(tasks)
    for name in names:
        if name not in TASKS:
            raise base.error("tabletop task", name, TASKS)
    if render_quality not in scene.QUALITIES:
        raise base.error("render_quality", render_quality, scene.QUALITIES)
    budget = max_episode_steps or max(TASKS[name].max_episode_steps for name in names)
    return Tabletop(names, image_size_px, budget, render_quality, spread)


def placement(
    task_index: int, init_state: int, spread: float = 1.0
) -> dict[str, tuple[float, float, float]]:
    """x, y (m) and yaw (rad) of each object; a function of (task, init_state) and `spread` alone."""
    manipulated = list(TASKS.values())[task_index].manipulated
    rng = np.random.default_rng([PLACEMENT_SEED, task_index, init_state])
    placed = None
    while placed is None:
        placed = _place(
            rng,
            {
                name: np.multiply(reach, spread if name == manipulated else 1.0)
                for name, reach in REACH_M.items()
            },
        )
    return {name: tuple(map(float, xy_yaw)) for name, xy_yaw in placed.items()}


def _place(rng, reach_m: dict) -> dict[str, np.ndarray] | None:
    """x, y, yaw of each object, clear of those before it; None where they leave one no room."""
    placed = {}
    for name, reach in reach_m.items():
        for _ in range(MAX_DRAWS):
            xy = rng.uniform(-1, 1, 2) * reach
            if all(np.hypot(*(xy - other[:2])) >= CLEARANCE_M for other in placed.values()):
                break
        else:
            return None
        placed[name] = np.append(xy, rng.uniform(-MAX_YAW_RAD, MAX_YAW_RAD))
    return placed


def axis_angle(quat_wxyz) -> np.ndarray:
    """robosuite's axis-angle [3]: w clipped, no choice between q and -q, zeros where the sine vanishes."""
    w = min(1.0, max(-1.0, float(quat_wxyz[0])))
    sine = np.sqrt(1.0 - w * w)
    return np.zeros(3) if sine < 1e-9 else np.asarray(quat_wxyz[1:]) * (2.0 * np.arccos(w) / sine)


def _lifted(name):
    return lambda env: env.position(name)[2] - scene.CUBE_HALF_M > scene.TABLE_TOP_M + LIFT_M


def _stacked(env) -> bool:
    offset = env.position("red") - env.position("green")
    on_top = (
        np.hypot(*offset[:2]) < scene.CUBE_HALF_M
        and abs(offset[2] - 2 * scene.CUBE_HALF_M) < REST_M
    )
    return bool(on_top and env.touches("red", "green") and not env.touches("red", "gripper"))


def _moved(env) -> bool:
    offset = env.position("red") - env.position("target")
    speed_m_s = np.linalg.norm(env.data.joint("red").qvel[:3])
    resting = abs(offset[2] - scene.CUBE_HALF_M) < REST_M and speed_m_s < REST_SPEED_M_S
    return bool(resting and np.hypot(*offset[:2]) < REACHED_M)


TASKS = {
    "lift": Task("lift the red cube", 60, _lifted("red"), "red"),
    "lift_green": Task("lift the green cube", 60, _lifted("green"), "green"),
    "stack": Task("stack the red cube on the green cube", 120, _stacked, "red", "green"),
    "move": Task("move the red cube to the target", 100, _moved, "red", "target"),
}
