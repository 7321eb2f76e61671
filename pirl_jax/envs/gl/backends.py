"""Which OpenGL renders: backends, devices, one test frame in a process of its own, and the remedy where it fails.

EGL numbers its devices in an order of its own: EGL device 0 need not be CUDA device 0, and a simulator that confuses
the two renders on another job's card.  Here an EGL device is an index into EGL's list (MUJOCO_EGL_DEVICE_ID), and
`cuda_to_egl` is the only translation.  `python -m pirl_jax.envs.gl.backends egl [DEVICE]` exits with 0 if that renders.
"""

from collections.abc import Sequence
from concurrent import futures
import ctypes
import dataclasses
import functools
import logging
import pathlib
import sys

from pirl_jax.envs import base, child

BACKENDS = {  # backend -> the library it cannot do without, its Debian packages
    "egl": ("libEGL.so.1", "libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0"),
    "osmesa": ("libOSMesa.so.8", "libosmesa6 libgl1-mesa-dri"),
}
BLANK_STD = 1.0  # grey levels; the test scene has about 49
TIMEOUT_S = 60.0  # a first import from a network disk takes tens of seconds; a driver that hangs takes for ever
NVIDIA = pathlib.Path(
    "/proc/driver/nvidia/version"
)  # exists where the kernel driver is loaded, containers included
VENDOR_FILE = "/usr/share/glvnd/egl_vendor.d/10_nvidia.json"


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
        return not self.reason

    @property
    def place(self) -> str:
        return self.backend + (f" device {self.device}" if self.device is not None else "")

    def __str__(self) -> str:
        if self.ok:
            return f"{self.renderer}, OpenGL {self.version} ({self.place})"
        return f"{self.place} does not render: {self.reason}; {self.remedy}"


def require(backend: str) -> None:
    """The library a backend cannot do without; PyOpenGL's own errors name neither it nor the package."""
    if backend not in BACKENDS:
        raise base.error("MUJOCO_GL", backend, BACKENDS)
    library, packages = BACKENDS[backend]
    try:
        ctypes.CDLL(library)
    except OSError as error:
        raise ValueError(
            f"{library} is missing (MUJOCO_GL={backend}); run: apt-get install -y {packages}"
        ) from error


def variables(backend: str, device: int | None = None) -> dict[str, str]:
    """Environment variables of a simulator process that renders there; to be set before its first import.

    With a device, CUDA is hidden from the process: simulators compute nothing on it, and robosuite would take the
    numbers in CUDA_VISIBLE_DEVICES for EGL devices.
    """
    chosen = {"MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
    return (
        chosen
        if device is None
        else chosen | {"MUJOCO_EGL_DEVICE_ID": str(device), "CUDA_VISIBLE_DEVICES": ""}
    )


def probe(backend: str, device: int | None = None, timeout_s: float = TIMEOUT_S) -> Probe:
    """Render one frame of a small scene in a process of its own; never raises for what the machine lacks."""
    here = Probe(backend, device)
    try:
        require(backend)
        frame = child.ask(
            ["-m", "pirl_jax.envs.gl.ask", "frame"], variables(backend, device), timeout_s
        )
    except ValueError as error:
        reason, _, remedy = str(error).partition("; ")
        return dataclasses.replace(here, reason=reason, remedy=remedy)
    except child.ChildError as error:
        reason = _translated(str(error))
        return dataclasses.replace(here, reason=reason, remedy=_remedy(here, reason))
    if frame["pixel_std"] < BLANK_STD:
        return dataclasses.replace(
            here, **frame, reason="the frame is blank", remedy=_remedy(here, "blank")
        )
    return dataclasses.replace(here, **frame)


def probe_all(backend: str, devices: Sequence[int] = ()) -> list[Probe]:
    """One frame per device (() = the backend's own choice), at the same time; osmesa has no devices."""
    devices = () if backend == "osmesa" else devices
    with futures.ThreadPoolExecutor() as threads:
        return list(threads.map(functools.partial(probe, backend), sorted(set(devices)) or [None]))


def choose(wanted: str, devices: Sequence[int] = ()) -> str:
    """The backend to use: the wanted one if it renders on all these EGL devices, else osmesa, said loudly.

    Raises ValueError if neither renders, or if devices were asked for and one of them does not.
    """
    broken = [str(one) for one in probe_all(wanted, devices) if not one.ok]
    if not broken:
        return wanted
    if devices or wanted == "osmesa":
        raise ValueError("; ".join(broken))
    software = probe("osmesa")
    if not software.ok:
        raise ValueError(f"{broken[0]}; and {software}")
    logging.getLogger(__name__).warning(
        "%s; RENDERING IN SOFTWARE instead (MUJOCO_GL=osmesa), which may be ten times slower than a GPU",
        broken[0],
    )
    return "osmesa"


@functools.cache
def describe(backend: str, device: int | None = None) -> str:
    """For result files: "llvmpipe (LLVM 15.0.6, 256 bits), OpenGL 4.5 Mesa 22.3.6 (egl)"."""
    one = probe(backend, device)
    if not one.ok:
        raise ValueError(str(one))
    return str(one)


def devices() -> list[Device]:
    """EGL's list; CUDA numbers are physical ones, whatever CUDA_VISIBLE_DEVICES says.  Raises child.ChildError."""
    require("egl")
    found = child.ask(
        ["-m", "pirl_jax.envs.gl.ask", "devices"], {"CUDA_VISIBLE_DEVICES": None}, TIMEOUT_S
    )["devices"]
    return [Device(egl, **fields) for egl, fields in enumerate(found)]


def cuda_to_egl(found: Sequence[Device], visible: str | None) -> dict[int, int]:
    """{physical CUDA device: EGL device} in the order of `visible`, the value of CUDA_VISIBLE_DEVICES (None: unset)."""
    table = {
        one.cuda: one.egl
        for one in sorted(found, key=lambda one: (one.cuda is None, one.cuda))
        if one.cuda is not None
    }
    if visible is None:
        return table
    names = [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    if not all(name.isdigit() for name in names):
        raise ValueError(
            f"CUDA_VISIBLE_DEVICES is {visible!r}; write numbers, or name EGL devices in env.render_devices"
        )
    missing = [name for name in names if int(name) not in table]
    if missing and table:
        raise ValueError(
            f"EGL lists no CUDA device {', '.join(missing)} of CUDA_VISIBLE_DEVICES={visible}; it has {[*table]}"
        )
    return {int(name): table[int(name)] for name in names if table}


def _translated(reason: str) -> str:
    if "EGL device display" in reason or "between 0 and -1" in reason:
        return NO_DISPLAY
    return NO_DEVICE if "MUJOCO_EGL_DEVICE_ID" in reason else reason.rstrip(".")


def _remedy(here: Probe, reason: str) -> str:
    if reason == NO_DEVICE:
        return "python -m pirl_jax.doctor lists the EGL devices; correct MUJOCO_EGL_DEVICE_ID or env.render_devices"
    if here.backend == "osmesa":
        return f"run: apt-get install -y {BACKENDS['osmesa'][1]}"
    if reason == NO_DISPLAY and NVIDIA.exists():
        return NVIDIA_REMEDY
    if reason == NO_DISPLAY:
        return f"run: apt-get install -y {BACKENDS['egl'][1]}; with a GPU, let the user read and write /dev/dri/render*; {SOFTWARE}"
    return f"repair the graphics driver; {SOFTWARE}"


NO_DISPLAY = "EGL opens no display"
NO_DEVICE = "EGL lists no such device"
SOFTWARE = "or render in software: export MUJOCO_GL=osmesa PYOPENGL_PLATFORM=osmesa"
NVIDIA_REMEDY = (
    f"give EGL NVIDIA's driver: start the container with NVIDIA_DRIVER_CAPABILITIES=all, and where {VENDOR_FILE} is"
    ' absent write {"file_format_version": "1.0.0", "ICD": {"library_path": "libEGL_nvidia.so.0"}} into it'
)


def main(argv: list[str]) -> None:
    one = probe(argv[1], int(argv[2]) if len(argv) > 2 else None)
    sys.exit(0 if one.ok else str(one))


if __name__ == "__main__":
    main(sys.argv)
