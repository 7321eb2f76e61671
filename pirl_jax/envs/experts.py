"""Scripted experts with privileged state, and the demonstrations they give for supervised fine-tuning.  numpy only.

    act = experts.expert(env)              # once per episode, after env.reset
    action_A = act()                       # one control step; sees the simulator's state, never the images

    episodes = experts.collect_demonstrations(env, task=0, init_states=tabletop.TRAIN_INIT_STATES[:50], seed=0)
    step = experts.Driven(env).step_chunk(anything_IA)     # an Env that the expert drives

Every expert is a script of legs (above, descend, close, lift[, carry, lower, open]) for the law in `servo.py`; the
script of tabletop is here, that of LIBERO in `libero_experts.py`.
"""

from collections.abc import Callable

import numpy as np

from pirl_jax.envs import base, servo
from pirl_jax.envs.libero import expert as libero_experts
from pirl_jax.envs.libero import files
from pirl_jax.envs.servo import CLOSE, OPEN, Leg
from pirl_jax.envs.tabletop import scene

ABOVE_M, CARRY_M = 0.08, 0.07
NEAR_M, FINE_M = 0.02, 0.01
CLOSE_STEPS, OPEN_STEPS = 6, 5  # the fingers need about 4 steps to reach or to free a cube of 4 cm
NOISE_SCALE = np.array([1.0, 1.0, 1.0, 0.3, 0.3, 0.3])  # a rotation of 1 is 29 degrees: too much


def available(suite: str) -> bool:
    """Whether there is an expert for every task of the suite."""
    return suite in SCRIPTS


def expert(env):
    """A function () -> action [7] for the episode `env` has just been reset to."""
    suite = env.spec.suite
    if suite not in SCRIPTS:
        raise base.error("scripted expert for suite", suite, SCRIPTS)
    return SCRIPTS[suite](env)


def tabletop_expert(env):
    """See `expert`; one pick (goal None) or pick-and-place of a cube."""
    task = env.tasks[env.task]
    return servo.follow(env.grip_pose, lambda: _tabletop_script(env, task.manipulated, task.goal))


def _tabletop_script(env, cube: str, goal: str | None) -> list[Leg]:
    start = env.position(cube).copy()

    def over(body, height_m):
        return lambda: env.position(body) + [0.0, 0.0, height_m]

    def lifted(height_m):
        return lambda: start + [0.0, 0.0, height_m]

    def yaw(grip_rot):  # along the cube's faces; not once it is gripped: it turns with the hand
        turn_rad = servo.heading(env.data.body(cube).xmat.reshape(3, 3)[:, 0]) - servo.heading(
            grip_rot[:, 0]
        )
        return servo.wrapped(turn_rad, np.pi / 2)

    pick = [
        Leg("above", over(cube, ABOVE_M), OPEN, yaw, NEAR_M),
        Leg("descend", over(cube, 0.0), OPEN, yaw, FINE_M),
        Leg("close", over(cube, 0.0), CLOSE, steps=CLOSE_STEPS),
    ]
    if goal is None:
        return [*pick, Leg("lift", lifted(0.2), CLOSE, steps=1000)]
    rest_m = (
        scene.CUBE_HALF_M if goal == "target" else 2 * scene.CUBE_HALF_M
    )  # of the cube's centre above the goal's
    return [
        *pick,
        Leg("lift", lifted(CARRY_M), CLOSE, tolerance_m=0.015),
        Leg("carry", over(goal, rest_m + CARRY_M - 0.03), CLOSE, tolerance_m=FINE_M),
        Leg("lower", over(goal, rest_m + 0.002), CLOSE, tolerance_m=FINE_M),
        Leg("open", over(goal, rest_m + 0.002), OPEN, yaw, steps=OPEN_STEPS),
        Leg("leave", over(goal, rest_m + 0.1), OPEN, yaw, steps=1000),
    ]


class Driven:
    """An Env in which the expert acts: of the actions it is given only their number counts."""

    def __init__(self, env):
        self._env, self._act = env, None
        self.spec = env.spec

    def reset(self, task: int, init_state: int) -> base.TimeStep:
        step = self._env.reset(task, init_state)
        self._act = expert(self._env)
        return step

    def step_chunk(self, actions_IA: np.ndarray, record: bool = False) -> base.TimeStep:
        return self._env.step_chunk((self._act() for _ in actions_IA), record)

    def close(self) -> None:
        self._env.close()


def driven(make_env: Callable[[], base.Env]) -> Driven:
    """For pools: functools.partial(driven, make_env) can be pickled."""
    return Driven(make_env())


def perturbed(action_A: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """The action with Gaussian noise of std `noise` on its six deltas (fractions of a full delta), within [-1, 1]."""
    disturbed_A = action_A.copy()
    disturbed_A[:6] = np.clip(
        action_A[:6] + noise * NOISE_SCALE * rng.standard_normal(6), -1.0, 1.0
    )
    return disturbed_A


def collect_demonstrations(
    env, task: int, init_states, seed: int = 0, noise: float = 0.1
) -> list[dict]:
    """One episode per init state, rendered at every control step.  The arm is disturbed by `noise`, the recorded action
    is the expert's own: demonstrations show how to come back from a deviation (DART, Laskey et al. 2017).

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
        episodes.append(
            {
                "images": images,
                "state": state,
                "actions": actions,
                "init_state": init_state,
                "instruction": env.spec.instructions[task],
                "success": step.terminated,
            }
        )
    return episodes


SCRIPTS = {
    "tabletop": tabletop_expert,
    **dict.fromkeys(files.WITH_EXPERT, libero_experts.expert),
}
