"""The heart: sampling and re-evaluation go through one denoise step."""

import dataclasses

import analytic_network
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pirl_jax.core import page, spec, types
from pirl_jax.models import heads, pi0, variants
from pirl_jax.policy import flow, gaussian

B = 6


def _config(pi05=False, **changes):
    network = variants.pi0_config("tiny_pi05" if pi05 else "tiny")
    fields = dict(action_chunk=3, value_hidden=(16, 8), detach_critic_input=False) | changes
    return flow.Policy(network, page.Model(**fields))


def _with(cfg, **changes):
    return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, **changes))


def _observation(cfg, seed=0):
    rng = np.random.default_rng(seed)
    size, length = cfg.network.image_size, cfg.network.max_token_len
    return types.Observation(
        images=jnp.asarray(rng.integers(0, 256, (B, 2, *size, 3), np.uint8)),
        image_mask=jnp.ones((B, 2), bool),
        state=jnp.asarray(rng.normal(size=(B, cfg.network.action_dim)).astype(np.float32)),
        tokens=jnp.asarray(rng.integers(1, 200, (B, length)).astype(np.int32)),
        token_mask=jnp.asarray(np.arange(length)[None] < rng.integers(3, length, (B, 1))),
    )


VARIANTS = {
    "pi0": {},
    "pi05_vlm_critic": dict(pi05=True, value_after_vlm=True),
    "pi0_noise_joint": dict(noise_method="flow_noise", noise_steps="all"),
    "pi05_cps": dict(pi05=True, noise_method="flow_cps"),
}


@pytest.fixture(scope="module", params=VARIANTS)
def setup(request):
    cfg = _config(**VARIANTS[request.param])
    params = spec.init(jax.random.key(0), flow.specs(cfg))
    # The published initialisation starts several kernels at zero; noise on every leaf makes each of
    # them matter.
    keys = jax.random.split(jax.random.key(1), len(jax.tree.leaves(params)))
    leaves, tree = jax.tree.flatten(params)
    pairs = zip(leaves, keys, strict=True)
    noisy = [x + 0.05 * jax.random.normal(key, x.shape) for x, key in pairs]
    params = jax.tree.unflatten(tree, noisy)
    obs = _observation(cfg)
    sample = jax.jit(lambda params, key_B, obs: _sample(params, key_B, obs, cfg))
    return cfg, params, obs, sample


def _sample(params, key_B, obs, cfg):
    prefix = flow.prefill(params, obs, cfg)
    return *flow.sample_chain(params, key_B, prefix, cfg), prefix


def test_the_ratio_right_after_a_rollout_is_one(setup):
    cfg, params, obs, sample = setup
    evaluate = jax.jit(
        lambda params, chain, context: flow.chain_log_prob(params, chain, context, cfg)
    )
    deviations = []
    for seed in range(4):
        chain, _, prefix = sample(params, jax.random.split(jax.random.key(seed), B), obs)
        for context in (obs, prefix):
            log_prob, _, value_B = evaluate(params, chain, context)
            log_ratio_B = (log_prob - chain.log_prob).sum((1, 2))
            deviations.append(np.abs(np.expm1(log_ratio_B)).max())
            np.testing.assert_allclose(value_B, chain.value, atol=1e-5)
    assert max(deviations) < 1e-5


def test_the_stochastic_index_is_drawn_per_row(setup):
    """From all steps; of flow_cps and with ignore_last from all but the last.

    In the joint case every step is stochastic.
    """
    cfg, *_ = setup
    j_BU = np.asarray(flow.draw(jax.random.split(jax.random.key(1), 64), cfg)[1])
    if cfg.model.noise_steps == "all":
        np.testing.assert_array_equal(
            j_BU, np.broadcast_to(np.arange(cfg.model.num_steps), (64, cfg.model.num_steps))
        )
        return
    assert set(np.unique(j_BU)) == set(
        range(cfg.model.num_steps - (cfg.model.noise_method == "flow_cps"))
    )
    ignoring = flow.draw(jax.random.split(jax.random.key(1), 64), _with(cfg, ignore_last=True))[1]
    assert set(np.unique(ignoring)) == set(range(cfg.model.num_steps - 1))


def test_a_row_does_not_depend_on_its_batch(setup):
    _, params, obs, sample = setup
    key_B = jax.random.split(jax.random.key(3), B)
    chain, actions, _ = sample(params, key_B, obs)

    def flip(tree):
        return jax.tree.map(lambda leaf: leaf[::-1], tree)

    other, flipped_actions, _ = sample(params, key_B[::-1], flip(obs))
    np.testing.assert_array_equal(flip(other).j, chain.j)
    np.testing.assert_allclose(flipped_actions[::-1], actions, atol=1e-5)


def test_the_norms_of_the_steps_are_those_of_the_rows():
    """Modulations of the J flow times, picked by row, against those of every row.

    Velocity and gradient.
    """
    cfg = _config(pi05=True, num_steps=3)
    params = jax.tree.map(
        lambda leaf: (
            0.1 * jnp.asarray(np.random.default_rng(0).normal(size=leaf.shape), jnp.float32)
        ),
        flow.specs(cfg),
    )
    prefix, j_B = flow.prefill(params, _observation(cfg), cfg), jnp.array([0, 2, 1, 1, 0, 2])
    x_BHA = jax.random.normal(
        jax.random.key(0), (B, cfg.network.action_horizon, cfg.network.action_dim)
    )

    def by_step(params):
        step = flow.denoise_step(
            params, prefix, flow.modulations(params, cfg), x_BHA, j_B, jnp.ones(B), cfg
        )
        return (step.velocity**2).sum(), step.velocity

    def by_row(params):
        velocity_BHA, _ = pi0.velocity(params, prefix, x_BHA, flow.flow_time(j_B, cfg), cfg.network)
        return (velocity_BHA**2).sum(), velocity_BHA

    (grads, velocity), (want_grads, want) = (
        jax.jit(jax.grad(f, has_aux=True))(params) for f in (by_step, by_row)
    )
    np.testing.assert_allclose(velocity, want, rtol=1e-5, atol=1e-6)
    for path, grad in spec.flatten(want_grads).items():
        np.testing.assert_allclose(
            spec.flatten(grads)[path], grad, rtol=1e-4, atol=1e-5 * np.abs(grad).max(), err_msg=path
        )
    assert (
        np.abs(grads["PaliGemma"]["llm"]["layers"]["pre_ffw_norm_1"]["Dense_0"]["kernel"]).max() > 0
    )


def test_only_the_executed_entries_are_scored(setup):
    cfg, params, obs, sample = setup
    chain, _, prefix = sample(params, jax.random.split(jax.random.key(0), B), obs)
    assert (
        chain.log_prob.shape == (B, cfg.model.action_chunk, cfg.model.action_env_dim) == (B, 3, 7)
    )
    outside = (
        chain.x_next.at[:, :, cfg.model.action_chunk :]
        .add(1.0)
        .at[:, :, :, cfg.model.action_env_dim :]
        .add(1.0)
    )
    steps = flow.chain_steps(params, chain, prefix, cfg)
    moved, _, _ = flow.score(chain.replace(x_next=outside), steps, cfg)
    np.testing.assert_array_equal(moved, flow.score(chain, steps, cfg)[0])
    mean, std = (np.asarray(x)[:, :3, :7] for x in (steps[0].mean, steps[0].std))
    if cfg.model.noise_steps == "all":
        return
    z = (np.asarray(chain.x_next)[:, 0, :3, :7] - mean) / std
    np.testing.assert_allclose(
        moved, -0.5 * z**2 - np.log(std) - 0.5 * np.log(2 * np.pi), rtol=1e-5, atol=1e-5
    )


def test_flow_ode_is_the_euler_sampler(setup):
    """With the deterministic method a chain is plain Euler integration, its log-prob 0."""
    cfg, params, obs, _ = setup
    ode = _with(cfg, noise_method="flow_ode", noise_steps="one")
    key_B = jax.random.split(jax.random.key(5), B)
    sample = jax.jit(lambda params, key_B, obs: _sample(params, key_B, obs, ode))
    chain, actions, _ = sample(params, key_B, obs)
    np.testing.assert_array_equal(chain.log_prob, np.zeros((B, 3, 7)))
    shape = (cfg.network.action_horizon, cfg.network.action_dim)
    start = jax.vmap(lambda key: jax.random.normal(jax.random.split(key, 3)[0], shape))(key_B)
    expected = pi0.sample(params, start, obs, cfg.network, cfg.model.num_steps)
    np.testing.assert_allclose(actions, expected, atol=1e-4)


def test_kept_prefix_survives_the_row_layout(setup):
    _, params, obs, sample = setup
    _, _, prefix = sample(params, jax.random.split(jax.random.key(0), B), obs)
    rows = flow.prefix_to_rows(prefix)
    assert rows.k.shape[0] == B
    jax.tree.map(np.testing.assert_array_equal, flow.prefix_from_rows(rows), prefix)


def test_the_noise_level_of_the_moment_travels_with_the_chain(setup):
    """An annealed level is the one that the chain is scored with, whenever that is."""
    cfg, params, obs, _ = setup
    key_B, prefix = jax.random.split(jax.random.key(2), B), flow.prefill(params, obs, cfg)
    plain, _ = flow.sample_chain(params, key_B, prefix, cfg)
    halved, _ = flow.sample_chain(params, key_B, prefix, cfg, level=cfg.model.noise_level / 2)
    stds = [flow.chain_steps(params, chain, prefix, cfg)[0].std for chain in (plain, halved)]
    if cfg.model.noise_method == "flow_noise":  # learns its level
        np.testing.assert_allclose(*stds, rtol=1e-5)
    else:
        assert (stds[1] < 0.7 * stds[0]).all()
    log_prob, *_ = flow.chain_log_prob(params, halved, prefix, cfg)
    np.testing.assert_allclose(log_prob, halved.log_prob, atol=1e-4)


def test_the_likelihood_of_a_joint_chain_is_that_of_all_its_steps():
    cfg = _config(noise_method="flow_sde", noise_steps="all")
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    chain = types.Chain(
        x=normal(2, 2, 3, 7),
        x_next=normal(2, 2, 3, 7),
        j=None,
        level=None,
        log_prob=None,
        value=None,
    )
    steps = [
        flow.Step(normal(2, 3, 7), normal(2, 3, 7), jnp.full((2, 3, 7), 0.5), normal(2))
        for _ in range(2)
    ]
    terms = [
        gaussian.log_prob(chain.x_next[:, k], step.mean, step.std) for k, step in enumerate(steps)
    ]
    log_prob, entropy, value = flow.score(chain, steps, cfg)
    np.testing.assert_allclose(log_prob, terms[0] + terms[1], rtol=1e-6)
    np.testing.assert_allclose(entropy, 2 * gaussian.entropy(0.5), rtol=1e-6)
    np.testing.assert_allclose(value, (steps[0].value + steps[1].value) / 2, rtol=1e-6)
    rooted, *_ = flow.score(chain, steps, _with(cfg, joint_mean=True))
    start = gaussian.log_prob(chain.x[:, 0], 0.0, 1.0)
    np.testing.assert_allclose(rooted, (terms[0] + terms[1] + start) / 3, rtol=1e-5)


def test_distance_to_another_policy():
    """By hand, and zero with zero gradient to itself."""
    cfg, ones = _config(), jnp.ones((1, 4, 8))

    def step(mean, std, v):
        return flow.Step(velocity=v * ones, mean=mean * ones, std=std * ones, value=None)

    a, b = [step(1.0, 0.5, 2.0)], [step(0.0, 1.0, -1.0)]
    kl = np.log(2) + (0.25 + 1) / 2 - 0.5
    np.testing.assert_allclose(flow.distance(a, b, "kl", cfg), [3 * 7 * kl], rtol=1e-6)
    np.testing.assert_allclose(flow.distance(a, b, "velocity_mse", cfg), [9.0], rtol=1e-6)
    for kind in flow.ANCHORS:
        gradient = jax.grad(
            lambda mean, kind=kind: flow.distance([step(mean, 0.5, mean)], a, kind, cfg).sum()
        )
        assert abs(gradient(1.0 if kind == "kl" else 2.0)) < 1e-5 < abs(gradient(1.5))
    with pytest.raises(
        ValueError, match="anchor='l2' does not exist; choose one of: kl, velocity_mse"
    ):
        flow.distance(a, b, "l2", cfg)


def test_padding_does_not_move_a_critic_on_the_vlm():
    """Longer padding, same value: it is masked out of the pooled state."""
    cfg = _config(pi05=True, value_after_vlm=True)
    params, obs = spec.init(jax.random.key(0), flow.specs(cfg)), _observation(cfg)
    longer = obs.replace(
        tokens=jnp.pad(obs.tokens, ((0, 0), (0, 9))),
        token_mask=jnp.pad(obs.token_mask, ((0, 0), (0, 9))),
    )
    short, long = (flow.prefill(params, o, cfg).pooled for o in (obs, longer))
    assert short.shape == (B, cfg.network.paligemma.width)
    np.testing.assert_allclose(short, long, atol=1e-5)


# ---- guards: fields off their neutral value -----------------------------------------------------


def test_the_distance_of_joint_chains():
    """Over the steps: velocities have a mean, the divergence of a chunk is a sum."""
    cfg, ones = _config(noise_steps="all"), jnp.ones((1, 4, 8))

    def steps(*means):
        return [flow.Step(velocity=m * ones, mean=m * ones, std=ones, value=None) for m in means]

    a, b = steps(0.0, 0.0, 0.0), steps(1.0, 2.0, 4.0)
    mse = flow.distance(a, b, "velocity_mse", cfg)
    np.testing.assert_allclose(mse, [(1 + 4 + 16) / 3], rtol=1e-6)
    kl = flow.distance(a, b, "kl", cfg)
    np.testing.assert_allclose(kl, [3 * 7 * (1 + 4 + 16) / 2], rtol=1e-6)


W = 16


@pytest.fixture
def analytic(monkeypatch):
    """One denoise step of a network that costs nothing: (fields) -> its Step, and its gradients."""
    analytic_network.install(monkeypatch)
    draw = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(0.5 * draw.normal(size=shape), jnp.float32)  # noqa: E731
    model = variants.pi0_config("tiny")
    H, A = model.action_horizon, model.action_dim
    params = {
        "Wx": normal(A, W),
        "wt": normal(W),
        "Ws": normal(A, W),
        "pos": normal(H, W),
        "action_out_proj": {"kernel": normal(W, A), "bias": normal(A)},
    }
    small = heads.value_specs(W, (8,)) | heads.noise_specs(W, A)
    params |= jax.tree.map(lambda leaf: normal(*leaf.shape), small)
    none = jnp.zeros((B, 0))
    state, pooled = normal(B, A), normal(B, W)
    x_BHA, j_B = normal(B, H, A), jnp.arange(B) % 4

    def step(**fields):
        cfg = flow.Policy(model, page.Model(**(dict(action_chunk=2) | fields)))
        level_B = jnp.full(B, cfg.model.noise_level)

        def value(params, pooled):
            prefix = pi0.Prefix(k=none, v=none, mask=none, state=state, pooled=pooled)
            result = flow.denoise_step(params, prefix, None, x_BHA, j_B, level_B, cfg)
            return result.value.sum(), result

        gradients, result = jax.jit(jax.grad(value, (0, 1), has_aux=True))(params, pooled)
        return result, gradients

    return step


def test_the_learned_noise_lies_in_its_range(analytic):
    for low, high in ((0.3, 0.5), (0.01, 0.02)):
        step, _ = analytic(noise_method="flow_noise", noise_logvar_range=(low, high))
        assert low <= step.std.min() < step.std.max() <= high
        assert np.log(step.std).mean() == pytest.approx((np.log(low) + np.log(high)) / 2, abs=0.2)


def test_the_noise_level_by_hand(analytic):
    """flow_sde: std = level sqrt(t / (1 - t)) sqrt(dt), with 1 - t = dt at the start."""
    for level in (0.2, 0.9):
        step, _ = analytic(noise_level=level)
        t = np.array([1.0, 0.75, 0.5, 0.25, 1.0, 0.75])
        want = level * np.sqrt(t / np.where(t == 1, 0.25, 1 - t)) * np.sqrt(0.25)
        np.testing.assert_allclose(step.std[:, 0, 0], want, rtol=1e-5)


def test_which_action_features_the_critic_reads(analytic):
    """The first `action_chunk` of them, or all."""
    values = [
        np.asarray(analytic(**fields)[0].value)
        for fields in (
            dict(chunk_critic_input=False),
            dict(chunk_critic_input=True, action_chunk=2),
            dict(chunk_critic_input=True, action_chunk=3),
        )
    ]
    assert all((values[i] != values[k]).all() for i, k in ((0, 1), (0, 2), (1, 2)))
    whole = analytic(chunk_critic_input=True, action_chunk=10)[0].value
    np.testing.assert_allclose(whole, values[0], rtol=1e-6)


@pytest.mark.parametrize("after_vlm", [False, True])
def test_a_detached_critic_sends_no_gradient_into_the_network(analytic, after_vlm):
    for detached in (False, True):
        fields = dict(detach_critic_input=detached, value_after_vlm=after_vlm)
        _, (params, pooled) = analytic(**fields)
        assert np.abs(params["value_head"]["out"]["kernel"]).max() > 0
        reached = np.abs(pooled if after_vlm else params["Wx"]).max()
        assert (reached == 0) == detached


@pytest.mark.parametrize("mode", heads.POOLS)
def test_which_tokens_the_critic_on_the_vlm_reads(monkeypatch, mode):
    hidden, mask = jnp.arange(24.0).reshape(2, 4, 3), jnp.array([[1, 1, 0, 0], [0, 1, 1, 1]], bool)
    none = jnp.zeros((2, 0))
    prefix = pi0.Prefix(k=none, v=none, mask=mask, state=none, hidden=hidden)
    monkeypatch.setattr(pi0, "prefill", lambda *args, **kwargs: prefix)
    cfg = _config(value_after_vlm=True, value_vlm_mode=mode)
    want = {
        "mean_token": [hidden[0, :2].mean(0), hidden[1, 1:].mean(0)],
        "first_token": [hidden[0, 0], hidden[1, 1]],
        "last_token": [hidden[0, 1], hidden[1, 3]],
    }[mode]
    np.testing.assert_allclose(flow.prefill(None, None, cfg).pooled, want, rtol=1e-6)


def test_deterministic_actions_are_euler_steps_from_the_noise_of_each_key(monkeypatch):
    monkeypatch.setattr(pi0, "velocity", lambda p, prefix, x, t, *rest: (x * t[:, None, None], x))
    monkeypatch.setattr(pi0, "modulations", lambda *args: None)
    cfg = _config(num_steps=2)
    shape = (cfg.network.action_horizon, cfg.network.action_dim)
    key_B = jax.random.split(jax.random.key(0), 3)
    actions = jax.jit(lambda key_B: flow.sample_actions(None, key_B, None, cfg))(key_B)
    for key, row in zip(key_B, np.asarray(actions), strict=True):
        start = jax.random.normal(key, shape)
        np.testing.assert_allclose(row, start * (1 - 1 / 2) * (1 - 0.5 / 2), rtol=1e-5)


def test_every_part_of_a_draw_depends_on_the_key():
    cfg = _config()
    one, other = (flow.draw(jax.random.split(jax.random.key(k), 32), cfg) for k in (0, 1))
    for x, y in zip(map(np.asarray, one), map(np.asarray, other), strict=True):
        assert (x != y).any() and (x[0] != x[1:]).any()


def test_imitation_is_the_loss_of_sft_on_what_was_executed(setup):
    """Where everything is executed it is SFT's own number; an entry that is not executed counts
    only through the network."""
    cfg, params, obs, sample = setup
    chain, actions_BHA, prefix = sample(params, jax.random.split(jax.random.key(5), B), obs)
    np.testing.assert_array_equal(chain.actions, actions_BHA)
    key = jax.random.key(7)
    noise_key, time_key = jax.random.split(key)
    noise_BHA = jax.random.normal(noise_key, actions_BHA.shape)
    time_B = pi0.sample_time(time_key, B)

    @jax.jit
    def both(params, context):
        error_BHA = pi0.flow_matching_error(
            params, prefix, actions_BHA, noise_BHA, time_B, cfg.network
        )
        whole = _with(cfg, action_chunk=actions_BHA.shape[1], action_env_dim=actions_BHA.shape[2])
        errors = [flow.imitation_error(params, actions_BHA, context, key, c) for c in (cfg, whole)]
        loss_BH = pi0.flow_matching_loss(params, obs, actions_BHA, noise_BHA, time_B, cfg.network)
        return error_BHA, *errors, loss_BH

    for context in (obs, prefix):
        error_BHA, executed_B, whole_B, loss_BH = jax.device_get(both(params, context))
        np.testing.assert_allclose(whole_B, loss_BH.mean(1), rtol=1e-5)
        by_hand_B = (error_BHA[:, : cfg.model.action_chunk, : cfg.model.action_env_dim] ** 2).mean(
            (1, 2)
        )
        np.testing.assert_allclose(executed_B, by_hand_B, rtol=1e-5)
    assert (np.abs(executed_B / whole_B - 1) > 1e-3).any()
