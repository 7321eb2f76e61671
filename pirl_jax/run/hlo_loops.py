"""How often the loops of a compiled program run.

XLA:GPU writes it down; of XLA:TPU's text it is found from the condition: first, step and bound of a
counter.  Refuses to know what a body costs.
"""

from collections.abc import Mapping
import dataclasses
import re

from pirl_jax.run import hlo_text
from pirl_jax.run.hlo_text import Computation, Instruction

TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


def trips(
    computations: Mapping[str, Computation], computation: Computation, loop: Instruction
) -> int | None:
    """How often the body of a while runs; None: the text does not say.

    computation: where the while stands.
    """
    known = TRIPS.search(loop.attributes)
    if known:
        return int(known[1])
    return _Loop(computations, computation, loop).trips()


@dataclasses.dataclass
class _Loop:
    """A while whose trip count stands only in its condition: first, step and bound of a counter."""

    computations: Mapping[str, Computation]
    computation: Computation
    loop: Instruction

    def trips(self) -> int | None:
        condition = self.computations[self.loop.attribute("condition").lstrip("%")]
        compare, sides = self._compared(condition)
        if compare is None:
            return None
        places = [_place(condition, side) for side in sides]
        bounds = [self._constant(condition, side) for side in sides]
        direction = compare.attribute("direction")
        if bounds[1] is not None and places[0] is not None and direction in ("LT", "LE", "NE"):
            counter, bound = places[0], bounds[1] + (direction == "LE")
        elif bounds[0] is not None and places[1] is not None and direction in ("GT", "GE", "NE"):
            counter, bound = places[1], bounds[0] + (direction == "GE")
        else:
            return None
        first = self._before(counter)
        step = self._step(counter)
        if first is None or not step:
            return None
        return max(0, -(-(bound - first) // step))

    def _compared(self, condition: Computation) -> tuple[Instruction | None, list[str]]:
        """The comparison at the root, and what it compares, by names of the condition."""
        root = condition.root
        if root.opcode == "compare":
            return root, list(root.operands)
        if root.opcode != "fusion":
            return None, []
        inner = self.computations[root.attribute("calls").lstrip("%")]
        if inner.root.opcode != "compare":
            return None, []
        sides = []
        for name in inner.root.operands:
            source = hlo_text.source(inner, name)
            if source.opcode == "parameter":
                sides.append(root.operands[int(source.literal)])
            else:
                # A constant inside; its value is looked up by an instruction of its own.
                condition.instructions.setdefault(source.name, source)
                sides.append(source.name)
        return inner.root, sides

    def _constant(self, condition: Computation, name: str) -> int | None:
        """A number in the condition, or one that is handed into the loop and stays as it is."""
        source = hlo_text.source(condition, name)
        if source.opcode == "constant":
            return _whole(source.literal)
        place = _place(condition, name)
        if place is None or self._step(place) != 0:
            return None
        return self._before(place)

    def _before(self, place: int) -> int | None:
        """An element of the loop's state when it begins."""
        state = hlo_text.source(self.computation, self.loop.operands[0])
        if state.opcode != "tuple":
            return None
        first = hlo_text.source(self.computation, state.operands[place])
        return _whole(first.literal) if first.opcode == "constant" else None

    def _step(self, place: int) -> int | None:
        """What one pass adds to an element of the state; None: something else happens to it."""
        body = self.computations[self.loop.attribute("body").lstrip("%")]
        if body.root.opcode != "tuple":
            return None
        after = hlo_text.source(body, body.root.operands[place])
        if _place(body, after.name) == place:
            return 0
        inputs = list(after.operands)
        if after.opcode == "fusion":
            inner = self.computations[after.attribute("calls").lstrip("%")]
            return _added(inner, inner.root, body, after, place)
        return _added(body, after, body, None, place) if inputs else None


def _added(
    inside: Computation, add: Instruction, body: Computation, fusion: Instruction | None, place: int
) -> int | None:
    """The constant of `counter + constant`, which may stand in a fusion of the body."""
    if add.opcode != "add":
        return None
    constant = None
    counts = False
    for name in add.operands:
        source = hlo_text.source(inside, name)
        if fusion is not None and source.opcode == "parameter":
            source = hlo_text.source(body, fusion.operands[int(source.literal)])
        if source.opcode == "constant":
            constant = _whole(source.literal)
        elif source.opcode == "get-tuple-element":
            counts = int(source.attribute("index")) == place
    return constant if counts else None


def _place(computation: Computation, name: str) -> int | None:
    """The element of the computation's own argument that a value is; None: it is none."""
    one = hlo_text.source(computation, name)
    if one.opcode != "get-tuple-element":
        return None
    owner = computation.instructions[one.operands[0]]
    return int(one.attribute("index")) if owner.opcode == "parameter" else None


def _whole(literal: str) -> int | None:
    try:
        return int(literal)
    except ValueError:
        return None
