"""A folder of tasks, from the command line: evaluated, trained on, refused before a start."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from pirl_jax.envs.libero import files

ROOT = pathlib.Path(__file__).parents[1]
STOCK = "libero_object"
FIELDS = {
    "env.suite": "./my tasks/",
    "env.tasks": "()",
    "env.image_size_px": 32,
    "env.render_quality": "light",
    "env.max_episode_steps": 10,
    "env.num_workers": 1,
    "rollout.num_envs": 2,
    "eval.num_videos": 0,
    "eval.episodes_per_task": 1,
}
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def folder(tmp_path, libero_assets):
    """A task of LIBERO's, and the same scene with another goal and fewer start states."""
    place = tmp_path / "my tasks"
    place.mkdir()
    bddl = files.bddl_file(STOCK, 0)
    shutil.copy(bddl, place / "soup.bddl")
    shutil.copy(files.init_file(STOCK, 0), place / "soup.pruned_init")
    text = bddl.read_text().replace("(In alphabet_soup_1", "(In cream_cheese_1")
    assert "(In cream_cheese_1" in text
    own = re.sub(r"\(:language[^()]*\)", "(:language Fetch the cheese)", text)
    (place / "cheese.bddl").write_text(own)
    np.save(place / "cheese.npy", files.init_states(STOCK, 0)[:10])
    return place


def command(module, folder, *arguments, **fields):
    """Run from beside the folder -> exit code, what it complained of."""
    fields = FIELDS | {name.replace("__", "."): value for name, value in fields.items()}
    recipe = ROOT / "configs/libero_spatial_ppo_pi0_tiny.py"
    argv = [
        *(sys.executable, "-m", f"pirl_jax.{module}", "--config", str(recipe)),
        *(f"--config.{name}={value}" for name, value in fields.items()),
        *arguments,
    ]
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        argv, cwd=folder.parent, env=env, capture_output=True, text=True, timeout=500
    )
    return done.returncode, done.stderr


def test_evaluated_and_trained_on(folder, tmp_path):
    code, said = command("evaluate", folder, "--policy=random", "--output=ev")
    assert code == 0, said
    assert "the first 10 of each are played, as many as cheese has" in said
    found = json.loads((tmp_path / "ev" / "evaluation.json").read_text())
    assert [row["instruction"] for row in found["per_task"]] == [
        "fetch the cheese",
        "pick the alphabet soup and place it in the basket",
    ]
    protocol = found["protocol"]
    assert protocol["suite"] == str(folder) and len(protocol["data"][str(folder)]["sha256"]) == 64
    assert protocol["simulator"]["libero"]["version"] == "hf-libero 0.1.4"
    assert found["simulator"]["libero"]["folder"] == str(files.package())

    code, said = command(
        "train",
        folder,
        num_iterations=1,
        run__directory="run",
        eval__baseline=False,
        rollout__episodes_per_iteration=4,
        algorithm__group_size=2,
    )
    assert code == 0, said
    after = json.loads((tmp_path / "run" / "evaluation" / "after" / "evaluation.json").read_text())
    assert after["protocol"]["data"] == protocol["data"]
    assert after["protocol"]["simulator"] == protocol["simulator"]


def test_refused_before_anything_starts(folder, tmp_path):
    path = folder / "cheese.bddl"
    path.write_text(path.read_text().replace("- cream_cheese", "- gold"))
    code, said = command("train", folder, run__directory="run")
    assert code == 2
    assert f"error: {path} asks for an object 'gold', which LIBERO does not have" in said
    assert "Traceback" not in said and not (tmp_path / "run").exists()
