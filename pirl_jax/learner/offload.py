"""What no episode needs of a training state lies in the host's memory while episodes are played.

That is the optimiser's moments, the average and the anchor; parameters stay where they are.  A
state is `resident`, and may be updated and saved, or `away`.  Both ways are copies, bit for bit,
and what was copied is given up at once: the room is the purpose.  Refuses to know what is played.
"""

import dataclasses
from typing import Any

import jax

from pirl_jax.learner import state as states

HOST = "pinned_host"  # memory that devices read and write directly


@dataclasses.dataclass(frozen=True)
class Offload:
    """Where parts of a state lie.  Not enabled, it gives back every state as it came."""

    enabled: bool
    keeps_average: bool = False  # on the devices, because it is what plays

    def away(self, state: states.TrainState) -> states.TrainState:
        """The state while episodes are played; the arrays of the one that came are gone."""
        return self._everywhere(state, HOST) if self.enabled else state

    def back(self, state: states.TrainState) -> states.TrainState:
        """The state for an update or a checkpoint; the arrays of the one that came are gone."""
        return self._everywhere(state, None) if self.enabled else state

    def acting(self, state: states.TrainState) -> dict:
        """The parameters to act with, on the devices (learner/state.py).  An average that is away
        comes as a copy and stays away."""
        if self.enabled and state.ema is not None:
            state = state.replace(ema=jax.tree.map(lambda x: _copy(x, None), state.ema))
        return states.acting_params(state)

    def _everywhere(self, state: states.TrainState, kind: str | None) -> states.TrainState:
        moved = {name: _move(getattr(state, name), kind) for name in self.parts}
        return state.replace(**moved)

    @property
    def parts(self) -> tuple[str, ...]:
        """Fields of the state that go."""
        return ("opt_state", "anchor") if self.keeps_average else ("opt_state", "ema", "anchor")


def _move(tree: Any, kind: str | None) -> Any:
    """To memory of a kind; None: the devices' own."""
    leaves, form = jax.tree.flatten(tree)
    moved = jax.block_until_ready([_copy(x, kind) for x in leaves])
    for x, new in zip(leaves, moved, strict=True):
        if new is not x:
            x.delete()  # a donation from one kind of memory to another does not exist
    return jax.tree.unflatten(form, moved)


def _copy(x: jax.Array, kind: str | None) -> jax.Array:
    """Itself where it lies there already.  Shard by shard: a process sees its own alone."""
    kind = kind or jax.local_devices()[0].default_memory().kind
    if x.sharding.memory_kind == kind:
        return x
    shards = []
    for shard in x.addressable_shards:
        place = jax.sharding.SingleDeviceSharding(shard.device, memory_kind=kind)
        shards.append(jax.device_put(shard.data, place))
    sharding = x.sharding.with_memory_kind(kind)
    return jax.make_array_from_single_device_arrays(x.shape, sharding, shards)
