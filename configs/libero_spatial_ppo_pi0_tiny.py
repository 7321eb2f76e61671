"""The libero_spatial recipe with a tiny, untrained model and two simulators: shows that every part
runs in real LIBERO.

    python -m pirl_jax.train --config configs/libero_spatial_ppo_pi0_tiny.py

Minutes on two CPU cores; success stays 0 (nothing taught this model).
"""

import ml_collections

from pirl_jax.recipes import libero_spatial_ppo_pi0


def get_config() -> ml_collections.ConfigDict:
    config = libero_spatial_ppo_pi0.get_config()
    config.num_iterations = 2
    config.env.update(tasks=(0, 1), image_size_px=64, num_workers=2)
    config.model.update(
        preset="",
        size="tiny",
        dtype="float32",
        tokenizer="byte",
        norm_stats="identity",
        image_size_px=64,
        action_dim=8,
        action_horizon=10,
        max_token_len=96,
        delta_actions=False,
        value_hidden=(32, 16),
    )
    config.rollout.update(num_envs=2, episodes_per_iteration=2)
    config.algorithm.update(minibatch_size=64, microbatch_size=32, update_epochs=2)
    config.eval.update(episodes_per_task=1, baseline=False)
    config.run.update(directory="runs/libero_spatial_ppo_pi0_tiny", save_every=1)
    return config
