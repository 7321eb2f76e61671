"""Scripted experts with privileged state, and the demonstrations they give for supervised fine-tuning.  numpy only.

    act = experts.expert(env)              # once per episode, after env.reset
    action_A = act()                       # one control step; sees the simulator's state, never the images

    episodes = experts.collect_demonstrations(env, task=0, init_states=tabletop.TRAIN_INIT_STATES[:50], seed=0)

A proportional law servoes the grip site through: above, descend, close, lift[, carry, lower, open].
"""

import dataclasses

import numpy as np

from pirl_jax.envs import osc
from pirl_jax.envs import tabletop_model as scene

GAIN = 2.0  # action per (error / full scale): the arm covers about half of a step's delta
ABOVE_M, CARRY_M = 0.08, 0.07
NEAR_M, FINE_M, NEAR_RAD = 0.02, 0.01, 0.08
CLOSE_STEPS, OPEN_STEPS = 6, 5  # the fingers need about 4 steps to reach or to free a cube of 4 cm
OPEN, CLOSE = -1.0, 1.0
NOISE_SCALE = np.array([1.0, 1.0, 1.0, 0.3, 0.3, 0.3])  # a rotation of 1 is 29 degrees: too much


@dataclasses.dataclass
class Phase:
    """One leg of the script: where to servo, the gripper's command, and when it ends."""

    name: str
    height_m: float  # above the anchor
    gripper: float
    over: str  # the body to be above: the cube or the goal
    tolerance_m: float | None = None  # ends when this near ...
    steps: int | None = None  # ... or after this many steps


def phases(cube: str, goal: str | None) -> list[Phase]:
    """The script of one pick (goal None) or pick-and-place."""
    pick = [
        Phase("above", ABOVE_M, OPEN, cube, NEAR_M),
        Phase("descend", 0.0, OPEN, cube, FINE_M),
        Phase("close", 0.0, CLOSE, cube, steps=CLOSE_STEPS),
        Phase("lift", CARRY_M, CLOSE, "start", 0.015),
    ]
    if goal is None:
        return pick[:3] + [Phase("lift", 0.2, CLOSE, "start", steps=1000)]
    rest_m = scene.CUBE_HALF_M if goal == "target" else 2 * scene.CUBE_HALF_M  # of the cube's centre above the goal's
    return pick + [
        Phase("carry", rest_m + CARRY_M - 0.03, CLOSE, goal, FINE_M),
        Phase("lower", rest_m + 0.002, CLOSE, goal, FINE_M),
        Phase("open", rest_m + 0.002, OPEN, goal, steps=OPEN_STEPS),
        Phase("leave", rest_m + 0.1, OPEN, goal, steps=1000),
    ]


def expert(env):
    """A function () -> action [7] for the episode `env` has just been reset to."""
    task = env.tasks[env.task]
    script = phases(task.manipulated, task.goal)
    start = env.position(task.manipulated).copy()
    progress = {"phase": 0, "steps": 0}

    def act() -> np.ndarray:
        phase = script[progress["phase"]]
        error_m, error_rad = _errors(env, phase, start, task.manipulated)
        action_A = np.zeros(7)
        action_A[:6] = GAIN * np.concatenate([error_m, error_rad]) / osc.MAX_DELTA
        action_A = np.clip(action_A, -1.0, 1.0)
        action_A[6] = phase.gripper
        progress["steps"] += 1
        arrived = phase.tolerance_m is not None and np.linalg.norm(error_m) < phase.tolerance_m
        aligned = phase.gripper == CLOSE or np.linalg.norm(error_rad) < NEAR_RAD
        if (arrived and aligned) or progress["steps"] == phase.steps:
            progress.update(phase=progress["phase"] + 1, steps=0)
        return action_A

    return act


def perturbed(action_A: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """The action with Gaussian noise of std `noise` on its six deltas (fractions of a full delta), within [-1, 1]."""
    disturbed_A = action_A.copy()
    disturbed_A[:6] = np.clip(action_A[:6] + noise * NOISE_SCALE * rng.standard_normal(6), -1.0, 1.0)
    return disturbed_A


def _errors(env, phase: Phase, start, cube: str):
    """Position error [3] (m) of the grip site; rotation error [3] (rad): fingers down, and along the cube's faces."""
    grip_pos, grip_rot = env.grip_pose()
    anchor = start if phase.over == "start" else env.position(phase.over)
    error_m = anchor + [0.0, 0.0, phase.height_m] - grip_pos
    error_rad = np.cross(grip_rot[:, 2], [0.0, 0.0, -1.0])
    if phase.gripper == OPEN:  # once gripped the cube turns with the hand
        cube_rot = env.data.body(cube).xmat.reshape(3, 3)
        yaw = np.arctan2(cube_rot[1, 0], cube_rot[0, 0]) - np.arctan2(grip_rot[1, 0], grip_rot[0, 0])
        error_rad[2] += (yaw + np.pi / 4) % (np.pi / 2) - np.pi / 4  # a cube looks the same after a quarter turn
    return error_m, error_rad


def collect_demonstrations(env, task: int, init_states, seed: int = 0, noise: float = 0.1) -> list[dict]:
    """One episode per init state, rendered at every control step.  The arm is disturbed by `noise`, the recorded action is the
    expert's own: demonstrations show how to come back from a deviation (DART, Laskey et al. 2017).

    Each is dict(images [T,V,Y,X,3] uint8, state [T,8], actions [T,7], instruction, success, init_state); row t holds
    the observation in which actions[t] was chosen.
    """
    episodes = []
    for init_state in init_states:
        rng = np.random.default_rng([seed, task, init_state])
        step = env.reset(task, init_state)
        act, rows = expert(env), []
        while not (step.terminated or step.truncated):
            action_A = act().astype(np.float32)
            rows.append((step.images, step.state, action_A))
            step = env.step_chunk(perturbed(action_A, noise, rng)[None])
        images, state, actions = (np.stack(column) for column in zip(*rows))
        episodes.append({
            "images": images, "state": state, "actions": actions, "init_state": init_state,
            "instruction": env.spec.instructions[task], "success": step.terminated,
        })
    return episodes
