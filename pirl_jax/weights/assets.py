"""Normalisation statistics that travel with weights: where each format keeps them, whether and how well they fit."""

import pathlib

import numpy as np

from pirl_jax.policy import normalize
from pirl_jax.weights import safetensors

LIBERO_ID = "physical-intelligence/libero"  # openpi's name of the data set, part of the path
NEAR_CONSTANT = (
    1e-4  # in robot units (m, rad): a dimension that moves less is scaled up by more than 10,000
)


def find(location: pathlib.Path, asset_id: str = "") -> tuple[normalize.NormStats, str] | None:
    """Statistics near weights -> (statistics, where they lay), or None.

    location: Source.location.  Looks in assets/<id>/ (openpi), assets/ (ours), <id>/ (RLinf) beside or above the
    weights, then into the processors of LeRobot.  asset_id chooses where there are several.
    """
    folders = [location if location.is_dir() else location.parent]
    # state/ and params/ lie in a step folder, our steps two below the run, RLinf's weights two below theirs.
    folders += list(folders[0].parents)[
        : {"state": 3, "params": 1, "train_state": 1, "model_state_dict": 2}.get(folders[0].name, 0)
    ]
    for folder in folders:
        files = sorted(
            {
                *folder.glob("assets/**/norm_stats.json"),
                *folder.glob("*/norm_stats.json"),
                *folder.glob("*/*/norm_stats.json"),
                *folder.glob("norm_stats.json"),
            }
        )
        if asset_id:
            files = [path for path in files if asset_id in path.parent.as_posix()]
        contents = {path.read_text() for path in files}
        if len(contents) > 1:
            names = ", ".join(path.relative_to(folder).as_posix() for path in files)
            raise ValueError(
                f"{folder} has statistics of several data sets ({names}); choose one with --asset-id"
            )
        if files:
            return normalize.load(files[0]), str(files[0])
    return _lerobot(folders[0])


def _lerobot(folder) -> tuple[normalize.NormStats, str] | None:
    """LeRobot keeps "observation.state.mean" and so on as tensors of its processors, formerly of the model."""
    files = sorted(folder.glob("policy_*processor*.safetensors")) or sorted(
        folder.glob("model.safetensors")
    )
    tensors = {}
    for path in files:
        for name, value in safetensors.read(path).items():
            for old, new in _LEROBOT_BUFFERS.items():
                name = name.replace(old, new)
            if name.startswith(("observation.state.", "action.")):
                tensors[name] = np.asarray(value, np.float64).reshape(-1)

    def stats(name):
        return normalize.Stats(
            *(tensors.get(f"{name}.{field}") for field in ("mean", "std", "q01", "q99"))
        )

    if (
        not {"observation.state.mean", "observation.state.std", "action.mean", "action.std"}
        <= tensors.keys()
    ):
        return None
    return normalize.NormStats(stats("observation.state"), stats("action")), ", ".join(
        str(path) for path in files
    )


_LEROBOT_BUFFERS = {
    "normalize_inputs.buffer_observation_state.": "observation.state.",
    "unnormalize_outputs.buffer_action.": "action.",
}


def save(
    folder: pathlib.Path, stats: normalize.NormStats, target: str, asset_id: str = ""
) -> list[pathlib.Path]:
    """Write them where the readers of a format look: openpi below assets/, RLinf beside its PyTorch weights."""
    asset_id = asset_id or LIBERO_ID
    places = {
        "pirl": ["assets"],
        "openpi_jax": [f"assets/{asset_id}"],
        "openpi_torch": [f"assets/{asset_id}", asset_id],
    }[target]
    paths = [folder / place / "norm_stats.json" for place in places]
    for path in paths:
        normalize.save(path, stats)
    return paths


def check(stats: normalize.NormStats, mode: str, state_dim: int = 8, action_dim: int = 7) -> None:
    """ValueError where statistics cannot belong to this robot or this way to normalise."""
    wrong = []
    for name, of, dim in (
        ("state", stats.state, state_dim),
        ("actions", stats.actions, action_dim),
    ):
        fields = ("mean", "std") if mode == "zscore" else ("q01", "q99")
        values = {field: getattr(of, field) for field in fields}
        absent = [field for field, value in values.items() if value is None]
        wrong += [f"{name} has no {' and '.join(absent)}, which norm_mode={mode!r} needs"] * bool(
            absent
        )
        given = {field: value for field, value in values.items() if value is not None}
        # openpi's statistics may be padded to the model's 32 dims; fewer than the robot's is another robot.
        wrong += [
            f"{name}.{field} has {len(value)} dims and the robot has {dim}"
            for field, value in given.items()
            if len(value) < dim
        ]
        wrong += [
            f"{name}.{field} is not finite"
            for field, value in given.items()
            if not np.isfinite(value).all()
        ]
        if mode == "zscore" and "std" in given and (given["std"] < 0).any():
            wrong.append(f"{name}.std is negative")
        if mode == "quantile" and not absent and (given["q99"] < given["q01"]).any():
            wrong.append(f"{name}.q99 lies below q01")
    if wrong:
        raise ValueError(
            f"the normalisation statistics do not fit: {'; '.join(wrong)}; give those of the checkpoint's data set"
        )


def report(stats: normalize.NormStats, mode: str, state_BS: np.ndarray) -> str:
    """Lines for the start of a run: dims, dims that hardly move, share of the states (raw units) outside q01 to q99.

    Of the training data 2 % lie outside; far more means statistics of another robot or other units.
    """
    check(stats, mode, state_dim=state_BS.shape[-1])
    lines = [
        f"norm stats: {mode}, state {len(stats.state.mean)} dims, actions {len(stats.actions.mean)} dims"
    ]
    for name, of in (("state", stats.state), ("actions", stats.actions)):
        spread = of.std if mode == "zscore" else of.q99 - of.q01
        still = np.flatnonzero(spread < NEAR_CONSTANT).tolist()
        lines += [
            f"norm stats: {name} dims {still} hardly move (spread below {NEAR_CONSTANT:g}): small noise becomes large"
        ] * bool(still)
    if stats.state.q01 is not None and stats.state.q99 is not None:
        dim = state_BS.shape[-1]
        outside_BS = (state_BS < stats.state.q01[:dim]) | (state_BS > stats.state.q99[:dim])
        by_dim = ", ".join(f"{share:.0%}" for share in outside_BS.reshape(-1, dim).mean(0))
        lines.append(
            f"norm stats: {outside_BS.mean():.1%} of {outside_BS.size} state values lie outside q01..q99 "
            f"(by dim: {by_dim})"
        )
    return "\n".join(lines)
