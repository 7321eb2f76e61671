import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_files

from pirl_jax.core import spec, types
from pirl_jax.models import pi0, remat, variants

FAST_COMPILE = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
TOLERANCES = {
    "prefix/": 1e-5,
    "suffix/": 3e-4,
    "x_t": 1e-6,
    "u_t": 1e-6,
    "prefill/attn_mask": 0,
    "prefill/positions": 0,
    "decode/attn_mask": 0,
    "decode/positions": 0,
    "train/attn_mask": 0,
    "train/positions": 0,
    "train/v_t": 3e-4,
    "decode/v_t": 3e-4,
    "train/loss": 3e-4,
    "compute_loss": 3e-4,
    "mean_loss": 3e-4,
    "sample/num_steps_": 1e-3,
    "sample/rng_": 1e-3,
}
DIFFERENT_WIDTHS = ["pi0_diffw", "pi05_diffw"]
MASKED = DIFFERENT_WIDTHS if reference_files.COMPLETE else ["pi0_gqa2", "pi05_lora_expert_only"]
ELSEWHERE = (
    "siglip/",
    "train/kv_",
    "prefill/kv_",
    "train/prefix_out",
    "train/suffix_out",
    "prefill/prefix_out",
    "decode/suffix_out",
)


@pytest.mark.parametrize("name", TOLERANCES)
def test_results_equal_the_reference(case, name):
    if case.recorded(name):  # bfloat16 runs of the reference have no mean_loss
        case.check(name, TOLERANCES[name])


def test_every_recorded_array_is_compared(case):
    names = (*TOLERANCES, *ELSEWHERE)
    assert all(name.split("/", 1)[1].startswith(names) for name in case.recorded(""))


def test_parameters_have_the_recorded_names_and_shapes(case):
    declared = {path: leaf.shape for path, leaf in spec.flatten(pi0.specs(case.cfg)).items()}
    assert declared == {path: leaf.shape for path, leaf in spec.flatten(case.params).items()}


def test_gradients_equal_the_reference(case):
    expected = {name: g for name, g in case.arrays.items() if name.startswith("grads/")}
    assert bool(expected) == (
        case.cfg.dtype == "float32"
    )  # the reference recorded none in bfloat16
    norm = np.sqrt(sum(np.square(g, dtype=float).sum() for g in expected.values()))
    for name, g in expected.items():
        # Softmax ignores a constant added to all logits, so a key bias has no gradient but rounding
        # noise.
        rounding = 1e-8 * norm if name.endswith("key/bias") else 0
        limit = 3e-3 * np.sqrt(np.square(g).mean()) + rounding
        assert np.abs(case.ours(name) - g).max() <= limit, name


def test_sampling_from_a_key_draws_the_reference_noise(named_case):
    case = named_case("pi0_gqa2")
    key = jax.random.key(case.settings["seed"])
    ours = jax.jit(
        lambda key: pi0.sample(case.params, key, case.obs, case.cfg, 10),
        compiler_options=FAST_COMPILE,
    )(key)
    np.testing.assert_allclose(ours, case.arrays["out/sample/rng_num_steps_10"], atol=1e-3)


@pytest.mark.parametrize("name", MASKED)
def test_dropping_masked_camera_and_padding_changes_nothing(named_case, name):
    case = named_case(name)
    obs, cfg = case.obs, case.cfg
    length = int(obs.token_mask[0].sum())
    assert not obs.image_mask[0, 2] and length < obs.tokens.shape[1]
    short = types.Observation(
        obs.images[:1, :2],
        obs.image_mask[:1, :2],
        obs.state[:1],
        obs.tokens[:1, :length],
        obs.token_mask[:1, :length],
    )
    x_t, time = (jnp.asarray(x) for x in (case.arrays["out/x_t"][:1], case.arrays["in/time"][:1]))
    velocity = jax.jit(
        lambda obs: pi0.velocity(case.params, pi0.prefill(case.params, obs, cfg), x_t, time, cfg)[
            0
        ],
        compiler_options=FAST_COMPILE,
    )
    np.testing.assert_allclose(velocity(short), case.arrays["out/train/v_t"][:1], rtol=0, atol=3e-4)


def test_uint8_and_float_images_agree():
    images = jnp.arange(256, dtype=jnp.uint8).reshape(1, 16, 16)
    as_float = jnp.arange(256, dtype=jnp.float32).reshape(1, 16, 16) / 255 * 2 - 1
    np.testing.assert_allclose(pi0.to_float(images), pi0.to_float(as_float), atol=1e-6)


def tiny_inputs(cfg, batch=2):
    keys = iter(jax.random.split(jax.random.key(0), 8))
    obs = types.Observation(
        images=jax.random.uniform(next(keys), (batch, 2, *cfg.image_size, 3), minval=-1.0),
        image_mask=jnp.array([[True, False], [True, True]]),
        state=jax.random.normal(next(keys), (batch, cfg.action_dim)),
        tokens=jax.random.randint(next(keys), (batch, 6), 0, cfg.vocab_size),
        token_mask=jnp.arange(6)[None] < jnp.array([[3], [6]]),
    )
    shape = (batch, cfg.action_horizon, cfg.action_dim)
    return (
        obs,
        jax.random.normal(next(keys), shape),
        jax.random.normal(next(keys), shape),
        jnp.array([0.2, 0.9]),
    )


def tiny_params(cfg):
    """Every leaf random, also those that start at zero."""
    draw = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.2 * draw.standard_normal(leaf.shape, np.float32)), pi0.specs(cfg)
    )


def test_remat_changes_no_loss_and_no_gradient():
    def run(policy):
        cfg = variants.pi0_config("tiny_pi05", remat=policy)

        def loss(params, *inputs):
            return pi0.flow_matching_loss(params, *inputs, cfg).mean()

        compiled = jax.jit(jax.value_and_grad(loss), compiler_options=FAST_COMPILE)
        return compiled(tiny_params(cfg), *tiny_inputs(cfg))

    loss, grads = run("none")
    for policy in set(remat.POLICIES) - {"none"}:
        other_loss, other_grads = run(policy)
        np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
        pairs = zip(jax.tree.leaves(other_grads), jax.tree.leaves(grads), strict=True)
        for ours, expected in pairs:
            np.testing.assert_allclose(
                ours, expected, rtol=1e-3, atol=1e-5 * (1 + np.abs(expected).max())
            )


def test_unknown_remat_policy_lists_the_choices():
    with pytest.raises(ValueError, match=r"remat='some' does not exist.*dots"):
        remat.wrap(lambda x: x, "some")


def test_gradient_reaches_valid_keys_of_a_kept_prefix_only():
    cfg = variants.pi0_config("tiny")
    obs, x_t, cotangent, time = tiny_inputs(cfg)
    params = tiny_params(cfg)

    def run(params, obs):
        prefix = pi0.prefill(params, obs, cfg)

        def score(kv):
            v, feature = pi0.velocity(params, prefix.replace(k=kv[0], v=kv[1]), x_t, time, cfg)
            assert v.dtype == jnp.float32 and feature.shape == (*x_t.shape[:2], cfg.expert.width)
            return (v * cotangent).sum()

        return prefix, jax.grad(score)((prefix.k, prefix.v))

    prefix, grads = jax.jit(run, compiler_options=FAST_COMPILE)(params, obs)
    size = np.abs(np.stack(grads)).sum(axis=(0, 1, 4, 5))
    mask = np.asarray(prefix.mask)
    assert prefix.hidden is None
    assert (size[mask] > 0).all() and (size[~mask] == 0).all()


def test_loss_time_is_skewed_towards_noise():
    t = pi0.sample_time(jax.random.key(0), 4000)
    assert t.min() >= 0.001 and t.max() <= 1.0
    np.testing.assert_allclose(t.mean(), 0.6 * 0.999 + 0.001, atol=0.02)


EMBEDDED = [f"posemb_sincos/jax_{width}" for width in (32, 64, 1024)]


@pytest.mark.parametrize("name", reference_files.having("openpi/data_small.npz", EMBEDDED))
def test_time_embedding_equals_the_reference(vectors, name):
    with np.load(vectors / "openpi" / "data_small.npz") as file:
        time, expected = file["posemb_sincos/time"], file[name]
        exact = file[name.replace("jax", "torch64")]
    width = expected.shape[-1]
    ours = pi0.time_embedding(jnp.asarray(time), width)
    np.testing.assert_allclose(ours, expected, atol=3e-4)
    np.testing.assert_allclose(ours, exact, atol=3e-4)


@pytest.mark.parametrize("i", range(3))
def test_attention_mask_equals_the_reference(vectors, i):
    with np.load(vectors / "openpi" / "data_small.npz") as file:
        valid, starts, mask, positions = (
            jnp.asarray(file[f"attn_mask/{i}/{name}"])
            for name in ("input_mask", "ar_mask", "out", "positions")
        )
    np.testing.assert_array_equal(pi0.sight(valid, starts).mask_BTS, mask)
    np.testing.assert_array_equal(pi0.positions(valid), positions)


@pytest.mark.parametrize("name, horizon", [("pi0", 50), ("pi05", 10)])
def test_full_size_network_traces(name, horizon):
    cfg = variants.pi0_config(name, remat="full")
    image = jax.ShapeDtypeStruct((2, 2, 224, 224, 3), jnp.uint8)

    def flag(*shape):
        return jax.ShapeDtypeStruct(shape, bool)

    def number(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    obs = types.Observation(
        image, flag(2, 2), number(2, 32), jax.ShapeDtypeStruct((2, 24), jnp.int32), flag(2, 24)
    )
    params = spec.abstract(pi0.specs(cfg))
    prefix = jax.eval_shape(lambda params, obs: pi0.prefill(params, obs, cfg), params, obs)
    actions = number(2, horizon, 32)
    v, feature = jax.eval_shape(
        lambda *inputs: pi0.velocity(*inputs, cfg), params, prefix, actions, number(2)
    )
    assert prefix.k.shape == (18, 2, 2 * 256 + 24, 1, 256) and prefix.k.dtype == jnp.bfloat16
    assert (v.shape, v.dtype, feature.shape) == ((2, horizon, 32), jnp.float32, (2, horizon, 1024))
