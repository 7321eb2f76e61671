"""Where the sums of a minibatch lie while its microbatches are added, and how they become one.

Every copy of the parameters (a place along "data") has sums of its own, split as the parameters
are: a microbatch exchanges nothing between copies, and an optimiser step reduces each sum once, in
float32.  Refuses to know what is added up (objective.py).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from pirl_jax.core import mesh as meshes
from pirl_jax.learner import objective
from pirl_jax.learner import state as states


class Adder:
    """Adds microbatches.  What is compiled takes its form from the first one."""

    def __init__(
        self,
        of_microbatch: Callable[..., objective.Sums],
        trainable: Callable[[str], bool],
        mesh: jax.sharding.Mesh,
    ):
        """of_microbatch: (state, batch, its number in the minibatch) -> sums of its rows.

        trainable: predicate on '/'-joined paths.
        """
        self._of_microbatch = of_microbatch
        self._trainable = trainable
        self._mesh = mesh
        self._copies = mesh.shape["data"]
        self._zeros: Callable | None = None  # known once there is a batch
        self._add: Callable | None = None

    def __call__(
        self, state: states.TrainState, total: objective.Sums | None, batch: objective.Minibatch
    ) -> tuple[objective.Sums, jax.Array]:
        """total + a microbatch, where total is donated -> sums, an array to wait for.  None: the
        first."""
        if self._add is None:
            self._prepare(state, batch)
        return self._add(state, self._zeros() if total is None else total, batch)

    def lower(
        self, state: states.TrainState, batch: objective.Minibatch
    ) -> tuple[objective.Sums, jax.stages.Lowered]:
        """Shapes of the sums, and what is called; from arrays or shapes."""
        total = self._prepare(state, batch)
        return total, self._add.lower(state, total, batch)

    def of_all(self, total: objective.Sums) -> objective.Sums:
        """Of all copies together: what an optimiser step exchanges along "data"."""
        if self._copies == 1:
            return total
        sums = jax.tree.map(lambda x: x.sum(0), total)
        return sums.replace(
            largest=jax.tree.map(lambda x: x.max(0), total.largest),
            microbatches=total.microbatches[0],
        )

    def _prepare(self, state: states.TrainState, batch: objective.Minibatch) -> objective.Sums:
        """The form of the sums; gradients lie where their parameters lie.  -> shapes"""
        shape = jax.eval_shape(self._of_microbatch, state, batch, np.int32(0))
        # Gradients come in the type of their parameter, and are added up in float32.
        grads = jax.tree.map(lambda x: x.update(dtype=jnp.float32), shape.grads)
        shape = shape.replace(grads=grads)
        replicated = meshes.replicated(self._mesh)
        learned, _ = states.partition(state.params, self._trainable)
        layout = jax.tree.map(lambda _: replicated, shape)
        layout = layout.replace(grads=states.shardings(learned))
        added = self._added
        done = replicated
        if self._copies > 1:
            shape = jax.tree.map(lambda x: x.update(shape=(self._copies, *x.shape)), shape)
            layout = jax.tree.map(_by_copy, layout)
            done = _by_copy(done)
            added = self._added_by_copy

        def zeros():
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape)

        self._zeros = jax.jit(zeros, out_shardings=layout)
        added = meshes.target(self._mesh)(added)
        self._add = jax.jit(added, donate_argnums=1, out_shardings=(layout, done))
        return jax.tree.map(lambda x, sharding: x.update(sharding=sharding), shape, layout)

    def _added(
        self, state: states.TrainState, total: objective.Sums, batch: objective.Minibatch
    ) -> tuple[objective.Sums, jax.Array]:
        sums = self._of_microbatch(state, batch, total.microbatches)
        largest = jax.tree.map(jnp.maximum, total.largest, sums.largest)
        return jax.tree.map(jnp.add, total, sums).replace(largest=largest), sums.count

    def _added_by_copy(
        self, state: states.TrainState, total: objective.Sums, batch: objective.Minibatch
    ) -> tuple[objective.Sums, jax.Array]:
        """The same on the own rows of every copy; sums [copies,...]."""

        def added(
            state: states.TrainState, total: objective.Sums, batch: objective.Minibatch
        ) -> tuple[objective.Sums, jax.Array]:
            own = jax.tree.map(lambda x: x[0], total)
            return jax.tree.map(lambda x: x[None], self._added(state, own, batch))

        everywhere = PartitionSpec()
        split = PartitionSpec("data")
        takes = (everywhere, split, split)
        return meshes.by_data(added, self._mesh, takes, split)(state, total, batch)


def _by_copy(sharding: NamedSharding) -> NamedSharding:
    """With one more axis in front, along "data"."""
    return NamedSharding(sharding.mesh, PartitionSpec("data", *sharding.spec))
