"""What a configuration must be so that a policy can be taught by demonstrations.

An evaluation of the policy may be of other tasks, which no scripted expert plays.
"""

from pirl_jax.core import page
from pirl_jax.envs import expert_tasks


def check(raw: page.Page) -> None:
    """What an SFT stage needs.

    Raises:
      ValueError: one sentence with the values and the remedy.
    """
    section = raw.sft
    if section.dataset:
        _check_dataset(raw)
        return
    if not section.demonstrations:
        return
    otherwise = "set sft.demonstrations=0 and model.checkpoint"
    expert_tasks.require(raw.env.suite, raw.env.tasks, otherwise)
    if not (section.steps and section.batch_size):
        raise ValueError(
            f"sft.demonstrations={section.demonstrations} needs sft.steps={section.steps} and "
            f"sft.batch_size={section.batch_size} to be at least 1"
        )


def _check_dataset(raw: page.Page):
    """Demonstrations of somebody's own."""
    section = raw.sft
    named = f"sft.dataset={section.dataset!r}"
    if section.demonstrations:
        raise ValueError(
            f"{named} and sft.demonstrations={section.demonstrations} are two sources; drop one "
            f"(sft.dataset='' or sft.demonstrations=0)"
        )
    if not section.batch_size:
        raise ValueError(f"{named} needs sft.batch_size={section.batch_size} to be at least 1")
    if not section.steps and not raw.model.checkpoint:
        raise ValueError(
            f"{named} with sft.steps={section.steps} leaves a fresh model untaught; set sft.steps "
            f"to at least 1, or model.checkpoint"
        )
    chosen = section.dataset_statistics
    if not section.steps and chosen != "auto":
        raise ValueError(
            f"sft.dataset_statistics={chosen!r} with sft.steps={section.steps} gives a policy "
            f"other statistics than it learned with; set it to 'auto'"
        )
    if raw.model.norm_stats and chosen != "auto":
        raise ValueError(
            f"model.norm_stats={raw.model.norm_stats!r} and sft.dataset_statistics={chosen!r} both "
            f"say which statistics; drop one"
        )
