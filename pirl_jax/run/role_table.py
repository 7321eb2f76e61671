"""What every device of this host does in a run and needs of memory, before the run starts.

    python -m pirl_jax.run.role_table [--full] --config RECIPE [--config.a.b=value ...]

The doctor asks this in a process of its own, because it opens the devices; the answer is one JSON
object.  What stays on a device follows from shapes in seconds; what comes and goes is known once
the programs are compiled (--full).  Nothing is allocated.  Refuses to know how memory is counted
(run/plan.py) and who asks.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import os
import sys

import jax

from pirl_jax.core import mesh as meshes
from pirl_jax.core import placement
from pirl_jax.envs import child
from pirl_jax.envs.gl import backends
from pirl_jax.monitor import columns
from pirl_jax.run import (
    candidates,
    command,
    config,
    devices,
    gpus,
    outlook,
    plan,
    shares,
    simulators,
    training,
)

EGL = "egl"
HEADER = ("device", "roles", "stays", "at most", "has", "simulators", "CUDA", "EGL")
UNKNOWN = "-"
NOT_COMPILED = "at most: known once the programs are compiled, as --full does"
GIB_OF_WORKER = gpus.WORKER_MIB / 1024


@dataclasses.dataclass(frozen=True)
class Drawing:
    """Who draws where."""

    workers: int
    egl: Sequence[int]  # devices that they take in turns; (): nobody said which
    backend: str | None = EGL  # None: nothing is drawn

    def on(self, egl: int | None) -> int:
        """Workers of that device."""
        if egl is None or self.backend != EGL or not self.egl:
            return 0
        return sum(self.egl[i % len(self.egl)] == egl for i in range(self.workers))

    def remarks(self, of_gpus: Mapping[int, int]) -> Iterator[str]:
        """What the table does not say of them.  of_gpus: {CUDA: EGL} of this host."""
        if self.backend is None:
            yield "simulators draw nothing in this suite"
        elif self.backend != EGL:
            yield f"simulators draw with {self.backend}, on the CPU"
        elif not self.egl:
            yield (
                "simulators draw on EGL's default device: neither placement.env nor"
                " env.render_devices names one"
            )
        elif others := sorted({*self.egl} - {*of_gpus.values()}):
            yield f"simulators draw on EGL devices {placement.shown(others)}, no GPU of JAX here"


def table(
    count: int,
    placed: placement.Placement,
    planned: plan.Plan,
    drawing: Drawing,
    of_gpus: Mapping[int, int],
) -> list[list[str]]:
    """A row per device of this host, as HEADER has it; sizes in GiB.

    Args:
      count: devices that a placement may name.
      planned: without work where nothing was compiled.
      of_gpus: {CUDA: EGL} by the placement's numbers, in their order; {} where there are none.
    """
    by_number = {}
    for share in planned.shares:
        numbers = placement.parse(share.devices or placement.ALL, "")
        by_number |= dict.fromkeys(placed.computing if numbers is None else numbers, share)
    pairs = list(of_gpus.items())
    rows = []
    for number in range(count):
        cuda, egl = pairs[number] if number < len(pairs) else (None, None)
        workers = drawing.on(egl)
        share = by_number.get(number)
        rows.append(
            [
                str(number),
                ", ".join(_roles(number, placed, workers)) or UNKNOWN,
                *_sizes(share, planned),
                f"{workers}, {workers * GIB_OF_WORKER:.1f}" if workers else UNKNOWN,
                UNKNOWN if cuda is None else str(cuda),
                UNKNOWN if egl is None else str(egl),
            ]
        )
    return rows


def _roles(number: int, placed: placement.Placement, workers: int) -> Iterator[str]:
    if workers:
        yield "env"
    for role in ("rollout", "actor"):
        if number in getattr(placed, role):
            yield role


def _sizes(share: shares.Share | None, planned: plan.Plan) -> Iterator[str]:
    """What stays, the peak, the limit."""
    if share is None:
        yield from (UNKNOWN,) * 3
        return
    yield f"{sum(share.resident.values()) / shares.GIB:.2f}"
    yield f"{share.total / shares.GIB:.2f}" if planned.work else UNKNOWN
    yield f"{planned.limit / shares.GIB:.2f}"


# ---- what is so here -----------------------------------------------------------------------------


def report(settings: config.Settings, is_full: bool) -> dict[str, str]:
    """{"found", "text"}: who is where in a run on this host, and the table with its remarks.

    Raises:
      ValueError: it cannot run here, in one sentence.
    """
    said = gpus.prepare(settings)
    share = _share_of_memory()
    # Else this process would take most of a GPU's memory only to look at it.
    os.environ.setdefault(gpus.PREALLOCATE, "false")
    devices.setup_jax(settings)
    mesh = devices.mesh(settings)
    placed = devices.roles(settings)
    planned = _planned(settings, mesh, is_full)
    memory = _memory_of_gpus()
    of_gpus = _numbers() if memory else {}
    raw = settings.raw
    backend, egl = simulators.drawing(settings)
    drawing = Drawing(min(raw.env.num_workers, raw.rollout.num_envs), egl, backend)
    count = len(memory) or jax.local_device_count()
    lines = [
        columns.aligned(table(count, placed, planned, drawing, of_gpus), HEADER, left=2),
        "GiB; of simulators an estimate" + ("" if planned.work else f"; {NOT_COMPILED}"),
        *drawing.remarks(of_gpus),
        *devices.remarks(settings),
        *(said if memory else ()),
        share if memory else f"{gpus.FRACTION} is for GPUs, and JAX has none here",
    ]
    rollout = placement.shown(placed.rollout)
    actor = placement.shown(placed.actor)
    return {
        "found": f"{placed.mode}: rollout on {rollout}, actor on {actor}",
        "text": "\n".join(lines),
    }


def _share_of_memory() -> str:
    """What JAX will take of the memory of each GPU that it opens."""
    for name in gpus.CHOSEN:
        if name in os.environ:
            return f"JAX's share of a GPU's memory: {name}={os.environ[name]}"
    return "JAX's share of a GPU's memory: its own default, 0.75; placement.env would set it"


def _memory_of_gpus() -> list[int]:
    """Of every GPU, also of those that JAX does not open; []: it computes on something else."""
    return gpus.memory_mib() if meshes.platform() == "gpu" else []


def _numbers() -> dict[int, int]:
    """{CUDA: EGL} of GPUs; {} where EGL has no numbers for them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if backends.without_number(visible):
        return {}
    return backends.cuda_to_egl(backends.devices(), visible)


def _planned(settings: config.Settings, mesh: jax.sharding.Mesh, is_full: bool) -> plan.Plan:
    """The plan of what the run would choose; without work, of the first that may be chosen.

    Raises:
      ValueError: nothing fits.
    """
    spec = outlook.env_spec(settings)
    tokens = outlook.PROMPT_TOKENS
    if is_full:
        return plan.choose(settings, mesh, tokens, spec)[1]
    found = None
    seen = set()  # what stays depends on nothing else that is open
    for one in candidates.candidates(settings, mesh):
        choice = (one.raw.placement.offload, one.prefix_cache)
        if choice in seen:
            continue
        seen.add(choice)
        found = plan.measure(one, mesh, tokens, spec, compiling=None)
        if found.fits:
            return found
    raise ValueError(
        f"{plan.too_much(found)} before any program runs; train --plan-only names what would fit"
    )


def main(argv: list[str]) -> None:
    parser = command.Parser("pirl doctor", __doc__)
    parser.add_argument("--full", action="store_true")

    def answered() -> dict[str, str]:
        options, raw = command.parse(argv, parser)
        raw = training.agreed(raw, argparse.Namespace(resume="never", fields=options.fields))
        return report(config.settings(raw), options.full)

    child.answer(answered)


if __name__ == "__main__":
    main(sys.argv)
