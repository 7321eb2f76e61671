"""Parameters of the learner for those who play with them, on the devices where they play.

Where these hold whole parameters of the learner, they are seen there and nothing is copied; such a
view lives until the next update.  Elsewhere what trains is copied, for each version anew, and what
does not train once.  What is split over several hosts comes together for that: all hosts must
publish alike, and whoever plays waits for no other host.  Refuses to know who plays.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pirl_jax.core import mesh as meshes
from pirl_jax.core import spec
from pirl_jax.learner import state as states


class Publisher:
    """Called with the parameters of a version, it gives them as those who play take them."""

    def __init__(
        self,
        trainable: Callable[[str], bool],
        learns: jax.sharding.Mesh,
        plays: jax.sharding.Mesh,
    ):
        """
        Args:
          trainable: predicate on '/'-joined paths.
          learns, plays: the learner's mesh; that of this process's rollouts.
        """
        self._trainable = trainable
        self._learns = learns
        self._plays = plays
        self.copies = meshes.part(learns, plays.devices.flat) != plays
        self._spans_hosts = meshes.spans_hosts(learns)
        self._copying: Callable | None = None  # its layout is known once there are parameters
        self._source: list[jax.Array] = []  # frozen parameters of the learner
        self._frozen: dict = {}  # the same where they are played with

    def __call__(self, params: dict) -> dict:
        """Complete on the devices when it returns: nobody sees half of a version."""
        if not self.copies:
            return meshes.view(params, self._plays)
        learned, frozen = states.partition(params, self._trainable)
        # A copy first: placed on devices that hold them already, they would share their memory,
        # which the next update takes away.
        published = self._place(self._copied(learned))
        self._place_frozen(frozen)
        return states.merge(published, self._frozen)

    def forget(self) -> None:
        """Another state comes, whose frozen parameters are others."""
        self._source = []
        self._frozen = {}

    def abstract(self, params: dict) -> dict:
        """What a call gives, as shapes of shapes."""
        if not self.copies:
            return meshes.view(params, self._plays)
        sharding = meshes.replicated(self._plays)
        return jax.tree.map(lambda x: x.update(sharding=sharding), params)

    def _place_frozen(self, frozen: dict) -> None:
        """Once for all versions of a state; no update takes them away."""
        source = jax.tree.leaves(frozen)
        if not _same(source, self._source):
            self.forget()
            self._frozen = self._place(self._whole(frozen) if self._spans_hosts else frozen)
            self._source = source

    def _whole(self, params: dict) -> dict:
        """On every device that learns; those that are whole there stay what they are."""
        flat = spec.flatten(params)
        parts = {path: x for path, x in flat.items() if not x.sharding.is_fully_replicated}
        return spec.unflatten(flat | self._copied(parts))

    def _copied(self, params: dict) -> dict:
        """In memory of their own, where they lie, or whole on every device that learns."""
        if self._copying is None:
            layout = states.shardings(params)
            if self._spans_hosts:
                layout = meshes.replicated(self._learns)
            self._copying = jax.jit(meshes.target(self._learns)(_copies), out_shardings=layout)
        return self._copying(params)

    def _place(self, params: dict) -> Any:
        own = meshes.view(params, meshes.local(self._learns))
        placed = jax.device_put(own, meshes.replicated(self._plays))
        return jax.block_until_ready(placed)


def _copies(params: dict) -> dict:
    return jax.tree.map(jnp.copy, params)


def _same(leaves: list[jax.Array], others: list[jax.Array]) -> bool:
    if len(leaves) != len(others):
        return False
    return all(one is other for one, other in zip(leaves, others, strict=True))
