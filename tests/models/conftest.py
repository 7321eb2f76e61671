"""The reference model cases: configuration, parameters, inputs, expected arrays.

Our results under the same names.
"""

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_files

from pirl_jax.core import spec, types
from pirl_jax.models import pi0, siglip, variants

# Compile five times faster, run a little slower; the cases are tiny.
FAST_COMPILE = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}

CASES = (
    "pi0_dummy",
    "pi05_dummy",
    "pi0_diffw",
    "pi05_diffw",
    "pi0_p14_224",
    "pi05_p14_224",
    "pi0_lora",
    "pi05_lora",
    "pi05_lora_expert_only",
    "pi0_gqa2",
    "pi0_mha",
    "pi0_bf16",
    "pi05_bf16",
)
CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")


def existing(names):
    """Those of the reference cases that are there."""
    return reference_files.existing("openpi/model_{}.npz", names)


@pytest.fixture(scope="session", params=existing(CASES))
def case(request, vectors):
    """One reference case after the other; results are kept, so that test files share them."""
    return load_case(vectors, request.param)


@pytest.fixture(scope="session")
def named_case(vectors):
    """Loader of a case by name."""
    return functools.partial(load_case, vectors)


@functools.lru_cache(maxsize=3)
def load_case(vectors, name):
    with np.load(vectors / "openpi" / f"model_{name}.npz") as file:
        arrays = dict(file)
    settings = json.loads(arrays.pop("config_json").item())
    names = [key for key in arrays if key.startswith("params/")]
    flat = {name.removeprefix("params/"): jnp.asarray(arrays.pop(name)) for name in names}
    return Case(settings, config(settings), spec.unflatten(flat), arrays, observation(arrays))


@dataclasses.dataclass(eq=False)
class Case:
    settings: dict
    cfg: variants.Pi0Config
    params: dict
    arrays: dict[str, np.ndarray]  # in/..., out/..., out_bf16params/..., grads/...
    obs: types.Observation
    results: dict[str, Any] = dataclasses.field(default_factory=dict)

    def inputs(self, *names):
        return [jnp.asarray(self.arrays[f"in/{name}"]) for name in names]

    def ours(self, name: str) -> np.ndarray:
        """Our value of a recorded array, by its full name."""
        folder, key = name.split("/", 1)
        if folder not in self.results:
            self.results[folder] = self._run(folder)
        return self.results[folder][key]

    def _run(self, folder):
        flow = self.inputs("actions", "noise", "time")
        if folder == "grads":
            grads = _gradients(self.params, self.obs, *flow, cfg=self.cfg)
            return jax.tree.map(np.asarray, spec.flatten(grads))
        params = self.params
        if folder == "out_bf16params":
            params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
        out = _everything(params, self.obs, *flow, cfg=self.cfg)
        loss_BH = _loss(params, self.obs, *flow, cfg=self.cfg)
        out |= {"compute_loss": loss_BH, "train/loss": loss_BH, "mean_loss": loss_BH.mean()}
        (noise,) = self.inputs("sample_noise")
        drawn = jax.random.normal(jax.random.key(self.settings["seed"]), noise.shape)
        for n in (1, 4, 10):
            out[f"sample/num_steps_{n}"] = _sample(params, noise, self.obs, n, cfg=self.cfg)
        out["sample/rng_noise"] = drawn
        out["sample/rng_num_steps_10"] = _sample(params, drawn, self.obs, 10, cfg=self.cfg)
        return {
            key: np.asarray(x, np.float32 if x.dtype == jnp.bfloat16 else None)
            for key, x in out.items()
        }

    def recorded(self, prefix: str) -> list[str]:
        """Full names of recorded results that start with `prefix` below out/ or out_bf16params/."""
        return [
            name
            for name in self.arrays
            if name.startswith("out") and name.split("/", 1)[1].startswith(prefix)
        ]

    def check(self, prefix: str, tolerance: float):
        """Compare every recorded array of this prefix.

        Relative to max(1, max abs), bfloat16 to 3e-2 of the max.
        """
        names = self.recorded(prefix)
        assert names, prefix
        for name in names:
            ours, expected = self.ours(name), self.arrays[name]
            assert ours.shape == expected.shape, name
            if expected.dtype.kind in "bi":
                np.testing.assert_array_equal(ours, expected, err_msg=name)
                continue
            ours, expected = self._meaningful(name, ours), self._meaningful(name, expected)
            bf16 = self.cfg.dtype == "bfloat16" and prefix not in ("x_t", "u_t")
            limit = (
                max(3e-2 * np.abs(expected).max(), 1e-6)
                if bf16
                else tolerance * max(1.0, np.abs(expected).max())
            )
            assert np.abs(ours - expected).max() <= limit, (
                f"{name}: {np.abs(ours - expected).max():.2e} > {limit:.2e}"
            )

    def _meaningful(self, name, x):
        """Padded queries attend uniformly to all keys of a pass.

        The prefix here, also the suffix in the reference.
        """
        if "train/prefix_out" in name:
            return x[self.arrays["out/prefix/mask"]]
        if "train/kv_" in name:
            mask = self.arrays["out/prefix/mask"]
            suffix = np.ones((len(mask), x.shape[2] - mask.shape[1]), bool)
            return x[:, np.concatenate([mask, suffix], axis=1)]
        return x


def config(settings) -> variants.Pi0Config:
    def expert(values):
        adapters = values["lora"]
        fields = {key: value for key, value in values.items() if key != "lora"}
        if not adapters:
            return variants.GemmaConfig(**fields)
        attn, ffn = adapters["attn"], adapters["ffn"]
        lora = variants.LoraConfig(attn["rank"], attn["alpha"], ffn["rank"], attn["rslora"])
        return variants.GemmaConfig(**fields, lora=lora)

    vit = {
        key: settings["siglip"][key] for key in ("width", "depth", "mlp_dim", "num_heads", "patch")
    }
    names = ("pi05", "vocab_size", "action_dim", "action_horizon", "max_token_len", "dtype")
    same = {name: settings[name] for name in names}
    return variants.Pi0Config(
        paligemma=expert(settings["paligemma"]),
        expert=expert(settings["action_expert"]),
        siglip=variants.SiglipConfig(**vit),
        image_size=tuple(settings["image_resolution"]),
        **same,
    )


def observation(arrays) -> types.Observation:
    folder = "images" if f"in/images/{CAMERAS[0]}" in arrays else "images_u8"
    return types.Observation(
        images=jnp.stack([arrays[f"in/{folder}/{camera}"] for camera in CAMERAS], axis=1),
        image_mask=jnp.stack([arrays[f"in/image_masks/{camera}"] for camera in CAMERAS], axis=1),
        state=jnp.asarray(arrays["in/state"]),
        tokens=jnp.asarray(arrays["in/tokenized_prompt"]),
        token_mask=jnp.asarray(arrays["in/tokenized_prompt_mask"]),
    )


def _compiled(function):
    return jax.jit(function, static_argnames="cfg", compiler_options=FAST_COMPILE)


@_compiled
def _gradients(params, obs, actions, noise, time, cfg):
    return jax.grad(
        lambda params: pi0.flow_matching_loss(params, obs, actions, noise, time, cfg).mean()
    )(params)


@_compiled
def _loss(params, obs, actions, noise, time, cfg):
    return pi0.flow_matching_loss(params, obs, actions, noise, time, cfg)


@_compiled
def _sample(params, noise, obs, num_steps, cfg):
    return pi0.sample(params, noise, obs, cfg, num_steps)


@_compiled
def _everything(params, obs, actions, noise, time, cfg):
    out = {f"siglip/{CAMERAS[0]}/{name}": x for name, x in siglip_stages(params, obs, cfg).items()}
    tokens, mask = pi0.embed_prefix(params, obs, cfg)
    for i, camera in enumerate(CAMERAS):
        out[f"siglip/{camera}/tokens"] = tokens[
            :, i * cfg.image_tokens : (i + 1) * cfg.image_tokens
        ]
    t = time[:, None, None]
    x_t = t * noise + (1 - t) * actions
    suffix, starts = pi0.embed_suffix(params, obs.state, x_t, time, cfg)
    prefix = pi0.prefill(params, obs, cfg, hidden=True)
    suffix_out, k, v = pi0.decode(params, prefix, x_t, time, cfg)
    v_t, _ = pi0.velocity(params, prefix, x_t, time, cfg)
    decode_sight, decode_positions = pi0.suffix_attention(mask, starts)
    suffix_valid = jnp.ones(suffix.shape[:2], bool)
    prefix_starts = jnp.zeros(mask.shape[1], bool)
    all_valid = jnp.concatenate([mask, suffix_valid], axis=1)
    out |= {
        "prefix/tokens": tokens,
        "prefix/mask": mask,
        "prefix/ar_mask": prefix_starts,
        "suffix/tokens": suffix,
        "suffix/mask": suffix_valid,
        "suffix/ar_mask": starts,
        "x_t": x_t,
        "u_t": noise - actions,
        "prefill/attn_mask": pi0.sight(mask, prefix_starts).mask_BTS,
        "prefill/positions": pi0.positions(mask),
        "prefill/prefix_out": prefix.hidden,
        "prefill/kv_k": prefix.k,
        "prefill/kv_v": prefix.v,
        "decode/attn_mask": decode_sight.mask_BTS,
        "decode/positions": decode_positions,
        "decode/suffix_out": suffix_out,
        "decode/v_t": v_t,
        "train/attn_mask": pi0.sight(all_valid, jnp.concatenate([prefix_starts, starts])).mask_BTS,
        "train/positions": pi0.positions(all_valid),
        "train/prefix_out": prefix.hidden,
        "train/suffix_out": suffix_out,
        "train/v_t": v_t,
        "train/kv_k": jnp.concatenate([prefix.k, k], axis=2),
        "train/kv_v": jnp.concatenate([prefix.v, v], axis=2),
    }
    return out | ({"suffix/adarms_cond": pi0.condition(params, time, cfg)} if cfg.pi05 else {})


def siglip_stages(params, obs, cfg) -> dict:
    """First camera, layer by layer."""
    img = params["PaliGemma"]["img"]
    stem = siglip.patches(img, pi0.to_float(obs.images[:, 0]))
    x = siglip.add_position(img, stem)
    stages = {"stem": stem, "with_posemb": x}
    x = x.astype(cfg.dtype)
    blocks = img["Transformer"]["encoderblock"]
    for i in range(cfg.siglip.depth):
        block = jax.tree.map(lambda p, i=i: p[i], blocks)
        x = siglip.block(block, x)
        stages[f"block{i:02d}_out"] = x
    return stages | {"encoded": siglip.layer_norm(img["Transformer"]["encoder_norm"], x)}
