"""Says what on this machine would stop a training run or spoil its results, and the exact remedy.

    python -m pirl_jax.doctor [--full] [--assets DIR] [--num-envs N] [--num-workers N] [--image-size-px N]

Prints a table and exits with 1 if a check failed.  Training runs the quick part of it first (run/machine.py check).
Everything that loads a driver, a simulator or jax runs in a process of its own, bounded in time.
"""

import argparse
from collections.abc import Sequence
import os
import pathlib
import sys

from pirl_jax.envs import child
from pirl_jax.envs.gl import backends
from pirl_jax.envs.libero import assets as libero_assets
from pirl_jax.envs.libero import files as libero_files
from pirl_jax.envs.pool import worker
from pirl_jax.run import command, machine

PHYSICS_TIMEOUT_S = 300.0  # the first reset compiles; 50 start states take 25 s on one core
JAX_DEVICES = """
import jax
from pirl_jax.envs import child
child.answer(lambda: {"devices": [f"{one.platform}:{one.device_kind}" for one in jax.devices()]})
"""


# ---- packages ----------------------------------------------------------------------------------------------------------


def check_packages() -> machine.Row:
    wanted = [(pin, machine.version(pin.name)) for pin in machine.pins() if pin.name != "mujoco"]
    wrong = [
        f"{pin.name} {found or 'absent'} instead of {pin.specifier}"
        for pin, found in wanted
        if not machine.fits(pin, found)
    ]
    if wrong:
        return machine.Row("packages", "fail", "; ".join(wrong), f"run: {machine.INSTALL}")
    return machine.Row(
        "packages", "pass", f"{len(wanted)} as pinned, python {sys.version.split()[0]}"
    )


# ---- rendering and devices ---------------------------------------------------------------------------------------------


def check_gl(wanted: str) -> list[machine.Row]:
    """One frame per backend; the ones that are not wanted need not work."""
    rows = []
    for backend in {wanted: None, **backends.BACKENDS}:
        one = backends.probe(backend)
        found = str(one) if one.ok else one.reason
        if backend == wanted:
            rows.append(
                machine.Row(
                    f"GL {backend}, chosen", "pass" if one.ok else "fail", found, one.remedy
                )
            )
        else:
            rows.append(
                machine.Row(
                    f"GL {backend}",
                    "pass" if one.ok else "skip",
                    f"{found}, not needed" if not one.ok else found,
                )
            )
    return rows


def check_egl_devices() -> list[machine.Row]:
    """One frame on each EGL device, and which of them belongs to which CUDA device."""
    try:
        found = backends.devices()
    except (ValueError, child.ChildError) as error:
        return [machine.Row("EGL devices", "skip", str(error))]
    rows, frames = [], backends.probe_all("egl", [device.egl for device in found]) if found else []
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
            machine.Row(
                f"EGL device {device.egl}", status, f"{kind}: {text}", "" if one.ok else one.remedy
            )
        )
    return rows + [check_mapping(found)]


def check_mapping(found: Sequence[backends.Device]) -> machine.Row:
    """CUDA index -> EGL index for the visible GPUs."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        table = backends.cuda_to_egl(found, visible)
    except ValueError as error:
        problem, _, remedy = str(error).partition("; ")
        return machine.Row("CUDA -> EGL", "fail", problem, remedy)
    if table:
        pairs = ", ".join(f"{cuda} -> {egl}" for cuda, egl in table.items())
        egl = ",".join(map(str, table.values())) + ("," if len(table) == 1 else "")
        return machine.Row(
            "CUDA -> EGL", "pass", f"{pairs} (all of them: --config.env.render_devices={egl})"
        )
    if backends.NVIDIA.exists() and visible not in ("", "-1"):
        return machine.Row(
            "CUDA -> EGL",
            "fail",
            "NVIDIA's driver is loaded, but EGL lists no device of it",
            backends.NVIDIA_REMEDY,
        )
    return machine.Row("CUDA -> EGL", "skip", "no visible NVIDIA GPU")


def check_jax() -> machine.Row:
    try:
        found = child.ask(
            ["-c", JAX_DEVICES], {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}, timeout_s=120
        )["devices"]
    except child.ChildError as error:
        return machine.Row("jax devices", "fail", str(error), f"run: {machine.INSTALL}")
    text = ", ".join(f"{found.count(one)} x {one}" for one in dict.fromkeys(found))
    if (
        backends.NVIDIA.exists()
        and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")
        and text.endswith("x cpu:cpu")
    ):
        remedy = f'run: pip install "jax[cuda12]=={machine.version("jax")}" (or cuda13, as the driver allows)'
        return machine.Row(
            "jax devices", "fail", f"{text}, although NVIDIA's driver is loaded", remedy
        )
    return machine.Row("jax devices", "pass", text)


# ---- limits ------------------------------------------------------------------------------------------------------------


# ---- LIBERO ------------------------------------------------------------------------------------------------------------


def check_assets(assets: str | None) -> tuple[machine.Row, pathlib.Path | None]:
    """The row, and the folder where it is complete."""
    try:
        folder = libero_files.find_assets(assets)
        absent = libero_assets.missing(folder)
    except ValueError as error:
        problem, _, remedy = str(error).rpartition("; ")
        return machine.Row("LIBERO assets", "fail", problem, remedy), None
    if absent:
        remedy = f"run: python -m pirl_jax.download assets --to {folder}"
        return machine.Row(
            "LIBERO assets",
            "fail",
            f"{len(absent)} files missing in {folder}, e.g. {absent[0]}",
            remedy,
        ), None
    return machine.Row("LIBERO assets", "pass", f"complete in {folder}"), folder


def check_physics(assets: pathlib.Path | None, backend: str, num_init_states: int) -> machine.Row:
    """The bowl of libero_spatial task 5 stands on its ramekin after the settle steps."""
    name = "LIBERO physics"
    if assets is None:
        return machine.Row(name, "skip", "needs the assets")
    variables = {
        **worker.environment(),
        **backends.variables(backend),
        libero_files.ASSETS_VARIABLE: str(assets),
    }
    arguments = ["-m", "pirl_jax.envs.libero.probe", "0", str(num_init_states)]
    try:
        found = child.ask(arguments, variables, PHYSICS_TIMEOUT_S)
    except child.ChildError as error:
        return machine.Row(
            name,
            "fail",
            f"libero_spatial task 5 does not start: {error}",
            "mend the failed checks above first",
        )
    text = f"mujoco {found['mujoco']}, libero_spatial task 5, bowl {1e3 * found['worst_m']:.1f} mm from its place on the ramekin"
    if found["fallen"]:
        text += f" ({len(found['fallen'])} of {num_init_states} start states)"
        return machine.Row(
            name,
            "fail",
            text,
            "install the pinned mujoco; the assets need LIBERO's own collision geometry",
        )
    return machine.Row(name, "pass", f"{text} at most, {num_init_states} start states")


# ---- the command -------------------------------------------------------------------------------------------------------


def examine(options: argparse.Namespace) -> list[machine.Row]:
    wanted = os.environ.get("MUJOCO_GL", "egl")
    assets_row, assets = check_assets(options.assets)
    gl_rows = check_gl(wanted)
    return [
        check_packages(),
        machine.check_mujoco(),
        *gl_rows,
        *check_egl_devices(),
        check_jax(),
        machine.check_shared_memory(options.num_envs, options.image_size_px),
        machine.check_files(options.num_workers),
        assets_row,
        check_physics(assets, wanted, num_init_states=50 if options.full else 2),
    ]


def as_text(rows: Sequence[machine.Row]) -> str:
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
    parser = command.Parser("pirl doctor", __doc__)
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
