"""Five tiny probe environments: each fails for one part of an agent only.

So a failure names what is broken.  Run them in order; the first one an agent cannot solve is the
diagnosis (`broken_part`).  A decision is one action chunk of any length; an episode lasts one
decision (two in `delayed`).  Where a probe shows a sign, it shows it in every pixel (0 or 255) and
in every state entry (-1 or +1); init state 0 is the sign -1, init state 1 is +1.
"""

import numpy as np

from pirl_jax.envs import base


class Probe:
    """What the five share; a probe overrides `decisions`, `broken_part`, `sign` and `reward`."""

    name: str
    broken_part: str  # of an agent that cannot solve it
    decisions = 1  # of an episode
    num_init_states = 1

    def __init__(self, image_size_px: int, chunk: int) -> None:
        self.spec = base.EnvSpec(
            suite=f"probe_{self.name}",
            instructions=("solve the probe",),
            num_init_states=self.num_init_states,
            max_episode_steps=self.decisions * chunk,
            image_size_px=image_size_px,
        )
        self._init_state = 0
        self._decision = self.decisions  # as after an episode: there is none yet

    def sign(self, init_state: int, decision: int) -> int:
        """What the observation shows before this decision: -1 or +1."""
        return 1

    def reward(self, sign: int, action: float, decision: int) -> float:
        """Reward of one chunk; `action` is the mean of its clipped actions, in [-1, 1]."""
        raise NotImplementedError

    def reset(self, task: int, init_state: int) -> base.TimeStep:
        """See base.Env."""
        if task != 0:
            raise base.unknown("task", task, [0])
        if init_state not in range(self.num_init_states):
            raise base.unknown("init state", init_state, range(self.num_init_states))
        self._init_state = init_state
        self._decision = 0
        return self._observe(reward=0.0, num_steps=0)

    def step_chunk(self, actions_Ia: np.ndarray, record: bool = False) -> base.TimeStep:
        """See base.Env."""
        if self._decision >= self.decisions:
            raise RuntimeError("the episode of this probe is over; call reset first")
        action = float(np.clip(actions_Ia, -1.0, 1.0).mean())
        sign = self.sign(self._init_state, self._decision)
        reward = self.reward(sign, action, self._decision)
        self._decision += 1
        step = self._observe(reward=reward, num_steps=len(actions_Ia))
        if record:
            step.frames = [step.images[0]] * len(actions_Ia)
        return step

    def close(self) -> None:
        """Nothing to release."""

    def _observe(self, reward: float, num_steps: int) -> base.TimeStep:
        sign = self.sign(self._init_state, self._decision)
        size_px = self.spec.image_size_px
        images_shape = (len(self.spec.cameras), size_px, size_px, 3)
        grey = 255 if sign > 0 else 0
        return base.TimeStep(
            images=np.full(images_shape, grey, np.uint8),
            state=np.full(self.spec.state_dim, sign, np.float32),
            reward=reward,
            terminated=self._decision >= self.decisions,
            truncated=False,
            num_steps=num_steps,
        )


class Constant(Probe):
    """Reward 1, whatever is seen or done: the value must become 1."""

    name = "constant"
    broken_part = "value learning"

    def reward(self, sign: int, action: float, decision: int) -> float:
        return 1.0


class Observed(Probe):
    """Reward is the sign in the observation: the value must become -1 or +1, so it must look."""

    name = "observed"
    broken_part = "observation path"
    num_init_states = 2

    def sign(self, init_state: int, decision: int) -> int:
        return 2 * init_state - 1

    def reward(self, sign: int, action: float, decision: int) -> float:
        return float(sign)


class Delayed(Probe):
    """Two decisions, shown as -1 then +1; reward 1 after the second.

    The values must become discount and 1.
    """

    name = "delayed"
    broken_part = "advantage estimation / discounting"
    decisions = 2

    def sign(self, init_state: int, decision: int) -> int:
        return -1 if decision == 0 else 1

    def reward(self, sign: int, action: float, decision: int) -> float:
        return float(decision == 1)


class Action(Probe):
    """Reward is the mean action: the policy must move every action to +1.

    The best reward is 1, an idle policy gets 0.
    """

    name = "action"
    broken_part = "policy gradient"

    def reward(self, sign: int, action: float, decision: int) -> float:
        return action


class Conditioned(Observed):
    """Reward is the mean action times the sign in the observation.

    The best is 1, a policy that does not look gets 0.
    """

    name = "conditioned"
    broken_part = "conditioning of the policy on the observation"

    def reward(self, sign: int, action: float, decision: int) -> float:
        return sign * action


def make(name: str, image_size_px: int = 16, chunk: int = 5) -> Probe:
    """Build the probe `name`.

    chunk: control steps of a decision; only sets the spec's max_episode_steps, for any chunk length
        is accepted.

    Raises:
        ValueError: there is no such probe.
    """
    if name not in PROBES:
        raise base.unknown("probe", name, PROBES)
    return PROBES[name](image_size_px, chunk)


PROBES = {probe.name: probe for probe in (Constant, Observed, Delayed, Action, Conditioned)}
