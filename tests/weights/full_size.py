"""A full-size pi0.5 as openpi's PyTorch file, written and read: time and memory.

    python -m tests.weights.full_size FOLDER

It has 3.35 B random bfloat16 parameters, needs 7 GB of disk and 16 GB of
memory, and leaves nothing behind.
No test of the suite: it takes minutes.  Arrays are drawn anew whenever they are asked for, so that
only the converter's memory counts.
"""

import pathlib
import re
import shutil
import sys
import threading
import time
import zlib

import jax
import ml_dtypes
import numpy as np

from pirl_jax.core import mesh as meshes
from pirl_jax.core import spec
from pirl_jax.models import pi0, variants
from pirl_jax.weights import sizes, sources, targets


def random_source() -> sources.Source:
    cfg = variants.pi0_config("pi05")
    shapes = sizes.shapes_of(cfg)

    def fetch(path, dtype):
        draw = np.random.default_rng(zlib.crc32(path.encode()))
        bits = draw.integers(0, 1 << 16, shapes[path], np.uint16)
        bits &= 0xBFFF  # the highest bit of the exponent is 0: finite, below 2
        return bits.view(ml_dtypes.bfloat16).astype(dtype, copy=False)

    bfloat16 = np.dtype(ml_dtypes.bfloat16)
    return sources.Source(
        format="random",
        location=pathlib.Path("random"),
        shapes=shapes,
        dtypes=dict.fromkeys(shapes, bfloat16),
        fetch=fetch,
        ignored={},
        cfg=cfg,
    )


class Peak:
    """Largest anonymous memory in GB while the context lasts.

    Without pages of mapped files, which may be dropped.
    """

    def __enter__(self):
        self.gb = 0.0
        self._stop = threading.Event()
        self._start = time.perf_counter()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self):
        while not self._stop.wait(0.05):
            status = pathlib.Path("/proc/self/status").read_text()
            kib = int(re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)[1])
            self.gb = max(self.gb, kib * 1024 / 1e9)

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self.seconds = time.perf_counter() - self._start


def main(folder):
    source = random_source()
    largest = max(int(np.prod(shape)) * 2 for shape in source.shapes.values()) / 1e9
    total = f"{source.num_bytes / 1e9:.2f} GB in {len(source.shapes)} arrays"
    print(f"{total}, the largest {largest:.2f} GB", flush=True)
    try:
        with Peak() as peak:
            targets.write_openpi_torch(folder, source)
        size = (folder / "model.safetensors").stat().st_size / 1e9
        print(f"write {size:.2f} GB: {peak.seconds:.0f} s, peak {peak.gb:.2f} GB", flush=True)
        declared = pi0.specs(source.cfg)
        layout = spec.shardings(declared, meshes.make_mesh(devices=jax.devices()[:1]), meshes.RULES)
        with Peak() as peak:
            params, _ = sources.load(
                sources.open_source(folder), declared, layout, dtype=ml_dtypes.bfloat16
            )
            jax.block_until_ready(params)
        print(f"read onto the device: {peak.seconds:.0f} s, peak {peak.gb:.2f} GB", flush=True)
        for path, x in spec.flatten(params).items():
            found = np.asarray(x).view(np.uint16)
            assert np.array_equal(found, source.read(path).view(np.uint16)), path
        print("every array equal bit by bit")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
