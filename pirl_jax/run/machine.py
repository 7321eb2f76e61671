"""What this machine must offer a run: pinned physics, memory, open files, a backend that renders.

Imports neither jax nor a simulator: what may hang or crash is tried in a process of its own.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import importlib.metadata
import pathlib
import resource
import sys

from packaging import requirements
import psutil

from pirl_jax.envs import base
from pirl_jax.envs.gl import backends
from pirl_jax.envs.libero import files
from pirl_jax.monitor import packages

INSTALL_SIMULATORS = files.INSTALL_SIMULATORS
INSTALL = f"pip install -r requirements.txt && {INSTALL_SIMULATORS}"
ROOT = pathlib.Path(__file__).parents[2]
# Installed without their own dependencies, which ask for torch and forbid numpy 2.
SIMULATORS = files.REQUIREMENTS / "requirements-sim.txt"
FILES_PER_WORKER = 3  # of the parent: the channel, the lifeline, the stacks
OTHER_FILES = 300  # jax, checkpoints, logs


@dataclasses.dataclass(frozen=True)
class Row:
    """One check; a failed one says in `remedy` what to do, a skipped one what would bring it."""

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

    Warns where osmesa has to stand in for the wanted backend.

    Args:
      backend: the wanted one; None for a suite that does not render.
      devices: EGL devices; () = the backend's choice.

    Raises:
      ValueError: one sentence per failed check, with its remedy.
    """
    rows = [
        check_shared_memory(num_envs, image_size_px),
        check_files(num_workers),
        check_mujoco(),
    ]
    failed = [f"{row.check}: {row.found}; {row.remedy}" for row in rows if row.status == "fail"]
    if failed:
        raise ValueError(". ".join(failed))
    if backend is None:
        return None
    return backends.choose(backend, devices)


def pins() -> list[requirements.Requirement]:
    """The checkout's exact pins.

    Of an installed package without its checkout, what its metadata asks for.  Those of the
    simulators are in both.
    """
    file = ROOT / "requirements.txt"
    if file.is_file():
        lines = file.read_text().splitlines()
    else:
        lines = importlib.metadata.requires("pirl_jax") or []
    return [pin for pin in _requirements(lines) if _applies(pin)] + simulator_pins()


def simulator_pins() -> list[requirements.Requirement]:
    """robosuite, LIBERO, bddl and openpi-client."""
    return _requirements(SIMULATORS.read_text().splitlines())


def _requirements(lines: Iterable[str]) -> list[requirements.Requirement]:
    without_comments = [line.partition("#")[0].strip() for line in lines]
    return [requirements.Requirement(line) for line in without_comments if line]


def _applies(pin: requirements.Requirement) -> bool:
    """False for what only an extra of the package asks for."""
    return pin.marker is None or pin.marker.evaluate({"extra": ""})


def require_openpi_client() -> None:
    """The package that packs arrays as openpi's servers and clients do.

    Raises:
      ValueError: it is not installed.
    """
    if packages.version("openpi-client") is None:
        raise ValueError(f"openpi-client is not installed; run: {INSTALL_SIMULATORS}")


def fits(pin: requirements.Requirement, found: str | None) -> bool:
    """Whether the installed version (None: absent) is one the pin allows."""
    return found is not None and pin.specifier.contains(found, prereleases=True)


def check_mujoco() -> Row:
    """The physics of the results is that of one version."""
    (pin,) = [pin for pin in pins() if pin.name == "mujoco"]
    found = packages.version("mujoco")
    if fits(pin, found):
        return Row("mujoco", "pass", f"{found} as pinned")
    why = "from 3.4.0 on stored LIBERO start states no longer settle"
    wrong = f"{found or 'absent'} instead of {pin.specifier} ({why})"
    return Row("mujoco", "fail", wrong, f'run: pip install "{pin}"')


def check_shared_memory(num_envs: int, image_size_px: int) -> Row:
    """Observations of all envs lie in one block of shared memory.

    The block is a file without a name: /dev/shm does not bound it, the machine's memory does.
    """
    pixels_bytes = len(base.EnvSpec.cameras) * image_size_px**2 * 3  # uint8
    state_bytes = 4 * base.EnvSpec.state_dim  # float32
    needed_mb = num_envs * (pixels_bytes + state_bytes) / 1e6
    free_mb = psutil.virtual_memory().available / 1e6
    found = (
        f"{needed_mb:,.0f} MB needed for the observations of {num_envs} envs, "
        f"{free_mb:,.0f} MB of memory available"
    )
    status = "fail" if needed_mb > free_mb else "pass"
    remedy = "lower rollout.num_envs or env.image_size_px, or free memory"
    return Row("shared memory", status, found, remedy)


def check_files(num_workers: int) -> Row:
    """Every worker costs the parent open files; where they run out, a later worker cannot start."""
    needed = OTHER_FILES + FILES_PER_WORKER * num_workers
    soft, hard = map(_finite, resource.getrlimit(resource.RLIMIT_NOFILE))
    limit = "none" if soft == sys.maxsize else soft
    found = f"{needed} needed for {num_workers} workers, limit {limit}"
    status = "fail" if needed > soft else "pass"
    remedy = f"raise the hard limit in /etc/security/limits.conf to {needed}"
    if hard >= needed:
        # The user may raise the soft limit alone.
        remedy = f"run: ulimit -n {needed}"
    return Row("open files", status, found, remedy)


def _finite(limit: int) -> int:
    """RLIM_INFINITY is -1, which compares as the smallest."""
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit
