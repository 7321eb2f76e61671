"""The environment contract: one simulator, whole action chunks.  numpy only; never imports jax.

An env is created once per slot and lives as long as its worker.  An episode is named by (task,
init_state); the same name gives the same episode, whatever ran in that env before.
"""

from collections.abc import Iterable
import dataclasses
import numbers
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


class FaultyNumbers(RuntimeError):
    """A simulator answered with numbers that are none."""


# What batches hold of a number: from here on float32 is infinite.
MOST = float(np.finfo(np.float32).max)


def fault(step: TimeStep, spec: EnvSpec, num_actions: int) -> str:
    """What is wrong with the numbers of one env's answer, in a few words; "" where nothing is.

    num_actions: how many it was given; 0 for a reset.
    """
    return (
        _fault_of_images(step.images, spec)
        or _fault_of_state(step.state, spec)
        or _fault_of_outcome(step, num_actions)
        or _fault_of_frames(step.frames)
    )


def sound(step: TimeStep, spec: EnvSpec, num_actions: int) -> TimeStep:
    """The step itself.

    Raises:
        FaultyNumbers: `fault` finds something.
    """
    said = fault(step, spec, num_actions)
    if said:
        raise FaultyNumbers(said)
    return step


def _fault_of_images(images: Any, spec: EnvSpec) -> str:
    shape = (len(spec.cameras), spec.image_size_px, spec.image_size_px, 3)
    if isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.shape == shape:
        return ""
    return f"its images are {_kind(images)} and not uint8 of shape {list(shape)}"


def _fault_of_state(state: Any, spec: EnvSpec) -> str:
    shape = (spec.state_dim,)
    is_real = isinstance(state, np.ndarray) and state.dtype.kind in "fiu"
    if not is_real or state.shape != shape:
        return f"its state is {_kind(state)} and not real numbers of shape {list(shape)}"
    if not (np.abs(state) <= MOST).all():  # not-a-number is not below either
        return f"its state has entries that are not finite: {state.tolist()}"
    return ""


def _fault_of_outcome(step: TimeStep, num_actions: int) -> str:
    """Reward, ends, number of steps."""
    for name in ("terminated", "truncated"):
        end = getattr(step, name)
        if not isinstance(end, (bool, np.bool_)):
            return f"{name} is {_kind(end)} and not a bool"
    reward = step.reward
    if not isinstance(reward, numbers.Real) or not abs(reward) <= MOST:
        return f"its reward is {_kind(reward)} and not a finite number"
    num_steps = step.num_steps
    if not isinstance(num_steps, numbers.Integral) or not 0 <= num_steps <= num_actions:
        return f"its num_steps is {_kind(num_steps)} and not between 0 and {num_actions}"
    return ""


def _fault_of_frames(frames: Any) -> str:
    for frame in frames or ():
        is_bytes = isinstance(frame, np.ndarray) and frame.dtype == np.uint8
        if not is_bytes or frame.ndim != 3 or frame.shape[-1] != 3:
            return f"a video frame is {_kind(frame)} and not uint8 of shape [Y, X, 3]"
    return ""


def _kind(value: Any) -> str:
    """A value in few words, however large it is."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {list(value.shape)}"
    return f"{type(value).__name__} {str(value)[:40]}"


def unknown(field: str, value: object, choices: Iterable[Any]) -> ValueError:
    """One sentence for a wrong name: the value and the remedy."""
    listed = ", ".join(map(str, choices))
    return ValueError(f"{field} {value!r} does not exist; choose one of: {listed}")
