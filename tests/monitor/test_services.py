"""The real packages, offline, each in an environment of its own: no pin of ours meets theirs.

A run, its resume, a table and a video; the files that are later sent to the service have them.
"""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PINS = {"wandb": "wandb==0.31.0", "swanlab": "swanlab==0.10.3"}
ALSO = ("rich", "ml_dtypes", "numpy")  # of ours, for what is imported below
# Two starts of one run: rows, tables, a video, and a name that the package cannot know.
PLAY = """
import pathlib, sys
from pirl_jax.monitor import mirror, services

name, folder = sys.argv[1], pathlib.Path(sys.argv[2])
labels = services.Labels("a_project", "an experiment", offline=True)
for began, iteration in ((False, 0), (True, 3)):
    (one,) = mirror.start(folder, {"seed": 1}, [name], labels, print, began)
    one.tell(lambda service: service.log(iteration, {"actor/loss": 0.5 + iteration}))
    rows = [{"task": "open", "success": 1, "episode_len": None}]
    one.tell(lambda service: service.table(iteration, "evaluation/after", rows))
    one.tell(lambda service: service.video(iteration, "evaluation/after/a", folder / "a.mp4"))
    one.finish()
"""


@pytest.fixture(scope="module", params=PINS)
def service(request, tmp_path_factory):
    """-> name, python of an environment that has the package."""
    folder = tmp_path_factory.mktemp(request.param)
    python = folder / "bin" / "python"
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, env=alone)
    pip = [python, "-m", "pip", "install", "--quiet", PINS[request.param], *ALSO]
    done = subprocess.run(pip, capture_output=True, text=True, check=False, env=alone)
    assert done.returncode == 0, done.stderr
    return request.param, python


def run(python, code, *arguments, folder):
    variables = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(ROOT)}
    command = [python, "-c", code, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=folder, env=variables, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_a_run_its_resume_tables_and_videos(service, tmp_path):
    name, python = service
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(64))
    said = run(python, PLAY, name, folder, folder=tmp_path)
    assert not list(folder.glob("*_stopped.txt")), said.stderr
    number = (folder / f"{name}_id.txt").read_text()
    starts = sorted(folder.rglob(f"*.{name}"))
    assert len(starts) == 2 and {path.stem for path in starts} == {f"run-{number}"}
    for start, value in zip(starts, (b"0.5", b"3.5"), strict=True):
        kept = start.read_bytes()
        for what in (number.encode(), b"a_project", b"an experiment", b"actor/loss"):
            assert what in kept, what
        assert b"evaluation/after" in kept and (value in kept or name == "swanlab")
    kept = {path.suffix for path in folder.rglob("media/**/*") if path.is_file()}
    assert kept == ({".json", ".mp4"} if name == "wandb" else {".txt"})
    # Nothing else of the run directory is touched, and nothing lies outside of it.
    own = {"wandb": {"wandb"}, "swanlab": {"swanlog"}}[name]
    assert {path.name for path in folder.iterdir()} == {"a.mp4", f"{name}_id.txt", *own}
