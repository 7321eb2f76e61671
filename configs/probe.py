"""A probe environment and a tiny pi0: the whole program in half a minute, without a simulator.  For
tests and first aid: the first probe that cannot be learned names the broken part
(pirl_jax/envs/probes.py).

    python -m pirl_jax.train --config configs/probe.py
    python -m pirl_jax.train --config configs/probe.py --config.env.suite=probe_action

Every episode of a probe ends in success; what must grow is env/return: 0 without looking, above 0.8
after 40 iterations.
"""

import ml_collections

from pirl_jax.recipes import base


def get_config() -> ml_collections.ConfigDict:
    config = base.get_config()
    config.num_iterations = 40
    config.env.update(suite="probe_conditioned", image_size_px=16, split="published", num_workers=1)
    config.model.update(
        size="tiny",
        dtype="float32",
        tokenizer="byte",
        norm_stats="identity",
        image_size_px=16,
        action_dim=8,
        action_horizon=5,
        max_token_len=20,
        delta_actions=False,
        num_steps=2,
        noise_level=0.7,
        value_hidden=(32, 32),
        detach_critic_input=False,
    )
    config.rollout.update(num_envs=32, episodes_per_iteration=64)
    config.algorithm.update(minibatch_size=32, microbatch_size=32)
    config.optim.update(lr=1e-3, value_lr=3e-3)
    config.eval.update(num_videos=0)
    config.run.update(directory="runs/probe", backends="jsonl")
    return config
