"""What the placement of a run may not be together with other fields of its page.

Refuses to know which devices there are.
"""

from pirl_jax.core import page, placement


def check(raw: page.Page) -> None:
    """What no machine could do.

    Raises:
      ValueError: one sentence with the value and the remedy.
    """
    section = raw.placement
    mode = placement.check(section.env, section.rollout, section.actor)
    if mode == "separate" and section.offload == "optimizer":
        raise ValueError(
            f"placement.offload={section.offload!r} makes room for nothing where"
            f" placement.rollout={section.rollout} and placement.actor={section.actor} are apart;"
            f" set it to 'off' or 'auto'"
        )
    if raw.rollout.max_staleness and section.offload == "optimizer":
        raise ValueError(
            f"placement.offload={section.offload!r} takes away what the learner needs while"
            f" episodes play (rollout.max_staleness={raw.rollout.max_staleness}); set one to 'off'"
            f" or 0"
        )
    if section.env and raw.env.render_devices:
        raise ValueError(
            f"placement.env={section.env!r} and env.render_devices={raw.env.render_devices} both"
            f" say where simulators draw; drop one"
        )


def named(raw: page.Page, role: str, otherwise: str) -> str:
    """Whose devices they are: what decided how many there are."""
    ranges = getattr(raw.placement, role)
    return f"devices of {otherwise if ranges == placement.ALL else f'placement.{role}={ranges}'}"
