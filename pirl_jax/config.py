"""ConfigDict -> what each part of the system needs.  Every check of a user's value and every derived number, once."""

import contextlib
import dataclasses
import sys

from absl import flags
import ml_collections
from ml_collections import config_flags

from pirl_jax.core import types
from pirl_jax.envs import libero
from pirl_jax.envs import probes
from pirl_jax.learner import optimizer
from pirl_jax.learner import sft
from pirl_jax.learner import update
from pirl_jax.models import remat
from pirl_jax.models import variants
from pirl_jax.policy import flow
from pirl_jax.policy import noise
from pirl_jax.policy import normalize
from pirl_jax.policy import tokenizer

SUITES = (*libero.MAX_EPISODE_STEPS, "tabletop", *(f"probe_{name}" for name in probes.PROBES))
MODEL_SIZES = {"full": ("pi0", "pi05"), "small": ("small", "small_pi05"), "tiny": ("tiny", "tiny_pi05")}


@dataclasses.dataclass(frozen=True)
class Settings:
    """A checked configuration.  `raw` keeps the page for what is read only once."""

    raw: ml_collections.FrozenConfigDict
    policy: flow.PolicyConfig
    update: update.UpdateConfig
    optim: optimizer.OptimizerConfig
    sft: sft.SftConfig

    @property
    def keep_prefix(self) -> bool:
        """With a frozen VLM the prefix is computed once per decision, at the rollout, and kept for the updates."""
        return self.raw.model.train_expert_only


def settings(raw: ml_collections.ConfigDict) -> Settings:
    """Check a configuration page -> Settings; ValueError is one sentence with the value and the remedy."""
    raw = ml_collections.FrozenConfigDict(raw)
    for name, value, choices in (
        ("env.suite", raw.env.suite, SUITES),
        ("model.size", raw.model.size, MODEL_SIZES),
        ("model.noise_method", raw.model.noise_method, noise.METHODS),
        ("model.norm_mode", raw.model.norm_mode, normalize.MODES),
        ("model.gradient_checkpointing", raw.model.gradient_checkpointing, remat.POLICIES),
        ("env.render_quality", raw.env.render_quality, ("exact", "light")),
    ):
        if value not in choices:
            raise types.unknown(name, value, choices)
    _check_counts(raw)
    _check_ranges(raw)
    return Settings(raw=raw, policy=_policy(raw), update=_update(raw), optim=_optim(raw), sft=_sft(raw))


def _check_counts(raw):
    """Everything that must divide something else."""
    divisions = (
        ("rollout.num_envs", raw.rollout.num_envs, "rollout.num_groups", raw.rollout.num_groups),
        ("algorithm.minibatch_size", raw.algorithm.minibatch_size, "algorithm.microbatch_size", raw.algorithm.microbatch_size),
    )
    for name, value, divisor_name, divisor in divisions:
        if divisor < 1 or value % divisor:
            raise ValueError(f"{name}={value} must be a multiple of {divisor_name}={divisor}")
    if raw.model.action_chunk > raw.model.action_horizon:
        raise ValueError(
            f"model.action_chunk={raw.model.action_chunk} exceeds model.action_horizon={raw.model.action_horizon}; "
            f"execute at most as many actions as the model predicts"
        )
    for name in ("action_env_dim", "action_chunk", "num_steps"):
        if raw.model[name] < 1:
            raise ValueError(f"model.{name}={raw.model[name]} must be at least 1")
    if raw.model.action_env_dim > raw.model.action_dim or raw.model.action_dim < 8:
        raise ValueError(f"model.action_dim={raw.model.action_dim} must hold the 8-D state and the simulator's actions")


def _check_ranges(raw):
    """Start states and what depends on the suite."""
    for name, (first, last) in (("env.train_init_states", raw.env.train_init_states), ("eval.init_states", raw.eval.init_states)):
        if not 0 <= first < last:
            raise ValueError(f"{name}={first, last} is empty; give (first, last) with first < last")
    first, last = raw.eval.init_states
    if raw.eval.episodes_per_task > last - first:
        raise ValueError(
            f"eval.episodes_per_task={raw.eval.episodes_per_task} exceeds the {last - first} start states in "
            f"eval.init_states={first, last}; each is evaluated once"
        )
    if raw.sft.demonstrations and raw.env.suite != "tabletop":
        raise ValueError(f"env.suite={raw.env.suite!r} has no scripted expert; set sft.demonstrations=0 and model.checkpoint")
    if raw.sft.demonstrations and not (raw.sft.steps and raw.sft.batch_size):
        raise ValueError("sft.demonstrations needs sft.steps and sft.batch_size of at least 1")


def tasks(raw, spec) -> tuple[int, ...]:
    """The configured task indices, checked against the suite."""
    chosen = tuple(raw.env.tasks) or tuple(range(spec.num_tasks))
    for task in chosen:
        if not 0 <= task < spec.num_tasks:
            raise ValueError(f"env.tasks has {task}; suite {spec.suite!r} has tasks 0 to {spec.num_tasks - 1}")
    for name, (_, last) in (("env.train_init_states", raw.env.train_init_states), ("eval.init_states", raw.eval.init_states)):
        if last > spec.num_init_states:
            raise ValueError(f"{name} ends at {last}, but suite {spec.suite!r} has {spec.num_init_states} start states per task")
    return chosen


def _policy(raw) -> flow.PolicyConfig:
    model = raw.model
    size = MODEL_SIZES[model.size][int(model.pi05)]
    changes = dict(
        dtype=model.dtype, remat=model.gradient_checkpointing, action_dim=model.action_dim,
        action_horizon=model.action_horizon, max_token_len=model.max_token_len, image_size=(model.image_size_px,) * 2,
    )
    if model.tokenizer == "byte":
        changes["vocab_size"] = tokenizer.ByteTokenizer.vocab_size
    return flow.PolicyConfig(
        model=variants.pi0_config(size, **changes), num_steps=model.num_steps, noise_method=model.noise_method,
        noise_level=model.noise_level, action_chunk=model.action_chunk, action_env_dim=model.action_env_dim,
        add_value_head=model.add_value_head, value_hidden=tuple(model.value_hidden),
        detach_critic_input=model.detach_critic_input, chunk_critic_input=model.chunk_critic_input,
    )


def _update(raw) -> update.UpdateConfig:
    return update.UpdateConfig(**raw.algorithm)


def _optim(raw) -> optimizer.OptimizerConfig:
    return optimizer.OptimizerConfig(**raw.optim)


def _sft(raw) -> sft.SftConfig:
    """openpi's schedule: linear warm-up, cosine to a tenth of the peak at the last step.  SFT trains the whole network."""
    page = raw.sft
    optim = optimizer.OptimizerConfig(
        lr=page.lr, value_lr=0.0, weight_decay=page.weight_decay, schedule="openpi_cosine",
        warmup_steps=page.warmup_steps, decay_steps=max(page.steps, page.warmup_steps + 1), min_lr_ratio=0.1,
    )
    return sft.SftConfig(_policy(raw).model, optim, ema_decay=page.ema, augment=page.augment)


# ---- command line ------------------------------------------------------------------------------------------------------


def parse(argv: list[str], define_flags) -> tuple[flags.FlagValues, ml_collections.ConfigDict]:
    """Read --config FILE.py, --config.a.b=value and the command's own flags."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "recipe, e.g. configs/quickstart.py", flag_values=values)
    define_flags(values)
    try:
        values(argv, known_only=False)
    except (flags.Error, AttributeError, KeyError, IOError, TypeError) as error:
        raise ValueError(" ".join(str(error).replace("\n", " ").split())) from error
    if values.config is None:
        raise ValueError("--config is missing; give a recipe, for example --config configs/quickstart.py")
    return values, values.config


@contextlib.contextmanager
def user_errors():
    """What the user can mend (ValueError while a run is being set up) ends in one sentence and exit code 2."""
    try:
        yield
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
