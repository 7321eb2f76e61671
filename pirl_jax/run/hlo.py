"""What a compiled program does, read from XLA's text of it: loops with their trip counts.

Text in, numbers out: bytes that devices exchange by kind, FLOPs of matrix products, the cycles that
XLA:TPU estimates.  Knows the text of TPUs and of NVIDIA GPUs; refuses to know JAX.
"""

from collections import defaultdict
from collections.abc import Iterator
import dataclasses
import math
import re

from pirl_jax.run import hlo_loops, hlo_text
from pirl_jax.run.hlo_text import Computation, Instruction

# What devices exchange.  Asynchronous ones are counted where they start.
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# Runs beside the rest, so its cycles are not added.
BESIDE = ("copy-start", "copy-done", "slice-start", "slice-done", "async-start", "async-done")
# XLA:TPU spreads what devices exchange over several fusions: one starts it, these go on with it
# beside products of their own, and the last waits for it.  Each names it, and it is one.
CONTINUES = ("async_collective_fusion", "async-collective-done")
# A fusion that sums over devices and keeps the own part only.
SCATTERS = "all-reduce-scatter"
SCATTERED = {"all-reduce": "reduce-scatter"}
CALLED = re.compile(
    r"\b(?:calls|body|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
    r"|\bbranch_computations=\{([^}]*)\}"
)
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
GEMM = re.compile(r'custom_call_target="__(cublas|cudnn\$gemm|triton_gemm)')

# Custom calls that compute and whose FLOPs do not stand in the text.
OPAQUE = frozenset({"tpu_custom_call", "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"})


@dataclasses.dataclass
class Totals:
    """Of one device and one call."""

    flops: float = 0.0
    cycles: float = 0.0
    # Bytes of one device: the result of an all-gather, the operands of the others.
    collectives: dict[str, float] = dataclasses.field(default_factory=lambda: defaultdict(float))
    calls: dict[str, float] = dataclasses.field(default_factory=lambda: defaultdict(float))
    unknown_loops: int = 0  # whose trip count does not stand in the text: counted once
    not_counted: set[str] = dataclasses.field(default_factory=set)  # custom calls with FLOPs

    def add(self, other: "Totals", times: float = 1.0) -> None:
        self.flops += times * other.flops
        self.cycles += times * other.cycles
        self.unknown_loops += other.unknown_loops
        self.not_counted |= other.not_counted
        for kind, size in other.collectives.items():
            self.collectives[kind] += times * size
        for kind, count in other.calls.items():
            self.calls[kind] += times * count


class Program:
    """A compiled module."""

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        for computation, is_entry in hlo_text.computations(text):
            self.computations[computation.name] = computation
            if is_entry:
                self.entry = computation.name
        if not self.entry:
            raise ValueError("the text of a compiled module has an ENTRY computation")
        self._totals: dict[str, Totals] = {}

    def totals(self) -> Totals:
        """Of the whole program, loops as often as they run."""
        return self._of(self.entry)

    def instructions(self) -> Iterator[tuple[Computation, Instruction]]:
        """All of them, each once, wherever they stand."""
        for computation in self.computations.values():
            for one in computation.instructions.values():
                yield computation, one

    def _of(self, name: str) -> Totals:
        if name not in self._totals:
            totals = Totals()
            computation = self.computations[name]
            for one in computation.instructions.values():
                self._add(totals, computation, one)
            self._totals[name] = totals
        return self._totals[name]

    def _add(self, totals: Totals, computation: Computation, one: Instruction) -> None:
        kind = one.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            totals.collectives[kind] += _exchanged(computation, one, kind)
            totals.calls[kind] += 1
            return
        totals.flops += _flops(computation, one)
        if one.opcode not in BESIDE:
            cycles = CYCLES.search(one.attributes)
            totals.cycles += int(cycles[1]) if cycles else 0
        target = one.attribute("custom_call_target").strip('"')
        if target in OPAQUE:
            totals.not_counted.add(target)
        if one.opcode == "while":
            trips = hlo_loops.trips(self.computations, computation, one)
            totals.unknown_loops += trips is None
            body = self._of(one.attribute("body").lstrip("%"))
            totals.add(body, 1 if trips is None else trips)
        elif one.opcode == "conditional":
            branches = [self._of(name) for name in _called(one)]
            # Which one is taken is not known: the one that takes longest.
            totals.add(max(branches, key=_weight))
        elif one.opcode in ("call", "async-start"):
            for name in _called(one):
                totals.add(self._of(name))
        elif one.opcode == "fusion":
            for name in _called(one):
                totals.add(_of_fusion(one.name, name, self._of(name)))


def _of_fusion(fusion: str, computation: str, inside: Totals) -> Totals:
    """What a fusion adds by what it is made of.  fusion, computation: names that XLA gives."""
    # Its cycles are its own, not those of its parts.
    inside = dataclasses.replace(inside, cycles=0.0)
    if fusion.startswith(CONTINUES) or computation.startswith(CONTINUES):
        return dataclasses.replace(inside, collectives={}, calls={})
    if not computation.startswith(SCATTERS):
        return inside
    collectives = {SCATTERED.get(kind, kind): size for kind, size in inside.collectives.items()}
    calls = {SCATTERED.get(kind, kind): count for kind, count in inside.calls.items()}
    return dataclasses.replace(inside, collectives=collectives, calls=calls)


def _called(one: Instruction) -> list[str]:
    names = []
    for single, several in CALLED.findall(one.attributes):
        names += [single] if single else [name.strip(" %") for name in several.split(",")]
    return names


def _exchanged(computation: Computation, one: Instruction, kind: str) -> int:
    operands = sum(hlo_text.size(computation.instructions[name].shape) for name in one.operands)
    if kind != "all-gather":
        return operands
    whole = hlo_text.size(one.shape)
    # One that is only started gives its operands beside its results.
    return whole - operands if one.opcode.endswith("-start") else whole


# ---- FLOPs -------------------------------------------------------------------------------------


def _flops(computation: Computation, one: Instruction) -> float:
    """Of a matrix product or a convolution, a multiply-add being two."""
    if one.opcode == "dot":
        contracted = _numbers(one.attribute("lhs_contracting_dims"))
    elif one.opcode == "convolution":
        return _of_convolution(computation, one)
    elif one.opcode == "custom-call" and GEMM.search(one.attributes):
        found = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', one.attributes)
        contracted = [int(axis) for axis in re.findall(r"\d+", found[1])] if found else []
    else:
        return 0.0
    lhs = hlo_text.dimensions(computation, one.operands[0])
    shared = math.prod(lhs[axis] for axis in contracted)
    return 2.0 * math.prod(hlo_text.arrays(one.shape)[0][1]) * shared


def _of_convolution(computation: Computation, one: Instruction) -> float:
    """Products with what a window's padding and dilation leave out are not computed."""
    lhs_labels, rest = one.attribute("dim_labels").split("_", 1)
    rhs_labels, out_labels = rest.split("->")
    lhs = hlo_text.dimensions(computation, one.operands[0])
    rhs = hlo_text.dimensions(computation, one.operands[1])
    out = hlo_text.arrays(one.shape)[0][1]
    window = _window(one.attribute("window"))
    pairs = 1
    for axis in range(sum(label.isdigit() for label in out_labels)):
        label = str(axis)
        pairs *= _pairs(
            lhs[lhs_labels.index(label)],
            rhs[rhs_labels.index(label)],
            out[out_labels.index(label)],
            window.get(axis, {}),
        )
    features = rhs[rhs_labels.index("i")] * out[out_labels.index("f")]
    batch_groups = int(one.attribute("batch_group_count", "1"))
    return 2.0 * pairs * features * out[out_labels.index("b")] / batch_groups


def _window(text: str) -> dict[int, dict[str, str]]:
    """{spatial axis: {size, stride, pad, lhs_dilate, rhs_dilate, ...: as written}}"""
    axes = defaultdict(dict)
    for part in text.strip("{}").split():
        key, _, values = part.partition("=")
        for axis, value in enumerate(values.split("x")):
            axes[axis][key] = value
    return axes


def _pairs(lhs: int, kernel: int, out: int, window: dict[str, str]) -> int:
    """Of one spatial axis: how often an element of the kernel meets one of the input."""
    stride = int(window.get("stride", "1"))
    spread = int(window.get("lhs_dilate", "1"))
    apart = int(window.get("rhs_dilate", "1"))
    before = int(window.get("pad", "0_0").split("_")[0])
    if out * kernel > 10**7:
        return out * kernel
    count = 0
    for element in range(kernel):
        offset = element * apart - before
        if spread == 1:
            first = max(0, -(offset // stride))
            last = min(out - 1, (lhs - 1 - offset) // stride)
            count += max(0, last - first + 1)
            continue
        places = (position * stride + offset for position in range(out))
        count += sum(1 for at in places if not at % spread and 0 <= at < lhs * spread)
    return count


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _weight(totals: Totals) -> tuple[float, float]:
    return totals.cycles, totals.flops
