"""Every script in docs/examples does what its docstring says, and stays short."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from pirl_jax.core import mesh as meshes
from pirl_jax.core import spec
from pirl_jax.policy import normalize
from pirl_jax.recipes import quickstart
from pirl_jax.run import config, policies
from pirl_jax.weights import targets
from tests.weights import conftest as weights

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))
MAX_LINES = 60


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    """A run with a tiny, untrained policy."""
    folder = tmp_path_factory.mktemp("run")
    page = quickstart.get_config()
    page.model.update(size="tiny", value_hidden=(8,))
    settings = config.settings(page)
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    params = jax.device_get(policies.fresh_params(settings, mesh, jax.random.key(0)))
    source = weights.memory_source(spec.flatten(params), settings.policy.network)
    targets.write_pirl(folder, source)
    (folder / "config.json").write_text(json.dumps(page.to_dict()))
    normalize.save(folder / "assets" / "norm_stats.json", normalize.identity(8, 7))
    return folder


def run(example, *arguments):
    command = [sys.executable, str(ROOT / "docs" / "examples" / example), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
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
