import types

import numpy as np

from pirl_jax.rollout import stats, stream

RESULTS = [
    stream.Result(stream.Episode(1, 0), success=True, reward=1.0, num_steps=10),
    stream.Result(stream.Episode(0, 3), success=False, reward=0.0, num_steps=20),
    stream.Result(stream.Episode(1, 1), success=False, reward=0.5, num_steps=30),
    stream.Result(stream.Episode(1, 2), success=True, reward=2.5, num_steps=20),
]


def test_episode_metrics_are_means_over_episodes():
    assert stats.episode_metrics(RESULTS) == {
        "env/success_once": 0.5,
        "env/return": 1.0,
        "env/episode_len": 20.0,
        "env/num_trajectories": 4.0,
    }


def test_lost_episodes_do_not_count():
    lost = stream.Result(stream.Episode(0, 4), lost=True)
    assert stats.episode_metrics([*RESULTS, lost]) == stats.episode_metrics(RESULTS)
    rows = stats.per_task(
        [*RESULTS, lost, stream.Result(stream.Episode(2, 0), lost=True)],
        ("push", "lift", "open"),
    )
    assert [(row["episodes"], row["lost"]) for row in rows] == [(1, 1), (3, 0), (0, 1)]
    assert rows[2]["episode_len"] is None
    assert np.isnan(stats.episode_metrics([lost])["env/success_once"])


def test_faults_of_an_iteration_are_differences_of_counters():
    before, after = (
        {"restarts": 2, "recycled": 0, "lost_episodes": 3},
        {"restarts": 3, "recycled": 1, "lost_episodes": 7},
    )
    assert stats.fault_metrics(before, after) == {
        "env/restarts": 1.0,
        "env/recycled": 1.0,
        "env/lost_episodes": 4.0,
    }


def test_equal_instructions_get_the_number_of_their_task():
    assert stats.labels(("push", "lift", "push")) == ["push (task 0)", "lift", "push (task 2)"]


def test_per_task_rows_come_in_the_order_of_the_tasks():
    assert stats.per_task(RESULTS, ("push", "lift")) == [
        {
            "task": 0,
            "instruction": "push",
            "episodes": 1,
            "lost": 0,
            "successes": 0,
            "episode_len": 20.0,
        },
        {
            "task": 1,
            "instruction": "lift",
            "episodes": 3,
            "lost": 0,
            "successes": 2,
            "episode_len": 20.0,
        },
    ]


def test_rollout_metrics_count_valid_decisions_only():
    rollout = types.SimpleNamespace(
        valid_CE=np.array([[True, True], [True, False]]),
        reward_CE=np.array([[0.0, 1.0], [2.0, 99.0]]),
        value_CE=np.array([[0.5, 0.5], [2.0, 99.0]]),
    )
    data = types.SimpleNamespace(
        return_=np.array([1.0, 2.0, 6.0]), advantage=np.array([-1.0, 0.0, 1.0])
    )
    metrics = stats.rollout_metrics(rollout, data)
    assert (
        metrics["rollout/decisions"],
        metrics["rollout/rewards"],
        metrics["rollout/values_mean"],
    ) == (3, 1, 1)
    assert [metrics[f"rollout/returns_{part}"] for part in ("mean", "max", "min")] == [3, 6, 1]
    assert [metrics[f"rollout/advantages_{part}"] for part in ("mean", "max", "min")] == [0, 1, -1]
