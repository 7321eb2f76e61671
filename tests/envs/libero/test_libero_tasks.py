"""All 130 tasks of LIBERO live: built, reset, stepped and rendered in workers, as in training."""

import functools

import numpy as np
import pytest

from pirl_jax.envs.libero import suite
from tests import pools

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_every_task_of_libero(libero_assets):
    make = functools.partial(
        suite.make, "libero_130", libero_assets, image_size_px=64, cached_tasks=1
    )
    actions = np.random.default_rng(0).uniform(-1, 1, (2, 5, 7))
    first_images, ends = [], []
    with pools.start(make, num_envs=2, timeout_s=300) as envs:
        assert envs.spec.num_tasks == 130
        for task in range(0, 130, 2):
            envs.reset([0, 1], [task, task + 1], [task % 50, (task + 1) % 50])
            start = envs.recv([0, 1])
            envs.send([0, 1], actions)
            end = envs.recv([0, 1])
            assert not start.lost.any() and not end.lost.any(), f"task {task} or {task + 1}"
            assert (end.num_steps == 5).all() and np.isfinite(end.state).all()
            assert (start.images.reshape(2, 2, -1).std(-1) > 15).all(), (
                f"task {task} or {task + 1}: a camera shows nothing"
            )
            assert (np.abs(end.state[:, :3] - start.state[:, :3]).max(1) > 1e-3).all(), (
                "the arm moves"
            )
            first_images += list(start.images[:, 0])
            ends += list(end.state)
    assert len({image.tobytes() for image in first_images}) == 130, "no two tasks look the same"
    assert len({state.tobytes() for state in ends}) == 130
