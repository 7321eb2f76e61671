"""Real LIBERO on two CPU cores: few-shot SFT of a small model on a scripted expert's
demonstrations, then PPO with flow-SDE.

    python -m pirl_jax.train --config configs/libero_small.py

One libero_object task, images of 64 px, light rendering (the same physics).  All 50 start states
train and evaluate, as in the published protocol.  launch/learning.sh runs its variants; results:
docs/results/.
"""

import ml_collections

from pirl_jax.recipes import base


def get_config() -> ml_collections.ConfigDict:
    config = base.get_config()
    config.num_iterations = 24
    config.env.update(
        suite="libero_object",
        tasks=(0,),
        image_size_px=64,
        max_episode_steps=160,
        render_quality="light",
        split="published",
        num_workers=2,
    )
    config.model.update(
        size="small",
        dtype="float32",
        tokenizer="byte",
        image_size_px=64,
        action_dim=8,
        action_horizon=10,
        max_token_len=72,
        delta_actions=False,
        num_steps=2,
        value_hidden=(128, 64),
    )
    config.rollout.update(num_envs=16, lockstep=True, episodes_per_iteration=64)
    config.algorithm.update(minibatch_size=256, microbatch_size=256, critic_warmup_iterations=1)
    config.optim.update(lr=2e-4, value_lr=1e-3)
    config.sft.update(demonstrations=20, steps=900, lr=3e-3, action_noise=0.2)
    config.eval.update(episodes_per_task=50)
    config.run.update(directory="runs/libero_small", save_every=10)
    return config
