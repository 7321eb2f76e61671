"""The memory plan: what rollout and update will need, known before anything is allocated.

Sampler and update are lowered from shapes and compiled, and XLA says what they need; a run uses these executables, so that planning
costs no second compilation.  Covers reinforcement learning; an SFT stage, an SFT term in the loss and evaluation are not planned.
On another kind of device than the run's (full size planned on a CPU) weights and caches are exact and the work of the executables is
that device's: XLA on CPU widens bfloat16 products to float32, so it is an upper estimate.
"""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import psutil

from pirl_jax.core import mesh as meshes
from pirl_jax.core import spec, types
from pirl_jax.learner import state as states
from pirl_jax.learner import update
from pirl_jax.policy import flow
from pirl_jax.rollout import collector
from pirl_jax.run import config, hosts, steps

GIB = 2**30
LARGEST_MICROBATCH = 128
HOST_SHARE = (
    0.8  # of the host's memory that kept prefixes may take; simulators and all else need the rest
)
IN_FLIGHT = 3  # microbatches on the device: one computes, two wait (learner/update.py)


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

    def __str__(self):
        lines = [
            f"memory plan: microbatch {self.microbatch_size}, prefix cache {self.prefix_cache}"
        ]
        lines += [f"  {name:<42}{size / GIB:10.2f} GiB" for name, size in self.resident.items()]
        lines += [
            f"  {name:<42}{size / GIB:10.2f} GiB, one of these at a time"
            for name, size in self.work.items()
        ]
        lines.append(
            f"  {'total per device':<42}{self.total / GIB:10.2f} GiB of {self.limit / GIB:.2f}"
        )
        if self.host:
            lines.append(
                f"  {'kept prefixes on this host, at most':<42}{self.host / GIB:10.2f} GiB of {self.host_limit / GIB:.2f}"
            )
        return "\n".join(lines)


def choose(
    settings, on_mesh, prompt_tokens: int, env_spec, limit: int | None = None
) -> tuple[config.Settings, Plan]:
    """Fill in what the recipe leaves to the plan (rollout.prefix_cache "auto", algorithm.microbatch_size 0) -> settings, Plan.

    Args:
      prompt_tokens: length that prompts are padded to.
      limit: bytes of one device; None asks it.

    Raises:
      ValueError: nothing fits; names the smallest change that would.
    """
    ask = functools.partial(
        measure, on_mesh=on_mesh, prompt_tokens=prompt_tokens, env_spec=env_spec, limit=limit
    )
    tried = []
    for candidate in _candidates(settings, on_mesh):
        tried.append(ask(candidate))
        if tried[-1].fits:
            return candidate, tried[-1]
    for changes in _changes(settings, on_mesh):
        candidate = config.changed(settings, changes)
        if any(ask(one).fits for one in _candidates(candidate, on_mesh)):
            change = " ".join(f"--config.{name}={value}" for name, value in changes.items())
            raise ValueError(f"{_too_much(tried[-1])}; this fits: {change}")
    raise ValueError(
        f"{_too_much(tried[-1])}; no choice of microbatch, checkpointing or cache fits: raise mesh.fsdp over more devices"
    )


def measure(
    settings,
    on_mesh,
    prompt_tokens: int,
    env_spec,
    limit: int | None = None,
    thorough: bool = False,
) -> Plan:
    """What settings without open choices need.  Where the resident part alone is too much, nothing is compiled, unless thorough."""
    limits = (
        device_limit(on_mesh.local_devices[0]) if limit is None else limit,
        int(HOST_SHARE * psutil.virtual_memory().total),
    )
    limit, host_limit = map(min, zip(*meshes.gather(limits), strict=True))  # of the smallest host
    params, state = _state(settings, on_mesh)
    learned, frozen = states.partition(params, steps.trainable(settings))
    moments = size(state.opt_state) + size(state.iteration)
    resident = {
        "frozen weights": size(frozen),
        "weights that train, float32": size(learned),
        "optimiser": moments,
    }
    if state.ema or state.anchor:
        resident["average and anchor"] = size(state.ema) + size(state.anchor)
    rows = hosts.episodes_of_host(settings.raw)[0] * collector.max_decisions(
        env_spec, settings.policy.model.action_chunk
    )
    args, context = _decision(settings, on_mesh, prompt_tokens, env_spec, params)
    batch = config.decision_batch(settings.raw, settings.raw.rollout.num_envs)
    kept = rows * size(context) // batch  # of one device
    if settings.prefix_cache == "device":
        resident["prefix cache"] = kept
    host = 0 if settings.prefix_cache == "device" else kept * len(on_mesh.local_devices)
    plan = Plan(
        resident,
        {},
        host,
        limit,
        host_limit,
        settings.raw.algorithm.microbatch_size,
        settings.prefix_cache,
    )
    if not plan.fits and not thorough:
        return plan
    return dataclasses.replace(plan, work=_work(settings, on_mesh, state, args, context))


def device_limit(device) -> int:
    """Bytes that a device lets this process have; a CPU's are the machine's."""
    stats = device.memory_stats()
    return stats["bytes_limit"] if stats else psutil.virtual_memory().total


def size(tree) -> int:
    """Bytes on one device of arrays or shapes with shardings."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def _candidates(settings, on_mesh):
    """Settings without open choices, the fastest first."""
    cache, micro = settings.raw.rollout.prefix_cache, settings.raw.algorithm.microbatch_size
    caches = (cache,)
    if cache == "auto":  # a CPU's memory is the host's
        kept = ("host",) if on_mesh.devices.flat[0].platform == "cpu" else ("device", "host")
        caches = (*(kept if settings.keep_prefix else ()), "recompute")
    sizes = (
        (micro,) if micro else tuple(_halves(settings.raw.algorithm.minibatch_size, on_mesh.size))
    )
    if not sizes:
        raise ValueError(
            f"algorithm.minibatch_size={settings.raw.algorithm.minibatch_size} has no part that divides over the {on_mesh.size} "
            f"devices of the mesh; make it a multiple of {on_mesh.size}"
        )
    for cache, micro in itertools.product(caches, sizes):
        yield config.changed(
            settings, {"rollout.prefix_cache": cache, "algorithm.microbatch_size": micro}
        )


def _halves(minibatch_size, devices):
    """The largest microbatch, its half, and so on."""
    candidates = range(min(minibatch_size, max(LARGEST_MICROBATCH, devices)), 0, -1)
    size = next(
        (size for size in candidates if not minibatch_size % size and not size % devices), 0
    )
    while size and size % devices == 0:
        yield size
        size = 0 if size % 2 else size // 2


def _changes(settings, on_mesh):
    """What a user may give up, the smallest first: one by one, then together."""
    raw, single = settings.raw, []
    if raw.model.frozen_dtype == "float32" and raw.model.dtype == "bfloat16":
        single.append({"model.frozen_dtype": "bfloat16"})
    if raw.rollout.prefix_cache in ("device", "host"):
        single.append({"rollout.prefix_cache": "auto"})
    if raw.algorithm.microbatch_size:
        single.append({"algorithm.microbatch_size": 0})
    if raw.model.gradient_checkpointing != "full":
        single.append({"model.gradient_checkpointing": "full"})
    for together in range(1, len(single) + 1):
        yield from (
            functools.reduce(dict.__or__, some) for some in itertools.combinations(single, together)
        )


def _too_much(plan: Plan) -> str:
    if plan.host > plan.host_limit:
        return f"kept prefixes need {plan.host / GIB:.1f} GiB of the {plan.host_limit / GIB:.1f} GiB that this host can spare"
    return f"rollout and update need {plan.total / GIB:.1f} GiB of a device that has {plan.limit / GIB:.1f} GiB"


# ---- shapes --------------------------------------------------------------------------------------------------------------


def _state(settings, on_mesh):
    """Shapes of the parameters as the rollout sees them, and of the training state."""
    declared = flow.specs(settings.policy)
    params = spec.abstract(declared, spec.shardings(declared, on_mesh, meshes.RULES))
    state = steps.train_state(settings, params, on_mesh, make=states.abstract)
    return state.params, state


def _decision(settings, on_mesh, prompt_tokens, env_spec, params):
    """Shapes of one call of the sampler: its arguments; the context rows that it leaves."""
    raw, cfg, own = settings.raw, settings.policy.network, meshes.local(on_mesh)
    where, everywhere = meshes.batch_sharding(own), meshes.replicated(own)
    rows, cameras = config.decision_batch(raw, raw.rollout.num_envs), len(env_spec.cameras)
    pixels = raw.model.image_size_px if raw.model.resize == "host" else env_spec.image_size_px

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=where)

    obs = types.Observation(
        images=array(jnp.uint8, cameras, pixels, pixels, 3),
        image_mask=array(bool, cameras),
        state=array(jnp.float32, cfg.action_dim),
        tokens=array(jnp.int32, prompt_tokens),
        token_mask=array(bool, prompt_tokens),
    )
    key = jax.eval_shape(lambda: jax.random.key(0)).update(sharding=everywhere)
    args = meshes.local_view(params, on_mesh), key, array(jnp.int32), obs
    if raw.model.noise_anneal:
        args += (jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere),)
    explore, _ = steps.decisions(settings.policy, settings.keep_prefix)
    _, _, context = jax.eval_shape(explore, *args)
    return args, obs if context is None else _rows(context, rows, own)


def _rows(tree, count, on_mesh):
    """The same with another number of rows."""
    where = meshes.batch_sharding(on_mesh)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype, sharding=where), tree
    )


def _work(settings, on_mesh, state, args, context) -> dict[str, int]:
    """Bytes of one device that each executable needs beyond what stays; from the shapes of _state and _decision."""
    explore, _ = steps.decisions(settings.policy, settings.keep_prefix)
    chain, _, _ = jax.eval_shape(explore, *args)
    count = settings.raw.algorithm.microbatch_size
    chain, context = _rows(chain, count, on_mesh), _rows(context, count, on_mesh)
    batch = update.Minibatch(context, chain, chain.value, chain.value, chain.value)
    lowered = steps.updater(settings, on_mesh).lower(state, batch)
    asked = {
        name: one.compile().memory_analysis()
        for name, one in (lowered | {"decision": explore.lower(*args)}).items()
    }
    extra = {
        name: one.temp_size_in_bytes + one.output_size_in_bytes - one.alias_size_in_bytes
        for name, one in asked.items()
    }
    learned, _ = states.partition(state.params, steps.trainable(settings))
    return {
        # The context rows of the decision before are still on their way to the host.
        "rollout": extra["decision"] + asked["decision"].output_size_in_bytes + size(args[2:]),
        "gradients, activations, microbatches": size(learned)
        + extra["microbatch"]
        + IN_FLIGHT * size(batch),
        "optimiser step": size(learned) + extra["step"],
    }
