"""Diagonal normal distributions, entry by entry; an entry of std 0 is deterministic."""

from jax import Array
import jax.numpy as jnp


def log_prob(x: Array, mean: Array | float, std: Array) -> Array:
    """log N(x; mean, std) of every entry; 0 where std is 0."""
    is_random = std > 0
    # Double where: no NaN gradient from a deterministic entry.
    safe = jnp.where(is_random, std, 1.0)
    square = ((x - mean) / safe) ** 2
    found = -0.5 * square - jnp.log(safe) - 0.5 * jnp.log(2 * jnp.pi)
    return jnp.where(is_random, found, 0.0)


def entropy(std: Array) -> Array:
    """Nats per entry; 0 where std is 0."""
    is_random = std > 0
    safe = jnp.where(is_random, std, 1.0)
    found = jnp.log(safe) + 0.5 * jnp.log(2 * jnp.pi * jnp.e)
    return jnp.where(is_random, found, 0.0)


def kl(mean: Array, std: Array, other_mean: Array, other_std: Array) -> Array:
    """KL(N(mean, std) || N(other_mean, other_std)) of every entry.

    Where std is 0, which has no finite one, as if both were 1: half the squared distance.
    """
    is_random = std > 0
    std = jnp.where(is_random, std, 1.0)
    other_std = jnp.where(is_random, other_std, 1.0)
    square = (mean - other_mean) ** 2
    spread = (std**2 + square) / (2 * other_std**2)
    found = jnp.log(other_std / std) + spread - 0.5
    return jnp.where(std > 0, found, 0.0)
