"""Somebody's demonstrations, whatever files they lie in: episodes of numbers and pictures.

Knows no format.  Readers of formats are in the other modules; what is asked of a data set, and what
is called how in it, is here.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import pathlib
from typing import Protocol

import numpy as np

from pirl_jax.core import outside

STATE = "state"
ACTIONS = "actions"
FIELD = "sft.dataset_keys"
# A data set is read again and again: what one episode may take, which is held whole.
MOST_STEPS = 1 << 20
MOST_EPISODES = 1 << 20
RATE_TOLERANCE = 0.01  # of a frame rate; files write 29.97 and 30


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a suite and its policy read."""

    cameras: tuple[str, ...]  # in the order of the observation
    state_dim: int
    action_dim: int
    control_hz: float
    given_hz: float = 0.0  # what the files hold, where they say another; 0: as they say
    keys: Mapping[str, str] = dataclasses.field(default_factory=dict)  # instead of known names
    turned: bool | None = None  # pictures lie upside down, as LIBERO's; None: by format


@dataclasses.dataclass(frozen=True, eq=False)
class Numbers:
    """Of one episode, everything but its pictures."""

    state_TQ: np.ndarray  # float32, raw units
    actions_TA: np.ndarray  # float32
    instructions: tuple[str, ...]  # one per step


class Source(Protocol):
    """An open data set.  One thread.

    What is wrong with a file is a ValueError of one sentence.
    """

    kind: str  # "LeRobot v2.1"
    path: pathlib.Path
    keys: dict[str, str]  # what is read -> its name in the files
    lengths: np.ndarray  # [episodes] int64
    hz: float  # control steps per second

    def check(self, episode: int) -> None:
        """That the files of an episode are there and as long as they say; reads no pictures."""

    def numbers(self, episode: int) -> Numbers:
        """Everything but pictures."""

    def images(self, episode: int, step: int) -> list[np.ndarray]:
        """Of each camera uint8 [Y,X,3], upright as openpi's."""

    def close(self) -> None:
        """Close all files."""


def parse_keys(text: str, cameras: Iterable[str]) -> dict[str, str]:
    """What sft.dataset_keys says: "agentview=NAME,state=A+B" -> {what is read: its name}.

    Raises: ValueError for what is no such list.
    """
    readable = (*cameras, STATE, ACTIONS)
    keys = {}
    for entry in filter(None, text.split(",")):
        name, equals, key = map(str.strip, entry.partition("="))
        if not equals or not key or name not in readable:
            raise ValueError(
                f"{FIELD}={text!r} has {entry!r}; write NAME=KEY with commas between, NAME one of "
                f"{', '.join(readable)}"
            )
        if name in keys:
            raise ValueError(f"{FIELD}={text!r} names {name} twice; drop one")
        keys[name] = key
    return keys


def resolve(
    wanted: Wanted,
    known: Mapping[str, Iterable[str]],
    has: Mapping[str, Iterable[str]],
    path: pathlib.Path,
) -> dict[str, str]:
    """What is read -> its name in the files.

    known: usual names, by what is read.
    has: names in the files: pictures under "pictures", the others under "numbers".
    Raises: ValueError where one is missing or several would do.
    """
    found = {}
    for name in (*wanted.cameras, STATE, ACTIONS):
        there = list(has["pictures" if name in wanted.cameras else "numbers"])
        kind = "camera" if name in wanted.cameras else "numbers"
        if name in wanted.keys:
            usable = [wanted.keys[name]]
            missing = [part for part in parts(usable[0]) if part not in there]
        else:
            usable = [key for key in known.get(name, ()) if not set(parts(key)) - set(there)]
            missing = []
        remedy = f"choose with {FIELD}={name}=NAME"
        if missing:
            raise ValueError(
                f"{FIELD} wants {missing[0]!r} for {name}, and {path} has the {kind} "
                f"{outside.listed(there) or 'nothing'}; {remedy}"
            )
        if not usable:
            raise ValueError(
                f"{path} has no {kind} known as {name} of the suite; it has "
                f"{outside.listed(there) or 'none'}; {remedy}"
            )
        if len(usable) > 1:
            raise ValueError(
                f"{path} has {len(usable)} {kind} that may be {name} of the suite: "
                f"{outside.listed(usable)}; {remedy}"
            )
        found[name] = usable[0]
    return found


def parts(key: str) -> list[str]:
    """A name may join several with "+", as LIBERO's state is."""
    return key.split("+")


def rate(wanted: Wanted, said: float | None, path: pathlib.Path) -> float:
    """Control steps per second of a data set; said: by its files, None: nothing.

    Raises: ValueError for another than the suite's.
    """
    if wanted.given_hz:
        if not _alike(wanted.given_hz, wanted.control_hz):
            raise ValueError(
                f"sft.dataset_hz={wanted.given_hz:g} is not the {wanted.control_hz:g} Hz at which "
                f"the suite acts; resample {path} to that"
            )
        return wanted.given_hz
    if said is None:
        raise ValueError(
            f"{path} does not say how many control steps a second it holds; if these are the "
            f"suite's {wanted.control_hz:g}, set sft.dataset_hz={wanted.control_hz:g}"
        )
    if not _alike(said, wanted.control_hz):
        raise ValueError(
            f"{path} says that it holds {said:g} frames a second, and the suite acts at "
            f"{wanted.control_hz:g} Hz; resample it, or, if each frame is one control step all the "
            f"same (so in openpi's LIBERO data, which says 10), set "
            f"sft.dataset_hz={wanted.control_hz:g}"
        )
    return said


def _alike(one: float, other: float) -> bool:
    return abs(one - other) <= RATE_TOLERANCE * other


def require_length(length: int, what: str) -> int:
    """Of an episode, as a file says it."""
    if not 1 <= length <= MOST_STEPS:
        raise ValueError(
            f"{what} has {length:,} steps, and 1 to {MOST_STEPS:,} can be read; leave it out"
        )
    return length


def require_count(count: int, path: pathlib.Path) -> int:
    """Of episodes."""
    if not 1 <= count <= MOST_EPISODES:
        raise ValueError(
            f"{path} has {count:,} episodes, and 1 to {MOST_EPISODES:,} can be read; give another "
            f"data set, or split it"
        )
    return count
