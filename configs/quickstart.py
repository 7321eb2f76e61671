"""The main job on two CPU cores: few-shot SFT of a small pi0, then GRPO with flow-SDE exploration,
in MuJoCo with cameras.

    bash launch/quickstart.sh

What made it learn from nearly every start state (docs/results.md, "Which start states fail"):

* Demonstrations that cover the table, with openpi's augmentation.  Where a policy never succeeds,
  reinforcement learning has nothing to learn from.
* Dynamic sampling: of each iteration's start states those count that have both succeeded and
  failed.
"""

import ml_collections

from pirl_jax.recipes import tabletop_small


def get_config() -> ml_collections.ConfigDict:
    config = tabletop_small.get_config()
    config.num_iterations = 80
    config.model.add_value_head = False
    config.rollout.episodes_per_iteration = 128
    config.algorithm.update(
        adv_type="grpo",
        group_size=8,
        filter_rewards=True,
        max_episodes_per_iteration=320,
        target_kl=0.06,
        critic_warmup_iterations=0,
    )
    config.optim.update(schedule="cosine", decay_steps=80, min_lr_ratio=0.1)
    config.sft.update(demonstrations=14, starts="covering", augment=True)
    config.eval.update(episodes_per_task=150, every=20, episodes_during_training=50, num_videos=6)
    config.run.directory = "runs/quickstart"
    return config
