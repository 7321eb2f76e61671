"""Configurations of embodied openpi runs as RLinf's users write them, in our own words.

The numbers are those of RLinf's published LIBERO runs.
"""

import pytest

omegaconf = pytest.importorskip("omegaconf", reason="omegaconf is not installed")

PPO = """
defaults:
  - env/libero_spatial@env.train
  - env/libero_spatial@env.eval
  - model/pi0@actor.model
  - training_backend/fsdp@actor.fsdp_config
  - weight_syncer/patch_syncer@weight_syncer
  - override hydra/job_logging: stdout

hydra:
  run: {dir: .}
  output_subdir: null
  searchpath:
    - file://${oc.env:EMBODIED_PATH}/config/

cluster:
  num_nodes: 1
  component_placement:
    actor,env,rollout: all

runner:
  task_type: embodied
  logger:
    log_path: results
    project_name: rlinf
    experiment_name: spatial_ppo
    logger_backends: [tensorboard]
  max_epochs: 1000
  max_steps: -1
  only_eval: False
  val_check_interval: -1
  save_interval: 40
  resume_dir: null
  ckpt_path: null

algorithm:
  normalize_advantages: True
  kl_penalty: kl
  kl_beta: 0.0
  group_size: 1
  reward_coef: 1.0
  reward_type: chunk_level
  logprob_type: chunk_level
  entropy_type: token_level
  entropy_bonus: 0
  update_epoch: 4
  adv_type: gae
  loss_type: actor_critic
  loss_agg_func: token-mean
  clip_ratio_low: 0.2
  clip_ratio_high: 0.2
  clip_ratio_c: 3.0
  value_clip: 0.2
  huber_delta: 10.0
  gamma: 0.99
  gae_lambda: 0.95
  filter_rewards: False
  rewards_lower_bound: 0.1
  rewards_upper_bound: 0.9
  sampling_params: {do_sample: True, temperature_train: 1.0}
  length_params: {max_new_token: null}

env:
  group_name: EnvGroup
  enable_offload: False
  train:
    rollout_epoch: 8
    total_num_envs: 64
    auto_reset: False
    ignore_terminations: False
    max_episode_steps: 240
    max_steps_per_rollout_epoch: 240
    use_rel_reward: True
    use_step_penalty: False
    reset_gripper_open: True
    use_fixed_reset_state_ids: True
    use_ordered_reset_state_ids: False
    specific_reset_id: null
    seed: 0
    init_params: {camera_heights: 256, camera_widths: 256}
    video_cfg:
      save_video: False
      info_on_video: True
      video_base_dir: ${runner.logger.log_path}/video/train
  eval:
    rollout_epoch: 1
    total_num_envs: 500
    auto_reset: True
    ignore_terminations: True
    max_episode_steps: 240
    max_steps_per_rollout_epoch: 240
    group_size: 1
    is_eval: True
    video_cfg:
      save_video: True
      video_base_dir: ${runner.logger.log_path}/video/eval

rollout:
  group_name: RolloutGroup
  generation_backend: huggingface
  recompute_logprobs: False
  unnorm_key: libero_10
  enable_offload: False
  pipeline_stage_num: 1
  model:
    model_path: ${actor.model.model_path}
    precision: ${actor.model.precision}

actor:
  group_name: ActorGroup
  training_backend: fsdp
  micro_batch_size: 128
  global_batch_size: 2048
  seed: 42
  enable_offload: False
  model:
    model_type: openpi
    model_path: /path/to/model/RLinf-Pi0-LIBERO-Spatial-Object-Goal-SFT
    precision: null
    num_action_chunks: 5
    action_dim: 7
    num_steps: 4
    is_lora: False
    lora_rank: 32
    add_value_head: True
    openpi:
      config_name: pi0_libero
      num_images_in_input: 2
      noise_level: 0.5
      action_chunk: ${actor.model.num_action_chunks}
      num_steps: ${actor.model.num_steps}
      train_expert_only: True
      action_env_dim: ${actor.model.action_dim}
      noise_method: flow_sde
      add_value_head: ${actor.model.add_value_head}
      detach_critic_input: True
  optim:
    lr: 5.0e-6
    value_lr: 1.0e-4
    adam_beta1: 0.9
    adam_beta2: 0.95
    adam_eps: 1.0e-08
    weight_decay: 0.01
    clip_grad: 1.0
    critic_warmup_steps: 0
  fsdp_config:
    strategy: fsdp
    sharding_strategy: no_shard
    gradient_checkpointing: False
    mixed_precision:
      param_dtype: ${actor.model.precision}

reward:
  use_reward_model: False
critic:
  use_critic_model: False
"""

# An earlier generation of RLinf's files: simulators and their counts under `algorithm`.
OLDER = """
cluster:
  num_nodes: 2
  component_placement: {actor: 0-7, "env,rollout": 0-7}
runner:
  task_type: embodied
  logger: {log_path: ../results, experiment_name: test_openpi, logger_backends: [wandb]}
  max_epochs: 500
  max_steps: 200
  save_interval: -1
algorithm:
  auto_reset: False
  group_size: 8
  num_group_envs: 16
  rollout_epoch: 4
  max_episode_steps: 300
  n_chunk_steps: 60
  adv_type: embodied_grpo
  loss_type: embodied_actor
  filter_rewards: True
env:
  train: {simulator_type: libero, task_suite_name: libero_goal, video_cfg: {save_video: True}}
rollout:
  model_dir: weights/pi05
  pipeline_stage_num: 2
actor:
  checkpoint_load_path: weights/pi05
  micro_batch_size: 32
  global_batch_size: 2048
  seed: 7
  model:
    model_name: openpi
    num_action_chunks: 5
    action_dim: 7
    num_steps: 3
    is_lora: True
    lora_rank: 16
    gradient_checkpointing: True
    openpi:
      noise_level: 0.3
      noise_method: reinflow
      pi05: True
      joint_logprob: True
  optim: {lr: 1.0e-5}
"""


def changed(text: str, changes: dict[str, object]) -> str:
    """The YAML with other values of some keys, dotted."""
    whole = omegaconf.OmegaConf.create(text)
    for key, value in changes.items():
        omegaconf.OmegaConf.update(whole, key, value, force_add=True)
    return omegaconf.OmegaConf.to_yaml(whole)


def recipe(name: str, row: tuple) -> str:
    """One of the sixteen published configurations.

    row: denoise steps, noise level, executed actions, update epochs, gradient clip.
    """
    *suite, algorithm, model = name.split("_")
    suite = "_".join(suite)
    steps, level, chunk, epochs, clip = row
    limit = {"libero_goal": 320, "libero_10": 480}.get(suite, 240)
    changes = {
        "env.train.task_suite_name": suite,
        "env.eval.task_suite_name": suite,
        "env.train.max_episode_steps": limit,
        "env.train.max_steps_per_rollout_epoch": limit,
        "actor.model.num_steps": steps,
        "actor.model.num_action_chunks": chunk,
        "actor.model.openpi.noise_level": level,
        "algorithm.update_epoch": epochs,
        "actor.optim.clip_grad": clip,
    }
    if model == "pi05":
        changes["actor.model.openpi.config_name"] = "pi05_libero"
        changes["actor.model.openpi.value_after_vlm"] = algorithm == "ppo"
    if algorithm == "grpo":
        changes |= {
            "algorithm.adv_type": "grpo",
            "algorithm.loss_type": "actor",
            "algorithm.group_size": 8,
            "env.train.group_size": 8,
            "algorithm.filter_rewards": True,
            "actor.model.add_value_head": False,
        }
    if name == "libero_10_ppo_pi05":
        changes |= {
            "actor.optim.lr_scheduler": "cosine",
            "actor.optim.total_training_steps": 1000,
            "actor.optim.min_lr_rate": 0.1,
        }
    text = changed(PPO, changes)
    # Its files of pi0.5 say nothing of it.
    return text.replace("      detach_critic_input: true\n", "") if model == "pi05" else text
