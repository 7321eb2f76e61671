"""Simulators shared by all LIBERO envs of a process.

Memory grows with the tasks a worker plays, not with its slots.  A simulator holds one episode at
a time.  Envs of a worker run one after another, so an env that needs a simulator in which
another env's episode stands saves that one and restores its own; nobody's trajectory notices.
Knows no actions.
"""

import collections
import gc
from typing import Protocol
import weakref

import numpy as np

from pirl_jax.envs.libero import meshes, render
from pirl_jax.envs.libero import simulator as simulators


class Player(Protocol):
    """What the cache needs of an env."""

    saved: simulators.Snapshot | None  # its episode, while another's stands in the simulator


class Shared:
    """A simulator, the env whose episode stands in it, and its renderers."""

    def __init__(self, setup: simulators.Setup):
        self.simulator = simulators.Simulator(setup)
        self.player: Player | None = None
        self._quality = "light" if setup.light else "exact"
        self._renderers: dict[int, render.Renderer] = {}  # by image size (px)

    def render(self, camera: str, image_size_px: int) -> np.ndarray:
        """[Y,X,3] uint8, upright, of the state the simulator is in."""
        if image_size_px not in self._renderers:
            model = self.simulator.model
            self._renderers[image_size_px] = render.Renderer(model, image_size_px, self._quality)
        return self._renderers[image_size_px].render(self.simulator.data, camera)

    def close(self) -> None:
        """Free the simulator and what was copied to the GPU."""
        for renderer in self._renderers.values():
            renderer.close()
        self.simulator.close()


class SimulatorCache:
    """Simulators by their setup; the least recently used goes first."""

    def __init__(self):
        self._shared: collections.OrderedDict[simulators.Setup, Shared] = collections.OrderedDict()
        # After the settle steps, by setup and init state; 5 KB each.
        self._settled: dict[tuple[simulators.Setup, int], simulators.Snapshot] = {}
        # Weak: an env that was dropped without `close` keeps no simulator alive.
        self._players = weakref.WeakSet()

    def hold(self, player: Player, setup: simulators.Setup, limit: int) -> Shared:
        """The simulator of `setup` with the player's episode in it.

        At most `limit` simulators exist afterwards.
        """
        self._players.add(player)
        shared = self._shared.pop(setup, None)
        if shared is None:
            self._shrink(limit - 1)  # first, so that there is never one more than the limit
            shared = Shared(setup)
        self._shared[setup] = shared  # at the end: the most recently used
        if shared.player is not player:
            self._put_aside(shared)
            shared.player = player
            if player.saved is not None:
                shared.simulator.restore(player.saved)
        return shared

    def start(self, player: Player, setup: simulators.Setup, init_state: int, limit: int) -> Shared:
        """The same with a new episode in it, settled; the player's old one is forgotten."""
        self.release(player)
        settled = self._settled.get((setup, init_state))
        player.saved = settled  # which `hold` restores
        shared = self.hold(player, setup, limit)
        if settled is None:
            shared.simulator.start(init_state)
            self._settled[setup, init_state] = shared.simulator.snapshot()
        return shared

    def release(self, player: Player) -> None:
        """The player's episode is over."""
        for shared in self._shared.values():
            if shared.player is player:
                shared.player = None

    def leave(self, player: Player) -> None:
        """The player is closed; the last one frees the simulators."""
        self.release(player)
        self._players.discard(player)
        if not self._players:
            self._shrink(0)

    def _shrink(self, limit: int) -> None:
        while len(self._shared) > limit:
            _, shared = self._shared.popitem(last=False)
            self._put_aside(shared)
            shared.close()
            del shared
            gc.collect()  # a robosuite environment refers to itself, with hundreds of MB
            meshes.return_freed_memory()

    def _put_aside(self, shared: Shared) -> None:
        if shared.player is not None:
            shared.player.saved = shared.simulator.snapshot()
            shared.player = None


SIMULATORS = SimulatorCache()  # of this process
