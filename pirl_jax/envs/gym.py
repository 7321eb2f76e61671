"""Our environments behind gymnasium's interface: one task, one control step per `step`.

    import gymnasium
    env = gymnasium.make("pirl_jax.envs.gym:pirl_jax/LIBERO-v0", suite="libero_spatial", task=0)
    observation, info = env.reset(seed=0)          # or reset(options={"init_state": 7})

The part before the colon imports this module, which registers the ids; after `import pirl_jax.envs.gym` the id alone is
enough.  For software that wants gymnasium: training and evaluation use pools, which render once per action chunk.
"""

import gymnasium
from gymnasium import spaces
import numpy as np

from pirl_jax.envs import base
from pirl_jax.envs.libero import suite as libero
from pirl_jax.envs.tabletop import suite as tabletop

# A bound of the state that no pose leaves: position (m), rotation vector (rad; its angle is at most 2 pi), fingers (m).
STATE_BOUND = np.repeat(np.float32([5.0, 2 * np.pi + 0.01, 0.2]), [3, 3, 2])


class OneTask(gymnasium.Env):
    """One task of an env.  `reset(seed=)` draws the init state, `reset(options={"init_state": k})` names it."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, env: base.Env, task: int, render_mode: str | None):
        if task not in range(env.spec.num_tasks):
            raise base.error("task", task, range(env.spec.num_tasks))
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise base.error("render_mode", render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self._env, self._task, self._step = env, task, None
        size = env.spec.image_size_px
        cameras = {name: spaces.Box(0, 255, (size, size, 3), np.uint8) for name in env.spec.cameras}
        self.observation_space = spaces.Dict(
            {**cameras, "state": spaces.Box(-STATE_BOUND, STATE_BOUND)}
        )
        self.action_space = spaces.Box(-1.0, 1.0, (env.spec.action_dim,))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(self._env.spec.num_init_states))
        init_state = (options or {}).get("init_state", drawn)
        self._step = self._env.reset(self._task, init_state)
        return self._observation(), self._info() | {"init_state": init_state}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """Images are rendered at every step; a terminated or truncated episode must be reset before the next one."""
        self._step = step = self._env.step_chunk(np.asarray(action)[None])
        return (
            self._observation(),
            float(step.reward),
            bool(step.terminated),
            bool(step.truncated),
            self._info(),
        )

    def render(self) -> np.ndarray | None:
        """The first camera's image [Y,X,3] uint8 of the last step."""
        return self._step.images[0].copy() if self.render_mode else None

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
        self._env = None

    def _observation(self) -> dict:
        return {
            **dict(zip(self._env.spec.cameras, self._step.images, strict=True)),
            "state": self._step.state,
        }

    def _info(self) -> dict:
        return {
            "instruction": self._env.spec.instructions[self._task],
            "is_success": bool(self._step.terminated),
        }


class Libero(OneTask):
    """LIBERO; further arguments are those of `libero.make`."""

    def __init__(
        self,
        suite: str = "libero_spatial",
        task: int = 0,
        render_mode: str | None = None,
        **settings,
    ):
        super().__init__(libero.make(suite, **settings), task, render_mode)


class Tabletop(OneTask):
    """The embedded suite; further arguments are those of `tabletop.make`."""

    def __init__(self, task: int = 0, render_mode: str | None = None, **settings):
        super().__init__(tabletop.make(**settings), task, render_mode)


for _name, _class in {"LIBERO": Libero, "Tabletop": Tabletop}.items():
    gymnasium.register(f"pirl_jax/{_name}-v0", f"{__name__}:{_class.__name__}")
