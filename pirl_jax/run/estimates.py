"""What a compiler says of a program for devices that are not there; kept by program in a folder.

Nothing of it is measured.  Refuses to know which programs a run has.
"""

from collections.abc import Callable
import dataclasses
import hashlib
from importlib import metadata
import pathlib
import time

import jax

from pirl_jax.core import atomic, outside
from pirl_jax.run import accelerators, hlo, plan, topology

# Whose versions decide what a program becomes, where they are installed.
COMPILERS = ("jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda12-pjrt")
FORMAT = 2  # of what is kept; another one is compiled again


class TooLong(plan.TooLarge):
    """A program that was given up: it would have to be compiled for longer than allowed."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of one program, one device and one call."""

    memory: plan.Memory
    flops: float  # of matrix products, loops as often as they run
    cycles: float  # XLA:TPU's own estimate, without collectives; 0: there is none
    collectives: dict[str, float]  # bytes by kind
    calls: dict[str, float]  # how many, by kind
    unknown_loops: int  # counted once each
    not_counted: list[str]  # kernels whose FLOPs nobody knows
    compile_s: float

    def estimated_s(self, chip: accelerators.Chip) -> float | None:
        """What XLA:TPU believes it takes, without collectives; None: it has no belief."""
        return self.cycles / chip.clock_hz if self.cycles else None

    def roofline_s(self, chip: accelerators.Chip) -> float:
        """No device of that kind is faster: its products at the published peak, or its arguments
        read once and its results written once at the published bandwidth."""
        moved = self.memory.arguments + self.memory.outputs
        return max(self.flops / chip.peak, moved / chip.bandwidth)

    def exchange_s(self, chip: accelerators.Chip) -> float:
        """What its collectives take at the published rate of all links together."""
        return sum(self.collectives.values()) / chip.link

    def share_of_peak(self, chip: accelerators.Chip) -> float | None:
        """Of the estimated time; None where there is none."""
        seconds = self.estimated_s(chip)
        return self.flops / seconds / chip.peak if seconds else None

    def as_dict(self) -> dict:
        return dataclasses.asdict(self)


def from_dict(fields: dict) -> Estimate:
    """Inverse of as_dict."""
    return Estimate(**fields | {"memory": plan.Memory(**fields["memory"])})


def of(executable: jax.stages.Compiled, compile_s: float) -> Estimate:
    """What its compiler says."""
    totals = hlo.Program(executable.as_text()).totals()
    return Estimate(
        memory=plan.memory(executable),
        flops=totals.flops,
        cycles=totals.cycles,
        collectives=dict(totals.collectives),
        calls=dict(totals.calls),
        unknown_loops=totals.unknown_loops,
        not_counted=sorted(totals.not_counted),
        compile_s=round(compile_s, 1),
    )


def _nobody(key: str) -> None:
    """Whom compiling is announced to by default."""


@dataclasses.dataclass
class Estimator:
    """Compiles for a target what it does not find in the folder."""

    target: accelerators.Target
    folder: pathlib.Path
    limit_s: float  # that a program may be compiled for
    begins: Callable[[str], None] = _nobody  # with the program's key
    ends: Callable[[str], None] = _nobody

    def memory(self, lowered: jax.stages.Lowered) -> plan.Memory:
        """As plan.choose asks for it."""
        estimate = self.of(lowered)
        return dataclasses.replace(estimate.memory, seconds=estimate.estimated_s(self.target.chip))

    def of(self, lowered: jax.stages.Lowered) -> Estimate:
        """
        Raises:
          plan.TooLarge: it does not fit the target.
          TooLong: it was given up before.
        """
        key = self.key(lowered)
        kept = read(self.folder, key)
        if kept is None or kept.get("given_up_s", self.limit_s) < self.limit_s:
            kept = self._compiled(key, lowered)
        if "given_up_s" in kept:
            minutes = kept["given_up_s"] / 60
            raise TooLong(f"its compilation was given up after {minutes:.0f} minutes")
        if "refused" in kept:
            raise plan.TooLarge(kept["refused"])
        return from_dict(kept["estimate"])

    def _compiled(self, key: str, lowered: jax.stages.Lowered) -> dict:
        self.begins(key)
        start_s = time.monotonic()
        try:
            executable = plan.compiled(lowered, dict(topology.options(self.target)))
        except plan.TooLarge as error:
            kept = {"refused": str(error)}
        else:
            kept = {"estimate": of(executable, time.monotonic() - start_s).as_dict()}
        write(self.folder, key, kept)
        self.ends(key)
        return kept

    def key(self, lowered: jax.stages.Lowered) -> str:
        """The same for the same program, target and compiler."""
        gpu = self.target.chip.gpu
        parts = [
            lowered.as_text(),
            self.target.text,
            gpu.text(self.target.chip) if gpu else "",
            str(topology.options(self.target)),
            *compilers(),
        ]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def compilers() -> list[str]:
    """Name and version of those that are installed."""
    found = []
    for name in COMPILERS:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return found


# ---- the folder ----------------------------------------------------------------------------------


def read(folder: pathlib.Path, key: str) -> dict | None:
    """What is known of a program; None: nothing, or in another format."""
    path = folder / f"{key}.json"
    if not path.exists():
        return None
    try:
        kept = outside.read_json(path)
    except ValueError:  # written by something else, or damaged: compiled again
        return None
    return kept if kept.get("format") == FORMAT else None


def write(folder: pathlib.Path, key: str, kept: dict) -> None:
    """One file per program."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_json(folder / f"{key}.json", kept | {"format": FORMAT})


def give_up(folder: pathlib.Path, key: str, limit_s: float) -> None:
    """Remember that a program takes longer than that."""
    write(folder, key, {"given_up_s": limit_s})
