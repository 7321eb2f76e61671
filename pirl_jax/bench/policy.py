"""Update, rollout and latency of the policy: ours against the straightforward computation, from the same observations.

The straightforward one has a third, blank camera, pads prompts to their limit and computes the prefix again for every row of every
update.  Both go through the program's own functions, so the baseline already skips what nothing reads of the VLM's last layer.
"""

import dataclasses
import functools
import math
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from pirl_jax.bench import env
from pirl_jax.core import mesh as meshes
from pirl_jax.core import rng, spec, types
from pirl_jax.learner import objective
from pirl_jax.models import variants
from pirl_jax.policy import flops, flow
from pirl_jax.run import command, config, steps

CAMERAS = 2
PROMPT = 32  # bucket that holds LIBERO's prompts
# About an eighth of the full widths, a quarter of its tokens and fewer layers: a prefix costs as many denoise steps as at full size.
SCALED = dict(
    paligemma=variants.GemmaConfig(256, 3, 2048, 8, 1, 32),
    expert=variants.GemmaConfig(128, 3, 400, 8, 1, 32),
    siglip=variants.SiglipConfig(144, 5, 538, 4, 14),
    image_size=(112, 112),
    vocab_size=512,
    dtype="float32",
)
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


def add_arguments(parser, recipes: str, batch: int) -> None:
    parser.add_argument(
        "--recipes",
        type=lambda text: text.split(","),
        default=recipes.split(","),
        help="files, separated by commas",
    )
    parser.add_argument(
        "--size",
        choices=("auto", *SIZES),
        default="auto",
        help="auto: full on an accelerator, else scaled",
    )
    parser.add_argument("--batch", type=int, default=batch, help="rows at a time")


@dataclasses.dataclass
class Case:
    """A recipe with everything the measurements share."""

    settings: config.Settings
    mesh: jax.sharding.Mesh
    params: dict
    tokens: flops.Tokens
    narrow: types.Observation  # host arrays
    wide: types.Observation

    @functools.cached_property
    def key(self):
        return rng.named(jax.random.key(0), "actions")

    def put(self, tree):
        return meshes.put_batch(tree, self.mesh)


def prepare(recipe: str, options) -> Case:
    """Fresh weights, random observations with and without what is masked."""
    settings = config.changed(
        config.settings(command.load_recipe(recipe)),
        {
            "model.frozen_dtype": "bfloat16",
            "algorithm.minibatch_size": options.batch,
            "algorithm.microbatch_size": options.batch,
            "rollout.prefix_cache": "host",
            "model.gradient_checkpointing": "none",
        },
    )
    size = (
        options.size
        if options.size != "auto"
        else "scaled"
        if jax.default_backend() == "cpu"
        else "full"
    )
    prompt, cfg = PROMPT, settings.policy
    if size == "scaled":
        model = cfg.model
        fewer = dict(
            max_token_len=model.max_token_len // 4, action_horizon=model.action_horizon // 4
        )
        cfg = dataclasses.replace(
            cfg,
            model=dataclasses.replace(model, **SCALED, **fewer),
            action_chunk=min(cfg.action_chunk, model.action_horizon // 4),
        )
        prompt = PROMPT // 4
        settings = config.changed(settings, {"model.frozen_dtype": "float32"})
    settings = dataclasses.replace(settings, policy=cfg)
    mesh = meshes.make_mesh(1, 1, jax.devices()[:1])
    params = _weights(flow.specs(cfg), mesh)
    return Case(
        settings,
        mesh,
        params,
        flops.Tokens(CAMERAS, prompt),
        *_observations(cfg.model, options.batch, prompt),
    )


def _weights(declared, mesh):
    """Any numbers of a usual size: XLA on CPU needs minutes to compile the random ones of a fresh model."""

    def build():
        return jax.tree.map(
            lambda x: (
                0.02 * jnp.sin(1.7 * jnp.arange(math.prod(x.shape), dtype=x.dtype)).reshape(x.shape)
            ),
            declared,
        )

    return jax.jit(build, out_shardings=spec.shardings(declared, mesh, meshes.RULES))()


def _observations(model, rows: int, prompt: int):
    random, size = np.random.default_rng(0), model.image_size
    images, tokens = (
        np.zeros((rows, 3, *size, 3), np.uint8),
        np.zeros((rows, model.max_token_len), np.int32),
    )
    images[:, :CAMERAS] = random.integers(0, 256, (rows, CAMERAS, *size, 3))
    tokens[:, :prompt] = random.integers(1, min(model.vocab_size, 256), (rows, prompt))
    state = random.normal(size=(rows, model.action_dim)).astype(np.float32)
    there = np.arange(3)[None].repeat(rows, 0) < CAMERAS
    wide = types.Observation(images, there, state, tokens, tokens > 0)
    narrow = types.Observation(
        images[:, :CAMERAS], there[:, :CAMERAS], state, tokens[:, :prompt], tokens[:, :prompt] > 0
    )
    return narrow, wide


def update(options) -> dict:
    """Seconds of one optimiser step of --batch rows."""
    return {name: _update(prepare(name, options), options) for name in options.recipes}


def _update(case: Case, options):
    settings, rows = case.settings, options.batch
    explore, _ = steps.decisions(settings.policy, True)
    chain, _, kept = jax.device_get(
        explore(case.params, case.key, *case.put((np.arange(rows, dtype=np.int32), case.narrow)))
    )
    advantage = np.random.default_rng(1).normal(size=rows).astype(np.float32)
    contexts, seen = {"baseline": case.wide, "ours": kept}, {}
    recompute = config.changed(settings, {"rollout.prefix_cache": "recompute"}).raw
    each = {"baseline": dataclasses.replace(settings, raw=recompute), "ours": settings}
    step = {name: steps.updater(one, case.mesh) for name, one in each.items()}
    learner = {
        name: steps.train_state(settings, jax.tree.map(jnp.copy, case.params), case.mesh)
        for name in contexts
    }

    def once(name, _):
        batch = objective.Minibatch(
            contexts[name], chain, advantage, advantage, np.ones(rows, np.float32)
        )
        start_s = time.perf_counter()
        learner[name], metrics = step[name].minibatch(learner[name], [batch])
        seen.setdefault(name, jax.device_get(metrics))
        return time.perf_counter() - start_s

    seconds = _timed(contexts, once, options.repeats)
    counted = flops.savings(settings.policy, case.tokens, "kept", rows)["update"]
    agreement = {
        name: {one: float(seen[one][name]) for one in seen} for name in ("loss", "grad_norm")
    }
    return _result(case, seconds, counted, rows) | {"the first step of both": agreement}


def rollout(options) -> dict:
    """Seconds of --batch decisions: prefix and all denoise steps, from images in host memory to actions in host memory."""
    return {
        name: _decide(prepare(name, options), options, explore=True) for name in options.recipes
    }


def latency(options) -> dict:
    """Seconds of one decision without exploration."""
    return {
        name: _decide(prepare(name, options), options, explore=False) for name in options.recipes
    }


def _decide(case: Case, options, explore: bool):
    decide = steps.decisions(case.settings.policy, False)[0 if explore else 1]
    views, ids = (
        {"baseline": case.wide, "ours": case.narrow},
        np.arange(options.batch, dtype=np.int32),
    )
    seen = {}

    def once(name, _):
        start_s = time.perf_counter()
        out = decide(case.params, case.key, *case.put((ids, views[name])))
        seen[name] = jax.device_get(out[1] if explore else out)
        return time.perf_counter() - start_s

    seconds = _timed(views, once, options.repeats)
    counted = flops.savings(case.settings.policy, case.tokens, "kept", options.batch)["rollout"]
    apart = float(np.abs(seen["baseline"] - seen["ours"]).max())
    return _result(case, seconds, counted, options.batch) | {
        "largest difference of an action entry": apart
    }


def _timed(names, once, repeats):
    """Every measured time; the names take turns, and the first turn (compilation) does not count."""
    for name in names:
        once(name, -1)
    return env.turns(names, once, repeats)


def _result(case: Case, times: dict, counted: dict, rows: int) -> dict:
    """Medians, what they come to as arithmetic per second, and both ratios."""
    device = jax.devices()[0]
    peak = next((value for name, value in PEAK.items() if name in device.device_kind), None)
    result = {"device": device.device_kind, "rows": rows, "proportions": _proportions(case)}
    for name, seconds in times.items():
        median = statistics.median(seconds)
        rate = rows * counted[name] / median
        result[name] = {
            "median, ms": 1e3 * median,
            "slowest, ms": 1e3 * max(seconds),
            "model GFLOP per row": counted[name] / 1e9,
            "model TFLOP/s": rate / 1e12,
            "share of peak": rate / peak if peak else None,
        }
    medians = [statistics.median(seconds) for seconds in (times["baseline"], times["ours"])]
    return result | {
        "times faster, measured": medians[0] / medians[1],
        "times less arithmetic, counted": counted["ratio"],
    }


def _proportions(case: Case):
    """How many denoise steps the straightforward prefix costs, here and at full size."""
    full = variants.pi0_config("pi05" if case.settings.policy.model.pi05 else "pi0")
    out = {}
    for name, model in (("this model", case.settings.policy.model), ("full size", full)):
        wide = flops.Tokens(3, model.max_token_len)
        out[name] = flops.prefix(model, wide, True) / flops.denoise(model, wide.count(model))
    return out


def as_text(result: dict) -> str:
    lines = []
    for recipe, row in result.items():
        here, full = row["proportions"].values()
        lines += [
            "",
            f"{recipe}, {row['rows']} rows on {row['device']}; a prefix costs {here:.0f} denoise steps ({full:.0f} at full size)",
        ]
        for name in ("baseline", "ours"):
            cells = "   ".join(
                f"{key} {value:.4g}" for key, value in row[name].items() if value is not None
            )
            lines.append(f"  {name:<10}{cells}")
        measured, counted = row["times faster, measured"], row["times less arithmetic, counted"]
        lines.append(
            f"  ours is {measured:.1f} times faster, with {counted:.1f} times less arithmetic by count"
        )
    return "\n".join([*lines, "", "medians of interleaved repeats"])


SIZES = ("full", "scaled")
