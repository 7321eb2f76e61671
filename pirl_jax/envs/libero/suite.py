"""The one LIBERO adapter: stock LIBERO physics behind the contract of `base.py`.

It plays one suite, or several as one: their tasks one after another.

A chunk is rendered once, from the state after its last step (stock observations lag that state
by one 2 ms physics step); an episode ends at success.  Physics is the business of
`simulator.py`, sharing simulators that of `cache.py`, files that of `files.py`.
"""

from collections.abc import Iterable, Sequence
import itertools
import os
import pathlib

import numpy as np

from pirl_jax.envs import base, panda
from pirl_jax.envs.libero import cache, files, perturbed, render, stored_states
from pirl_jax.envs.libero import simulator as simulators

NUM_INIT_STATES = stored_states.NUM_STATES


class Libero:
    """One suite, or a list of suites.

    All Libero envs of a process share their simulators, one for each of the last few tasks.
    """

    def __init__(
        self,
        spec: base.EnvSpec,
        assets: pathlib.Path,
        limits: Sequence[int],
        settle_steps: int,
        seed: int,
        cached_tasks: int,
        render_quality: str,
        folders: files.Folders = files.NOWHERE,
    ):
        """`limits` are control steps until truncation, by task; `make` knows the rest.

        Raises:
            ValueError: cached_tasks is less than 1.
        """
        if cached_tasks < 1:
            raise ValueError(
                f"cached_tasks {cached_tasks} leaves no simulator to play in; choose 1 or more"
            )
        self.spec = spec
        self._assets = assets
        self._limits = limits
        self._settle_steps = settle_steps
        self._seed = seed
        self._cached_tasks = cached_tasks
        self._light = render_quality == "light"
        self._folders = folders
        self._task: int | None = None
        # Control steps of the episode; None: no episode is under way.
        self._elapsed: int | None = None
        # Our episode, while another's stands in the simulator.
        self.saved: simulators.Snapshot | None = None

    @property
    def task(self) -> int | None:
        """The episode's, numbered in this suite or list; None before the first."""
        return self._task

    @property
    def simulator(self) -> simulators.Simulator:
        """The simulator with this env's episode in it, until another env of this process runs."""
        return self._hold().simulator

    def reset(self, task: int, init_state: int) -> base.TimeStep:
        """Start the episode (task, init_state).

        Raises:
            ValueError: there is no such task or init state.
        """
        if task not in range(self.spec.num_tasks):
            raise base.unknown("task", task, range(self.spec.num_tasks))
        if init_state not in range(self.spec.num_init_states):
            raise base.unknown("init state", init_state, range(self.spec.num_init_states))
        self._task = task
        self._elapsed = None  # should the start fail
        # Saves whoever's episode stands in the simulator.
        cache.SIMULATORS.start(self, self._setup(), init_state, self._cached_tasks)
        self._elapsed = 0
        step = self._observe(success=False, num_steps=0, frames=None)
        step.thrown = self.simulator.thrown
        return step

    def step_chunk(self, actions_Ia: Iterable[np.ndarray], record: bool = False) -> base.TimeStep:
        """Execute up to I actions [7]; see base.Env.

        Raises:
            RuntimeError: no episode is under way.
            ValueError: an action is not finite.
        """
        if self._elapsed is None:
            raise RuntimeError("no episode is under way; call reset first")
        simulator = self.simulator
        frames = [] if record else None
        success = False
        num_steps = 0
        # The time limit cuts the chunk.
        still_allowed = self._limits[self._task] - self._elapsed
        for action_a in itertools.islice(actions_Ia, still_allowed):
            if not np.isfinite(action_a).all():
                # MuJoCo would silently reset
                raise ValueError("an action is not finite; look for a policy that diverged")
            success = simulator.step(action_a)
            num_steps += 1
            if record:
                frames.append(self._render(panda.CAMERAS[0]))
            if success:
                break
        self._elapsed += num_steps
        step = self._observe(success, num_steps, frames)
        if step.terminated or step.truncated:
            self._elapsed = None
        return step

    def close(self) -> None:
        """Give up the episode; the last env of the process frees the simulators."""
        self._task = None
        self._elapsed = None
        self.saved = None
        cache.SIMULATORS.leave(self)

    def _observe(
        self, success: bool, num_steps: int, frames: list[np.ndarray] | None
    ) -> base.TimeStep:
        return base.TimeStep(
            images=np.stack([self._render(camera) for camera in panda.CAMERAS]),
            state=self.simulator.state(),
            reward=float(success),
            terminated=success,
            truncated=not success and self._elapsed >= self._limits[self._task],
            num_steps=num_steps,
            frames=frames,
        )

    def _render(self, camera: str) -> np.ndarray:
        # Asked again at every picture: another env may have run since.
        image = self._hold().render(camera, self.spec.image_size_px)
        stored = self._stored()
        if camera == panda.CAMERAS[0] and stored.variant and stored.variant.noise:
            # Not at the top: scipy, which only these suites need, doubles the start of a worker.
            from pirl_jax.envs.libero import filters

            # By episode and step, so that the same picture comes whatever else is played.
            seed = (self._seed, stored.number, self._elapsed or 0)
            image = filters.apply(image, stored.variant.noise, seed)
        return image

    def _hold(self) -> cache.Shared:
        if self._task is None:
            raise RuntimeError("no simulator is built yet; call reset first")
        return cache.SIMULATORS.hold(self, self._setup(), self._cached_tasks)

    def _stored(self) -> files.Task:
        """The task of the episode as files name it."""
        return files.tasks(self.spec.suite, self._folders)[self._task]

    def _setup(self) -> simulators.Setup:
        return self.setup(self._task)

    def setup(self, task: int) -> simulators.Setup:
        """What the simulator of a task is built from."""
        # Named by the suite that it is of: an episode is the same in every list of suites.
        stored = files.tasks(self.spec.suite, self._folders)[task]
        return simulators.Setup(
            suite=stored.suite,
            task=stored.number,
            assets=self._assets,
            settle_steps=self._settle_steps,
            seed=self._seed,
            light=self._light,
            folders=self._folders,
        )


def make(
    suite: str,
    assets: str | os.PathLike | None = None,
    image_size_px: int = 256,
    max_episode_steps: int | None = None,
    protocol: str = "rlinf",
    seed: int = 0,
    render_quality: str = "exact",
    cached_tasks: int = 2,
    wording: str = "default",
    pro_files: str | os.PathLike | None = None,
    plus_files: str | os.PathLike | None = None,
    plus_folder: str | os.PathLike | None = None,
) -> Libero:
    """An env of one suite, or of a list like "libero_spatial,libero_spatial_swap".

    `max_episode_steps` defaults to the protocol's, `assets` to what `files.find_assets` finds;
    `render_quality` is exact (stock LIBERO's pictures) or light (fewer triangles, smaller textures,
    no multisampling, no reflection; the same physics); `cached_tasks` is the number of simulators
    this process keeps: the first takes 1.0 to 1.3 GB and each further one 0.4 to 0.9 GB, with light
    pictures 0.45 and 0.1 GB; `wording` is that of the instructions (`files.wording`);
    `pro_files` and `plus_files` are the folders of LIBERO-PRO's and LIBERO-Plus's suites, and
    `plus_folder` has LIBERO-Plus's own assets (`perturbed.folders`).

    Raises:
        ValueError: a name does not exist, or the assets are absent; the sentence has the remedy.
    """
    members = files.members(suite)
    if not members:
        raise base.unknown("suite", suite, files.SUITES)
    if protocol not in files.PROTOCOLS:
        raise base.unknown("protocol", protocol, files.PROTOCOLS)
    if render_quality not in render.QUALITIES:
        raise base.unknown("render_quality", render_quality, render.QUALITIES)
    folder = files.find_assets(assets)
    folders = perturbed.folders(pro_files, plus_files, plus_folder)
    perturbed.require(members, folders, folder)
    rules = files.PROTOCOLS[protocol]
    tasks = files.tasks(suite, folders)
    # By task: each keeps the limit of the suite that it comes from.
    limits = [max_episode_steps or rules.limit(task.suite) for task in tasks]
    spec = base.EnvSpec(
        suite=suite,
        instructions=tuple(files.instruct(task, wording, folders) for task in tasks),
        num_init_states=files.num_init_states(suite, folders),
        max_episode_steps=max(limits),
        image_size_px=image_size_px,
    )
    return Libero(
        spec,
        assets=folder,
        limits=limits,
        settle_steps=rules.settle_steps,
        seed=seed,
        cached_tasks=cached_tasks,
        render_quality=render_quality,
        folders=folders,
    )
