"""NVIDIA GPUs before JAX starts: which of them it opens, which share of their memory it takes.

JAX takes its share of every GPU that it opens and gives nothing back, so simulators that draw there
have what it leaves.  Without a placement, or without such GPUs, nothing here changes anything.
"""

from collections.abc import Sequence
import math
import os
import subprocess

import jax

from pirl_jax.core import placement
from pirl_jax.envs.gl import backends
from pirl_jax.run import config

ASK = ("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")
TIMEOUT_S = 60.0
# Whoever sets one of these has chosen.
FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"
PREALLOCATE = "XLA_PYTHON_CLIENT_PREALLOCATE"
CHOSEN = (
    FRACTION,
    "XLA_CLIENT_MEM_FRACTION",
    PREALLOCATE,
    "XLA_PYTHON_CLIENT_ALLOCATOR",
)
# Estimates: of one simulator process with a context on the GPU, and of CUDA and libraries.
WORKER_MIB = 512
OTHERS_MIB = 2048
MOST = 0.95


def memory_mib() -> list[int]:
    """Of every GPU that CUDA may open, in its order; [] where there is none."""
    try:
        answer = subprocess.run(ASK, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    found = [int(line) for line in answer.stdout.split() if line.isdecimal()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not found:
        return found
    named = [entry.strip() for entry in visible.split(",")]
    # What has no number is one of them, and they are alike.
    return [
        found[int(name)] if name.isdecimal() and int(name) < len(found) else min(found)
        for name in named
        if name not in backends.NO_GPU
    ]


def prepare(settings: config.Settings) -> list[str]:
    """Tell JAX, before it starts, what the placement leaves it -> sentences about it.

    Raises:
      ValueError: the placement names a GPU that is not here.
    """
    section = settings.raw.placement
    if not section.env and section.rollout == section.actor == placement.ALL:
        return []
    memory = memory_mib()
    if not memory:
        return []
    found = placement.of_page(section.env, section.rollout, section.actor, len(memory))
    said = []
    if len(found.computing) < len(memory):
        numbers = ",".join(map(str, found.computing))
        jax.config.update("jax_cuda_visible_devices", numbers)
        said.append(f"placement: JAX opens GPUs {placement.shown(found.computing)} alone")
    if section.env and not any(name in os.environ for name in CHOSEN):
        drawing = range(len(memory)) if section.env == placement.ALL else found.env or ()
        share = fraction(memory, drawing, found.computing, settings.raw.env.num_workers)
        os.environ[FRACTION] = f"{share:.2f}"
        said.append(f"placement: {FRACTION}={share:.2f}, what simulators leave of the GPUs")
    return said


def fraction(
    memory: Sequence[int], drawing: Sequence[int], computing: Sequence[int], workers: int
) -> float:
    """The share of a GPU's memory for JAX, one for all of them.

    Args:
      memory: MiB of each GPU.
      drawing, computing: GPUs that simulators draw on, and that JAX opens.
      workers: simulator processes, which take the GPUs in turn.
    """
    shares = []
    for gpu in computing:
        contexts = math.ceil(workers / len(drawing)) if gpu in drawing else 0
        reserved = OTHERS_MIB + WORKER_MIB * contexts
        shares.append(1 - reserved / memory[gpu])
    # Two digits, rounded down.
    return max(math.floor(100 * min(MOST, *shares)) / 100, 0.1)
