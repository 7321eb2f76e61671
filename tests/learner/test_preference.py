"""NFT as a part of the objective and of an update: a linear policy whose energies are the real
ones."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pirl_jax.core import mesh as meshes
from pirl_jax.core import page, rng, types
from pirl_jax.learner import objective, preference, update
from pirl_jax.learner import state as states
from pirl_jax.policy import flow, mirror
from pirl_jax.rl import nft
from tests import at_once

H, A, D = 3, 2, 8
POLICY = flow.Policy(
    None,
    page.Model(num_steps=4, noise_level=0.5, action_chunk=H, action_env_dim=A, action_dim=8),
)
OPTIM = page.Optim(lr=1e-2)
CFG = page.Algorithm(
    loss="nft", adv_type="rloo", update_epochs=2, minibatch_size=32, microbatch_size=16
)
LAGGING = page.Nft(tau=(0.4, 0.1, 0, 2))


def velocity(params, context):
    return (context @ params["policy"]["w"]).reshape(-1, H, A)


def energies(params, chain, context, anchor=None, options=None):
    pair = mirror.mirrored([velocity(params, context)], chain, POLICY, options)
    return pair, jnp.zeros(len(context)), jnp.zeros(len(context)), 0.0


def trainable(path):
    return True


def make_params(mesh):
    draw = np.random.default_rng(0)
    params = {"policy": {"w": 0.3 * draw.normal(size=(D, H * A)).astype(np.float32)}}
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    return jax.device_put(params, split)


def make_rows(num_rows):
    """Rows that make_params has played."""
    draw = np.random.default_rng(1)

    def normal(*shape):
        return draw.normal(size=shape).astype(np.float32)

    context = normal(num_rows, D)
    params = jax.device_get(make_params(meshes.make_mesh(1, 1, jax.local_devices()[:1])))
    chain = types.Chain(
        x=normal(num_rows, 1, H, A),
        x_next=normal(num_rows, 1, H, A),
        j=draw.integers(0, 4, (num_rows, 1)).astype(np.int32),
        level=np.full(num_rows, 0.5, np.float32),
        log_prob=np.zeros((num_rows, H, A), np.float32),
        value=np.zeros(num_rows, np.float32),
        velocity=np.asarray(velocity(params, context))[:, None],
    )
    advantage = draw.uniform(-1, 1, num_rows).astype(np.float32)
    weight = draw.uniform(0.5, 2.0, num_rows).astype(np.float32)
    return objective.Minibatch(context, chain, advantage, normal(num_rows), weight)


@functools.cache
def machinery(data, fsdp, options):
    mesh = meshes.make_mesh(data, fsdp, jax.devices()[: data * fsdp])
    policy = functools.partial(energies, options=options)
    cfg = dataclasses.replace(CFG, microbatch_size=CFG.microbatch_size // mesh.size)
    return mesh, update.Updater(policy, cfg, OPTIM, trainable, mesh, nft=options)


def fresh(mesh, options):
    return states.create(make_params(mesh), OPTIM, trainable, mesh, ema=options.averages)


def learn(updater, state, rows, iteration=0):
    key = jax.random.key(iteration)
    with jax.transfer_guard("disallow"):
        return at_once.learn(updater, state, rows, key)


def run(data, fsdp, rows, options):
    mesh, updater = machinery(data, fsdp, options)
    state, metrics = learn(updater, fresh(mesh, options), rows)
    return jax.device_get(state), metrics


def assert_same(one, other, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), one, other)


def test_terms_by_hand():
    """Two rows of one action and one that does not exist."""
    column = np.array([[[1.0]], [[3.0]], [[np.nan]]])
    pair = mirror.Mirrored(
        e_pos=column,
        e_neg=2 * column,
        held_pos=column,
        held_neg=2 * column,
        is_held=np.array([[[True]], [[False]], [[True]]]),
        drift=0.2 * column,
        squared_drift=0.5 * column,
        z_squared=4 * column,
        kl=0.25 * column,
    )
    advantage = np.array([1.0, -0.1, np.nan])
    weight = np.array([1.0, 2.0, 0.0])
    options = page.Nft(form="mse", beta=0.5, label_clip=0.4, drift_coef=0.1)
    loss, metrics, largest = preference.terms(CFG, options, pair, advantage, weight)
    label = np.array([1.0, 0.375])  # (clip(A, 0.4) + 0.4) / 0.8
    energy = label * [1, 3] + (1 - label) * [2, 6]
    want = 0.4 / 0.5 * energy + 0.1 * 0.5 * np.array([1, 3])
    np.testing.assert_allclose(loss, want @ weight[:2], rtol=1e-6)
    assert largest["delta_v"] == pytest.approx(0.6) and metrics["clip_frac"] == 0.5
    assert metrics["delta_v_norm"] == pytest.approx(0.4) and metrics["z_squared"] == 8
    assert metrics["approx_kl"] == metrics["approx_kl3"] == 0.5
    raw = dataclasses.replace(CFG, adv_type="raw")
    np.testing.assert_array_equal(
        preference.labels(raw, options, np.array([0.0, 1.0, 0.7, 3.0])), [0.0, 1.0, 0.7, 1.0]
    )


@pytest.mark.parametrize("options", (page.Nft(), LAGGING), ids=("itself", "average"))
def test_four_devices_learn_as_one(options):
    rows = make_rows(77)
    one, metrics_one = run(1, 1, rows, options)
    four, metrics_four = run(2, 2, rows, options)
    assert_same(four.params, one.params, rtol=1e-5, atol=1e-6)
    assert_same(four.ema, one.ema, rtol=1e-5, atol=1e-6)
    assert_same(metrics_four, metrics_one, rtol=1e-3, atol=1e-5)
    assert (one.ema is None) == (not options.averages)


def test_the_first_update_starts_at_the_policy_that_played():
    """|delta| is rounding, the first loss log 2; after updates neither is."""
    rows = make_rows(32)
    _, metrics = run(1, 1, rows, page.Nft())
    assert metrics["actor/first_delta_v"] < 1e-6 < metrics["actor/delta_v"]
    mesh, updater = machinery(1, 1, page.Nft())
    whole = dataclasses.replace(CFG, update_epochs=1)
    updater = update.Updater(updater._log_prob_fn, whole, OPTIM, trainable, mesh, nft=page.Nft())
    _, first = learn(updater, fresh(mesh, page.Nft()), rows)
    np.testing.assert_allclose(first["actor/loss"], np.log(2), rtol=1e-5)
    assert metrics["actor/loss"] < first["actor/loss"]
    second = 2 * metrics["actor/pref_acc"] - first["actor/pref_acc"]
    assert second > 0.5


def test_the_average_follows_once_an_iteration():
    """average += tau (policy - average), tau of the iteration; the policy is not touched by it."""
    rows = make_rows(64)
    mesh, updater = machinery(1, 1, LAGGING)
    state = fresh(mesh, LAGGING)
    average = jax.device_get(state.params)
    for iteration in range(3):
        state, metrics = learn(updater, state, rows, iteration)
        tau = float(nft.share(LAGGING.tau, "linear", iteration))
        assert metrics["actor/nft_tau"] == pytest.approx(tau)
        learned = jax.device_get(state.params)
        average = jax.tree.map(lambda a, p, tau=tau: (1 - tau) * a + tau * p, average, learned)
        assert_same(jax.device_get(state.ema), average, rtol=1e-5, atol=1e-7)
        # The policy is not where it played from, so this says nothing about agreement.
        assert "actor/first_delta_v" not in metrics
    assert_same(jax.device_get(states.acting_params(state)), average, rtol=1e-5, atol=1e-7)
    assert np.abs(average["policy"]["w"] - learned["policy"]["w"]).max() > 1e-3


def with_steps(rows, steps):
    """The same rows with more stochastic steps, each with numbers of its own."""
    draw = np.random.default_rng(5)
    count = len(rows.weight)

    def normal():
        return draw.normal(size=(count, steps, H, A)).astype(np.float32)

    j = np.broadcast_to(np.arange(steps, dtype=np.int32), (count, steps)).copy()
    velocity = np.repeat(rows.chain.velocity, steps, 1)
    chain = rows.chain.replace(x=normal(), x_next=normal(), j=j, velocity=velocity, std=normal())
    return rows.replace(chain=chain)


def test_one_step_of_each_row_is_taken_whole():
    chain = with_steps(make_rows(50), 4).chain
    generator = np.random.default_rng(7)
    taken = preference.drawn(chain, generator)
    number = taken.j[:, 0]
    assert set(number) == {0, 1, 2, 3} and taken.j.shape == (50, 1)
    for name in ("x", "x_next", "velocity", "std"):
        whole = getattr(chain, name)
        want = np.stack([whole[b, u] for b, u in enumerate(number)])[:, None]
        np.testing.assert_array_equal(getattr(taken, name), want, err_msg=name)
    np.testing.assert_array_equal(taken.level, chain.level)
    assert (preference.drawn(chain, generator).j != taken.j).any(), "anew for the next epoch"


def test_an_epoch_learns_from_the_steps_that_are_drawn_for_it():
    """Bit for bit what it learns from chains of these steps alone; the shuffling is the same."""
    rows = with_steps(make_rows(48), 3)
    rows = rows.replace(chain=rows.chain.replace(std=None))
    options = page.Nft(steps="one")
    mesh, updater = machinery(1, 1, options)
    key = jax.random.key(4)
    whole, metrics = at_once.learn(updater, fresh(mesh, options), rows, key)
    assert updater.draws_steps and metrics["actor/epochs"] == 2
    seen = []
    generator = rng.generator(rng.named(key, "steps"))
    for _ in range(CFG.update_epochs):
        seen.append(preference.drawn(rows.chain, generator))
    assert (seen[0].j != seen[1].j).any()
    _, of_one = machinery(1, 1, page.Nft())
    once = dataclasses.replace(CFG, update_epochs=1)
    single = update.Updater(
        of_one._log_prob_fn, once, OPTIM, trainable, mesh, nft=dataclasses.replace(options)
    )
    first, _ = at_once.learn(single, fresh(mesh, options), rows, key)
    plain = update.Updater(of_one._log_prob_fn, once, OPTIM, trainable, mesh, nft=page.Nft())
    same, _ = at_once.learn(plain, fresh(mesh, options), rows.replace(chain=seen[0]), key)
    jax.tree.map(
        np.testing.assert_array_equal, jax.device_get(first.params), jax.device_get(same.params)
    )
    assert (jax.device_get(whole.params)["policy"]["w"] != first.params["policy"]["w"]).any()


@pytest.mark.parametrize("form", ("dpo", "mse"))
def test_rows_without_a_preference_change_nothing(form):
    """Every label 1/2: a loss, and no gradient that Adam would blow up, nor do weights decay."""
    rows = make_rows(32)
    rows = rows.replace(advantage=np.zeros_like(rows.advantage))
    options = page.Nft(form=form)
    mesh, updater = machinery(1, 1, options)
    state = fresh(mesh, options)
    before = jax.device_get(state.params)
    state, metrics = learn(updater, state, rows)
    assert metrics["actor/skipped_updates"] == metrics["actor/updates"] > 0
    assert metrics["actor/loss"] > 0
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), before)
