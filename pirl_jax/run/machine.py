"""What this machine must offer a run: pinned physics, memory, open files, a GL backend that renders."""

from collections.abc import Sequence
import dataclasses
import importlib.metadata
import pathlib
import resource
import sys

from packaging import requirements
import psutil

from pirl_jax.envs import base
from pirl_jax.envs.gl import backends

INSTALL = "pip install -r requirements.txt && pip install --no-deps -r requirements-sim.txt"
ROOT = pathlib.Path(__file__).parents[2]
PIN_FILES = ("requirements.txt", "requirements-sim.txt")
FILES_PER_WORKER = 3  # of the parent: the channel, the lifeline, the stacks
OTHER_FILES = 300  # jax, checkpoints, logs


@dataclasses.dataclass(frozen=True)
class Row:
    """One check; a failed one says in `remedy` what to do."""

    check: str
    status: str  # pass | fail | skip
    found: str
    remedy: str = ""


def check(
    num_envs: int,
    num_workers: int,
    image_size_px: int,
    backend: str | None = None,
    devices: Sequence[int] = (),
) -> str | None:
    """What training checks before anything else; returns the GL backend to use.

    backend: the wanted one; None for a suite that does not render.  devices: EGL devices; () = the backend's choice.
    Raises ValueError, one sentence per failed check.  Warns where osmesa has to stand in for the wanted backend.
    """
    rows = [check_shared_memory(num_envs, image_size_px), check_files(num_workers)]
    failed = [
        f"{row.check}: {row.found}; {row.remedy}"
        for row in rows + [check_mujoco()]
        if row.status == "fail"
    ]
    if failed:
        raise ValueError(". ".join(failed))
    return None if backend is None else backends.choose(backend, devices)


def pins() -> list[requirements.Requirement]:
    """The checkout's exact pins; of an installed package without its checkout, what its metadata asks for."""
    files = [ROOT / name for name in PIN_FILES]
    if all(file.is_file() for file in files):
        lines = [
            line.partition("#")[0].strip()
            for file in files
            for line in file.read_text().splitlines()
        ]
    else:
        lines = importlib.metadata.requires("pirl_jax") or []
    return [requirements.Requirement(line) for line in lines if line]


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_mujoco() -> Row:
    (pin,) = [pin for pin in pins() if pin.name == "mujoco"]
    found = version("mujoco")
    if fits(pin, found):
        return Row("mujoco", "pass", f"{found} as pinned")
    why = "from 3.4.0 on stored LIBERO start states no longer settle"
    return Row(
        "mujoco",
        "fail",
        f"{found or 'absent'} instead of {pin.specifier} ({why})",
        f'run: pip install "{pin}"',
    )


def fits(pin: requirements.Requirement, found: str | None) -> bool:
    return found is not None and pin.specifier.contains(found, prereleases=True)


def check_shared_memory(num_envs: int, image_size_px: int) -> Row:
    """Observations of all envs lie in one block of shared memory, a file without a name: /dev/shm does not bound it."""
    images = len(base.EnvSpec.cameras) * image_size_px**2 * 3
    needed_mb = num_envs * (images + 4 * base.EnvSpec.state_dim) / 1e6
    free_mb = psutil.virtual_memory().available / 1e6
    found = f"{needed_mb:,.0f} MB needed for the observations of {num_envs} envs, {free_mb:,.0f} MB of memory available"
    remedy = "lower rollout.num_envs or env.image_size_px, or free memory"
    return Row("shared memory", "fail" if needed_mb > free_mb else "pass", found, remedy)


def check_files(num_workers: int) -> Row:
    needed = OTHER_FILES + FILES_PER_WORKER * num_workers
    soft, hard = (
        limit if limit != resource.RLIM_INFINITY else sys.maxsize
        for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    found = (
        f"{needed} needed for {num_workers} workers, limit {soft if soft < sys.maxsize else 'none'}"
    )
    remedy = (
        f"run: ulimit -n {needed}"
        if hard >= needed
        else f"raise the hard limit in /etc/security/limits.conf to {needed}"
    )
    return Row("open files", "fail" if needed > soft else "pass", found, remedy)
