"""Where the three roles of a run lie: ranges of device numbers as text, and what follows from them.

env draws the pictures, rollout decides, actor learns.  Numbers are those of one host, the same on
every host.  Strings and numbers: refuses to know a device.
"""

from collections.abc import Iterable, Iterator, Mapping
import dataclasses

ROLES = ("env", "rollout", "actor")
ALL = "all"
CPU = "cpu"  # of env: no device draws
FORM = "write ranges such as 0-3 or 0,2, or all"


def parse(text: str, key: str) -> tuple[int, ...] | None:
    """The devices of "0-3", of "0,2,5-7"; None of "all".

    key: names the field in errors.

    Raises:
      ValueError: one sentence with key, text and remedy.
    """
    if text.strip() == ALL:
        return None
    start = f"{key}={text!r}"
    _refuse_process_ranks(text, start)
    numbers = []
    for part in text.split(","):
        numbers += _range(part.strip(), start)
    twice = sorted({number for number in numbers if numbers.count(number) > 1})
    if twice:
        raise ValueError(f"{start} names device {twice[0]} twice; name every device once")
    return tuple(numbers)


def _refuse_process_ranks(text: str, start: str) -> None:
    devices, colon, ranks = text.partition(":")
    if colon:
        raise ValueError(
            f"{start} gives ranks of processes, but here is one process per host;"
            f" drop ':{ranks}' and write {devices}"
        )


def _range(part: str, start: str) -> range:
    if not part:
        raise ValueError(f"{start} has an empty range; {FORM}")
    first, dash, last = part.partition("-")
    last = last if dash else first
    if not (_is_number(first) and _is_number(last)):
        raise ValueError(f"{start} has {part!r}, which is no range; {FORM}")
    if int(last) < int(first):
        raise ValueError(f"{start} has the reversed range {part}; write {last}-{first}")
    return range(int(first), int(last) + 1)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 6


def from_components(given: object, key: str = "component_placement") -> dict[str, str]:
    """RLinf's `component_placement`, {"env": "0-3", "actor,rollout": "all"} -> {role: ranges}.

    Raises:
      ValueError: one sentence: another role, a role twice, ranks of processes, groups of nodes.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"{key}={given!r} must be a dictionary such as {{'actor,env': '0-3'}}")
    found = {}
    for names, ranges in given.items():
        for name in str(names).split(","):
            role = name.strip()
            _check_role(role, ranges, f"{key}.{names}", found)
            found[role] = str(ranges)
    return found


def _check_role(role: str, ranges: object, key: str, found: Mapping[str, str]) -> None:
    if role not in ROLES:
        raise ValueError(f"{key}: no role is called {role!r}; roles are {', '.join(ROLES)}")
    if role in found:
        raise ValueError(f"{key}: role {role} has devices already; name it once")
    if isinstance(ranges, Mapping):
        raise ValueError(
            f"{key}={dict(ranges)!r} names a group of nodes, but here every host has the same"
            f" devices in a role; {FORM}, and start the hosts with launch/hosts.sh"
        )
    parse(str(ranges), key)


@dataclasses.dataclass(frozen=True)
class Placement:
    """The devices of each role, in their order.  Who is in it makes the mode."""

    env: tuple[int, ...] | None  # None: not said, or no device
    rollout: tuple[int, ...]
    actor: tuple[int, ...]

    def __post_init__(self):
        if self.mode:
            return
        rollout = shown(self.rollout)
        actor = shown(self.actor)
        raise ValueError(
            f"placement.rollout={rollout} and placement.actor={actor} overlap in part"
            f" (devices {shown(sorted({*self.rollout} & {*self.actor}))});"
            f" make them equal, nested or disjoint"
        )

    @property
    def mode(self) -> str:
        """shared | hybrid (one holds the other) | separate; "" where they overlap in part."""
        rollout = set(self.rollout)
        actor = set(self.actor)
        if rollout == actor:
            return "shared"
        if rollout < actor or actor < rollout:
            return "hybrid"
        return "" if rollout & actor else "separate"

    @property
    def computing(self) -> tuple[int, ...]:
        """Devices that play or learn."""
        return tuple(sorted({*self.rollout, *self.actor}))

    def remarks(self, count: int, takes_turns: bool = True) -> Iterator[str]:
        """What somebody may not have meant.

        Args:
          count: devices of a host.
          takes_turns: nothing is played while something is learned.
        """
        idle = sorted({*range(count)} - {*self.computing} - {*(self.env or ())})
        if idle:
            yield f"devices {shown(idle)} are in no role of placement.* and stay idle"
        if takes_turns and self.mode == "separate":
            yield (
                f"placement.rollout={shown(self.rollout)} and placement.actor={shown(self.actor)}"
                f" are apart: while one works, the other is idle"
            )


def of_page(env: str, rollout: str, actor: str, count: int) -> Placement:
    """The texts of a page.  count: devices of a host.

    Raises:
      ValueError: one sentence that names the key.
    """
    chosen = {}
    for role, text in (("rollout", rollout), ("actor", actor)):
        chosen[role] = _within(text, f"placement.{role}", count)
    drawing = None if env.strip() in ("", CPU, ALL) else parse(env, "placement.env")
    return Placement(drawing, **chosen)


def _within(text: str, key: str, count: int) -> tuple[int, ...]:
    numbers = parse(text, key)
    if numbers is None:
        return tuple(range(count))
    beyond = [number for number in numbers if number >= count]
    if beyond:
        raise ValueError(
            f"{key}={text!r} names device {beyond[0]}, but this host has {count} devices,"
            f" {shown(range(count))}; name some of these, or all"
        )
    return tuple(sorted(numbers))


def check(env: str, rollout: str, actor: str) -> str:
    """What is wrong on any machine -> the mode, where no count of devices decides it.

    Raises:
      ValueError: one sentence that names the key.
    """
    if env.strip() not in ("", CPU):
        parse(env, "placement.env")
    playing = parse(rollout, "placement.rollout")
    learning = parse(actor, "placement.actor")
    if playing is None or learning is None:
        return ""  # one holds the other
    return Placement(None, playing, learning).mode


def shown(numbers: Iterable[int]) -> str:
    """(0, 1, 2, 5) -> "0-2,5"."""
    runs = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return ",".join(texts)
