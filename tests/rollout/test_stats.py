import types

import numpy as np

from pirl_jax.rollout import episodes
from pirl_jax.rollout import stats

RESULTS = [
    episodes.Result(episodes.Episode(1, 0), success=True, reward=1.0, num_steps=10),
    episodes.Result(episodes.Episode(0, 3), success=False, reward=0.0, num_steps=20),
    episodes.Result(episodes.Episode(1, 1), success=False, reward=0.5, num_steps=30),
    episodes.Result(episodes.Episode(1, 2), success=True, reward=2.5, num_steps=20),
]


def test_episode_metrics_are_means_over_episodes():
    assert stats.episode_metrics(RESULTS) == {
        "env/success_once": 0.5, "env/return": 1.0, "env/episode_len": 20.0, "env/num_trajectories": 4.0,
    }  # fmt: skip


def test_per_task_rows_come_in_the_order_of_the_tasks():
    assert stats.per_task(RESULTS, ("push", "lift")) == [
        {"task": 0, "instruction": "push", "episodes": 1, "successes": 0, "episode_len": 20.0},
        {"task": 1, "instruction": "lift", "episodes": 3, "successes": 2, "episode_len": 20.0},
    ]


def test_rollout_metrics_count_valid_decisions_only():
    rollout = types.SimpleNamespace(
        valid_CE=np.array([[True, True], [True, False]]),
        reward_CE=np.array([[0.0, 1.0], [2.0, 99.0]]),
        value_CE=np.array([[0.5, 0.5], [2.0, 99.0]]),
    )
    data = types.SimpleNamespace(return_=np.array([1.0, 2.0, 6.0]), advantage=np.array([-1.0, 0.0, 1.0]))
    metrics = stats.rollout_metrics(rollout, data)
    assert (metrics["rollout/decisions"], metrics["rollout/rewards"], metrics["rollout/values_mean"]) == (3, 1, 1)
    assert [metrics[f"rollout/returns_{part}"] for part in ("mean", "max", "min")] == [3, 6, 1]
    assert [metrics[f"rollout/advantages_{part}"] for part in ("mean", "max", "min")] == [0, 1, -1]
