"""Simulators shared by all LIBERO envs of a process: memory grows with the tasks a worker plays, not with its slots.

A simulator holds one episode at a time.  Envs of a worker run one after another, so an env that needs a simulator in
which another env's episode stands saves that one and restores its own; nobody's trajectory notices.  Knows no actions.
"""

import collections
import dataclasses
import gc
import weakref

import numpy as np

from pirl_jax.envs.libero import meshes
from pirl_jax.envs.libero import render as libero_render
from pirl_jax.envs.libero import simulator as libero_sim


@dataclasses.dataclass
class Built:
    """A simulator, the env whose episode stands in it, and the renderers of it by image size."""

    simulator: libero_sim.Simulator
    light: bool
    env: object | None = None
    renderers: dict = dataclasses.field(default_factory=dict)

    def render(self, camera: str, image_size_px: int) -> np.ndarray:
        """[Y,X,3] uint8, upright, of the state the simulator is in."""
        if image_size_px not in self.renderers:
            quality = "light" if self.light else "exact"
            self.renderers[image_size_px] = libero_render.Renderer(
                self.simulator.model, image_size_px, quality
            )
        return self.renderers[image_size_px].render(self.simulator.data, camera)

    def close(self) -> None:
        for renderer in self.renderers.values():
            renderer.close()
        self.simulator.close()


class SimulatorCache:
    """Least recently used first out.  A key is the arguments of a Simulator."""

    def __init__(self):
        self._built: collections.OrderedDict[tuple, Built] = collections.OrderedDict()
        self._settled: dict[
            tuple, libero_sim.Snapshot
        ] = {}  # (key, init state) -> after the settle steps; 5 KB each
        self._envs = weakref.WeakSet()

    def hold(self, env, key: tuple, limit: int) -> Built:
        """The simulator of `key` with the episode of `env` in it; at most `limit` simulators exist afterwards."""
        self._envs.add(env)
        built = self._built.pop(key, None)
        if built is None:
            self._shrink(limit - 1)
            built = Built(libero_sim.Simulator(*key), light=key[-1])
        self._built[key] = built
        if built.env is not env:
            self._put_aside(built)
            built.env = env
            if env.saved is not None:
                built.simulator.restore(env.saved)
        return built

    def start(self, env, key: tuple, limit: int, init_state: int) -> Built:
        """The same with a new episode in it, settled; the old one of this env is forgotten."""
        self.release(env)
        env.saved = self._settled.get((key, init_state))
        built = self.hold(env, key, limit)
        if env.saved is None:
            built.simulator.start(init_state)
            self._settled[key, init_state] = built.simulator.snapshot()
        return built

    def release(self, env) -> None:
        """The episode of this env is over."""
        for built in self._built.values():
            if built.env is env:
                built.env = None

    def leave(self, env) -> None:
        """The env is closed; the last one frees the simulators."""
        self.release(env)
        self._envs.discard(env)
        if not self._envs:
            self._shrink(0)

    def _shrink(self, limit: int) -> None:
        while len(self._built) > limit:
            _, built = self._built.popitem(last=False)
            self._put_aside(built)
            built.close()
            del built
            gc.collect()  # a robosuite environment refers to itself, with hundreds of MB
            meshes.return_freed_memory()

    def _put_aside(self, built: Built) -> None:
        if built.env is not None:
            built.env.saved = built.simulator.snapshot()
            built.env = None


SHARED = SimulatorCache()
