"""Whether normalisation statistics fit a robot, a way to normalise, and the states that arrive.

Weights and statistics come from different hands: a wrong pair runs without an error, and fails
every task.  Knows no file.
"""

from collections.abc import Iterator

import numpy as np

from pirl_jax.policy import normalize

# Spread in robot units (m, rad): a dimension that moves less is scaled up by more than 10,000.
NEAR_CONSTANT = 1e-4
# How far outside a first state may lie, of the range between its quantiles: a robot starts at an
# edge of what it does, and 1 % of what was demonstrated lies beyond each end.
FAR = 1.0
PADDED = 32  # dims of the published models


def check(stats: normalize.NormStats, mode: str, state_dim: int = 8, action_dim: int = 7) -> None:
    """The robot's dims (LIBERO's by default), and `mode` of normalize.MODES.

    Raises: one ValueError with everything that cannot belong to them.
    """
    problems = [
        *_problems("state", stats.state, mode, state_dim),
        *_problems("actions", stats.actions, mode, action_dim),
    ]
    if problems:
        raise ValueError(
            f"the normalisation statistics do not fit: {'; '.join(problems)}; "
            f"give those of the checkpoint's data set"
        )


def _problems(name: str, stats: normalize.Stats, mode: str, dim: int) -> Iterator[str]:
    fields = ("mean", "std") if mode == "zscore" else ("q01", "q99")
    absent = [field for field in fields if getattr(stats, field) is None]
    if absent:
        yield f"{name} has no {' and '.join(absent)}, which norm_mode={mode!r} needs"
    given = {field: getattr(stats, field) for field in fields if field not in absent}
    for field, values in given.items():
        if not _fits(stats, field, dim):
            yield f"{name}.{field} has {len(values)} dims and the robot has {dim}"
    for field, values in given.items():
        if not np.isfinite(values).all():
            yield f"{name}.{field} is not finite"
    if mode == "zscore" and "std" in given and (given["std"] < 0).any():
        yield f"{name}.std is negative"
    if mode == "quantile" and not absent and (given["q99"] < given["q01"]).any():
        yield f"{name}.q99 lies below q01"


def _fits(stats: normalize.Stats, field: str, dim: int) -> bool:
    """openpi's may be padded to the model's dims; any other length is another robot's."""
    length = len(getattr(stats, field))
    if length == dim or length == PADDED > dim:
        return True
    # Dims that never moved are padding, too.
    spread = stats.std if field in ("mean", "std") else stats.q99 - stats.q01
    return length > dim and not np.any(spread[dim:])


def report(stats: normalize.NormStats, mode: str, state_BQ: np.ndarray) -> str:
    """Lines for the start of a run.

    state_BQ: float, states as the robot gives them, in raw units.
    Says dims, dims that hardly move, and the share of the states outside q01 to q99.  Of the
    training data 2 % lie outside; what lies far outside means another robot or other units.
    Raises: ValueError as `check`.
    """
    check(stats, mode, state_dim=state_BQ.shape[-1])
    lines = [
        f"norm stats: {mode}, state {stats.state.dims} dims, actions {stats.actions.dims} dims"
    ]
    lines += _near_constant("state", stats.state, mode)
    lines += _near_constant("actions", stats.actions, mode)
    if stats.state.q01 is not None and stats.state.q99 is not None:
        lines += _outside(stats.state, state_BQ)
    return "\n".join(lines)


def _near_constant(name: str, stats: normalize.Stats, mode: str) -> list[str]:
    spread = stats.std if mode == "zscore" else stats.q99 - stats.q01
    dims = np.flatnonzero(spread < NEAR_CONSTANT).tolist()
    if not dims:
        return []
    return [
        f"norm stats: {name} dims {dims} hardly move (spread below {NEAR_CONSTANT:g}): "
        f"small noise becomes large"
    ]


def _outside(stats: normalize.Stats, state_BQ: np.ndarray) -> Iterator[str]:
    """How many, how far, and whether that is a fault."""
    dim = state_BQ.shape[-1]
    q01 = stats.q01[:dim]
    q99 = stats.q99[:dim]
    outside_BS = (state_BQ < q01) | (state_BQ > q99)
    by_dim = ", ".join(f"{share:.0%}" for share in outside_BS.reshape(-1, dim).mean(0))
    yield (
        f"norm stats: {outside_BS.mean():.1%} of {outside_BS.size} state values "
        f"lie outside q01..q99 (by dim: {by_dim})"
    )
    moves = q99 - q01 >= NEAR_CONSTANT  # of the others a line says so
    beyond_BS = np.maximum(q01 - state_BQ, state_BQ - q99)[..., moves]
    furthest = (beyond_BS / (q99 - q01)[moves]).max(initial=0.0)
    if furthest > FAR:
        yield (
            f"norm stats: the furthest lies {furthest:.1f} of these ranges away: are they of this"
            f" robot, and in its units?"
        )
    elif furthest > 0:
        yield (
            f"norm stats: the furthest lies {furthest:.2f} of its range away, which is no fault:"
            f" these are the first states of episodes, where whole dimensions begin at an edge"
        )
