"""What one device needs of memory, by the roles it has: what stays there, what comes and goes.

Parts and programs are known by their names alone (run/plan.py measures them).
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses

from pirl_jax.core import placement

GIB = 2**30
# What a device that plays holds and runs.  All other parts and programs are the learner's.
KEPT = "prefix cache"
PUBLISHED = "weights that play, copied"
GATHERED = "weights that play, gathered from hosts"  # where parameters are split over several
OF_PLAYERS = (KEPT, PUBLISHED, GATHERED)
ROLLOUT = "rollout"
WRITING = "writing kept prefixes"
READING = "reading kept prefixes"
# They pass through devices of learners that do not play with them, at most all at once.
PASSING = "weights on their way to who plays"
# Gradients wait where the learner is; rows are read where they are kept.
PLAYING = (ROLLOUT, WRITING, READING)
WHILE_EPISODES_ARE_PLAYED = (ROLLOUT, WRITING)


@dataclasses.dataclass(frozen=True)
class Share:
    """Bytes of one of these devices."""

    devices: str  # in ranges; "": all
    roles: str  # play | learn | play and learn
    resident: Mapping[str, int]  # stays all the time
    work: Mapping[str, int]  # comes and goes
    away: Sequence[str] = ()  # what is on the host while episodes are played
    at_once: bool = False  # episodes are played while something learns

    @property
    def total(self) -> int:
        """When it is most."""
        stays = sum(self.resident.values())
        goes = sum(size for name, size in self.resident.items() if name in self.away)
        playing = 0
        learning = 0
        for name, size in self.work.items():
            if name in WHILE_EPISODES_ARE_PLAYED:
                playing = max(playing, size)
            else:
                learning = max(learning, size)
        if self.at_once:
            return stays + playing + learning
        # Without a program that plays, nothing is ever away.
        return max(stays + learning, stays + playing - (goes if playing else 0))

    def lines(self) -> Iterator[str]:
        """Of the plan as text, without the total."""
        if self.devices:
            yield f" {self.roles}: {self.devices}"
        for name, size in self.resident.items():
            gone = ", on the host while episodes are played" if name in self.away else ""
            yield f"{line(name, size)}{gone}"
        of = "one that plays and one that learns" if self.at_once else "one of these"
        for name, size in self.work.items():
            yield f"{line(name, size)}, {of} at a time"


def of(
    placed: placement.Placement | None,
    resident: Mapping[str, int],
    work: Mapping[str, int],
    away: Sequence[str],
    at_once: bool = False,
) -> list[Share]:
    """One share for all devices of the same roles.

    Args:
      placed: None: all devices have all roles.
      resident, work: by name, of a device that has it.
      at_once: episodes are played while something learns.
    """
    if placed is None or placed.mode == "shared":
        return [Share("", "play and learn", resident, work, away, at_once)]
    playing = set(placed.rollout)
    learning = set(placed.actor)
    groups = (
        ("play and learn", playing & learning),
        ("learn", learning - playing),
        ("play", playing - learning),
    )
    found = []
    for roles, numbers in groups:
        if numbers:
            held = _chosen(resident, roles, OF_PLAYERS)
            runs = _chosen(work, roles, PLAYING)
            if roles == "learn" and GATHERED in resident:
                runs[PASSING] = resident[GATHERED]
            shown = placement.shown(sorted(numbers))
            found.append(Share(shown, roles, held, runs, away, at_once))
    return found


def _chosen(sizes: Mapping[str, int], roles: str, of_players: Sequence[str]) -> dict[str, int]:
    """Those of a device with these roles."""
    chosen = {}
    for name, size in sizes.items():
        role = "play" if name in of_players else "learn"
        if role in roles:
            chosen[name] = size
    return chosen


def line(name: str, size: int) -> str:
    """One part of a plan."""
    return f"  {name:<42}{size / GIB:10.2f} GiB"
