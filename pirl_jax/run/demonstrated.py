"""Which start states are demonstrated: drawn, or so chosen that a few stand for all.

A policy that was shown few starts fails on those that lie outside of what it was shown, every time
that it is asked; and where it never succeeds reinforcement learning has nothing to learn from.
Refuses to know how they are demonstrated, and whose objects lie where.
"""

import numpy as np

ORDERS = ("random", "covering")


def choose(
    layouts_ND: np.ndarray, count: int, order: str, generator: np.random.Generator
) -> np.ndarray:
    """Which `count` of N start states are demonstrated -> their places [count], all different.

    Args:
      layouts_ND: where things lie in each of them, in any units.
      order: of ORDERS.
    """
    drawn = generator.choice(len(layouts_ND), count, replace=False)
    if order == "random":
        return drawn
    return _representative(_distances(layouts_ND), drawn)


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
    count = len(chosen_K)
    to_all_N = distances_NN.mean(1)
    least = _energy(distances_NN, to_all_N, chosen_K)
    improves = True
    while improves:
        improves = False
        for k in range(count):
            others = np.delete(chosen_K, k)
            energy_N = _energy_with_each(distances_NN, to_all_N, others)
            best = int(energy_N.argmin())
            if energy_N[best] < least - 1e-9:
                chosen_K[k] = best
                least = energy_N[best]
                improves = True
    return chosen_K


def _energy(distances_NN: np.ndarray, to_all_N: np.ndarray, chosen_K: np.ndarray) -> float:
    """Energy distance between the chosen and all, without the term that is the same for all."""
    within = distances_NN[np.ix_(chosen_K, chosen_K)].mean()
    return 2 * to_all_N[chosen_K].mean() - within


def _energy_with_each(
    distances_NN: np.ndarray, to_all_N: np.ndarray, others: np.ndarray
) -> np.ndarray:
    """`_energy` of the others and one more, for each of N; infinite for the others themselves."""
    count = len(others) + 1
    outside_N = 2 * (to_all_N[others].sum() + to_all_N) / count
    among_others = distances_NN[np.ix_(others, others)].sum()
    within_N = (among_others + 2 * distances_NN[others].sum(0)) / count**2
    energy_N = outside_N - within_N
    energy_N[others] = np.inf
    return energy_N
