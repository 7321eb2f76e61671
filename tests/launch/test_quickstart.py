"""What the quickstart runs, and in which order: with a setup that only says what it is asked."""

import os
import pathlib
import shutil
import subprocess

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
# Instead of installing: every command is written down; training ends with $STATUS.
SETUP = """
mkdir -p runs
relay() { "$@"; }
python() {
  echo "$*" >>commands
  if [[ "$*" == *pirl_jax.train* ]]; then return "${STATUS:-0}"; fi
}
"""


@pytest.fixture
def quickstart(tmp_path):
    """quickstart(*arguments, **variables) -> exit code and commands."""
    (tmp_path / "launch").mkdir()
    shutil.copy(LAUNCH / "quickstart.sh", tmp_path / "launch")
    (tmp_path / "launch" / "setup.sh").write_text(SETUP)

    def start(*arguments, **variables):
        (tmp_path / "commands").unlink(missing_ok=True)
        inherited = {name: value for name, value in os.environ.items() if name != "PIRL_LIBERO"}
        command = ["bash", "launch/quickstart.sh", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=inherited | variables, check=False)
        return done.returncode, (tmp_path / "commands").read_text().splitlines()

    return start


def test_the_embedded_task_then_a_task_of_real_libero(quickstart, tmp_path):
    code, (train, evaluate) = quickstart("--config.seed=1")
    assert code == 0
    assert train == (
        "-m pirl_jax.train --config configs/quickstart.py "
        "--config.run.directory=runs/quickstart --config.seed=1"
    )
    assert evaluate.startswith("-m pirl_jax.evaluate --policy expert --config libero_object_")
    assert evaluate.endswith("--output runs/quickstart/libero")
    assert "--config.eval.num_videos=1" in evaluate and "light" not in evaluate
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    _, (train, _) = quickstart()
    assert "--config.run.directory=runs/quickstart-20" in train, "the first run is not touched"


def test_libero_alone(quickstart):
    code, commands = quickstart("libero", "--config.seed=1")
    assert code == 0 and commands == [
        "-m pirl_jax.train --config configs/libero_small.py "
        "--config.run.directory=runs/quickstart_libero --config.seed=1"
    ]


def test_without_libero_and_after_a_failure_nothing_is_evaluated(quickstart):
    code, commands = quickstart(PIRL_LIBERO="no")
    assert code == 0 and len(commands) == 1
    code, commands = quickstart(STATUS="75")
    assert code == 75 and len(commands) == 1
