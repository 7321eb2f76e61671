"""LeRobot's files beside its weights: configuration, processors and their statistics.

    config.json                                   the policy: type, sizes, features, normalisation
    train_config.json                             the same under "policy", with the data set
    policy_preprocessor.json, policy_postprocessor.json    steps, each with a name and a state_file
    policy_*processor_step_*.safetensors          "observation.state.mean" and so on

Of the first releases the model itself holds the statistics.  Knows no network.
"""

from collections.abc import Iterator
import pathlib
from typing import Any

import numpy as np

from pirl_jax.core import outside
from pirl_jax.policy import normalize
from pirl_jax.weights import safetensors

CONFIG = "config.json"
TRAIN_CONFIG = "train_config.json"
PROCESSORS = ("policy_preprocessor.json", "policy_postprocessor.json")
QUANTITIES = ("observation.state", "action")
# Names of the first releases, whose models held the statistics -> those of the processors.
BUFFERS = {
    "normalize_inputs.buffer_observation_state.": "observation.state.",
    "unnormalize_outputs.buffer_action.": "action.",
}
REMEDY = "fetch the file again from where the checkpoint is from"


def steps(folder: pathlib.Path) -> Iterator[tuple[pathlib.Path, dict]]:
    """Steps of both processors -> (file, step), in their order; none where there are no files.

    Raises: ValueError for a file that holds none.
    """
    for name in PROCESSORS:
        path = folder / name
        if not path.is_file():
            continue
        tree = outside.read_json(path, remedy=REMEDY)
        for step in outside.part(tree, "steps", list, path, REMEDY):
            yield path, outside.part(step, "", dict, f"a step of {path}", REMEDY)


def statistics(folder: pathlib.Path) -> tuple[normalize.NormStats, str] | None:
    """Those of the processors -> (statistics, where they lie), or None.

    Raises: ValueError where they are no vectors, or two files differ.
    """
    return _of_files(_state_files(folder))


def first_statistics(folder: pathlib.Path) -> tuple[normalize.NormStats, str] | None:
    """As `statistics`, of the first releases."""
    return _of_files(sorted(folder.glob("model.safetensors")))


def _of_files(files: list[pathlib.Path]) -> tuple[normalize.NormStats, str] | None:
    tensors = {}
    origin = {}
    for path in files:
        for name, tensor in safetensors.read(path).items():
            for old, new in BUFFERS.items():
                name = name.replace(old, new)
            quantity, _, field = name.rpartition(".")
            if quantity not in QUANTITIES or field not in normalize.FIELDS:
                continue
            vector = _vector(tensor)
            if name in tensors and not np.array_equal(tensors[name], vector):
                raise ValueError(
                    f"{name} in {path} is another than in {origin[name]}; {normalize.REMEDY}"
                )
            tensors[name] = vector
            origin[name] = path
    if {name.rpartition(".")[0] for name in tensors} != set(QUANTITIES):
        return None
    where = ", ".join(str(path) for path in files)
    state, actions = (_stats(tensors, quantity, where) for quantity in QUANTITIES)
    return normalize.NormStats(state=state, actions=actions), where


def _state_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """That the steps name; where no steps are listed, by their names."""
    listed = any((folder / name).is_file() for name in PROCESSORS)
    if not listed:
        return sorted(folder.glob("policy_*processor*.safetensors"))
    found = []
    for path, step in steps(folder):
        name = step.get("state_file")
        if name is None:
            continue
        if not isinstance(name, str) or "/" in name or not name.endswith(".safetensors"):
            raise ValueError(
                f"{path} names the state file {outside.shown(name)}, which is no file beside it; "
                f"{REMEDY}"
            )
        if not (folder / name).is_file():
            raise ValueError(f"{path} names {name}, which {folder} lacks; fetch it too")
        found.append(folder / name)
    return found


def _vector(tensor: np.ndarray) -> np.ndarray:
    """Float64; axes of size 1 are no second axis.  What is too large is left to be refused."""
    if tensor.size > normalize.MOST_DIMS:
        return tensor
    squeezed = tensor.reshape(-1) if tensor.size == max(tensor.shape, default=1) else tensor
    return np.asarray(squeezed, np.float64)


def _stats(tensors: dict[str, np.ndarray], quantity: str, where: Any) -> normalize.Stats:
    arrays = {}
    for field in normalize.FIELDS:
        if f"{quantity}.{field}" in tensors:
            arrays[field] = tensors[f"{quantity}.{field}"]
    return normalize.from_vectors(arrays, quantity, where)
