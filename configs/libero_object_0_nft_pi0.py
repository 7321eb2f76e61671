"""NFT of pi0 on task 0 of libero_object: RLinf's recipe, one iteration = 64 episodes = up to 3,072
decisions.

    python -m pirl_jax.train --config configs/libero_object_0_nft_pi0.py \
        --config.model.checkpoint=RUN_OR_SFT_DIR --config.model.tokenizer=paligemma_tokenizer.model

It is DiffusionNFT: it plays without exploration noise and learns from points between noise and the
chunk, with hardly any weight on failed episodes.  No published success; not reproduced by us yet.
Deviations: those of libero_spatial_grpo_pi0.py; an energy is over the 7 executed entries of an
action, not over all 32.
"""

import ml_collections

from pirl_jax.recipes import libero_spatial_grpo_pi0


def get_config() -> ml_collections.ConfigDict:
    config = libero_spatial_grpo_pi0.get_config()
    config.num_iterations = 100
    config.env.update(suite="libero_object", tasks=(0,))
    config.model.update(noise_method="flow_ode", noise_level=0.0)
    config.rollout.episodes_per_iteration = 64
    config.algorithm.update(loss="nft", minibatch_size=512, trajectory_weighting=False)
    config.nft.update(
        form="mse",
        target="x0",
        rows="resample",
        reduction="mean",
        weight_scale=(1.0, 0.2),
        label_clip=0.5,
        max_drift=0.0,
        tau=(1.0, 0.01, 20, 100),
    )
    config.run.directory = "runs/libero_object_0_nft_pi0"
    return config
