"""Normalisation statistics that travel with weights: where each format keeps them.

Whether they fit the robot is the business of statistics.py.
"""

import pathlib

import numpy as np

from pirl_jax.core import outside
from pirl_jax.policy import normalize
from pirl_jax.weights import safetensors

LIBERO_ID = "physical-intelligence/libero"  # openpi's name of the data set, part of the path

# Folder that holds arrays -> how many folders above it may hold the statistics.  state/ and params/
# lie in a step folder, our steps two below the run, RLinf's weights two below theirs.
LEVELS_ABOVE = {"state": 3, "params": 1, "train_state": 1, "model_state_dict": 2}
PATTERNS = (
    "assets/**/norm_stats.json",
    "*/norm_stats.json",
    "*/*/norm_stats.json",
    "norm_stats.json",
)
# Format -> where its readers look, from the folder of the weights; {} is the id of the data set.
PLACES = {
    "pirl": ("assets",),
    "openpi_jax": ("assets/{}",),
    "openpi_torch": ("assets/{}", "{}"),  # RLinf looks beside its PyTorch weights
}
# Names of LeRobot's first releases, whose models held the statistics -> those of its processors.
LEROBOT_BUFFERS = {
    "normalize_inputs.buffer_observation_state.": "observation.state.",
    "unnormalize_outputs.buffer_action.": "action.",
}


def find(location: pathlib.Path, asset_id: str = "") -> tuple[normalize.NormStats, str] | None:
    """Statistics near weights -> (statistics, where they lay), or None.

    location: Source.location.  Looks in assets/<id>/ (openpi), assets/ (ours), <id>/ (RLinf) beside
      or above the weights, then into the processors of LeRobot.
    asset_id: part of the folder's name, to choose where there are several.
    Raises: ValueError where several lie there and differ.
    """
    nearest = location if location.is_dir() else location.parent
    above = nearest.parents[: LEVELS_ABOVE.get(nearest.name, 0)]
    for folder in (nearest, *above):
        path = _find_file(folder, asset_id)
        if path is not None:
            return normalize.load(path), str(path)
    return _find_lerobot(nearest)


def _find_file(folder: pathlib.Path, asset_id: str) -> pathlib.Path | None:
    files: set[pathlib.Path] = set()
    for pattern in PATTERNS:
        files.update(folder.glob(pattern))
    paths = sorted(path for path in files if asset_id in path.parent.as_posix())
    # Copies are no choice: openpi_torch alone has two of them.
    if len({outside.read_text(path) for path in paths}) > 1:
        names = ", ".join(path.relative_to(folder).as_posix() for path in paths)
        raise ValueError(
            f"{folder} has statistics of several data sets ({names}); choose one with --asset-id"
        )
    return paths[0] if paths else None


def _find_lerobot(folder: pathlib.Path) -> tuple[normalize.NormStats, str] | None:
    """LeRobot keeps "observation.state.mean" and so on as tensors of its processors."""
    files = sorted(folder.glob("policy_*processor*.safetensors"))
    if not files:
        # The first releases.
        files = sorted(folder.glob("model.safetensors"))
    tensors = {}
    for path in files:
        for name, tensor in safetensors.read(path).items():
            for old, new in LEROBOT_BUFFERS.items():
                name = name.replace(old, new)
            quantity, _, field = name.rpartition(".")
            if quantity in ("observation.state", "action") and field in normalize.FIELDS:
                tensors[name] = _vector(tensor)
    needed = {"observation.state.mean", "observation.state.std", "action.mean", "action.std"}
    if not needed <= tensors.keys():
        return None
    where = ", ".join(str(path) for path in files)
    stats = normalize.NormStats(
        state=_lerobot_stats(tensors, "observation.state", where),
        actions=_lerobot_stats(tensors, "action", where),
    )
    return stats, where


def _vector(tensor: np.ndarray) -> np.ndarray:
    """Float64; axes of size 1 are no second axis.  What is too large is left to be refused."""
    if tensor.size > normalize.MOST_DIMS:
        return tensor
    squeezed = tensor.reshape(-1) if tensor.size == max(tensor.shape, default=1) else tensor
    return np.asarray(squeezed, np.float64)


def _lerobot_stats(tensors: dict[str, np.ndarray], quantity: str, where: str) -> normalize.Stats:
    arrays = {}
    for field in normalize.FIELDS:
        if f"{quantity}.{field}" in tensors:
            arrays[field] = tensors[f"{quantity}.{field}"]
    return normalize.from_vectors(arrays, quantity, where)


def save(
    folder: pathlib.Path, stats: normalize.NormStats, target: str, asset_id: str = ""
) -> list[pathlib.Path]:
    """Write them where the readers of a format look -> the files.

    target: key of PLACES.  asset_id: name of the data set, "" is LIBERO's.
    """
    paths = []
    for place in PLACES[target]:
        path = folder / place.format(asset_id or LIBERO_ID) / "norm_stats.json"
        normalize.save(path, stats)
        paths.append(path)
    return paths
