"""Update, rollout and latency of the policy: ours against the straightforward computation.

Both start from the same observations.  The straightforward one has a third, blank camera, pads
prompts to their limit and computes the prefix again for every row of every update.
Both go through the program's own functions, so the baseline already skips what nothing reads of the
VLM's last layer.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import functools
import math
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pirl_jax.bench import interleaved
from pirl_jax.core import mesh as meshes
from pirl_jax.core import rng, spec, types
from pirl_jax.learner import objective
from pirl_jax.models import variants
from pirl_jax.monitor import columns
from pirl_jax.policy import flops, flow
from pirl_jax.run import command, config, recipes, steps

VARIANTS = ("baseline", "ours")
SIZES = ("full", "scaled")
CAMERAS = 2
ALL_CAMERAS = 3  # with the blank one
PROMPT = 32  # bucket that holds LIBERO's prompts
# About an eighth of the full widths, a quarter of its tokens and fewer layers: a prefix costs as
# many denoise steps as at full size.
SCALED = {
    "paligemma": variants.GemmaConfig(256, 3, 2048, 8, 1, 32),
    "expert": variants.GemmaConfig(128, 3, 400, 8, 1, 32),
    "siglip": variants.SiglipConfig(144, 5, 538, 4, 14),
    "image_size": (112, 112),
    "vocab_size": 512,
    "dtype": "float32",
}
FEWER_TOKENS = 4  # of prompt and actions, so many times
# Dense bfloat16 FLOP/s of the makers' data sheets, by what jax calls the device.
PEAK = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def add_arguments(parser: argparse.ArgumentParser, recipes: str, batch: int) -> None:
    """recipes, batch: defaults."""
    parser.add_argument("--recipes", default=recipes, help="names or files, separated by commas")
    parser.add_argument(
        "--size",
        choices=("auto", *SIZES),
        default="auto",
        help="auto: full on an accelerator, else scaled",
    )
    parser.add_argument(
        "--batch", type=command.number(int, 1, 65_536), default=batch, help="rows at a time"
    )


# ---- what all measurements share ---------------------------------------------------------------


@dataclasses.dataclass
class Case:
    """A recipe with everything the measurements share."""

    settings: config.Settings
    mesh: jax.sharding.Mesh
    params: dict
    tokens: flops.Tokens  # of ours
    narrow: types.Observation  # host arrays, what ours sees
    wide: types.Observation  # the same with what is masked

    @functools.cached_property
    def key(self) -> jax.Array:
        return rng.named(jax.random.key(0), "actions")

    def put(self, tree: Any) -> Any:
        """Rows from the host to the device."""
        return meshes.put_batch(tree, self.mesh)


def prepare(recipe: str, options: argparse.Namespace) -> Case:
    """Fresh weights, random observations with and without what is masked."""
    changes = {
        "model.frozen_dtype": "bfloat16",
        "algorithm.minibatch_size": options.batch,
        "algorithm.microbatch_size": options.batch,
        "rollout.prefix_cache": "host",
        "model.gradient_checkpointing": "none",
    }
    settings = config.changed(config.settings(recipes.load_recipe(recipe, "--recipes")), changes)
    prompt = PROMPT
    if _is_scaled(options.size):
        settings = _scaled(settings)
        prompt = PROMPT // FEWER_TOKENS
    mesh = meshes.make_mesh(1, 1, jax.devices()[:1])
    wide = _observation(settings.policy.network, options.batch, prompt)
    return Case(
        settings=settings,
        mesh=mesh,
        params=_weights(flow.specs(settings.policy), mesh),
        tokens=flops.Tokens(CAMERAS, prompt),
        narrow=_without_masked(wide, prompt),
        wide=wide,
    )


def _is_scaled(size: str) -> bool:
    if size == "auto":
        return jax.default_backend() == "cpu"
    return size == "scaled"


def _scaled(settings: config.Settings) -> config.Settings:
    """With a model that a CPU can run."""
    full = settings.policy
    network = dataclasses.replace(
        full.network,
        max_token_len=full.network.max_token_len // FEWER_TOKENS,
        action_horizon=full.network.action_horizon // FEWER_TOKENS,
        **SCALED,
    )
    chunk = min(full.model.action_chunk, network.action_horizon)
    model = dataclasses.replace(full.model, action_chunk=chunk)
    # XLA on CPU would widen bfloat16 to float32 in every product.
    settings = config.changed(settings, {"model.frozen_dtype": "float32"})
    return dataclasses.replace(settings, policy=flow.Policy(network, model))


def _weights(declared: dict, mesh: jax.sharding.Mesh) -> dict:
    """Any numbers of a usual size.

    XLA on CPU needs minutes to compile the random ones of a fresh model.
    """

    def wave(leaf: spec.Spec) -> jax.Array:
        index = jnp.arange(math.prod(leaf.shape), dtype=leaf.dtype)
        return (0.02 * jnp.sin(1.7 * index)).reshape(leaf.shape)

    def build() -> dict:
        return jax.tree.map(wave, declared)

    return jax.jit(build, out_shardings=spec.shardings(declared, mesh, meshes.RULES))()


def _observation(model: variants.Pi0Config, rows: int, prompt: int) -> types.Observation:
    """Random pictures, prompts and states with all that is masked."""
    random = np.random.default_rng(0)
    pictures = (*model.image_size, 3)
    images = np.zeros((rows, ALL_CAMERAS, *pictures), np.uint8)
    images[:, :CAMERAS] = random.integers(0, 256, (rows, CAMERAS, *pictures))
    tokens = np.zeros((rows, model.max_token_len), np.int32)
    tokens[:, :prompt] = random.integers(1, min(model.vocab_size, 256), (rows, prompt))
    state = random.normal(size=(rows, model.action_dim)).astype(np.float32)
    image_mask = np.arange(ALL_CAMERAS)[None].repeat(rows, 0) < CAMERAS
    return types.Observation(images, image_mask, state, tokens, tokens > 0)


def _without_masked(wide: types.Observation, prompt: int) -> types.Observation:
    return types.Observation(
        images=wide.images[:, :CAMERAS],
        image_mask=wide.image_mask[:, :CAMERAS],
        state=wide.state,
        tokens=wide.tokens[:, :prompt],
        token_mask=wide.token_mask[:, :prompt],
    )


# ---- measurements ------------------------------------------------------------------------------


def update(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of one optimiser step of --batch rows."""
    result = {}
    for recipe in options.recipes.split(","):
        result[recipe] = _update(prepare(recipe, options), options)
    return result


def rollout(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of --batch decisions, from images in host memory to actions in host memory.

    That is the prefix and all denoise steps.
    """
    result = {}
    for recipe in options.recipes.split(","):
        result[recipe] = _decide(prepare(recipe, options), options, explore=True)
    return result


def latency(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of one decision without exploration."""
    result = {}
    for recipe in options.recipes.split(","):
        result[recipe] = _decide(prepare(recipe, options), options, explore=False)
    return result


def _update(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    settings = case.settings
    rows = options.batch
    ids = np.arange(rows, dtype=np.int32)
    explore, _ = steps.decisions(settings.policy, True, case.mesh)
    # What was decided, and the prefix kept from it, is the same for both updates.
    decided = explore(case.params, case.key, *case.put((ids, case.narrow)))
    chain, _, prefix = jax.device_get(decided)
    contexts = {"baseline": case.wide, "ours": prefix}
    advantage = np.random.default_rng(1).normal(size=rows).astype(np.float32)
    # Only the page: config.changed makes a policy from it anew, which would be of full size.
    recompute = config.changed(settings, {"rollout.prefix_cache": "recompute"}).raw
    update_of = {
        "baseline": steps.updater(dataclasses.replace(settings, raw=recompute), case.mesh),
        "ours": steps.updater(settings, case.mesh),
    }
    states = {}
    for name in VARIANTS:
        # An update donates what it changes.
        params = jax.tree.map(jnp.copy, case.params)
        states[name] = steps.train_state(settings, params, case.mesh)
    first_metrics = {}

    def update_s(name: str, repeat: int) -> float:
        batch = objective.Minibatch(
            context=contexts[name],
            chain=chain,
            advantage=advantage,
            return_=advantage,
            weight=np.ones(rows, np.float32),
        )
        start_s = time.perf_counter()
        states[name], metrics = update_of[name].minibatch(states[name], [batch])
        # Waits for the device: a step has ended when its numbers are here.
        metrics = jax.device_get(metrics)
        first_metrics.setdefault(name, metrics)
        return time.perf_counter() - start_s

    seconds = _measured(update_s, options.repeats)
    flop = flops.savings(settings.policy, case.tokens, "kept", rows)["update"]
    result = _result(case, seconds, flop, rows)
    result["the first step of both"] = _side_by_side(first_metrics, ("loss", "grad_norm"))
    return result


def _side_by_side(
    metrics: Mapping[str, Mapping[str, Any]], names: Iterable[str]
) -> dict[str, dict[str, float]]:
    """{metric: {variant: value}}"""
    table = {}
    for name in names:
        table[name] = {variant: float(values[name]) for variant, values in metrics.items()}
    return table


def _decide(case: Case, options: argparse.Namespace, explore: bool) -> dict[str, Any]:
    rows = options.batch
    ids = np.arange(rows, dtype=np.int32)
    # False: a kept prefix belongs to the update's account, not to the decision's.
    explorer, exploiter = steps.decisions(case.settings.policy, False, case.mesh)
    views = {"baseline": case.wide, "ours": case.narrow}
    actions = {}

    def decision_s(name: str, repeat: int) -> float:
        start_s = time.perf_counter()
        arguments = (case.params, case.key, *case.put((ids, views[name])))
        if explore:
            _, decided, _ = explorer(*arguments)
        else:
            decided = exploiter(*arguments)
        actions[name] = jax.device_get(decided)
        return time.perf_counter() - start_s

    seconds = _measured(decision_s, options.repeats)
    flop = flops.savings(case.settings.policy, case.tokens, "kept", rows)["rollout"]
    result = _result(case, seconds, flop, rows)
    apart = np.abs(actions["baseline"] - actions["ours"]).max()
    result["largest difference of an action entry"] = float(apart)
    return result


def _measured(measure: interleaved.Measure, repeats: int) -> dict[str, list[float]]:
    """Every measured time; the first turn (compilation) does not count."""
    for name in VARIANTS:
        measure(name, -1)
    return interleaved.values(VARIANTS, measure, repeats)


# ---- results -----------------------------------------------------------------------------------


def _result(
    case: Case, seconds: Mapping[str, Sequence[float]], flop: Mapping[str, float], rows: int
) -> dict[str, Any]:
    """Medians, what they come to as arithmetic per second, and both ratios.

    flop: per row, {baseline, ours, ratio}.
    """
    device = jax.devices()[0].device_kind
    result = {"device": device, "rows": rows, "proportions": _proportions(case)}
    for name in VARIANTS:
        result[name] = _speed(seconds[name], flop[name], rows, _peak(device))
    medians = {name: statistics.median(seconds[name]) for name in VARIANTS}
    result["times faster, measured"] = medians["baseline"] / medians["ours"]
    result["times less arithmetic, counted"] = flop["ratio"]
    return result


def _speed(
    seconds: Sequence[float], flop_per_row: float, rows: int, peak: float | None
) -> dict[str, float | None]:
    median_s = statistics.median(seconds)
    flop_per_s = rows * flop_per_row / median_s
    return {
        "median, ms": 1e3 * median_s,
        "slowest, ms": 1e3 * max(seconds),
        "model GFLOP per row": flop_per_row / 1e9,
        "model TFLOP/s": flop_per_s / 1e12,
        "share of peak": flop_per_s / peak if peak else None,
    }


def _peak(device: str) -> float | None:
    """FLOP/s, where the device is known."""
    for name, flop_per_s in PEAK.items():
        if name in device:
            return flop_per_s
    return None


def _proportions(case: Case) -> dict[str, float]:
    """How many denoise steps the straightforward prefix costs, here and at full size."""
    here = case.settings.policy.network
    full = variants.pi0_config("pi05" if here.pi05 else "pi0")
    return {"this model": _prefix_in_steps(here), "full size": _prefix_in_steps(full)}


def _prefix_in_steps(model: variants.Pi0Config) -> float:
    wide = flops.Tokens(ALL_CAMERAS, model.max_token_len)
    # True: with the last layer, read or not.
    prefix = flops.prefix(model, wide, True)
    return prefix / flops.denoise(model, wide.count(model))


def as_text(result: Mapping[str, Any]) -> str:
    """A table per recipe: a line per variant, a column per number."""
    parts = []
    for recipe, row in result.items():
        here, full = row["proportions"].values()
        parts.append(
            f"\n{recipe}, {row['rows']} rows on {row['device']}; "
            f"a prefix costs {here:.0f} denoise steps ({full:.0f} at full size)"
        )
        header = [name for name, value in row["ours"].items() if value is not None]
        lines = []
        for variant in VARIANTS:
            lines.append([variant, *(f"{row[variant][name]:.4g}" for name in header)])
        parts.append(columns.aligned(lines, ["", *header]))
        parts.append(
            f"ours is {row['times faster, measured']:.1f} times faster, "
            f"with {row['times less arithmetic, counted']:.1f} times less arithmetic by count"
        )
    return "\n".join([*parts, "", "medians of interleaved repeats"])
