"""The main job on two CPU cores: few-shot SFT of a small pi0, then PPO with flow-SDE exploration,
in MuJoCo with cameras.

    bash launch/quickstart.sh
"""

import ml_collections

from pirl_jax.recipes import tabletop_small


def get_config() -> ml_collections.ConfigDict:
    config = tabletop_small.get_config()
    config.num_iterations = 85
    config.optim.update(schedule="cosine", decay_steps=85, min_lr_ratio=0.1)
    config.sft.demonstrations = 18
    config.eval.update(episodes_per_task=150, every=20, episodes_during_training=50, num_videos=6)
    config.run.directory = "runs/quickstart"
    return config
