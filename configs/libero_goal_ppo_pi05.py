"""PPO of pi0.5 in libero_goal: RLinf's published recipe, one iteration = 512 episodes = up to
32,768 decisions.

    python -m pirl_jax.train --config configs/libero_goal_ppo_pi05.py \
        --config.model.checkpoint=RUN_OR_SFT_DIR --config.model.tokenizer=paligemma_tokenizer.model

Hardware of the published run: 8 x H100.  Published success: few-shot SFT 84.6 %, after PPO 98.8 %
(RLinf documentation); not reproduced by us yet. Deviations: those of libero_spatial_ppo_pi0.py; the
critic pools the tokens that exist, not the padding.
"""

import ml_collections

from pirl_jax.recipes import libero_spatial_ppo_pi05


def get_config() -> ml_collections.ConfigDict:
    config = libero_spatial_ppo_pi05.get_config()
    config.env.suite = "libero_goal"
    config.model.update(num_steps=5, noise_level=0.3)
    config.algorithm.update(update_epochs=4)
    config.run.directory = "runs/libero_goal_ppo_pi05"
    return config
