"""Few-shot SFT: scripted demonstrations -> a first policy.  The published recipes start from few-shot SFT models; so do we.

Knows experts, data and the SFT step; the reinforcement learning that follows knows nothing of it but parameters and stats.
"""

import concurrent.futures
import dataclasses
import multiprocessing

import jax
import numpy as np

from pirl_jax.core import mesh as meshes
from pirl_jax.core import rng
from pirl_jax.envs.pool import worker
from pirl_jax.learner import sft
from pirl_jax.learner import state as states
from pirl_jax.policy import normalize, observation
from pirl_jax.run import simulators


@dataclasses.dataclass
class Demonstrations:
    """Start observations and the action chunks that follow, one row per control step."""

    images: np.ndarray  # [R,V,Y,X,3] uint8
    state: np.ndarray  # [R,8] float32
    actions: np.ndarray  # [R,H,7] float32
    instructions: list[str]  # one per row


def collect(settings, chosen) -> list[dict]:
    """Successful episodes of the scripted expert from training start states, `sft.demonstrations` tried per task."""
    env, page = settings.raw.env, settings.raw.sft
    jobs = []
    for task in chosen.tasks:
        generator = np.random.default_rng([settings.raw.seed, task])
        init_states = generator.choice(np.array(chosen.train), page.demonstrations, replace=False)
        jobs += [(task, part) for part in np.array_split(init_states, env.num_workers) if len(part)]
    context, make_env = multiprocessing.get_context("spawn"), simulators.env_factory(settings)
    with (
        worker.spawning(),
        concurrent.futures.ProcessPoolExecutor(env.num_workers, mp_context=context) as pool,
    ):
        parts = [
            pool.submit(_demonstrate, make_env, *job, settings.raw.seed, page.action_noise)
            for job in jobs
        ]
        episodes = [episode for part in parts for episode in part.result() if episode["success"]]
    if not episodes:
        raise ValueError(
            f"none of {page.demonstrations} demonstrations per task succeeded; raise env.max_episode_steps="
            f"{env.max_episode_steps} or lower sft.action_noise={page.action_noise}"
        )
    return episodes


def _demonstrate(make_env, task, init_states, seed, action_noise):
    from pirl_jax.envs import experts  # brings mujoco, which only the simulator processes load

    env = make_env()
    try:
        return experts.collect_demonstrations(
            env, task, [int(i) for i in init_states], seed=seed, noise=action_noise
        )
    finally:
        env.close()


def as_rows(episodes: list[dict], horizon: int) -> Demonstrations:
    """Cut a chunk of `horizon` actions at every step; past the end the last action repeats (LeRobot's padding)."""
    chunks = []
    for episode in episodes:
        length = len(episode["actions"])
        index_TH = np.minimum(np.arange(length)[:, None] + np.arange(horizon), length - 1)
        chunks.append(episode["actions"][index_TH])
    return Demonstrations(
        images=np.concatenate(
            [episode["images"][: len(episode["actions"])] for episode in episodes]
        ),
        state=np.concatenate([episode["state"][: len(episode["actions"])] for episode in episodes]),
        actions=np.concatenate(chunks).astype(np.float32),
        instructions=[episode["instruction"] for episode in episodes for _ in episode["actions"]],
    )


def statistics(episodes: list[dict]) -> normalize.NormStats:
    """Normalisation statistics of states and actions, as openpi computes them."""
    state, actions = normalize.RunningStats(), normalize.RunningStats()
    for episode in episodes:
        state.update(episode["state"])
        actions.update(episode["actions"])
    return normalize.NormStats(state=state.stats(), actions=actions.stats())


def encode(settings, to_model: observation.Transform, episodes: list[dict]):
    """Demonstrations as the model reads them: (Observation, actions [R,H,A]), one host row per control step."""
    rows = as_rows(episodes, settings.policy.network.action_horizon)
    obs = observation.encode(to_model, rows.images, rows.state, rows.instructions)
    return obs, observation.encode_actions(to_model, rows.actions, rows.state)


def batches(encoded, batch_size: int, key):
    """Endless batches of encoded demonstrations, drawn by the key; host rows.  Each process takes its part of every batch."""
    generator, count = rng.generator(key), len(encoded[1])
    while True:
        drawn = generator.choice(count, batch_size, replace=count < batch_size)
        index = np.split(drawn, jax.process_count())[jax.process_index()]
        yield jax.tree.map(lambda leaf, index=index: leaf[index], encoded)


def teach(
    settings, params, mesh, to_model: observation.Transform, episodes: list[dict], key, progress
):
    """Run the SFT steps on the demonstrations -> (params, metrics of the last step).  Takes `params` over."""
    page = settings.raw.sft
    state, step = (
        sft.create_state(params, settings.sft, mesh),
        sft.make_sft_step(settings.sft, mesh),
    )
    drawn = batches(
        encode(settings, to_model, episodes), page.batch_size, rng.named(key, "sft", "batches")
    )
    noise_key, metrics = rng.named(key, "sft", "noise"), {}
    for _, batch in zip(range(page.steps), drawn):
        state, metrics = step(state, *meshes.put_batch(batch, mesh), noise_key)
        progress(1)
    return states.acting_params(state), jax.device_get(metrics)
