"""The memory plan: what rollout and update will need, known before anything is allocated.

Sampler and update are lowered from shapes and compiled, and XLA says what they need; a run uses
these executables, so that planning costs no second compilation.  Covers reinforcement learning; an
SFT stage, an SFT term in the loss and evaluation are not planned.  On another kind of device than
the run's (full size planned on a CPU) weights and caches are exact and the work of the executables
is that device's: XLA on CPU widens bfloat16 products to float32, so it is an upper estimate.
"""

from collections.abc import Callable, Sequence
import dataclasses

import jax
import psutil

from pirl_jax.core import mesh as meshes
from pirl_jax.core import placement
from pirl_jax.envs import base
from pirl_jax.learner import state as states
from pirl_jax.learner import update
from pirl_jax.run import accelerators, candidates, config, devices, shapes, shares, steps

GIB = shares.GIB
OPTIMISER = "optimiser"
AVERAGE = "average and anchor"
# Of the host's memory that kept prefixes may take; simulators and all else need the rest.
HOST_SHARE = 0.8
# Microbatches on the devices: those under way, and the one that is put meanwhile.
ON_DEVICES = update.IN_FLIGHT + 1
# How XLA:TPU says that a program does not fit, instead of compiling it.
EXHAUSTED = "RESOURCE_EXHAUSTED"


# The line of a plan that choices change.
OF_MICROBATCH = "gradients, activations, microbatches"


class DoesNotFit(ValueError):
    """No candidate of a recipe does.

    changes: the smallest that would; {}: there are none.
    """

    def __init__(self, sentence: str, changes: dict[str, object]):
        super().__init__(sentence)
        self.changes = changes


class TooLarge(Exception):
    """The compiler refuses a program because the device has too little memory."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device that a program needs, by XLA's analysis."""

    arguments: int
    outputs: int
    donated: int  # of the arguments, that the outputs take
    temporary: int
    peak: int  # everything, when it is most
    seconds: float | None = None  # of one call, where its compiler estimates them

    @property
    def beyond(self) -> int:
        """Besides its arguments."""
        return self.temporary + self.outputs - self.donated


def compiled_here(lowered: jax.stages.Lowered) -> Memory:
    """Compiles for the devices that it was lowered for.

    Raises:
      TooLarge: it does not fit them.
    """
    return memory(compiled(lowered))


def compiled(lowered: jax.stages.Lowered, options: dict | None = None) -> jax.stages.Compiled:
    """The executable.  options: of the compiler.

    Raises:
      TooLarge: it does not fit the device.
    """
    try:
        return lowered.compile(options)
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        if not text.startswith(EXHAUSTED):
            raise
        raise TooLarge(text.strip().splitlines()[0]) from error


def memory(executable: jax.stages.Compiled) -> Memory:
    """What XLA says of it."""
    asked = executable.memory_analysis()
    return Memory(
        arguments=asked.argument_size_in_bytes,
        outputs=asked.output_size_in_bytes,
        donated=asked.alias_size_in_bytes,
        temporary=asked.temp_size_in_bytes,
        peak=asked.peak_memory_in_bytes,
    )


Compile = Callable[[jax.stages.Lowered], Memory]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Bytes of one device, and of this host for kept prefixes."""

    resident: dict[str, int]  # stays all the time, where its role is
    work: dict[str, int]  # comes and goes, one at a time
    host: int
    limit: int
    host_limit: int
    microbatch_size: int  # of one device
    prefix_cache: str
    gradient_checkpointing: str
    refused: str = ""  # a program that the compiler says does not fit, in its words
    seconds: float | None = None  # of a microbatch, where the compiler estimates them
    remedy: str = ""  # what would make it much faster
    placed: placement.Placement | None = None  # None: all devices have all roles
    away: tuple[str, ...] = ()  # of what stays, on the host while episodes are played
    at_once: bool = False  # episodes are played while something learns

    @property
    def shares(self) -> list[shares.Share]:
        """What the devices of each role need."""
        return shares.of(self.placed, self.resident, self.work, self.away, self.at_once)

    @property
    def total(self) -> int:
        """Of the device that needs most."""
        return max(share.total for share in self.shares)

    @property
    def fits(self) -> bool:
        within = self.total <= self.limit and self.host <= self.host_limit
        return within and not self.refused

    def __str__(self) -> str:
        lines = [
            f"memory plan: microbatch {self.microbatch_size} per device, "
            f"prefix cache {self.prefix_cache}, "
            f"gradient checkpointing {self.gradient_checkpointing}"
        ]
        for share in self.shares:
            lines += share.lines()
            total = shares.line("total per device", share.total)
            lines.append(f"{total} of {self.limit / GIB:.2f}")
        if self.refused:
            lines.append(f"  does not fit: {self.refused}")
        if self.host:
            kept = shares.line("kept prefixes on this host, at most", self.host)
            lines.append(f"{kept} of {self.host_limit / GIB:.2f}")
        if self.remedy:
            lines.append(f"  {self.remedy}")
        return "\n".join(lines)


def choose(
    settings: config.Settings,
    mesh: jax.sharding.Mesh,
    prompt_tokens: int,
    env_spec: base.EnvSpec,
    limit: int | None = None,
    compiling: Compile = compiled_here,
) -> tuple[config.Settings, Plan]:
    """Fill in what the recipe leaves to the plan (run/candidates.py).

    Of candidates that fit it is the first, or, where the compiler estimates time, the fastest that
    differs from that in checkpointing alone.

    Args:
      prompt_tokens: length that prompts are padded to.
      limit: bytes of one device; None asks it.
      compiling: how a program comes to what it needs.

    Raises:
      DoesNotFit: nothing fits; names the smallest change that would.
    """

    def need(candidate: config.Settings) -> Plan:
        return measure(candidate, mesh, prompt_tokens, env_spec, limit, compiling=compiling)

    open_choices = candidates.candidates(settings, mesh)
    chosen, plan = _first_that_fits(open_choices, need)
    if chosen is None:
        raise _does_not_fit(settings, mesh, plan, need)
    if plan.seconds is None:
        return chosen, plan
    fitting = [(chosen, plan)]
    for rival in candidates.rivals(chosen, open_choices):
        of_rival = need(rival)
        if of_rival.fits:
            fitting.append((rival, of_rival))
    return min(fitting, key=lambda pair: pair[1].seconds)


def _first_that_fits(
    open_choices: Sequence[config.Settings], need: Callable[[config.Settings], Plan]
) -> tuple[config.Settings | None, Plan]:
    """The candidate and its plan; None: no one fits, and the plan is that of the last that was
    asked for."""
    failed = []
    plan = None
    for candidate in open_choices:
        if any(_rules_out(one, of_one, candidate) for one, of_one in failed):
            continue
        plan = need(candidate)
        if plan.fits:
            remedy = _remedy(plan, [of_one for _, of_one in failed])
            return candidate, dataclasses.replace(plan, remedy=remedy)
        failed.append((candidate, plan))
    return None, plan


def _remedy(plan: Plan, failed: Sequence[Plan]) -> str:
    """Where prefixes are computed again because the host has no room for them."""
    kept = [one.host for one in failed if one.prefix_cache == "host" and one.host > one.host_limit]
    if plan.prefix_cache != "recompute" or not kept:
        return ""
    return (
        f"prefixes are computed again in every update, most of its work: to keep them needs "
        f"{min(kept) / GIB:.1f} GiB, and this host can spare {plan.host_limit / GIB:.1f} GiB; "
        f"fewer rollout.episodes_per_iteration need less"
    )


def _rules_out(failed: config.Settings, plan: Plan, other: config.Settings) -> bool:
    """Whether what did not fit tells that another candidate does not, either."""
    if failed.prefix_cache != other.prefix_cache:
        return False
    if failed.raw.placement.offload != other.raw.placement.offload:
        return False
    if plan.host > plan.host_limit or _with_microbatch(plan, 0.0).total > plan.limit:
        return True
    if plan.refused and not plan.refused.startswith("microbatch:"):
        return True  # no choice changes another program
    larger = other.raw.algorithm.microbatch_size / failed.raw.algorithm.microbatch_size
    again = candidates.computed_again(other) - candidates.computed_again(failed)
    if again > 0:
        return False
    if again < 0 or plan.refused:
        return larger >= 1
    # A microbatch of half the rows needs at least half the memory.
    return _with_microbatch(plan, min(larger, 1.0)).total > plan.limit


def _with_microbatch(plan: Plan, share: float) -> Plan:
    """The same with so much of what a microbatch needs."""
    size = int(plan.work.get(OF_MICROBATCH, 0) * share)
    return dataclasses.replace(plan, work=plan.work | {OF_MICROBATCH: size})


def _does_not_fit(
    settings: config.Settings,
    mesh: jax.sharding.Mesh,
    plan: Plan,
    need: Callable[[config.Settings], Plan],
) -> DoesNotFit:
    for changes in candidates.changes(settings):
        open_choices = candidates.candidates(config.changed(settings, changes), mesh)
        chosen, _ = _first_that_fits(open_choices, need)
        if chosen is not None:
            change = " ".join(f"--config.{name}={value}" for name, value in changes.items())
            return DoesNotFit(f"{too_much(plan)}; this fits: {change}", changes)
    remedy = candidates.last_resort(mesh)
    why = f"no choice of microbatch, checkpointing or cache fits: {remedy}"
    return DoesNotFit(f"{too_much(plan)}; {why}", {})


def measure(
    settings: config.Settings,
    mesh: jax.sharding.Mesh,
    prompt_tokens: int,
    env_spec: base.EnvSpec,
    limit: int | None = None,
    thorough: bool = False,
    compiling: Compile | None = compiled_here,
) -> Plan:
    """What settings without open choices need.

    Where the resident part alone is too much, nothing is compiled, unless thorough; nor without
    `compiling`, and the plan has no work.
    """
    limit, host_limit = _limits(mesh, limit)
    params, state = shapes.state(settings, mesh)
    resident = _resident(settings, mesh, state)
    args, context = shapes.decision(settings, mesh, prompt_tokens, env_spec, params)
    count = shapes.kept_rows(settings, mesh, env_spec)
    kept = count * shapes.size(context) // shapes.batch_size(settings)  # of one device
    host = kept * devices.playing(settings, mesh).size
    if settings.prefix_cache == "device":
        resident[shares.KEPT] = kept
        host = 0
    plan = Plan(
        resident=resident,
        work={},
        host=host,
        limit=limit,
        host_limit=host_limit,
        microbatch_size=settings.raw.algorithm.microbatch_size,
        prefix_cache=settings.prefix_cache,
        gradient_checkpointing=settings.policy.network.remat,
        placed=devices.roles(settings),
        away=(OPTIMISER, AVERAGE) if steps.offload(settings).enabled else (),
        at_once=settings.raw.rollout.max_staleness > 0,
    )
    if compiling is None or (not plan.fits and not thorough):
        return plan
    work = _Work(settings, mesh, env_spec, state, args, context, compiling)
    try:
        return dataclasses.replace(plan, work=work.needed(), seconds=work.seconds)
    except TooLarge as error:
        return dataclasses.replace(plan, refused=f"{work.under_way}: {error}")


def _limits(mesh: jax.sharding.Mesh, limit: int | None) -> tuple[int, int]:
    """Bytes of one device and of one host, where they are fewest."""
    if limit is None:
        limit = device_limit(mesh.local_devices[0])
    host_limit = int(HOST_SHARE * _host_memory(mesh.local_devices))
    everywhere = meshes.gather((limit, host_limit))
    return min(device for device, _ in everywhere), min(host for _, host in everywhere)


def _resident(
    settings: config.Settings, mesh: jax.sharding.Mesh, state: states.TrainState
) -> dict[str, int]:
    """Bytes of one device that the training state takes, and what is published of it."""
    learned, frozen = states.partition(state.params, steps.trainable(settings))
    resident = {
        "frozen weights": shapes.size(frozen),
        "weights that train, float32": shapes.size(learned),
        OPTIMISER: shapes.size(state.opt_state) + shapes.size(state.iteration),
    }
    if settings.plays_average:  # and stays
        resident["average that plays"] = shapes.size(state.ema)
        if state.anchor:
            resident[AVERAGE] = shapes.size(state.anchor)
    elif state.ema or state.anchor:
        resident[AVERAGE] = shapes.size(state.ema) + shapes.size(state.anchor)
    published = shapes.published(settings, mesh, state.params)
    if published:
        name = shares.GATHERED if meshes.spans_hosts(mesh) else shares.PUBLISHED
        resident[name] = published
    return resident


def device_limit(device: jax.Device) -> int:
    """Bytes that a device lets this process have; a CPU's are the machine's.

    Of one that exists only for its compiler: what the table of run/accelerators.py says.
    """
    chip = _only_described(device)
    if chip is not None:
        return chip.limit
    stats = device.memory_stats()
    return stats["bytes_limit"] if stats else psutil.virtual_memory().total


def _host_memory(devices: Sequence[jax.Device]) -> int:
    """devices: all of one host."""
    chip = _only_described(devices[0])
    return psutil.virtual_memory().total if chip is None else chip.host_of(len(devices))


def _only_described(device: jax.Device) -> accelerators.Chip | None:
    """The line of the table where the device does not exist; None: it exists."""
    if device in device.client.local_devices():
        return None
    chip = accelerators.of_kind(device.device_kind)
    if chip is None:
        raise ValueError(
            f"{device.device_kind} exists only for its compiler and has no line in "
            f"pirl_jax/run/accelerators.py, so its memory is unknown; add one"
        )
    return chip


def too_much(plan: Plan) -> str:
    if plan.refused:
        return f"the compiler refuses the {plan.refused}"
    if plan.host > plan.host_limit:
        return (
            f"kept prefixes need {plan.host / GIB:.1f} GiB of the {plan.host_limit / GIB:.1f} GiB "
            f"that this host can spare"
        )
    return (
        f"rollout and update need {plan.total / GIB:.1f} GiB of a device that has "
        f"{plan.limit / GIB:.1f} GiB"
    )


@dataclasses.dataclass
class _Work:
    """Bytes of one device that each executable needs beyond what stays.

    args, context: the shapes of shapes.decision.
    """

    settings: config.Settings
    mesh: jax.sharding.Mesh
    env_spec: base.EnvSpec
    state: states.TrainState
    args: tuple
    context: object
    compiling: Compile
    under_way: str = ""  # the program that is being compiled
    seconds: float | None = None  # of a microbatch, once it is compiled

    def needed(self) -> dict[str, int]:
        """What no choice of a microbatch changes comes first: whoever cannot have that is told so
        without the rest.

        Raises:
          TooLarge: the compiler refuses one.
        """
        settings = self.settings
        decision = self._compile("rollout", shapes.rollout(settings, self.mesh, self.args))
        # The context rows of the decision before are still on their way to the host.
        arriving = decision.outputs
        lowered, batch = shapes.update(settings, self.mesh, self.state, self.args, self.context)
        step = self._compile("optimiser step", lowered["step"])
        microbatch = self._compile("microbatch", lowered["microbatch"])
        self.seconds = microbatch.seconds
        learned, _ = states.partition(self.state.params, steps.trainable(settings))
        grads = shapes.size(learned)
        rounded = shapes.size(steps.updater(settings, self.mesh).rounded.own(self.state))
        coming = ON_DEVICES * shapes.size(batch)
        needed = {
            shares.ROLLOUT: decision.beyond + arriving + shapes.size(self.args[2:]),
            OF_MICROBATCH: grads + rounded + microbatch.beyond + coming,
            "optimiser step": grads + step.beyond,
        }
        if settings.prefix_cache == "device":
            kept = shapes.kept(settings, self.mesh, self.env_spec, self.context)
            write = self._compile("writing of kept prefixes", kept["write"])
            read = self._compile("reading of kept prefixes", kept["read"])
            needed[shares.WRITING] = arriving + write.beyond
            is_apart = devices.roles(settings).mode == "separate"
            needed[shares.READING] = (0 if is_apart else grads + rounded) + coming + read.beyond
        return needed

    def _compile(self, name: str, lowered: jax.stages.Lowered) -> Memory:
        self.under_way = name
        return self.compiling(lowered)
