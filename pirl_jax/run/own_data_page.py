"""What a configuration must be so that somebody's own demonstrations can teach.

What the data must be stands in own_data.py.
"""

from pirl_jax.core import page


def check(raw: page.Page) -> None:
    """Where sft.dataset is set.

    Raises:
      ValueError: one sentence with the values and the remedy.
    """
    section = raw.sft
    named = f"sft.dataset={section.dataset!r}"
    if section.demonstrations:
        raise ValueError(
            f"{named} and sft.demonstrations={section.demonstrations} are two sources; drop one"
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
