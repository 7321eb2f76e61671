"""Two processes of one mesh: an update of a rollout whose episodes are spread over both is that of
one process."""

import dataclasses
import os
import pathlib
import pickle
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from pirl_jax.core import mesh as meshes
from pirl_jax.learner import in_parts, objective, proximal, update
from pirl_jax.learner import state as states
from tests import at_once
from tests.learner import test_update

ROOT = pathlib.Path(__file__).parents[2]
# One minibatch holds all rows, so that it does not matter which host shuffles which.
CFG = dataclasses.replace(test_update.CFG, update_epochs=1, minibatch_size=32, importance_cap=1.05)
EPISODES = {0: [0, 1, 2], 1: [3, 4]}  # host -> columns
LENGTHS = np.array([4, 1, 3, 2, 4])


def rollout(columns):
    """These columns of a fixed rollout, with a policy of test_update."""
    rng, valid = np.random.default_rng(0), np.arange(4)[:, None] < LENGTHS
    reward, value = (rng.normal(size=valid.shape).astype(np.float32) for _ in range(2))
    rows = test_update.make_rows(valid.sum())
    here = np.isin(np.nonzero(valid.T)[0], columns)
    context, chain = jax.tree.map(lambda x: x[here], (rows.context, rows.chain))
    valid = valid[:, columns]
    episode, decision = np.nonzero(valid.T)
    grids = (x[:, columns] for x in (reward, value, value))
    version = np.array(columns, np.int32)[episode] % 2
    return test_update.types.Rollout(
        context, chain, decision, episode, *grids, ~valid, ~valid, valid, version
    )


def evaluate(mesh):
    """What older rows are looked at again with."""

    def run(params, chain, context):
        log_prob_BIa, _, value_B, _ = test_update.log_prob_fn(params, chain, context)
        return log_prob_BIa, value_B

    return jax.jit(run, out_shardings=meshes.replicated(mesh))


def learn(columns):
    """-> (advantages of these columns, parameters after an update, metrics).

    Episodes of even columns were played by older parameters.
    """
    mesh = meshes.make_mesh()
    cfg = dataclasses.replace(CFG, microbatch_size=16 // mesh.size)
    updater = update.Updater(
        test_update.log_prob_fn, cfg, test_update.OPTIM, test_update.trainable, mesh
    )
    state = states.create(
        test_update.make_params(mesh), test_update.OPTIM, test_update.trainable, mesh
    )
    played, key = rollout(columns), jax.random.key(0)
    with jax.transfer_guard("disallow"):
        passes = proximal.catching_up(evaluate(mesh), state.params, played, 1, CFG, mesh)
        played, weights = in_parts.drained(passes)
        data = objective.with_advantages(played, CFG)
        state, metrics = at_once.learn(updater, state, data, key)
    return data.advantage, jax.device_get(state.params), metrics | weights


def free_port() -> int:
    """Where the first of several processes may listen."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


@pytest.mark.slow
def test_two_hosts_learn_as_one(tmp_path):
    address = f"localhost:{free_port()}"
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.learner.test_two_hosts", address, str(tmp_path)]
    hosts = [
        subprocess.Popen([*command, str(host)], cwd=ROOT, env=environment) for host in EPISODES
    ]
    try:
        assert [host.wait(timeout=120) for host in hosts] == [0, 0]
    finally:
        for host in hosts:
            host.kill()
    mine = [pickle.loads((tmp_path / str(host)).read_bytes()) for host in EPISODES]
    with jax.default_device(jax.devices()[0]):
        advantage, params, metrics = learn(list(range(len(LENGTHS))))
    assert 0 < metrics["async/importance_masked_share"] < 0.5 and metrics["actor/kept"] < 1
    np.testing.assert_allclose(np.concatenate([host[0] for host in mine]), advantage, rtol=1e-5)
    for host in mine:
        test_update.assert_same(host[1], params, rtol=1e-5, atol=1e-6)
        test_update.assert_same(host[2], metrics, rtol=1e-3, atol=1e-5)


if __name__ == "__main__":
    jax.distributed.initialize(sys.argv[1], len(EPISODES), int(sys.argv[3]))
    pathlib.Path(sys.argv[2], sys.argv[3]).write_bytes(
        pickle.dumps(learn(EPISODES[int(sys.argv[3])]))
    )
