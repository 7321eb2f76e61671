"""Every field once, with unit and meaning.  A recipe imports this page and overrides at most ~25 lines.

The names under `model` and `algorithm` are those users of RLinf and openpi know.  Nothing is computed here: divisibility
checks and derived numbers live in pirl_jax/run/config.py.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 42
    config.num_iterations = 1000  # one iteration = one rollout + its updates
    config.env = _env()
    config.model = _model()
    config.rollout = _rollout()
    config.algorithm = _algorithm()
    config.optim = _optim()
    config.sft = _sft()
    config.eval = _eval()
    config.mesh = _section(
        data=-1,  # devices along the batch; -1: all that fsdp leaves
        fsdp=1,  # devices over which parameters and optimiser state are split; at most those of one host
    )
    config.run = _run()
    return config.lock()


def _section(**fields) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(fields)


def _env():
    return _section(
        suite="libero_spatial",  # libero_{spatial,object,goal,10,90,130} | tabletop | probe_*
        tasks=(),  # task indices used in training and evaluation; () = all
        image_size_px=256,  # rendered size of both cameras; resized to model.image_size_px with padding
        max_episode_steps=0,  # control steps until truncation; 0 = the protocol's, or the suite's own
        protocol="rlinf",  # LIBERO: time limits and settle steps of rlinf | openpi, which also sets model.action_chunk to 5
        assets="",  # LIBERO: folder of meshes and scenes; "" = $PIRL_LIBERO_ASSETS, else the libero package's download
        render_quality="exact",  # exact | light (fewer triangles or simple shapes, same physics); recorded in every result
        spread=1.0,  # tabletop: scale of the area in which the manipulated cube starts; 1.0 = 12 x 18 cm
        split="held_out",  # held_out: 80 % of each task's start states train, the others evaluate | published: all do both
        num_workers=8,  # simulator processes of each host
        render_devices=(),  # EGL device of each worker, in turn; () = the default device
        cached_tasks=2,  # tasks whose simulators a process keeps (LIBERO: about 0.5 GB each); episodes go where theirs is kept
        timeout_s=120.0,  # a simulator that answers later than this is replaced
        restarts_per_hour=20,  # replaced simulator processes before the run stops with the first cause
        recycle_episodes=0,  # a worker is replaced after so many episodes; 0 = never
        recycle_growth_gb=0.0,  # ... or once its memory has grown by so much; 0 = never
    )


def _model():
    return _section(
        preset="",  # pi0_libero | pi05_libero (pirl_jax/weights/presets.py), whose choices the fields below then are; "" = none
        size="full",  # full | small | tiny (pirl_jax/models/variants.py)
        pi05=False,  # pi0.5: time conditions every expert norm (adaRMS), no state token
        dtype="bfloat16",  # compute dtype
        frozen_dtype="float32",  # of the weights that do not train, once training starts: float32 | bfloat16
        attention="auto",  # over the prefix: cudnn (fused) | xla | auto = cudnn where a test on the device gives xla's numbers
        image_size_px=224,
        resize="host",  # to that size: host (Pillow, 0.8 ms an image; what published policies saw) | device (within 1 grey level)
        action_dim=32,  # model action dims; the simulator's 7 are zero-padded to it
        action_horizon=50,  # H, actions the model denoises per decision
        max_token_len=48,  # prompt tokens L
        tokenizer="",  # path of a SentencePiece model (PaliGemma's for published weights) | "byte"
        norm_stats="",  # path of norm_stats.json; "" = next to the weights, or from the SFT demonstrations
        norm_mode="zscore",  # zscore (pi0) | quantile (pi0.5)
        delta_actions=True,  # pi0-LIBERO: the first 6 action dims are predicted relative to the state
        discrete_state=False,  # pi0.5: write the state into the prompt
        checkpoint="",  # run directory, or a checkpoint of openpi, RLinf or LeRobot, to start from; "" = fresh weights, then sft
        gradient_checkpointing="none",  # none | dots | full
        train_expert_only=True,  # freeze the VLM (image tower, embedder, expert 0)
        is_lora=False,  # low-rank adapters train in the VLM's language layers; its other weights are frozen
        lora_rank=32,  # rank and alpha of the adapters
        lora_init="zeros",  # fresh adapters: zeros (factor B is 0, they change nothing) | openpi (both factors random)
        paligemma_variant="",  # openpi's names instead of is_lora: gemma_2b | gemma_2b_lora (rank 16); "" = that of `size`
        action_expert_variant="",  # gemma_300m | gemma_300m_lora (rank 32), whose other language weights are frozen
        noise_method="flow_sde",  # flow_sde | flow_noise (alias reinflow: learned std) | flow_cps | flow_ode
        noise_level=0.5,  # a of flow_sde and flow_cps, scale of the exploration noise
        noise_anneal=False,  # take the noise level from noise_params instead
        noise_params=(0.7, 0.3, 400),  # noise level at the start, at the end, iterations in between
        noise_logvar_range=(
            0.08,
            0.16,
        ),  # flow_noise: bounds of the learned std (the name is RLinf's)
        num_steps=4,  # J, denoise steps
        ignore_last=False,  # the last denoise step is never the stochastic one
        joint_logprob=False,  # all denoise steps are stochastic and scored; False: one, drawn per decision
        joint_mean=False,  # joint_logprob: mean over start noise and steps (RLinf) instead of the sum over the steps
        action_chunk=5,  # I, actions executed open loop per decision
        action_env_dim=7,  # action dims the simulator reads
        add_value_head=True,
        value_hidden=(512, 256, 128),
        value_after_vlm=False,  # the critic reads the VLM's output (published pi0.5) instead of the action features
        value_vlm_mode="mean_token",  # of its valid tokens: mean_token | first_token | last_token
        detach_critic_input=True,  # no gradient from the value loss into the network
        chunk_critic_input=False,  # value pools the first I action features instead of all H
    )


def _rollout():
    return _section(
        num_envs=64,  # simulators stepping at a time (slots), of each host
        num_groups=2,  # RLinf's pipeline_stage_num: the policy serves the first 1 / num_groups of the slots that are ready
        lockstep=False,  # fixed groups of slots take turns: slower, and runs repeat bit for bit
        episodes_per_iteration=512,  # whole episodes per rollout, of all hosts together
        prefix_cache="auto",  # of a frozen VLM, rollout to update: device | host | recompute (per microbatch); auto = by memory
        start_order="uniform",  # of (task, start state): uniform (with replacement) | ordered (each once before any twice)
    )


def _algorithm():
    return _section(
        adv_type="gae",  # gae (critic) | grpo | rloo | dr_grpo (against the group's scores; no critic, add_value_head=False)
        group_size=1,  # consecutive episodes that share task and start state
        filter_rewards=False,  # learn from groups only whose mean score lies in the bounds
        rewards_lower_bound=0.1,
        rewards_upper_bound=0.9,
        max_episodes_per_iteration=0,  # filtered groups and such of equal scores are replaced up to here (DAPO); 0 = off
        gamma=0.99,  # discount per decision
        gae_lambda=0.95,
        bootstrap_truncated=False,  # value of the last observation after a time limit; False: as RLinf, 0
        normalize_advantages=True,  # over the valid decisions of the whole rollout
        update_epochs=4,  # passes over one rollout
        minibatch_size=2048,  # decisions per optimiser step
        microbatch_size=128,  # decisions per forward-backward; 0 = the most, up to 128, that the memory plan finds room for
        clip_ratio_low=0.2,
        clip_ratio_high=0.2,
        clip_ratio_c=0.0,  # dual clip: bound of the loss of bad actions in units of |advantage|; 0 = off
        logprob_type="chunk",  # one probability ratio per chunk | action | token (entry of an action)
        value_clip=0.2,
        huber_delta=10.0,
        value_coef=1.0,
        entropy_bonus=0.0,  # reward per nat of the mean entropy of one action entry
        trajectory_weighting=True,  # every trajectory weighs the same; False: every decision weighs the same
        target_kl=0.0,  # stop the epochs of an iteration above this approximate KL; 0 = off
        critic_warmup_iterations=0,  # first iterations that only fit the value head
        anchor="kl",  # distance to the policy that training starts from: kl | velocity_mse
        anchor_coef=0.0,  # its weight in the loss; 0 = off
        sft_loss_weight=0.0,  # weight of the flow-matching loss on sft.demonstrations in every update; 0 = off
        ema_decay=0.0,  # of the averaged weights that are evaluated; 0 = off
    )


def _optim():
    return _section(
        lr=5e-6,
        value_lr=1e-4,  # value head
        b1=0.9,
        b2=0.95,
        eps=1e-8,
        weight_decay=0.01,
        clip_grad=1.0,  # global norm
        schedule="constant",  # constant | cosine | openpi_cosine; counts iterations, scales both rates
        warmup_steps=0,  # iterations
        decay_steps=0,  # iteration at which a cosine reaches its minimum
        min_lr_ratio=0.0,  # that minimum, as a fraction of the peak
    )


def _sft():
    return _section(
        demonstrations=0,  # scripted demonstrations per task that teach a fresh model first; 0 = no SFT stage
        action_noise=0.0,  # std of the noise on the executed expert actions; the clean action is the label
        steps=1000,
        batch_size=64,
        lr=1e-3,
        warmup_steps=50,
        weight_decay=1e-4,
        ema=0.0,  # decay of the averaged weights used afterwards; 0 = off
        augment=False,  # openpi's crop, rotation and colour jitter
    )


def _eval():
    return _section(
        episodes_per_task=0,  # start states of env.split used per task, in order; 0 = all
        num_envs=0,  # simulators of the evaluate command; 0 = as in the rollout.  Training evaluates on the rollout's
        every=0,  # iterations between evaluations during training; 0 = only at the end
        episodes_during_training=0,  # episodes per task of those; 0 = as episodes_per_task
        num_videos=1,  # first episodes of an evaluation that are recorded
        baseline=True,  # also evaluate the policy before reinforcement learning, for the final table
    )


def _run():
    return _section(
        directory="runs/default",
        save_every=40,  # iterations between checkpoints
        keep=2,  # checkpoints kept
        tensorboard=True,
        wandb=False,  # needs the wandb package and an account
        compilation_cache="~/.cache/pirl_jax",  # persistent XLA cache; "" = off
    )
