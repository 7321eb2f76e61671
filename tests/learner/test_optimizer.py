import dataclasses
import json

import jax
import numpy as np
import pytest
import reference_files

from pirl_jax.core import page, spec
from pirl_jax.learner import optimizer
from pirl_jax.learner import state as states
from pirl_jax.models import pi0, variants


def group(z, prefix):
    """Arrays under a prefix as a nested dict; torch's dotted names become paths."""
    return spec.unflatten(
        {k[len(prefix) :].replace(".", "/"): z[k] for k in z.files if k.startswith(prefix)}
    )


def config(meta):
    rate = meta.get("min_lr_rate", meta.get("min_lr", 0.0) / meta["lr"])
    total = meta.get("total_training_steps", 0)
    warmup = meta.get("lr_warmup_steps", int(meta.get("lr_warmup_steps_ratio", 0) * total))
    return page.Optim(
        lr=meta["lr"],
        value_lr=meta["value_lr"],
        b1=meta["adam_beta1"],
        b2=meta["adam_beta2"],
        eps=meta["adam_eps"],
        weight_decay=meta["weight_decay"],
        clip_grad=meta["clip_grad"],
        schedule=meta.get("lr_scheduler", "constant"),
        warmup_steps=warmup,
        decay_steps=total,
        min_lr_ratio=rate,
    )


# critic_warmup, after which the reference primes a new optimiser with a stale gradient (README,
# Q27): test_reference_runs.py.
STEPS = [
    "default",
    "biglr",
    "noclip",
    "cosine",
    "cosine_warm",
    "const_warm",
    "openpi_cosine",
    "nonfinite",
]


@pytest.mark.parametrize("case", reference_files.having("rlinf/g_optim.npz", STEPS))
def test_reference_steps(vectors, case):
    z = np.load(vectors / "rlinf" / "g_optim.npz")
    meta = json.loads(str(z[f"{case}/meta"]))
    cfg = config(meta)
    apply = jax.jit(lambda g, s, p, i: optimizer.apply(cfg, g, s, p, i))
    params = group(z, f"{case}/in/init.")
    opt_state = optimizer.init(cfg, params)
    iteration = 0
    for step in range(meta["n_steps"]):
        params, opt_state, metrics = apply(
            group(z, f"{case}/in/grad{step}."), opt_state, params, iteration
        )
        iteration += step in meta["lr_scheduler_step_after"]
        np.testing.assert_allclose(
            metrics["grad_norm"], z[f"{case}/out/grad_norm{step}"], rtol=1e-5
        )
        rates = [metrics["lr"], metrics["value_lr"]]
        np.testing.assert_allclose(rates, z[f"{case}/out/lr{step}"], rtol=1e-5, atol=1e-9)
        want = spec.flatten(group(z, f"{case}/out/param{step}."))
        for path, x in spec.flatten(params).items():
            np.testing.assert_allclose(
                x, want[path], rtol=1e-5, atol=1e-6, err_msg=f"step {step} {path}"
            )


@pytest.mark.parametrize(
    "name",
    [
        "cosine_libero10",
        "cosine_warm",
        "cosine_warm_ratio",
        "constant",
        "constant_warm",
        "openpi_cosine",
    ],
)
def test_reference_schedules(vectors, name):
    """The reference's cosine rises again after its end (the wave goes on); ours stays at its
    minimum."""
    z = np.load(vectors / "rlinf" / "g_optim.npz")
    cfg = config(json.loads(str(z[f"lr_{name}/meta"])))
    want = z[f"lr_{name}/out/lr"]
    rates = optimizer.learning_rates(cfg, np.arange(len(want)))
    got = np.stack([rates["policy"], rates["value"]], axis=1)
    until = cfg.decay_steps + 1 if cfg.schedule == "cosine" else len(want)
    np.testing.assert_allclose(got[:until], want[:until], rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(
        got[until:], np.broadcast_to(got[until - 1], got[until:].shape), rtol=1e-6
    )


OPENPI_LR = {
    "cosine_default(pi0_libero)": (2.5e-5, 1000, 30_000, 2.5e-6),
    "cosine_pi05_libero": (5e-5, 10_000, 1_000_000, 5e-5),
    "cosine_small": (1e-3, 5, 40, 1e-4),
}


@pytest.mark.parametrize("name", OPENPI_LR)
def test_openpi_schedules(vectors, name):
    z = np.load(vectors / "openpi" / "data_small.npz")
    peak, warmup, decay, last = OPENPI_LR[name]
    cfg = page.Optim(
        lr=peak,
        schedule="openpi_cosine",
        warmup_steps=warmup,
        decay_steps=decay,
        min_lr_ratio=last / peak,
    )
    got = optimizer.learning_rates(cfg, z["lr/steps"])["policy"]
    np.testing.assert_allclose(got, z[f"lr/{name}"], rtol=2e-6, atol=1e-7 * peak)


# Not recorded in the file, but unique: fitted to its parameters to 1e-13.
OPENPI_STEPS = {
    "adamw_default": dict(
        lr=0.01, weight_decay=1e-10, warmup_steps=3, decay_steps=20, min_lr_ratio=0.1
    ),
    "adamw_wd": dict(
        lr=0.03,
        weight_decay=0.1,
        warmup_steps=2,
        decay_steps=10,
        min_lr_ratio=1 / 30,
        b1=0.8,
        b2=0.99,
        eps=1e-6,
        clip_grad=0.5,
    ),
}


@pytest.mark.parametrize("name", OPENPI_STEPS)
def test_openpi_steps(vectors, name):
    z = np.load(vectors / "openpi" / "data_small.npz")
    cfg = page.Optim(schedule="openpi_cosine", **OPENPI_STEPS[name])
    average = params = group(z, f"optim/{name}/params0/")
    opt_state = optimizer.init(cfg, params)
    apply = jax.jit(lambda g, s, p, i: optimizer.apply(cfg, g, s, p, i))
    for step in range(6):
        params, opt_state, metrics = apply(
            group(z, f"optim/{name}/grad{step}/"), opt_state, params, step
        )
        np.testing.assert_allclose(
            metrics["grad_norm"], z[f"optim/{name}/grad_norm{step}"], rtol=1e-5
        )
        for path, want in spec.flatten(group(z, f"optim/{name}/params{step + 1}/")).items():
            np.testing.assert_allclose(spec.flatten(params)[path], want, rtol=1e-5, atol=1e-6)
        average = states.averaged(average, params, 0.9)
        for path, want in spec.flatten(group(z, f"optim/{name}/ema{step + 1}/")).items():
            np.testing.assert_allclose(spec.flatten(average)[path], want, rtol=1e-5, atol=1e-6)


def test_freeze_policy_trains_the_value_head_alone():
    cfg = page.Optim(lr=1.0, value_lr=1.0, weight_decay=0.1)
    params = {"a": np.ones(3, np.float32), "value_head": {"out": np.ones(2, np.float32)}}
    grads = jax.tree.map(lambda x: 100 * x, params)
    apply = jax.jit(lambda g, s, p: optimizer.apply(cfg, g, s, p, 0, freeze_policy=True))
    new, opt_state, metrics = apply(grads, optimizer.init(cfg, params), params)
    np.testing.assert_array_equal(new["a"], params["a"])
    assert (new["value_head"]["out"] != 1).all()
    np.testing.assert_allclose(metrics["grad_norm"], 100 * np.sqrt(2), rtol=1e-6)
    moments = [
        m
        for m in jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, dict))
        if isinstance(m, dict)
    ]
    assert len(moments) == 2 and all((m["a"] == 0).all() for m in moments)


def test_schedule_errors():
    with pytest.raises(
        ValueError, match="schedule='linear' does not exist; choose one of: constant, cosine"
    ):
        page.Optim(schedule="linear")


def test_train_expert_only_freezes_the_vlm():
    model = variants.pi0_config("tiny")
    params = pi0.specs(model) | {"value_head": {"out": {"bias": spec.Spec((1,), (None,))}}}
    learned, frozen = states.partition(params, optimizer.trainable(model, train_expert_only=True))
    learned, frozen = set(spec.flatten(learned)), set(spec.flatten(frozen))
    assert all(path.startswith("PaliGemma/") for path in frozen)
    assert {path for path in learned if path.startswith("PaliGemma/")} == {
        path for path in spec.flatten(params) if "/llm/" in path and "_1" in path
    }
    assert {"action_in_proj/kernel", "state_proj/bias", "value_head/out/bias"} <= learned
    assert {"PaliGemma/llm/embedder/input_embedding", "PaliGemma/img/head/kernel"} <= frozen
    everything, nothing = states.partition(
        params, optimizer.trainable(model, train_expert_only=False)
    )
    assert spec.flatten(everything).keys() == spec.flatten(params).keys() and nothing == {}


def test_adapters_train_in_a_frozen_vlm():
    """is_lora: the adapters of the VLM and the whole action side train, the VLM's own weights do
    not."""
    model = variants.with_lora(variants.pi0_config("tiny"), 2)
    learned, frozen = states.partition(
        pi0.specs(model), optimizer.trainable(model, train_expert_only=True)
    )
    learned, frozen = set(spec.flatten(learned)), set(spec.flatten(frozen))
    adapters = {path for path in learned | frozen if "lora_" in path}
    assert adapters and adapters <= learned and "action_in_proj/kernel" in learned
    assert {path for path in frozen if not path.startswith("PaliGemma/")} == set()
    assert {path for path in learned if path.startswith("PaliGemma/img")} == set()
    tower_too, _ = states.partition(
        pi0.specs(model), optimizer.trainable(model, train_expert_only=False)
    )
    assert learned < set(spec.flatten(tower_too))


def test_a_skipped_step_leaves_everything_as_it_was():
    cfg = page.Optim(lr=1.0)
    params = {"a": np.ones(3, np.float32)}
    opt_state = optimizer.init(cfg, params)
    new, new_state, metrics = jax.jit(lambda g, s, p: optimizer.apply(cfg, g, s, p, 0, skip=True))(
        params, opt_state, params
    )
    jax.tree.map(np.testing.assert_array_equal, (new, new_state), (params, opt_state))
    assert metrics["skipped"] == 1


# ---- twins that need no reference numbers -------------------------------------------------------


def adam_by_hand(cfg, params, grads_of_steps):
    """AdamW in float64: one clip over everything, two rates, decoupled decay."""
    params = {path: np.asarray(x, float) for path, x in spec.flatten(params).items()}
    mean = {path: 0.0 for path in params}
    square = {path: 0.0 for path in params}
    for step, grads in enumerate(grads_of_steps, 1):
        grads = spec.flatten(grads)
        norm = np.sqrt(sum((np.asarray(g, float) ** 2).sum() for g in grads.values()))
        for path in params:
            g = grads[path] * min(1.0, cfg.clip_grad / norm)
            mean[path] = cfg.b1 * mean[path] + (1 - cfg.b1) * g
            square[path] = cfg.b2 * square[path] + (1 - cfg.b2) * g**2
            size = np.sqrt(square[path] / (1 - cfg.b2**step)) + cfg.eps
            move = mean[path] / (1 - cfg.b1**step) / size + cfg.weight_decay * params[path]
            rate = cfg.value_lr if path.startswith("value_head/") else cfg.lr
            params[path] = params[path] - rate * move
    return params


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(b1=0.5),
        dict(b2=0.6),
        dict(eps=0.3),
        dict(weight_decay=0.4),
        dict(clip_grad=0.2),
        dict(lr=0.05),
        dict(value_lr=0.002),
    ],
    ids=str,
)
def test_three_steps_by_hand(changes):
    """Each field off its default, and each has an effect."""
    plain = page.Optim(lr=0.01, value_lr=0.03, clip_grad=100.0)
    cfg = dataclasses.replace(plain, **changes)
    draw = np.random.default_rng(0)
    params = {
        "a": draw.normal(size=5).astype(np.float32),
        "value_head": {"out": draw.normal(size=3).astype(np.float32)},
    }
    grads = [
        jax.tree.map(lambda x: draw.normal(size=x.shape).astype(np.float32), params)
        for _ in range(3)
    ]
    want = adam_by_hand(cfg, params, grads)
    untouched = adam_by_hand(plain, params, grads)
    assert not changes or any(np.abs(want[p] - untouched[p]).max() > 1e-4 for p in want)
    apply = jax.jit(lambda g, s, p: optimizer.apply(cfg, g, s, p, 0))
    opt_state = optimizer.init(cfg, params)
    for step in grads:
        params, opt_state, _ = apply(step, opt_state, params)
    for path, x in spec.flatten(params).items():
        np.testing.assert_allclose(x, want[path], rtol=1e-5, atol=1e-6, err_msg=path)


# Peak 1: from 0 or 1 / (warmup + 1) up to step 4, half a cosine down to 0.2 at step 12.
HALFWAY = 0.2 + 0.8 / 2
CURVES = {
    "constant": {0: 0.0, 1: 0.25, 4: 1.0, 12: 1.0, 50: 1.0},
    "cosine": {0: 0.0, 1: 0.25, 4: 1.0, 8: HALFWAY, 12: 0.2, 50: 0.2},
    "openpi_cosine": {0: 0.2, 1: 0.4, 4: 1.0, 8: HALFWAY, 12: 0.2, 50: 0.2},
}


@pytest.mark.parametrize("name", CURVES)
def test_schedules_by_hand(name):
    cfg = page.Optim(
        lr=2.0, value_lr=3.0, schedule=name, warmup_steps=4, decay_steps=12, min_lr_ratio=0.2
    )
    for step, factor in CURVES[name].items():
        rates = optimizer.learning_rates(cfg, step)
        want = 2.0 * factor, 3.0 * factor
        np.testing.assert_allclose([rates["policy"], rates["value"]], want, atol=1e-6)


def test_the_average_forgets_by_its_decay():
    average = states.averaged({"a": np.float32(1.0)}, {"a": np.float32(2.0)}, 0.9)
    np.testing.assert_allclose(average["a"], 0.9 * 1.0 + 0.1 * 2.0, rtol=1e-6)
    assert states.averaged(None, {"a": np.float32(2.0)}, 0.9) is None
