"""In which order the devices of several hosts stand in a mesh, so that neighbours there are
neighbours in the torus of a TPU pod.

Asks a device for nothing but where it is; refuses to know what travels.
"""

from collections.abc import Callable, Iterator, Sequence
import itertools
import operator
from typing import Any

Place = tuple[int, ...]
Host = list[Any]  # its devices


def rows(devices: Sequence[Any], width: int) -> list[list[Any]]:
    """All devices as rows of `width`, those of a host (and of a slice) together.

    One walk visits the hosts, always to the next one: column by column along the side on which they
    are thinnest, forwards and backwards in turn.  Within a host another walk visits its devices.
    Where a host has several rows, every second one runs backwards, and every second host has its
    rows in reverse: a device and the one below it are near each other.  Devices that know no place
    (GPUs) stand by their numbers.
    """
    hosts = []
    for of_slice in _grouped(devices, _slice):
        of_process = _grouped(of_slice, _process)
        if not _are_alike(of_process):
            return list(_parts(sorted(devices, key=_number), width))
        hosts += _walked(of_process)
    size = len(hosts[0])
    if size % width == 0:
        return list(_within_hosts(hosts, width))
    if width % size == 0:
        return list(_over_hosts(hosts, width // size))
    return list(_parts(_joined(hosts), width))


def _within_hosts(hosts: list[Host], width: int) -> Iterator[list[Any]]:
    for number, host in enumerate(hosts):
        of_host = []
        for place, row in enumerate(_parts(host, width)):
            of_host.append(row[::-1] if place % 2 else row)
        yield from of_host[::-1] if number % 2 else of_host


def _over_hosts(hosts: list[Host], together: int) -> Iterator[list[Any]]:
    """Rows of several hosts; the way back passes the same places."""
    for number, some in enumerate(_parts(hosts, together)):
        yield _joined(some[::-1] if number % 2 else some)


def _parts(many: list[Any], width: int) -> Iterator[list[Any]]:
    for first in range(0, len(many), width):
        yield many[first : first + width]


def _joined(lists: list[list[Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(lists))


def _grouped(devices: Sequence[Any], key: Callable[[Any], int]) -> list[list[Any]]:
    """By increasing key; within a group by number."""
    ordered = sorted(sorted(devices, key=_number), key=key)
    return [list(group) for _, group in itertools.groupby(ordered, key=key)]


def _number(device: Any) -> tuple[int, int]:
    return device.process_index, device.id


def _process(device: Any) -> int:
    return device.process_index


def _slice(device: Any) -> int:
    """Slices have no torus in common."""
    return getattr(device, "slice_index", 0) or 0


def _place(device: Any) -> Place:
    """Of a chip, and of a core on it; (): it knows none."""
    coords = getattr(device, "coords", None)
    if coords is None:
        return ()
    return (*coords, getattr(device, "core_on_chip", 0) or 0)


def _places(host: Host) -> list[Place]:
    return [_place(device) for device in host]


def _are_alike(hosts: list[Host]) -> bool:
    """Whether all have their devices at the same places, seen from their corners."""
    shapes = set()
    for host in hosts:
        corner = _corner(host)
        seen = []
        for place in _places(host):
            inside = map(operator.sub, place, corner)
            seen.append(tuple(inside))
        shapes.add(tuple(sorted(seen)))
    return len(shapes) == 1 and () not in _places(hosts[0])


def _corner(host: Host) -> Place:
    return tuple(map(min, zip(*_places(host), strict=True)))


def _walked(hosts: list[Host]) -> list[Host]:
    """The hosts in order, and the devices of each."""
    sides = [len(along) for along in _steps(_places(hosts[0]))]
    # The way to the next host is as long as a host is wide.
    axes = sorted(range(len(sides)), key=lambda axis: -sides[axis])
    walked = []
    for number in _walk([_corner(host) for host in hosts], axes):
        host = hosts[number]
        order = _walk(_places(host), range(len(sides)))
        walked.append([host[at] for at in order])
    return walked


def _steps(places: list[Place]) -> list[list[int]]:
    """What there is along each axis."""
    return [sorted(set(along)) for along in zip(*places, strict=True)]


def _walk(places: list[Place], axes: Sequence[int]) -> list[int]:
    """Indices of places of a grid along one line that never jumps; the last axis turns most often.

    Where sides are even it ends beside its start.
    """
    steps = _steps(places)

    def distance(number: int) -> int:
        """From the start."""
        walked = 0
        for axis in axes:
            along = steps[axis]
            at = along.index(places[number][axis])
            backwards = walked % 2
            walked *= len(along)
            walked += len(along) - 1 - at if backwards else at
        return walked

    return sorted(range(len(places)), key=distance)
