"""Every field of a configuration, once: bound, default, meaning, unit.  Knows no reader.

A recipe overrides at most ~25 of them, a command line any.  A page that exists has been checked,
value by value; what two fields may not be together, and what is derived of them, stands in
run/config.py.  The names under `model` and `algorithm` are those that users of RLinf and openpi
know.  Algorithm, Nft, Optim and Sft are written in page_learning.py; docs/config.md is made from
both (`python -m pirl_jax.run.reference`).
"""

from collections.abc import Mapping
import dataclasses

from pirl_jax.core import bounds, choices
from pirl_jax.core.bounds import (
    at_least,
    between,
    one_of,
    place,
    plain,
    positive,
    some_of,
    tuple_of,
)
from pirl_jax.core.page_learning import Algorithm, Nft, Optim, Sft

# More than a host holds, whatever the suite; its own memory is checked where simulators start.
MOST_ENVS = 65_536


@dataclasses.dataclass(frozen=True)
class Env(bounds.Section):
    """The simulators."""

    suite: str = some_of(
        choices.SUITES,
        "libero_spatial",
        "of LIBERO also a list: libero_10,libero_goal; or a folder of tasks (docs/custom_tasks.md);"
        " tabletop is ours; a probe_ needs no physics",
        folder=True,
    )
    tasks: tuple[int, ...] = tuple_of(
        0, (), "used in training and evaluation; () = all", "task indices", distinct=True
    )
    image_size_px: int = positive(
        256, "both cameras as rendered; resized to model.image_size_px with padding", "px"
    )
    max_episode_steps: int = at_least(
        0, 0, "until truncation; 0 = protocol's or suite's", "control steps"
    )
    protocol: str = one_of(
        ("rlinf", "openpi"),
        "rlinf",
        "LIBERO: whose time limits and settle steps; openpi also sets model.action_chunk to 5",
    )
    libero: str = one_of(
        ("pinned", "any"),
        "pinned",
        "any: also a LIBERO that is not hf-libero as pinned; its hash stands in every result",
    )
    assets: str = place(
        "",
        "folder of LIBERO's meshes; empty = $PIRL_LIBERO_ASSETS, the packages, or a download",
    )
    wording: str = one_of(
        ("default", "benchmark", "bddl"),
        "default",
        "LIBERO's instructions: by file names, or the task files' (default where perturbed)",
    )
    pro_files: str = place(
        "", "folder of LIBERO-PRO; empty = $PIRL_LIBERO_PRO, else where pirl download puts it"
    )
    plus_files: str = place("", "likewise of LIBERO-Plus; empty = $PIRL_LIBERO_PLUS, else there")
    plus_assets: str = place(
        "", "folder of LIBERO-Plus's own assets; empty = $PIRL_LIBERO_PLUS_ASSETS, else none"
    )
    render_quality: str = one_of(
        ("exact", "light"),
        "exact",
        "light: fewer triangles or simple shapes, same physics; recorded in every result",
    )
    spread: float = between(
        0, 1, 1.0, "tabletop: area in which the manipulated cube starts", "of 12 x 18 cm"
    )
    split: str = one_of(
        ("held_out", "published"),
        "held_out",
        "held_out: 80 % of a task's start states train, others evaluate; published: all do both",
    )
    num_workers: int = positive(8, "simulator processes of each host")
    render_devices: tuple[int, ...] = tuple_of(
        0, (), "one for each worker, in turn; () = the default device", "EGL devices"
    )
    cached_tasks: int = positive(
        2,
        "tasks whose simulators a process keeps; episodes go where theirs is (LIBERO: 0.5 GB each)",
    )
    timeout_s: float = at_least(1, 120.0, "a simulator that answers later is replaced", "s")
    restarts_per_hour: int = at_least(
        0, 20, "replaced processes before the run stops with the first cause"
    )
    recycle_episodes: int = at_least(0, 0, "that wear a worker out; 0 = never", "episodes")
    recycle_growth_gb: float = at_least(0, 0.0, "growth that wears it out; 0 = never", "GB")


@dataclasses.dataclass(frozen=True)
class Model(bounds.Section):
    """The network, its inputs, and how it acts."""

    preset: str = one_of(
        ("", "pi0_libero", "pi05_libero"),
        "",
        "openpi's choices of the fields below (pirl_jax/weights/presets.py); empty = none",
    )
    size: str = one_of(
        ("full", "small", "tiny"), "full", "of the network (pirl_jax/models/variants.py)"
    )
    pi05: bool = plain(False, "time conditions every expert norm (adaRMS); no state token")
    dtype: str = one_of(("float32", "bfloat16"), "bfloat16", "compute dtype")
    frozen_dtype: str = one_of(
        ("float32", "bfloat16"),
        "float32",
        "of frozen norms, embedder and patches in training; frozen kernels: the compute dtype",
    )
    attention: str = one_of(
        ("auto", "xla", "cudnn"),
        "auto",
        "over the prefix; auto = cudnn (fused) where a test on the device gives xla's numbers",
    )
    image_size_px: int = positive(224, "of what the network sees", "px")
    resize: str = one_of(
        ("host", "device"),
        "host",
        "host: Pillow, 0.8 ms an image, what published policies saw; device: within 1 grey level",
    )
    action_dim: int = positive(32, "the simulator's 7 are zero-padded to it", "action dims")
    action_horizon: int = between(1, 1000, 50, "H, denoised per decision", "actions")
    max_token_len: int = positive(48, "length of a prompt", "tokens")
    tokenizer: str = place(
        "", "path of a SentencePiece model (PaliGemma's for published weights), or byte", "byte"
    )
    norm_stats: str = place(
        "",
        "norm_stats.json, or identity; empty = next to the weights, or from the demonstrations",
        "identity",
    )
    norm_mode: str = one_of(("zscore", "quantile"), "zscore", "pi0: zscore, pi0.5: quantile")
    delta_actions: bool = plain(
        True, "pi0-LIBERO: the first 6 action dims are predicted relative to the state"
    )
    discrete_state: bool = plain(False, "pi0.5: write the state into the prompt")
    checkpoint: str = place(
        "", "to start from: run directory, or openpi's, RLinf's, LeRobot's; empty = fresh, then sft"
    )
    gradient_checkpointing: str = one_of(
        ("auto", "none", "dots", "full"),
        "auto",
        "what the backward pass recomputes; auto = the fastest that the memory plan finds room for",
    )
    train_expert_only: bool = plain(True, "freeze the VLM (image tower, embedder, expert 0)")
    is_lora: bool = plain(
        False, "low-rank adapters train in the VLM's language layers; its other weights are frozen"
    )
    lora_rank: int = positive(32, "rank and alpha of the adapters")
    lora_init: str = one_of(
        ("zeros", "openpi"),
        "zeros",
        "fresh adapters; zeros: factor B is 0, they change nothing; openpi: both factors random",
    )
    paligemma_variant: str = one_of(
        choices.VARIANTS,
        "",
        "openpi's name instead of is_lora: gemma_2b, gemma_2b_lora (rank 16); empty = by size",
    )
    action_expert_variant: str = one_of(
        choices.VARIANTS,
        "",
        "gemma_300m, or gemma_300m_lora (rank 32), whose other language weights are frozen",
    )
    noise_method: str = one_of(
        ("flow_ode", "flow_sde", "flow_noise", "flow_cps", "reinflow"),
        "flow_sde",
        "of exploration; flow_noise, or reinflow: the std is learned; flow_ode: none",
    )
    noise_level: float = between(
        0, 10, 0.5, "a of flow_sde and flow_cps, scale of the exploration noise"
    )
    noise_anneal: bool = plain(False, "take the noise level from noise_params instead")
    noise_params: tuple[float, float, float] = tuple_of(
        0,
        (0.7, 0.3, 400),
        "noise level at the start, at the end, iterations in between",
        "numbers (first level, last level, iterations)",
        open_low=True,
        length=3,
    )
    noise_logvar_range: tuple[float, float] = tuple_of(
        0,
        (0.08, 0.16),
        "flow_noise: bounds of the learned std (the name is RLinf's)",
        "numbers (lowest std, highest std)",
        open_low=True,
        length=2,
    )
    num_steps: int = between(1, 1000, 4, "J of the flow", "denoise steps")
    ignore_last: bool = plain(False, "the last denoise step is never the stochastic one")
    noise_steps: str = one_of(
        ("one", "all", "last"), "one", "which denoise steps are stochastic; one: drawn per decision"
    )
    joint_logprob: bool = plain(False, "older name, and RLinf's, of noise_steps=all")
    joint_mean: bool = plain(
        False, "noise_steps=all: mean over start noise and steps (RLinf), not the sum of the steps"
    )
    action_chunk: int = positive(5, "I, executed open loop per decision", "actions")
    action_env_dim: int = positive(7, "read by the simulator, and scored", "action dims")
    add_value_head: bool = plain(True, "the critic, which adv_type=gae needs")
    value_hidden: tuple[int, ...] = tuple_of(
        1, (512, 256, 128), "hidden layers of the value head", "widths"
    )
    value_after_vlm: bool = plain(
        False, "the critic reads the VLM's output (published pi0.5), not the action features"
    )
    value_vlm_mode: str = one_of(
        ("mean_token", "first_token", "last_token"),
        "mean_token",
        "value_after_vlm: of its valid tokens",
    )
    detach_critic_input: bool = plain(True, "no gradient of the value loss into the network")
    chunk_critic_input: bool = plain(
        False, "the value pools the first I action features instead of all H"
    )


@dataclasses.dataclass(frozen=True)
class Rollout(bounds.Section):
    """How episodes are played."""

    num_envs: int = between(1, MOST_ENVS, 64, "simulators stepping at a time, of each host")
    num_groups: int = positive(
        2,
        "the policy serves the first 1 / num_groups of the ready slots (RLinf: pipeline_stage_num)",
    )
    lockstep: bool = plain(False, "fixed groups take turns: slower; runs repeat bit for bit")
    episodes_per_iteration: int = positive(
        512, "whole ones per rollout, of all hosts together", "episodes"
    )
    prefix_cache: str = one_of(
        ("auto", "device", "host", "recompute"),
        "auto",
        "where a frozen VLM's prefix waits for the update; recompute: nowhere; auto = by memory",
    )
    start_order: str = one_of(
        ("uniform", "ordered"),
        "uniform",
        "of (task, start state); uniform: with replacement; ordered: each once before any twice",
    )
    balance: str = one_of(
        ("tasks", "suites"), "tasks", "what of a list of suites is played as often in training"
    )
    max_staleness: int = between(
        0,
        4,
        0,
        "how far the parameters that play may lie behind those that learn; 0 = in turns",
        "iterations",
    )
    weight_switch: str = one_of(
        ("decision", "batch"),
        "decision",
        "when new parameters play: at the next decision, or in whole rollouts (lockstep: batch)",
    )
    learner_timeout_s: float = at_least(
        1, 1800.0, "max_staleness: silence of update and simulators that ends the run", "s"
    )


@dataclasses.dataclass(frozen=True)
class Eval(bounds.Section):
    """Evaluation: during training, at its ends, and by the evaluate command."""

    episodes_per_task: int = at_least(
        0, 0, "start states of env.split, in order; 0 = all", "per task"
    )
    num_envs: int = between(
        0,
        MOST_ENVS,
        0,
        "simulators of the evaluate command; 0 = as in the rollout, which training evaluates on",
    )
    every: int = at_least(0, 0, "between evaluations; 0 = at the end", "iterations")
    episodes_during_training: int = at_least(0, 0, "of those; 0 = as episodes_per_task", "per task")
    num_videos: int = at_least(0, 1, "the first of an evaluation, recorded", "episodes")
    baseline: bool = plain(True, "evaluate before learning too, for the final table")


@dataclasses.dataclass(frozen=True)
class Mesh(bounds.Section):
    """How many of the devices that learn share what."""

    data: int = at_least(1, -1, "along the batch; -1: all that fsdp leaves", "devices", (-1,))
    fsdp: int = positive(1, "that share parameters and moments, of one host or more", "devices")


@dataclasses.dataclass(frozen=True)
class Placement(bounds.Section):
    """Which devices of a host do what, by their numbers: all, or ranges such as 0-3 or 0,2."""

    env: str = plain(
        "", "draw, by CUDA's numbers, a worker in turn; cpu: none; empty = env.render_devices"
    )
    rollout: str = plain("all", "decide, in rollouts and evaluations")
    actor: str = plain("all", "learn; equal to those of rollout, nested with them, or others")
    offload: str = one_of(
        ("off", "optimizer", "auto"),
        "off",
        "optimizer: moments, average and anchor lie on the host while episodes are played; auto:"
        " where nothing else fits",
    )


@dataclasses.dataclass(frozen=True)
class Run(bounds.Section):
    """What a run leaves behind."""

    directory: str = place("runs/default", "of everything that the run writes", filled=True)
    save_every: int = positive(40, "between checkpoints", "iterations")
    keep: int = positive(2, "checkpoints kept")
    report_every: int = at_least(
        0, 10, "between refreshes of report.html; 0 = only at the end", "iterations"
    )
    record: bool = plain(False, "note what every chunk, decision and update takes, in loop.jsonl")
    on_divergence: str = one_of(
        ("stop", "rollback"),
        "stop",
        "rollback: on from the last healthy checkpoint with other draws and 0.3 times the step",
    )
    max_rollbacks: int = positive(3, "of a run; then it stops")
    max_skipped_iterations: int = positive(
        3, "in a row whose gradients were all not finite; then it has diverged", "iterations"
    )
    backends: str = some_of(
        ("jsonl", "tensorboard", "wandb", "swanlab"),
        "tensorboard",
        "who gets the numbers: metrics.jsonl (jsonl) always; wandb, swanlab: packages and accounts",
    )
    project_name: str = plain(
        "", "at wandb and swanlab; empty = $WANDB_PROJECT, $SWANLAB_PROJECT, or pirl_jax"
    )
    experiment_name: str = plain("", "at wandb and swanlab; empty = the name of run.directory")
    offline: bool = plain(
        False, "wandb, swanlab: no account, files for wandb sync and swanlab sync in run.directory"
    )
    tensorboard: bool = plain(True, "older name: False takes tensorboard out of run.backends")
    wandb: bool = plain(False, "older name: True puts wandb into run.backends")
    compilation_cache: str = place("~/.cache/pirl_jax", "persistent XLA cache; empty = off")


@dataclasses.dataclass(frozen=True)
class Video(bounds.Section):
    """Videos of training rollouts: the image of every decision, which costs no rendering."""

    train: int = at_least(0, 0, "of an iteration's first episodes, one of a group", "episodes")
    info: bool = plain(True, "below: task, step, reward, value, outcome, policy, frame rate")
    directory: str = place("", "of these videos; empty = video/train in run.directory")


@dataclasses.dataclass(frozen=True)
class Page:
    """A whole configuration."""

    seed: int = between(0, 2**32 - 1, 42, "of everything random")
    num_iterations: int = at_least(0, 1000, "one rollout and its updates each", "iterations")
    env: Env = dataclasses.field(default_factory=Env)
    model: Model = dataclasses.field(default_factory=Model)
    rollout: Rollout = dataclasses.field(default_factory=Rollout)
    algorithm: Algorithm = dataclasses.field(default_factory=Algorithm)
    nft: Nft = dataclasses.field(default_factory=Nft)
    optim: Optim = dataclasses.field(default_factory=Optim)
    sft: Sft = dataclasses.field(default_factory=Sft)
    eval: Eval = dataclasses.field(default_factory=Eval)
    video: Video = dataclasses.field(default_factory=Video)
    mesh: Mesh = dataclasses.field(default_factory=Mesh)
    placement: Placement = dataclasses.field(default_factory=Placement)
    run: Run = dataclasses.field(default_factory=Run)

    def __post_init__(self):
        bounds.check(self)

    def as_dict(self) -> dict:
        """Nested dicts, from which an ml_collections page is made."""
        return dataclasses.asdict(self)


def from_dict(fields: Mapping) -> Page:
    """The checked page of nested dicts, or of an ml_collections page.

    Raises:
      ValueError: one sentence with section, field, value and bound.
    """
    values = dict(fields)
    for name, section in SECTIONS.items():
        values[name] = section(**bounds.with_whole_paths(section, values[name], f"{name}."))
    return Page(**values)


SECTIONS = {
    field.name: field.type for field in dataclasses.fields(Page) if "bound" not in field.metadata
}
