"""ConfigDict -> what each part of the system needs.  Every check of a user's value and every derived number, once."""

import dataclasses

import ml_collections

from pirl_jax.core import types
from pirl_jax.envs import probes
from pirl_jax.envs.libero import files
from pirl_jax.learner import optimizer, sft, update
from pirl_jax.models import attention, heads, remat, variants
from pirl_jax.policy import flow, noise, normalize, tokenizer
from pirl_jax.rl import losses
from pirl_jax.rollout import starts, stream
from pirl_jax.weights import presets

POSITIVE = (
    ("env", "num_workers"),
    ("env", "cached_tasks"),
    ("model", "action_env_dim"),
    ("model", "action_chunk"),
    ("model", "num_steps"),
    ("rollout", "num_envs"),
    ("rollout", "num_groups"),
    ("rollout", "episodes_per_iteration"),
    ("model", "lora_rank"),
    ("algorithm", "group_size"),
    ("algorithm", "update_epochs"),
    ("algorithm", "minibatch_size"),
    ("run", "save_every"),
    ("run", "keep"),
)
NOT_NEGATIVE = (
    ("env", "restarts_per_hour"),
    ("env", "recycle_episodes"),
    ("env", "recycle_growth_gb"),
    ("eval", "episodes_per_task"),
    ("eval", "episodes_during_training"),
    ("algorithm", "max_episodes_per_iteration"),
    ("algorithm", "microbatch_size"),
)
SUITES = (*files.SUITES, "tabletop", *(f"probe_{name}" for name in probes.PROBES))
PREFIX_CACHES = ("auto", "device", "host", "recompute")
MODEL_SIZES = {
    "full": ("pi0", "pi05"),
    "small": ("small", "small_pi05"),
    "tiny": ("tiny", "tiny_pi05"),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """A checked configuration.  `raw` keeps the page for what is read only once."""

    raw: ml_collections.FrozenConfigDict
    policy: flow.PolicyConfig
    update: update.UpdateConfig
    optim: optimizer.OptimizerConfig
    sft: sft.SftConfig

    @property
    def prefix_cache(self) -> str:
        """Where the prefix of a decision lies between rollout and update: device | host | recompute (nowhere)."""
        chosen = self.raw.rollout.prefix_cache
        return ("host" if _frozen_vlm(self.raw) else "recompute") if chosen == "auto" else chosen

    @property
    def keep_prefix(self) -> bool:
        """With a frozen VLM the prefix is computed once per decision, at the rollout, and kept for the updates."""
        return self.prefix_cache != "recompute"

    @property
    def schedule(self) -> stream.Schedule:
        """How the simulators are served."""
        rollout = self.raw.rollout
        return stream.Schedule(rollout.num_groups, rollout.lockstep, self.raw.env.cached_tasks)


def settings(raw: ml_collections.ConfigDict) -> Settings:
    """Check a configuration page -> Settings; ValueError is one sentence with the value and the remedy."""
    raw = ml_collections.FrozenConfigDict(raw)
    for name, value, choices in (
        ("env.suite", raw.env.suite, SUITES),
        ("model.size", raw.model.size, MODEL_SIZES),
        ("model.preset", raw.model.preset, ("", *presets.PRESETS)),
        ("model.noise_method", raw.model.noise_method, (*noise.METHODS, *noise.ALIASES)),
        ("model.value_vlm_mode", raw.model.value_vlm_mode, heads.POOLS),
        ("algorithm.adv_type", raw.algorithm.adv_type, update.ADV_TYPES),
        ("algorithm.logprob_type", raw.algorithm.logprob_type, losses.LOG_PROB_LEVELS),
        ("algorithm.anchor", raw.algorithm.anchor, flow.ANCHORS),
        ("model.norm_mode", raw.model.norm_mode, normalize.MODES),
        ("model.dtype", raw.model.dtype, ("float32", "bfloat16")),
        ("model.lora_init", raw.model.lora_init, variants.LORA_INITS),
        ("model.paligemma_variant", raw.model.paligemma_variant, ("", *variants.GEMMA)),
        ("model.action_expert_variant", raw.model.action_expert_variant, ("", *variants.GEMMA)),
        ("model.frozen_dtype", raw.model.frozen_dtype, ("float32", "bfloat16")),
        ("model.resize", raw.model.resize, ("host", "device")),
        ("model.attention", raw.model.attention, ("auto", *attention.IMPLEMENTATIONS)),
        ("model.gradient_checkpointing", raw.model.gradient_checkpointing, remat.POLICIES),
        ("env.render_quality", raw.env.render_quality, ("exact", "light")),
        ("env.protocol", raw.env.protocol, files.PROTOCOLS),
        ("env.split", raw.env.split, starts.SPLITS),
        ("rollout.start_order", raw.rollout.start_order, starts.ORDERS),
        ("rollout.prefix_cache", raw.rollout.prefix_cache, PREFIX_CACHES),
    ):
        if value not in choices:
            raise types.unknown(name, value, choices)
    _check_counts(raw)
    _check_ranges(raw)
    _check_algorithm(raw)
    return Settings(
        raw=raw, policy=_policy(raw), update=_update(raw), optim=_optim(raw), sft=_sft(raw)
    )


def _check_counts(raw):
    """What must be at least 1, and everything that must divide something else."""
    for section, name in POSITIVE:
        if raw[section][name] < 1:
            raise ValueError(f"{section}.{name}={raw[section][name]} must be at least 1")
    divisions = (
        ("rollout.num_envs", raw.rollout.num_envs, "rollout.num_groups", raw.rollout.num_groups),
        ("eval.num_envs", raw.eval.num_envs, "rollout.num_groups", raw.rollout.num_groups),
        (
            "algorithm.minibatch_size",
            raw.algorithm.minibatch_size,
            "algorithm.microbatch_size",
            raw.algorithm.microbatch_size or 1,
        ),
        (
            "rollout.episodes_per_iteration",
            raw.rollout.episodes_per_iteration,
            "algorithm.group_size",
            raw.algorithm.group_size,
        ),
        (
            "algorithm.max_episodes_per_iteration",
            raw.algorithm.max_episodes_per_iteration,
            "algorithm.group_size",
            raw.algorithm.group_size,
        ),
    )
    for name, value, divisor_name, divisor in divisions:
        if value % divisor:
            raise ValueError(f"{name}={value} must be a multiple of {divisor_name}={divisor}")
    if _action_chunk(raw) > raw.model.action_horizon:
        raise ValueError(
            f"model.action_chunk={_action_chunk(raw)} exceeds model.action_horizon={raw.model.action_horizon}; "
            f"execute at most as many actions as the model predicts"
        )
    if raw.model.action_env_dim > raw.model.action_dim or raw.model.action_dim < 8:
        raise ValueError(
            f"model.action_dim={raw.model.action_dim} must hold the 8-D state and the simulator's actions"
        )


def _check_ranges(raw):
    """Lists of numbers, and what depends on the suite."""
    for name, meaning in (("tasks", "task indices"), ("render_devices", "EGL devices")):
        values = raw.env[name]
        if not all(isinstance(value, int) and value >= 0 for value in values):
            raise ValueError(
                f"env.{name}={values} must hold {meaning}, for example --config.env.{name}=0,1"
            )
    for section, name in NOT_NEGATIVE:
        if raw[section][name] < 0:
            raise ValueError(f"{section}.{name}={raw[section][name]} must be at least 0")
    if raw.sft.demonstrations and raw.env.suite not in ("tabletop", *files.WITH_EXPERT):
        raise ValueError(
            f"env.suite={raw.env.suite!r} has no scripted expert; set sft.demonstrations=0 and model.checkpoint"
        )
    if raw.sft.demonstrations and not (raw.sft.steps and raw.sft.batch_size):
        raise ValueError(
            f"sft.demonstrations={raw.sft.demonstrations} needs sft.steps={raw.sft.steps} and "
            f"sft.batch_size={raw.sft.batch_size} to be at least 1"
        )


def _check_algorithm(raw):
    """Which options of model and algorithm exclude each other."""
    model, algorithm = raw.model, raw.algorithm
    if model.joint_logprob and model.ignore_last:
        raise ValueError(
            f"model.ignore_last={model.ignore_last} has no meaning with model.joint_logprob=True, where every step is stochastic; "
            f"drop one"
        )
    if raw.rollout.prefix_cache in ("device", "host") and not _frozen_vlm(raw):
        raise ValueError(
            f"rollout.prefix_cache={raw.rollout.prefix_cache!r} keeps what changes with every update while the VLM trains "
            f"(model.train_expert_only={model.train_expert_only}, model.is_lora={model.is_lora}); set it to 'recompute' or 'auto'"
        )
    if flow.num_choices(_policy(raw)) < 1:
        raise ValueError(
            f"model.num_steps={model.num_steps} leaves no stochastic step to model.noise_method={model.noise_method!r} with "
            f"model.ignore_last={model.ignore_last}; set num_steps to at least 2"
        )
    if model.is_lora and model.paligemma_variant:
        raise ValueError(
            f"model.is_lora={model.is_lora} and model.paligemma_variant={model.paligemma_variant!r} both say which "
            f"adapters the VLM has; drop one"
        )
    if wrong := presets.contradictions(model):
        raise ValueError(
            f"model.preset={model.preset!r} has {', '.join(wrong)}; leave these fields alone or set model.preset="
        )
    low, high = model.noise_logvar_range
    if not 0 < low < high:
        raise ValueError(
            f"model.noise_logvar_range={(low, high)} must be (lowest, highest) std with 0 < lowest < highest"
        )
    if model.noise_anneal and (len(model.noise_params) != 3 or min(model.noise_params) <= 0):
        raise ValueError(
            f"model.noise_params={model.noise_params} must be (first level, last level, iterations), all above 0"
        )
    if algorithm.clip_ratio_c and algorithm.clip_ratio_c <= 1:
        raise ValueError(
            f"algorithm.clip_ratio_c={algorithm.clip_ratio_c} must be above 1, or 0 for no dual clip"
        )


def check_training(raw):
    """What evaluation may have and learning may not."""
    critic, grouped = raw.algorithm.adv_type == "gae", raw.algorithm.group_size > 1
    if critic != raw.model.add_value_head:
        raise ValueError(
            f"algorithm.adv_type={raw.algorithm.adv_type!r} {'needs a critic' if critic else 'has no critic'}; "
            f"set model.add_value_head={critic}"
        )
    if (critic and raw.algorithm.filter_rewards) or (not critic and not grouped):
        raise ValueError(
            f"algorithm.adv_type={raw.algorithm.adv_type!r} does not go with algorithm.group_size={raw.algorithm.group_size} and "
            f"algorithm.filter_rewards={raw.algorithm.filter_rewards}; groups of at least 2 and the filter are for adv_type=grpo"
        )
    budget, first = raw.algorithm.max_episodes_per_iteration, raw.rollout.episodes_per_iteration
    if budget and (budget < first or not raw.algorithm.filter_rewards):
        raise ValueError(
            f"algorithm.max_episodes_per_iteration={budget} replaces filtered groups: it needs algorithm.filter_rewards=True and "
            f"at least rollout.episodes_per_iteration={first}; 0 switches it off"
        )
    if not critic and raw.algorithm.critic_warmup_iterations:
        raise ValueError(
            f"algorithm.critic_warmup_iterations={raw.algorithm.critic_warmup_iterations} needs a critic; "
            f"set it to 0 with algorithm.adv_type={raw.algorithm.adv_type!r}"
        )
    if raw.algorithm.sft_loss_weight and not raw.sft.demonstrations:
        raise ValueError(
            f"algorithm.sft_loss_weight={raw.algorithm.sft_loss_weight} needs demonstrations; "
            f"set sft.demonstrations (it is {raw.sft.demonstrations}) to at least 1"
        )
    learned, level = raw.model.noise_method in ("flow_noise", "reinflow"), raw.model.noise_level
    if raw.model.noise_method == "flow_ode" or not (learned or raw.model.noise_anneal or level > 0):
        raise ValueError(
            f"model.noise_method={raw.model.noise_method!r} with model.noise_level={raw.model.noise_level} explores nothing, "
            f"so there is nothing to learn; use flow_sde with a positive noise_level"
        )


def check_batches(raw, num_devices: int, hosts: int = 1):
    """Batches are split over the devices of the mesh, those of a rollout over the host's own; episodes are split over the hosts."""
    devices = num_devices, f"{num_devices} devices of the mesh"
    own = (
        (num_devices // hosts, f"{num_devices // hosts} devices of a host")
        if hosts > 1
        else devices
    )
    groups = (
        hosts * raw.algorithm.group_size,
        f"{hosts} hosts times algorithm.group_size={raw.algorithm.group_size}",
    )
    for name, size, (divisor, what) in (
        (
            "rollout.num_envs / rollout.num_groups",
            raw.rollout.num_envs // raw.rollout.num_groups,
            own,
        ),
        ("eval.num_envs / rollout.num_groups", raw.eval.num_envs // raw.rollout.num_groups, own),
        ("algorithm.microbatch_size", raw.algorithm.microbatch_size, devices),
        ("sft.batch_size", raw.sft.batch_size if raw.sft.demonstrations else 0, devices),
        ("rollout.episodes_per_iteration", raw.rollout.episodes_per_iteration, groups),
        ("algorithm.max_episodes_per_iteration", raw.algorithm.max_episodes_per_iteration, groups),
    ):
        if size % divisor:
            raise ValueError(f"{name}={size} must be a multiple of the {what}")


def playable(raw, spec) -> starts.Starts:
    """The configured tasks and the start states of the split, checked against the suite."""
    chosen = tuple(raw.env.tasks) or tuple(range(spec.num_tasks))
    for task in chosen:
        if task not in range(spec.num_tasks):
            raise ValueError(
                f"env.tasks has {task}; suite {spec.suite!r} has tasks 0 to {spec.num_tasks - 1}"
            )
    train, evaluate = starts.split(raw.env.split, spec.num_init_states)
    for name, count, states in (
        ("eval.episodes_per_task", raw.eval.episodes_per_task, evaluate),
        ("eval.episodes_during_training", raw.eval.episodes_during_training, evaluate),
        ("sft.demonstrations", raw.sft.demonstrations, train),
    ):
        if count > len(states):
            raise ValueError(
                f"{name}={count} exceeds the {len(states)} start states ({states.start} to {states.stop - 1}) that "
                f"env.split={raw.env.split} leaves it per task of suite {spec.suite!r}; each is played once"
            )
    return starts.Starts(chosen, train, evaluate)


def rules(raw) -> files.Protocol | None:
    """The protocol of a LIBERO suite; the other suites have limits of their own."""
    return files.PROTOCOLS[raw.env.protocol] if raw.env.suite in files.SUITES else None


def changed(current: Settings, changes: dict) -> Settings:
    """With other values of some fields, {"section.field": value}, checked again."""
    page = ml_collections.ConfigDict(current.raw)
    for name, value in changes.items():
        section, _, field = name.partition(".")
        page[section][field] = value
    return settings(page)


def _frozen_vlm(raw) -> bool:
    """Whether no update changes what the VLM computes."""
    return raw.model.train_expert_only and _policy(raw).model.paligemma.lora is None


def _action_chunk(raw) -> int:
    """Executed actions per decision: the protocol's, or the model's own."""
    protocol = rules(raw)
    return protocol.replan_steps if protocol and protocol.replan_steps else raw.model.action_chunk


def _policy(raw) -> flow.PolicyConfig:
    model = raw.model
    size = MODEL_SIZES[model.size][int(model.pi05)]
    changes = dict(
        dtype=model.dtype,
        remat=model.gradient_checkpointing,
        attention=model.attention,
        action_dim=model.action_dim,
        action_horizon=model.action_horizon,
        max_token_len=model.max_token_len,
        image_size=(model.image_size_px,) * 2,
    )
    if model.tokenizer == "byte":
        changes["vocab_size"] = tokenizer.ByteTokenizer.vocab_size
    for field, name in (
        ("paligemma", model.paligemma_variant),
        ("expert", model.action_expert_variant),
    ):
        if name:
            changes[field] = variants.GEMMA[name]
    network = variants.pi0_config(size, **changes)
    if model.is_lora:
        network = variants.with_lora(network, model.lora_rank)
    network = variants.with_lora_init(network, model.lora_init)
    return flow.PolicyConfig(
        model=network,
        num_steps=model.num_steps,
        noise_method=noise.ALIASES.get(model.noise_method, model.noise_method),
        noise_level=model.noise_level,
        noise_logvar_range=tuple(model.noise_logvar_range),
        ignore_last=model.ignore_last,
        joint_logprob=model.joint_logprob,
        joint_mean=model.joint_mean,
        value_after_vlm=model.value_after_vlm,
        value_vlm_mode=model.value_vlm_mode,
        action_chunk=_action_chunk(raw),
        action_env_dim=model.action_env_dim,
        add_value_head=model.add_value_head,
        value_hidden=tuple(model.value_hidden),
        detach_critic_input=model.detach_critic_input,
        chunk_critic_input=model.chunk_critic_input,
    )


def _update(raw) -> update.UpdateConfig:
    return update.UpdateConfig(**raw.algorithm)


def _optim(raw) -> optimizer.OptimizerConfig:
    return optimizer.OptimizerConfig(**raw.optim)


def _sft(raw) -> sft.SftConfig:
    """openpi's schedule: linear warm-up, cosine to a tenth of the peak at the last step.  SFT trains the whole network."""
    page = raw.sft
    optim = optimizer.OptimizerConfig(
        lr=page.lr,
        value_lr=0.0,
        weight_decay=page.weight_decay,
        schedule="openpi_cosine",
        warmup_steps=page.warmup_steps,
        decay_steps=max(page.steps, page.warmup_steps + 1),
        min_lr_ratio=0.1,
    )
    return sft.SftConfig(_policy(raw).model, optim, ema_decay=page.ema, augment=page.augment)
