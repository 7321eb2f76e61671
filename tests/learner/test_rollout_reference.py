"""From a rollout to the rows of an update against the reference (e_rollout.npz).

Not compared: action_level rewards (values per control step; a_gae has their recursion,
tests/rl/test_advantages.py), rewards mixed with a reward model, the normalisations of the pipelined
and the asynchronous trainer, torch's permutations (ours are redrawn per epoch).
"""

import json

import numpy as np
import pytest
import reference_files

from pirl_jax.core import page, types
from pirl_jax.learner import objective
from pirl_jax.rl import losses
from pirl_jax.rollout import stats, stream

FILE = "rlinf/e_rollout.npz"
CHUNK_LEVEL = [f"ppo_pre_{i:02}" for i in range(16) if i % 4 < 2]
BOOTSTRAPS = [
    f"bootstrap_{i:02}" for i in range(40) if i % 10 < 5
]  # the others mix in a reward model


@pytest.fixture(scope="module")
def file(vectors):
    with np.load(vectors / FILE) as opened:
        yield opened


def as_columns(x_RB, epochs):
    """[epochs * T, B, ...] -> [T, epochs * B, ...]: one column per episode."""
    parts = np.split(x_RB, epochs)
    return np.concatenate(parts, axis=1)


def make_rollout(reward_CE, value_CE, next_value_CE, terminated_CE, truncated_CE, valid_CE):
    decision, episode = np.nonzero(valid_CE)
    return types.Rollout(
        context=np.zeros(len(decision)),
        chain=None,
        decision_R=decision,
        episode_R=episode,
        reward_CE=reward_CE,
        value_CE=value_CE,
        next_value_CE=next_value_CE,
        terminated_CE=terminated_CE,
        truncated_CE=truncated_CE,
        valid_CE=valid_CE,
    )


@pytest.mark.parametrize("case", reference_files.having(FILE, CHUNK_LEVEL))
def test_advantages_and_returns(file, case):
    meta, get = json.loads(str(file[f"{case}/meta"])), lambda name: file[f"{case}/{name}"]
    reward = as_columns(get("in/rewards"), meta["rollout_epoch"]).sum(-1)
    done = as_columns(get("in/dones"), meta["rollout_epoch"]).any(-1)[1:]
    value = as_columns(get("in/prev_values"), meta["rollout_epoch"])[..., 0]
    masked = f"{case}/out/loss_mask" in file.files
    valid = get("out/loss_mask")[..., 0] if masked else np.ones(reward.shape, bool)
    rollout = make_rollout(reward, value[:-1], value[1:], done, np.zeros_like(done), valid)
    data = objective.with_advantages(
        rollout, page.Algorithm(gamma=meta["gamma"], gae_lambda=meta["gae_lambda"])
    )
    np.testing.assert_allclose(
        data.advantage, get("out/advantages")[..., 0][valid], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        data.return_, get("out/returns")[..., 0][valid], rtol=1e-4, atol=1e-5
    )
    metrics = stats.rollout_metrics(rollout, data)
    for name in ("returns_max", "returns_min", "returns_mean", "advantages_max", "advantages_min"):
        np.testing.assert_allclose(
            metrics[f"rollout/{name}"], meta["rollout_metrics"][name], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("case", reference_files.having(FILE, BOOTSTRAPS))
def test_what_a_time_limit_adds(file, case):
    """The reference adds gamma V(last observation) to the reward; for us it is the bootstrap of a
    truncated decision."""
    meta, get = json.loads(str(file[f"{case}/meta"])), lambda name: file[f"{case}/{name}"]
    terminated, truncated = (
        get(f"in/{name}")[None, :, -1] for name in ("terminations", "truncations")
    )
    ends = (truncated | terminated) if meta["bootstrap_type"] == "always" else truncated
    reward, final = get("in/rewards").sum(-1)[None], get("in/bootstrap_values").T
    zero = np.zeros_like(reward)
    rollout = make_rollout(reward, zero, final, ~ends, ends, np.ones(reward.shape, bool))
    cfg = page.Algorithm(
        gamma=meta["gamma"], bootstrap_truncated=meta["auto_reset"], normalize_advantages=False
    )
    np.testing.assert_allclose(
        objective.with_advantages(rollout, cfg).return_,
        get("out/rewards").sum(-1),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("level", ["chunk", "action", "token"])
def test_log_probs_are_reduced_alike(file, level):
    case = f"preprocess_loss_inputs_{level}_level"
    for name in ("logprobs", "old_logprobs"):
        got = losses.reduce_log_prob(file[f"{case}/in/{name}"], level)
        np.testing.assert_allclose(got, file[f"{case}/out/{name}"].reshape(got.shape), rtol=1e-5)


def test_metrics_are_means_over_all_episodes(file):
    get = lambda name: np.concatenate([file[f"evaluate_metrics/in/{name}.{i}"] for i in range(3)])  # noqa: E731
    columns = get("success_once"), get("return"), get("episode_len")
    results = [
        stream.Result(
            stream.Episode(0, 0),
            success=bool(success),
            reward=float(reward),
            num_steps=int(length),
        )
        for success, reward, length in zip(*columns, strict=True)
    ]
    metrics = stats.episode_metrics(results)
    for name in ("return", "num_trajectories", "success_once", "episode_len"):
        np.testing.assert_allclose(
            metrics[f"env/{name}"], file[f"evaluate_metrics/out/{name}"], rtol=1e-5
        )
