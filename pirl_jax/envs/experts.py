"""Scripted experts with privileged state, and the demonstrations they give for fine-tuning.

    act = experts.expert(env)   # once per episode, after env.reset
    action_a = act()            # one control step; sees the simulator's state, never the images

    episodes = experts.collect_demonstrations(env, task=0, init_states=range(50), seed=0)
    step = experts.Driven(env).step_chunk(anything_IA)   # an Env that the expert drives

Every expert is a script of legs (above, descend, close, lift[, carry, lower, open]) for the law in
`servo.py`; the scripts are in the wings' `expert.py`.  numpy only.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from pirl_jax.envs import base, expert_tasks
from pirl_jax.envs.libero import expert as libero_expert
from pirl_jax.envs.tabletop import expert as tabletop_expert

NOISE_SCALE = np.array([1.0, 1.0, 1.0, 0.3, 0.3, 0.3])  # a rotation of 1 is 29 degrees: too much


def expert(env: base.Env) -> Callable[[], np.ndarray]:
    """A function () -> action [7] for the episode `env` has just been reset to.

    Raises:
        ValueError: its task has no expert.
    """
    suite = env.spec.suite
    expert_tasks.require(suite, (env.task,), "a policy")
    # LIBERO's suites, and lists of them, have one that reads the goal of the task.
    wing = tabletop_expert if suite == "tabletop" else libero_expert
    return wing.expert(env)


class Driven:
    """An Env in which the expert acts: of the actions it is given only their number counts."""

    def __init__(self, env: base.Env):
        self.spec = env.spec
        self._env = env
        self._act: Callable[[], np.ndarray] | None = None

    def reset(self, task: int, init_state: int) -> base.TimeStep:
        """As the env's own."""
        step = self._env.reset(task, init_state)
        self._act = expert(self._env)
        return step

    def step_chunk(self, actions_Ia: Iterable[np.ndarray], record: bool = False) -> base.TimeStep:
        """As many of the expert's actions as there are in actions_Ia."""
        return self._env.step_chunk(self._actions(actions_Ia), record)

    def close(self) -> None:
        self._env.close()

    def _actions(self, counted: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Each is asked of the expert when the one before has been executed."""
        for _ in counted:
            yield self._act()


def driven(make_env: Callable[[], base.Env]) -> Driven:
    """For pools: functools.partial(driven, make_env) can be pickled."""
    return Driven(make_env())


def perturbed(action_a: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """The action [7] with Gaussian noise on its six deltas, within [-1, 1].

    `noise` is the standard deviation, as a fraction of a full delta.
    """
    disturbance_6 = noise * NOISE_SCALE * rng.standard_normal(6)
    disturbed_a = action_a.copy()
    disturbed_a[:6] = np.clip(action_a[:6] + disturbance_6, -1.0, 1.0)
    return disturbed_a


def collect_demonstrations(
    env: base.Env, task: int, init_states: Iterable[int], seed: int = 0, noise: float = 0.1
) -> list[dict]:
    """One episode per init state, rendered at every control step.

    The arm is disturbed by `noise`, the recorded action is the expert's own: demonstrations show
    how to come back from a deviation (DART, Laskey et al. 2017).  Each is a dict of images
    [steps,cameras,Y,X,3] uint8, state [steps,8], actions [steps,7], instruction, success and
    init_state; row t holds the observation in which actions[t] was chosen.

    An episode whose simulator sends faulty numbers is played once more; faulty again, it is lost:
    no success, and a "fault" instead of rows.
    """
    return [_played(env, task, init_state, seed, noise) for init_state in init_states]


def _played(env: base.Env, task: int, init_state: int, seed: int, noise: float) -> dict:
    for _ in range(2):
        # By episode: what else is collected does not change it.
        rng = np.random.default_rng([seed, task, init_state])
        try:
            return _demonstration(env, task, init_state, rng, noise)
        except base.FaultyNumbers as error:
            fault = str(error)
    return {"init_state": init_state, "success": False, "fault": fault}


def _demonstration(
    env: base.Env, task: int, init_state: int, rng: np.random.Generator, noise: float
) -> dict:
    step = base.sound(env.reset(task, init_state), env.spec, 0)
    act = expert(env)
    images = []
    states = []
    actions = []
    while not (step.terminated or step.truncated):
        # as a policy would give it, and as it is recorded
        action_a = act().astype(np.float32)
        images.append(step.images)
        states.append(step.state)
        actions.append(action_a)
        step = base.sound(env.step_chunk(perturbed(action_a, noise, rng)[None]), env.spec, 1)
    return {
        "images": np.stack(images),
        "state": np.stack(states),
        "actions": np.stack(actions),
        "init_state": init_state,
        "instruction": env.spec.instructions[task],
        "success": step.terminated,
    }
