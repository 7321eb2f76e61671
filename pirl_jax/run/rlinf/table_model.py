"""Keys of RLinf under `actor`: model, optimiser, sharding.  As table.py.

Knows no key of simulators and rollouts.
"""

from pirl_jax.run.rlinf import formulas, rows

OPENPI = (
    rows.same("actor.model.{model_type,model_name}", ("openpi",), "pi0 and pi0.5"),
    rows.carried(
        "actor.model.openpi.config_name actor.model.openpi.pi05",
        "model.preset",
        "and every field of the preset; pi05: True alone is pi05_libero",
        formulas.preset,
    ),
    rows.carried(
        "actor.model.model_path actor.checkpoint_load_path",
        "model.checkpoint",
        "unless it is a placeholder (/path/to/...)",
        formulas.weights,
    ),
    rows.carried(
        "actor.model.num_action_chunks actor.model.openpi.action_chunk",
        "model.action_chunk",
        "executed actions per decision",
    ),
    rows.carried("actor.model.openpi.num_steps actor.model.num_steps", "model.num_steps"),
    rows.carried(
        "actor.model.openpi.action_env_dim actor.model.action_dim", "model.action_env_dim"
    ),
    rows.carried(
        "actor.model.openpi.add_value_head actor.model.add_value_head",
        "model.add_value_head model.value_hidden",
        "the hidden layers follow from config_name",
        formulas.value_head,
    ),
    rows.carried(
        "actor.model.openpi.joint_logprob",
        "model.noise_steps model.joint_mean",
        "True: all, and RLinf's mean over start noise and steps",
        formulas.joint,
    ),
    *(
        rows.carried(f"actor.model.openpi.{name}", f"model.{name}")
        for name in (
            "noise_method",
            "noise_level",
            "noise_anneal",
            "ignore_last",
            "train_expert_only",
            "value_after_vlm",
            "value_vlm_mode",
            "detach_critic_input",
            "chunk_critic_input",
        )
    ),
    rows.carried(
        "actor.model.openpi.noise_params",
        "model.noise_params",
        "a tuple",
        formulas.as_tuple("model.noise_params"),
    ),
    rows.carried(
        "actor.model.openpi.noise_logvar_range",
        "model.noise_logvar_range",
        "a tuple",
        formulas.as_tuple("model.noise_logvar_range"),
    ),
    rows.same("actor.model.openpi.num_images_in_input", (2,), "both cameras"),
    rows.same("actor.model.openpi.safe_get_logprob", (False,), "the true log-density"),
    rows.same(
        "actor.model.openpi.{use_dsrl,is_nft,rtc_enabled}", (False,), "PPO and GRPO on the flow"
    ),
    rows.dropped("actor.model.openpi.{dsrl_*,nft_*,rtc_*,double_layer}", "of methods that are off"),
    rows.carried(
        "actor.model.is_lora", "model.is_lora", "the VLM's language layers; RLinf also SigLIP's"
    ),
    rows.carried("actor.model.lora_rank", "model.lora_rank"),
    rows.dropped("actor.model.lora_path", "adapters are part of model.checkpoint", True),
    rows.carried(
        "actor.model.gradient_checkpointing actor.fsdp_config.gradient_checkpointing",
        "model.gradient_checkpointing",
        "full or auto",
        formulas.recomputation,
    ),
    rows.carried(
        "actor.model.precision",
        "model.dtype",
        "of the arithmetic; what trains is float32. null: bfloat16",
        formulas.precision,
    ),
    rows.same(
        "actor.model.{use_wrist_image,use_proprio}", (True,), "both cameras, and pi0's state"
    ),
    rows.dropped("actor.model.sharding_strategy", "mesh.fsdp"),
    rows.dropped(
        "actor.model.{unnorm_key,image_size,policy_setup,vocab_size,hidden_size}",
        "not read for openpi",
    ),
)
ACTOR = (
    rows.carried("actor.seed", "seed"),
    rows.carried("actor.global_batch_size", "algorithm.minibatch_size", "decisions of all devices"),
    rows.carried(
        "actor.micro_batch_size",
        "algorithm.microbatch_size",
        "of one GPU there, of one device here",
    ),
    rows.carried("actor.optim.lr", "optim.lr"),
    rows.carried("actor.optim.value_lr", "optim.value_lr"),
    rows.carried("actor.optim.adam_beta1", "optim.b1"),
    rows.carried("actor.optim.adam_beta2", "optim.b2"),
    rows.carried("actor.optim.adam_eps", "optim.eps"),
    rows.carried("actor.optim.weight_decay", "optim.weight_decay"),
    rows.carried("actor.optim.clip_grad", "optim.clip_grad"),
    rows.carried(
        "actor.optim.critic_warmup_steps",
        "algorithm.critic_warmup_iterations",
        "ceil(optimiser steps / optimiser steps per iteration), which are ceil(episodes *"
        " max_episode_steps / num_action_chunks / global_batch_size) * update_epoch",
        formulas.critic_warmup,
    ),
    rows.carried(
        "actor.optim.lr_scheduler",
        "optim.schedule",
        "constant, cosine, openpi_cosine",
        formulas.schedule,
    ),
    rows.carried(
        "actor.optim.lr_warmup_steps actor.optim.lr_warmup_steps_ratio",
        "optim.warmup_steps",
        "iterations: RLinf's schedule moves once per step of the runner; ratio * total steps",
        formulas.warmup,
    ),
    rows.carried(
        "actor.optim.decay_steps actor.optim.total_training_steps",
        "optim.decay_steps",
        "iterations, likewise",
        formulas.decay,
    ),
    rows.carried(
        "actor.optim.min_lr_rate actor.optim.min_lr actor.optim.decay_lr",
        "optim.min_lr_ratio",
        "min_lr / lr",
        formulas.least_rate,
    ),
    rows.dropped("actor.optim.warmup_style", "RLinf does not read it"),
    rows.carried(
        "actor.fsdp_config.sharding_strategy actor.fsdp_config.fsdp_size",
        "mesh.fsdp",
        "1 for no_shard, fsdp_size where it is given",
        formulas.sharding,
    ),
    rows.dropped("actor.fsdp_config.strategy actor.training_backend", "FSDP strategy: mesh.fsdp"),
    rows.dropped(
        "actor.fsdp_config.{mixed_precision.*,amp.*,grad_scaler.*}",
        "model.dtype computes, float32 trains",
    ),
    rows.dropped("actor.fsdp_config.*", "of PyTorch's FSDP; mesh.fsdp shares weights over devices"),
    rows.same(
        "actor.enable_sft_co_train",
        (False,),
        "algorithm.sft_loss_weight on demonstrations of our own",
    ),
    rows.dropped("actor.sft_loss_weight actor.openpi_data.*", "algorithm.sft_loss_weight", True),
    rows.dropped("actor.checkpoint_save_path", "run.directory"),
    rows.dropped("actor.group_name actor.channel.*", "Ray: no counterpart"),
    rows.dropped("hydra.*", "Hydra's own"),
)
