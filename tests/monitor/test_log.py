import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest

from pirl_jax.monitor import log

CONFIG = {"suite": "tabletop", "learner": {"lr": 0.1, "betas": (0.9, 0.95)}}


def test_rows_are_numbers_by_iteration(tmp_path):
    run = log.RunDir(tmp_path, CONFIG)
    loss = jnp.float32(0.1)
    with jax.transfer_guard("disallow"):
        row = run.write(0, {"actor/loss": loss, "time/env": 1.5})
    run.write(0, {"eval/success_once": 1})
    run.close()
    assert row == {"actor/loss": float(jnp.float32(0.1)), "time/env": 1.5}
    assert log.read(tmp_path, timing=False) == [
        {"iteration": 0, "actor/loss": float(jnp.float32(0.1))},
        {"iteration": 0, "eval/success_once": 1.0},
    ]


def test_resume_leaves_no_iteration_twice_and_survives_a_half_written_line(tmp_path):
    def play(first, last, directory):
        run = log.RunDir(directory, CONFIG, resume_at=first or None)
        for iteration in range(first, last):
            metrics = {
                "actor/loss": 1.0 / (iteration + 1),
                "actor/kl": float("nan"),
                "time/env": first + 0.5,
            }
            run.write(iteration, metrics)
        run.close()

    play(0, 4, tmp_path / "whole")
    play(0, 3, tmp_path / "parts")
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 3, "actor/lo')
    play(2, 4, tmp_path / "parts")
    parts = log.read(tmp_path / "parts", timing=False)
    assert parts == log.read(tmp_path / "whole", timing=False)
    assert [row["iteration"] for row in parts] == [0, 1, 2, 3]
    assert parts[0]["actor/kl"] == "nan"  # JSON has no NaN; a string compares with ==


def test_a_standing_run_is_never_overwritten(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "checkpoints" / "foo").mkdir(parents=True)  # nothing to lose
    run = log.RunDir(tmp_path, CONFIG)
    run.write(0, {"actor/loss": 1.0})
    run.close()
    assert run.changed == []
    with pytest.raises(ValueError, match="already holds a run; continue it with --resume auto"):
        log.RunDir(tmp_path, CONFIG)
    with pytest.raises(ValueError, match="holds no run to continue"):
        log.RunDir(tmp_path / "typo", CONFIG, resume_at=3)


def test_a_run_killed_before_its_first_checkpoint_starts_over(tmp_path):
    run = log.RunDir(tmp_path, CONFIG)
    run.write(0, {"actor/loss": 1.0})
    run.close()
    log.RunDir(tmp_path, CONFIG, resume_at=0).close()
    assert log.read(tmp_path) == []


def test_a_changed_configuration_is_named_and_the_old_one_kept(tmp_path):
    log.RunDir(tmp_path, CONFIG).close()
    run = log.RunDir(tmp_path, CONFIG | {"learner": {"lr": 0.2, "betas": (0.9, 0.95)}}, resume_at=5)
    run.close()
    assert run.changed == ["learner.lr: 0.1 -> 0.2"]
    assert json.loads((tmp_path / "config_before_5.json").read_text())["learner"]["lr"] == 0.1
    assert json.loads((tmp_path / "config.json").read_text())["learner"]["lr"] == 0.2


def test_environment_names_revision_versions_and_devices(tmp_path):
    log.RunDir(tmp_path, CONFIG).close()
    (start,) = json.loads((tmp_path / "environment.json").read_text())
    assert start["packages"]["mujoco"] and start["packages"]["jax"] == jax.__version__
    assert start["devices"][0] == "cpu:cpu"
    assert log.git_revision(tmp_path) is None


def test_tensorboard_holds_the_same_numbers(tmp_path):
    run = log.RunDir(tmp_path, CONFIG)
    run.write(3, {"env/return": 0.75})
    run.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"env/return" in events.read_bytes()


def test_tensorboard_can_be_left_out(tmp_path):
    run = log.RunDir(tmp_path, CONFIG, tensorboard=False)
    run.write(0, {"env/return": 0.75})
    run.close()
    assert not (tmp_path / "tensorboard").exists()


def test_names_without_group_are_refused(tmp_path):
    run = log.RunDir(tmp_path, CONFIG)
    with pytest.raises(ValueError, match="no group: kl, loss"):
        run.write(0, {"loss": 1.0, "kl": 1.0, "a/b": 1.0})
    run.close()


def test_wandb_asked_for_but_absent_is_a_sentence(tmp_path):
    if importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed here")
    with pytest.raises(ValueError, match="pip install wandb"):
        log.RunDir(tmp_path, CONFIG, wandb=True)
