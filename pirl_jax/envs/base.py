"""The environment contract: one simulator, whole action chunks.  numpy only; never imports jax.

An env is created once per slot and lives as long as its worker.  An episode is named by (task,
init_state); the same name gives the same episode, whatever ran in that env before.
"""

from collections.abc import Iterable
import dataclasses
from typing import Any, Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class EnvSpec:
    """Shapes and limits of one suite; equal for all its tasks."""

    suite: str
    instructions: tuple[str, ...]  # one per task
    num_init_states: int  # per task
    max_episode_steps: int  # control steps until truncation; where tasks differ, the largest
    image_size_px: int
    cameras: tuple[str, ...] = ("agentview", "wrist")
    state_dim: int = 8  # end-effector position (m), axis-angle (rad), gripper joint positions (m)
    action_dim: int = 7  # delta position, delta rotation, gripper; each in [-1, 1]
    control_hz: int = 20

    @property
    def num_tasks(self) -> int:
        """As many as there are instructions."""
        return len(self.instructions)


@dataclasses.dataclass
class TimeStep:
    """One env after a reset or an action chunk.

    From a pool it is a batch over slots: every field has a leading axis.
    """

    images: np.ndarray  # [V,Y,X,3] uint8, from the state after the last executed step
    state: np.ndarray  # [state_dim] float32
    reward: float  # sum over the executed steps
    terminated: bool  # success: nothing follows, value 0
    truncated: bool  # time limit: the episode was cut, its value is not 0
    num_steps: int  # control steps executed in this chunk (0 after a reset)
    # Video frames [Y,X,3] uint8 of each executed step, only when asked for.
    frames: list | None = None
    # After a reset: the start state threw an object before it came to rest.
    thrown: bool = False
    # The simulator was replaced under this episode: nothing else in this row means anything.
    lost: bool = False


class Env(Protocol):
    """One simulator.  What it raises ends its worker, and with it the episodes that run there."""

    spec: EnvSpec

    def reset(self, task: int, init_state: int) -> TimeStep:
        """Start the episode (task, init_state)."""

    def step_chunk(self, actions_Ia: Iterable[np.ndarray], record: bool = False) -> TimeStep:
        """Execute up to I actions open loop; stop early at success or at the time limit.

        Renders once, at the end (with record=True additionally one agentview frame per step).  An
        iterator is asked for an action when the one before has been executed: so an expert can act
        inside a chunk.
        """

    def close(self) -> None:
        """Release the simulator."""


def unknown(field: str, value: object, choices: Iterable[Any]) -> ValueError:
    """One sentence for a wrong name: the value and the remedy."""
    listed = ", ".join(map(str, choices))
    return ValueError(f"{field} {value!r} does not exist; choose one of: {listed}")
