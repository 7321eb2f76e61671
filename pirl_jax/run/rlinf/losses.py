"""RLinf's losses and what goes with them: formulas as those of formulas.py.

Its asynchronous PPO has a name of its own, and keys that only this one reads.  Reads no file.
"""

from typing import Any

from pirl_jax.run.rlinf import formulas

DECOUPLED = "decoupled_actor_critic"  # of asynchronous PPO
LOSSES = ("actor_critic", "actor", "ppo", "grpo", DECOUPLED)
DUAL_CLIP = 3.0  # RLinf's, where a file says nothing


def loss(source: formulas.Source, value: Any) -> dict[str, Any]:
    """The clipped ratio, whatever it is called."""
    name = str(value).removeprefix("embodied_")
    if name == "nft":
        raise ValueError(
            f"algorithm.loss_type={value!r} is pi-StepNFT, whose keys are not translated; start"
            f" from the recipe libero_object_0_nft_pi0, which is RLinf's"
        )
    if name not in LOSSES:
        raise formulas.another("algorithm.loss_type", value, "algorithm", LOSSES)
    fields = {"algorithm.loss": "ppo"}
    if name == DECOUPLED:
        clip = source.get("algorithm.clip_ratio_c", default=DUAL_CLIP)
        fields["algorithm.clip_ratio_c"] = clip
    return fields


def dual_clip(source: formulas.Source, value: Any) -> dict[str, Any]:
    """RLinf hands it to the loss of asynchronous PPO and of no other."""
    if _loss_of(source) != DECOUPLED:
        raise formulas.NotCarriedError(
            "RLinf does not read it for openpi; here algorithm.clip_ratio_c works, so it stays off"
        )
    return {"algorithm.clip_ratio_c": value}


def staleness(source: formulas.Source, value: Any) -> dict[str, Any]:
    """Iterations that the parameters which play may lie behind."""
    _require_decoupled(source)
    return {"rollout.max_staleness": value}


def importance_cap(source: formulas.Source, value: Any) -> dict[str, Any]:
    """Above it a row of older parameters is masked."""
    _require_decoupled(source)
    return {"algorithm.importance_cap": value}


def _loss_of(source: formulas.Source) -> str:
    return str(source.get("algorithm.loss_type", default="")).removeprefix("embodied_")


def _require_decoupled(source: formulas.Source):
    """
    Raises:
      NotCarriedError: another loss, which does not read what goes with this one.
    """
    name = _loss_of(source)
    if name != DECOUPLED:
        raise formulas.NotCarriedError(
            f"asynchronous PPO alone reads it, algorithm.loss_type={DECOUPLED}, and this is"
            f" {name!r}"
        )
