"""Online reinforcement learning of pi0 and pi0.5 in LIBERO; where to begin: docs/tour.md."""

from pirl_jax.core import absent

absent.listen()
