"""PPO of pi0.5 in libero_spatial: RLinf's published recipe, one iteration = 512 episodes = up to
24,576 decisions.

    python -m pirl_jax.train --config configs/libero_spatial_ppo_pi05.py \
        --config.model.checkpoint=RUN_OR_SFT_DIR --config.model.tokenizer=paligemma_tokenizer.model

Hardware of the published run: 8 x H100.  Published success: few-shot SFT 84.6 %, after PPO 99.6 %
(RLinf documentation); not reproduced by us yet. Deviations: those of libero_spatial_ppo_pi0.py; the
critic pools the tokens that exist, not the padding.
"""

import ml_collections

from pirl_jax.recipes import libero_spatial_ppo_pi0
from pirl_jax.weights import presets


def get_config() -> ml_collections.ConfigDict:
    config = libero_spatial_ppo_pi0.get_config()
    config.model.update(presets.named("pi05_libero"))
    config.model.update(num_steps=3, value_after_vlm=True, value_hidden=(1024, 512, 256))
    config.algorithm.update(update_epochs=1)
    config.run.directory = "runs/libero_spatial_ppo_pi05"
    return config
