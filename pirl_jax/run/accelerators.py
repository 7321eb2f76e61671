"""Accelerators that a program may be compiled for where there is none: what is published of them.

`tpu:v5e:2x4`, `cuda:h100:8` name a chip of TABLE and how many there are.  Every number has its
source in docs/targets.md, whose table is made of this one.  Refuses to know JAX.
"""

from collections.abc import Iterator
import dataclasses
import math
import os
import re

from pirl_jax.core import bounds

GIB = 2**30
# What JAX takes of a GPU's memory unless it is told otherwise.
GPU_SHARE = 0.75
GPUS_PER_HOST = 8
CHIPS_OF_A_BOARD = 8  # of v5e and v6e; slices up to this size are one host
CHIPS_OF_A_HOST = 4  # of larger slices, and of v5p
# Of a GPU machine nothing is published, because it is whoever's; said with every plan.
ASSUMED_HOST_MEMORY = 256 * GIB
ASSUMED_PER_GPU = 128 * GIB  # where it has more than two


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What XLA asks of a GPU besides its speed: names of its DeviceDescription."""

    name: str
    capability: tuple[int, int]
    cores: int  # streaming multiprocessors
    fpus_per_core: int
    threads_per_core: int
    shared_memory_per_core: int
    l2_cache: int
    # Not read off a device by XLA's authors but put together by us out of published numbers.
    composed: bool = False

    def text(self, chip: "Chip") -> str:
        """XLA's GpuTargetConfigProto as text."""
        major, minor = self.capability
        fields = {
            "threads_per_block_limit": 1024,
            "threads_per_warp": 32,
            "shared_memory_per_block": 49152,
            "shared_memory_per_core": self.shared_memory_per_core,
            # 1 KB of every core is the system's.
            "shared_memory_per_block_optin": self.shared_memory_per_core - 1024,
            "threads_per_core_limit": self.threads_per_core,
            "core_count": self.cores,
            "fpus_per_core": self.fpus_per_core,
            "block_dim_limit_x": 2**31 - 1,
            "block_dim_limit_y": 65535,
            "block_dim_limit_z": 65535,
            "memory_bandwidth": round(chip.bandwidth),
            "l2_cache_size": self.l2_cache,
            "clock_rate_ghz": chip.clock_hz / 1e9,
            "device_memory_size": chip.memory,
            "registers_per_core_limit": 65536,
            "registers_per_block_limit": 65536,
        }
        device = " ".join(f"{name}: {value}" for name, value in fields.items())
        return (
            f"gpu_device_info {{ {device} "
            f"cuda_compute_capability {{ major: {major} minor: {minor} }} }} "
            f'platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} '
            f"runtime_version {{ major: 12 minor: 9 patch: 0 }} "
            f'device_description_str: "{self.name}"'
        )


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device.  Numbers are of one chip."""

    peak: float  # bf16 FLOP/s of dense matrix products
    bandwidth: float  # bytes/s of its memory
    memory: int  # bytes: of a TPU what its compiler lets a program have, of a GPU all
    link: float  # bytes/s that it sends to others, all links together
    clock_hz: float
    host_memory: int = 0  # TPU: bytes of the machine that it stands in
    shape: str = ""  # TPU: how chips of a slice lie, for example
    gpu: Gpu | None = None

    @property
    def limit(self) -> int:
        """Bytes that a run may have."""
        if self.gpu is None:
            return self.memory
        share = float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", GPU_SHARE))
        return int(share * self.memory)

    def host_of(self, count: int) -> int:
        """Bytes of a machine with so many of them."""
        return self.host_memory or max(ASSUMED_HOST_MEMORY, count * ASSUMED_PER_GPU)


_HOPPER = {
    "capability": (9, 0),
    "cores": 132,
    "fpus_per_core": 128,
    "threads_per_core": 2048,
    "shared_memory_per_core": 233472,
    "l2_cache": 52428800,
}
_A100 = {
    "capability": (8, 0),
    "cores": 108,
    "fpus_per_core": 64,
    "threads_per_core": 2048,
    "shared_memory_per_core": 167936,
    "l2_cache": 41943040,
}
_GEFORCE = {"fpus_per_core": 128, "threads_per_core": 1536, "shared_memory_per_core": 102400}

TABLE: dict[str, dict[str, Chip]] = {
    "tpu": {
        "v5e": Chip(
            peak=197e12,
            bandwidth=819e9,
            memory=int(15.75 * GIB),
            link=200e9,
            clock_hz=1.5e9,
            host_memory=512 * GIB,
            shape="2x4",
        ),
        "v5p": Chip(
            peak=459e12,
            bandwidth=2765e9,
            memory=int(95.74 * GIB),
            link=600e9,
            clock_hz=1.75e9,
            host_memory=448 * GIB,
            shape="2x2x1",
        ),
        "v6e": Chip(
            peak=918e12,
            bandwidth=1638e9,
            memory=int(31.25 * GIB),
            link=400e9,
            clock_hz=1.75e9,
            host_memory=1536 * GIB,
            shape="2x4",
        ),
    },
    "cuda": {
        "h200": Chip(
            peak=989.4e12,
            bandwidth=4800e9,
            memory=151397597184,
            link=450e9,
            clock_hz=1.98e9,
            gpu=Gpu("NVIDIA H200 141GB HBM3e", **_HOPPER),
        ),
        "h100": Chip(
            peak=989.4e12,
            bandwidth=3352.32e9,
            memory=84942979072,
            link=450e9,
            clock_hz=1.98e9,
            gpu=Gpu("NVIDIA H100 80GB HBM3", **_HOPPER),
        ),
        "a100-80g": Chip(
            peak=312e12,
            bandwidth=2039.04e9,
            memory=85100068864,
            link=300e9,
            clock_hz=1.41e9,
            gpu=Gpu("NVIDIA A100-SXM4-80GB", **_A100),
        ),
        "a100-40g": Chip(
            peak=312e12,
            bandwidth=1555.2e9,
            memory=42331013120,
            link=300e9,
            clock_hz=1.41e9,
            gpu=Gpu("NVIDIA A100-SXM4-40GB", **_A100),
        ),
        "a6000": Chip(
            peak=154.8e12,
            bandwidth=768.096e9,
            memory=51041271808,
            link=32e9,
            clock_hz=1.8e9,
            gpu=Gpu("NVIDIA RTX A6000", (8, 6), 84, l2_cache=6291456, **_GEFORCE),
        ),
        "rtx4090": Chip(
            peak=165.2e12,
            bandwidth=1008e9,
            memory=24564 * 2**20,
            link=32e9,
            clock_hz=2.52e9,
            gpu=Gpu(
                "NVIDIA GeForce RTX 4090",
                (8, 9),
                128,
                l2_cache=75497472,
                composed=True,
                **_GEFORCE,
            ),
        ),
        "rtx3090": Chip(
            peak=71e12,
            bandwidth=936.2e9,
            memory=24576 * 2**20,
            link=32e9,
            clock_hz=1.695e9,
            gpu=Gpu(
                "NVIDIA GeForce RTX 3090", (8, 6), 82, l2_cache=6291456, composed=True, **_GEFORCE
            ),
        ),
    },
}


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices of one kind."""

    text: str  # as it was asked for
    platform: str  # tpu | cuda
    name: str  # of the chip
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        return TABLE[self.platform][self.name]

    @property
    def count(self) -> int:
        """Devices."""
        return math.prod(self.shape)

    @property
    def hosts(self) -> int:
        """Machines that the devices stand in; each plays on its own."""
        is_board = len(self.shape) < 3 and self.count <= CHIPS_OF_A_BOARD
        if self.platform == "cuda" or is_board:
            return 1
        return -(-self.count // CHIPS_OF_A_HOST)

    @property
    def notes(self) -> list[str]:
        """What a reader of its numbers must know."""
        chip = self.chip
        if self.hosts > 1:
            each = self.count // self.hosts
            return [
                f"rollout, prefixes and memory of the host are those of one of {self.hosts} hosts"
                f" with {each} devices; microbatch and optimiser step run on all devices"
            ]
        if chip.gpu is None:
            return []
        share = f"{chip.limit / chip.memory:.0%}"
        notes = [
            f"a run gets {share} of a GPU's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says "
            f"otherwise; their host is assumed to have {chip.host_of(self.count) / GIB:.0f} GiB"
        ]
        if chip.gpu.composed:
            notes.append(f"the description of {self.name} was composed by us, not read off one")
        return notes


def parse(text: str) -> Target:
    """`tpu:v5e:2x4` | `tpu:v5e:1` | `cuda:h100:8`.

    Raises:
      ValueError: no such target, with those that there are.
    """
    platform, _, rest = text.partition(":")
    name, _, shape = rest.partition(":")
    chips = TABLE.get(platform, {})
    sides = re.fullmatch(r"\d{1,4}(x\d{1,4}){0,2}", shape)
    if name not in chips or sides is None:
        raise bounds.unknown("--target", text, examples())
    numbers = tuple(int(side) for side in shape.split("x"))
    target = Target(text, platform, name, numbers)
    if not target.count or not _has_such(target):
        raise ValueError(f"--target={text} must be {_shapes(target)}")
    return target


def _has_such(target: Target) -> bool:
    if target.platform == "cuda":
        return len(target.shape) == 1 and target.count <= GPUS_PER_HOST
    return target.shape == (1,) or len(target.shape) == len(target.chip.shape.split("x"))


def _shapes(target: Target) -> str:
    if target.platform == "cuda":
        return f"cuda:{target.name}:N with 1 to {GPUS_PER_HOST} devices"
    return (
        f"tpu:{target.name}:1 for one chip, or a slice such as "
        f"tpu:{target.name}:{target.chip.shape}"
    )


def examples() -> Iterator[str]:
    """One target of every chip."""
    for platform, chips in TABLE.items():
        for name, chip in chips.items():
            yield f"{platform}:{name}:{chip.shape or GPUS_PER_HOST}"


def of_kind(device_kind: str) -> Chip | None:
    """The chip by the name that JAX has for it; None: not in the table."""
    for chips in TABLE.values():
        for name, chip in chips.items():
            known = TPU_KINDS.get(name, ()) if chip.gpu is None else (chip.gpu.name,)
            if device_kind in known:
                return chip
    return None


TPU_KINDS = {
    "v5e": ("TPU v5 lite", "TPU v5e"),
    "v5p": ("TPU v5", "TPU v5p"),
    "v6e": ("TPU v6 lite", "TPU v6e"),
}


def as_markdown() -> str:
    """The table of docs/targets.md."""
    lines = [
        "| target | bf16 TFLOP/s | memory GB/s | GiB, of which a run gets | links GB/s, one way "
        "| clock GHz | description |",
        "|---|---|---|---|---|---|---|",
    ]
    for example in examples():
        target = parse(example)
        chip = target.chip
        cells = [
            f"`{example}`",
            f"{chip.peak / 1e12:g}",
            f"{chip.bandwidth / 1e9:g}",
            f"{chip.memory / GIB:.2f}, {chip.limit / GIB:.2f}",
            f"{chip.link / 1e9:g}",
            f"{chip.clock_hz / 1e9:g}",
            _described(chip),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _described(chip: Chip) -> str:
    if chip.gpu is None:
        return "libtpu's"
    return "composed by us" if chip.gpu.composed else "XLA's, read off a device"
