"""GRPO of pi0 in libero_goal: RLinf's published recipe, one iteration = 512 episodes = up to 32,768
decisions.

    python -m pirl_jax.train --config configs/libero_goal_grpo_pi0.py \
        --config.model.checkpoint=RUN_OR_SFT_DIR --config.model.tokenizer=paligemma_tokenizer.model

Hardware of the published run: 8 x H100.  Published success: few-shot SFT 49.8 %, after GRPO 83.2 %
(RLinf documentation); not reproduced by us yet. Deviations: those of libero_spatial_ppo_pi0.py;
filtered groups enter no denominator and no network.
"""

import ml_collections

from pirl_jax.recipes import libero_spatial_grpo_pi0


def get_config() -> ml_collections.ConfigDict:
    config = libero_spatial_grpo_pi0.get_config()
    config.env.suite = "libero_goal"
    config.run.directory = "runs/libero_goal_grpo_pi0"
    return config
