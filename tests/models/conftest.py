"""The reference model cases: configuration, parameters, inputs, expected arrays; all our intermediates under the same names."""

import functools
import json
import types as python_types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pirl_jax.core import spec
from pirl_jax.core import types
from pirl_jax.models import gemma
from pirl_jax.models import pi0
from pirl_jax.models import siglip
from pirl_jax.models import variants

CASES = ("pi0_dummy", "pi05_dummy", "pi0_diffw", "pi05_diffw", "pi0_p14_224", "pi05_p14_224", "pi0_lora", "pi05_lora",
         "pi05_lora_expert_only", "pi0_gqa2", "pi0_mha", "pi0_bf16", "pi05_bf16")
CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")


@pytest.fixture(scope="session", params=CASES)
def case(request, vectors):
    return load_case(vectors, request.param)


@functools.lru_cache(maxsize=2)
def load_case(vectors, name):
    path = vectors / "openpi" / f"model_{name}.npz"
    if not path.is_file():
        pytest.skip(f"reference case {path.name} not found")
    with np.load(path) as file:
        arrays = dict(file)
    settings = json.loads(arrays.pop("config_json").item())
    cfg = config(settings)
    flat = {key.removeprefix("params/"): jnp.asarray(arrays.pop(key)) for key in list(arrays) if key.startswith("params/")}
    result = python_types.SimpleNamespace(
        name=name, settings=settings, cfg=cfg, params=spec.unflatten(flat), arrays=arrays, obs=observation(arrays))
    result.run = functools.cache(lambda bf16_params=False: run(result, bf16_params))
    return result


def config(settings) -> variants.Pi0Config:
    def expert(values):
        adapters = values["lora"]
        fields = {key: value for key, value in values.items() if key != "lora"}
        if not adapters:
            return variants.GemmaConfig(**fields)
        attn, ffn = adapters["attn"], adapters["ffn"]
        lora = variants.LoraConfig(attn["rank"], attn["alpha"], ffn["rank"], attn["rslora"])
        return variants.GemmaConfig(**fields, lora=lora)

    vit = {key: settings["siglip"][key] for key in ("width", "depth", "mlp_dim", "num_heads", "patch")}
    same = {key: settings[key] for key in ("pi05", "vocab_size", "action_dim", "action_horizon", "max_token_len", "dtype")}
    return variants.Pi0Config(
        paligemma=expert(settings["paligemma"]), expert=expert(settings["action_expert"]),
        siglip=variants.SiglipConfig(**vit), image_size=tuple(settings["image_resolution"]), **same)


def observation(arrays) -> types.Observation:
    folder = "images" if f"in/images/{CAMERAS[0]}" in arrays else "images_u8"
    return types.Observation(
        images=jnp.stack([arrays[f"in/{folder}/{camera}"] for camera in CAMERAS], axis=1),
        image_mask=jnp.stack([arrays[f"in/image_masks/{camera}"] for camera in CAMERAS], axis=1),
        state=jnp.asarray(arrays["in/state"]),
        tokens=jnp.asarray(arrays["in/tokenized_prompt"]),
        token_mask=jnp.asarray(arrays["in/tokenized_prompt_mask"]))


def run(case, bf16_params) -> dict:
    """{'siglip/...': array, ...}: everything the reference recorded below out/, in one compiled call."""
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), case.params) if bf16_params else case.params
    inputs = [jnp.asarray(case.arrays[f"in/{name}"]) for name in ("actions", "noise", "time")]
    out = _everything(params, case.obs, *inputs, cfg=case.cfg)
    return {key: np.asarray(value, np.float32 if value.dtype == jnp.bfloat16 else None) for key, value in out.items()}


@functools.partial(jax.jit, static_argnames="cfg")
def _everything(params, obs, actions, noise, time, cfg):
    out = {f"siglip/{CAMERAS[0]}/{name}": x for name, x in siglip_stages(params, obs, cfg).items()}
    tokens, mask = pi0.embed_prefix(params, obs, cfg)
    for i, camera in enumerate(CAMERAS):
        out[f"siglip/{camera}/tokens"] = tokens[:, i * cfg.image_tokens: (i + 1) * cfg.image_tokens]
    t = time[:, None, None]
    x_t = t * noise + (1 - t) * actions
    suffix, starts, cond = pi0.embed_suffix(params, obs.state, x_t, time, cfg)
    prefix = pi0.prefill(params, obs, cfg, hidden=True)
    suffix_out, k, v = pi0.decode(params, prefix, x_t, time, cfg)
    v_t, _ = pi0.velocity(params, prefix, x_t, time, cfg)
    loss = pi0.flow_matching_loss(params, obs, actions, noise, time, cfg)
    decode_mask, decode_positions = pi0.suffix_attention(mask, starts)
    suffix_valid = jnp.ones(suffix.shape[:2], bool)
    prefix_starts = jnp.zeros(mask.shape[1], bool)
    all_valid = jnp.concatenate([mask, suffix_valid], axis=1)
    out |= {
        "prefix/tokens": tokens, "prefix/mask": mask, "prefix/ar_mask": prefix_starts,
        "suffix/tokens": suffix, "suffix/mask": suffix_valid, "suffix/ar_mask": starts,
        "x_t": x_t, "u_t": noise - actions,
        "prefill/attn_mask": pi0.attention_mask(mask, prefix_starts), "prefill/positions": pi0.positions(mask),
        "prefill/prefix_out": prefix.hidden, "prefill/kv_k": prefix.k, "prefill/kv_v": prefix.v,
        "decode/attn_mask": decode_mask, "decode/positions": decode_positions,
        "decode/suffix_out": suffix_out, "decode/v_t": v_t,
        "train/attn_mask": pi0.attention_mask(all_valid, jnp.concatenate([prefix_starts, starts])),
        "train/positions": pi0.positions(all_valid),
        "train/prefix_out": prefix.hidden, "train/suffix_out": suffix_out, "train/v_t": v_t, "train/loss": loss,
        "train/kv_k": jnp.concatenate([prefix.k, k], axis=2), "train/kv_v": jnp.concatenate([prefix.v, v], axis=2),
        "compute_loss": loss, "mean_loss": loss.mean(),
    }
    return out | ({} if cond is None else {"suffix/adarms_cond": cond})


def siglip_stages(params, obs, cfg) -> dict:
    """First camera, layer by layer."""
    img = params["PaliGemma"]["img"]
    stem = siglip.patches(img, pi0.to_float(obs.images[:, 0]))
    x = siglip.add_position(img, stem)
    stages = {"stem": stem, "with_posemb": x}
    x = x.astype(cfg.dtype)
    for i in range(cfg.siglip.depth):
        x = siglip.block(jax.tree.map(lambda p: p[i], img["Transformer"]["encoderblock"]), x)
        stages[f"block{i:02d}_out"] = x
    return stages | {"encoded": siglip.layer_norm(img["Transformer"]["encoder_norm"], x)}


def check(case, prefix: str, tolerance: float) -> int:
    """Compare every recorded array whose name starts with out/`prefix`; error relative to max(1, max abs).  Returns how many."""
    names = [key for key in case.arrays if key.split("/", 1)[0] in ("out", "out_bf16params")
             and key.split("/", 1)[1].startswith(prefix)]
    for name in names:
        folder, key = name.split("/", 1)
        close(name, case.run(folder == "out_bf16params")[key], case.arrays[name], case, tolerance)
    return len(names)


def close(name, ours, expected, case, tolerance):
    assert ours.shape == expected.shape, name
    if expected.dtype.kind in "bi":
        np.testing.assert_array_equal(ours, expected, err_msg=name)
        return
    if name.split("/", 1)[1] in ("train/prefix_out", "train/kv_k", "train/kv_v"):
        # Padded queries attend uniformly over all keys of a pass, here the prefix, there prefix and suffix: meaningless rows.
        valid = case.run()["train/positions"], np.asarray(case.run()["prefix/mask"])
        rows = np.concatenate([valid[1], np.ones((len(valid[1]), valid[0].shape[1] - valid[1].shape[1]), bool)], axis=1)
        if name.endswith("prefix_out"):
            ours, expected = ours[valid[1]], expected[valid[1]]
        else:
            ours, expected = ours[:, rows], expected[:, rows]
    if case.cfg.dtype == "bfloat16":
        tolerance = max(tolerance, 3e-2)
    scale = np.abs(expected).max() if case.cfg.dtype == "bfloat16" else max(1.0, np.abs(expected).max())
    error = np.abs(ours - expected).max() / scale
    assert error <= tolerance, f"{name}: error {error:.2e} > {tolerance:.0e}"
