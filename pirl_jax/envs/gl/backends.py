"""Which OpenGL renders: backends, devices, a test frame, and the remedy where it fails.

EGL numbers its devices in an order of its own: EGL device 0 need not be CUDA device 0, and a
simulator that confuses the two renders on another job's card.  Here an EGL device is an index into
EGL's list (MUJOCO_EGL_DEVICE_ID), and `cuda_to_egl` is the only translation.  Whatever touches a
driver runs in a process of its own.  Refuses to know simulators.

`python -m pirl_jax.envs.gl.backends egl [DEVICE]` exits with 0 if that renders.
"""

from collections.abc import Sequence
from concurrent import futures
import ctypes
import dataclasses
import functools
import logging
import os
import pathlib
import sys

from pirl_jax.envs import child

BACKENDS = {  # backend -> the library it cannot do without, its Debian packages
    "egl": ("libEGL.so.1", "libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0"),
    "osmesa": ("libOSMesa.so.8", "libosmesa6 libgl1-mesa-dri"),
}
DEFAULT = ("", "enable", "enabled", "on", "true", "1")  # mujoco's words for its own choice
BLANK_STD = 1.0  # grey levels; the test scene has about 49
# A first import from a network disk takes tens of seconds; a driver that hangs takes for ever.
TIMEOUT_S = 60.0
# Exists where NVIDIA's kernel driver is loaded, containers included.
NVIDIA = pathlib.Path("/proc/driver/nvidia/version")
VENDOR_FILE = "/usr/share/glvnd/egl_vendor.d/10_nvidia.json"

NO_GPU = ("", "-1", "NoDevFiles")  # how CUDA_VISIBLE_DEVICES hides all; the last one is Slurm's
NO_DISPLAY = "EGL opens no display"
NO_DEVICE = "EGL lists no such device"
SOFTWARE = "or render in software: export MUJOCO_GL=osmesa PYOPENGL_PLATFORM=osmesa"
NVIDIA_REMEDY = (
    "give EGL NVIDIA's driver: start the container with NVIDIA_DRIVER_CAPABILITIES=all, "
    f"and where {VENDOR_FILE} is absent write "
    '{"file_format_version": "1.0.0", "ICD": {"library_path": "libEGL_nvidia.so.0"}} into it'
)


@dataclasses.dataclass(frozen=True)
class Device:
    """One entry of EGL's list."""

    egl: int
    cuda: int | None  # physical CUDA index; None: not NVIDIA
    software: bool = False
    file: str | None = None  # DRM device file, e.g. /dev/dri/card0


@dataclasses.dataclass(frozen=True)
class Probe:
    """What became of one test frame."""

    backend: str
    device: int | None  # EGL device; None: the backend's own choice
    reason: str = ""  # why it failed; "" where it rendered
    remedy: str = ""
    vendor: str = ""
    renderer: str = ""
    version: str = ""
    pixel_std: float = 0.0  # grey levels

    @property
    def ok(self) -> bool:
        """Whether it rendered."""
        return not self.reason

    @property
    def place(self) -> str:
        """Backend and device in words."""
        if self.device is None:
            return self.backend
        return f"{self.backend} device {self.device}"

    def __str__(self) -> str:
        if self.ok:
            return f"{self.renderer}, OpenGL {self.version} ({self.place})"
        return f"{self.place} does not render: {self.reason}; {self.remedy}"


def wanted(text: str | None = None) -> str:
    """The backend of a text, or of $MUJOCO_GL, read as mujoco reads it.

    Case and blanks do not matter; unset, empty and on are its default, which here is the one that
    needs no display.  What it is otherwise, `require` refuses.
    """
    name = os.environ.get("MUJOCO_GL", "") if text is None else text
    name = name.strip().lower()
    return "egl" if name in DEFAULT else name


def drop_empty() -> None:
    """Job files export variables that they leave empty; mujoco reads a number in this one."""
    if not os.environ.get("MUJOCO_EGL_DEVICE_ID", "unset").strip():
        del os.environ["MUJOCO_EGL_DEVICE_ID"]


def require(backend: str) -> None:
    """Check that the library is there which a backend cannot do without.

    PyOpenGL's own errors name neither it nor the package.

    Raises:
        ValueError: there is no such backend, or its library is missing.
    """
    name = wanted(backend)
    if name not in BACKENDS:
        raise ValueError(
            f"MUJOCO_GL={backend!r} draws nothing without a display; unset it, or set it to one"
            f" of: {', '.join(BACKENDS)}"
        )
    backend = name
    library, packages = BACKENDS[backend]
    try:
        ctypes.CDLL(library)
    except OSError as error:
        raise ValueError(
            f"{library} is missing (MUJOCO_GL={backend}); run: apt-get install -y {packages}"
        ) from error


def variables(backend: str, device: int | None = None) -> dict[str, str]:
    """Environment variables of a simulator process that renders there.

    They are to be set before its first import.  With a device, CUDA is hidden from the process:
    simulators compute nothing on it, and robosuite would take the numbers in CUDA_VISIBLE_DEVICES
    for EGL devices.
    """
    chosen = {"MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
    if device is not None:
        chosen["MUJOCO_EGL_DEVICE_ID"] = str(device)
        chosen["CUDA_VISIBLE_DEVICES"] = ""
    return chosen


def probe(backend: str, device: int | None = None, timeout_s: float = TIMEOUT_S) -> Probe:
    """Render one frame of a small scene in a process of its own.

    Never raises for what the machine lacks: the Probe says it.
    """
    here = Probe(backend, device)
    question = ["-m", "pirl_jax.envs.gl.ask", "frame"]
    try:
        require(backend)
        frame = child.ask(question, variables(backend, device), timeout_s)
    except ValueError as error:
        reason, _, remedy = str(error).partition("; ")
        return dataclasses.replace(here, reason=reason, remedy=remedy)
    except child.ChildError as error:
        reason = _translated(str(error))
        return dataclasses.replace(here, reason=reason, remedy=_remedy(here, reason))
    rendered = dataclasses.replace(here, **frame)
    if rendered.pixel_std < BLANK_STD:
        remedy = _remedy(here, "blank")
        return dataclasses.replace(rendered, reason="the frame is blank", remedy=remedy)
    return rendered


def probe_all(backend: str, devices: Sequence[int] = ()) -> list[Probe]:
    """One frame per EGL device, at the same time; (): the backend's own choice."""
    distinct: list[int | None] = sorted(set(devices))
    if backend == "osmesa" or not distinct:
        distinct = [None]  # osmesa renders on the CPU and has no devices
    with futures.ThreadPoolExecutor() as threads:
        return list(threads.map(functools.partial(probe, backend), distinct))


def choose(wanted: str, devices: Sequence[int] = ()) -> str:
    """The backend to use: the wanted one if it renders on all these EGL devices.

    Else osmesa, said loudly, for a run on it may be too slow to be meant.

    Raises:
        ValueError: neither renders, or devices were asked for and one of them does not.
    """
    failed = [probed for probed in probe_all(wanted, devices) if not probed.ok]
    if not failed:
        return wanted
    if devices or wanted == "osmesa":
        raise ValueError("; ".join(map(str, failed)))
    software = probe("osmesa")
    if not software.ok and wanted not in BACKENDS:
        raise ValueError(str(failed[0]))  # a name that is none: what osmesa lacks is no remedy
    if not software.ok:
        raise ValueError(f"{failed[0]}; and {software}")
    logging.getLogger(__name__).warning(
        "%s; RENDERING IN SOFTWARE instead (MUJOCO_GL=osmesa), which may be ten times slower "
        "than a GPU",
        failed[0],
    )
    return "osmesa"


@functools.cache
def describe(backend: str, device: int | None = None) -> str:
    """For result files: "llvmpipe (LLVM 15.0.6, 256 bits), OpenGL 4.5 Mesa 22.3.6 (egl)".

    Raises:
        ValueError: it does not render; the sentence says why.
    """
    probed = probe(backend, device)
    if not probed.ok:
        raise ValueError(str(probed))
    return str(probed)


def devices() -> list[Device]:
    """EGL's list; CUDA numbers are physical ones, whatever CUDA_VISIBLE_DEVICES says.

    Raises:
        ValueError: EGL's library is missing.
        child.ChildError: the driver does not answer.
    """
    require("egl")
    question = ["-m", "pirl_jax.envs.gl.ask", "devices"]
    # Unset in the child, so that NVIDIA's driver shows all cards under their own numbers.
    answer = child.ask(question, {"CUDA_VISIBLE_DEVICES": None}, TIMEOUT_S)
    return [Device(egl, **fields) for egl, fields in enumerate(answer["devices"])]


def cuda_to_egl(found: Sequence[Device], visible: str | None) -> dict[int, int]:
    """{physical CUDA device: EGL device}, in the order of CUDA_VISIBLE_DEVICES.

    found: EGL's list.  visible: the value of that variable; None: unset, all in their order.  Those
    of its entries that are no numbers are left out: see `without_number`.

    Raises:
        ValueError: `visible` numbers what EGL does not list.
    """
    nvidia = [device for device in found if device.cuda is not None]
    table = {device.cuda: device.egl for device in sorted(nvidia, key=lambda device: device.cuda)}
    if visible is None:
        return table
    numbers = [entry for entry in _entries(visible) if entry.isdigit()]
    if not table:
        return {}  # no NVIDIA card renders here: nothing to translate
    missing = [number for number in numbers if int(number) not in table]
    if missing:
        raise ValueError(
            f"EGL lists no CUDA device {', '.join(missing)} of CUDA_VISIBLE_DEVICES={visible}; "
            f"it has {list(table)}"
        )
    return {int(number): table[int(number)] for number in numbers}


def egl_of(ordinals: Sequence[int] | None) -> tuple[int, ...]:
    """EGL devices of CUDA's, counted as a CUDA program counts what it sees; None: all of them.

    () where all are asked for and none is NVIDIA's: the default device draws.

    Raises:
        ValueError: EGL has no such device, or no number for it.
        child.ChildError: the driver does not answer.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    unknown = without_number(visible)
    if unknown:
        raise ValueError(
            f"CUDA_VISIBLE_DEVICES has {', '.join(unknown)}, which EGL has no number for; name EGL"
            " devices in env.render_devices instead"
        )
    listed = list(cuda_to_egl(devices(), visible).values())
    if ordinals is None:
        return tuple(listed)
    beyond = [number for number in ordinals if number >= len(listed)]
    if beyond:
        has = f"has {len(listed)} of them" if listed else "lists none"
        raise ValueError(
            f"CUDA device {beyond[0]} is to draw, but EGL {has} here; name others, or cpu"
        )
    return tuple(listed[number] for number in ordinals)


def without_gpu() -> tuple[str, tuple[int, ...]]:
    """Backend and EGL devices that draw on CPU cores: Mesa's device where EGL lists it."""
    try:
        software = [device.egl for device in devices() if device.software]
    except (ValueError, child.ChildError):
        software = []
    return ("egl", tuple(software[:1])) if software else ("osmesa", ())


def without_number(visible: str | None) -> list[str]:
    """Entries of CUDA_VISIBLE_DEVICES that EGL has no number for: UUIDs of GPUs, or of slices."""
    return [entry for entry in _entries(visible or "") if not entry.isdigit()]


def _entries(visible: str) -> list[str]:
    entries = [entry.strip() for entry in visible.split(",")]
    return [entry for entry in entries if entry not in NO_GPU]


def _translated(reason: str) -> str:
    """mujoco's or PyOpenGL's sentence -> ours, where we know what it means."""
    # An empty list of devices is told as "an integer between 0 and -1".
    if "EGL device display" in reason or "between 0 and -1" in reason:
        return NO_DISPLAY
    if "MUJOCO_EGL_DEVICE_ID" in reason:
        return NO_DEVICE
    return reason.rstrip(".")


def _remedy(here: Probe, reason: str) -> str:
    """What the user can do about it on this kind of machine."""
    if reason == NO_DEVICE:
        return (
            "python -m pirl_jax.doctor lists the EGL devices; correct MUJOCO_EGL_DEVICE_ID or "
            "env.render_devices"
        )
    if here.backend == "osmesa":
        _, packages = BACKENDS["osmesa"]
        return f"run: apt-get install -y {packages}"
    if reason == NO_DISPLAY and NVIDIA.exists():
        return NVIDIA_REMEDY
    if reason == NO_DISPLAY:
        _, packages = BACKENDS["egl"]
        return (
            f"run: apt-get install -y {packages}; with a GPU, let the user read and write "
            f"/dev/dri/render*; {SOFTWARE}"
        )
    return f"repair the graphics driver; {SOFTWARE}"


def main(argv: list[str]) -> None:
    """argv: program, backend, and an EGL device or nothing."""
    backend = wanted(argv[1])
    device = int(argv[2]) if len(argv) > 2 else None
    probed = probe(backend, device)
    sys.exit(0 if probed.ok else str(probed))


if __name__ == "__main__":
    main(sys.argv)
