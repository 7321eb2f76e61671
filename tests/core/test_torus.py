"""The order of devices in a mesh of several hosts: neighbours there are neighbours in the torus."""

import dataclasses
import itertools
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from pirl_jax.core import mesh as meshes
from pirl_jax.core import torus
from pirl_jax.run import topology

# Sides of a slice, and of a host in it.
SLICES = {
    "v5p:4x4x4": ((4, 4, 4), (2, 2, 1)),
    "v5p:2x2x2": ((2, 2, 2), (2, 2, 1)),
    "v5e:4x4": ((4, 4, 1), (2, 2, 1)),
    "v5e:16x16": ((16, 16, 1), (2, 2, 1)),
    "v6e:8x8": ((8, 8, 1), (2, 2, 1)),
}
LISTING = """
import json, sys
from pirl_jax.run import accelerators, topology
found = {}
for text in sys.argv[1:]:
    devices = topology.devices(accelerators.parse(f"tpu:{text}"))
    found[text] = [(d.id, d.process_index, d.core_on_chip, d.coords) for d in devices]
print(json.dumps(found))
"""


@dataclasses.dataclass(frozen=True)
class Device:
    """What torus.py asks of one."""

    id: int
    process_index: int
    coords: tuple[int, ...] | None
    core_on_chip: int = 0
    slice_index: int | None = None


def slice_of(name, slice_index=None):
    """As libtpu numbers it: hosts by x, then y, then z, and chips of a host likewise."""
    sides, of_host = SLICES[name]
    found = []
    hosts = [range(0, side, step) for side, step in zip(sides, of_host, strict=True)]
    for process, corner in enumerate(itertools.product(*hosts[::-1])):
        chips = [range(at, at + step) for at, step in zip(corner, of_host[::-1], strict=True)]
        for place in itertools.product(*chips):
            found.append(Device(len(found), process, place[::-1], slice_index=slice_index))
    return found


def hops(one, other, sides):
    """Links between two devices."""
    total = 0
    for x, y, side in zip(one.coords, other.coords, sides, strict=True):
        apart = abs(x - y)
        total += min(apart, side - apart)
    return total


def along_rows(rows, sides):
    """Hops of every device to the one below it, from the last row to the first."""
    found = []
    for row, below in zip(rows, [*rows[1:], rows[0]], strict=True):
        found += [hops(one, other, sides) for one, other in zip(row, below, strict=True)]
    return found


def by_number(devices, width):
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return [ordered[first : first + width] for first in range(0, len(ordered), width)]


def test_a_v5p_of_64_chips_has_its_data_neighbours_beside_each_other():
    found = along_rows(torus.rows(slice_of("v5p:4x4x4"), 4), (4, 4, 4))
    assert np.mean(found) == 1.25 and max(found) == 2
    before = along_rows(by_number(slice_of("v5p:4x4x4"), 4), (4, 4, 4))
    assert np.mean(before) == 3.25 and max(before) == 5


def test_the_walk_goes_along_the_side_on_which_hosts_are_thinnest():
    """Whichever that is."""
    turned = []
    for device in slice_of("v5p:4x4x4"):
        turned.append(dataclasses.replace(device, coords=device.coords[::-1]))
    found = along_rows(torus.rows(turned, 4), (4, 4, 4))
    assert np.mean(found) == 1.25 and max(found) == 2


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("name", SLICES)
def test_no_slice_has_its_neighbours_further_away_than_by_number(name, width):
    sides, of_host = SLICES[name]
    devices = slice_of(name)
    rows = torus.rows(devices, width)
    assert sorted(device.id for row in rows for device in row) == list(range(len(devices)))
    assert {len(row) for row in rows} == {width}
    found = along_rows(rows, sides)
    assert np.mean(found) <= np.mean(along_rows(by_number(devices, width), sides))
    if width <= np.prod(of_host):
        assert np.mean(found) <= (1.25 if name.startswith("v5p") else 2.0)
        # And along a row: the devices that share weights.
        columns = [list(column) for column in zip(*rows, strict=True)]
        assert width == 1 or max(along_rows(columns, sides)) == 1


@pytest.mark.parametrize("name", SLICES)
def test_a_host_s_devices_stand_in_rows_of_their_own(name):
    """Each host plays with whole parameters of its own."""
    for width in (1, 2, 4):
        rows = torus.rows(slice_of(name), width)
        hosts = [{device.process_index for device in row} for row in rows]
        assert all(len(processes) == 1 for processes in hosts)
        owners = [processes.pop() for processes in hosts]
        changes = sum(one != other for one, other in itertools.pairwise(owners))
        assert changes == len(set(owners)) - 1


def test_slices_stay_together():
    """They have no torus in common, and what lies between them is slower."""
    first = slice_of("v5e:4x4", slice_index=0)
    second = [
        dataclasses.replace(device, id=device.id + 16, process_index=device.process_index + 4)
        for device in slice_of("v5e:4x4", slice_index=1)
    ]
    rows = torus.rows([*second, *first], 4)
    assert [row[0].slice_index for row in rows] == [0] * 4 + [1] * 4
    assert along_rows(rows[:4], (4, 4, 1)) == along_rows(rows[4:], (4, 4, 1))


def test_devices_without_a_place_stand_by_their_numbers():
    gpus = [Device(number, number // 4, None) for number in range(8)]
    rows = torus.rows(gpus[::-1], 4)
    assert sorted(device.id for device in rows[0]) == [0, 1, 2, 3]
    assert [device.id for device in rows[0]] == [0, 1, 2, 3]


def test_any_width_that_divides_the_devices_will_do():
    devices = [Device(number, number // 4, (number, 0, 0)) for number in range(12)]
    rows = torus.rows(devices, 3)
    assert [len(row) for row in rows] == [3] * 4
    assert {device.id for row in rows for device in row} == set(range(12))


def test_two_cores_of_a_chip_stand_beside_each_other():
    devices = []
    for chip in slice_of("v5p:2x2x2"):
        for core in range(2):
            devices.append(dataclasses.replace(chip, id=2 * chip.id + core, core_on_chip=core))
    for row in torus.rows(devices, 2):
        assert row[0].coords == row[1].coords


def test_one_process_makes_a_mesh_of_several_hosts(monkeypatch):
    """jax.make_mesh would raise on some of them."""
    made = []
    monkeypatch.setattr(jax, "make_mesh", None)
    monkeypatch.setattr(
        meshes, "Mesh", lambda devices, axes, axis_types: made.append(devices) or devices
    )
    mesh = meshes.make_mesh(-1, 4, slice_of("v5p:4x4x4"))
    assert mesh.shape == (16, 4) and mesh is made[0]
    assert mesh.tolist() == torus.rows(slice_of("v5p:4x4x4"), 4)


@pytest.mark.slow
@pytest.mark.compiled
def test_the_slices_of_this_file_are_libtpu_s():
    missing = topology.missing_wheel("tpu")
    if missing:
        pytest.skip(f"{missing} is not installed (pip install 'pirl_jax[targets]')")
    done = subprocess.run(
        [sys.executable, "-c", LISTING, *SLICES], capture_output=True, text=True, check=True
    )
    listed = json.loads(done.stdout)
    for name in SLICES:
        described = [Device(*row[:2], tuple(row[3]), row[2]) for row in listed[name]]
        own = {(device.process_index, device.coords) for device in slice_of(name)}
        assert own == {(device.process_index, device.coords) for device in described}
