"""Checkpoints of every format as one thing: arrays under our paths, read one at a time.

Opening reads headers only.  Every tensor of a file is used exactly once or listed in `ignored` with
the reason; whatever is missing, left over or of another shape ends in one error that names it all.
Knows formats and networks; no training, and of devices only where arrays shall go.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import dataclasses
import functools
import math
import os
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from pirl_jax.core import outside, spec
from pirl_jax.models import variants
from pirl_jax.weights import (
    accounting,
    frozen,
    pickled,
    resolve,
    safetensors,
    sizes,
    sound,
    torch_names,
)

# Weights hardly compress; but adapters and new heads hold zeros.
MOST_GROWTH = 100
FREE_GROWTH = 1 << 28  # bytes
# What reinforcement learning adds; no part of openpi's networks.
HEADS = ("value_head/", "noise_head/")


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint that has been looked at but not read."""

    format: str  # openpi_jax | openpi_torch | pirl
    location: pathlib.Path  # file or folder that holds the arrays
    shapes: Mapping[str, tuple[int, ...]]  # '/'-joined path -> shape
    dtypes: Mapping[str, np.dtype]  # as stored
    fetch: Callable[[str, Any], np.ndarray]  # (path, dtype) -> the array in that dtype
    ignored: Mapping[str, str]  # name in the file -> why it is not used
    cfg: variants.Pi0Config | None = None  # None: adapters alone, not a whole network
    place: resolve.Place | None = None  # where it lies; None: in memory
    num_tensors: int = 0  # as stored
    trained: "Source | None" = None  # with what a run rounded as it trained with it; None: as here
    tells_horizon: bool = True  # False: that of cfg is only what its family publishes

    def read(self, path: str, dtype: Any = None) -> np.ndarray:
        """One array, None: in the dtype it is stored in."""
        return self.fetch(path, self.dtypes[path] if dtype is None else dtype)

    @property
    def num_bytes(self) -> int:
        """Of all arrays as stored."""
        total = 0
        for path, shape in self.shapes.items():
            total += math.prod(shape) * self.dtypes[path].itemsize
        return total


def open_source(
    path: str | os.PathLike | resolve.Place,
    given: variants.Pi0Config | None = None,
    *,
    raw: bool = False,
    whole: bool = True,
) -> Source:
    """Find out what lies at `path` and check that it is a whole pi0 or pi0.5.

    path: all that resolve.find takes, or what it has found.
    given: the configuration it must agree with; it also says what tensors cannot (sizes.py).
    raw: the weights that trained instead of their moving average, where a checkpoint has both.
    whole: False also takes adapters alone.
    Raises: ValueError that says what is there instead, or lists everything that does not fit.
    """
    place = path if isinstance(path, resolve.Place) else resolve.find(pathlib.Path(path))
    location = place.weights
    with outside.named(location):
        source = dataclasses.replace(OPENERS[place.kind](location, given, raw), place=place)
        if not whole and sizes.TOKEN_EMBEDDING not in source.shapes:
            return source
        cfg = sizes.infer(source.shapes, given)
        heads = {path: shape for path, shape in source.shapes.items() if path.startswith(HEADS)}
        accounting.require_shapes(sizes.shapes_of(cfg) | heads, source.shapes, location)
    return dataclasses.replace(source, cfg=cfg)


# ---- orbax: openpi's JAX trainer, and our runs ---------------------------------------------------


def _open_openpi_jax(folder: pathlib.Path, given: variants.Pi0Config | None, raw: bool) -> Source:
    """Tree {"params": ...}; `params` is the moving average where there is one."""

    def is_parameter(keys: tuple) -> bool:
        return keys[0] == "params"

    if raw:
        training = folder.parent / "train_state"
        if not (training / "_METADATA").is_file():
            raise ValueError(
                f"the raw weights were asked for, but {training} is not there; leave --raw out"
            )
        trained = _orbax("openpi_jax", training, is_parameter)
        if trained.shapes:
            return trained
    # Without a moving average openpi's trainer keeps its weights here alone.
    return _orbax("openpi_jax", folder, is_parameter)


def _open_pirl(folder: pathlib.Path, given: variants.Pi0Config | None, raw: bool) -> Source:
    """A table of '/'-joined paths with the whole training state; `ema` averages what trains."""
    averaged = set()
    if not raw:
        paths = [keys[0] for keys in _leaves(folder)]
        averaged = {path.removeprefix("ema/") for path in paths if path.startswith("ema/")}

    def is_wanted(keys: tuple) -> bool:
        part, _, path = keys[0].partition("/")
        if part == "ema":
            return not raw
        return part == "params" and path not in averaged

    source = _orbax("pirl", folder, is_wanted)
    return _with_exact(source) if frozen.is_referenced(folder.parent) else source


def _with_exact(source: Source) -> Source:
    """What the run rounded, once more as it was: for whoever wants it in float32."""
    rounded = {path for path, dtype in source.dtypes.items() if dtype == jnp.bfloat16}
    if not rounded:
        return source

    @functools.cache
    def exact() -> Source:
        place = frozen.find(source.location.parent)
        return _orbax("pirl", place, lambda keys: keys[0].startswith("params/"))

    def fetch(path: str, dtype: Any) -> np.ndarray:
        is_enough = path not in rounded or np.dtype(dtype).itemsize <= 2
        return (source if is_enough else exact()).fetch(path, dtype)

    dtypes = {**source.dtypes, **dict.fromkeys(rounded, np.dtype(np.float32))}
    return dataclasses.replace(source, dtypes=dtypes, fetch=fetch, trained=source)


def _leaves(folder: pathlib.Path) -> dict[tuple, Any]:
    """Keys of a leaf in the stored tree -> its shape and dtype."""
    outside.require_file(folder / "_METADATA")
    with _readable(folder):
        tree = ocp.PyTreeCheckpointHandler().metadata(folder).tree
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        keys = tuple(key.key if hasattr(key, "key") else key.idx for key in path)
        leaves[keys] = leaf
    return leaves


def _orbax(format_name: str, folder: pathlib.Path, is_wanted: Callable[[tuple], bool]) -> Source:
    """The leaves whose keys are wanted."""
    leaves = {keys: leaf for keys, leaf in _leaves(folder).items() if is_wanted(keys)}
    keys_of = _our_paths(leaves)
    handler = ocp.PyTreeCheckpointHandler()

    def fetch(path: str, dtype: Any) -> np.ndarray:
        # A tree of this leaf alone, so that orbax reads nothing else.
        one_leaf: Any = 0
        restore_args: Any = ocp.RestoreArgs(restore_type=np.ndarray, dtype=dtype)
        for key in reversed(keys_of[path]):
            one_leaf = {key: one_leaf}
            restore_args = {key: restore_args}
        args = ocp.args.PyTreeRestore(
            item=one_leaf, restore_args=restore_args, partial_restore=True
        )
        with _readable(folder):
            array = jax.tree.leaves(handler.restore(folder, args=args))[0]
        found = (array.shape, array.dtype)
        if found != (tuple(leaves[keys_of[path]].shape), dtype):
            raise ValueError(f"{path} in {folder} is not as its metadata say; fetch it again")
        sound.require_finite(array, path, folder)
        return array

    dtypes = {path: np.dtype(leaves[keys].dtype) for path, keys in keys_of.items()}
    for path, stored in dtypes.items():
        sound.require_real(stored, path, folder)
    source = Source(
        format=format_name,
        location=folder,
        shapes={path: tuple(leaves[keys].shape) for path, keys in keys_of.items()},
        dtypes=dtypes,
        fetch=fetch,
        ignored={},
        num_tensors=len(leaves),
    )
    _refuse_bomb(source)
    return source


def _refuse_bomb(source: Source) -> None:
    """Orbax compresses, and what is not there is zeros: a small folder can describe any array."""
    on_disk = sum(file.stat().st_size for file in source.location.rglob("*") if file.is_file())
    if source.num_bytes > MOST_GROWTH * on_disk + FREE_GROWTH:
        raise ValueError(
            f"the arrays of {source.location} come to {source.num_bytes:,} bytes, of which "
            f"{on_disk:,} lie on the disk: it is damaged or incomplete; fetch it again"
        )


@contextlib.contextmanager
def _readable(folder: pathlib.Path) -> Iterator[None]:
    """What goes wrong in orbax and tensorstore, as a sentence with the folder."""
    _keep_quiet()
    try:
        yield
    # Theirs have no base class in common: a damaged file is a KeyError as well as a ValueError.
    except Exception as error:
        reason = outside.shown(error) or type(error).__name__
        raise ValueError(
            f"{folder} cannot be read as a checkpoint of orbax ({reason}); fetch or copy it again"
        ) from error


@functools.cache
def _keep_quiet() -> None:
    """When one array fails, orbax closes its loop and leaves the others to tensorstore's threads.

    Python would print a traceback for each of them, around the one sentence.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


def _our_paths(leaves: Iterable[tuple]) -> dict[str, tuple]:
    """Our path -> keys.  The first part of the keys ("params") is no part of our path."""
    # openpi's trainer stores the state of flax modules, whose leaves all end in "value".
    from_trainer = all(keys[-1] == "value" for keys in leaves)
    keys_of = {}
    for keys in leaves:
        parts = keys[:-1] if from_trainer else keys
        keys_of["/".join(parts).partition("/")[2]] = keys
    return keys_of


# ---- PyTorch: openpi, RLinf, LeRobot -------------------------------------------------------------


def _open_safetensors(path: pathlib.Path, given: variants.Pi0Config | None, raw: bool) -> Source:
    if path.name == resolve.INDEX:
        tensors = safetensors.read_shards(path)
    else:
        tensors = safetensors.read_folder(path) if path.is_dir() else safetensors.read(path)
    return _torch(tensors, path, given)


def _open_pt(path: pathlib.Path, given: variants.Pi0Config | None, raw: bool) -> Source:
    return _torch(pickled.read(path), path, given)


def _torch(
    tensors: Mapping[str, np.ndarray], path: pathlib.Path, given: variants.Pi0Config | None
) -> Source:
    if any(".lora_A." in name for name in tensors):
        raise ValueError(
            f"{path} holds PEFT adapters beside the weights; "
            f"merge them with PEFT (merge_and_unload) and save again"
        )
    tensors, ignored = torch_names.canonical(tensors)
    found = {name: tensor.shape for name, tensor in tensors.items()}
    # The network first: it says how axes that PyTorch merges are split.
    cfg = sizes.infer_torch(found, given)
    shapes = sizes.shapes_of(cfg) | torch_names.head_shapes(found)
    parts = torch_names.by_path(shapes)
    expected = {}
    for entries in parts.values():
        expected |= {entry.name: entry.tensor_shape for entry in entries}
    accounting.require_shapes(expected, found, path)
    for name in expected:
        sound.require_real(tensors[name].dtype, name, path)
    dtypes = {}
    for our_path, entries in parts.items():
        # Each layer is a tensor of its own there, and may have a dtype of its own.
        stored = [tensors[entry.name].dtype for entry in entries]
        dtypes[our_path] = sound.common_type(stored)

    def fetch(our_path: str, dtype: Any) -> np.ndarray:
        out = np.empty(shapes[our_path], dtype)
        for entry in parts[our_path]:
            part = torch_names.from_torch(tensors[entry.name], entry)
            torch_names.copy_into(out[entry.index], part)
            # Here, since it now lies in the cache; and after rounding, which can overflow.
            sound.require_finite(out[entry.index], entry.name, path)
        return out

    return Source(
        format="openpi_torch",
        location=path,
        shapes=shapes,
        dtypes=dtypes,
        fetch=fetch,
        ignored=ignored,
        num_tensors=len(tensors) + len(ignored),
    )


OPENERS: dict[str, Callable[[pathlib.Path, variants.Pi0Config | None, bool], Source]] = {
    "openpi_jax": _open_openpi_jax,
    "pirl": _open_pirl,
    "safetensors": _open_safetensors,
    "pt": _open_pt,
}


# ---- onto the devices ----------------------------------------------------------------------------


def load(
    source: Source,
    declared: dict,
    shardings: dict,
    key: jax.Array | None = None,
    dtype: Any = None,
) -> tuple[dict, dict[str, str]]:
    """Arrays where they shall live, one at a time -> (params, notes: path -> what became of it).

    declared, shardings: trees of Spec and of NamedSharding.
    key: adapters and heads that the checkpoint lacks start fresh from it; None: they are missing.
    dtype: of all arrays, instead of the declared ones.
    Heads that the policy does not declare stay out.  Host memory: the arrays themselves, and one of
    them once more.
    Raises: ValueError that lists everything missing, left over or of another shape.
    """
    specs = spec.flatten(declared)
    layout = spec.flatten(shardings)
    fresh, unread = _accounted(source, specs, key is not None)
    params = {}
    if fresh:
        places = spec.unflatten({path: layout[path] for path in fresh})
        params = spec.flatten(spec.init(key, spec.unflatten(fresh), places))
    for path in source.shapes:
        if path not in unread:
            array = source.read(path, specs[path].dtype if dtype is None else dtype)
            params[path] = _place(array, layout[path])
    notes = dict(source.ignored)
    notes |= dict.fromkeys(fresh, "not in the checkpoint: starts fresh")
    notes |= dict.fromkeys(unread, "not used: this policy has no such head")
    # In the order of the declaration, not of the checkpoint.
    return spec.unflatten({path: params[path] for path in specs}), notes


def require_fit(source: Source, declared: dict) -> None:
    """Before anything is read: ValueError as of `load`, where adapters and heads may start."""
    _accounted(source, spec.flatten(declared), True)


def _accounted(source: Source, specs: dict, may_start: bool) -> tuple[dict, list[str]]:
    """-> what is declared and starts fresh, paths of the source that stay out."""
    # Declared and not in the checkpoint: what training adds may start, the network may not.
    fresh = {}
    if may_start:
        fresh = {path: leaf for path, leaf in specs.items() if _lacks_optional(source, path)}
    unread = _undeclared_heads(source, specs)
    # All else must fit exactly, in both directions.
    used = {path: shape for path, shape in source.shapes.items() if path not in unread}
    expected = {path: leaf.shape for path, leaf in specs.items() if path not in fresh}
    accounting.require_shapes(expected, used, source.location, "this configuration")
    return fresh, unread


def _lacks_optional(source: Source, path: str) -> bool:
    optional = path.startswith(HEADS) or "lora_" in path
    return optional and path not in source.shapes


def _undeclared_heads(source: Source, specs: Iterable[str]) -> list[str]:
    """Paths of a source below a head of which `specs` has no path at all."""
    declared = {path.split("/")[0] for path in specs}
    heads = [path for path in source.shapes if path.startswith(HEADS)]
    return [path for path in heads if path.split("/")[0] not in declared]


def _place(array: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """Every device copies its own part: no device ever holds the whole array besides."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
