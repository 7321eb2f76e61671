"""In which order the devices of several hosts stand in a mesh, so that neighbours there are
neighbours in the torus of a TPU pod.

Asks a device for nothing but where it is; refuses to know what travels.
"""

from collections.abc import Callable, Iterator, Sequence
import itertools
from typing import Any

Place = tuple[int, ...]


def rows(devices: Sequence[Any], width: int) -> list[list[Any]]:
    """All devices as rows of `width`, those of a host (and of a slice) together.

    One walk visits the hosts, always to the next one: column by column along the side on which they
    are thinnest, forwards and backwards in turn.  Within a host another walk visits its devices.
    Where a host has several rows, every second one runs backwards, and every second host has its
    rows in reverse: a device and the one below it are near each other.  Devices that know no place
    (GPUs) stand by their numbers.
    """
    found = []
    for of_slice in _grouped(devices, _slice):
        hosts = _grouped(of_slice, lambda device: device.process_index)
        if all(_has_place(device) for device in of_slice) and _are_alike(hosts):
            hosts = _walked(hosts)
        found.append(hosts)
    hosts = list(itertools.chain.from_iterable(found))
    if all(len(host) % width == 0 for host in hosts):
        return list(itertools.chain.from_iterable(_within_hosts(hosts, width)))
    return list(_over_hosts(hosts, width))


def _within_hosts(hosts: list[list[Any]], width: int) -> Iterator[list[list[Any]]]:
    for number, host in enumerate(hosts):
        of_host = []
        for place, first in enumerate(range(0, len(host), width)):
            row = host[first : first + width]
            of_host.append(row[::-1] if place % 2 else row)
        yield of_host[::-1] if number % 2 else of_host


def _over_hosts(hosts: list[list[Any]], width: int) -> Iterator[list[Any]]:
    """Rows of several hosts; the way back passes the same places."""
    if any(width % len(host) for host in hosts):
        flat = list(itertools.chain.from_iterable(hosts))
        for first in range(0, len(flat), width):
            yield flat[first : first + width]
        return
    together = width // len(hosts[0])
    for number, first in enumerate(range(0, len(hosts), together)):
        some = hosts[first : first + together]
        yield list(itertools.chain.from_iterable(some[::-1] if number % 2 else some))


def _grouped(devices: Sequence[Any], key: Callable[[Any], int]) -> list[list[Any]]:
    """By increasing key; within a group by number."""
    ordered = sorted(devices, key=lambda device: (key(device), device.id))
    return [list(group) for _, group in itertools.groupby(ordered, key=key)]


def _slice(device: Any) -> int:
    """Slices have no torus in common."""
    return getattr(device, "slice_index", 0) or 0


def _has_place(device: Any) -> bool:
    return getattr(device, "coords", None) is not None


def _place(device: Any) -> Place:
    """Of a chip, and of a core on it."""
    return (*device.coords, getattr(device, "core_on_chip", 0) or 0)


def _walked(hosts: list[list[Any]]) -> list[list[Any]]:
    """The hosts in order, and the devices of each."""
    sides = [len(steps) for steps in _steps(list(map(_place, hosts[0])))]
    # The way to the next host is as long as a host is wide.
    axes = sorted(range(len(sides)), key=lambda axis: -sides[axis])
    corners = [_corner(host) for host in hosts]
    walked = []
    for number in _walk(corners, axes):
        host = hosts[number]
        places = list(map(_place, host))
        walked.append([host[at] for at in _walk(places, range(len(sides)))])
    return walked


def _are_alike(hosts: list[list[Any]]) -> bool:
    """Whether all have their devices at the same places, seen from their corners."""
    shapes = set()
    for host in hosts:
        corner = _corner(host)
        places = [_place(device) for device in host]
        seen = [tuple(x - c for x, c in zip(place, corner, strict=True)) for place in places]
        shapes.add(tuple(sorted(seen)))
    return len(shapes) == 1


def _corner(host: list[Any]) -> Place:
    return tuple(map(min, zip(*map(_place, host), strict=True)))


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
            walked = walked * len(along) + (len(along) - 1 - at if walked % 2 else at)
        return walked

    return sorted(range(len(places)), key=distance)
