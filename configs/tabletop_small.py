"""The quickstart's task with fewer iterations: what launch/learning.sh compares the algorithms on.

    python -m pirl_jax.train --config configs/tabletop_small.py

Minutes per run on two CPU cores; results: docs/results/tabletop.json.
"""

import ml_collections

from pirl_jax.recipes import quickstart


def get_config() -> ml_collections.ConfigDict:
    config = quickstart.get_config()
    config.num_iterations = 40
    config.optim.update(schedule="constant")
    config.sft.demonstrations = 14  # of docs/results.md
    config.eval.update(episodes_per_task=100, every=0, num_videos=1)
    config.run.update(directory="runs/tabletop_small")
    return config
