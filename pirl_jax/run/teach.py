"""Few-shot SFT: scripted demonstrations -> a first policy.  The published recipes start from
few-shot SFT models; so do we.

Knows experts, data and the SFT step; the reinforcement learning that follows knows nothing of it
but parameters and stats.
"""

from collections.abc import Callable, Iterator
import concurrent.futures
import dataclasses
import itertools

import jax
import numpy as np

from pirl_jax.core import endings, rng, types
from pirl_jax.core import mesh as meshes
from pirl_jax.envs import base, child
from pirl_jax.envs.pool import worker
from pirl_jax.learner import sft
from pirl_jax.learner import state as states
from pirl_jax.policy import normalize, observation
from pirl_jax.rollout import starts
from pirl_jax.run import config, demonstrated, simulators

# A loss that has grown by this factor since the first step, whose model knew nothing yet.
DIVERGED = 10.0


@dataclasses.dataclass
class Demonstrations:
    """Start observations and the action chunks that follow, one row per control step."""

    images: np.ndarray  # [R,V,Y,X,3] uint8
    state: np.ndarray  # [R,8] float32
    actions: np.ndarray  # [R,H,7] float32
    instructions: list[str]  # one per row


def collect(settings: config.Settings, playable: starts.Starts) -> list[dict]:
    """Successful episodes of the scripted expert from training start states.

    `sft.demonstrations` are tried per task.

    Raises:
      ValueError: none succeeded.
    """
    env = settings.raw.env
    page = settings.raw.sft
    make_env = simulators.env_factory(settings)
    with worker.processes(env.num_workers) as pool:
        with child.shielded():
            parts = [
                pool.submit(_demonstrate, make_env, *job, settings.raw.seed, page.action_noise)
                for job in _jobs(settings, playable)
            ]
        try:
            played = list(itertools.chain.from_iterable(part.result() for part in parts))
        except concurrent.futures.BrokenExecutor as error:
            raise endings.Failure(
                f"a process that plays demonstrations died ({error}): memory was short, or its "
                f"renderer crashed; lower env.num_workers={env.num_workers}, or run pirl doctor"
            ) from error
    episodes = [episode for episode in played if episode["success"]]
    faults = [episode["fault"] for episode in played if "fault" in episode]
    if faults:
        print(
            f"{len(faults)} of {len(played)} demonstrations are lost, because their simulators "
            f"sent faulty numbers twice: {faults[0]}"
        )
    if not episodes:
        raise ValueError(
            f"none of {page.demonstrations} demonstrations per task succeeded; "
            f"raise env.max_episode_steps={env.max_episode_steps} "
            f"or lower sft.action_noise={page.action_noise}"
        )
    return episodes


def _jobs(settings: config.Settings, playable: starts.Starts) -> list[tuple[int, np.ndarray]]:
    """(task, init states): what one process demonstrates."""
    jobs = []
    for task in playable.tasks:
        generator = np.random.default_rng([settings.raw.seed, task])
        train = np.array(playable.train)
        init_states = demonstrated.choose(
            train,
            settings.raw.sft.demonstrations,
            settings.raw.sft.starts,
            generator,
            lambda chosen, task=task: simulators.layouts(settings, task, chosen),
        )
        parts = np.array_split(init_states, settings.raw.env.num_workers)
        jobs += [(task, part) for part in parts if len(part)]
    return jobs


def _demonstrate(
    make_env: Callable[[], base.Env],
    task: int,
    init_states: np.ndarray,
    seed: int,
    action_noise: float,
) -> list[dict]:
    from pirl_jax.envs import experts  # brings mujoco, which only the simulator processes load

    env = make_env()
    try:
        init_states = [int(i) for i in init_states]
        return experts.collect_demonstrations(env, task, init_states, seed=seed, noise=action_noise)
    finally:
        env.close()


def as_rows(episodes: list[dict], horizon: int) -> Demonstrations:
    """Cut a chunk of `horizon` actions at every step.

    Past the end the last action repeats (LeRobot's padding).
    """
    images = []
    state = []
    actions = []
    instructions = []
    for episode in episodes:
        length = len(episode["actions"])
        index_nH = np.minimum(np.arange(length)[:, None] + np.arange(horizon), length - 1)
        # The last observation has no action.
        images.append(episode["images"][:length])
        state.append(episode["state"][:length])
        actions.append(episode["actions"][index_nH])
        instructions += [episode["instruction"]] * length
    return Demonstrations(
        images=np.concatenate(images),
        state=np.concatenate(state),
        actions=np.concatenate(actions).astype(np.float32),
        instructions=instructions,
    )


def statistics(episodes: list[dict]) -> normalize.NormStats:
    """Normalisation statistics of states and actions, as openpi computes them."""
    state = normalize.RunningStats()
    actions = normalize.RunningStats()
    for episode in episodes:
        state.update(episode["state"])
        actions.update(episode["actions"])
    return normalize.NormStats(state=state.stats(), actions=actions.stats())


@dataclasses.dataclass(frozen=True)
class Examples:
    """What SFT draws from: one row per control step, numbered."""

    count: int
    # Row numbers -> the demonstrations as the model reads them, and actions [R,H,A]; host rows.
    take: Callable[[np.ndarray], tuple[types.Observation, np.ndarray]]


def encode(
    settings: config.Settings, to_model: observation.Transform, episodes: list[dict]
) -> Examples:
    """Demonstrations as the model reads them, all of them at once."""
    rows = as_rows(episodes, settings.policy.network.action_horizon)
    obs = observation.encode(to_model, rows.images, rows.state, rows.instructions)
    encoded = (obs, observation.encode_actions(to_model, rows.actions, rows.state))
    return Examples(
        len(rows.actions), lambda index: jax.tree.map(lambda leaf: leaf[index], encoded)
    )


def batches(
    examples: Examples, batch_size: int, key: jax.Array
) -> Iterator[tuple[types.Observation, np.ndarray]]:
    """Endless batches of demonstrations, drawn by the key; host rows.

    Each process takes its part of every batch.
    """
    generator = rng.generator(key)
    count = examples.count
    while True:
        drawn = generator.choice(count, batch_size, replace=count < batch_size)
        index = np.split(drawn, jax.process_count())[jax.process_index()]
        yield examples.take(index)


def fit(
    settings: config.Settings,
    params: dict,
    mesh: jax.sharding.Mesh,
    examples: Examples,
    key: jax.Array,
    advance: Callable[[int], None],
) -> tuple[dict, dict]:
    """Run the SFT steps on the demonstrations -> parameters, metrics of the last step.

    Takes `params` over.  advance: shows progress.

    Raises:
      endings.Failure: it has diverged.
    """
    page = settings.raw.sft
    state = sft.create_state(params, settings.sft, mesh)
    step = sft.make_sft_step(settings.sft, mesh)
    drawn = batches(examples, page.batch_size, rng.named(key, "sft", "batches"))
    noise_key = rng.named(key, "sft", "noise")
    history = []
    for batch in itertools.islice(drawn, page.steps):
        state, metrics = step(state, *meshes.put_batch(batch, mesh), noise_key)
        history = [*history[:1], metrics]  # the first and the last
        advance(1)
    first, last = jax.device_get((history[0], history[-1]))
    if not last["loss"] <= DIVERGED * first["loss"]:  # not-a-number is not below either
        raise endings.Failure(
            f"SFT has diverged: its loss went from {first['loss']:.4g} to {last['loss']:.4g} in "
            f"{page.steps} steps; lower sft.lr={page.lr}"
        )
    return states.acting_params(state), last
