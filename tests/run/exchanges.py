"""Between which devices a compiled program exchanges what, read from XLA's text of a collective."""

import math
import re

import numpy as np

from pirl_jax.run import hlo, hlo_text

LISTED = re.compile(r"replica_groups=\{(\{.*?\})\}")
COUNTED = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)")
OF_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\[[\d,]+\](?:T\([\d,]+\))?)\))? \{([^}]*)\}"
)


def numbers(text):
    return [int(number) for number in re.findall(r"\d+", text)]


def in_order(text):
    """Devices as "[4,2]T(1,0)" counts them: those of an array of this shape, transposed."""
    shape, _, order = text.partition("T")
    sizes = numbers(shape)
    devices = np.arange(math.prod(sizes)).reshape(sizes)
    return (devices.transpose(numbers(order)) if order else devices).reshape(-1)


def groups(attributes):
    """[groups, devices of one], by their places in the mesh."""
    listed = LISTED.search(attributes)
    if listed:
        return np.array([numbers(group) for group in listed[1].split("},")])
    counted = COUNTED.search(attributes)
    if counted:
        return in_order(counted[3]).reshape(int(counted[1]), int(counted[2]))
    of_mesh = OF_MESH.search(attributes)
    assert of_mesh and ":" not in of_mesh[3], attributes
    axes = dict(re.findall(r"'(\w+)'=(\d+)", of_mesh[1]))
    names = list(axes)
    sizes = [int(size) for size in axes.values()]
    within = [names.index(name) for name in re.findall(r"'(\w+)'", of_mesh[3])]
    apart = [axis for axis in range(len(sizes)) if axis not in within]
    devices = in_order(of_mesh[2] or f"[{math.prod(sizes)}]").reshape(sizes)
    return devices.transpose(apart + within).reshape(-1, math.prod(sizes[axis] for axis in within))


def along_data(one, fsdp):
    """Whether a collective reaches beyond the devices that share one copy of the parameters."""
    copies = groups(one.attributes) // fsdp
    return bool((copies != copies[:, :1]).any())


def collectives(program):
    """All of a program: (computation, instruction)."""
    for computation, one in program.instructions():
        if one.opcode.removesuffix("-start") in hlo.COLLECTIVES:
            yield computation, one


def operands(computation, one):
    """Their shapes, as written."""
    return [computation.instructions[name].shape for name in one.operands]


def reduced_along_data(program, fsdp):
    """Types and bytes of what all-reduces take from the copies of the parameters."""
    kinds = set()
    total = 0
    for computation, one in collectives(program):
        if one.opcode.startswith("all-reduce") and along_data(one, fsdp):
            shapes = operands(computation, one)
            kinds |= {kind for shape in shapes for kind, _ in hlo_text.arrays(shape)}
            total += sum(map(hlo_text.size, shapes))
    return kinds, total
