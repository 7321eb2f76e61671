"""From the settings to running simulators.  The one place that knows which suite is which class."""

from collections.abc import Callable, Iterator
import contextlib
import functools
import logging
import os
import pathlib

import numpy as np

from pirl_jax.core import placement
from pirl_jax.envs import base, caches, child, expert_tasks, own, probes
from pirl_jax.envs.gl import backends
from pirl_jax.envs.libero import assets as asset_files
from pirl_jax.envs.libero import custom, files, identity, preflight
from pirl_jax.envs.pool import pool as pools
from pirl_jax.envs.pool import process, queue, worker
from pirl_jax.monitor import progress
from pirl_jax.run import changes, config, machine, perturbations

ROBOT_JOINTS = 9  # of LIBERO's Panda, two of them its fingers'


def env_factory(settings: config.Settings) -> Callable[[], base.Env]:
    """Picklable constructor of one simulator of the configured suite."""
    env = settings.raw.env
    if own.is_class(env.suite):
        return own.factory(env.suite, env.image_size_px)
    limit = env.max_episode_steps or None
    if env.suite.startswith("probe_"):
        name = env.suite.removeprefix("probe_")
        return functools.partial(
            probes.make,
            name,
            image_size_px=env.image_size_px,
            chunk=settings.policy.model.action_chunk,
        )
    backends.require(backends.wanted())
    caches.prepare()
    # Not at the top: importing mujoco without that library fails in words that do not name it.
    from pirl_jax.envs.libero import suite as libero
    from pirl_jax.envs.tabletop import suite as tabletop

    if env.suite == "tabletop":
        return functools.partial(
            tabletop.make,
            image_size_px=env.image_size_px,
            max_episode_steps=limit,
            render_quality=env.render_quality,
            spread=env.spread,
        )
    return functools.partial(
        libero.make,
        env.suite,
        assets=env.assets or None,
        image_size_px=env.image_size_px,
        max_episode_steps=limit,
        protocol=env.protocol,
        render_quality=env.render_quality,
        cached_tasks=env.cached_tasks,
        wording=env.wording,
        pro_files=env.pro_files or None,
        plus_files=env.plus_files or None,
        plus_folder=env.plus_assets or None,
    )


def layouts(settings: config.Settings, task: int, init_states: np.ndarray) -> np.ndarray:
    """Where the things that a task is about lie in each start state, [N, numbers].

    x and y (m) of what is to be moved and of where to; in LIBERO of the objects of interest, or of
    all where none of these can be moved.
    """
    env = settings.raw.env
    if env.suite != "tabletop":
        stored = files.init_states(env.suite, task)[init_states]
        return stored[:, _columns_of_interest(files.bddl_file(env.suite, task))]
    from pirl_jax.envs.tabletop import suite as tabletop

    of_task = list(tabletop.TASKS.values())[task]
    names = [name for name in (of_task.manipulated, of_task.goal) if name]
    placed = [tabletop.placement(task, int(number), env.spread) for number in init_states]
    things = []
    for name in names:
        things.append([places[name][:2] for places in placed])
    return np.concatenate(things, axis=1)


def _columns_of_interest(bddl: pathlib.Path) -> list[int]:
    """Where x and y of these objects stand in a start state: time, the robot's joints, 7 numbers of
    each object in the file's order, joints of fixtures, velocities.
    """
    parts = changes.parts(bddl)
    things = [thing for thing, _ in parts[":objects"]]
    of_interest = set(parts[":obj_of_interest"]) & set(things) or set(things)
    columns = []
    for number, thing in enumerate(things):
        if thing in of_interest:
            first = 1 + ROBOT_JOINTS + 7 * number
            columns += [first, first + 1]
    return columns


def expert_factory(settings: config.Settings) -> Callable[[], base.Env]:
    """Like env_factory, but the simulator plays its scripted expert, whatever it is sent.

    Raises:
      ValueError: a task has none.
    """
    env = settings.raw.env
    otherwise = "evaluate --policy=random or a --checkpoint"
    expert_tasks.require(env.suite, env.tasks, otherwise)
    make_env = env_factory(settings)
    from pirl_jax.envs import experts  # brings mujoco, which env_factory has checked

    return functools.partial(experts.driven, make_env)


def drawing(settings: config.Settings) -> tuple[str | None, tuple[int, ...]]:
    """The GL backend and the EGL devices of the simulators; None: nothing draws.

    Raises:
      ValueError: placement.env names what does not draw here.
    """
    env = settings.raw.env
    text = settings.raw.placement.env
    if env.suite.startswith("probe_"):
        return None, tuple(env.render_devices)
    if not text:
        return backends.wanted(), tuple(env.render_devices)
    if text == placement.CPU:
        return _without_gpu()
    return backends.wanted(), _egl_devices(text)


_without_gpu = functools.cache(backends.without_gpu)


@functools.cache
def _egl_devices(text: str) -> tuple[int, ...]:
    """Of CUDA's devices, in ranges; the driver is asked once per process."""
    key = "placement.env"
    try:
        return backends.egl_of(placement.parse(text, key))
    except (ValueError, child.ChildError) as error:
        raise ValueError(f"{key}={text!r}: {error}") from error


@contextlib.contextmanager
def open_envs(
    settings: config.Settings, num_envs: int, make_env: Callable[[], base.Env] | None = None
) -> Iterator[queue.ReadyQueue]:
    """Start the simulators; the queue before their pool, and both end with the context.

    make_env: None is env_factory's.
    """
    env = settings.raw.env
    backends.drop_empty()
    num_workers = min(env.num_workers, num_envs)
    backend, render_devices = drawing(settings)
    variables = _check_machine(num_envs, num_workers, env.image_size_px, backend, render_devices)
    os.environ.update(variables)
    if backend:
        _say_where_caches_are()
        caches.prepare()
    played(settings)
    _prepare_light_pictures(settings)
    pool = pools.EnvPool(
        make_env or env_factory(settings),
        num_envs,
        num_workers,
        timeout_s=env.timeout_s,
        restarts_per_hour=env.restarts_per_hour,
        recycle_episodes=env.recycle_episodes,
        recycle_growth_gb=env.recycle_growth_gb,
        render_devices=render_devices,
    )
    with pool, queue.ReadyQueue(pool) as ready:
        yield ready


def played(settings: config.Settings) -> dict[str, dict] | None:
    """Which simulator the workers import, seen in a process like theirs; None: none of LIBERO's.

    Once per process: it takes seconds, and as many for each task of somebody's own.

    Raises:
      ValueError: they cannot play, or it is another LIBERO than env.libero allows.
    """
    env = settings.raw.env
    if config.rules(settings.raw) is None:
        return None
    folder = env.suite if custom.is_folder(env.suite) else None
    plus_folder = perturbations.folders(env).plus_assets
    question = preflight.Question(
        assets=str(files.find_assets(env.assets)),
        plus_assets=plus_folder and str(plus_folder),
        folder=folder,
        tasks=env.tasks if folder else (),
    )
    _, render_devices = drawing(settings)
    found = _ask(question, *render_devices[:1])
    if env.libero == "pinned":
        identity.require_pinned(found)
    return found


@functools.cache
def _say_where_caches_are() -> None:
    """Once per process; workers find the same places by themselves."""
    moved = caches.moved()
    if moved:
        logging.getLogger(__name__).warning("%s", moved)


@functools.cache
def _ask(question: preflight.Question, device: int | None = None) -> dict[str, dict]:
    found = preflight.ask(question, process.variables(device))
    if question.folder and (shortened := custom.shortened(question.folder)):
        logging.getLogger(__name__).warning("%s", shortened)
    return found


def _prepare_light_pictures(settings: config.Settings) -> None:
    """LIBERO's light meshes and textures are made once per machine; shows progress."""
    env = settings.raw.env
    if config.rules(settings.raw) is None or env.render_quality != "light":
        return
    from pirl_jax.envs.libero import light  # brings mujoco, which is checked now

    of_suite = env_factory(settings)()
    count = of_suite.spec.num_tasks
    # A task that does not exist is refused where start states are chosen.
    tasks = [task for task in env.tasks or range(count) if task < count]
    missing = light.missing([of_suite.setup(task) for task in tasks])
    if missing:
        name = "light meshes and textures, once per machine"
        with progress.track(name, total=len(missing), unit="tasks") as advance:
            light.prepare(missing, worker.environment(), advance)


@functools.cache
def _check_machine(
    num_envs: int,
    num_workers: int,
    image_size_px: int,
    backend: str | None,
    render_devices: tuple[int, ...],
) -> dict[str, str]:
    """Once per process, before anything loads mujoco.

    -> environment variables of the GL backend that works here
    """
    backend = machine.check(num_envs, num_workers, image_size_px, backend, render_devices)
    return backends.variables(backend) if backend else {}


def renderer(settings: config.Settings) -> str | None:
    """What draws the images; part of every result.  None: nothing does."""
    backend, render_devices = drawing(settings)
    return backends.describe(backend, *render_devices[:1]) if backend else None


def assets(settings: config.Settings) -> dict | None:
    """Which meshes and textures are drawn; part of every result.  None: those of the package.

    Raises:
      ValueError: LIBERO's are not there.
    """
    if config.rules(settings.raw) is None:
        return None
    return asset_files.identity(files.find_assets(settings.raw.env.assets))
