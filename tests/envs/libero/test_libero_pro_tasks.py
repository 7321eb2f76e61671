"""LIBERO-PRO played: start states that throw an object, and the command over its suites."""

import pytest

from pirl_jax import evaluate
from pirl_jax.envs.libero import files
from pirl_jax.envs.libero import simulator as simulators

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

# (suite, task, start state) -> what a measurement over twenty more steps says
THROWN = {
    ("libero_spatial_task", 2, 21): True,  # across the table
    ("libero_spatial_lan", 0, 9): True,
    ("libero_spatial_lan", 0, 0): True,  # at rest again, 7 cm aside
    ("libero_spatial_lan", 1, 9): False,
    ("libero_spatial", 5, 7): False,  # falls 16 cm, straight down
}


def test_start_states_that_throw_an_object_are_flagged(libero_assets, libero_pro):
    found = {}
    for name, task, init_state in THROWN:
        setup = simulators.Setup(
            name, task, libero_assets, 10, seed=0, folders=files.Folders(pro=libero_pro)
        )
        simulator = simulators.Simulator(setup)
        simulator.start(init_state)
        found[name, task, init_state] = simulator.thrown
        # It is of the episode, not of the simulator.
        kept = simulator.snapshot()
        simulator.thrown = not kept.thrown
        simulator.restore(kept)
        assert simulator.thrown == kept.thrown
        simulator.close()
    assert found == THROWN


def test_the_command_plays_a_suite_and_its_perturbations(
    tmp_path, libero_assets, libero_pro, capsys, monkeypatch
):
    """Two start states of one task of each; again, it plays nothing, and tells the same."""
    monkeypatch.setenv("PIRL_LIBERO_PRO", str(libero_pro))
    fields = {
        "env.suite": "libero_object",
        "env.tasks": "3",
        "env.assets": libero_assets,
        "env.image_size_px": 32,
        "env.num_workers": 1,
        "env.render_quality": "light",
        "env.max_episode_steps": 5,
        "env.timeout_s": 300.0,
        "rollout.num_envs": 2,
        "eval.episodes_per_task": 2,
        "eval.num_videos": 0,
    }
    command = [
        "evaluate",
        "--config=libero_object_ppo_pi0",
        "--policy=random",
        "--pro=all",
        f"--output={tmp_path}",
    ]
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    evaluate.main(command)
    said = capsys.readouterr().out
    for name in files.PRO_DIMENSIONS:
        (line,) = [
            line
            for line in said.splitlines()
            if line.startswith(f"libero_object_{name} ") and "pairs" in line
        ]
        assert "0/2" in line and "2 pairs" in line
    played = (tmp_path / "episodes.jsonl").read_bytes()
    assert played.count(b"\n") == 11
    table = (tmp_path / "table.txt").read_text()
    evaluate.main(command)
    assert "10 of 10 episodes are in" in capsys.readouterr().out
    assert (tmp_path / "episodes.jsonl").read_bytes() == played
    assert (tmp_path / "table.txt").read_text() == table
