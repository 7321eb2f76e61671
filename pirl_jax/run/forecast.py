"""Seconds of an iteration on devices that are placed in some way, beside the same devices shared.

Plain numbers in, the model of the loop inside.  Refuses to know where devices or numbers come from.
"""

from collections.abc import Iterator
import dataclasses

from pirl_jax.run import loop_model

# How much slower than shared devices, in turns, a placement is before somebody is warned.
BAD = 1.15


@dataclasses.dataclass(frozen=True)
class Layout:
    """How many devices decide and learn."""

    rollout: int
    actor: int
    separate: bool = False  # no device does both
    max_staleness: int = 0
    offload: bool = False

    @property
    def name(self) -> str:
        """ "shared", "hybrid 4 of 8", "separate 4 + 2"; and how stale."""
        if self.separate:
            name = f"separate {self.rollout} + {self.actor}"
        elif self.rollout == self.actor:
            name = "shared"
        else:
            few, many = sorted((self.rollout, self.actor))
            name = f"hybrid {few} of {many}"
        offload = ", offload" if self.offload else ""
        stale = f", stale by {self.max_staleness}" if self.max_staleness else ""
        return name + offload + stale


@dataclasses.dataclass(frozen=True)
class Work:
    """Of the programs.  Those that share their rows over devices in seconds of one device."""

    decision: float  # a turn
    microbatch: float
    step_s: float = 0.0  # an optimiser step, the same everywhere
    finish_s: float = 0.0  # once per iteration, after its last decision
    publish_s: float = 0.0  # weights to devices that do not learn
    offload_s: float = 0.0  # the optimiser's state to the host, and as long back


@dataclasses.dataclass(frozen=True)
class Forecast:
    """A placement beside all of its devices shared, in turns."""

    layout: Layout
    own: loop_model.Outcome
    shared: loop_model.Outcome

    @property
    def ratio(self) -> float:
        """Above 1: slower than shared."""
        return self.own.iteration_s / self.shared.iteration_s

    def remarks(self) -> Iterator[str]:
        """What somebody may want to change."""
        if self.ratio > BAD:
            yield (
                f"a bad split: {self.layout.name} takes {self.ratio:.1f} times as long as the same "
                f"devices shared; {self._better()}"
            )

    def _better(self) -> str:
        if not self.layout.separate:
            return "leave placement.rollout and placement.actor out"
        if self.own.update_s > self.own.simulators_s + self.own.inference_s:
            return "give placement.actor more devices, or leave placement.* out"
        return "give placement.rollout more devices, or leave placement.* out"


def predict(
    layout: Layout,
    work: Work,
    simulators: loop_model.Simulators,
    schedule: loop_model.Schedule,
    *,
    iterations: int = 3,
    seed: int = 0,
) -> loop_model.Outcome:
    """Of the layout.

    schedule: what it says of staleness and separation does not count.
    """
    programs = loop_model.Programs(
        decision_s=work.decision / layout.rollout,
        microbatch_s=work.microbatch / layout.actor,
        step_s=work.step_s,
        finish_s=work.finish_s,
        publish_s=work.publish_s if layout.separate else 0.0,
        offload_s=work.offload_s if layout.offload else 0.0,
    )
    schedule = dataclasses.replace(
        schedule, max_staleness=layout.max_staleness, separate=layout.separate
    )
    return loop_model.run(simulators, programs, schedule, iterations=iterations, seed=seed)


def beside_shared(
    layout: Layout,
    work: Work,
    simulators: loop_model.Simulators,
    schedule: loop_model.Schedule,
    *,
    iterations: int = 3,
) -> Forecast:
    """The layout and the same devices shared; equal ones are computed once."""
    devices = max(layout.rollout, layout.actor)
    if layout.separate:
        devices = layout.rollout + layout.actor
    all_of_them = Layout(devices, devices)
    own = predict(layout, work, simulators, schedule, iterations=iterations)
    if layout == all_of_them:
        return Forecast(layout, own, own)
    shared = predict(all_of_them, work, simulators, schedule, iterations=iterations)
    return Forecast(layout, own, shared)
