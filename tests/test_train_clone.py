"""Whole runs that imitate their own successes: with every family of models, and what becomes of
their checkpoints."""

import types

import numpy as np
import pytest

from pirl_jax import evaluate, serve
from pirl_jax.core import mesh as meshes
from pirl_jax.monitor import log
from pirl_jax.run import config, recipes, records
from pirl_jax.serving import requests
from tests import test_serve, test_train
from tests.test_train import one_device  # noqa: F401

BESIDE = {"algorithm__clone_coef": 0.5, "algorithm__clone_rollouts": 0, "eval__every": 0}
FAMILIES = {
    "pi05": {"model__pi05": True},
    "lora": {"model__is_lora": True, "model__train_expert_only": False},
}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_successes_are_imitated_beside_ppo(tmp_path, family):
    """Of this rollout and, in the second iteration, of the one before; it resumes bit for bit."""
    fields = BESIDE | FAMILIES[family] | {"run__save_every": 1}
    run = test_train.probe(tmp_path / "whole", 2, **fields)
    rows = [row for row in log.read(run, timing=False) if "actor/clone" in row]
    assert [row["actor/clone"] > 0 for row in rows] == [True, True]
    assert all(row["actor/skipped_updates"] == 0 for row in rows)
    after = test_train.saved(run, 2)
    half = test_train.probe(tmp_path / "half", 1, **fields)
    before = test_train.saved(half, 1)
    moved = [name for name in before if (before[name] != after[name]).any()]
    of_vlm = [name for name in moved if name.startswith("params/PaliGemma") and "_1/" not in name]
    assert any(name.startswith("params/") for name in moved)
    assert any("lora" in name for name in of_vlm) == (family == "lora")
    test_train.probe(half, 2, "--resume", "auto", **fields)
    test_train.assert_equal_states(test_train.saved(half, 2), after)


@pytest.mark.slow
def test_a_clone_is_evaluated_and_served(tmp_path, monkeypatch):
    """The command repeats the last evaluation of the run; a server gives finite actions that differ
    between observations."""
    run = test_train.probe(tmp_path / "run", 1, **test_train.CLONE)
    output = tmp_path / "again"
    evaluate.main(["evaluate", "--checkpoint", str(run), "--output", str(output)])
    again = records.evaluation(output)
    assert again.episodes == records.evaluation(run / "evaluation" / "after").episodes
    assert again.policy["checkpoint"]
    monkeypatch.setattr(meshes, "make_mesh", test_train.MAKE_MESH)  # a server names its device
    settings = config.settings(recipes.load_run(run))
    values = types.SimpleNamespace(checkpoint=str(run), iteration=-1, max_batch=2)
    engine, _ = serve.prepare(values, settings)
    engine.compile()
    rows = [requests.read(test_serve.observation(k), engine.actor.transform, 0) for k in (1, 2)]
    one, other = (answer["actions"] for answer in engine(rows))
    assert np.isfinite([one, other]).all() and (one != other).any()
