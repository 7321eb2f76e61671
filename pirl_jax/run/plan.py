"""The memory plan: what rollout and update will need, known before anything is allocated.

Sampler and update are lowered from shapes and compiled, and XLA says what they need; a run uses
these executables, so that planning costs no second compilation.  Covers reinforcement learning; an
SFT stage, an SFT term in the loss and evaluation are not planned.  On another kind of device than
the run's (full size planned on a CPU) weights and caches are exact and the work of the executables
is that device's: XLA on CPU widens bfloat16 products to float32, so it is an upper estimate.
"""

from collections.abc import Iterator
import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import psutil

from pirl_jax.core import mesh as meshes
from pirl_jax.core import spec, types
from pirl_jax.envs import base
from pirl_jax.learner import objective, update
from pirl_jax.learner import state as states
from pirl_jax.policy import flow
from pirl_jax.rollout import actor as actors
from pirl_jax.run import config, hosts, steps

GIB = 2**30
LARGEST_MICROBATCH = 128
# Of the host's memory that kept prefixes may take; simulators and all else need the rest.
HOST_SHARE = 0.8
# Microbatches on the devices: those under way, and the one that is put meanwhile.
ON_DEVICES = update.IN_FLIGHT + 1


@dataclasses.dataclass(frozen=True)
class Plan:
    """Bytes of one device, and of this host for kept prefixes."""

    resident: dict[str, int]  # stays all the time
    work: dict[str, int]  # comes and goes, one at a time
    host: int
    limit: int
    host_limit: int
    microbatch_size: int
    prefix_cache: str

    @property
    def total(self) -> int:
        return sum(self.resident.values()) + max(self.work.values(), default=0)

    @property
    def fits(self) -> bool:
        return self.total <= self.limit and self.host <= self.host_limit

    def __str__(self) -> str:
        lines = [
            f"memory plan: microbatch {self.microbatch_size}, prefix cache {self.prefix_cache}"
        ]
        for name, size in self.resident.items():
            lines.append(_line(name, size))
        for name, size in self.work.items():
            lines.append(f"{_line(name, size)}, one of these at a time")
        lines.append(f"{_line('total per device', self.total)} of {self.limit / GIB:.2f}")
        if self.host:
            kept = _line("kept prefixes on this host, at most", self.host)
            lines.append(f"{kept} of {self.host_limit / GIB:.2f}")
        return "\n".join(lines)


def _line(name: str, size: int) -> str:
    return f"  {name:<42}{size / GIB:10.2f} GiB"


def choose(
    settings: config.Settings,
    mesh: jax.sharding.Mesh,
    prompt_tokens: int,
    env_spec: base.EnvSpec,
    limit: int | None = None,
) -> tuple[config.Settings, Plan]:
    """Fill in what the recipe leaves to the plan.

    That is rollout.prefix_cache "auto" and algorithm.microbatch_size 0.

    Args:
      prompt_tokens: length that prompts are padded to.
      limit: bytes of one device; None asks it.

    Raises:
      ValueError: nothing fits; names the smallest change that would.
    """

    def need(candidate: config.Settings) -> Plan:
        return measure(candidate, mesh, prompt_tokens, env_spec, limit)

    for candidate in _candidates(settings, mesh):
        plan = need(candidate)
        if plan.fits:
            return candidate, plan
    for changes in _changes(settings):
        candidates = _candidates(config.changed(settings, changes), mesh)
        if any(need(candidate).fits for candidate in candidates):
            change = " ".join(f"--config.{name}={value}" for name, value in changes.items())
            raise ValueError(f"{_too_much(plan)}; this fits: {change}")
    raise ValueError(
        f"{_too_much(plan)}; no choice of microbatch, checkpointing or cache fits: "
        f"raise mesh.fsdp over more devices"
    )


def measure(
    settings: config.Settings,
    mesh: jax.sharding.Mesh,
    prompt_tokens: int,
    env_spec: base.EnvSpec,
    limit: int | None = None,
    thorough: bool = False,
) -> Plan:
    """What settings without open choices need.

    Where the resident part alone is too much, nothing is compiled, unless thorough.
    """
    limit, host_limit = _limits(mesh, limit)
    params, state = _state(settings, mesh)
    resident = _resident(settings, state)
    count = hosts.episodes_per_iteration(settings.raw)
    count *= actors.max_decisions(env_spec, settings.policy.model.action_chunk)
    args, context = _decision(settings, mesh, prompt_tokens, env_spec, params)
    kept = count * size(context) // _batch_size(settings)  # of one device
    host = kept * len(mesh.local_devices)
    if settings.prefix_cache == "device":
        resident["prefix cache"] = kept
        host = 0
    plan = Plan(
        resident=resident,
        work={},
        host=host,
        limit=limit,
        host_limit=host_limit,
        microbatch_size=settings.raw.algorithm.microbatch_size,
        prefix_cache=settings.prefix_cache,
    )
    if not plan.fits and not thorough:
        return plan
    return dataclasses.replace(plan, work=_work(settings, mesh, state, args, context))


def _limits(mesh: jax.sharding.Mesh, limit: int | None) -> tuple[int, int]:
    """Bytes of one device and of one host, where they are fewest."""
    if limit is None:
        limit = device_limit(mesh.local_devices[0])
    host_limit = int(HOST_SHARE * psutil.virtual_memory().total)
    everywhere = meshes.gather((limit, host_limit))
    return min(device for device, _ in everywhere), min(host for _, host in everywhere)


def _resident(settings: config.Settings, state: states.TrainState) -> dict[str, int]:
    """Bytes of one device that the training state takes."""
    learned, frozen = states.partition(state.params, steps.trainable(settings))
    resident = {
        "frozen weights": size(frozen),
        "weights that train, float32": size(learned),
        "optimiser": size(state.opt_state) + size(state.iteration),
    }
    if state.ema or state.anchor:
        resident["average and anchor"] = size(state.ema) + size(state.anchor)
    return resident


def _batch_size(settings: config.Settings) -> int:
    """Rows of one decision."""
    return config.decision_batch(settings.raw, settings.raw.rollout.num_envs)


def device_limit(device: jax.Device) -> int:
    """Bytes that a device lets this process have; a CPU's are the machine's."""
    stats = device.memory_stats()
    return stats["bytes_limit"] if stats else psutil.virtual_memory().total


def size(tree: object) -> int:
    """Bytes on one device of arrays or shapes with shardings."""
    total = 0
    for x in jax.tree.leaves(tree):
        total += math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return total


def _candidates(settings: config.Settings, mesh: jax.sharding.Mesh) -> Iterator[config.Settings]:
    """Settings without open choices, the fastest first."""
    whole = settings.raw.algorithm.minibatch_size
    asked = settings.raw.algorithm.microbatch_size
    sizes = (asked,) if asked else tuple(_halves(whole, mesh.size))
    if not sizes:
        raise ValueError(
            f"algorithm.minibatch_size={whole} has no part that divides over the {mesh.size} "
            f"devices of the mesh; make it a multiple of {mesh.size}"
        )
    for cache, microbatch_size in itertools.product(_caches(settings, mesh), sizes):
        changes = {
            "rollout.prefix_cache": cache,
            "algorithm.microbatch_size": microbatch_size,
        }
        yield config.changed(settings, changes)


def _caches(settings: config.Settings, mesh: jax.sharding.Mesh) -> tuple[str, ...]:
    """Where prefixes may lie, the fastest first."""
    asked = settings.raw.rollout.prefix_cache
    if asked != "auto":
        return (asked,)
    if not settings.keep_prefix:
        return ("recompute",)
    if mesh.devices.flat[0].platform == "cpu":  # its memory is the host's
        return "host", "recompute"
    return "device", "host", "recompute"


def _halves(minibatch_size: int, devices: int) -> Iterator[int]:
    """The largest microbatch, its half, and so on."""
    largest = min(minibatch_size, max(LARGEST_MICROBATCH, devices))
    candidates = range(largest, 0, -1)
    fitting = (size for size in candidates if not minibatch_size % size and not size % devices)
    size = next(fitting, 0)
    while size and size % devices == 0:
        yield size
        size = 0 if size % 2 else size // 2


def _changes(settings: config.Settings) -> Iterator[dict]:
    """What a user may give up, the smallest first: one by one, then together."""
    raw = settings.raw
    single = []
    if raw.model.frozen_dtype == "float32" and raw.model.dtype == "bfloat16":
        single.append({"model.frozen_dtype": "bfloat16"})
    if raw.rollout.prefix_cache in ("device", "host"):
        single.append({"rollout.prefix_cache": "auto"})
    if raw.algorithm.microbatch_size:
        single.append({"algorithm.microbatch_size": 0})
    if raw.model.gradient_checkpointing != "full":
        single.append({"model.gradient_checkpointing": "full"})
    for together in range(1, len(single) + 1):
        for some in itertools.combinations(single, together):
            changes = {}
            for change in some:
                changes |= change
            yield changes


def _too_much(plan: Plan) -> str:
    if plan.host > plan.host_limit:
        return (
            f"kept prefixes need {plan.host / GIB:.1f} GiB of the {plan.host_limit / GIB:.1f} GiB "
            f"that this host can spare"
        )
    return (
        f"rollout and update need {plan.total / GIB:.1f} GiB of a device that has "
        f"{plan.limit / GIB:.1f} GiB"
    )


# ---- shapes ----------------------------------------------------------------------------------


def _state(settings: config.Settings, mesh: jax.sharding.Mesh) -> tuple[dict, states.TrainState]:
    """Shapes of the parameters as the rollout sees them, and of the training state."""
    declared = flow.specs(settings.policy)
    params = spec.abstract(declared, spec.shardings(declared, mesh, meshes.RULES))
    state = steps.train_state(settings, params, mesh, make=states.abstract)
    return state.params, state


def _decision(
    settings: config.Settings,
    mesh: jax.sharding.Mesh,
    prompt_tokens: int,
    env_spec: base.EnvSpec,
    params: dict,
) -> tuple[tuple, object]:
    """Shapes of one call of the sampler: its arguments; the context rows that it leaves."""
    raw = settings.raw
    own = meshes.local(mesh)
    rows = _batch_size(settings)
    sharding = meshes.batch_sharding(own)
    replicated = meshes.replicated(own)
    cameras = len(env_spec.cameras)
    pixels = raw.model.image_size_px if raw.model.resize == "host" else env_spec.image_size_px

    def array(dtype: jnp.dtype, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=sharding)

    obs = types.Observation(
        images=array(jnp.uint8, cameras, pixels, pixels, 3),
        image_mask=array(bool, cameras),
        state=array(jnp.float32, settings.policy.network.action_dim),
        tokens=array(jnp.int32, prompt_tokens),
        token_mask=array(bool, prompt_tokens),
    )
    key = jax.eval_shape(lambda: jax.random.key(0)).update(sharding=replicated)
    args = meshes.local_view(params, mesh), key, array(jnp.int32), obs
    if raw.model.noise_anneal:
        args += (jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated),)
    explore, _ = steps.decisions(settings.policy, settings.keep_prefix, own)
    _, _, context = jax.eval_shape(explore, *args)
    return args, obs if context is None else _rows(context, rows, own)


def _rows(tree: object, count: int, mesh: jax.sharding.Mesh) -> object:
    """The same with another number of rows."""
    sharding = meshes.batch_sharding(mesh)

    def with_rows(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype, sharding=sharding)

    return jax.tree.map(with_rows, tree)


def _work(
    settings: config.Settings,
    mesh: jax.sharding.Mesh,
    state: states.TrainState,
    args: tuple,
    context: object,
) -> dict[str, int]:
    """Bytes of one device that each executable needs beyond what stays.

    args, context: the shapes of _decision.
    """
    explore, _ = steps.decisions(settings.policy, settings.keep_prefix, meshes.local(mesh))
    chain, _, _ = jax.eval_shape(explore, *args)
    count = settings.raw.algorithm.microbatch_size
    chain = _rows(chain, count, mesh)
    context = _rows(context, count, mesh)
    clone_weight = chain.value if settings.raw.algorithm.clone_coef else None
    batch = objective.Minibatch(context, chain, chain.value, chain.value, chain.value, clone_weight)
    lowered = steps.updater(settings, mesh).lower(state, batch)
    microbatch = lowered["microbatch"].compile().memory_analysis()
    step = lowered["step"].compile().memory_analysis()
    decision = explore.lower(*args).compile().memory_analysis()
    # The context rows of the decision before are still on their way to the host.
    arriving = decision.output_size_in_bytes
    learned, _ = states.partition(state.params, steps.trainable(settings))
    grads = size(learned)
    return {
        "rollout": _beyond(decision) + arriving + size(args[2:]),
        "gradients, activations, microbatches": (
            grads + _beyond(microbatch) + ON_DEVICES * size(batch)
        ),
        "optimiser step": grads + _beyond(step),
    }


def _beyond(asked: object) -> int:
    """Bytes that an executable needs besides its arguments, by XLA's memory analysis."""
    return asked.temp_size_in_bytes + asked.output_size_in_bytes - asked.alias_size_in_bytes
