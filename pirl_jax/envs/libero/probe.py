"""Physics probe: does the bowl of libero_spatial task 5 still stand on its ramekin once settled?

The stored start states overlap a little; how fast contacts push overlapping bodies apart depends
on mujoco's version.  Up to 3.3.7 the bowl comes to rest on the ramekin, from 3.4.0 on it is
thrown to the rim, and published success rates of this task are out of reach.  `python -m
pirl_jax.envs.libero.probe FIRST LAST` answers for start states [FIRST, LAST).
"""

from collections.abc import Iterable
import sys

import mujoco
import numpy as np

from pirl_jax.envs import child
from pirl_jax.envs.libero import suite

SUITE = "libero_spatial"
TASK = 5
BOWL = "akita_black_bowl_1_main"
RAMEKIN = "glazed_rim_porcelain_ramekin_1_main"
# Bowl minus ramekin at rest, the same in all 50 start states: measured with mujoco 3.3.7 and
# LIBERO's own collision geometry.  3.4.0 ends 35 mm away from it.
OFFSET_M = np.array([-0.0145, 0.0006, 0.0351])
TOLERANCE_M = 0.005


def stands(offset_m: np.ndarray) -> bool:
    """Whether the bowl, `offset_m` [3] from the ramekin, is where it belongs."""
    return _distance_m(offset_m) < TOLERANCE_M


def measure(init_states: Iterable[int]) -> dict:
    """What became of the bowl.

    {"mujoco": version, "fallen": start states whose bowl left its place, "worst_m": largest
    distance from it}.
    """
    env = suite.make(SUITE, image_size_px=64)
    fallen = []
    distances_m = []
    try:
        for init_state in init_states:
            offset_m = _offset(env, init_state)
            distances_m.append(_distance_m(offset_m))
            if not stands(offset_m):
                fallen.append(init_state)
    finally:
        env.close()
    return {"mujoco": mujoco.__version__, "fallen": fallen, "worst_m": max(distances_m)}


def _distance_m(offset_m: np.ndarray) -> float:
    return float(np.linalg.norm(offset_m - OFFSET_M))


def _offset(env: suite.Libero, init_state: int) -> np.ndarray:
    """Bowl minus ramekin [3] (m) after a reset and its settle steps."""
    env.reset(TASK, init_state)
    data = env.simulator.data
    return data.body(BOWL).xpos - data.body(RAMEKIN).xpos


if __name__ == "__main__":
    child.answer(lambda: measure(range(int(sys.argv[1]), int(sys.argv[2]))))
