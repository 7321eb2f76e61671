"""From the page of fields to what each part of the system needs.

Says once what two fields may not be together, and every number that is derived of them.  What one
value may be stands on the page itself (core/page.py); of the machine it knows nothing.
"""

from collections.abc import Mapping, Sequence
import dataclasses

from pirl_jax.core import page
from pirl_jax.envs import base
from pirl_jax.envs.libero import files, perturbed
from pirl_jax.learner import sft
from pirl_jax.models import remat, variants
from pirl_jax.policy import flow, noise, tokenizer
from pirl_jax.rollout import starts
from pirl_jax.run import placed
from pirl_jax.weights import presets

MODEL_SIZES = {
    "full": ("pi0", "pi05"),
    "small": ("small", "small_pi05"),
    "tiny": ("tiny", "tiny_pi05"),
}
MULTIPLES = (  # field, what it must be a multiple of
    ("rollout.num_envs", "rollout.num_groups"),
    ("eval.num_envs", "rollout.num_groups"),
    ("algorithm.minibatch_size", "algorithm.microbatch_size"),
    ("rollout.episodes_per_iteration", "algorithm.group_size"),
    ("algorithm.max_episodes_per_iteration", "algorithm.group_size"),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """A checked configuration: its page, and what is derived of it."""

    raw: page.Page
    policy: flow.Policy

    @property
    def prefix_cache(self) -> str:
        """Where a decision's prefix waits for the update: device | host | recompute (nowhere)."""
        chosen = self.raw.rollout.prefix_cache
        if chosen != "auto":
            return chosen
        # What is replayed are observations.
        keeps = _frozen_vlm(self.raw) and self.raw.algorithm.clone_rollouts == 1
        return "host" if keeps else "recompute"

    @property
    def keep_prefix(self) -> bool:
        """Whether the prefix is computed once per decision, at the rollout, and kept."""
        return self.prefix_cache != "recompute"

    @property
    def plays_average(self) -> bool:
        """Whether rollouts are played by the average of the policies so far."""
        return self.policy.nft is not None and self.policy.nft.averages

    @property
    def backends(self) -> tuple[str, ...]:
        """Who gets the numbers of a run; its older names are resolved."""
        section = self.raw.run
        chosen = section.backends.split(",")
        if section.wandb and "wandb" not in chosen:
            chosen.append("wandb")
        return tuple(name for name in chosen if section.tensorboard or name != "tensorboard")

    @property
    def older_names(self) -> tuple[str, ...]:
        """A sentence where run.backends is said by its older names."""
        section = self.raw.run
        used = []
        if not section.tensorboard:
            used.append("run.tensorboard=False")
        if section.wandb:
            used.append("run.wandb=True")
        today = ",".join(self.backends) or "jsonl"
        return tuple(f"{name} is an older name; write run.backends={today}" for name in used)

    @property
    def sft(self) -> sft.Stage:
        """openpi's schedule: linear warm-up, cosine to a tenth of the peak at the last step.

        SFT trains the whole network.
        """
        section = self.raw.sft
        optim = page.Optim(
            lr=section.lr,
            value_lr=0.0,
            weight_decay=section.weight_decay,
            schedule="openpi_cosine",
            warmup_steps=section.warmup_steps,
            decay_steps=max(section.steps, section.warmup_steps + 1),
            min_lr_ratio=0.1,
        )
        return sft.Stage(self.policy.network, section, optim)


def settings(fields: Mapping) -> Settings:
    """Check a configuration, an ml_collections page.

    Raises:
      ValueError: one sentence with the value and the remedy.
    """
    raw = page.from_dict(fields)
    perturbed.check(raw.env.suite, raw.env.wording)
    placed.check(raw)
    _check_multiples(raw)
    _check_actions(raw)
    _check_model(raw)
    _check_noise(raw)
    _check_learning(raw)
    return Settings(raw, policy(raw))


def changed(current: Settings, changes: dict) -> Settings:
    """With other values of some fields, {"section.field": value}, checked again."""
    fields = current.raw.as_dict()
    for name, value in changes.items():
        section, _, field = name.partition(".")
        fields[section][field] = value
    return settings(fields)


# ---- what two fields may not be together ------------------------------------------------------


def _value(raw: page.Page, name: str) -> int:
    section, _, field = name.partition(".")
    return getattr(getattr(raw, section), field)


def _check_multiples(raw: page.Page):
    for name, divisor_name in MULTIPLES:
        value = _value(raw, name)
        divisor = _value(raw, divisor_name)
        if divisor and value % divisor:
            raise ValueError(f"{name}={value} must be a multiple of {divisor_name}={divisor}")


def _check_actions(raw: page.Page):
    """What is executed of what the model predicts."""
    model = raw.model
    chunk = action_chunk(raw)
    if chunk > model.action_horizon:
        raise ValueError(
            f"model.action_chunk={chunk} exceeds model.action_horizon={model.action_horizon}; "
            f"execute at most as many actions as the model predicts"
        )
    if model.action_dim < max(model.action_env_dim, base.EnvSpec.state_dim):
        raise ValueError(
            f"model.action_dim={model.action_dim} must hold the {base.EnvSpec.state_dim}-D state"
            f" and the simulator's model.action_env_dim={model.action_env_dim} actions"
        )


def _check_model(raw: page.Page):
    """Presets, adapters, and what is kept of a frozen VLM."""
    model = raw.model
    cache = raw.rollout.prefix_cache
    if cache in ("device", "host") and not _frozen_vlm(raw):
        raise ValueError(
            f"rollout.prefix_cache={cache!r} keeps what changes with every update while the VLM"
            f" trains (model.train_expert_only={model.train_expert_only},"
            f" model.is_lora={model.is_lora}); set it to 'recompute' or 'auto'"
        )
    if model.is_lora and model.paligemma_variant:
        raise ValueError(
            f"model.is_lora={model.is_lora} and model.paligemma_variant={model.paligemma_variant!r}"
            f" both say which adapters the VLM has; drop one"
        )
    wrong = presets.changed_fields(model)
    if wrong:
        raise ValueError(
            f"model.preset={model.preset!r} has {', '.join(wrong)};"
            f" leave these fields alone or set model.preset="
        )


def _check_noise(raw: page.Page):
    """Which denoise steps are stochastic, and how much."""
    model = raw.model
    if model.joint_logprob and model.noise_steps == "last":
        raise ValueError(
            "model.joint_logprob=True is noise_steps='all', and model.noise_steps='last' is not;"
            " drop one"
        )
    resolved = policy(raw)
    steps = resolved.model.noise_steps
    if steps != "one" and model.ignore_last:
        raise ValueError(
            f"model.ignore_last={model.ignore_last} has no meaning with model.noise_steps={steps!r}"
            f", where the last step is stochastic; drop one"
        )
    if not flow.choices(resolved):
        remedy = "num_steps to at least 2" if steps == "one" else "noise_steps to one"
        raise ValueError(
            f"model.num_steps={model.num_steps} leaves no stochastic step to"
            f" model.noise_method={model.noise_method!r} with model.noise_steps={steps!r} and"
            f" model.ignore_last={model.ignore_last}; set {remedy}"
        )
    low, high = model.noise_logvar_range
    if low > high:
        raise ValueError(
            f"model.noise_logvar_range={model.noise_logvar_range} must be (lowest, highest) std"
            f" with 0 < lowest <= highest"
        )


def _check_learning(raw: page.Page):
    """Pairs of numbers that must be in order."""
    optim = raw.optim
    if optim.schedule != "constant" and optim.decay_steps <= optim.warmup_steps:
        raise ValueError(
            f"optim.decay_steps={optim.decay_steps} must exceed"
            f" optim.warmup_steps={optim.warmup_steps} for optim.schedule={optim.schedule!r}"
        )
    algorithm = raw.algorithm
    if algorithm.rewards_lower_bound > algorithm.rewards_upper_bound:
        raise ValueError(
            f"algorithm.rewards_lower_bound={algorithm.rewards_lower_bound} must be at most"
            f" algorithm.rewards_upper_bound={algorithm.rewards_upper_bound}"
        )


def check_batches(
    raw: page.Page, num_devices: int, hosts: int = 1, playing: int | None = None
) -> None:
    """Batches of updates are split over the devices that learn, those of a rollout over the host's
    own that play.

    Episodes are split over the hosts.

    Args:
      num_devices: that learn, of all hosts.
      playing: that play, of each host; None: those that learn.

    Raises:
      ValueError: one sentence with the value and the divisor.
    """
    own = num_devices // hosts if playing is None else playing
    own_text = f"{own} {placed.named(raw, 'rollout', 'a host' if hosts > 1 else 'the mesh')}"
    for section in ("rollout", "eval"):
        name = f"{section}.num_envs / rollout.num_groups"
        rows = decision_batch(raw, _value(raw, f"{section}.num_envs"))
        _check_multiple(name, rows, own, own_text)
    all_text = f"{num_devices} {placed.named(raw, 'actor', 'the mesh')}"
    algorithm = raw.algorithm
    _check_multiple("algorithm.minibatch_size", algorithm.minibatch_size, num_devices, all_text)
    if algorithm.microbatch_size:
        rows = algorithm.microbatch_rows(num_devices)
        each = f"{all_text} times algorithm.microbatch_size={algorithm.microbatch_size}"
        _check_multiple("algorithm.minibatch_size", algorithm.minibatch_size, rows, each)
        if own * hosts != num_devices and raw.rollout.prefix_cache == "device":
            text = f"{own_text}, which keep the prefixes"
            _check_multiple("rows of a microbatch / hosts", rows // hosts, own, text)
    if raw.sft.demonstrations or raw.sft.dataset:
        _check_multiple("sft.batch_size", raw.sft.batch_size, num_devices, all_text)
    group_size = raw.algorithm.group_size
    groups_text = f"{hosts} hosts times algorithm.group_size={group_size}"
    for name in ("rollout.episodes_per_iteration", "algorithm.max_episodes_per_iteration"):
        _check_multiple(name, _value(raw, name), hosts * group_size, groups_text)


def _check_multiple(name: str, size: int, divisor: int, what: str):
    if size % divisor:
        raise ValueError(f"{name}={size} must be a multiple of the {what}")


def playable(raw: page.Page, spec: base.EnvSpec) -> starts.Starts:
    """The configured tasks and the start states of the split.

    Raises:
      ValueError: one sentence, where the suite has fewer than the page asks for.
    """
    if raw.model.action_env_dim != spec.action_dim:
        raise ValueError(
            f"model.action_env_dim={raw.model.action_env_dim} must be the {spec.action_dim} action"
            f" entries that suite {spec.suite!r} reads"
        )
    chosen = raw.env.tasks or tuple(range(spec.num_tasks))
    for task in chosen:
        if task not in range(spec.num_tasks):
            raise ValueError(
                f"env.tasks has {task}; suite {spec.suite!r} has tasks 0 to {spec.num_tasks - 1}"
            )
    train, evaluate = starts.split(raw.env.split, spec.num_init_states)
    limits = {
        "eval.episodes_per_task": evaluate,
        "eval.episodes_during_training": evaluate,
        "sft.demonstrations": train,
    }
    for name, states in limits.items():
        count = _value(raw, name)
        if count > len(states):
            raise ValueError(
                f"{name}={count} exceeds the {len(states)} start states"
                f" ({states.start} to {states.stop - 1}) that env.split={raw.env.split} leaves it"
                f" per task of suite {spec.suite!r}; each is played once"
            )
    return starts.Starts(chosen, train, evaluate, _by_suite(raw.env, chosen))


def _by_suite(env: page.Env, chosen: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """These tasks, by the suite of a list; (): there is no list."""
    if len(files.members(env.suite)) < 2:
        return ()
    tasks = files.tasks(env.suite, perturbed.folders(env.pro_files, env.plus_files))
    found = {}
    for task in chosen:
        found.setdefault(tasks[task].suite, []).append(task)
    return tuple(map(tuple, found.values()))


# ---- what is derived --------------------------------------------------------------------------


def decision_batch(raw: page.Page, num_envs: int) -> int:
    """Rows of the batch in which simulators are decided on, of `num_envs` in all."""
    return num_envs // raw.rollout.num_groups


def evaluation_due(raw: page.Page, iteration: int) -> bool:
    """Whether an iteration of training begins with an evaluation."""
    return bool(raw.eval.every and iteration and iteration % raw.eval.every == 0)


def begins_with_rollout(raw: page.Page, iteration: int) -> bool:
    """Whether there is such an iteration, and no evaluation before its rollout."""
    return iteration < raw.num_iterations and not evaluation_due(raw, iteration)


def rules(raw: page.Page) -> files.Protocol | None:
    """The protocol of a LIBERO suite; the other suites have limits of their own."""
    return files.PROTOCOLS[raw.env.protocol] if files.members(raw.env.suite) else None


def action_chunk(raw: page.Page) -> int:
    """Executed actions per decision: the protocol's, or the model's own."""
    protocol = rules(raw)
    if protocol is None or protocol.replan_steps is None:
        return raw.model.action_chunk
    return protocol.replan_steps


def _frozen_vlm(raw: page.Page) -> bool:
    """Whether no update changes what the VLM computes."""
    return raw.model.train_expert_only and _network(raw.model).paligemma.lora is None


def policy(raw: page.Page) -> flow.Policy:
    """The network and how it acts; older names and the protocol's choices are resolved."""
    steps = "all" if raw.model.joint_logprob else raw.model.noise_steps
    model = dataclasses.replace(
        raw.model,
        noise_steps=steps,
        noise_method=noise.ALIASES.get(raw.model.noise_method, raw.model.noise_method),
        action_chunk=action_chunk(raw),
    )
    nft = raw.nft if raw.algorithm.loss == "nft" else None
    return flow.Policy(_network(raw.model), model, nft)


def _network(model: page.Model) -> variants.Pi0Config:
    policy = model.gradient_checkpointing
    changes = {
        "dtype": model.dtype,
        "remat": remat.FASTEST if policy == "auto" else policy,  # where nobody plans
        "attention": model.attention,
        "action_dim": model.action_dim,
        "action_horizon": model.action_horizon,
        "max_token_len": model.max_token_len,
        "image_size": (model.image_size_px, model.image_size_px),
    }
    if model.tokenizer == "byte":
        changes["vocab_size"] = tokenizer.ByteTokenizer.vocab_size
    if model.paligemma_variant:
        changes["paligemma"] = variants.GEMMA[model.paligemma_variant]
    if model.action_expert_variant:
        changes["expert"] = variants.GEMMA[model.action_expert_variant]
    network = variants.pi0_config(MODEL_SIZES[model.size][int(model.pi05)], **changes)
    if model.is_lora:
        network = variants.with_lora(network, model.lora_rank)
    return variants.with_lora_init(network, model.lora_init)
