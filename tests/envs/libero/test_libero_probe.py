"""The physics probe passes with the pinned mujoco and notices where 3.4.0 leaves the bowl."""

import mujoco
import numpy as np
import pytest

from pirl_jax.envs.libero import probe


@pytest.mark.slow
def test_the_bowl_stands_on_the_ramekin(libero_assets, monkeypatch):
    monkeypatch.setenv("PIRL_LIBERO_ASSETS", str(libero_assets))
    found = probe.measure(range(7, 8))
    assert found["mujoco"] == mujoco.__version__ and found["fallen"] == []
    assert found["worst_m"] < 0.0005, "the rounding of the reference; all start states end there"


@pytest.mark.parametrize(
    "offset_m, stands",
    [
        ([-0.0145, 0.0006, 0.0351], True),  # at rest, mujoco 3.3.7
        ([-0.0145, -0.0344, 0.0421], False),  # after 15 settle steps, mujoco 3.4.0
        ([-0.0145, -0.0342, 0.0411], False),  # at rest, mujoco 3.4.0
        ([-0.0145, 0.0806, -0.0150], False),  # beside it on the table
    ],
)
def test_where_it_stands(offset_m, stands):
    assert probe.stands(np.array(offset_m)) is stands
