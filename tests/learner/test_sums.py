"""Sums of gradients over several devices: what is exchanged, and that it stays one update."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from pirl_jax.core import mesh as meshes
from pirl_jax.learner import objective, update
from pirl_jax.learner import state as states
from pirl_jax.run import hlo, shapes
from tests import at_once
from tests.learner import test_update
from tests.run import exchanges

D = test_update.D
EVERYTHING = dataclasses.replace(
    test_update.CFG,
    update_epochs=1,
    minibatch_size=32,
    microbatch_size=16,
    anchor_coef=0.1,
    clone_coef=0.2,
    sft_loss_weight=0.3,
    ema_decay=0.5,
)


def imitation_fn(params, actions_BHA, context, step, number):
    """Noise is drawn for the rows of a microbatch, whatever devices they lie on."""
    key = jax.random.fold_in(jax.random.key(5), step + number)
    B, *chunk = actions_BHA.shape
    noise_BHA = meshes.drawn(lambda rows: jax.random.normal(key, (rows, *chunk)), B)
    guess_BHA = (context @ params["policy"]["w"]).reshape(actions_BHA.shape)
    return ((actions_BHA + noise_BHA - guess_BHA) ** 2).mean((1, 2))


def sft_loss(params, demonstrations, step):
    return ((demonstrations @ params["policy"]["w"] - 1.0) ** 2).mean()


def machinery(data, fsdp):
    mesh = meshes.make_mesh(data, fsdp, jax.devices()[: data * fsdp])
    updater = update.Updater(
        test_update.log_prob_fn,
        dataclasses.replace(EVERYTHING, microbatch_size=16 // mesh.size),
        test_update.OPTIM,
        test_update.trainable,
        mesh,
        sft_loss=sft_loss,
        imitation_fn=imitation_fn,
    )
    state = states.create(
        test_update.make_params(mesh),
        test_update.OPTIM,
        test_update.trainable,
        mesh,
        ema=True,
        anchor=True,
    )
    return mesh, updater, state


def rows_to_learn(count):
    rows = test_update.rows_to_imitate(count)
    succeeded = np.arange(count) % 3 > 0  # more on some devices than on others
    return rows.replace(clone_weight=rows.weight * succeeded)


def learn(data, fsdp, rows):
    _, updater, state = machinery(data, fsdp)
    target = np.ones((8, D), np.float32)
    outcome = at_once.learn(updater, state, rows, jax.random.key(0), itertools.repeat(target))
    return jax.device_get(outcome)


def test_every_term_is_the_same_on_several_devices():
    """Clipped loss, critic, entropy, anchor, clones with drawn noise, demonstrations, average, and
    all metrics: weighted, counted, largest, variance."""
    rows = rows_to_learn(40)
    one, metrics_one = learn(1, 1, rows)
    for data, fsdp in ((8, 1), (4, 2)):
        several, metrics = learn(data, fsdp, rows)
        test_update.assert_same(several.params, one.params, rtol=1e-5, atol=1e-6)
        test_update.assert_same(several.ema, one.ema, rtol=1e-5, atol=1e-6)
        test_update.assert_same(metrics, metrics_one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("data, fsdp", [(8, 1), (4, 2)])
def test_what_is_exchanged_along_data_does_not_depend_on_the_number_of_microbatches(data, fsdp):
    """A microbatch exchanges nothing there; a step reduces every gradient once, in float32."""
    mesh, updater, state = machinery(data, fsdp)
    batch = objective.put(rows_to_learn(16), mesh)
    programs = {}
    for name, lowered in updater.lower(state, batch).items():
        programs[name] = hlo.Program(lowered.compile().as_text())
    within = []
    for _, one in exchanges.collectives(programs["microbatch"]):
        within.append(not exchanges.along_data(one, fsdp))
    assert all(within) and bool(within) == (fsdp > 1)
    learned, _ = states.partition(state.params, test_update.trainable)
    kinds, reduced = exchanges.reduced_along_data(programs["step"], fsdp)
    metrics = 4 * 40  # numbers, at most
    assert kinds == {"f32"}
    assert shapes.size(learned) <= reduced <= shapes.size(learned) + metrics


def test_sums_of_a_place_are_as_large_as_what_trains():
    mesh, updater, state = machinery(4, 2)
    batch = objective.put(rows_to_learn(16), mesh)
    total, _ = updater.add(state, None, batch)
    learned, _ = states.partition(state.params, test_update.trainable)
    assert shapes.size(total.grads) == shapes.size(learned)
