"""Three real training steps of openpi: parameters, average, loss and norms."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_files

from pirl_jax.core import mesh as meshes
from pirl_jax.core import page, spec, types
from pirl_jax.learner import sft
from pirl_jax.learner import state as states
from pirl_jax.models import variants

CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")


def model_config(pi05, lora):
    adapters = variants.LoraConfig(2, 2.0, 2) if lora else None
    return variants.Pi0Config(
        pi05=pi05,
        paligemma=variants.GemmaConfig(32, 2, 48, 2, 1, 16, adapters),
        expert=variants.GemmaConfig(16, 2, 32, 2, 1, 16, adapters),
        siglip=variants.SiglipConfig(16, 1, 32, 2, 8),
        vocab_size=128,
        action_dim=32,
        action_horizon=10,
        max_token_len=12,
        image_size=(16, 16),
        dtype="float32",
    )


CASES = {"pi0_tiny": (False, False), "pi05_tiny": (True, False), "pi0_lora_tiny": (False, True)}
RECORDED = reference_files.existing("openpi/train_{}.npz", CASES)


def sft_config(settings, case):
    rate, adam = settings["lr"], settings["optimizer"]
    optim = page.Optim(
        lr=rate["peak_lr"],
        b1=adam["b1"],
        b2=adam["b2"],
        eps=adam["eps"],
        weight_decay=adam["weight_decay"],
        clip_grad=adam["clip"],
        schedule="openpi_cosine",
        warmup_steps=rate["warmup_steps"],
        decay_steps=rate["decay_steps"],
        min_lr_ratio=rate["decay_lr"] / rate["peak_lr"],
    )
    section = page.Sft(ema=settings["ema_decay"] or 0.0)
    return sft.Stage(model_config(*CASES[case]), section, optim)


def group(z, prefix):
    return {k[len(prefix) :]: z[k] for k in z.files if k.startswith(prefix)}


def batch(z, step):
    x = group(z, f"step{step}/in/")
    obs = types.Observation(
        images=np.stack([x[f"images/{c}"] for c in CAMERAS], axis=1),
        image_mask=np.stack([x[f"image_masks/{c}"] for c in CAMERAS], axis=1),
        state=x["state"],
        tokens=x["tokenized_prompt"],
        token_mask=x["tokenized_prompt_mask"],
    )
    return obs, x["actions"]


@functools.cache
def load(folder, case):
    z = np.load(folder / "openpi" / f"train_{case}.npz")
    settings = json.loads(str(z["config_json"]))
    return z, settings, sft_config(settings, case)


@pytest.mark.parametrize("case", RECORDED)
def test_draws_are_openpis(vectors, case):
    z, settings, cfg = load(vectors, case)
    key, _ = jax.random.split(jax.random.key(settings["seed"]))
    for step in range(3):
        obs, actions = batch(z, step)
        _, noise, time = sft._draw(jax.random.fold_in(key, step), obs, actions, cfg)
        np.testing.assert_allclose(noise, z[f"step{step}/noise"], atol=1e-6)
        np.testing.assert_allclose(time, z[f"step{step}/time"], atol=1e-6)


@pytest.mark.parametrize("case", RECORDED)
def test_three_steps(vectors, fast_compile, case):
    z, settings, cfg = load(vectors, case)
    mesh = meshes.make_mesh(1, 1, jax.devices()[:1])
    params = spec.unflatten(group(z, "params0/"))
    state = sft.create_state(params, cfg, mesh, frozen_dtype=lambda path: jnp.bfloat16)
    assert {p: str(x.dtype) for p, x in spec.flatten(state.params).items()} == json.loads(
        str(z["param_dtypes_json"])
    )
    _, frozen = states.partition(state.params, sft._trainable(cfg))
    assert sorted(spec.flatten(frozen)) == settings["frozen"]
    step_fn = sft.make_sft_step(cfg, mesh)
    key, _ = jax.random.split(jax.random.key(settings["seed"]))
    for step in range(3):
        with jax.transfer_guard("disallow"):
            state, metrics = step_fn(state, *meshes.put_batch(batch(z, step), mesh), key)
        # openpi adds up the squares of bfloat16 leaves in bfloat16, we in float32: 5e-5 of
        # param_norm with adapters
        for name, rtol in (("loss", 1e-5), ("grad_norm", 1e-4), ("param_norm", 1e-4)):
            np.testing.assert_allclose(
                metrics[name], z[f"step{step}/info/{name}"], rtol=rtol, err_msg=f"{step} {name}"
            )
        if step != 1:  # not recorded
            check(state.params, group(z, f"params{step + 1}/"), cfg.optim.lr)
    if settings["ema_decay"] is None:
        assert state.ema is None
    else:
        check(state.ema, group(z, "ema3/"), cfg.optim.lr)


def check(params, want, lr):
    """Compared to the size lr of a step.

    Adam divides a gradient by its own size, so the direction of a step is noise where the true
    gradient is 0: for single entries, and for all of the key bias of an attention (softmax drops
    it).
    """
    flat = spec.flatten(params)
    assert flat.keys() == want.keys()
    for path, x in flat.items():
        error = np.abs(np.float32(x) - want[path]) / lr
        mean_limit = 1.0 if path.endswith("key/bias") else 1e-3
        assert error.max() < 1.0 and error.mean() < mean_limit, (path, error.max(), error.mean())


def test_value_head_stays_and_augmentation_moves_the_images(vectors):
    z, _, cfg = load(vectors, "pi0_tiny")
    mesh = meshes.make_mesh(2, 1, jax.devices()[:2])
    params = spec.unflatten(group(z, "params0/")) | {
        "value_head": {"out": {"bias": np.ones(1, np.float32)}}
    }
    state = sft.create_state(params, cfg, mesh)
    obs, actions = batch(z, 0)
    obs = obs.replace(images=obs.images[:, :2], image_mask=obs.image_mask[:, :2])
    augmented = dataclasses.replace(cfg, page=dataclasses.replace(cfg.page, augment=True))
    key = jax.random.key(0)
    plain, noise, _ = sft._draw(key, obs, actions, cfg)
    moved, same_noise, _ = sft._draw(key, obs, actions, augmented)
    np.testing.assert_array_equal(noise, same_noise)
    assert (moved.images != plain.images).any() and moved.images.shape == plain.images.shape
    assert (
        "value_head" in state.params
        and "value_head" not in states.partition(state.params, sft._trainable(cfg))[0]
    )


# ---- guards that need no reference numbers ------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch):
    """In the place of the loss: a number that tells the flow noise and time that were drawn."""

    def loss(params, obs, actions_BHA, noise_BHA, time_B, cfg):
        return noise_BHA.mean((1, 2)) + 10 * time_B + 0 * params["a"].sum()

    monkeypatch.setattr(sft.pi0, "flow_matching_loss", loss)
    obs = types.Observation(
        images=np.zeros((2, 2, 16, 16, 3), np.uint8),
        image_mask=np.ones((2, 2), bool),
        state=np.zeros((2, 32), np.float32),
        tokens=np.zeros((2, 4), np.int32),
        token_mask=np.ones((2, 4), bool),
    )
    return {"a": np.ones(3, np.float32)}, (obs, np.zeros((2, 10, 32), np.float32))


def guarded(**changes):
    optim = page.Optim(lr=0.1, clip_grad=1.0)
    return sft.Stage(model_config(False, False), page.Sft(**changes), optim)


def test_the_sft_term_draws_by_step_and_seed(drawn):
    params, demonstrations = drawn
    loss = {seed: sft.make_loss(guarded(), seed) for seed in (0, 1)}
    values = [float(loss[seed](params, demonstrations, step)) for seed in (0, 1) for step in (0, 1)]
    assert len(set(values)) == 4
    assert values[0] == float(loss[0](params, demonstrations, 0))


def test_every_sft_step_draws_by_its_number_and_the_key(drawn):
    params, (obs, actions) = drawn
    mesh = meshes.make_mesh(1, 1, jax.devices()[:1])
    batch = meshes.put_batch((obs, actions), mesh)
    step = sft.make_sft_step(guarded(), mesh)
    losses = []
    for key in (0, 1):
        state = sft.create_state(params, guarded(), mesh)
        for _ in range(2):
            state, metrics = step(state, *batch, jax.random.key(key))
            losses.append(float(metrics["loss"]))
    assert len(set(losses)) == 4


def test_the_average_of_sft_has_its_decay(drawn, monkeypatch):
    """The gradient is 1 everywhere, and the first step of Adam is the rate."""
    params, (obs, actions) = drawn
    loss = lambda params, *rest: params["a"].sum() + jnp.zeros(2)  # noqa: E731  a stand-in
    monkeypatch.setattr(sft.pi0, "flow_matching_loss", loss)
    cfg = guarded(ema=0.9)
    mesh = meshes.make_mesh(1, 1, jax.devices()[:1])
    state = sft.create_state(params, cfg, mesh)
    batch = meshes.put_batch((obs, actions), mesh)
    state, _ = sft.make_sft_step(cfg, mesh)(state, *batch, jax.random.key(0))
    moved = np.asarray(state.params["a"]) - 1.0
    assert (moved < 0).all()
    np.testing.assert_allclose(np.asarray(state.ema["a"]) - 1.0, 0.1 * moved, rtol=1e-4)
