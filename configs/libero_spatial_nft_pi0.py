"""pi-StepNFT of pi0 in libero_spatial, with our defaults: every denoise step is a noisy one and is
learned from, labels against the other episodes of a group.

    python -m pirl_jax.train --config configs/libero_spatial_nft_pi0.py \
        --config.model.checkpoint=RUN_OR_SFT_DIR --config.model.tokenizer=paligemma_tokenizer.model

No published run; what differs from the two published settings is in docs/algorithms.md.  Rollout,
optimiser and filter are those of libero_spatial_grpo_pi0.py.
"""

import ml_collections

from pirl_jax.recipes import libero_spatial_grpo_pi0


def get_config() -> ml_collections.ConfigDict:
    config = libero_spatial_grpo_pi0.get_config()
    config.model.update(noise_steps="all")
    config.algorithm.update(loss="nft", adv_type="rloo")
    config.run.directory = "runs/libero_spatial_nft_pi0"
    return config
