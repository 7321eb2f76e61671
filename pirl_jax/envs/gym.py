"""Our environments behind gymnasium's interface: one task, one control step per `step`.

    import gymnasium
    env = gymnasium.make("pirl_jax.envs.gym:pirl_jax/LIBERO-v0", suite="libero_spatial", task=0)
    observation, info = env.reset(seed=0)          # or reset(options={"init_state": 7})

The part before the colon imports this module, which registers the ids; after `import
pirl_jax.envs.gym` the id alone is enough.  For software that wants gymnasium: training and
evaluation use pools, which render once per action chunk.
"""

from typing import Any, ClassVar

import gymnasium
from gymnasium import spaces
import numpy as np

from pirl_jax.envs import base
from pirl_jax.envs.libero import suite as libero
from pirl_jax.envs.tabletop import suite as tabletop

# A bound of the state that no pose leaves: position (m), rotation vector (rad; its angle is at most
# 2 pi), fingers (m).
STATE_BOUND = np.repeat(np.float32([5.0, 2 * np.pi + 0.01, 0.2]), [3, 3, 2])


class OneTask(gymnasium.Env):
    """One task of an env; it closes the env.

    `reset(seed=)` draws the init state, `reset(options={"init_state": k})` names it.

    Raises:
        ValueError: there is no such task or render mode.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, env: base.Env, task: int, render_mode: str | None) -> None:
        spec = env.spec
        if task not in range(spec.num_tasks):
            raise base.unknown("task", task, range(spec.num_tasks))
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise base.unknown("render_mode", render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self._env: base.Env | None = env  # None once it is closed
        self._task = task
        self._last: base.TimeStep | None = None  # None before the first reset
        image_shape = (spec.image_size_px, spec.image_size_px, 3)
        spaces_by_name: dict[str, spaces.Space] = {}
        for camera in spec.cameras:
            spaces_by_name[camera] = spaces.Box(0, 255, image_shape, np.uint8)
        spaces_by_name["state"] = spaces.Box(-STATE_BOUND, STATE_BOUND)
        self.observation_space = spaces.Dict(spaces_by_name)
        self.action_space = spaces.Box(-1.0, 1.0, (spec.action_dim,))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict, dict]:
        """Start an episode -> observation, info."""
        super().reset(seed=seed)
        # Drawn even where it is named: the draws that follow stay the same.
        drawn = int(self.np_random.integers(self._env.spec.num_init_states))
        init_state = (options or {}).get("init_state", drawn)
        self._last = base.sound(self._env.reset(self._task, init_state), self._env.spec, 0)
        return self._observation(), self._info() | {"init_state": init_state}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """One control step -> observation, reward, terminated, truncated, info.

        Images are rendered at every step; a terminated or truncated episode must be reset before
        the next one.

        Raises:
            base.FaultyNumbers: the simulator is broken; a reset mends most of them.
        """
        step = self._env.step_chunk(np.asarray(action)[None])
        self._last = base.sound(step, self._env.spec, 1)
        return (
            self._observation(),
            float(step.reward),
            bool(step.terminated),
            bool(step.truncated),
            self._info(),
        )

    def render(self) -> np.ndarray | None:
        """The first camera's image [Y,X,3] uint8 of the last step; None without a render mode."""
        if not self.render_mode:
            return None
        return self._last.images[0].copy()

    def close(self) -> None:
        """Close the env; safe to call again, as gymnasium does."""
        if self._env is not None:
            self._env.close()
        self._env = None

    def _observation(self) -> dict[str, np.ndarray]:
        observation = dict(zip(self._env.spec.cameras, self._last.images, strict=True))
        observation["state"] = self._last.state
        return observation

    def _info(self) -> dict[str, Any]:
        return {
            "instruction": self._env.spec.instructions[self._task],
            "is_success": bool(self._last.terminated),
        }


class Libero(OneTask):
    """LIBERO; further arguments are those of `libero.make`."""

    def __init__(
        self,
        suite: str = "libero_spatial",
        task: int = 0,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(libero.make(suite, **settings), task, render_mode)


class Tabletop(OneTask):
    """The embedded suite; further arguments are those of `tabletop.make`."""

    def __init__(self, task: int = 0, render_mode: str | None = None, **settings: Any) -> None:
        super().__init__(tabletop.make(**settings), task, render_mode)


gymnasium.register("pirl_jax/LIBERO-v0", f"{__name__}:{Libero.__name__}")
gymnasium.register("pirl_jax/Tabletop-v0", f"{__name__}:{Tabletop.__name__}")
