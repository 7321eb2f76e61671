"""The embedded suite `tabletop`: a Panda, two cubes and a mark on a table; needs no download.

    env = tabletop.make(tasks=("lift",), image_size_px=64)
    step = env.reset(task=0, init_state=tabletop.TRAIN_INIT_STATES[0])
    step = env.step_chunk(actions_Ia)

Actions are [I,7] in [-1, 1]; a TimeStep has images [cameras,Y,X,3] and a state [8].  Same
contract as LIBERO (OSC_POSE delta actions, 20 Hz, two cameras rotated by 180 degrees, sparse
success), but built for speed on a CPU: physics at 200 Hz (robosuite: 500; the expert's success
and episode lengths are the same), a reset is a state load, simple shapes are drawn.  Measured on
one slow core: 0.6 ms per control step, 0.6 ms per observation of two 64-px cameras, 0.8 ms per
reset.  Every task shares one scene, so only the instruction says what to do.  An episode is a
pure function of (task, init_state, actions).
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import functools

import mujoco
import numpy as np

from pirl_jax.envs import base, panda
from pirl_jax.envs.tabletop import control, render, scene

NUM_INIT_STATES = 1000
TRAIN_INIT_STATES = range(0, 800)
TEST_INIT_STATES = range(800, 1000)
PLACEMENT_SEED = 20240
CONTROL_HZ = 20
SUBSTEPS = round(1.0 / CONTROL_HZ / scene.TIMESTEP_S)

# of the gripper per substep; robosuite: 0.01 per 2 ms, so 8 control steps for the full range
GRIPPER_RATE = 5.0 * scene.TIMESTEP_S
OPEN_M = 0.02  # half the range of a finger joint
# gripper straight down, 17 cm above the table
HOME_QPOS = (0.0, 0.40112, 0.0, -2.37992, 0.0, 2.78104, 0.78583)
OPEN_QPOS = (0.04, -0.04)
ARM_JOINTS = tuple(f"robot0_joint{i}" for i in range(1, 8))
WRIST = "robot0_right_hand"
ROBOT_PREFIXES = ("gripper0_", "robot0_")
# Places in qpos and ctrl of what `scene.build` adds first.
ARM = slice(0, 7)
FINGERS = slice(7, 9)

# half widths in x and y of the area in which each object starts
REACH_M = {"red": (0.06, 0.09), "green": (0.09, 0.13), "target": (0.09, 0.13)}
CLEARANCE_M = 0.11  # between centres: room for the open fingers
MAX_YAW_RAD = 0.25
MAX_DRAWS = 20_000  # of a place for one object, before all are drawn anew; it takes 0.1 s

# of the goals
LIFT_M = 0.04
REACHED_M = 0.03
REST_M = 0.005
REST_SPEED_M_S = 0.05


@dataclasses.dataclass(frozen=True)
class Task:
    """One instruction with its goal predicate.

    `manipulated` and `goal` tell the scripted expert what to do.
    """

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
        """`make` checks the arguments."""
        self.tasks = tuple(TASKS[name] for name in tasks)
        # Counted in TASKS, so that a placement does not depend on the selection.
        self._task_index = [list(TASKS).index(name) for name in tasks]
        self._spread = spread
        self.spec = base.EnvSpec(
            suite="tabletop",
            instructions=tuple(task.instruction for task in self.tasks),
            num_init_states=NUM_INIT_STATES,
            max_episode_steps=max_episode_steps,
            image_size_px=image_size_px,
            control_hz=CONTROL_HZ,
        )
        self.model = scene.build(render_quality)
        self.data = mujoco.MjData(self.model)
        self._cameras = render.Cameras(self.model, image_size_px, render_quality)
        self._arm = control.OperationalSpaceController(
            self.model, self.data, ARM_JOINTS, panda.GRIP_SITE, HOME_QPOS
        )
        self._site = self.model.site(panda.GRIP_SITE).id
        self._wrist = self.model.body(WRIST).id
        self._torque_limit_7 = self.model.actuator_ctrlrange[ARM, 1].copy()  # N m
        self._grip = -1.0  # -1 open, +1 closed: where the fingers' servo stands
        self.task = 0
        self._elapsed = 0  # control steps of the episode
        self._over = True

    def reset(self, task: int, init_state: int) -> base.TimeStep:
        """Start the episode (task, init_state).

        Raises:
            ValueError: there is no such task or init state.
        """
        if not 0 <= task < len(self.tasks):
            raise base.unknown("task", task, range(len(self.tasks)))
        if not 0 <= init_state < NUM_INIT_STATES:
            raise ValueError(
                f"init_state {init_state} does not exist; choose one in 0..{NUM_INIT_STATES - 1}"
            )
        self.task = task
        self._elapsed = 0
        self._over = False
        self._grip = -1.0
        # All of an episode's past goes: the solver's warm start is part of it.
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[ARM] = HOME_QPOS
        self.data.qpos[FINGERS] = OPEN_QPOS
        places = placement(self._task_index[task], init_state, self._spread)
        for name, (x_m, y_m, yaw_rad) in places.items():
            self._place(name, x_m, y_m, yaw_rad)
        mujoco.mj_forward(self.model, self.data)
        self._arm.reset()
        return self._observe(success=False, num_steps=0, frames=None)

    def step_chunk(self, actions_Ia: Iterable[np.ndarray], record: bool = False) -> base.TimeStep:
        """Execute up to I actions [7]; see base.Env.

        Raises:
            ValueError: the episode is over.
        """
        if self._over:
            raise ValueError(
                "this episode is over; call reset(task, init_state) before the next step_chunk"
            )
        frames = [] if record else None
        success = False
        num_steps = 0
        for action_a in actions_Ia:
            self._control_step(np.asarray(action_a, np.float64))
            self._elapsed += 1
            num_steps += 1
            success = self.tasks[self.task].success(self)
            if record:
                frames.append(self._cameras.render(self.data, num_cameras=1)[0])
            if success or self._elapsed >= self.spec.max_episode_steps:
                self._over = True
                break
        return self._observe(success, num_steps, frames)

    def close(self) -> None:
        """Free the GL context; the second call does nothing."""
        self._cameras.close()

    def position(self, name: str) -> np.ndarray:
        """World position [3] (m) of `red`, `green` or `target`.

        Privileged: for success predicates and experts.
        """
        return self.data.body(name).xpos

    def grip_pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Position [3] (m) and rotation [3,3] of the point between the fingertips."""
        position_m = self.data.site_xpos[self._site]
        rotation = self.data.site_xmat[self._site].reshape(3, 3)
        return position_m, rotation

    def touches(self, first: str, *others: str) -> bool:
        """Whether the cube `first` touches one of the others.

        "gripper" means any geom of the robot.
        """
        geom = self.model.geom(first).id
        for pair in self.data.contact.geom:
            if geom not in pair:
                continue
            partner = pair[1] if pair[0] == geom else pair[0]
            name = self.model.geom(int(partner)).name
            if name.startswith(ROBOT_PREFIXES):
                name = "gripper"
            if name in others:
                return True
        return False

    def _place(self, name: str, x_m: float, y_m: float, yaw_rad: float) -> None:
        if name == "target":
            self.data.mocap_pos[0, :2] = x_m, y_m
            return
        position_m = (x_m, y_m, scene.TABLE_TOP_M + scene.CUBE_HALF_M)
        quat_wxyz = (np.cos(yaw_rad / 2), 0, 0, np.sin(yaw_rad / 2))
        self.data.joint(name).qpos[:] = (*position_m, *quat_wxyz)

    def _control_step(self, action_a: np.ndarray) -> None:
        """1/20 s: one goal, SUBSTEPS physics steps.

        `data` is fresh (after mj_step1) before and after: predicates, states and pictures read it.
        """
        data = self.data
        limit_7 = self._torque_limit_7
        direction = np.sign(action_a[6])
        self._arm.set_goal(action_a[:6])
        for _ in range(SUBSTEPS):
            grip = self._grip + GRIPPER_RATE * direction
            self._grip = min(1.0, max(-1.0, grip))
            data.ctrl[ARM] = np.clip(self._arm.torques(), -limit_7, limit_7)
            # position targets (m); the two fingers mirror each other
            data.ctrl[FINGERS] = OPEN_M * (1.0 - self._grip), -OPEN_M * (1.0 - self._grip)
            mujoco.mj_step2(self.model, data)
            mujoco.mj_step1(self.model, data)

    def _observe(
        self, success: bool, num_steps: int, frames: list[np.ndarray] | None
    ) -> base.TimeStep:
        quat_xyzw = np.roll(self.data.xquat[self._wrist], -1)  # MuJoCo's has w first
        return base.TimeStep(
            images=self._cameras.render(self.data),
            state=panda.state_vector(
                self.data.site_xpos[self._site], quat_xyzw, self.data.qpos[FINGERS]
            ),
            reward=float(success),
            terminated=success,
            truncated=not success and self._elapsed >= self.spec.max_episode_steps,
            num_steps=num_steps,
            frames=frames,
        )


def make(
    tasks: Iterable[str] | None = None,
    image_size_px: int = 64,
    max_episode_steps: int | None = None,
    render_quality: str = "light",
    spread: float = 1.0,
) -> Tabletop:
    """An env of these tasks.

    `tasks` are names of TASKS (None: all); `max_episode_steps` None is the longest budget of these
    tasks; `spread` scales the area in which the manipulated cube starts (1: 12 x 18 cm).

    Raises:
        ValueError: a name does not exist; the sentence lists the choices.
    """
    names = tuple(TASKS) if tasks is None else tuple(tasks)
    for name in names:
        if name not in TASKS:
            raise base.unknown("tabletop task", name, TASKS)
    if render_quality not in scene.QUALITIES:
        raise base.unknown("render_quality", render_quality, scene.QUALITIES)
    longest = max(TASKS[name].max_episode_steps for name in names)
    return Tabletop(names, image_size_px, max_episode_steps or longest, render_quality, spread)


def placement(
    task_index: int, init_state: int, spread: float = 1.0
) -> dict[str, tuple[float, float, float]]:
    """x, y (m) and yaw (rad) of each object; a function of (task, init_state) and `spread` alone.

    `task_index` counts in TASKS.
    """
    manipulated = list(TASKS.values())[task_index].manipulated
    reach_m = {name: np.array(half_widths_m) for name, half_widths_m in REACH_M.items()}
    reach_m[manipulated] = reach_m[manipulated] * spread
    rng = np.random.default_rng([PLACEMENT_SEED, task_index, init_state])
    placed = None
    while placed is None:
        placed = _place_all(rng, reach_m)
    return {name: tuple(map(float, place)) for name, place in placed.items()}


def _place_all(
    rng: np.random.Generator, reach_m: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray] | None:
    """x, y (m) and yaw (rad) of each object, clear of those before it.

    None: they leave one no room.
    """
    placed = {}
    for name, half_widths_m in reach_m.items():
        xy_m = _clear_place(rng, half_widths_m, placed)
        if xy_m is None:
            return None
        yaw_rad = rng.uniform(-MAX_YAW_RAD, MAX_YAW_RAD)
        placed[name] = np.append(xy_m, yaw_rad)
    return placed


def _clear_place(
    rng: np.random.Generator, half_widths_m: np.ndarray, placed: Mapping[str, np.ndarray]
) -> np.ndarray | None:
    """x, y (m) of one object; None where it found no room."""
    for _ in range(MAX_DRAWS):
        xy_m = rng.uniform(-1, 1, 2) * half_widths_m
        apart_m = [np.hypot(*(xy_m - other[:2])) for other in placed.values()]
        if all(distance_m >= CLEARANCE_M for distance_m in apart_m):
            return xy_m
    return None


def _lifted(env: Tabletop, name: str) -> bool:
    return env.position(name)[2] - scene.CUBE_HALF_M > scene.TABLE_TOP_M + LIFT_M


def _stacked(env: Tabletop) -> bool:
    """Red rests on green and on nothing else; the gripper has let go."""
    offset_m = env.position("red") - env.position("green")
    above = np.hypot(*offset_m[:2]) < scene.CUBE_HALF_M
    on_top = above and abs(offset_m[2] - 2 * scene.CUBE_HALF_M) < REST_M
    return bool(on_top and env.touches("red", "green") and not env.touches("red", "gripper"))


def _moved(env: Tabletop) -> bool:
    """Red rests on the table, over the mark."""
    offset_m = env.position("red") - env.position("target")
    speed_m_s = np.linalg.norm(env.data.joint("red").qvel[:3])
    on_table = abs(offset_m[2] - scene.CUBE_HALF_M) < REST_M
    resting = on_table and speed_m_s < REST_SPEED_M_S
    return bool(resting and np.hypot(*offset_m[:2]) < REACHED_M)


TASKS = {
    "lift": Task(
        instruction="lift the red cube",
        max_episode_steps=60,
        success=functools.partial(_lifted, name="red"),
        manipulated="red",
    ),
    "lift_green": Task(
        instruction="lift the green cube",
        max_episode_steps=60,
        success=functools.partial(_lifted, name="green"),
        manipulated="green",
    ),
    "stack": Task(
        instruction="stack the red cube on the green cube",
        max_episode_steps=120,
        success=_stacked,
        manipulated="red",
        goal="green",
    ),
    "move": Task(
        instruction="move the red cube to the target",
        max_episode_steps=100,
        success=_moved,
        manipulated="red",
        goal="target",
    ),
}
