"""The text of a compiled program as computations of instructions, and the sizes of their arrays.

Knows how XLA writes a module; refuses to know what an instruction costs.
"""

from collections.abc import Iterator
import dataclasses
import functools
import math
import re

BITS = re.compile(r"[a-z]+(\d+)")
ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
OPCODE = re.compile(r"([a-z][\w\-]*)\(")
NAME = re.compile(r"%([\w.\-]+)")
PARENTHESIS = re.compile(r"[()]")
# What only moves a value.
MOVES = ("copy", "bitcast", "convert", "copy-done", "copy-start", "reshape")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line."""

    name: str
    opcode: str
    shape: str  # an array or a tuple of them, as written
    operands: tuple[str, ...]  # names
    literal: str  # between the parentheses: the value of a constant
    attributes: str
    is_root: bool

    def attribute(self, name: str, default: str = "") -> str:
        """The text of `name=...` up to a comma outside of braces."""
        found = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^,\s]+)", self.attributes)
        return found[1] if found else default


@dataclasses.dataclass
class Computation:
    """A function of the program."""

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        return next(one for one in self.instructions.values() if one.is_root)

    def parameter(self, number: int) -> Instruction | None:
        """The instruction that stands for an argument."""
        for one in self.instructions.values():
            if one.opcode == "parameter" and one.literal == str(number):
                return one
        return None


# ---- reading -----------------------------------------------------------------------------------


def computations(text: str) -> Iterator[tuple[Computation, bool]]:
    current = None
    is_entry = False
    for line in text.splitlines():
        if current is None:
            header = HEADER.match(line)
            if header:
                is_entry = bool(header[1])
                current = Computation(header[2], {})
        elif line.startswith("}"):
            yield current, is_entry
            current = None
        else:
            one = _instruction(line)
            if one is not None:
                current.instructions[one.name] = one


def _instruction(line: str) -> Instruction | None:
    start = INSTRUCTION.match(line)
    if start is None:
        return None
    rest = line[start.end() :]
    shape_end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opcode = OPCODE.match(rest, shape_end + 1 if rest[shape_end] == " " else shape_end)
    if opcode is None:
        return None
    end = _closing(rest, opcode.end() - 1)
    literal = rest[opcode.end() : end]
    return Instruction(
        name=start[2],
        opcode=opcode[1],
        shape=rest[:shape_end],
        operands=tuple(NAME.findall(literal)),
        literal=literal,
        attributes=rest[end + 1 :],
        is_root=bool(start[1]),
    )


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for match in PARENTHESIS.finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.start()
    raise ValueError(f"a parenthesis is not closed: {text[:80]}")


# ---- shapes ------------------------------------------------------------------------------------


def arrays(shape: str) -> list[tuple[str, tuple[int, ...]]]:
    """Type and dimensions of an array, or of the elements of a tuple."""
    found = []
    for kind, dimensions in ARRAY.findall(re.sub(r"\{[^}]*\}", "", shape)):
        found.append((kind, tuple(int(size) for size in dimensions.split(",") if size)))
    return found


def size(shape: str) -> int:
    """Bytes of an array or a tuple, without what a layout pads."""
    total = 0
    for kind, dimensions in arrays(shape):
        total += math.prod(dimensions) * _bytes(kind)
    return total


@functools.cache
def _bytes(kind: str) -> float:
    bits = BITS.match(kind)
    if kind == "pred" or bits is None:
        return 1
    return int(bits[1]) / 8


def dimensions(computation: Computation, name: str) -> tuple[int, ...]:
    return arrays(computation.instructions[name].shape)[0][1]


def source(computation: Computation, name: str) -> Instruction:
    """Where a value comes from, through what only moves it."""
    one = computation.instructions[name]
    while one.opcode in MOVES:
        one = computation.instructions[one.operands[0]]
    return one
