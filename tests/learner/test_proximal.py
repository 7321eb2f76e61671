"""Rows that older parameters played, looked at again before an update."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from pirl_jax.core import mesh as meshes
from pirl_jax.core import rows, types
from pirl_jax.learner import in_parts, objective, proximal, update
from pirl_jax.learner import state as states
from pirl_jax.policy import flow
from tests import at_once
from tests.learner import test_update

NOW = 7  # the version that the update begins with
LENGTHS = (4, 1, 3, 4, 2, 4)
CFG = dataclasses.replace(test_update.CFG, microbatch_size=8, minibatch_size=16, update_epochs=1)
GROUPS = dataclasses.replace(CFG, adv_type="grpo", group_size=2)
ROW_FIELDS = ("log_prob", "value")


@functools.cache
def evaluate(mesh):
    def run(params, chain, context):
        log_prob_BIa, _, value_B, _ = test_update.log_prob_fn(params, chain, context)
        return log_prob_BIa, value_B

    return jax.jit(run, out_shardings=meshes.replicated(mesh))


@functools.cache
def parameters(mesh, factor=1.0):
    params = test_update.make_params(mesh)
    policy = {"w": factor * params["policy"]["w"], "log_std": params["policy"]["log_std"]}
    return params | {"policy": policy, "value_head": {"w": factor * params["value_head"]["w"]}}


def direct(params, rollout):
    log_prob_RIa, _, value_R, _ = test_update.log_prob_fn(params, rollout.chain, rollout.context)
    return np.asarray(log_prob_RIa), np.asarray(value_R)


def rollout(versions, mesh=None):
    """Rows of `versions` by turns; those of NOW are of today's parameters, the others of others."""
    mesh = mesh or meshes.make_mesh(1, 1, jax.devices()[:1])
    valid = np.arange(max(LENGTHS))[:, None] < np.array(LENGTHS)
    episode, decision = np.nonzero(valid.T)
    count = len(episode)
    made = test_update.make_rows(count, drift=0.0)
    version_R = np.resize(np.array(versions, np.int32), count)
    played = types.Rollout(
        context=made.context,
        chain=made.chain,
        decision_R=decision,
        episode_R=episode,
        reward_CE=np.random.default_rng(1).normal(size=valid.shape).astype(np.float32),
        value_CE=np.zeros(valid.shape, np.float32),
        next_value_CE=np.zeros(valid.shape, np.float32),
        terminated_CE=np.zeros(valid.shape, bool),
        truncated_CE=np.zeros(valid.shape, bool),
        valid_CE=valid,
        version_R=version_R,
    )
    log_prob, value = direct(parameters(mesh), played)
    old_log_prob, old_value = direct(parameters(mesh, 1.02), played)
    is_new = version_R == NOW
    value_R = np.where(is_new, value, old_value)
    log_prob_RIa = np.where(is_new[:, None, None], log_prob, old_log_prob)
    played.value_CE[decision, episode] = value_R
    played.next_value_CE[:-1] = played.value_CE[1:]
    # Of the observation after the last decision of an episode that ran into its time limit.
    played.next_value_CE[-1] = np.where(valid[-1], 0.5, 0.0)
    chain = made.chain.replace(log_prob=log_prob_RIa, value=value_R)
    return played.replace(chain=chain)


def catch_up(*args):
    return in_parts.drained(proximal.catching_up(*args))


def caught_up(played, cfg=CFG, mesh=None):
    mesh = mesh or meshes.make_mesh(1, 1, jax.devices()[:1])
    params = parameters(mesh)
    with jax.transfer_guard("disallow"):
        return catch_up(evaluate(mesh), params, played, NOW, cfg, mesh)


@pytest.mark.parametrize("level", ["chunk", "action", "token"])
def test_older_rows_are_those_of_the_newest_parameters(level):
    """Log-probs and values; what the policies differ by becomes a weight, and newer rows keep every
    bit."""
    cfg = dataclasses.replace(CFG, logprob_type=level, importance_cap=1.01)
    played = rollout([NOW - 2, NOW, NOW - 1])
    found, metrics = caught_up(played, cfg)
    mesh = meshes.make_mesh(1, 1, jax.devices()[:1])
    log_prob, value = direct(parameters(mesh), played)
    is_new = played.version_R == NOW
    for name, want in zip(ROW_FIELDS, (log_prob, value), strict=True):
        before = getattr(played.chain, name)
        after = getattr(found.chain, name)
        np.testing.assert_allclose(after, want, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(after[is_new], before[is_new])
        assert (after != before).any()
    axes = {"chunk": (1, 2), "action": (2,), "token": ()}[level]
    weight = np.exp(np.float64(found.chain.log_prob - played.chain.log_prob).sum(axes))
    masked = weight > 1.01
    np.testing.assert_allclose(found.chain.importance, np.where(masked, 0, weight), rtol=1e-5)
    np.testing.assert_array_equal(found.chain.importance[is_new], 1.0)
    assert 0 < metrics["async/importance_masked_share"] == masked.mean() < 1
    assert metrics["async/importance_max"] > 1.01 and 0 < metrics["async/ess"] < 1


def test_values_of_the_newest_parameters_reach_the_advantages():
    """Of older rows, and of decisions whose next observation is one; but for the last observation
    of an episode, which has no row."""
    played = rollout([NOW - 1, NOW, NOW - 2, NOW - 2])
    found, _ = caught_up(played)
    fresh = rollout([NOW])
    for name in ("value_CE", "next_value_CE"):
        want = np.where(played.valid_CE, getattr(fresh, name), getattr(played, name))
        np.testing.assert_allclose(getattr(found, name), want, rtol=1e-5, atol=1e-6)
    assert (found.next_value_CE[-1] == played.next_value_CE[-1]).all()
    want = objective.with_advantages(fresh, CFG)
    got = objective.with_advantages(found, CFG)
    np.testing.assert_allclose(got.advantage, want.advantage, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(got.chain.value, want.chain.value, rtol=1e-5, atol=1e-6)
    # The rollout itself is as it was: an interrupted update begins with it again.
    assert (played.chain.value != found.chain.value).any()


def never(*args):
    raise AssertionError("a pass over rows that need none")


@pytest.mark.parametrize(
    "changes",
    [dict(importance="behavior"), dict(loss="nft", adv_type="raw"), dict(loss="clone")],
    ids=str,
)
def test_where_the_loss_has_no_use_for_it_nothing_is_computed(changes):
    played = rollout([NOW - 1])
    cfg = dataclasses.replace(CFG, **changes)
    mesh = meshes.make_mesh(1, 1, jax.devices()[:1])
    found, metrics = catch_up(never, {}, played, NOW, cfg, mesh)
    assert found is played and not metrics


@pytest.mark.parametrize("cfg", [CFG, GROUPS], ids=["gae", "grpo"])
def test_a_rollout_of_the_newest_parameters_is_learned_to_the_bit(cfg):
    """No pass, weights of 1, and the update through the weighted loss is today's."""
    mesh = meshes.make_mesh(1, 1, jax.devices()[:1])
    played = rollout([NOW])
    fresh, metrics = catch_up(never, {}, played, NOW, cfg, mesh)
    np.testing.assert_array_equal(fresh.chain.importance, 1.0)
    assert metrics["async/importance_mean"] == metrics["async/ess"] == 1.0
    assert metrics["async/behavior_kl"] == metrics["async/importance_masked_share"] == 0.0
    want, want_metrics = learned(objective.with_advantages(played, cfg), cfg)
    got, got_metrics = learned(objective.with_advantages(fresh, cfg), cfg)
    test_update.assert_same(got, want, rtol=0, atol=0)
    assert got_metrics.pop("actor/kept") == 1.0
    assert got_metrics == want_metrics


@functools.cache
def updater_of(cfg, weighted):
    """A run has rows of one form."""
    del weighted
    mesh = meshes.make_mesh(1, 1, jax.devices()[:1])
    optim = test_update.OPTIM
    return update.Updater(test_update.log_prob_fn, cfg, optim, test_update.trainable, mesh)


def learned(data, cfg):
    updater = updater_of(cfg, data.chain.importance is not None)
    mesh = updater.mesh
    optim = test_update.OPTIM
    state = states.create(test_update.make_params(mesh), optim, test_update.trainable, mesh)
    key = jax.random.key(0)
    with jax.transfer_guard("disallow"):
        state, metrics = at_once.learn(updater, state, data, key)
    return jax.device_get(state), metrics


def test_rows_on_eight_devices_are_looked_at_where_they_lie():
    """As host rows; the devices hold unequally many of the older ones."""
    mesh = meshes.make_mesh(4, 2)
    played = rollout([NOW - 1, NOW, NOW], mesh)
    want, want_metrics = caught_up(played)
    count = len(played.context)
    buffer = rows.Buffer(mesh)
    buffer.clear(count)
    batch = np.resize(played.context, (count + -count % 8, test_update.D))
    context = buffer.write(meshes.put_batch(batch, mesh), np.arange(count))
    found, metrics = caught_up(played.replace(context=context), mesh=mesh)
    for name in (*ROW_FIELDS, "importance"):
        got = getattr(found.chain, name)
        np.testing.assert_allclose(got, getattr(want.chain, name), rtol=1e-5, atol=1e-6)
    assert metrics == pytest.approx(want_metrics, rel=1e-4)


# ---- the update with weights -------------------------------------------------------------------


def weighted_rows(importance):
    made = test_update.make_rows(len(importance), drift=0.5)
    return made.replace(chain=made.chain.replace(importance=np.float32(importance)))


def test_a_minibatch_is_a_mean_over_what_is_kept():
    """Over several microbatches, one of which has nothing left; the critic learns from all rows."""
    importance = np.array([0.5, 0, 1.5, 0, 1, 1, 1.9, 0.1, *[0] * 8], np.float32)
    data = weighted_rows(importance)
    _, metrics = learned(data, CFG)
    mesh = meshes.make_mesh(1, 1, jax.devices()[:1])
    log_prob, value = direct(parameters(mesh), data)
    u = np.exp(np.float64(log_prob - data.chain.log_prob).sum((1, 2)))
    loss = np.maximum(-data.advantage * u, -data.advantage * np.clip(u, 0.8, 1.2))
    kept = data.weight * (importance > 0)
    want = (kept * importance * loss).sum() / kept.sum()
    np.testing.assert_allclose(metrics["actor/loss"], want, rtol=1e-4)
    np.testing.assert_allclose(metrics["actor/kept"], (importance > 0).mean(), rtol=1e-6)
    near = data.chain.value + np.clip(value - data.chain.value, -CFG.value_clip, CFG.value_clip)
    errors = np.abs([data.return_ - value, data.return_ - near])
    critic = np.where(errors < 1, errors**2 / 2, errors - 0.5).max(0)
    want = (data.weight * critic).sum() / data.weight.sum()
    np.testing.assert_allclose(metrics["actor/value_loss"], want, rtol=1e-4)


def test_a_row_of_which_some_ratios_are_masked_weighs_as_much_less():
    data = weighted_rows(np.ones(16))
    importance = np.ones((16, test_update.H), np.float32)
    importance[:, 0] = 0.0
    importance[3] = 0.0
    data = data.replace(chain=data.chain.replace(importance=importance))
    index_MB = np.array([[0, 1, 2, 3], [4, 5, 6, 0]])
    keep_MB = np.array([[1, 1, 1, 1], [1, 1, 1, 0]], np.float32)
    weight = np.float64(data.weight)
    share = (test_update.H - 1) / test_update.H
    want = [weight[:4].sum() / (share * weight[:3].sum()), 1 / share]
    np.testing.assert_allclose(proximal.scales(data, index_MB, keep_MB), want)


def test_scales_are_those_of_all_hosts(monkeypatch):
    """The other host has as many rows, all of which are masked."""

    def gather(sums_2M):
        return [sums_2M, sums_2M * np.array([[1.0], [0.0]])]

    monkeypatch.setattr(meshes, "gather", gather)
    data = weighted_rows(np.ones(4))
    index_MB = np.arange(4)[None]
    np.testing.assert_allclose(proximal.scales(data, index_MB, np.ones((1, 4))), [2.0])


@pytest.mark.parametrize("cfg", [CFG, GROUPS], ids=["gae", "grpo"])
def test_an_update_all_of_whose_rows_are_masked_is_skipped(cfg):
    state, metrics = learned(weighted_rows(np.zeros(16)), cfg)
    before = jax.device_get(test_update.make_params(meshes.make_mesh(1, 1, jax.devices()[:1])))
    test_update.assert_same(state.params, before, rtol=0, atol=0)
    assert metrics["actor/skipped_updates"] == metrics["actor/updates"] == 1
    assert metrics["actor/kept"] == 0 and metrics["actor/nonfinite_updates"] == 0


# ---- the policy's own samplers ------------------------------------------------------------------

SAMPLERS = [
    dict(noise_steps="one"),
    dict(noise_steps="all", noise_level=0.3),
    dict(noise_steps="all", joint_mean=True),
    dict(noise_steps="last"),
    dict(noise_steps="all", noise_method="flow_noise"),
    dict(noise_steps="one", noise_method="flow_cps"),
]


@pytest.mark.parametrize("fields", SAMPLERS, ids=str)
def test_the_pass_says_what_the_sampler_said(sampled, fields):
    """Of rows that the same parameters played under another number: a weight of 1 and their own
    values up to rounding; of rows of other parameters, neither."""
    cfg, params, chain, prefix, _ = sampled(value_hidden=(8,), **fields)
    chain = jax.device_get(chain)
    mesh = meshes.make_mesh(1, 1, jax.devices()[:1])
    count = len(chain.log_prob)
    grid = np.zeros((count, 1), np.float32)
    played = types.Rollout(
        context=jax.device_get(prefix),
        chain=chain,
        decision_R=np.arange(count),
        episode_R=np.zeros(count, int),
        reward_CE=grid,
        value_CE=chain.value[:, None],
        next_value_CE=grid,
        terminated_CE=grid > 0,
        truncated_CE=grid > 0,
        valid_CE=grid == 0,
        version_R=np.full(count, NOW - 1, np.int32),
    )

    @jax.jit
    def score(params, chain, context):
        log_prob_BIa, _, value_B = flow.chain_log_prob(params, chain, context, cfg)
        return log_prob_BIa, value_B

    with jax.transfer_guard("allow"):
        same, metrics = catch_up(score, params, played, NOW, CFG, mesh)
        other = jax.tree.map(lambda x: 1.01 * x, params)
        _, moved = catch_up(score, other, played, NOW, CFG, mesh)
    np.testing.assert_allclose(same.chain.log_prob, chain.log_prob, atol=1e-4)
    np.testing.assert_allclose(same.chain.importance, 1.0, atol=2e-3)
    np.testing.assert_allclose(same.value_CE, played.value_CE, atol=1e-5)
    assert metrics["async/behavior_kl"] < 1e-5 < moved["async/behavior_kl"]
