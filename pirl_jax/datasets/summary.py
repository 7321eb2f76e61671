"""One pass over the numbers of a data set: whether they are sound, and their statistics.

Statistics are openpi's: of states and of action chunks, every chunk of the horizon, padded at the
end of an episode, and relative to its state where the policy predicts it so.  Pictures are not
decoded.
"""

from collections.abc import Callable
import dataclasses
import hashlib

import numpy as np

from pirl_jax.core import outside
from pirl_jax.datasets import chunks, episodes
from pirl_jax.policy import normalize

LARGEST = 1.0 + 1e-3  # of an action: suites read [-1, 1]


@dataclasses.dataclass(frozen=True)
class Summary:
    """What the pass found."""

    episodes: int
    steps: int
    instructions: tuple[str, ...]  # each once, in the order of the alphabet
    computed: normalize.NormStats
    sha256: str  # of numbers and instructions, in their order
    opens: bool  # whether the last action entry is ever below 0, where suites open the gripper

    def __str__(self) -> str:
        return f"{self.episodes} episodes, {self.steps} control steps, {self._tasks()}"

    def _tasks(self) -> str:
        count = len(self.instructions)
        return f"{count} task{'s' if count > 1 else ''}: {outside.listed(self.instructions)}"


def examine(
    source: episodes.Source, horizon: int, delta_actions: bool, advance: Callable[[int], None]
) -> Summary:
    """Every episode once, one at a time.

    advance: told 1 after each.
    Raises: ValueError for files of another length than they say, and numbers that are none or no
    actions of a suite.
    """
    state = normalize.RunningStats()
    actions = normalize.RunningStats()
    instructions: set[str] = set()
    opens = False
    content = hashlib.sha256()
    for episode in range(len(source.lengths)):
        source.check(episode)
        numbers = source.numbers(episode)
        _require_sound(numbers, episode, source)
        instructions.update(numbers.instructions)
        content.update(numbers.state_TQ.tobytes())
        content.update(numbers.actions_TA.tobytes())
        content.update("\n".join(numbers.instructions).encode())
        opens = opens or bool((numbers.actions_TA[:, -1] < 0).any())
        for state_TQ, chunks_THA in chunks.pieces(numbers, horizon):
            state.update(state_TQ)
            if delta_actions:
                chunks_THA = normalize.delta_actions(chunks_THA, state_TQ)
            actions.update(chunks_THA)
        advance(1)
    return Summary(
        episodes=len(source.lengths),
        steps=int(source.lengths.sum()),
        instructions=tuple(sorted(instructions)),
        computed=normalize.NormStats(state=state.stats(), actions=actions.stats()),
        sha256=content.hexdigest(),
        opens=opens,
    )


def _require_sound(numbers: episodes.Numbers, episode: int, source: episodes.Source) -> None:
    where = f"episode {episode} of {source.path}"
    values = {episodes.STATE: numbers.state_TQ, episodes.ACTIONS: numbers.actions_TA}
    for name, rows in values.items():
        wrong = np.argwhere(~np.isfinite(rows))
        if len(wrong):
            step, entry = wrong[0].tolist()
            raise ValueError(
                f"{source.keys[name]}[{entry}] in step {step} of {where} is {rows[step, entry]}; "
                f"mend it, or leave the episode out"
            )
    wrong = np.argwhere(np.abs(numbers.actions_TA) > LARGEST)
    if len(wrong):
        step, entry = wrong[0].tolist()
        raise ValueError(
            f"{source.keys[episodes.ACTIONS]}[{entry}] in step {step} of {where} is "
            f"{numbers.actions_TA[step, entry]:g}, and actions of a suite lie in -1 to 1; give "
            f"actions as the suite's controller reads them"
        )
