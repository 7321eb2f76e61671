"""Every key of an embodied openpi run of RLinf, once: which field it becomes, or why none.

Those of model and optimiser stand in table_model.py, formulas of several keys in formulas.py.  The
table in docs/rlinf.md is made from ROWS.  Reads no file.
"""

from pirl_jax.run.rlinf import formulas, losses, rows, table_model

CLUSTER = (
    rows.Row(
        ("cluster.component_placement.*",),
        ("placement.env", "placement.rollout", "placement.actor"),
        "the same devices in every role: all that are here; numbers are those of a host",
        formulas.placement,
    ),
    rows.same("cluster.num_nodes", (1,), "hosts are a matter of the start: launch/hosts.sh", False),
    rows.dropped(
        "cluster.{node_groups,node_groups.*,profiling.*,component_placement}", "Ray: no counterpart"
    ),
    rows.dropped(
        "weight_syncer.* runner.weight_sync_interval", "one copy of the weights plays and learns"
    ),
)
RUNNER = (
    rows.same("runner.task_type", ("embodied", "embodied_eval"), "train, or evaluate"),
    rows.carried(
        "runner.logger.log_path runner.logger.experiment_name",
        "run.directory run.experiment_name",
        "log_path / experiment_name",
        formulas.directory,
    ),
    rows.carried(
        "runner.logger.logger_backends",
        "run.backends",
        "with commas between; metrics.jsonl is always written",
        formulas.backends,
    ),
    rows.carried("runner.logger.project_name", "run.project_name"),
    rows.carried(
        "runner.max_epochs runner.max_steps",
        "num_iterations",
        "the smaller of both; -1 is no limit. A step there is an iteration here",
        formulas.iterations,
    ),
    rows.carried("runner.val_check_interval", "eval.every", "0 for -1", formulas.evaluation_every),
    rows.carried(
        "runner.save_interval",
        "run.save_every",
        "num_iterations for -1, which is the end alone",
        formulas.save_every,
    ),
    rows.same("runner.only_eval", (False,), "pirl evaluate takes the same file as --config", False),
    rows.carried(
        "runner.ckpt_path", "model.checkpoint", "in place of model_path", formulas.weights
    ),
    rows.dropped(
        "runner.resume_dir",
        "optimiser and counters of RLinf are not read; model.checkpoint takes its"
        " actor/model_state_dict/full_weights.pt",
        True,
    ),
    rows.dropped("runner.overlap_env_bootstrap", "simulators are always reset during the update"),
    rows.dropped("runner.use_training_pipeline", "the update begins when the rollout is whole"),
    rows.dropped(
        "runner.enable_decoupled_mode", "inference always serves whichever simulators are ready"
    ),
    rows.dropped(
        "runner.{seq_length,max_prompt_length}", "model.max_token_len follows from config_name"
    ),
    rows.dropped("runner.per_worker_log", "the share of each worker is not logged"),
)
ALGORITHM = (
    rows.carried("algorithm.adv_type", "algorithm.adv_type", "gae or grpo", formulas.advantages),
    rows.carried(
        "algorithm.loss_type",
        "algorithm.loss algorithm.clip_ratio_c",
        "ppo, clip_ratio_c 0; of decoupled_actor_critic clip_ratio_c is the file's, or 3",
        losses.loss,
    ),
    rows.carried(
        "algorithm.group_size env.train.group_size",
        "algorithm.group_size",
        "",
    ),
    *(
        rows.carried(f"algorithm.{name}", f"algorithm.{name}")
        for name in (
            "normalize_advantages",
            "filter_rewards",
            "rewards_lower_bound",
            "rewards_upper_bound",
            "gamma",
            "gae_lambda",
            "clip_ratio_low",
            "clip_ratio_high",
            "value_clip",
            "huber_delta",
            "entropy_bonus",
        )
    ),
    rows.carried("algorithm.update_epoch", "algorithm.update_epochs"),
    rows.carried(
        "algorithm.logprob_type",
        "algorithm.logprob_type",
        "without _level",
        formulas.logprob,
    ),
    rows.same("algorithm.reward_type", ("chunk_level",), "a reward per decision"),
    rows.dropped("algorithm.entropy_type", "the mean entropy of one entry, as RLinf's openpi"),
    rows.carried(
        "algorithm.clip_ratio_c",
        "algorithm.clip_ratio_c",
        "of decoupled_actor_critic; RLinf does not read it for the other losses of openpi",
        losses.dual_clip,
    ),
    rows.dropped(
        "algorithm.loss_agg_func",
        "RLinf does not read it for openpi; algorithm.trajectory_weighting is what it does",
    ),
    rows.dropped(
        "algorithm.{kl_beta,kl_penalty}",
        "RLinf does not read it for openpi; algorithm.anchor_coef pulls towards the first policy",
    ),
    rows.carried(
        "algorithm.staleness_threshold",
        "rollout.max_staleness",
        "of decoupled_actor_critic; nothing older is played, so that nothing is dropped",
        losses.staleness,
    ),
    rows.carried(
        "algorithm.behave_weight_threshold",
        "algorithm.importance_cap",
        "of decoupled_actor_critic; 2 where the file has none, which there masks nothing",
        losses.importance_cap,
    ),
    rows.dropped(
        "algorithm.{rollout_store_size_per_rank,on_policy_min_ratio}",
        "asynchronous PPO: an update begins when its batch is whole",
    ),
    rows.dropped(
        "algorithm.sampling_params.* algorithm.length_params.*", "of language models, not of openpi"
    ),
    rows.dropped(
        "algorithm.{n_chunk_steps,n_eval_chunk_steps}", "follows from time limit and chunk"
    ),
    rows.dropped("algorithm.eval_rollout_epoch", "an evaluation plays each start state once"),
    rows.same("reward.use_reward_model", (False,), "the simulator's own success"),
    rows.same(
        "critic.use_critic_model", (False,), "the value head is part of the policy's network"
    ),
)
ENV = (
    rows.same("env.{train,eval}.{env_type,simulator_type}", ("libero",), "LIBERO"),
    rows.carried(
        "env.train.task_suite_name", "env.suite env.split", "split: published", formulas.suite
    ),
    rows.dropped("env.eval.task_suite_name", "evaluated is what is trained"),
    rows.carried(
        "env.train.total_num_envs env.train.num_envs algorithm.num_group_envs",
        "rollout.num_envs",
        "all of them / cluster.num_nodes; num_group_envs * group_size in older files",
        formulas.simulators,
    ),
    rows.carried(
        "env.train.rollout_epoch algorithm.rollout_epoch env.train.max_steps_per_rollout_epoch",
        "rollout.episodes_per_iteration",
        "total_num_envs * rollout_epoch, of all hosts together; with auto_reset also"
        " * (max_steps_per_rollout_epoch // max_episode_steps)",
        formulas.episodes,
    ),
    rows.carried(
        "env.train.max_episode_steps algorithm.max_episode_steps",
        "env.max_episode_steps",
        "control steps; 0 where it is RLinf's published limit of the suite",
        formulas.time_limit,
    ),
    rows.carried(
        "env.train.auto_reset algorithm.auto_reset",
        "algorithm.bootstrap_truncated",
        "RLinf bootstraps after a time limit where it resets",
    ),
    rows.carried(
        "env.train.task_id_filter", "env.tasks", "a tuple", formulas.as_tuple("env.tasks")
    ),
    rows.carried(
        "env.train.use_ordered_reset_state_ids algorithm.use_ordered_reset_state_ids",
        "rollout.start_order",
        "ordered or uniform",
        formulas.start_order,
    ),
    rows.carried(
        "env.train.init_params.{camera_heights,camera_widths}",
        "env.image_size_px",
        "square",
        formulas.image_size,
    ),
    rows.dropped("env.{train,eval}.seed", "every draw follows from seed, which is actor.seed"),
    rows.same("env.{train,eval}.use_rel_reward", (True,), "a success is rewarded once"),
    rows.same("env.{train,eval}.use_step_penalty", (False,), "a step costs nothing"),
    rows.same("env.train.reward_coef algorithm.reward_coef", (1, 1.0), "a success is worth 1"),
    rows.same(
        "env.{train,eval}.reset_gripper_open", (True,), "grippers open while a start state settles"
    ),
    rows.dropped(
        "env.train.ignore_terminations algorithm.ignore_terminations",
        "an episode ends at its success and the slot starts the next",
    ),
    rows.dropped(
        "env.train.use_fixed_reset_state_ids algorithm.use_fixed_reset_state_ids",
        "a group shares its start state, and each rollout draws new ones",
    ),
    rows.same(
        "env.train.specific_reset_id algorithm.specific_reset_id",
        (),
        "env.tasks chooses tasks; a single start state cannot be chosen",
    ),
    rows.dropped("env.train.bootstrap_type", "of time limits alone (standard)"),
    rows.carried(
        "env.eval.total_num_envs env.eval.num_envs",
        "eval.episodes_per_task",
        "0 = all where it plays every start state, else those episodes / tasks, rounded up;"
        " eval.num_envs=0, as many simulators as in the rollout",
        formulas.evaluated,
    ),
    rows.dropped(
        "env.eval.{rollout_epoch,max_steps_per_rollout_epoch,auto_reset,ignore_terminations,"
        "group_size,is_eval}",
        "an evaluation plays each start state once, until success or time limit",
    ),
    rows.dropped("env.eval.reward_coef", "an evaluation counts successes"),
    rows.dropped(
        "env.eval.{use_fixed_reset_state_ids,use_ordered_reset_state_ids,specific_reset_id}",
        "an evaluation plays the start states in order",
    ),
    rows.dropped(
        "env.eval.max_episode_steps", "the same limit as in training, env.max_episode_steps"
    ),
    rows.carried(
        "env.eval.video_cfg.save_video",
        "eval.num_videos",
        "1 or 0: a file per episode, not one picture of all",
        formulas.videos("eval.num_videos"),
    ),
    rows.dropped(
        "env.eval.video_cfg.*", "videos lie in the run directory and always show what happens"
    ),
    rows.carried(
        "env.train.video_cfg.save_video",
        "video.train",
        "1 or 0: the first episode of each iteration",
        formulas.videos("video.train"),
    ),
    rows.carried("env.train.video_cfg.info_on_video", "video.info"),
    rows.carried("env.train.video_cfg.video_base_dir", "video.directory"),
    rows.dropped("env.train.video_cfg.*", "one image for each decision, as fast as the robot"),
    rows.same(
        "env.enable_offload env.{train,eval}.enable_offload",
        (False,),
        "simulators keep no weights on a device",
        False,
    ),
    rows.dropped(
        "env.{train,eval}.{only_eval,num_task,num_group,num_images_in_input,init_params.*}",
        "RLinf's own bookkeeping; follows from suite and group size",
    ),
    rows.dropped("env.group_name env.channel.* env.data_collection.*", "Ray: no counterpart"),
)
ROLLOUT = (
    rows.carried(
        "rollout.pipeline_stage_num", "rollout.num_groups", "2 lets simulators step meanwhile"
    ),
    rows.Row(
        ("rollout.model.model_path", "rollout.model_dir"),
        (),
        "one copy of the weights, actor.model's",
        formulas.other_weights,
    ),
    rows.carried(
        "actor.enable_offload",
        "placement.offload",
        "`optimizer` where it is True; parameters stay",
        lambda source, value: {"placement.offload": "optimizer"} if value else {},
    ),
    rows.same(
        "rollout.enable_offload",
        (False,),
        "one copy of the weights plays and learns, and stays on the devices",
        False,
    ),
    rows.dropped(
        "rollout.recompute_logprobs",
        "of older rows they are computed, and values with them, never interpolated"
        " (algorithm.importance=recompute)",
    ),
    rows.dropped("rollout.unnorm_key", "RLinf does not read it for openpi; model.norm_stats"),
    rows.dropped("rollout.collect_final_values", "no policy runs for a value that nobody reads"),
    rows.dropped(
        "rollout.{enable_torch_compile,torch_compile_mode,enable_cuda_graph}",
        "XLA compiles everything",
    ),
    rows.dropped(
        "rollout.{group_name,channel.*,mode,backend,generation_backend,rollout_backend,"
        "rollout_queue_size,precision,model.*}",
        "Ray, its channels and backends: no counterpart",
    ),
)
# A key belongs to the first row that holds it.
ROWS = (*CLUSTER, *RUNNER, *ALGORITHM, *ENV, *ROLLOUT, *table_model.OPENPI, *table_model.ACTOR)

HEAD = """## Your configuration

```
pip install 'pirl_jax[rlinf]'
pirl from-rlinf CONFIG.yaml --output RECIPE.py
pirl bench plan --recipes RECIPE.py --limit-gb 80  # does it fit? Without weights
pirl train --config RECIPE.py --config.model.checkpoint=DIR --config.model.tokenizer=FILE
```

`from-rlinf` reads the YAML of an embodied openpi run in LIBERO as RLinf is started with it, writes
a recipe of ours, and prints what was carried over and what was not, each key with the reason. Files
of its defaults list are looked for beside it and in `hydra.searchpath`; for RLinf's published
`env/libero_*`, `model/pi0` and `model/pi0_5` it knows what they say. `train`, `evaluate` and
`serve` take the YAML as `--config`, too, and then say in short what is not carried over.

What to know of the units: a microbatch is counted per device, there as here, all else over all of
them. A step of its runner is an iteration here, and its schedules move once per step. A
rollout there lasts a number of control steps and repeats `rollout_epoch` times; here it has that
number of episodes.

The table is made from the one that `from-rlinf` goes through, by
`python -m pirl_jax.run.rlinf.table`. Where a row has several keys, the first that is there counts.

| RLinf | here | how, or why not |
|---|---|---|"""


def as_markdown() -> str:
    """The section of docs/rlinf.md."""
    return "\n".join([HEAD, *map(_cells, ROWS)]) + "\n"


def _cells(row: rows.Row) -> str:
    names = ", ".join(f"`{key}`" for key in row.keys)
    fields = ", ".join(f"`{name}`" for name in row.fields) or "-"
    words = row.words
    if row.only:
        only = " or ".join(f"`{value!r}`" for value in dict.fromkeys(map(str, row.only)))
        words = f"{only.replace(chr(39), '')} is what happens here: {words}"
    return f"| {names} | {fields} | {words} |"


if __name__ == "__main__":
    print(as_markdown(), end="")
