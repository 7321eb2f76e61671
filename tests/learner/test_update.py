import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pirl_jax.core import mesh as meshes
from pirl_jax.core import page, types
from pirl_jax.learner import objective, optimizer, update
from pirl_jax.learner import state as states
from pirl_jax.rl import losses
from tests import at_once

H, A, D = 3, 2, 8
OPTIM = page.Optim(lr=1e-2, value_lr=3e-2, clip_grad=0.5)
CFG = page.Algorithm(
    update_epochs=2, minibatch_size=32, microbatch_size=16, entropy_bonus=0.01, huber_delta=1.0
)


def log_prob_fn(params, chain, context, anchor=None):
    """A Gaussian policy with learned mean and std and a linear critic: every gradient of the
    objective is non-zero.  Its distance to another policy is the squared difference of the
    log-probs."""
    distance_B = 0.0
    if anchor is not None:
        log_prob, other = (
            log_prob_fn(p, chain, context)[0] for p in (params, jax.lax.stop_gradient(anchor))
        )
        distance_B = ((log_prob - other) ** 2).sum((1, 2))
    mean = (context @ (params["frozen"]["w"] @ params["policy"]["w"])).reshape(
        chain.x.shape
    ) + 0.1 * chain.x
    log_std = params["policy"]["log_std"][0]
    error = (chain.x_next - mean) / jnp.exp(log_std)
    value = context @ params["value_head"]["w"]
    return -0.5 * error**2 - log_std, jnp.full(len(context), log_std), value, distance_B


def trainable(path):
    return not path.startswith("frozen/")


def make_params(mesh):
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32) * 0.3  # noqa: E731
    params = {
        "frozen": {"w": normal(D, D)},
        "policy": {"w": normal(D, H * A), "log_std": normal(1)},
        "value_head": {"w": normal(D)},
    }
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    place = lambda x: jax.device_put(x, split) if len(x) == D else meshes.replicate(x, mesh)  # noqa: E731
    return jax.tree.map(place, params)


def make_rows(num_rows, seed=1, drift=0.1):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    context = normal(num_rows, D)
    chain = types.Chain(
        x=normal(num_rows, H, A),
        x_next=normal(num_rows, H, A),
        j=np.zeros((num_rows, 1), np.int32),
        level=np.zeros(num_rows, np.float32),
        log_prob=np.zeros((num_rows, H, A), np.float32),
        value=np.zeros(num_rows, np.float32),
    )
    single = meshes.make_mesh(1, 1, jax.local_devices()[:1])
    log_prob, _, value, _ = map(np.asarray, log_prob_fn(make_params(single), chain, context))
    moved = drift * normal(num_rows)[:, None, None] / (H * A)
    chain = chain.replace(log_prob=log_prob + moved, value=value + drift * normal(num_rows))
    weight = rng.uniform(0.5, 2.0, num_rows).astype(np.float32)
    return objective.Minibatch(context, chain, normal(num_rows), normal(num_rows), weight)


@functools.cache
def machinery(data, fsdp, cfg=CFG):
    """cfg: with the microbatches of one device."""
    mesh = meshes.make_mesh(data, fsdp, jax.devices()[: data * fsdp])
    cfg = dataclasses.replace(cfg, microbatch_size=cfg.microbatch_size // mesh.size)
    return mesh, update.Updater(log_prob_fn, cfg, OPTIM, trainable, mesh)


def run(data, fsdp, rows, cfg=CFG, key=0):
    mesh, updater = machinery(data, fsdp, cfg)
    state = states.create(make_params(mesh), OPTIM, trainable, mesh)
    key = jax.random.key(key)
    with jax.transfer_guard("disallow"):
        state, metrics = at_once.learn(updater, state, rows, key)
    return jax.device_get(state), metrics


def assert_same(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_sharded_equals_single_device():
    rows = make_rows(77)
    one, metrics_one = run(1, 1, rows)
    eight, metrics_eight = run(4, 2, rows)
    assert_same(eight.params, one.params, rtol=1e-5, atol=1e-6)
    assert_same(eight.opt_state, one.opt_state, rtol=1e-4, atol=1e-6)
    assert_same(metrics_eight, metrics_one, rtol=1e-4, atol=1e-5)
    assert one.step == 6 and one.iteration == 1  # 77 rows in minibatches of at most 32, two epochs


def test_accumulation_equals_the_big_batch():
    """Two microbatches of unequal weight are one batch: gradient, loss and metrics."""
    rows = make_rows(29)  # the second microbatch is padded
    small, metrics_small = run(1, 1, rows)
    big, metrics_big = run(1, 1, rows, dataclasses.replace(CFG, microbatch_size=32))
    assert_same(small.params, big.params, rtol=1e-5, atol=1e-6)
    assert_same(metrics_small, metrics_big, rtol=1e-4, atol=1e-5)


def test_one_update_is_the_objective_written_down():
    rows = make_rows(16)
    cfg = dataclasses.replace(CFG, update_epochs=1, minibatch_size=16, microbatch_size=8)
    state, metrics = run(1, 1, rows, cfg)
    params = make_params(meshes.make_mesh(1, 1, jax.devices()[:1]))

    def loss(learned):
        log_prob, entropy, value, _ = log_prob_fn(params | learned, rows.chain, rows.context)
        log_prob, old = (
            losses.reduce_log_prob(x, "chunk") for x in (log_prob, rows.chain.log_prob)
        )
        policy, _ = losses.clipped_surrogate(log_prob, old, rows.advantage, rows.weight, 0.2, 0.2)
        critic, _ = losses.clipped_value(
            value, rows.chain.value, rows.return_, rows.weight, 0.2, 1.0
        )
        return policy + critic - 0.01 * losses.mean_entropy(entropy, rows.weight), (policy, critic)

    learned = {name: params[name] for name in ("policy", "value_head")}

    @jax.jit
    def step(learned):
        (_, parts), grads = jax.value_and_grad(loss, has_aux=True)(learned)
        return optimizer.apply(OPTIM, grads, optimizer.init(OPTIM, learned), learned, 0)[0], parts

    want, parts = step(learned)
    assert_same({k: state.params[k] for k in want}, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(state.params["frozen"]["w"], params["frozen"]["w"])
    np.testing.assert_allclose(
        [metrics["actor/loss"], metrics["actor/value_loss"]], parts, rtol=1e-5
    )
    residual = rows.return_ - rows.context @ np.asarray(params["value_head"]["w"])
    want = 1 - residual.var() / rows.return_.var()
    np.testing.assert_allclose(metrics["critic/explained_variance"], want, rtol=1e-4)


def test_first_ratio_is_one_and_same_key_same_result():
    rows = make_rows(40, drift=0.0)
    state, metrics = run(4, 2, rows)
    assert metrics["actor/first_ratio_max_dev"] < 1e-5 < metrics["actor/ratio_max_dev"]
    assert_same(run(4, 2, rows)[0], state, rtol=0, atol=0)
    other = run(4, 2, rows, key=1)[0]
    assert (other.params["policy"]["w"] != state.params["policy"]["w"]).any()


def test_rows_without_weight_do_not_exist():
    rows = make_rows(40)
    rows.weight[20:] = 0
    rows.advantage[20:] = np.nan
    state, metrics = run(4, 2, rows)
    want, want_metrics = run(4, 2, jax.tree.map(lambda x: x[:20], rows))
    assert_same(state, want, rtol=0, atol=0)
    assert metrics == want_metrics


def test_target_kl_stops_the_epochs():
    rows = make_rows(40, drift=1.0)
    _, metrics = run(4, 2, rows, dataclasses.replace(CFG, target_kl=1e-4, update_epochs=5))
    assert metrics["actor/epochs"] == 1 and metrics["actor/updates"] == 2
    assert metrics["actor/padded_rows"] == 1 - 40 / 64, (
        "20 rows in each of 2 minibatches of 2 microbatches of 16"
    )


def test_critic_warmup_leaves_the_policy_alone():
    state, metrics = run(4, 2, make_rows(40), dataclasses.replace(CFG, critic_warmup_iterations=1))
    before = jax.device_get(make_params(meshes.make_mesh(4, 2)))
    assert_same(state.params["policy"], before["policy"], rtol=0, atol=0)
    assert (state.params["value_head"]["w"] != before["value_head"]["w"]).all()
    assert metrics["actor/lr"] == 0


def test_metrics_are_complete():
    _, metrics = run(4, 2, make_rows(77))
    names = "loss value_loss grad_norm approx_kl pg_clipfrac value_clip_ratio entropy"
    names += " ratio_max_dev first_ratio_max_dev"
    wanted = {f"actor/{name}" for name in names.split()} | {"critic/explained_variance"}
    assert wanted <= metrics.keys()
    assert (
        all(isinstance(x, float) for x in metrics.values())
        and np.isfinite(list(metrics.values())).all()
    )


def test_a_microbatch_counts_rows_of_one_device():
    """Beside that a minibatch may have fewer."""
    mesh = meshes.make_mesh(4, 2)
    for each, rows in ((4, 32), (16, 128), (64, 256), (2048, 256)):
        cfg = dataclasses.replace(CFG, minibatch_size=256, microbatch_size=each)
        assert update.Updater(log_prob_fn, cfg, OPTIM, trainable, mesh).microbatch_rows == rows


def test_wrong_sizes():
    mesh = meshes.make_mesh(4, 2)
    with pytest.raises(ValueError, match="the 8 devices of the mesh times microbatch_size=12"):
        update.Updater(log_prob_fn, page.Algorithm(microbatch_size=12), OPTIM, trainable, mesh)
    with pytest.raises(ValueError, match="no valid decision"):
        run(4, 2, jax.tree.map(lambda x: x[:0], make_rows(4)))


@pytest.mark.parametrize(
    "level, shape", [("chunk", (16,)), ("action", (16, H)), ("token", (16, H, A))]
)
def test_ratios_per_chunk_action_or_token(level, shape):
    """A row weighs the same, however many ratios it has; the dual clip bounds each of them."""
    rows = make_rows(16, drift=3.0)
    cfg = dataclasses.replace(CFG, logprob_type=level, clip_ratio_c=1.5)
    params = make_params(meshes.make_mesh(1, 1, jax.devices()[:1]))
    _, sums = objective.loss(log_prob_fn, cfg, params, rows, False)
    log_prob, old = (
        losses.reduce_log_prob(x, level)
        for x in (log_prob_fn(params, rows.chain, rows.context)[0], rows.chain.log_prob)
    )
    assert log_prob.shape == shape
    ratio, advantage = (
        np.exp(log_prob - old),
        rows.advantage.reshape((16,) + (1,) * (len(shape) - 1)),
    )
    loss = np.maximum(-advantage * ratio, -advantage * np.clip(ratio, 0.8, 1.2))
    loss = np.minimum(loss, 1.5 * abs(advantage)).reshape(16, -1).mean(1)
    np.testing.assert_allclose(sums.weighted["loss"], (rows.weight * loss).sum(), rtol=1e-4)


def test_without_a_critic_there_is_no_value_loss():
    """Neither gradient nor metric, and the value head stays."""
    cfg = dataclasses.replace(CFG, adv_type="grpo", group_size=2)
    state, metrics = run(1, 1, make_rows(16), cfg)
    before = make_params(meshes.make_mesh(1, 1, jax.devices()[:1]))
    decayed = before["value_head"]["w"] * (1 - OPTIM.value_lr * OPTIM.weight_decay) ** 2
    np.testing.assert_allclose(state.params["value_head"]["w"], decayed, rtol=1e-6)
    assert not [
        name
        for name in metrics
        if "value_loss" in name or "value_clip" in name or name.startswith("critic/")
    ]


def test_nothing_is_learned_where_every_group_is_filtered():
    rows = make_rows(16)
    rows.weight[:] = 0
    state, metrics = run(1, 1, rows, dataclasses.replace(CFG, adv_type="grpo", group_size=2))
    assert_same(
        state.params,
        jax.device_get(make_params(meshes.make_mesh(1, 1, jax.devices()[:1]))),
        rtol=0,
        atol=0,
    )
    assert metrics["actor/skipped_updates"] == metrics["actor/updates"] and state.iteration == 1


SIGNALS = {
    "none": ({}, 1.0),
    "none, averaged": (dict(ema_decay=0.5), 1.0),
    "an anchor": (dict(anchor_coef=0.1), 0.0),
    "demonstrations": (dict(sft_loss_weight=0.1), 0.0),
    "the entropy of a learned std": (dict(entropy_bonus=0.01), 0.0),
    "the critic": (dict(adv_type="gae"), 0.0),
}


@pytest.mark.parametrize("beside", SIGNALS)
def test_advantages_of_zero_change_nothing_unless_something_else_teaches(beside):
    """No weight, no moment, no average; before, weights decayed and Adam's momentum went on."""
    changes, share = SIGNALS[beside]
    plain = dict(adv_type="grpo", group_size=2, entropy_bonus=0.0, update_epochs=1)
    cfg = dataclasses.replace(CFG, **plain | changes)
    mesh = meshes.make_mesh(1, 1, jax.devices()[:1])
    kept = dict(ema=cfg.ema_decay > 0, anchor=cfg.anchor_coef > 0)

    def sft_loss(params, demonstrations, step):
        return ((demonstrations @ params["policy"]["w"]) ** 2).mean()

    updater = update.Updater(log_prob_fn, cfg, OPTIM, trainable, mesh, sft_loss)
    state = states.create(make_params(mesh), OPTIM, trainable, mesh, **kept)
    batches = itertools.repeat(np.ones((4, D), np.float32)) if cfg.sft_loss_weight else None
    rows = make_rows(32)
    metrics = []
    seen = []
    for scale in (1, 0, 1):
        data = rows.replace(advantage=scale * rows.advantage)
        state, row = at_once.learn(updater, state, data, jax.random.key(0), batches)
        metrics.append(row)
        # Copies: what an update changes is donated.
        seen.append(jax.tree.map(np.array, (state.params, state.opt_state, state.ema)))
    skipped = [row["actor/skipped_updates"] / row["actor/updates"] for row in metrics]
    assert skipped == [0.0, share, 0.0]
    assert [row["actor/nonfinite_updates"] for row in metrics] == [0.0] * 3
    same = all(jax.tree.leaves(jax.tree.map(np.array_equal, seen[0], seen[1])))
    assert same == bool(share)
    assert not np.array_equal(seen[1][0]["policy"]["w"], seen[2][0]["policy"]["w"])


def test_an_update_all_of_whose_rows_are_clipped_has_a_signal():
    """Its gradient is 0 and its advantages are not: AdamW goes on, as published."""
    rows = make_rows(16)
    chain = rows.chain.replace(log_prob=rows.chain.log_prob - 1.0)  # ratios far above 1.2
    data = rows.replace(chain=chain, advantage=np.abs(rows.advantage) + 0.1)
    cfg = dataclasses.replace(CFG, adv_type="grpo", group_size=2, entropy_bonus=0.0)
    state, metrics = run(1, 1, data, dataclasses.replace(cfg, update_epochs=1))
    assert metrics["actor/grad_norm"] == 0 and metrics["actor/pg_clipfrac"] == 1
    assert metrics["actor/skipped_updates"] == 0
    before = jax.device_get(make_params(meshes.make_mesh(1, 1, jax.devices()[:1])))
    decayed = before["policy"]["w"] * (1 - OPTIM.lr * OPTIM.weight_decay)
    np.testing.assert_allclose(state.params["policy"]["w"], decayed, rtol=1e-6)


def test_gradients_that_are_not_finite_are_counted_apart():
    rows = make_rows(16)
    rows.return_[:] = np.nan
    state, metrics = run(1, 1, rows)
    assert metrics["actor/nonfinite_updates"] == metrics["actor/skipped_updates"] == 2
    assert metrics["actor/updates"] == 2 and np.isfinite(state.params["policy"]["w"]).all()


def test_anchor_and_average():
    """The anchor pulls back to where training started; the average follows."""
    rows = make_rows(32)
    mesh = meshes.make_mesh(1, 1, jax.devices()[:1])
    moved, metrics = {}, {}
    for coefficient in (1e-9, 10.0):
        cfg = dataclasses.replace(CFG, update_epochs=8, anchor_coef=coefficient, ema_decay=0.5)
        state = states.create(make_params(mesh), OPTIM, trainable, mesh, ema=True, anchor=True)
        start = jax.device_get(state.anchor)
        updater = update.Updater(log_prob_fn, cfg, OPTIM, trainable, mesh)
        state, metrics[coefficient] = at_once.learn(updater, state, rows, jax.random.key(0))
        assert_same(jax.device_get(state.anchor), start, rtol=0, atol=0)
        moved[coefficient] = np.abs(state.params["policy"]["w"] - start["policy"]["w"]).sum()
        between = np.abs(state.ema["policy"]["w"] - start["policy"]["w"]).sum()
        assert 0 < between < moved[coefficient]
        acting = states.acting_params(state)
        np.testing.assert_array_equal(acting["policy"]["w"], state.ema["policy"]["w"])
    assert (
        moved[10.0] < 0.7 * moved[1e-9]
        and metrics[10.0]["actor/anchor"] < metrics[1e-9]["actor/anchor"]
    )


def test_the_sft_term_is_added_to_the_gradient():
    """One update equals the gradient of objective + weight * demonstration loss, written down."""
    rows = make_rows(16)
    cfg = dataclasses.replace(
        CFG, update_epochs=1, minibatch_size=16, microbatch_size=16, sft_loss_weight=0.3
    )
    mesh = meshes.make_mesh(1, 1, jax.devices()[:1])
    target = np.ones((4, D), np.float32)

    def sft_loss(params, demonstrations, step):
        return ((demonstrations @ params["policy"]["w"] - 1.0) ** 2).mean()

    state = states.create(make_params(mesh), OPTIM, trainable, mesh)
    updater = update.Updater(log_prob_fn, cfg, OPTIM, trainable, mesh, sft_loss)
    state, metrics = at_once.learn(
        updater, state, rows, jax.random.key(0), itertools.repeat(target)
    )
    params = make_params(mesh)
    learned = {name: params[name] for name in ("policy", "value_head")}

    @jax.jit
    def step(learned):
        def loss(learned):
            total, _ = objective.loss(log_prob_fn, cfg, params | learned, rows, False)
            return total / rows.weight.sum() + 0.3 * sft_loss(learned, target, 0)

        return optimizer.apply(
            OPTIM, jax.grad(loss)(learned), optimizer.init(OPTIM, learned), learned, 0
        )[0]

    want = step(learned)
    assert_same({name: state.params[name] for name in want}, want, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["actor/sft_loss"], sft_loss(params, target, 0), rtol=1e-5)


def test_handles_to_the_frozen_parameters_outlive_an_update():
    """An actor or a second learner may hold the VLM while this one learns."""
    mesh, updater = machinery(4, 2)
    state = states.create(make_params(mesh), OPTIM, trainable, mesh)
    frozen, learned = state.params["frozen"]["w"], state.params["policy"]["w"]
    before = jax.device_get(frozen)
    state, _ = at_once.learn(updater, state, make_rows(40), jax.random.key(0))
    assert learned.is_deleted() and not frozen.is_deleted()
    np.testing.assert_array_equal(frozen, before)
    assert state.params["frozen"]["w"] is frozen
    assert state.params.keys() == {"frozen", "policy", "value_head"}


def test_an_update_in_parts_is_the_same_update():
    """One may stop after each microbatch; what comes out has the same bits."""
    rows = make_rows(77)
    whole, metrics = run(1, 1, rows)
    mesh, updater = machinery(1, 1)
    state = states.create(make_params(mesh), OPTIM, trainable, mesh)
    parts = update.learn_in_parts(updater, state, rows, jax.random.key(0), in_flight=0)
    yields = 0
    with pytest.raises(StopIteration) as end, jax.transfer_guard("disallow"):
        while True:
            pending = next(parts)
            while not pending.is_ready():
                pass
            yields += 1
    state, in_parts = end.value.value
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), whole)
    assert in_parts == metrics
    microbatches = metrics["actor/updates"] * CFG.minibatch_size / CFG.microbatch_size
    assert yields == microbatches + metrics["actor/updates"] + 1


def make_rollout(**flags):
    """Two episodes of 3 and 2 decisions."""
    valid = np.array([[1, 1], [1, 1], [1, 0]], bool)
    episode, decision = np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 0, 1])
    grid = lambda *x: np.array(x, np.float32)  # noqa: E731
    none = np.zeros((3, 2), bool)
    rollout = types.Rollout(
        context=np.zeros(5),
        chain=None,
        decision_R=decision,
        episode_R=episode,
        reward_CE=grid([0, 0], [0, 1], [0, 9]),
        value_CE=grid([0.5, 0.1], [0.5, 0.2], [0.5, 9]),
        next_value_CE=grid([0.5, 0.2], [0.5, 9], [0.8, 9]),
        terminated_CE=none,
        truncated_CE=none,
        valid_CE=valid,
    )
    terminated, truncated = none.copy(), none.copy()
    terminated[1, 1] = truncated[2, 0] = True
    return rollout.replace(terminated_CE=terminated, truncated_CE=truncated, **flags)


def test_rows_of_a_rollout():
    cfg = page.Algorithm(gamma=1.0, gae_lambda=1.0, normalize_advantages=False)
    batch = objective.with_advantages(make_rollout(), cfg)
    np.testing.assert_allclose(batch.return_, [0, 0, 0, 1, 1], atol=1e-6)
    np.testing.assert_allclose(batch.advantage, [-0.5, -0.5, -0.5, 0.9, 0.8], atol=1e-6)
    np.testing.assert_allclose(batch.weight[:3].sum(), batch.weight[3:].sum(), rtol=1e-6)
    batch = objective.with_advantages(
        make_rollout(),
        dataclasses.replace(cfg, bootstrap_truncated=True, trajectory_weighting=False),
    )
    np.testing.assert_allclose(batch.return_, [0.8, 0.8, 0.8, 1, 1], atol=1e-6)
    np.testing.assert_array_equal(batch.weight, 1)
    batch = objective.with_advantages(make_rollout(), page.Algorithm())
    np.testing.assert_allclose(
        [batch.advantage.mean(), batch.advantage.std(ddof=1)], [0, 1], atol=1e-4
    )


def test_rows_of_a_group_relative_rollout():
    """Two groups of two: scores 0, 1 and 1, lost.

    The advantage of an episode is that of its decisions.
    """
    valid = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool)
    reward = np.array([[0, 0, 1, 7], [0, 1, 7, 7]], np.float32)
    none = np.zeros((2, 4), bool)
    rollout = types.Rollout(
        context=np.zeros(5),
        chain=None,
        decision_R=np.array([0, 1, 0, 1, 0]),
        episode_R=np.array([0, 0, 1, 1, 2]),
        reward_CE=reward,
        value_CE=reward * np.nan,
        next_value_CE=reward * np.nan,
        terminated_CE=none,
        truncated_CE=none,
        valid_CE=valid,
    )
    cfg = page.Algorithm(adv_type="grpo", group_size=2)
    batch = objective.with_advantages(rollout, cfg)
    np.testing.assert_allclose(
        batch.advantage, np.sqrt(0.5) * np.array([-1, -1, 1, 1, 0]), rtol=1e-5
    )
    np.testing.assert_array_equal(batch.return_, [0, 0, 1, 1, 1])
    np.testing.assert_array_equal(batch.weight, [1, 1, 1, 1, 2])  # every trajectory weighs the same
    batch = objective.with_advantages(
        rollout,
        dataclasses.replace(cfg, adv_type="rloo", filter_rewards=True, trajectory_weighting=False),
    )
    np.testing.assert_array_equal(batch.advantage, [-1, -1, 1, 1, 0])
    np.testing.assert_array_equal(
        batch.weight, [1, 1, 1, 1, 0]
    )  # the mean score of the second group, 1, is above 0.9


def test_what_an_update_learns_from():
    """Groups of two: lost and 0.5, equal within the bounds, above them, below them, useful."""
    score, valid = [9, 0.5, 0.5, 0.5, 1, 0.9, 0, 0.1, 0, 1], [False] + [True] * 9
    cfg = page.Algorithm(adv_type="grpo", group_size=2)
    np.testing.assert_array_equal(objective.useful(score, valid, cfg), valid)
    cfg = dataclasses.replace(cfg, filter_rewards=True)
    np.testing.assert_array_equal(
        objective.useful(score, valid, cfg), [0, 1, 1, 1, 0, 0, 0, 0, 1, 1]
    )
    cfg = dataclasses.replace(cfg, max_episodes_per_iteration=20)
    np.testing.assert_array_equal(objective.useful(score, valid, cfg), [0] * 8 + [1, 1])


def test_wrong_names():
    with pytest.raises(
        ValueError, match="adv_type='reinforce' does not exist; choose one of: gae, grpo, rloo"
    ):
        page.Algorithm(adv_type="reinforce")
    with pytest.raises(
        ValueError, match="logprob_type='word' does not exist; choose one of: chunk, action, token"
    ):
        page.Algorithm(logprob_type="word")


# ---- guards: fields off their neutral value, counters -------------------------------------------


def by_hand(rows, params, anchor=None, **changes):
    """The objective over the sum of the weights, in numpy, with these fields of CFG replaced."""
    cfg = dataclasses.replace(CFG, **changes)
    log_prob, entropy, value, distance = log_prob_fn(params, rows.chain, rows.context, anchor)
    log_ratio = np.asarray(log_prob - rows.chain.log_prob, float).sum((1, 2))
    ratio = np.exp(log_ratio)
    inside = np.clip(ratio, 1 - cfg.clip_ratio_low, 1 + cfg.clip_ratio_high)
    policy = np.maximum(-rows.advantage * ratio, -rows.advantage * inside)
    if cfg.clip_ratio_c:
        policy = np.minimum(policy, cfg.clip_ratio_c * abs(rows.advantage))
    old = np.asarray(rows.chain.value, float)
    near = old + np.clip(np.asarray(value, float) - old, -cfg.value_clip, cfg.value_clip)
    errors = np.abs([rows.return_ - np.asarray(value), rows.return_ - near])
    delta = cfg.huber_delta
    critic = np.where(errors < delta, errors**2 / 2, delta * (errors - delta / 2)).max(0)
    total = policy - cfg.entropy_bonus * np.asarray(entropy) + cfg.value_coef * critic
    if anchor is not None:
        total = total + cfg.anchor_coef * np.asarray(distance)
    return (rows.weight * total).sum()


@pytest.mark.parametrize(
    "changes",
    [
        dict(value_coef=0.25),
        dict(value_coef=3.0),
        dict(value_clip=0.05),
        dict(huber_delta=0.3),
        dict(clip_ratio_low=0.05, clip_ratio_high=0.4),
        dict(clip_ratio_low=0.4, clip_ratio_high=0.05),
        dict(clip_ratio_c=1.2),
        dict(entropy_bonus=0.5),
        dict(anchor_coef=0.7),
    ],
    ids=str,
)
def test_each_coefficient_of_the_objective_by_hand(changes):
    rows = make_rows(24, drift=1.0)
    params = make_params(meshes.make_mesh(1, 1, jax.devices()[:1]))
    anchor = jax.tree.map(lambda x: 1.1 * x, params) if "anchor_coef" in changes else None
    cfg = dataclasses.replace(CFG, **changes)
    total, _ = objective.loss(log_prob_fn, cfg, params, rows, False, anchor)
    want = by_hand(rows, params, anchor, **changes)
    np.testing.assert_allclose(total, want, rtol=1e-4)
    assert abs(want - by_hand(rows, params, anchor)) > 1e-3 * abs(want), "the field has no effect"


def test_the_value_coefficient_scales_the_gradient_of_the_critic():
    """Nothing else has one here: advantage and entropy bonus are 0."""
    rows = make_rows(16)
    rows.advantage[:] = 0.0
    norms = {}
    for coefficient in (1.0, 0.25):
        changes = dict(value_coef=coefficient, entropy_bonus=0.0, update_epochs=1)
        _, metrics = run(1, 1, rows, dataclasses.replace(CFG, **changes))
        norms[coefficient] = metrics["actor/grad_norm"]
    np.testing.assert_allclose(norms[0.25], 0.25 * norms[1.0], rtol=1e-5)


def test_an_entropy_bonus_widens_the_policy():
    rows = make_rows(16)
    rows.advantage[:] = 0.0
    cfg = dataclasses.replace(CFG, entropy_bonus=0.1)
    state, _ = run(1, 1, rows, cfg)
    before = make_params(meshes.make_mesh(1, 1, jax.devices()[:1]))
    assert state.params["policy"]["log_std"] > before["policy"]["log_std"]


def test_target_kl_looks_at_the_last_epoch_alone():
    """The distance grows; the limit lies between the mean of the second epoch and that of both."""
    rows = make_rows(32, drift=0.0)
    once = dict(minibatch_size=32, microbatch_size=32)
    both = {}
    for epochs in (1, 2):
        cfg = dataclasses.replace(CFG, update_epochs=epochs, **once)
        both[epochs] = run(1, 1, rows, cfg)[1]["actor/approx_kl3"]
    last = 2 * both[2] - both[1]
    assert both[1] < 1e-6 < both[2] < 0.6 * last
    limit = (both[2] + last) / 2
    cfg = dataclasses.replace(CFG, update_epochs=4, target_kl=float(limit), **once)
    assert run(1, 1, rows, cfg)[1]["actor/epochs"] == 2


def two_iterations(cfg, optim=OPTIM):
    """Parameters before, after one and after two iterations of several updates; metrics of both."""
    mesh = meshes.make_mesh(1, 1, jax.devices()[:1])
    state = states.create(make_params(mesh), optim, trainable, mesh)
    updater = update.Updater(log_prob_fn, cfg, optim, trainable, mesh)
    params, history = [jax.device_get(state.params)], []
    for _ in range(2):
        state, metrics = at_once.learn(updater, state, make_rows(48), jax.random.key(0))
        params.append(jax.device_get(state.params))
        history.append(metrics)
    return params, history


def test_the_schedule_counts_iterations_and_not_updates():
    """Warm-up from 0: no update of the first iteration moves, all of the second have half of it."""
    optim = dataclasses.replace(OPTIM, warmup_steps=2)
    (before, first, second), history = two_iterations(CFG, optim)
    assert history[0]["actor/updates"] == 4
    assert [metrics["actor/lr"] for metrics in history] == [0.0, pytest.approx(OPTIM.lr / 2)]
    assert [metrics["actor/value_lr"] for metrics in history] == [
        0.0,
        pytest.approx(OPTIM.value_lr / 2),
    ]
    assert_same(first, before, rtol=0, atol=0)
    assert (second["policy"]["w"] != first["policy"]["w"]).any()


def test_the_critic_warmup_ends_after_its_iterations():
    cfg = dataclasses.replace(CFG, critic_warmup_iterations=1)
    optim = dataclasses.replace(OPTIM, weight_decay=0.0)  # which moves without a gradient, too
    (before, first, second), history = two_iterations(cfg, optim)
    assert_same(first["policy"], before["policy"], rtol=0, atol=0)
    assert (second["policy"]["w"] != first["policy"]["w"]).any()
    assert [metrics["actor/lr"] for metrics in history] == [0.0, pytest.approx(OPTIM.lr)]


def test_every_epoch_deals_the_rows_anew(monkeypatch):
    """And every key, of which an iteration has one of its own."""
    dealt, split = [], update.minibatch.split

    def recorded(*args, **kwargs):
        dealt.append(split(*args, **kwargs))
        return dealt[-1]

    monkeypatch.setattr(update.minibatch, "split", recorded)
    for key in (0, 1):
        run(1, 1, make_rows(40), key=key)
    orders = [tuple(index.reshape(-1)) for index, _ in dealt]
    assert len(orders) == 4 and len(set(orders)) == 4


def test_gamma_and_lambda_by_hand():
    """Two decisions of the second episode of make_rollout: values 0.1, 0.2, then reward 1."""
    cfg = page.Algorithm(gamma=0.5, gae_lambda=0.25, normalize_advantages=False)
    batch = objective.with_advantages(make_rollout(), cfg)
    last = 1 - 0.2
    first = 0.5 * 0.2 - 0.1 + 0.5 * 0.25 * last
    np.testing.assert_allclose(batch.advantage[3:], [first, last], atol=1e-6)
    np.testing.assert_allclose(batch.return_[3:], [first + 0.1, 1.0], atol=1e-6)


def test_bounds_of_the_reward_filter():
    """Groups of two with means 0.25, 0.5, 0.75."""
    score, valid = [0, 0.5, 0.5, 0.5, 0.5, 1], [True] * 6
    cfg = page.Algorithm(
        adv_type="grpo",
        group_size=2,
        filter_rewards=True,
        rewards_lower_bound=0.4,
        rewards_upper_bound=0.6,
    )
    np.testing.assert_array_equal(objective.useful(score, valid, cfg), [0, 0, 1, 1, 0, 0])


# ---- imitation of own successes --------------------------------------------------------------


def imitation_fn(params, actions_BHA, context, step, number):
    """A target that the step and the microbatch move, as drawn noise does."""
    moved_BHA = actions_BHA + 0.1 * step + 0.01 * number
    error_BHA = moved_BHA - (context @ params["policy"]["w"]).reshape(actions_BHA.shape)
    return (error_BHA**2).mean((1, 2))


def rows_to_imitate(num_rows):
    rows = make_rows(num_rows)
    actions = np.random.default_rng(3).normal(size=(num_rows, H, A)).astype(np.float32)
    return rows.replace(chain=rows.chain.replace(actions=actions))


def imitated(rows, cfg):
    mesh = meshes.make_mesh(1, 1, jax.devices()[:1])
    updater = update.Updater(
        log_prob_fn, cfg, OPTIM, trainable, mesh, normalizer=1.0, imitation_fn=imitation_fn
    )
    state = states.create(make_params(mesh), OPTIM, trainable, mesh)
    total = None
    size = cfg.microbatch_size
    for first in range(0, len(rows.weight), size):
        index = np.arange(first, first + size)
        batch = objective.put(objective.take(rows, index, np.ones(size, np.float32)), mesh)
        total, _ = updater.add(state, total, batch)
    return jax.device_get(total)


CLONE = page.Algorithm(loss="clone", adv_type="raw", minibatch_size=8, microbatch_size=4)


@pytest.mark.parametrize("coefficient", [0.0, 0.3])
def test_imitation_written_down(coefficient):
    """Alone, or beside PPO: sums over the rows that succeeded, each by its weight; whatever a row
    without weight holds reaches nothing."""
    rows = rows_to_imitate(8)
    weight = rows.weight * np.array([1, 0, 1, 1, 0, 1, 1, 1], np.float32)
    rows.chain.actions[weight == 0] = np.nan
    cfg = CLONE
    if coefficient:
        cfg = dataclasses.replace(
            CFG, clone_coef=coefficient, minibatch_size=8, microbatch_size=4, entropy_bonus=0.01
        )
    data = rows.replace(clone_weight=weight) if coefficient else rows.replace(weight=weight)
    sums = imitated(data, cfg)
    params = jax.device_get(make_params(meshes.make_mesh(1, 1, jax.devices()[:1])))

    def by_hand(w):
        total = 0.0
        for number in (0, 1):
            part = np.flatnonzero(weight[4 * number : 4 * number + 4] > 0) + 4 * number
            changed = params | {"policy": params["policy"] | {"w": w}}
            error_B = imitation_fn(changed, rows.chain.actions[part], rows.context[part], 0, number)
            total += (weight[part] * error_B).sum()
        return total

    value, gradient = jax.value_and_grad(by_hand)(params["policy"]["w"])
    if not coefficient:
        np.testing.assert_allclose(sums.weighted["loss"], value, rtol=1e-5)
        np.testing.assert_allclose(sums.grads["policy"]["w"], gradient, rtol=1e-4, atol=1e-5)
        assert sums.count == 6 and sums.microbatches == 2 and not sums.largest
        return
    np.testing.assert_allclose(sums.weighted["clone"], value, rtol=1e-5)
    plain = imitated(rows, dataclasses.replace(cfg, clone_coef=0.0))
    want = plain.grads["policy"]["w"] + coefficient * gradient
    np.testing.assert_allclose(sums.grads["policy"]["w"], want, rtol=1e-4, atol=1e-5)


def test_successes_are_what_is_imitated():
    """Two episodes, of 3 and 2 decisions; the second succeeds.  A lost one has no decision."""
    rollout = make_rollout()
    batch = objective.with_advantages(rollout, CLONE)
    assert not batch.weight[:3].any() and (batch.weight[3:] > 0).all()
    assert batch.clone_weight is None
    np.testing.assert_array_equal(batch.advantage, [0, 0, 0, 1, 1])
    batch = objective.with_advantages(rollout, page.Algorithm(clone_coef=0.5))
    assert (batch.weight > 0).all() and not batch.clone_weight[:3].any()
    np.testing.assert_array_equal(batch.clone_weight[3:], batch.weight[3:])
    # What stands in the grid after the end of an episode is no success.
    after = rollout.terminated_CE | ~rollout.valid_CE
    batch = objective.with_advantages(rollout.replace(terminated_CE=after), CLONE)
    assert not batch.weight[:3].any() and (batch.weight[3:] > 0).all()
    assert objective.with_advantages(
        rollout, dataclasses.replace(CLONE, trajectory_weighting=False)
    ).weight.tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("own", (0, 4))
def test_a_minibatch_of_replayed_rows_teaches_beside_ppo(own):
    """Rows of earlier rollouts alone, which PPO does not weigh: the mean error of the successes is
    imitated, as strong as beside the same rows of today.  By hand: the norm of its gradient."""
    rows = rows_to_imitate(8)
    replayed = np.arange(8) >= own
    cfg = dataclasses.replace(
        CFG, clone_coef=0.3, update_epochs=1, minibatch_size=8, microbatch_size=4
    )
    weight = np.where(replayed, 0, rows.weight).astype(np.float32)
    clone_weight = np.where(replayed, rows.weight, 0).astype(np.float32)
    data = rows.replace(
        advantage=np.zeros_like(rows.advantage), weight=weight, clone_weight=clone_weight
    )
    mesh = meshes.make_mesh(1, 1, jax.devices()[:1])
    updater = update.Updater(log_prob_fn, cfg, OPTIM, trainable, mesh, imitation_fn=imitation_fn)
    state = states.create(make_params(mesh), OPTIM, trainable, mesh)
    # In the order of the rows, so that the numbers of the microbatches are known.
    microbatches = list(update._microbatches(data, np.arange(8), np.ones(8, np.float32), 4, 1.0))
    state, metrics = updater.minibatch(state, microbatches)
    assert metrics["skipped"] == 0
    params = jax.device_get(make_params(mesh))

    def by_hand(w):
        changed = params | {"policy": params["policy"] | {"w": w}}
        error_B = [
            imitation_fn(changed, rows.chain.actions[part], rows.context[part], 0, number)
            for number, part in enumerate((slice(0, 4), slice(4, 8)))
        ]
        total = (clone_weight * jnp.concatenate(error_B)).sum()
        return total / (weight.sum() if own else clone_weight.sum())

    value, gradient = jax.value_and_grad(by_hand)(params["policy"]["w"])
    np.testing.assert_allclose(metrics["clone"], value, rtol=1e-5)
    if not own:  # else the critic has a gradient, too
        np.testing.assert_allclose(metrics["grad_norm"], 0.3 * np.linalg.norm(gradient), rtol=1e-4)
    assert (state.params["policy"]["w"] != params["policy"]["w"]).any()


def test_a_rollout_without_a_success_teaches_a_clone_nothing():
    rows = rows_to_imitate(8)
    mesh = meshes.make_mesh(1, 1, jax.devices()[:1])
    updater = update.Updater(log_prob_fn, CLONE, OPTIM, trainable, mesh, imitation_fn=imitation_fn)
    state = states.create(make_params(mesh), OPTIM, trainable, mesh)
    data = rows.replace(weight=np.zeros(8, np.float32))
    state, metrics = at_once.learn(updater, state, data, jax.random.key(0))
    assert metrics["actor/skipped_updates"] == metrics["actor/updates"] and state.iteration == 1
    assert metrics["actor/nonfinite_updates"] == 0 and "actor/ratio_max_dev" not in metrics
    params = jax.device_get(make_params(mesh))
    np.testing.assert_array_equal(state.params["policy"]["w"], params["policy"]["w"])
