"""PyTorch's .pt files of plain tensors (RLinf's full_weights.pt), read without PyTorch and without trusting the file.

A .pt file is an uncompressed zip: a pickle that describes the tensors, and one entry of raw bytes per storage.  The
unpickler below knows the names of plain tensors; whatever else the pickle asks for ends the reading, so no code of the
file can run.
"""

import collections
import mmap
import pathlib
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np

_STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


def read(path) -> dict[str, np.ndarray]:
    """A saved state_dict -> read-only views of its tensors; data comes from disk when it is touched."""
    path = pathlib.Path(path)
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no .pt file of PyTorch 1.6 or later; {_EXPORT}")
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if "data.pkl" not in members:
            raise ValueError(
                f"{path} holds no data.pkl, so it was not written by torch.save; {_EXPORT}"
            )
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        reader = _Unpickler(archive.open(members["data.pkl"]), path, members, memory)
        tree = reader.load()
    tensors = _flat(tree)
    if not tensors:
        raise ValueError(f"{path} holds no tensors by name; {_EXPORT}")
    return tensors


_EXPORT = "load it with PyTorch and save the state_dict with safetensors.torch.save_file"


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, path, members, memory):
        super().__init__(file)
        self._path, self._members, self._memory = path, members, memory

    def find_class(self, module, name):
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, requires_grad, hooks: tensor,
            ("torch", "Size"): tuple,
        }
        if module == "torch" and name in _STORAGES:
            return np.dtype(_STORAGES[name])
        if (module, name) not in known:
            raise ValueError(
                f"{self._path} wants to run {module}.{name}, which is no plain tensor; {_EXPORT}"
            )
        return known[module, name]

    def persistent_load(self, pid):
        """('storage', dtype, entry, device, number of elements) -> all its elements, as one axis."""
        _, dtype, key, _, count = pid
        info = self._members.get(f"data/{key}")
        if (
            info is None
            or info.compress_type != zipfile.ZIP_STORED
            or info.file_size < count * dtype.itemsize
        ):
            raise ValueError(
                f"storage {key} of {self._path} is missing or cut off; copy the file again"
            )
        # The local header may have other lengths than the central one, so it is read: 30 bytes, name, extra field.
        name, extra = struct.unpack_from("<HH", self._memory, info.header_offset + 26)
        return np.frombuffer(self._memory, dtype, count, info.header_offset + 30 + name + extra)


def _tensor(storage, offset, size, stride, requires_grad, hooks, metadata=None):
    last = (
        offset + sum((n - 1) * step for n, step in zip(size, stride)) + 1 if all(size) else offset
    )
    if offset < 0 or min(stride, default=0) < 0 or last > len(storage):
        raise ValueError(
            f"a tensor of shape {tuple(size)} reaches beyond its storage; copy the file again"
        )
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)


def _flat(tree) -> dict[str, np.ndarray]:
    """The state_dict itself, or the one under a key such as "model" or "state_dict"."""
    if not isinstance(tree, dict):
        return {}
    if any(isinstance(leaf, np.ndarray) for leaf in tree.values()):
        return {name: leaf for name, leaf in tree.items() if isinstance(leaf, np.ndarray)}
    inner = [_flat(child) for child in tree.values()]
    return next((tensors for tensors in inner if tensors), {})
