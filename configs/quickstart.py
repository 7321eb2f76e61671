"""The main job on two CPU cores: few-shot SFT of a small pi0, then PPO with flow-SDE exploration, in MuJoCo with cameras.

    bash launch/quickstart.sh
"""

from configs import base


def get_config():
    config = base.get_config()
    config.num_iterations = 40
    config.env.update(
        suite="tabletop", tasks=(0,), image_size_px=64, max_episode_steps=50, render_quality="light",
        train_init_states=(0, 800), num_workers=2,
    )
    config.model.update(
        size="small", dtype="float32", tokenizer="byte", image_size_px=64, action_dim=8, action_horizon=10,
        max_token_len=20, delta_actions=False, value_hidden=(128, 64),
    )
    config.rollout.update(num_envs=64, num_groups=2, episodes_per_iteration=256)
    config.algorithm.update(minibatch_size=512, microbatch_size=256, update_epochs=4)
    config.optim.update(lr=1e-4, value_lr=1e-3)
    config.sft.update(demonstrations=64, steps=2000, action_noise=0.2)
    config.eval.update(init_states=(800, 1000), episodes_per_task=100, every=10, episodes_during_training=32, num_videos=6)
    config.run.update(directory="runs/quickstart", save_every=10)
    return config
