"""An update without its parts, for tests that have nothing to do meanwhile."""

from pirl_jax.learner import in_parts, update


def learn(updater, state, data, key, demonstrations=None):
    """All epochs over the rows of a rollout -> state, metrics."""
    return in_parts.drained(update.learn_in_parts(updater, state, data, key, demonstrations))
