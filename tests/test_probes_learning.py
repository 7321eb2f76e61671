"""The whole agent on the five probes: the first that it cannot solve names the broken part."""

import functools
import types

import jax
import numpy as np
import pytest

from pirl_jax.core import mesh as meshes
from pirl_jax.core import page, rng
from pirl_jax.envs import probes
from pirl_jax.envs.pool import queue
from pirl_jax.learner import objective, optimizer, update
from pirl_jax.learner import state as states
from pirl_jax.monitor import timeline
from pirl_jax.recipes import probe as recipe
from pirl_jax.rollout import collector, stream
from pirl_jax.run import config, policies, steps
from tests import at_once, pools


@pytest.fixture(scope="module")
def agent():
    """Everything that is compiled, once for all probes: they share shapes and instruction."""
    page = recipe.get_config()
    settings = config.settings(page)
    mesh = meshes.make_mesh(1, 1, jax.devices()[:1])
    instructions = probes.make("constant").spec.instructions
    actor = policies.actor(
        settings,
        mesh,
        policies.transform(settings, policies.given_stats(settings), instructions),
        instructions,
    )
    trains = optimizer.trainable(settings.policy.network, page.model.train_expert_only)
    params = jax.device_get(policies.fresh_params(settings, mesh, jax.random.key(0)))
    return types.SimpleNamespace(
        settings=settings,
        page=page,
        actor=actor,
        fresh_state=lambda: states.create(
            meshes.replicate(params, mesh), settings.raw.optim, trains, mesh
        ),
        updater=update.Updater(
            steps.log_prob_fn(settings), settings.raw.algorithm, settings.raw.optim, trains, mesh
        ),
    )


def play(agent, params, pool, key):
    generator, count = rng.generator(key), agent.page.rollout.episodes_per_iteration
    drawn = [int(generator.integers(pool.spec.num_init_states)) for _ in range(count)]
    episodes = [stream.Episode(0, init_state) for init_state in drawn]
    playing = stream.Stream(pool, episodes, page.Rollout(num_groups=1), 1)
    book = collector.collect(agent.actor, params, key, playing, timeline.Timers())
    return book.rollout(playing.results), playing.results


def value_error(agent, rollout, results):
    """RMS distance of the values from the discounted rewards that followed.

    In the first three probes it can vanish.
    """
    future_E, target_CE = 0.0, np.zeros_like(rollout.reward_CE)
    for c in reversed(range(len(target_CE))):
        target_CE[c] = future_E = (
            rollout.reward_CE[c] + agent.settings.raw.algorithm.gamma * future_E
        )
    return float(np.sqrt(np.mean((rollout.value_CE - target_CE)[rollout.valid_CE] ** 2)))


def missed_return(agent, rollout, results):
    """How far the mean return stays below the best possible, 1."""
    return 1.0 - float(np.mean([result.reward for result in results]))


# probe, error, below what it is solved, iterations: two to four times what it takes
CASES = [
    ("constant", value_error, 0.1, 20),
    ("observed", value_error, 0.1, 40),
    ("delayed", value_error, 0.1, 20),
    ("action", missed_return, 0.2, 60),
    ("conditioned", missed_return, 0.2, 80),
]


@pytest.mark.parametrize("name, error, solved, iterations", CASES, ids=[case[0] for case in CASES])
def test_the_agent_solves(name, error, solved, iterations, agent):
    state, errors = agent.fresh_state(), []
    envs = pools.start(
        functools.partial(probes.make, name), agent.page.rollout.num_envs, num_workers=1
    )
    with envs, queue.ReadyQueue(envs) as pool:
        for iteration in range(iterations):
            key = rng.named(jax.random.key(1), iteration)
            rollout, results = play(agent, state.params, pool, key)
            errors.append(error(agent, rollout, results))
            if errors[-1] < solved:
                return
            data = objective.with_advantages(rollout, agent.settings.raw.algorithm)
            state, _ = at_once.learn(agent.updater, state, data, key)
    broken = probes.PROBES[name].broken_part
    pytest.fail(f"broken: {broken}; probe {name!r} has errors {np.round(errors, 2)}")
