"""The evaluation command repeats what a run measured, and its files say what was measured and how."""

import json
import pathlib

import jax
import numpy as np
import pytest

from configs import quickstart
from pirl_jax import build
from pirl_jax import config
from pirl_jax import evaluate
from pirl_jax import train
from pirl_jax.rollout import episodes

ROOT = pathlib.Path(__file__).parents[1]
NAMES = ("reach", "lift")


def results(record=False):
    frames = [np.zeros((16, 16, 3), np.uint8)] * 4 if record else None
    return [
        episodes.Result(episodes.Episode(1, 800), success=True, reward=1.0, num_steps=30, num_decisions=6, frames=frames),
        episodes.Result(episodes.Episode(0, 800), success=False, num_steps=50, num_decisions=10),
        episodes.Result(episodes.Episode(1, 801), success=False, num_steps=50, num_decisions=10),
    ]


def test_the_protocol_alternates_tasks_over_the_start_states():
    names = evaluate.protocol(quickstart.get_config(), (2, 0), 3)
    assert [(name.task, name.init_state) for name in names] == [(2, 800), (0, 800), (2, 801), (0, 801), (2, 802), (0, 802)]


def test_files_of_an_evaluation(tmp_path):
    settings = config.settings(quickstart.get_config())
    assert evaluate.read_successes(tmp_path) is None
    table = evaluate.write(tmp_path, settings, results(record=True), NAMES, "SFT")
    assert table["rows"]["SFT"]["total"]["successes"] == 1
    assert evaluate.read_successes(tmp_path) == {"reach": (0, 1), "lift": (1, 2)} == evaluate.successes(results(), NAMES)
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["episodes"][0] == {"task": 1, "init_state": 800, "success": True, "steps": 30}
    assert written["protocol"]["init_states"] == [800, 1000] and written["protocol"]["suite"] == "tabletop"
    assert (tmp_path / "episodes.mp4").stat().st_size > 0


def test_the_command_repeats_the_last_evaluation_of_the_run(tmp_path, monkeypatch, capsys):
    """Tabletop with random weights: the same seed gives the same actions, so the same episodes to the last control step."""
    whole = build.meshes.make_mesh
    monkeypatch.setattr(build.meshes, "make_mesh", lambda *args: whole(*args, jax.devices()[:1]))
    run = tmp_path / "run"
    fields = {
        "num_iterations": 1, "model.size": "tiny", "model.image_size_px": 16, "env.image_size_px": 16, "sft.demonstrations": 0,
        "model.norm_stats": "identity", "rollout.num_envs": 8, "rollout.episodes_per_iteration": 8, "env.num_workers": 2,
        "algorithm.minibatch_size": 16, "algorithm.microbatch_size": 16, "algorithm.update_epochs": 1,
        "eval.episodes_per_task": 4, "eval.num_videos": 1, "eval.baseline": False, "run.directory": run, "run.compilation_cache": "",
    }  # fmt: skip
    arguments = ["--config", str(ROOT / "configs/quickstart.py"), *(f"--config.{name}={value}" for name, value in fields.items())]
    train.main(["train", *arguments])
    capsys.readouterr()
    evaluate.main(["evaluate", *arguments, "--checkpoint", str(run / "checkpoints")])
    said = capsys.readouterr().out
    ours, theirs = (json.loads((run / folder / "evaluation.json").read_text()) for folder in ("evaluation", "evaluation/after"))
    assert ours["episodes"] == theirs["episodes"] and ours["protocol"] == theirs["protocol"]
    assert (run / "evaluation/episodes.mp4").read_bytes() == (run / "evaluation/after/episodes.mp4").read_bytes()
    assert "lift the red cube" in said and str(run / "evaluation") in said
    with pytest.raises(SystemExit):
        evaluate.main(["evaluate", *arguments, "--checkpoint", str(run), "--iteration=7"])
    assert "holds no checkpoint of iteration 7; it holds [0, 1]" in capsys.readouterr().err
