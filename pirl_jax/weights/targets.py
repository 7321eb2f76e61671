"""Writing checkpoints that others load, one array at a time where the format allows it.

The inverse of sources.py.  Every writer takes an absent or empty folder and a Source, and returns
notes: name -> what was left out or added, and why.
"""

from collections.abc import Iterator
import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from pirl_jax.core import atomic, spec
from pirl_jax.models import variants
from pirl_jax.weights import safetensors, sizes, sources, store, torch_names


def write_openpi_torch(
    folder: pathlib.Path, source: sources.Source, heads: bool = False
) -> dict[str, str]:
    """model.safetensors and config.json, as openpi's converter writes them.

    Peak memory: the largest array.
    heads: also RLinf's value and noise head, which RLinf reads and openpi's strict loader refuses.
    Raises: ValueError for arrays without a place in PyTorch's layout.
    """
    source, notes = _without_heads(source, heads)
    parts = torch_names.by_path(source.shapes)
    # The header comes first in the file, so names, shapes and dtypes are needed before any array.
    layout = {}
    for path, entries in parts.items():
        dtype = source.dtypes[path]
        layout |= {entry.name: (entry.tensor_shape, dtype) for entry in entries}
    unused_shape = (source.cfg.vocab_size, source.cfg.expert.width)
    unused_dtype = source.dtypes[sizes.TOKEN_EMBEDDING]
    layout[torch_names.UNUSED_HEAD] = (unused_shape, unused_dtype)
    notes[torch_names.UNUSED_HEAD] = (
        "zeros: nothing reads it, but openpi's loader wants it to be there"
    )

    def arrays() -> Iterator[np.ndarray]:
        for path, entries in parts.items():
            array = source.read(path)
            for entry in entries:
                yield torch_names.to_torch(array[entry.index], entry)
        yield np.zeros(unused_shape, unused_dtype)

    folder.mkdir(parents=True, exist_ok=True)
    # Of two tied names one is stored; loaders of safetensors find the other in the metadata.
    metadata = {torch_names.EMBEDDING_ALIAS: torch_names.EMBEDDING, "format": "pt"}
    safetensors.write(folder / "model.safetensors", layout, arrays(), metadata)
    config = json.dumps(_openpi_config(source), indent=2)
    atomic.write_text(folder / "config.json", config)
    return notes


def write_openpi_jax(
    folder: pathlib.Path, source: sources.Source, heads: bool = False
) -> dict[str, str]:
    """An orbax `params` folder.  Orbax takes all arrays at once: peak memory is the checkpoint."""
    source, notes = _without_heads(source, heads)
    tree = spec.unflatten({path: source.read(path) for path in source.shapes})
    ocp.PyTreeCheckpointer().save(folder / "params", {"params": tree})
    return notes


def write_pirl(folder: pathlib.Path, source: sources.Source, heads: bool = True) -> dict[str, str]:
    """checkpoints/0 of a run directory, parameters alone: a start for training or evaluation.

    Peak memory is the checkpoint.
    """
    source, notes = _without_heads(source, heads)
    # Before there is a folder: reading may refuse.
    arrays = {path: source.read(path) for path in source.shapes}
    run = store.Store(folder / "checkpoints")
    try:
        run.save(0, {"params": arrays})
        run.wait()
    finally:
        run.close()
    return notes


def _without_heads(source: sources.Source, keep: bool) -> tuple[sources.Source, dict[str, str]]:
    """-> (what is written, notes on what is not)."""
    if keep:
        return source, {}
    dropped = [path for path in source.shapes if path.startswith(sources.HEADS)]
    shapes = {path: shape for path, shape in source.shapes.items() if path not in dropped}
    reason = "left out: openpi's networks have no such head (--heads keeps it)"
    return dataclasses.replace(source, shapes=shapes), dict.fromkeys(dropped, reason)


def _openpi_config(source: sources.Source) -> dict[str, Any]:
    cfg = source.cfg
    # openpi's names of the sizes are ours.
    names = {gemma: name for name, gemma in variants.GEMMA.items()}
    # Readers believe what stands here: what nobody knows is left out.
    horizon = {"action_horizon": cfg.action_horizon} if source.tells_horizon else {}
    return {
        "action_dim": cfg.action_dim,
        **horizon,
        "paligemma_variant": names.get(cfg.paligemma, "unknown"),
        "action_expert_variant": names.get(cfg.expert, "unknown"),
        "precision": np.dtype(source.dtypes[sizes.TOKEN_EMBEDDING]).name,
    }


def cast(source: sources.Source, dtype: Any) -> tuple[sources.Source, dict[str, float]]:
    """The checkpoint in another dtype -> (source, largest absolute rounding error of each array).

    The errors are of the arrays that were read from the returned source so far.
    """
    dtype = np.dtype(dtype)
    errors: dict[str, float] = {}

    def fetch(path: str, wanted: Any) -> np.ndarray:
        exact = source.read(path)
        rounded = exact.astype(dtype, copy=False)
        errors[path] = _largest_difference(exact, rounded)
        return rounded.astype(wanted, copy=False)

    dtypes = dict.fromkeys(source.dtypes, dtype)
    return dataclasses.replace(source, dtypes=dtypes, fetch=fetch), errors


def _largest_difference(exact: np.ndarray, rounded: np.ndarray) -> float:
    largest = []
    # By parts: the difference of a stacked array is as large as the array.
    for a, b in zip(exact, rounded, strict=True):
        difference = a.astype(np.float32) - b.astype(np.float32)
        largest.append(float(np.abs(difference).max()))
    return max(largest)


WRITERS = {"openpi_jax": write_openpi_jax, "openpi_torch": write_openpi_torch, "pirl": write_pirl}
