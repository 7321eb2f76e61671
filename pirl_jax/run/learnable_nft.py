"""What a configuration must be so that NFT can learn with it.

Which fields of `nft` go together, and with which of exploration and algorithm; what holds for every
loss is not here.
"""

from pirl_jax.core import page
from pirl_jax.policy import noise
from pirl_jax.run import config


def check(raw: page.Page) -> None:
    """Where algorithm.loss is nft.

    Raises:
      ValueError: one sentence with the values and the remedy.
    """
    if raw.algorithm.uses_critic:
        raise ValueError(
            f"algorithm.loss='nft' learns without a critic, and algorithm.adv_type="
            f"{raw.algorithm.adv_type!r} trains one; set algorithm.adv_type=rloo with groups, or"
            f" raw, and model.add_value_head=False"
        )
    _check_target(raw)
    _check_form(raw)
    _check_average(raw)


def _check_target(raw: page.Page):
    """A target that the steps have."""
    options = raw.nft
    model = config.policy(raw).model
    method = model.noise_method
    named = f"nft.target={options.target!r}"
    last_too = model.noise_steps == "all" and method in noise.LAST_STEP_DETERMINISTIC
    without_noise = method == "flow_ode" or last_too
    if options.target == "xnext" and without_noise:
        raise ValueError(
            f"{named} compares noisy steps, and with model.noise_method={method!r} and"
            f" model.noise_steps={raw.model.noise_steps!r} some have no noise; use flow_sde, or"
            f" nft.target=x0"
        )
    if options.target == "xnext" and options.rows == "resample":
        raise ValueError(
            f"nft.rows='resample' has points from which no step was played, so {named} does not"
            f" exist there; set nft.target=x0, or nft.rows=rollout"
        )
    if options.target == "x0_sde" and method != "flow_sde":
        raise ValueError(
            f"{named} is a prediction of flow_sde, and model.noise_method={method!r}; set"
            f" nft.target=x0"
        )
    if options.steps == "one" and model.noise_steps != "all":
        raise ValueError(
            f"nft.steps='one' draws one of a decision's noisy steps, of which model.noise_steps="
            f"{raw.model.noise_steps!r} has one alone; set nft.steps=all, or model.noise_steps=all"
        )
    if options.weight == "sigma" and without_noise:
        raise ValueError(
            f"nft.weight='sigma' divides by a noise that model.noise_method={method!r} has not; set"
            f" nft.weight=auto"
        )
    if options.target != "xnext" and raw.algorithm.target_kl:
        raise ValueError(
            f"algorithm.target_kl={raw.algorithm.target_kl} bounds the KL of noisy steps, which"
            f" {named} does not look at; set it to 0"
        )


def _check_form(raw: page.Page):
    options = raw.nft
    if options.clip_ratio and options.form != "mse":
        raise ValueError(
            f"nft.clip_ratio={options.clip_ratio} is for nft.form=mse, and it is"
            f" {options.form!r}; set it to 0, nft.max_drift bounds both forms"
        )
    if not any(options.weight_scale):
        raise ValueError(
            f"nft.weight_scale={options.weight_scale} leaves nothing of the loss; (1, 1) is usual"
        )


def _check_average(raw: page.Page):
    options = raw.nft
    first, last, start, end = options.tau
    if max(first, last) > 1 or start > end:
        raise ValueError(
            f"nft.tau={options.tau} must be (first share, last share, first iteration, last"
            f" iteration): shares of at most 1, iterations in order"
        )
    if options.averages and raw.algorithm.ema_decay:
        raise ValueError(
            f"nft.tau={options.tau} keeps an average of the policy that plays, and"
            f" algorithm.ema_decay={raw.algorithm.ema_decay} another; set ema_decay to 0"
        )
