"""PPO of pi0 in libero_spatial: RLinf's published recipe, one iteration = 512 episodes = up to
24,576 decisions.

    python -m pirl_jax.train --config configs/libero_spatial_ppo_pi0.py \
        --config.model.checkpoint=RUN_OR_SFT_DIR --config.model.tokenizer=paligemma_tokenizer.model

Hardware of the published run: 8 x H100.  Published success: few-shot SFT 65.3 %, after PPO 98.4 %,
trained and evaluated on the same 500 start states (RLinf documentation).  Not reproduced by us yet.
Deviations: an episode ends at its success; the denoise index is drawn per row; the value at the
rollout is that of the stochastic step; a trajectory's weight is one over its decisions; advantages
are normalised over the whole rollout; minibatches are reshuffled every epoch; what trains is held
in float32.  The other fifteen published recipes are written as differences from this one.
"""

import ml_collections

from pirl_jax.recipes import base
from pirl_jax.weights import presets


def get_config() -> ml_collections.ConfigDict:
    config = base.get_config()  # its defaults are this recipe's hyper-parameters
    config.env.update(suite="libero_spatial", split="published")
    config.model.update(presets.named("pi0_libero"))
    config.run.directory = "runs/libero_spatial_ppo_pi0"
    return config
