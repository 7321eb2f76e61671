"""What several keys of RLinf, or one in other units, become here: a formula for each field.

Each takes the keys of a configuration and the value of its row, and gives the fields it sets; none
where the default of the page is what RLinf does.  Reads no file; the rows stand in table.py.
"""

from collections.abc import Callable, Iterable, Mapping
import math
from typing import Any

from pirl_jax.core import outside
from pirl_jax.core import placement as placements
from pirl_jax.envs.libero import files
from pirl_jax.weights import presets

SUITES = tuple(files.PROTOCOLS["rlinf"].max_episode_steps)
STATES_PER_TASK = 50
TASKS = {"libero_90": 90, "libero_130": 130}  # the other suites have 10
PLACEHOLDER = "/path/to"
COMPONENTS = "cluster.component_placement."
# What openpi calls its configurations, and what differs from the preset of ours.
CONFIG_NAMES = {
    "pi0_libero": ("pi0_libero", {}),
    "pi05_libero": ("pi05_libero", {}),
    "pi0_libero_horizon10": ("pi0_libero", {"preset": "", "action_horizon": 10}),
}
WIDE_VALUE_HEAD = (1024, 512, 256)  # RLinf's with pi05_libero
PRECISIONS = {
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
    "fp32": "float32",
    "32": "float32",
    "float32": "float32",
}
SCHEDULES = ("constant", "cosine", "openpi_cosine")


class NotCarriedError(Exception):
    """A value that has no counterpart; its text is the reason."""


def another(key: str, value: Any, what: str, wanted: Iterable[str]) -> ValueError:
    """What cannot be translated at all, in one sentence."""
    return ValueError(f"{key}={value!r} is another {what}; translated is: {', '.join(wanted)}")


class Source:
    """The keys of a configuration of RLinf, dotted."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def get(self, *keys: str, default: Any = None) -> Any:
        """The first of these keys that says something."""
        for key in keys:
            if self.values.get(key) is not None:
                return self.values[key]
        return default

    def number(
        self, *keys: str, default: float, kind: type = float, low: float = -math.inf
    ) -> float:
        """The same of a number; ValueError where it is another value."""
        value = self.get(*keys, default=default)
        if not outside.fits(value, kind) or value < low:
            key = next(key for key in keys if self.values.get(key) is not None)
            words = "a whole number and at least 1" if kind is int else "a number"
            raise ValueError(f"{key}={value!r} must be {words}")
        return value

    def whole(self, *keys: str, default: int) -> int:
        """The same of a whole number from 1 on."""
        return self.number(*keys, default=default, kind=int, low=1)

    @property
    def group_size(self) -> int:
        """Episodes from one start state."""
        return self.whole("algorithm.group_size", "env.train.group_size", default=1)

    @property
    def simulators(self) -> int:
        """Of all nodes, stepping at a time."""
        keys = ("env.train.total_num_envs", "env.train.num_envs")
        if self.get(*keys) is not None:
            return self.whole(*keys, default=1)
        return self.whole("algorithm.num_group_envs", default=64) * self.group_size

    @property
    def max_steps(self) -> int:
        """Time limit of an episode, control steps."""
        keys = ("env.train.max_episode_steps", "algorithm.max_episode_steps")
        return self.whole(*keys, default=published_limit(self.suite) or 240)

    @property
    def suite(self) -> str:
        """The suite's name, as the file has it."""
        return str(self.get("env.train.task_suite_name", default="libero_spatial"))

    @property
    def episodes(self) -> int:
        """Of one step of the runner: total_num_envs * rollout_epoch, more with resets inside."""
        epochs = self.whole("env.train.rollout_epoch", "algorithm.rollout_epoch", default=1)
        count = self.simulators * epochs
        if self.get("env.train.auto_reset", "algorithm.auto_reset", default=False):
            steps = self.whole("env.train.max_steps_per_rollout_epoch", default=self.max_steps)
            count *= max(steps // self.max_steps, 1)
        return count


def published_limit(suite: str) -> int | None:
    """RLinf's time limit of a suite, which protocol `rlinf` has; None of other suites."""
    return files.PROTOCOLS["rlinf"].max_episode_steps.get(suite)


# ---- cluster and runner -------------------------------------------------------------------------


def placement(source: Source, value: Any) -> dict[str, Any]:
    """Nothing to set where every role has the same devices: those are all devices here."""
    del value
    if len(set(_placements(source).values())) < 2:
        return {}
    if source.get("cluster.num_nodes", default=1) != 1:
        raise NotCarriedError(
            "its numbers count over all nodes; placement.* counts the devices of each host"
        )
    try:
        ranges = placements.from_components(_components(source))
    except ValueError as error:
        raise NotCarriedError(str(error)) from error
    return {f"placement.{role}": text for role, text in ranges.items()}


def _components(source: Source) -> dict[str, Any]:
    """What stands below cluster.component_placement; groups of nodes are dictionaries."""
    found = {}
    for key, devices in source.values.items():
        if key.startswith(COMPONENTS):
            role, _, field = key.removeprefix(COMPONENTS).partition(".")
            found[role] = {field: devices} if field else devices
    return found


def _placements(source: Source) -> dict[str, str]:
    """{role: devices}, the keys of several roles split."""
    found = {}
    for roles, devices in _components(source).items():
        for role in roles.split(","):
            found[role.strip()] = str(devices)
    return found


def directory(source: Source, value: Any) -> dict[str, Any]:
    """log_path / experiment_name."""
    del value
    path = source.get("runner.logger.log_path", default="runs")
    name = source.get("runner.logger.experiment_name", default="")
    result = {"run.directory": f"{path}/{name}".rstrip("/")}
    return result | ({"run.experiment_name": name} if name else {})


def backends(source: Source, value: Any) -> dict[str, Any]:
    """Who gets the numbers, besides metrics.jsonl."""
    del source
    chosen = value if isinstance(value, list) else [value]
    return {"run.backends": ",".join(map(str, chosen)) or "jsonl"}


def iterations(source: Source, value: Any) -> dict[str, Any]:
    """The smaller limit of the runner."""
    del value
    limits = []
    for key in ("runner.max_epochs", "runner.max_steps"):
        limit = source.get(key)
        if limit is not None and limit != -1:
            limits.append(source.whole(key, default=1))
    return {"num_iterations": min(limits)} if limits else {}


def evaluation_every(source: Source, value: Any) -> dict[str, Any]:
    """-1 is never."""
    del source
    return {"eval.every": 0 if value == -1 else value}


def save_every(source: Source, value: Any) -> dict[str, Any]:
    """-1 is at the end alone."""
    if value != -1:
        return {"run.save_every": value}
    return {"run.save_every": iterations(source, None).get("num_iterations", 1000)}


def weights(source: Source, value: Any) -> dict[str, Any]:
    """A folder of weights, or a result of RLinf, whose statistics lie with the former."""
    folder = source.get("actor.model.model_path", "actor.checkpoint_load_path", default="")
    if PLACEHOLDER in str(value):
        raise NotCarriedError("a placeholder; give --config.model.checkpoint")
    result = {"model.checkpoint": str(value)}
    if value == source.get("runner.ckpt_path") and folder and PLACEHOLDER not in str(folder):
        statistics = "physical-intelligence/libero/norm_stats.json"
        result["model.norm_stats"] = f"{str(folder).rstrip('/')}/{statistics}"
    return result


def other_weights(source: Source, value: Any) -> dict[str, Any]:
    """Nothing to set where a rollout has the weights that learn."""
    if value not in (source.get("actor.model.model_path", "actor.checkpoint_load_path"), None):
        raise NotCarriedError("one copy of the weights plays and learns, actor.model's")
    return {}


# ---- algorithm ----------------------------------------------------------------------------------


def advantages(source: Source, value: Any) -> dict[str, Any]:
    """gae or grpo; older files say embodied_gae."""
    del source
    name = str(value).removeprefix("embodied_")
    if name not in ("gae", "grpo"):
        raise another("algorithm.adv_type", value, "algorithm", ("gae", "grpo"))
    return {"algorithm.adv_type": name}


def logprob(source: Source, value: Any) -> dict[str, Any]:
    """chunk_level is chunk."""
    del source
    return {"algorithm.logprob_type": str(value).removesuffix("_level")}


# ---- simulators ---------------------------------------------------------------------------------


def suite(source: Source, value: Any) -> dict[str, Any]:
    """Trained and evaluated on the same start states, as RLinf does."""
    del source
    if not files.members(str(value)):
        raise another("env.train.task_suite_name", value, "suite", SUITES)
    return {"env.suite": str(value), "env.split": "published"}


def simulators(source: Source, value: Any) -> dict[str, Any]:
    """Those of one node."""
    del value
    nodes = source.whole("cluster.num_nodes", default=1)
    return {"rollout.num_envs": max(source.simulators // nodes, 1)}


def episodes(source: Source, value: Any) -> dict[str, Any]:
    """Of one iteration."""
    del value
    return {"rollout.episodes_per_iteration": source.episodes}


def time_limit(source: Source, value: Any) -> dict[str, Any]:
    """0 where the protocol says the same."""
    limit = source.max_steps
    del value
    return {"env.max_episode_steps": 0 if limit == published_limit(source.suite) else limit}


def as_tuple(field: str) -> Callable[[Source, Any], dict[str, Any]]:
    """A list of YAML."""
    return lambda source, value: {field: tuple(value) if isinstance(value, list) else value}


def start_order(source: Source, value: Any) -> dict[str, Any]:
    """Each start state once before any twice, or drawn."""
    del source
    return {"rollout.start_order": "ordered" if value else "uniform"}


def image_size(source: Source, value: Any) -> dict[str, Any]:
    """Square pictures."""
    height = source.get("env.train.init_params.camera_heights", default=value)
    width = source.get("env.train.init_params.camera_widths", default=value)
    if height != width:
        raise NotCarriedError(f"pictures of {height} x {width} pixels: here they are square")
    return {"env.image_size_px": height}


def evaluated(source: Source, value: Any) -> dict[str, Any]:
    """Episodes of an evaluation, per task."""
    del value
    count = source.whole("env.eval.total_num_envs", "env.eval.num_envs", default=1)
    limit = source.whole("env.eval.max_episode_steps", default=source.max_steps)
    steps = source.whole("env.eval.max_steps_per_rollout_epoch", default=limit)
    count *= max(steps // limit, 1)
    per_task = math.ceil(count / TASKS.get(source.suite, 10))
    return {"eval.episodes_per_task": 0 if per_task >= STATES_PER_TASK else per_task}


def videos(field: str) -> Callable[[Source, Any], dict[str, Any]]:
    """One, or none."""
    return lambda source, value: {field: 1 if value else 0}


# ---- model --------------------------------------------------------------------------------------


def preset(source: Source, value: Any) -> dict[str, Any]:
    """openpi's configuration, by its name or by the older switch.

    Raises:
      ValueError: it is none of LIBERO's.
    """
    name = source.get("actor.model.openpi.config_name")
    if name is None:
        name = "pi05_libero" if value else "pi0_libero"
    if str(name) not in CONFIG_NAMES:
        raise another("actor.model.openpi.config_name", name, "model", CONFIG_NAMES)
    base, changes = CONFIG_NAMES[name]
    fields = presets.named(base) | changes
    return {f"model.{field}": chosen for field, chosen in fields.items()}


def value_head(source: Source, value: Any) -> dict[str, Any]:
    """The critic, and how wide it is."""
    result = {"model.add_value_head": value}
    name = source.get("actor.model.openpi.config_name", default="")
    if value and (name == "pi05_libero" or source.get("actor.model.openpi.pi05")):
        result["model.value_hidden"] = WIDE_VALUE_HEAD
    return result


def joint(source: Source, value: Any) -> dict[str, Any]:
    """All steps stochastic; RLinf's mean over them, whose ratio is the more timid."""
    del source
    return {"model.noise_steps": "all", "model.joint_mean": True} if value else {}


def recomputation(source: Source, value: Any) -> dict[str, Any]:
    """Everything, or nothing."""
    del value
    chosen = source.get("actor.model.gradient_checkpointing", default=False) or source.get(
        "actor.fsdp_config.gradient_checkpointing", default=False
    )
    return {"model.gradient_checkpointing": "full" if chosen else "auto"}


def precision(source: Source, value: Any) -> dict[str, Any]:
    """Of the arithmetic."""
    del source
    name = str(value).removesuffix("-mixed")
    if name not in PRECISIONS:
        raise NotCarriedError(
            f"model.dtype is one of {', '.join(dict.fromkeys(PRECISIONS.values()))}"
        )
    return {"model.dtype": PRECISIONS[name]}


# ---- learner ------------------------------------------------------------------------------------


def critic_warmup(source: Source, value: Any) -> dict[str, Any]:
    """Optimiser steps as iterations, rounded up."""
    if not value:
        return {"algorithm.critic_warmup_iterations": 0}
    steps = source.whole("actor.optim.critic_warmup_steps", default=1)
    chunk = source.whole(
        "actor.model.num_action_chunks", "actor.model.openpi.action_chunk", default=5
    )
    decisions = source.episodes * source.max_steps / chunk
    minibatches = math.ceil(decisions / source.whole("actor.global_batch_size", default=2048))
    per_iteration = minibatches * source.whole("algorithm.update_epoch", default=1)
    return {"algorithm.critic_warmup_iterations": math.ceil(steps / per_iteration)}


def schedule(source: Source, value: Any) -> dict[str, Any]:
    """Of both learning rates."""
    del source
    if value not in SCHEDULES:
        raise NotCarriedError(f"optim.schedule is one of {', '.join(SCHEDULES)}")
    return {"optim.schedule": value}


def warmup(source: Source, value: Any) -> dict[str, Any]:
    """Iterations, or a share of all of them."""
    steps = source.number("actor.optim.lr_warmup_steps", default=-1)
    if steps < 0:
        total = source.number("actor.optim.total_training_steps", "runner.max_epochs", default=0)
        share = source.number("actor.optim.lr_warmup_steps_ratio", default=0)
        steps = round(share * total)
    del value
    return {"optim.warmup_steps": steps}


def decay(source: Source, value: Any) -> dict[str, Any]:
    """A constant rate has none."""
    if source.get("actor.optim.lr_scheduler", default="constant") == "constant":
        raise NotCarriedError("a constant rate has no end")
    return {"optim.decay_steps": value}


def least_rate(source: Source, value: Any) -> dict[str, Any]:
    """As a share of the full rate."""
    del value
    if source.get("actor.optim.lr_scheduler", default="constant") == "constant":
        raise NotCarriedError("a constant rate has no minimum")
    share = source.get("actor.optim.min_lr_rate")
    if share is None:
        least = source.number("actor.optim.min_lr", "actor.optim.decay_lr", default=0)
        rate = source.number("actor.optim.lr", default=5e-6)
        share = least / rate if rate else 0.0
    return {"optim.min_lr_ratio": share}


def sharding(source: Source, value: Any) -> dict[str, Any]:
    """How many devices share the weights."""
    size = source.get("actor.fsdp_config.fsdp_size", default=-1)
    strategy = source.get("actor.fsdp_config.sharding_strategy", default="no_shard")
    del value
    if strategy == "no_shard":
        return {"mesh.fsdp": 1}
    if size == -1:
        raise NotCarriedError(
            "say how many devices share the weights: --config.mesh.fsdp=N (1 is none)"
        )
    return {"mesh.fsdp": size}
