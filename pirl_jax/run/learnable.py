"""What a configuration must be so that something can be learned with it.

Says what fields of algorithm and exploration may not be together; what one value may be stands on
the page (core/page_learning.py), what holds for evaluation too in config.py.
"""

from pirl_jax.core import page
from pirl_jax.run import config, learnable_nft, teachable

# A step's std enters the probabilities squared; below this, float32 has nothing left of it.
LEAST_NOISE = 1e-6


def check(raw: page.Page) -> None:
    """What evaluation may have and learning may not.

    Raises:
      ValueError: one sentence with the values and the remedy.
    """
    teachable.check(raw)
    _check_loss(raw)
    _check_critic(raw)
    _check_groups(raw)
    algorithm = raw.algorithm
    if algorithm.sft_loss_weight and not raw.sft.has_demonstrations:
        raise ValueError(
            f"algorithm.sft_loss_weight={algorithm.sft_loss_weight} needs demonstrations; "
            f"set sft.demonstrations (it is {raw.sft.demonstrations}) to at least 1, or sft.dataset"
        )
    _check_replay(raw)
    _check_exploration(raw)
    if algorithm.clip_ratio_low == algorithm.clip_ratio_high == 0:
        raise ValueError(
            "algorithm.clip_ratio_low=0 and algorithm.clip_ratio_high=0 clip every move of the"
            " policy away; set one of them above 0, 0.2 is usual"
        )


def _check_loss(raw: page.Page):
    """What a loss reads, and what has no meaning beside it."""
    algorithm = raw.algorithm
    if algorithm.loss == "nft":
        learnable_nft.check(raw)
        return
    named = f"algorithm.loss={algorithm.loss!r}"
    if algorithm.loss == "ppo":
        if algorithm.adv_type == "raw":
            raise ValueError(
                f"{named} needs a baseline, which algorithm.adv_type='raw' is not; set adv_type to"
                f" gae, or to grpo, rloo or dr_grpo with groups"
            )
        return
    if algorithm.adv_type != "raw":
        raise ValueError(
            f"{named} has neither critic nor advantages, and algorithm.adv_type="
            f"{algorithm.adv_type!r} makes some; set algorithm.adv_type=raw and"
            f" model.add_value_head=False"
        )
    for name in ("clone_coef", "anchor_coef", "entropy_bonus", "target_kl"):
        value = getattr(algorithm, name)
        if value:
            raise ValueError(f"algorithm.{name}={value} has no meaning with {named}; set it to 0")


def _check_replay(raw: page.Page):
    """Successes of earlier rollouts."""
    named = f"algorithm.clone_rollouts={raw.algorithm.clone_rollouts}"
    if raw.algorithm.clone_rollouts == 1:
        return
    if not raw.algorithm.clones:
        raise ValueError(
            f"{named} replays what nothing imitates; set it to 1, or algorithm.clone_coef above 0,"
            f" or algorithm.loss=clone"
        )
    cache = raw.rollout.prefix_cache
    if cache in ("device", "host"):
        raise ValueError(
            f"{named} replays observations, and rollout.prefix_cache={cache!r} keeps prefixes of"
            f" this rollout alone; set prefix_cache to 'recompute' or 'auto'"
        )


def _check_exploration(raw: page.Page):
    """Noise that is there, and that float32 can tell from none.

    Imitation alone does without, and NFT that looks at whole chunks: the start noise of the flow
    remains.
    """
    model = raw.model
    loss = raw.algorithm.loss
    from_the_start = loss == "clone" or (loss == "nft" and raw.nft.target != "xnext")
    if model.noise_method == "flow_ode" and from_the_start:
        return
    learned = config.policy(raw).model.noise_method == "flow_noise"
    if learned and model.noise_anneal:
        raise ValueError(
            f"model.noise_anneal=True has no meaning with model.noise_method="
            f"{model.noise_method!r}, whose noise is learned; drop one"
        )
    levels = {"model.noise_level": model.noise_level}
    if learned:
        levels = {"model.noise_logvar_range": model.noise_logvar_range[0]}
    elif model.noise_anneal:
        levels = {"model.noise_params": min(model.noise_params[:2])}
    for name, level in levels.items():
        if model.noise_method == "flow_ode" or level < LEAST_NOISE:
            raise ValueError(
                f"model.noise_method={model.noise_method!r} with {name}={level}"
                f" explores nothing, so there is nothing to learn;"
                f" use flow_sde with a positive noise_level, at least {LEAST_NOISE}"
            )


def _check_critic(raw: page.Page):
    algorithm = raw.algorithm
    critic = algorithm.uses_critic
    if critic != raw.model.add_value_head:
        raise ValueError(
            f"algorithm.adv_type={algorithm.adv_type!r}"
            f" {'needs a critic' if critic else 'has no critic'};"
            f" set model.add_value_head={critic}"
        )
    # A single iteration tries the machinery, whatever it learns.
    if 1 < raw.num_iterations <= algorithm.critic_warmup_iterations:
        raise ValueError(
            f"algorithm.critic_warmup_iterations={algorithm.critic_warmup_iterations} leaves no"
            f" iteration of num_iterations={raw.num_iterations} to the policy;"
            f" set num_iterations to more, or the warm-up to less"
        )
    if algorithm.critic_warmup_iterations and not critic:
        raise ValueError(
            f"algorithm.critic_warmup_iterations={algorithm.critic_warmup_iterations} needs a"
            f" critic; set it to 0 with algorithm.adv_type={algorithm.adv_type!r}"
        )


def _check_groups(raw: page.Page):
    algorithm = raw.algorithm
    critic = algorithm.uses_critic
    alone = algorithm.group_size == 1
    if algorithm.adv_type == "raw":
        # A filter looks at groups.
        alone = alone and algorithm.filter_rewards
    if (critic and algorithm.filter_rewards) or (alone and not critic):
        raise ValueError(
            f"algorithm.adv_type={algorithm.adv_type!r} does not go with"
            f" algorithm.group_size={algorithm.group_size} and"
            f" algorithm.filter_rewards={algorithm.filter_rewards};"
            f" groups of at least 2 and the filter are for adv_type=grpo"
        )
    budget = algorithm.max_episodes_per_iteration
    first = raw.rollout.episodes_per_iteration
    if budget and (budget < first or not algorithm.filter_rewards):
        raise ValueError(
            f"algorithm.max_episodes_per_iteration={budget} replaces filtered groups: it needs"
            f" algorithm.filter_rewards=True and at least"
            f" rollout.episodes_per_iteration={first}; 0 switches it off"
        )
