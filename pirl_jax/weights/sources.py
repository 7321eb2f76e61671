"""Checkpoints of every format as one thing: arrays under our paths, with shapes, read one at a time.

Opening reads headers only.  Every tensor of a file is used exactly once or listed in `ignored` with the reason;
whatever is missing, left over or of another shape ends in one error that names all of it.
"""

from collections.abc import Callable, Mapping
import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from pirl_jax.core import spec
from pirl_jax.models import pi0, variants
from pirl_jax.weights import pickled, safetensors, sizes, torch_names

PEFT = ("adapter_model.", "adapter_config.json")  # how the names of its files begin
HEADS = (
    "value_head/",
    "noise_head/",
)  # what reinforcement learning adds; no part of openpi's networks


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint that has been looked at but not read."""

    format: str  # openpi_jax | openpi_torch | pirl
    location: pathlib.Path  # file or folder that holds the arrays
    shapes: Mapping[str, tuple]  # '/'-joined path -> shape
    dtypes: Mapping[str, np.dtype]  # as stored
    fetch: Callable[[str, Any], np.ndarray]  # (path, dtype) -> the array in that dtype
    ignored: Mapping[str, str]  # name in the file -> why it is not used
    cfg: variants.Pi0Config | None = None  # None: adapters alone, not a whole network

    def read(self, path: str, dtype=None) -> np.ndarray:
        return self.fetch(path, self.dtypes[path] if dtype is None else dtype)

    @property
    def num_bytes(self) -> int:
        return sum(
            int(np.prod(shape)) * self.dtypes[path].itemsize for path, shape in self.shapes.items()
        )


def open_source(
    path, given: variants.Pi0Config | None = None, *, raw: bool = False, whole: bool = True
) -> Source:
    """Find out what lies at `path` and check that it is a whole pi0 or pi0.5.

    path: a run of ours; a step or `params` folder of openpi's JAX trainer; a folder with safetensors files (openpi,
      RLinf, LeRobot) or such a file; a folder of RLinf's trainer or its full_weights.pt.
    given: the configuration it must agree with; it also says what tensors cannot (sizes.py).
    raw: the weights that trained instead of their moving average, where a checkpoint has both.
    whole: False also takes adapters alone.
    """
    path = pathlib.Path(path).absolute()
    if not path.exists():
        steps = sorted(int(step.name) for step in _steps(path.parent))
        if steps and path.name.isdecimal():
            raise ValueError(
                f"{path.parent} holds no checkpoint of iteration {path.name}; it holds {steps}"
            )
        raise ValueError(
            f"there is no checkpoint at {path}; give a run directory, or a checkpoint of openpi, RLinf or LeRobot"
        )
    kind, location = _locate(path, raw)
    source = OPENERS[kind](location, given, raw)
    if not whole and "PaliGemma/llm/embedder/input_embedding" not in source.shapes:
        return source
    cfg = sizes.infer(source.shapes, given)
    network = {path: leaf.shape for path, leaf in spec.flatten(pi0.specs(cfg)).items()}
    heads = {path: shape for path, shape in source.shapes.items() if path.startswith(HEADS)}
    account(network | heads, source.shapes, location)
    return dataclasses.replace(source, cfg=cfg)


def account(
    expected: Mapping[str, tuple], found: Mapping[str, tuple], where, what: str = "the network"
) -> None:
    """Raise one ValueError that lists everything missing, left over or of another shape."""
    lines = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    lines += [f"{name} is left over" for name in sorted(found.keys() - expected.keys())]
    lines += [
        f"{name} is {list(found[name])} and should be {list(expected[name])}"
        for name in sorted(expected.keys() & found.keys())
        if tuple(expected[name]) != tuple(found[name])
    ]
    if lines:
        raise ValueError(
            f"{where} does not fit {what} ({len(lines)} of {len(expected)} arrays): {'; '.join(lines)}"
        )


# ---- where things lie ------------------------------------------------------------------------------------------------


def _locate(path: pathlib.Path, raw: bool) -> tuple[str, pathlib.Path]:
    """-> (key of OPENERS, folder or file with the arrays)."""
    if path.name.startswith(PEFT) or any(
        child.name.startswith(PEFT) for child in path.glob("adapter_*")
    ):
        raise ValueError(
            f"{path} holds adapters of PEFT, without which the weights beside them are another policy; load base and adapters "
            f"with PEFT, call merge_and_unload, save the result as model.safetensors and give its folder"
        )
    if path.suffix in (".safetensors", ".pt"):
        return path.suffix[1:], path
    for weights in (
        "full_weights.pt",
        "model_state_dict/full_weights.pt",
        "actor/model_state_dict/full_weights.pt",
    ):
        if (path / weights).is_file():
            return "pt", path / weights
    if (path / "model.safetensors.index.json").is_file() or any(path.glob("model*.safetensors")):
        return "safetensors", path
    for folder in (path, path / "checkpoints", *_steps(path), *_steps(path / "checkpoints")):
        if (folder / "state" / "_METADATA").is_file():
            return "pirl", folder / "state"
        if (folder / "params" / "_METADATA").is_file():
            return "openpi_jax", folder / "params"
        if folder.name == "params" and (folder / "_METADATA").is_file():
            return "openpi_jax", folder
    raise ValueError(
        f"{path} holds no checkpoint that is known: neither checkpoints/N/state (a run of ours), params/_METADATA "
        f"(openpi's JAX trainer), model.safetensors or its index (openpi, RLinf, LeRobot), nor full_weights.pt (RLinf)"
    )


def _steps(path: pathlib.Path) -> list[pathlib.Path]:
    """Numbered folders, newest first."""
    steps = [child for child in path.glob("*") if child.name.isdecimal()]
    return sorted(steps, key=lambda child: int(child.name), reverse=True)


# ---- formats ---------------------------------------------------------------------------------------------------------


def _open_openpi_jax(folder, given, raw) -> Source:
    """Tree {"params": ...}; the trainer's leaves end in "value".  `params` is the moving average where there is one."""
    if raw:
        training = folder.parent / "train_state"
        if not (training / "_METADATA").is_file():
            raise ValueError(
                f"the raw weights were asked for, but {training} is not there; leave --raw out"
            )
        trained = _orbax(training, lambda keys: keys[0] == "params")
        if trained.shapes:
            return dataclasses.replace(trained, format="openpi_jax")
    return dataclasses.replace(
        _orbax(folder, lambda keys: keys[0] == "params"), format="openpi_jax"
    )


def _open_pirl(folder, given, raw) -> Source:
    """A table of '/'-joined paths with the whole training state; `ema` holds the averages of what trains."""
    names = _names(folder)
    average = (
        {keys[0].removeprefix("ema/") for keys in names if keys[0].startswith("ema/")}
        if not raw
        else set()
    )

    def wanted(keys):
        part, _, path = keys[0].partition("/")
        return (part == "ema" and not raw) or (part == "params" and path not in average)

    return dataclasses.replace(_orbax(folder, wanted), format="pirl")


def _names(folder) -> dict:
    leaves = jax.tree_util.tree_leaves_with_path(
        ocp.PyTreeCheckpointHandler().metadata(folder).tree
    )
    return {
        tuple(key.key if hasattr(key, "key") else key.idx for key in path): leaf
        for path, leaf in leaves
    }


def _orbax(folder, wanted) -> Source:
    """The wanted leaves.  The first part of their names ("params") and a last part "value" are no part of our path."""
    leaves = {keys: leaf for keys, leaf in _names(folder).items() if wanted(keys)}
    stated = all(keys[-1] == "value" for keys in leaves)
    keys_of = {"/".join(keys[: -1 if stated else None]).partition("/")[2]: keys for keys in leaves}
    kinds = {path: leaves[keys] for path, keys in keys_of.items()}
    handler = ocp.PyTreeCheckpointHandler()

    def fetch(path, dtype):
        tree: Any = 0
        for key in reversed(keys_of[path]):
            tree = {key: tree}
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray, dtype=dtype), tree)
        restored = handler.restore(
            folder, args=ocp.args.PyTreeRestore(item=tree, restore_args=args, partial_restore=True)
        )
        return jax.tree.leaves(restored)[0]

    return Source(
        "",
        folder,
        {path: tuple(leaf.shape) for path, leaf in kinds.items()},
        {path: np.dtype(leaf.dtype) for path, leaf in kinds.items()},
        fetch,
        {},
    )


def _open_safetensors(path, given, raw) -> Source:
    return _torch(
        safetensors.read_folder(path) if path.is_dir() else safetensors.read(path), path, given
    )


def _open_pt(path, given, raw) -> Source:
    return _torch(pickled.read(path), path, given)


def _torch(tensors, path, given) -> Source:
    if any(".lora_A." in name for name in tensors):
        raise ValueError(
            f"{path} holds PEFT adapters beside the weights; merge them with PEFT (merge_and_unload) and save again"
        )
    tensors, ignored = torch_names.canonical(tensors)
    found = {name: tensor.shape for name, tensor in tensors.items()}
    cfg = sizes.split_heads(found, given)
    network = {path: leaf.shape for path, leaf in spec.flatten(pi0.specs(cfg)).items()}
    shapes = network | torch_names.head_shapes(found)
    parts = torch_names.by_path(shapes)
    account(
        {entry.name: entry.shape for entries in parts.values() for entry in entries}, found, path
    )
    dtypes = {
        path: np.result_type(*(tensors[entry.name].dtype for entry in entries))
        for path, entries in parts.items()
    }

    def fetch(path, dtype):
        out = np.empty(shapes[path], dtype)
        for entry in parts[path]:
            torch_names.copy_into(
                out[entry.index], torch_names.from_torch(tensors[entry.name], entry)
            )
        return out

    return Source("openpi_torch", path, shapes, dtypes, fetch, ignored)


OPENERS = {
    "openpi_jax": _open_openpi_jax,
    "pirl": _open_pirl,
    "safetensors": _open_safetensors,
    "pt": _open_pt,
}


# ---- onto the devices ------------------------------------------------------------------------------------------------


def load(
    source: Source, declared: dict, shardings: dict, key: jax.Array | None = None, dtype=None
) -> tuple[dict, dict]:
    """Arrays where they shall live, one at a time -> (params, notes: path -> what was done about it).

    declared, shardings: trees of Spec and of NamedSharding.  Adapters and heads that the checkpoint lacks start fresh
    from `key` (without one they are missing); heads that the policy does not declare stay out.  dtype: instead of the
    declared ones.  Host memory: the arrays themselves, and one of them once more.
    """
    specs, layout = spec.flatten(declared), spec.flatten(shardings)
    fresh = {
        path: leaf
        for path, leaf in specs.items()
        if path not in source.shapes and _optional(path) and key is not None
    }
    declared_heads = tuple(head for head in HEADS if any(path.startswith(head) for path in specs))
    unread = [
        path
        for path in source.shapes
        if path.startswith(HEADS) and not path.startswith(declared_heads)
    ]
    used = {path: shape for path, shape in source.shapes.items() if path not in unread}
    account(
        {path: leaf.shape for path, leaf in specs.items() if path not in fresh},
        used,
        source.location,
        "this configuration",
    )
    started = (
        spec.init(
            key, spec.unflatten(fresh), spec.unflatten({path: layout[path] for path in fresh})
        )
        if fresh
        else {}
    )
    params = spec.flatten(started)
    for path in used:
        params[path] = _place(source.read(path, dtype or specs[path].dtype), layout[path])
    notes = dict(source.ignored) | {path: "not in the checkpoint: starts fresh" for path in fresh}
    notes |= {path: "not used: this policy has no such head" for path in unread}
    return spec.unflatten({path: params[path] for path in specs}), notes


def _optional(path: str) -> bool:
    return path.startswith(HEADS) or "lora_" in path


def _place(array: np.ndarray, sharding) -> jax.Array:
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
