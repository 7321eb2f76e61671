"""Writing checkpoints that others load, one array at a time where the format allows it.  The inverse of sources.py.

Every writer takes a Source and an absent or empty folder, and returns notes: name -> what was left out or added, why.
"""

import dataclasses
import json
import pathlib

import numpy as np
import orbax.checkpoint as ocp

from pirl_jax.core import spec
from pirl_jax.models import variants
from pirl_jax.weights import safetensors, sources, store, torch_names


def write_openpi_torch(
    folder: pathlib.Path, source: sources.Source, heads: bool = False
) -> dict[str, str]:
    """model.safetensors and config.json, as openpi's converter writes them.  Peak memory: the largest array.

    heads: also RLinf's value and noise head, which RLinf reads and openpi's strict loader refuses.
    """
    source, notes = _without_heads(source, heads)
    parts = torch_names.by_path(source.shapes)
    layout = {
        entry.name: (entry.shape, source.dtypes[path])
        for path, entries in parts.items()
        for entry in entries
    }
    unused = (
        (source.cfg.vocab_size, source.cfg.expert.width),
        source.dtypes["PaliGemma/llm/embedder/input_embedding"],
    )
    layout[torch_names.UNUSED_HEAD] = unused
    notes[torch_names.UNUSED_HEAD] = (
        "zeros: nothing reads it, but openpi's loader wants it to be there"
    )

    def arrays():
        for path, entries in parts.items():
            array = source.read(path)
            for entry in entries:
                yield torch_names.to_torch(array[entry.index], entry)
        yield np.zeros(*unused)

    folder.mkdir(parents=True, exist_ok=True)
    alias = {torch_names.EMBEDDING_ALIAS: torch_names.EMBEDDING}
    safetensors.write(folder / "model.safetensors", layout, arrays(), alias | {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_openpi_config(source), indent=2))
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
    """checkpoints/0 of a run directory, parameters alone: a start for training or evaluation.  Peak memory as above."""
    source, notes = _without_heads(source, heads)
    run = store.Store(folder / "checkpoints")
    run.save(0, {"params": {path: source.read(path) for path in source.shapes}})
    run.close()
    return notes


def _without_heads(source, heads) -> tuple[sources.Source, dict]:
    dropped = [path for path in source.shapes if path.startswith(sources.HEADS) and not heads]
    shapes = {path: shape for path, shape in source.shapes.items() if path not in dropped}
    reason = "left out: openpi's networks have no such head (--heads keeps it)"
    return dataclasses.replace(source, shapes=shapes), dict.fromkeys(dropped, reason)


def _openpi_config(source) -> dict:
    names = {cfg: name for name, cfg in variants.GEMMA.items()}
    return {
        "action_dim": source.cfg.action_dim,
        "action_horizon": source.cfg.action_horizon,
        "paligemma_variant": names.get(source.cfg.paligemma, "unknown"),
        "action_expert_variant": names.get(source.cfg.expert, "unknown"),
        "precision": np.dtype(source.dtypes["PaliGemma/llm/embedder/input_embedding"]).name,
    }


def cast(source: sources.Source, dtype) -> tuple[sources.Source, dict[str, float]]:
    """The checkpoint in another dtype -> (source, largest absolute rounding error of each array that was read)."""
    errors: dict[str, float] = {}
    dtype = np.dtype(dtype)

    def fetch(path, wanted):
        exact = source.read(path)
        rounded = exact.astype(dtype, copy=False)
        parts = zip(
            exact, rounded, strict=True
        )  # by parts: the difference of a stacked array is as large as the array
        errors[path] = max(
            float(np.abs(a.astype(np.float32) - b.astype(np.float32)).max()) for a, b in parts
        )
        return rounded.astype(wanted, copy=False)

    return dataclasses.replace(
        source, dtypes=dict.fromkeys(source.dtypes, dtype), fetch=fetch
    ), errors


WRITERS = {"openpi_jax": write_openpi_jax, "openpi_torch": write_openpi_torch, "pirl": write_pirl}
