"""GRPO of pi0 in libero_spatial: RLinf's published recipe, one iteration = 512 episodes = up to
24,576 decisions.

    python -m pirl_jax.train --config configs/libero_spatial_grpo_pi0.py \
        --config.model.checkpoint=RUN_OR_SFT_DIR --config.model.tokenizer=paligemma_tokenizer.model

Hardware of the published run: 8 x H100.  Published success: few-shot SFT 65.3 %, after GRPO 97.8 %
(RLinf documentation); not reproduced by us yet. Deviations: those of libero_spatial_ppo_pi0.py;
filtered groups enter no denominator and no network.
"""

import ml_collections

from pirl_jax.recipes import libero_spatial_ppo_pi0


def get_config() -> ml_collections.ConfigDict:
    config = libero_spatial_ppo_pi0.get_config()
    config.model.update(add_value_head=False)
    config.algorithm.update(adv_type="grpo", group_size=8, filter_rewards=True, update_epochs=2)
    config.run.directory = "runs/libero_spatial_grpo_pi0"
    return config
