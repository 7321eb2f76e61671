"""Says what on this machine would stop a training run or spoil its results, and the exact remedy.

    python -m pirl_jax.doctor [--full] [--assets DIR] [--num-envs N] [--num-workers N] [--image-size-px N]

Prints a table and exits with 1 if a check failed.  `cheap` is the part that training runs first (a second or two).
Everything that loads a driver, a simulator or jax runs in a process of its own, bounded in time.
"""

import argparse
from collections.abc import Sequence
import dataclasses
import importlib.metadata
import os
import pathlib
import resource
import sys

from packaging import requirements
import psutil

from pirl_jax.envs import base, child, gl, libero_assets, libero_files, worker

ROOT = pathlib.Path(__file__).parents[1]
PIN_FILES = ("requirements.txt", "requirements-sim.txt")
INSTALL = "pip install -r requirements.txt && pip install --no-deps -r requirements-sim.txt"
FILES_PER_WORKER = 3  # of the parent: the channel, the lifeline, the stacks
OTHER_FILES = 300  # jax, checkpoints, logs
PHYSICS_TIMEOUT_S = 300.0  # the first reset compiles; 50 start states take 25 s on one core
JAX_DEVICES = """
import jax
from pirl_jax.envs import child
child.answer(lambda: {"devices": [f"{one.platform}:{one.device_kind}" for one in jax.devices()]})
"""


@dataclasses.dataclass(frozen=True)
class Row:
    """One check; a failed one says in `remedy` what to do."""

    check: str
    status: str  # pass | fail | skip
    found: str
    remedy: str = ""


def cheap(
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
    return None if backend is None else gl.choose(backend, devices)


# ---- packages ----------------------------------------------------------------------------------------------------------


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


def check_packages() -> Row:
    wanted = [(pin, version(pin.name)) for pin in pins() if pin.name != "mujoco"]
    wrong = [
        f"{pin.name} {found or 'absent'} instead of {pin.specifier}"
        for pin, found in wanted
        if not _fits(pin, found)
    ]
    if wrong:
        return Row("packages", "fail", "; ".join(wrong), f"run: {INSTALL}")
    return Row("packages", "pass", f"{len(wanted)} as pinned, python {sys.version.split()[0]}")


def check_mujoco() -> Row:
    (pin,) = [pin for pin in pins() if pin.name == "mujoco"]
    found = version("mujoco")
    if _fits(pin, found):
        return Row("mujoco", "pass", f"{found} as pinned")
    why = "from 3.4.0 on stored LIBERO start states no longer settle"
    return Row(
        "mujoco",
        "fail",
        f"{found or 'absent'} instead of {pin.specifier} ({why})",
        f'run: pip install "{pin}"',
    )


def _fits(pin: requirements.Requirement, found: str | None) -> bool:
    return found is not None and pin.specifier.contains(found, prereleases=True)


# ---- rendering and devices ---------------------------------------------------------------------------------------------


def check_gl(wanted: str) -> list[Row]:
    """One frame per backend; the ones that are not wanted need not work."""
    rows = []
    for backend in {wanted: None, **gl.BACKENDS}:
        one = gl.probe(backend)
        found = str(one) if one.ok else one.reason
        if backend == wanted:
            rows.append(
                Row(f"GL {backend}, chosen", "pass" if one.ok else "fail", found, one.remedy)
            )
        else:
            rows.append(
                Row(
                    f"GL {backend}",
                    "pass" if one.ok else "skip",
                    f"{found}, not needed" if not one.ok else found,
                )
            )
    return rows


def check_egl_devices() -> list[Row]:
    """One frame on each EGL device, and which of them belongs to which CUDA device."""
    try:
        found = gl.devices()
    except (ValueError, child.ChildError) as error:
        return [Row("EGL devices", "skip", str(error))]
    rows, frames = [], gl.probe_all("egl", [device.egl for device in found]) if found else []
    for device, one in zip(found, frames, strict=True):
        kind = (
            f"CUDA {device.cuda}"
            if device.cuda is not None
            else "software"
            if device.software
            else device.file or "GPU"
        )
        text = one.renderer if one.ok else f"{one.reason}; {one.remedy}"
        # A device that does not render matters only to those who use it: an NVIDIA one is what they came for.
        status = "pass" if one.ok else "fail" if device.cuda is not None else "skip"
        rows.append(
            Row(f"EGL device {device.egl}", status, f"{kind}: {text}", "" if one.ok else one.remedy)
        )
    return rows + [check_mapping(found)]


def check_mapping(found: Sequence[gl.Device]) -> Row:
    """CUDA index -> EGL index for the visible GPUs."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        table = gl.cuda_to_egl(found, visible)
    except ValueError as error:
        problem, _, remedy = str(error).partition("; ")
        return Row("CUDA -> EGL", "fail", problem, remedy)
    if table:
        pairs = ", ".join(f"{cuda} -> {egl}" for cuda, egl in table.items())
        egl = ",".join(map(str, table.values())) + ("," if len(table) == 1 else "")
        return Row(
            "CUDA -> EGL", "pass", f"{pairs} (all of them: --config.env.render_devices={egl})"
        )
    if gl.NVIDIA.exists() and visible not in ("", "-1"):
        return Row(
            "CUDA -> EGL",
            "fail",
            "NVIDIA's driver is loaded, but EGL lists no device of it",
            gl.NVIDIA_REMEDY,
        )
    return Row("CUDA -> EGL", "skip", "no visible NVIDIA GPU")


def check_jax() -> Row:
    try:
        found = child.ask(
            ["-c", JAX_DEVICES], {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}, timeout_s=120
        )["devices"]
    except child.ChildError as error:
        return Row("jax devices", "fail", str(error), f"run: {INSTALL}")
    text = ", ".join(f"{found.count(one)} x {one}" for one in dict.fromkeys(found))
    if (
        gl.NVIDIA.exists()
        and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")
        and text.endswith("x cpu:cpu")
    ):
        remedy = (
            f'run: pip install "jax[cuda12]=={version("jax")}" (or cuda13, as the driver allows)'
        )
        return Row("jax devices", "fail", f"{text}, although NVIDIA's driver is loaded", remedy)
    return Row("jax devices", "pass", text)


# ---- limits ------------------------------------------------------------------------------------------------------------


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


# ---- LIBERO ------------------------------------------------------------------------------------------------------------


def check_assets(assets: str | None) -> tuple[Row, pathlib.Path | None]:
    """The row, and the folder where it is complete."""
    try:
        folder = libero_files.find_assets(assets)
        absent = libero_assets.missing(folder)
    except ValueError as error:
        problem, _, remedy = str(error).rpartition("; ")
        return Row("LIBERO assets", "fail", problem, remedy), None
    if absent:
        remedy = f"run: python -m pirl_jax.download assets --to {folder}"
        return Row(
            "LIBERO assets",
            "fail",
            f"{len(absent)} files missing in {folder}, e.g. {absent[0]}",
            remedy,
        ), None
    return Row("LIBERO assets", "pass", f"complete in {folder}"), folder


def check_physics(assets: pathlib.Path | None, backend: str, num_init_states: int) -> Row:
    """The bowl of libero_spatial task 5 stands on its ramekin after the settle steps."""
    name = "LIBERO physics"
    if assets is None:
        return Row(name, "skip", "needs the assets")
    variables = {
        **worker.environment(),
        **gl.variables(backend),
        libero_files.ASSETS_VARIABLE: str(assets),
    }
    arguments = ["-m", "pirl_jax.envs.libero_probe", "0", str(num_init_states)]
    try:
        found = child.ask(arguments, variables, PHYSICS_TIMEOUT_S)
    except child.ChildError as error:
        return Row(
            name,
            "fail",
            f"libero_spatial task 5 does not start: {error}",
            "mend the failed checks above first",
        )
    text = f"mujoco {found['mujoco']}, libero_spatial task 5, bowl {1e3 * found['worst_m']:.1f} mm from its place on the ramekin"
    if found["fallen"]:
        text += f" ({len(found['fallen'])} of {num_init_states} start states)"
        return Row(
            name,
            "fail",
            text,
            "install the pinned mujoco; the assets need LIBERO's own collision geometry",
        )
    return Row(name, "pass", f"{text} at most, {num_init_states} start states")


# ---- the command -------------------------------------------------------------------------------------------------------


def examine(options: argparse.Namespace) -> list[Row]:
    wanted = os.environ.get("MUJOCO_GL", "egl")
    assets_row, assets = check_assets(options.assets)
    gl_rows = check_gl(wanted)
    return [
        check_packages(),
        check_mujoco(),
        *gl_rows,
        *check_egl_devices(),
        check_jax(),
        check_shared_memory(options.num_envs, options.image_size_px),
        check_files(options.num_workers),
        assets_row,
        check_physics(assets, wanted, num_init_states=50 if options.full else 2),
    ]


def as_text(rows: Sequence[Row]) -> str:
    width = max(len(row.check) for row in rows)
    lines = []
    for row in rows:
        lines.append(f"{row.check:<{width}}  {row.status}  {row.found}")
        if row.status == "fail":
            lines.append(f"{'':<{width}}        -> {row.remedy}")
    counts = {
        status: sum(row.status == status for row in rows) for status in ("pass", "fail", "skip")
    }
    return "\n".join(
        lines + ["", "  ".join(f"{count} {status}" for status, count in counts.items())]
    )


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "python -m pirl_jax.doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--full", action="store_true", help="all 50 start states of the physics probe instead of 2"
    )
    parser.add_argument(
        "--assets", metavar="DIR", help="LIBERO's assets; default: where training finds them"
    )
    parser.add_argument(
        "--num-envs", type=int, default=64, metavar="N", help="as rollout.num_envs (default 64)"
    )
    parser.add_argument(
        "--num-workers", type=int, default=8, metavar="N", help="as env.num_workers (default 8)"
    )
    parser.add_argument(
        "--image-size-px",
        type=int,
        default=256,
        metavar="N",
        help="as env.image_size_px (default 256)",
    )
    rows = examine(parser.parse_args(argv[1:]))
    print(as_text(rows))
    sys.exit(any(row.status == "fail" for row in rows))


if __name__ == "__main__":
    main(sys.argv)
