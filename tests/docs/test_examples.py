"""Every script in docs/examples does what its docstring says, and stays short."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from pirl_jax.core import mesh as meshes
from pirl_jax.core import spec
from pirl_jax.envs import base
from pirl_jax.policy import normalize
from pirl_jax.recipes import tabletop_small
from pirl_jax.run import config, policies
from pirl_jax.weights import targets
from tests.weights import conftest as weights

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))
MAX_LINES = 60
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def module(example):
    """The script, read and not run."""
    spec = importlib.util.spec_from_file_location(example, EXAMPLES[0].with_name(f"{example}.py"))
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    """A run with a tiny, untrained policy."""
    folder = tmp_path_factory.mktemp("run")
    page = tabletop_small.get_config()
    page.model.update(size="tiny", value_hidden=(8,))
    settings = config.settings(page)
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    params = jax.device_get(policies.fresh_params(settings, mesh, jax.random.key(0)))
    source = weights.memory_source(spec.flatten(params), settings.policy.network)
    targets.write_pirl(folder, source)
    (folder / "config.json").write_text(json.dumps(page.to_dict()))
    normalize.save(folder / "assets" / "norm_stats.json", normalize.identity(8, 7))
    return folder


def run(example, *arguments, folder=ROOT):
    command = [sys.executable, str(ROOT / "docs" / "examples" / example), *map(str, arguments)]
    options = {"capture_output": True, "text": True, "check": False, "env": ENVIRONMENT}
    done = subprocess.run(command, cwd=folder, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_are_examples_and_they_are_short():
    lengths = {path.name: len(path.read_text().splitlines()) for path in EXAMPLES}
    assert lengths and max(lengths.values()) <= MAX_LINES, lengths


def test_act(run_directory):
    said = run("act.py", run_directory)
    numbers = said[said.index("[[") :]  # before them stands which checkpoint it is
    actions_HA = np.array(numbers.replace("[", " ").replace("]", " ").split(), float)
    actions_HA = actions_HA.reshape(10, 7)
    assert np.isfinite(actions_HA).all() and actions_HA.std() > 0


def rewards_of(path, name):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row[name] for row in rows if name in row]


def test_every_example_is_tested():
    tests = pathlib.Path(__file__).read_text()
    assert [path.name for path in EXAMPLES if f'"{path.name}"' not in tests] == []


def test_own_environment_keeps_the_contract():
    env = module("own_environment").FollowTheLight(image_size_px=16)
    for init_state, sign in ((0, -1), (1, 1)):
        assert base.fault(env.reset(0, init_state), env.spec, 0) == ""
        actions = np.zeros((5, 7))
        actions[:, 2] = sign
        step = env.step_chunk(actions)
        assert base.fault(step, env.spec, 5) == ""
        assert step.terminated and step.reward == 1 and step.num_steps == 5
    env.reset(0, 0)
    step = env.step_chunk(actions, record=True)
    assert step.truncated and not step.terminated and len(step.frames) == 5


@pytest.mark.slow
def test_own_environment_is_learned(tmp_path):
    run("own_environment.py", "--config.num_iterations=15", folder=tmp_path)
    metrics = tmp_path / "runs" / "own_environment" / "metrics.jsonl"
    success = rewards_of(metrics, "env/success_once")
    assert success[0] < 0.6 and min(success[-3:]) > 0.85, success


@pytest.mark.slow
def test_own_noise(tmp_path):
    said = run("own_noise.py", "--config.num_iterations=12", folder=tmp_path)
    ratios = re.search(r"ratio before any update: \[(.*)\]", said)[1].split()
    assert np.abs(np.array(ratios, float) - 1).max() < 1e-4
    metrics = tmp_path / "runs" / "own_noise" / "metrics.jsonl"
    returns = rewards_of(metrics, "env/return")
    assert np.mean(returns[-3:]) > np.mean(returns[:3]) + 0.1, returns
    assert max(rewards_of(metrics, "actor/first_ratio_max_dev")) < 1e-3


@pytest.mark.slow
def test_evaluate_server(run_directory):
    serve = [sys.executable, "-m", "pirl_jax", "serve", "--checkpoint", str(run_directory)]
    with subprocess.Popen(
        [*serve, "--port=0", "--max-batch=1"],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as server:
        try:
            said = ""
            while not (port := re.search(r"ws://127\.0\.0\.1:(\d+)", said)):
                line = server.stdout.readline()
                assert line, said
                said += line
            said = run("evaluate_server.py", f"ws://127.0.0.1:{port[1]}", 1)
        finally:
            server.terminate()
    assert re.search(r"the server says: \{.+\}\n", said)
    assert re.search(r"lift the red cube: [01] of 1 episodes", said)
