"""`evaluate --pro` and `--plus` as a user types them: every dimension, one table, killed and
continued, exit codes."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from pirl_jax.envs.libero import files, plus, plus_assets
from tests import plus_stand_in

ROOT = pathlib.Path(__file__).parents[1]
BASE = "libero_goal"
STOVE = "turn_on_the_stove"
DIMENSIONS = plus.DIMENSIONS + plus.NEED_ASSETS
TASKS_EACH = 2
# Random actions: nobody waits for a success.
FIELDS = {
    "env.suite": BASE,
    "env.tasks": "()",
    "env.image_size_px": 32,
    "env.render_quality": "light",
    "env.max_episode_steps": 10,
    "env.num_workers": 2,
    "rollout.num_envs": 2,
    "eval.num_videos": 0,
}
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def command(output, *arguments, **fields):
    fields = FIELDS | {name.replace("__", "."): value for name, value in fields.items()}
    return [
        *(sys.executable, "-m", "pirl_jax.evaluate", "--policy", "random"),
        *("--config", str(ROOT / "configs/libero_spatial_ppo_pi0_tiny.py")),
        *("--output", str(output)),
        *(f"--config.{name}={value}" for name, value in fields.items()),
        *arguments,
    ]


def run(*arguments, **fields):
    """Exit code, what it said, what it complained of."""
    done = subprocess.run(
        command(*arguments, **fields), cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    return done.returncode, done.stdout, done.stderr


def killed(output, number, rows, *arguments, **fields):
    """The same, ended by a signal after some episodes -> its exit code, the rows it left."""
    notes = output / "episodes.jsonl"
    with subprocess.Popen(
        command(output, *arguments, **fields), cwd=ROOT, stdout=subprocess.DEVNULL
    ) as process:
        deadline_s = time.monotonic() + 300
        while not notes.exists() or notes.read_bytes().count(b"\n") < 1 + rows:
            assert process.poll() is None and time.monotonic() < deadline_s
            time.sleep(0.01)
        process.send_signal(number)
    assert not (output / "evaluation.json").exists()
    return process.returncode, notes.read_bytes().count(b"\n") - 1


def written(output):
    return json.loads((output / "evaluation.json").read_text())


def same(output, other):
    """Nothing tells an evaluation that was killed from one that was not."""
    for name in ("episodes", "table", "per_suite", "perturbations", "protocol"):
        assert written(output)[name] == written(other)[name], name
    assert (output / "table.txt").read_text() == (other / "table.txt").read_text()


@pytest.fixture
def few(tmp_path, libero_plus, libero_assets):
    """Fields with a LIBERO-Plus of two tasks of each dimension, and assets that stand in."""
    names = []
    for variants in plus.variants(libero_plus, BASE).values():
        names += [name for name, own in variants.items() if own.task == STOVE][:TASKS_EACH]
    folder = tmp_path / "plus"
    (folder / "benchmark").mkdir(parents=True)
    for name in ("bddl_files", "init_files", "origin.json"):
        (folder / name).symlink_to(libero_plus / name)
    table = folder / "benchmark" / "libero_suite_task_map.py"
    table.write_text(f"libero_task_map = { ({BASE: names})!r}\n")
    suites = [f"{BASE}_plus_{dimension}" for dimension in plus.NEED_ASSETS]
    data = files.Folders(plus=folder)
    plus_stand_in.write(tmp_path / "assets", libero_assets, data, suites)
    return {"env__plus_files": folder, "env__plus_assets": tmp_path / "assets"}


def test_plus_plays_every_dimension_and_goes_on_where_it_was_killed(tmp_path, few):
    whole = tmp_path / "whole"
    code, said, complaint = run(whole, "--plus", "all", **few)
    assert code == 0, complaint
    table = (whole / "table.txt").read_text()
    assert table.strip() in said
    suites = written(whole)["per_suite"]
    assert list(suites) == [f"{BASE}_plus_{dimension}" for dimension in DIMENSIONS]
    for suite, row in suites.items():
        assert (row["successes"], row["episodes"], row["low"]) == (0, TASKS_EACH, 0.0)
        (line,) = [line for line in table.splitlines() if line.startswith(f"{suite} ")]
        assert "".join(line.split()) == f"{suite}0.0%[0.0,65.8]0/{TASKS_EACH}"
    (total,) = [line for line in table.splitlines() if line.startswith("total ")]
    assert f"0/{TASKS_EACH * len(DIMENSIONS)}" in total
    data = written(whole)["protocol"]["data"]
    assert data.keys() == suites.keys()
    for dimension in plus.NEED_ASSETS:
        assert len(data[f"{BASE}_plus_{dimension}"]["assets_sha256"]) == 64
    ended, rows = killed(tmp_path / "killed", signal.SIGKILL, 3, "--plus", "all", **few)
    assert ended == -signal.SIGKILL and 3 <= rows < 16
    code, said, _ = run(tmp_path / "killed", "--plus", "all", **few)
    assert code == 0 and f"{rows} of 16 episodes are in" in said
    same(tmp_path / "killed", whole)


def test_pro_plays_base_and_perturbations_and_goes_on_where_it_was_ended(tmp_path, libero_pro):
    fields = {"env__tasks": "(7,)", "eval__episodes_per_task": 2, "env__pro_files": libero_pro}
    whole = tmp_path / "whole"
    code, said, complaint = run(whole, "--pro", "all", **fields)
    assert code == 0, complaint
    names = [BASE, *(f"{BASE}_{dimension}" for dimension in files.PRO_DIMENSIONS)]
    rows = written(whole)["perturbations"]
    assert list(rows) == names and (whole / "table.txt").read_text().strip() in said
    assert [row["perturbs"] for row in rows.values()] == [None, *([BASE] * 4)]
    assert {row["episodes"] for row in rows.values()} == {2}
    assert [row["difference"]["pairs"] for row in list(rows.values())[1:]] == [2] * 4
    ended, rows = killed(tmp_path / "ended", signal.SIGTERM, 3, "--pro", "all", **fields)
    assert ended == 75 and 3 <= rows < 10
    code, said, _ = run(tmp_path / "ended", "--pro", "all", **fields)
    assert code == 0 and f"{rows} of 10 episodes are in" in said
    same(tmp_path / "ended", whole)


def test_what_cannot_be_played_is_one_sentence(tmp_path, few):
    """No assets; a file missing in them; other assets than those of the evaluation begun."""
    own = few["env__plus_assets"]
    code, _, complaint = run(tmp_path / "none", "--plus", "light", env__plus_files=own)
    assert code == 2 and plus_assets.REMEDY in complaint
    (scene, *_) = (own / "scenes" / "lights").iterdir()
    text = scene.read_text()
    scene.unlink()
    code, _, complaint = run(tmp_path / "played", "--plus", "light", **few)
    assert code == 2 and f"{BASE}_plus_light needs are not in {own} (" in complaint
    assert scene.name in complaint and "Traceback" not in complaint
    assert not (tmp_path / "played").exists()
    scene.write_text(text)
    assert run(tmp_path / "played", "--plus", "light", **few)[0] == 0
    scene.write_text(text.replace(".3 .3 .3", ".9 .1 .1"))
    code, _, complaint = run(tmp_path / "played", "--plus", "light", **few)
    assert code == 2 and "another evaluation (protocol.data" in complaint
