"""The sections of the page that say what is learned and how: algorithm, nft, optim, sft."""

import dataclasses

from pirl_jax.core import bounds
from pirl_jax.core.bounds import (
    above,
    at_least,
    between,
    fraction_below_one,
    one_of,
    place,
    plain,
    positive,
    tuple_of,
)


@dataclasses.dataclass(frozen=True)
class Algorithm(bounds.Section):
    """What is learned from a rollout.  Sizes count rows of all hosts together."""

    loss: str = one_of(
        ("ppo", "clone", "nft"),
        "ppo",
        "ppo: the clipped ratio; clone: flow matching on the policy's own successful episodes; nft:"
        " see section nft",
    )
    adv_type: str = one_of(
        ("gae", "grpo", "rloo", "dr_grpo", "raw"),
        "gae",
        "gae has a critic; the others compare with the group's scores, or take the raw ones, and"
        " need add_value_head=False",
    )
    group_size: int = positive(1, "consecutive, of one task and start state", "episodes")
    filter_rewards: bool = plain(False, "learn only of groups whose mean is in the bounds")
    rewards_lower_bound: float = plain(0.1, "of filter_rewards")
    rewards_upper_bound: float = plain(0.9, "of filter_rewards")
    max_episodes_per_iteration: int = at_least(
        0,
        0,
        "filtered groups and such of equal scores are replaced up to here (DAPO); 0 = off",
        "episodes",
    )
    gamma: float = between(0, 1, 0.99, "discount per decision")
    gae_lambda: float = between(0, 1, 0.95, "per decision; 1 = Monte Carlo")
    bootstrap_truncated: bool = plain(
        False, "value of the last observation after a time limit; False: as RLinf, 0"
    )
    normalize_advantages: bool = plain(True, "over the valid decisions of the whole rollout")
    update_epochs: int = positive(4, "passes over one rollout")
    minibatch_size: int = positive(2048, "per optimiser step", "decisions")
    microbatch_size: int = at_least(
        0,
        128,
        "of one device per forward-backward; at most its part of a minibatch; 0 = the most, up to"
        " 128, that the memory plan finds room for",
        "decisions",
    )
    clip_ratio_low: float = between(0, 1, 0.2, "the probability ratio is clipped below 1 - this")
    clip_ratio_high: float = at_least(0, 0.2, "the probability ratio is clipped above 1 + this")
    clip_ratio_c: float = above(
        1,
        0.0,
        "dual clip: bound of the loss of bad actions; 0 for no dual clip",
        "of the advantage",
        besides=(0,),
    )
    logprob_type: str = one_of(
        ("chunk", "action", "token"),
        "chunk",
        "one probability ratio per chunk, per action, or per token (entry of an action)",
    )
    importance: str = one_of(
        ("recompute", "behavior"),
        "recompute",
        "rows of older parameters: against the policy that the update begins with, and weighted by"
        " how likely it would have played them; behavior: against the one that played",
    )
    importance_cap: float = above(
        1, 2.0, "rows of older parameters with a larger weight teach the policy nothing"
    )
    value_clip: float = positive(0.2, "clip of a value's move away from the rollout's")
    huber_delta: float = positive(10.0, "error from which the value loss is linear")
    value_coef: float = at_least(0, 1.0, "weight of the value loss")
    entropy_bonus: float = at_least(
        0, 0.0, "reward for the mean entropy of one action entry", "per nat"
    )
    trajectory_weighting: bool = plain(
        True, "every trajectory weighs the same; False: every decision"
    )
    target_kl: float = at_least(0, 0.0, "no more epochs above this mean KL; 0 = off", "nats")
    critic_warmup_iterations: int = at_least(0, 0, "for the value head alone", "first iterations")
    anchor: str = one_of(
        ("kl", "velocity_mse"), "kl", "distance to the policy that training starts from"
    )
    anchor_coef: float = at_least(0, 0.0, "its weight in the loss; 0 = off")
    sft_loss_weight: float = at_least(
        0, 0.0, "weight of the flow-matching loss on demonstrations (section sft); 0 = off"
    )
    clone_coef: float = at_least(
        0, 0.0, "weight of the loss `clone` beside another loss, per decision; 0 = off"
    )
    clone_rollouts: int = at_least(
        0,
        1,
        "newest, whose successes are imitated: this one's, and as many drawn from earlier ones;"
        " 0 = all of the run",
        "rollouts",
    )
    ema_decay: float = fraction_below_one(0.0, "of averaged weights to evaluate; 0 = off")

    def microbatch_rows(self, devices: int) -> int:
        """Of all devices: microbatch_size on each, unless a minibatch has fewer."""
        return min(self.microbatch_size * devices, self.minibatch_size)

    @property
    def uses_critic(self) -> bool:
        """Whether a value head is trained."""
        return self.adv_type == "gae"

    @property
    def clones(self) -> bool:
        """Whether own successes are imitated."""
        return self.loss == "clone" or self.clone_coef > 0


@dataclasses.dataclass(frozen=True)
class Nft(bounds.Section):
    """Of algorithm.loss=nft, pi-StepNFT: the policy against its mirror image at the one before."""

    form: str = one_of(
        ("dpo", "mse"), "dpo", "dpo: softplus of the difference of the energies; mse: their mean"
    )
    target: str = one_of(
        ("xnext", "x0", "x0_sde"),
        "xnext",
        "what a step should predict: x_{j+1}, or the chunk; x0_sde: as RLinf does with flow_sde",
    )
    rows: str = one_of(
        ("rollout", "resample"),
        "rollout",
        "where: the steps that were played, or fresh points between noise and chunk (x0 alone)",
    )
    steps: str = one_of(
        ("all", "one"),
        "all",
        "of a decision's noisy steps, where all are (model.noise_steps): all, or one that is drawn"
        " anew for every epoch",
    )
    weight: str = one_of(
        ("auto", "adaptive", "sigma", "constant", "t", "1-t", "inv_t2", "inv_t3"),
        "auto",
        "of a squared error; sigma: 1 / std^2; adaptive: 1 / its mean size; auto: by the noise",
    )
    weight_scale: tuple[float, float] = tuple_of(
        0,
        (1.0, 1.0),
        "times this, towards the policy and away from it",
        "numbers (towards, away)",
        length=2,
    )
    reduction: str = one_of(("sum", "mean"), "sum", "of the entries of an energy; RLinf: mean")
    level: str = one_of(("action", "chunk"), "action", "one energy per executed action, or chunk")
    beta: float = positive(1.0, "how far the two mirrored policies lie from the one that played")
    dpo_beta: float = positive(1.0, "form=dpo: steepness of the preference")
    label_clip: float = positive(
        1.0, "group advantages are clipped to +- this and mapped to labels in 0 to 1"
    )
    clip_ratio: float = at_least(
        0, 0.0, "form=mse: bound of the velocity's change, of the old velocity; 0 = off"
    )
    max_drift: float = at_least(
        0, 0.5, "bound of the change of an action's velocity that is seen; 0 = off"
    )
    drift_coef: float = at_least(0, 0.0, "weight of the mean squared change of the velocity")
    tau: tuple[float, float, float, float] = tuple_of(
        0,
        (1.0, 1.0, 0, 1),
        "share of the new policy in the average that plays, 1 = the policy itself",
        "numbers (first share, last share, first iteration, last iteration)",
        length=4,
    )
    tau_curve: str = one_of(("linear", "cosine"), "linear", "between the two shares")

    @property
    def averages(self) -> bool:
        """Whether another policy plays than the one that learns."""
        return self.tau[:2] != (1, 1)


@dataclasses.dataclass(frozen=True)
class Optim(bounds.Section):
    """AdamW."""

    lr: float = between(0, 10, 5e-6, "of the policy")
    value_lr: float = between(0, 10, 1e-4, "of the value head")
    b1: float = fraction_below_one(0.9, "decay of the first moment")
    b2: float = fraction_below_one(0.95, "decay of the second moment")
    eps: float = positive(1e-8, "added to the root of the second moment")
    weight_decay: float = at_least(0, 0.01, "of everything that trains")
    clip_grad: float = positive(1.0, "global norm over everything that trains")
    schedule: str = one_of(
        ("constant", "cosine", "openpi_cosine"), "constant", "of both rates, by iteration"
    )
    warmup_steps: int = at_least(0, 0, "from 0 to the full rate", "iterations")
    decay_steps: int = at_least(0, 0, "until a cosine is lowest, warm-up included", "iterations")
    min_lr_ratio: float = between(0, 1, 0.0, "that minimum, as a fraction of the peak")


@dataclasses.dataclass(frozen=True)
class Sft(bounds.Section):
    """Supervised fine-tuning before reinforcement learning."""

    demonstrations: int = at_least(
        0, 0, "scripted, per task, for a fresh model; 0 = no SFT", "episodes"
    )
    starts: str = one_of(
        ("random", "covering"),
        "random",
        "start states of the scripted ones: drawn, or those that together stand best for all",
    )
    dataset: str = place(
        "",
        "demonstrations of your own instead: folder of a LeRobot data set, an HDF5 file of LIBERO,"
        " or a folder of them; with sft.steps=0 for algorithm.sft_loss_weight alone",
    )
    dataset_keys: str = plain(
        "", "names in it where they are unusual: agentview=NAME,wrist=NAME,state=A+B,actions=NAME"
    )
    dataset_hz: float = at_least(
        0, 0.0, "control steps per second in it, where it says another; 0 = as it says", "Hz"
    )
    dataset_images: str = one_of(
        ("auto", "upright", "libero"),
        "auto",
        "libero: as its simulator draws them, to be turned by 180 degrees; auto: so is HDF5",
    )
    dataset_statistics: str = one_of(
        ("auto", "computed", "files"),
        "auto",
        "files: those that the data set brings; auto: model.norm_stats, else the checkpoint's, else"
        " computed",
    )
    action_noise: float = at_least(0, 0.0, "std on executed expert actions; the label is clean")
    steps: int = at_least(0, 1000, "optimiser steps")
    batch_size: int = at_least(0, 64, "per step", "control steps")
    lr: float = between(0, 10, 1e-3, "peak of the warm-up and cosine of openpi")
    warmup_steps: int = at_least(0, 50, "from 0 to the peak", "steps")
    weight_decay: float = at_least(0, 1e-4, "of everything that trains")
    ema: float = fraction_below_one(0.0, "decay of the averaged weights used afterwards; 0 = off")
    augment: bool = plain(False, "openpi's crop, rotation and colour jitter")

    @property
    def has_demonstrations(self) -> bool:
        """Whether there is anything to learn from, scripted or somebody's."""
        return bool(self.demonstrations or self.dataset)

    @property
    def by_dataset(self) -> bool:
        """Whether somebody's demonstrations come before reinforcement learning."""
        return bool(self.dataset and self.steps)
