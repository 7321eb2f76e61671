"""Which start states are demonstrated: drawn, or so chosen that a few stand for all.

A policy that was shown few starts fails on those that lie outside of what it was shown, every time
that it is asked; and where it never succeeds reinforcement learning has nothing to learn from.
Refuses to know how they are demonstrated, and whose objects lie where.
"""

from collections.abc import Callable

import numpy as np

ORDERS = ("random", "covering")


def choose(
    starts_N: np.ndarray,
    count: int,
    order: str,
    generator: np.random.Generator,
    layouts: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Which `count` of N start states are demonstrated -> [count], all different.

    Args:
      order: of ORDERS.
      layouts: start states [N] -> where things lie in each of them [N,D], in any units; asked only
        where the order needs it.
    """
    places_K = generator.choice(len(starts_N), count, replace=False)
    if order == "covering":
        places_K = _representative(_distances(layouts(starts_N)), places_K)
    return starts_N[places_K]


def _distances(layouts_ND: np.ndarray) -> np.ndarray:
    """Between start states [N,N]; what varies counts alike, whatever its unit."""
    centred_ND = layouts_ND - layouts_ND.mean(0)
    spread_D = centred_ND.std(0)
    varies_D = spread_D > 1e-9 * np.maximum(1.0, np.abs(layouts_ND).max(0))
    scaled_ND = centred_ND[:, varies_D] / spread_D[varies_D]
    squares_N = (scaled_ND**2).sum(1)
    squares_NN = squares_N[:, None] + squares_N - 2 * scaled_ND @ scaled_ND.T
    return np.sqrt(np.maximum(squares_NN, 0.0))


def _representative(distances_NN: np.ndarray, chosen_K: np.ndarray) -> np.ndarray:
    """The places, exchanged one by one for as long as the energy distance to all N becomes smaller.

    Support points (Mak & Joseph, arXiv:1609.01811), taken of the N themselves.
    """
    chosen_K = chosen_K.copy()
    to_all_N = distances_NN.mean(1)
    improves = True
    while improves:
        improves = False
        for k, current in enumerate(chosen_K):
            energy_N = _energy_with_each(distances_NN, to_all_N, np.delete(chosen_K, k))
            best = int(energy_N.argmin())
            if energy_N[best] < energy_N[current] - 1e-9:
                chosen_K[k] = best
                improves = True
    return chosen_K


def _energy_with_each(
    distances_NN: np.ndarray, to_all_N: np.ndarray, others: np.ndarray
) -> np.ndarray:
    """Energy distance to all of the others and one more, for each of N, without the term that is
    the same for all; infinite for the others themselves.
    """
    count = len(others) + 1
    outside_N = 2 * (to_all_N[others].sum() + to_all_N) / count
    among_others = distances_NN[np.ix_(others, others)].sum()
    within_N = (among_others + 2 * distances_NN[others].sum(0)) / count**2
    energy_N = outside_N - within_N
    energy_N[others] = np.inf
    return energy_N
