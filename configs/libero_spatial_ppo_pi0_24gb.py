"""PPO of pi0 in libero_spatial on one GPU with 24 GB: RLinf's quickstart sizes, one iteration = 64
episodes = up to 3,072 decisions.

    python -m pirl_jax.train --config configs/libero_spatial_ppo_pi0_24gb.py \
        --config.model.checkpoint=RUN_OR_SFT_DIR --config.model.tokenizer=paligemma_tokenizer.model

Device memory, planned from shapes (python -m pirl_jax.bench plan; not measured on a GPU): at most
20 GB, of which frozen VLM in bfloat16 6 GB, action expert in float32 with moments 4 GB.  Host
memory: kept prefixes of a rollout, 10 MB a decision, up to 31 GB; a host that cannot spare them
computes them again, which the memory plan says at the start. RLinf says that these sizes reach
about the success of the full recipe; not reproduced by us yet.
"""

import ml_collections

from pirl_jax.recipes import libero_spatial_ppo_pi0


def get_config() -> ml_collections.ConfigDict:
    config = libero_spatial_ppo_pi0.get_config()
    config.model.update(frozen_dtype="bfloat16", gradient_checkpointing="dots")
    config.rollout.update(num_envs=32, episodes_per_iteration=64)
    config.algorithm.update(minibatch_size=256, microbatch_size=32)
    config.optim.update(lr=1e-6)
    config.run.directory = "runs/libero_spatial_ppo_pi0_24gb"
    return config
