"""Whole runs that learn with NFT: they learn, resume bit for bit, and play with their average."""

import shutil

import jax
import numpy as np
import pytest

from pirl_jax.core import mesh as meshes
from pirl_jax.monitor import log
from tests import test_train
from tests.run import test_hosts
from tests.test_train import one_device  # noqa: F401

OURS = {
    "algorithm__loss": "nft",
    "algorithm__adv_type": "rloo",
    "algorithm__group_size": 4,
    "model__add_value_head": False,
    "model__noise_steps": "all",
}
RESAMPLED = {
    "model__noise_steps": "one",
    "model__noise_method": "flow_ode",
    "nft__form": "mse",
    "nft__target": "x0",
    "nft__rows": "resample",
    "nft__reduction": "mean",
    "nft__weight_scale": (1.0, 0.2),
    "nft__label_clip": 0.5,
    "nft__max_drift": 0.0,
    "nft__tau": (1.0, 0.1, 0, 3),
}
AUTHORS = {
    "algorithm__adv_type": "raw",
    "algorithm__group_size": 1,
    "nft__drift_coef": 1e-4,
    "nft__tau": (0.9, 0.5, 0, 4),
    "nft__tau_curve": "cosine",
}
LEARNED = {"model__noise_method": "flow_noise", "nft__form": "mse", "nft__clip_ratio": 0.2}
ONE = {"nft__steps": "one"}
KINDS = {
    "ours": {},
    "resampled": RESAMPLED,
    "authors": AUTHORS,
    "learned noise": LEARNED,
    "one step": ONE,
}


def play(directory, num_iterations, *arguments, **fields):
    whole = dict(env__suite="probe_action", eval__baseline=False, run__save_every=2)
    whole |= OURS | fields
    return test_train.start(
        "probe.py", directory, *arguments, num_iterations=num_iterations, **whole
    )


def rows_of(run):
    return [row for row in log.read(run, timing=False) if "actor/loss" in row]


@pytest.mark.slow
def test_nft_learns(tmp_path):
    """The mean reward of the probe of the policy gradient goes from about 0 towards 1."""
    run = play(
        tmp_path,
        15,
        rollout__num_envs=32,
        rollout__episodes_per_iteration=64,
        algorithm__minibatch_size=32,
        algorithm__microbatch_size=32,
        algorithm__group_size=8,
    )
    rows = rows_of(run)
    return_ = [row["env/return"] for row in rows]
    assert abs(return_[0]) < 0.3 and np.mean(return_[-3:]) > 0.6, np.round(return_, 2)
    assert max(row["actor/first_delta_v"] for row in rows) < 1e-4
    assert all(row["actor/pref_acc"] > 0.5 for row in rows)
    assert not [name for name in rows[0] if name.startswith("critic/") or "ratio_" in name]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_resumes_bit_for_bit(tmp_path, kind):
    fields = KINDS[kind]
    whole = play(tmp_path / "whole", 4, **fields)
    half = play(tmp_path / "half", 2, **fields)
    play(half, 4, "--resume", "auto", **fields)
    assert log.read(half, timing=False) == log.read(whole, timing=False)
    state = test_train.saved(whole, 4)
    test_train.assert_equal_states(test_train.saved(half, 4), state)
    averages = any(name.startswith("ema/") for name in state)
    assert averages == ("nft__tau" in fields)
    assert all(row["actor/skipped_updates"] == 0 for row in rows_of(whole))
    assert ("rollout/moved" in rows_of(whole)[0]) == (kind != "resampled")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ("ours", "resampled"))
def test_where_prefixes_lie_and_how_many_devices_there_are(tmp_path, monkeypatch, kind):
    """Kept on the host, on the device, not at all; one device or four."""
    runs = {}
    for cache in ("host", "device", "recompute"):
        runs[cache] = play(tmp_path / cache, 2, rollout__prefix_cache=cache, **KINDS[kind])
    four = lambda *_: test_train.MAKE_MESH(2, 2, jax.devices()[:4])  # noqa: E731
    monkeypatch.setattr(meshes, "make_mesh", four)
    runs["four"] = play(tmp_path / "four", 2, **KINDS[kind])
    expected = rows_of(runs.pop("host"))
    assert rows_of(runs.pop("device")) == expected
    for name, run in runs.items():
        for row, like in zip(rows_of(run), expected, strict=True):
            assert row.keys() == like.keys()
            for metric in row:
                if metric == "actor/pref_acc":  # before any update the sign of rounding
                    continue
                np.testing.assert_allclose(
                    row[metric], like[metric], rtol=1e-2, atol=1e-3, err_msg=f"{name} {metric}"
                )


@pytest.mark.slow
def test_an_average_that_never_moves_plays_as_the_first_policy(tmp_path):
    """tau = 0: the policy learns, and what is played and evaluated stays."""
    run = play(tmp_path, 3, nft__tau=(0.0, 0.0, 0, 1))
    rows = rows_of(run)
    drift = [row["actor/delta_v_norm"] for row in rows]
    assert drift[0] < drift[1] < drift[2]
    state = test_train.saved(run, 3)
    moved = []
    for name in state:
        if name.startswith("ema/"):
            moved.append((state[name] != state[f"params/{name[4:]}"]).any())
    assert moved and any(moved)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ("ours", "resampled"))
def test_two_hosts_learn_as_one_and_resume(tmp_path, kind):
    fields = OURS | KINDS[kind] | {"num_iterations": 2, "env__suite": "probe_action"}
    test_hosts.finish(test_hosts.start(tmp_path / "two", 2, **fields), [0, 0])
    test_hosts.finish(test_hosts.start(tmp_path / "one", 1, **fields), [0])
    for row, expected in zip(rows_of(tmp_path / "two"), rows_of(tmp_path / "one"), strict=True):
        assert row.keys() == expected.keys()
        for name in row:
            # The sign of rounding, and samples of each host's own.
            if name != "actor/pref_acc" and not name.startswith("rollout/moved"):
                np.testing.assert_allclose(
                    row[name], expected[name], rtol=1e-3, atol=1e-5, err_msg=name
                )
    two, one = (test_train.saved(tmp_path / name, 2) for name in ("two", "one"))
    assert any(name.startswith("ema/") for name in one) == (kind == "resampled")
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-5, err_msg=name)
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "2")
    test_hosts.finish(test_hosts.start(tmp_path / "two", 2, "--resume", "auto", **fields), [0, 0])
    test_train.assert_equal_states(test_train.saved(tmp_path / "two", 2), two)
