"""Runs whose roles lie on devices of their own: what they learn is what a shared run learns."""

import pathlib
import re

import jax
import pytest

from pirl_jax import train
from pirl_jax.core import mesh as meshes
from pirl_jax.envs import probes
from pirl_jax.monitor import log
from pirl_jax.run import config, devices, recipes, shapes

ROOT = pathlib.Path(__file__).parents[2]
PUBLISHED = {
    "hybrid": {"env": "0-3", "rollout": "4-7", "actor": "all"},
    "shared": {"env": "all", "rollout": "all", "actor": "all"},
    "separate": {"env": "0-1", "rollout": "2-5", "actor": "6-7"},
}
FIELDS = {
    "num_iterations": 2,
    "env.suite": "probe_delayed",
    "rollout.num_envs": 16,
    "rollout.lockstep": True,
    "rollout.episodes_per_iteration": 16,
    "algorithm.minibatch_size": 16,
    "algorithm.microbatch_size": 8,
    "eval.baseline": False,
    "run.save_every": 2,
    "run.compilation_cache": "",
}
COLLECTIVE = re.compile(
    r"(all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)(-start)?\("
)
# Sums over the rows of a minibatch are those of eight devices, or of two: another order.
ROUNDING = 1e-2
OF_PLAYERS = ("rollout/advantages", "rollout/returns", "rollout/values")


def arguments(placement, **fields):
    fields = FIELDS | {name.replace("__", "."): value for name, value in fields.items()}
    fields |= {f"placement.{role}": ranges for role, ranges in placement.items()}
    return [f"--config.{name}={value}" for name, value in fields.items()]


def rows_of_a_run(directory, placement, **fields):
    flags = arguments(placement, run__directory=directory, **fields)
    train.main(["train", "--config", str(ROOT / "configs" / "probe.py"), *flags])
    return log.read(directory, timing=False)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return rows_of_a_run(tmp_path_factory.mktemp("shared"), PUBLISHED["shared"])


def assert_alike(rows, expected, exact_at_first=()):
    """Episodes exactly, the rest up to rounding; some of it exactly in the first iteration."""
    for row, like in zip(rows, expected, strict=True):
        assert row.keys() == like.keys()
        for name in row:
            exact = name.startswith(("env/", "eval/"))
            exact |= not row["iteration"] and name.startswith(exact_at_first)
            allowed = pytest.approx(like[name], rel=ROUNDING, abs=1e-4)
            assert row[name] == (like[name] if exact else allowed), name


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory):
    return rows_of_a_run(tmp_path_factory.mktemp("hybrid"), PUBLISHED["hybrid"])


@pytest.mark.slow
def test_a_hybrid_layout_learns_what_shared_devices_learn(shared, hybrid):
    assert_alike(hybrid, shared)


@pytest.mark.slow
def test_a_separate_layout_learns_what_shared_devices_learn(shared, tmp_path):
    assert_alike(rows_of_a_run(tmp_path, PUBLISHED["separate"]), shared)


@pytest.mark.slow
def test_players_are_the_same_whoever_learns(shared, hybrid, tmp_path):
    """Four devices play with a view of what eight learn as with a copy of what two learn, bit for
    bit until their updates have rounded otherwise; prefixes that stay with them are the same."""
    few = {"rollout": "4-7", "actor": "6-7"}
    host = rows_of_a_run(tmp_path / "host", few)
    assert_alike(host, shared)
    assert_alike(host, hybrid, OF_PLAYERS)
    assert rows_of_a_run(tmp_path / "device", few, rollout__prefix_cache="device") == host


def settings_of(placement, **fields):
    page = recipes.load_recipe(str(ROOT / "configs" / "probe.py"))
    for name, value in (FIELDS | fields).items():
        section, _, field = name.rpartition(".")
        (page[section] if section else page)[field] = value
    page.placement.update(placement)
    return config.settings(page)


@pytest.mark.parametrize(
    "placement, fsdp",
    [
        ({"rollout": "4-7"}, 1),
        ({"rollout": "4-7"}, 8),
        ({"rollout": "2-5", "actor": "6-7"}, 2),
        ({}, 8),
    ],
)
def test_no_device_waits_for_another_to_decide(placement, fsdp, monkeypatch):
    """Hosts of four devices: eight that share weights lie on both."""
    monkeypatch.setattr(meshes, "spans_hosts", lambda mesh: mesh.shape["fsdp"] > 4)
    settings = settings_of(placement, **{"mesh.fsdp": fsdp})
    mesh = devices.mesh(settings)
    params, _ = shapes.state(settings, mesh)
    args, _ = shapes.decision(settings, mesh, 16, probes.make("delayed").spec, params)
    plays = set(devices.playing(settings, mesh).devices.flat)
    assert {d for x in jax.tree.leaves(args) for d in x.sharding.device_set} == plays
    text = shapes.rollout(settings, mesh, args).compile().as_text()
    assert "fusion" in text and not COLLECTIVE.search(text)


def test_split_parameters_of_the_players_would_be_exchanged():
    """So the test above can fail."""
    settings = settings_of({"rollout": "4-7"}, **{"mesh.fsdp": 2})
    mesh = devices.mesh(settings)
    assert devices.playing(settings, mesh) == meshes.make_mesh(2, 2, jax.devices()[4:])
    params, _ = shapes.state(settings, mesh)
    args, _ = shapes.decision(settings, mesh, 16, probes.make("delayed").spec, params)
    assert COLLECTIVE.search(shapes.rollout(settings, mesh, args).compile().as_text())
