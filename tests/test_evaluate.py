"""The evaluation command repeats what a run measured, plays policies without a network, and
continues where it was killed."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from pirl_jax import evaluate, train
from pirl_jax.core import mesh as meshes
from tests.serving import conftest

ROOT = pathlib.Path(__file__).parents[1]
RECIPE = str(ROOT / "configs/tabletop_small.py")


@pytest.fixture
def one_device(monkeypatch):
    """A user's machine, not the eight virtual devices of the tests."""
    whole = meshes.make_mesh
    monkeypatch.setattr(meshes, "make_mesh", lambda *args: whole(*args, jax.devices()[:1]))


def overrides(fields):
    return [f"--config.{name}={value}" for name, value in fields.items()]


def read(folder):
    return json.loads((folder / "evaluation.json").read_text())


def test_the_command_repeats_the_last_evaluation_of_the_run(tmp_path, one_device, capsys):
    """Tabletop with random weights: the same seed gives the same actions, so the same episodes to
    the last control step. The command needs no recipe: the run has its own configuration."""
    run = tmp_path / "run"
    fields = {
        "num_iterations": 1,
        "model.size": "tiny",
        "model.image_size_px": 16,
        "env.image_size_px": 16,
        "sft.demonstrations": 0,
        "model.norm_stats": "identity",
        "rollout.num_envs": 8,
        "rollout.episodes_per_iteration": 8,
        "env.num_workers": 2,
        "algorithm.minibatch_size": 16,
        "algorithm.microbatch_size": 16,
        "algorithm.update_epochs": 1,
        "eval.episodes_per_task": 4,
        "eval.num_videos": 1,
        "eval.baseline": False,
        "run.directory": run,
        "run.compilation_cache": "",
    }
    train.main(["train", "--config", RECIPE, *overrides(fields)])
    capsys.readouterr()
    evaluate.main(["evaluate", "--checkpoint", str(run / "checkpoints")])
    said, folder = capsys.readouterr().out, run / "evaluation/checkpoint_1"
    ours, theirs = read(folder), read(run / "evaluation/after")
    assert ours["episodes"] == theirs["episodes"] and ours["protocol"] == theirs["protocol"]
    ((video,), (other,)) = [
        list((run / "evaluation" / name / "videos").iterdir()) for name in ("checkpoint_1", "after")
    ]
    assert video.name == other.name and video.read_bytes() == other.read_bytes()
    assert "lift the red cube" in (folder / "report.html").read_text()
    assert "lift the red cube" in said and str(folder) in said and "split held_out" in said
    assert said.count("norm stats: zscore, state 8 dims, actions 7 dims\n") == 1
    for arguments, sentence in (
        (["--iteration=7"], "holds no checkpoint of iteration 7; it holds [0, 1]"),
        (
            ["--config.seed=1"],
            "another evaluation (protocol.seed: 42 -> 1); give another folder with --output",
        ),
    ):
        with pytest.raises(SystemExit):
            evaluate.main(["evaluate", "--checkpoint", str(run), *arguments])
        assert sentence in capsys.readouterr().err


SMALL = {
    "env.image_size_px": 16,
    "env.num_workers": 1,
    "rollout.num_envs": 4,
    "env.tasks": "0,1",
    "env.spread": 1.0,
    "eval.episodes_per_task": 3,
    "eval.num_videos": 0,
    "env.timeout_s": 20.0,
}


def play(policy, output, *arguments, **fields):
    fields = overrides(SMALL | {name.replace("__", "."): value for name, value in fields.items()})
    evaluate.main(
        [
            "evaluate",
            "--config",
            RECIPE,
            "--policy",
            policy,
            "--output",
            str(output),
            *fields,
            *arguments,
        ]
    )
    return read(output)


def test_the_expert_succeeds_where_random_actions_do_not(tmp_path):
    """Each pair once; no model, tokenizer or checkpoint is needed."""
    expert = play("expert", tmp_path / "expert", "--videos=0:801")
    chance = play("random", tmp_path / "random", env__max_episode_steps=10)
    pairs = [(task, state) for state in (800, 801, 802) for task in (0, 1)]
    for written in (expert, chance):
        assert [(row["task"], row["init_state"]) for row in written["episodes"]] == pairs
    assert all(row["success"] and row["steps"] < 50 for row in expert["episodes"])
    assert not any(row["success"] for row in chance["episodes"]) and chance["episode_len"] == 10.0
    assert [path.name for path in (tmp_path / "expert/videos").iterdir()] == [
        "task_0_init_801_success.mp4"
    ]
    assert not (tmp_path / "random/videos").exists()
    assert expert["policy"] == {"name": "expert"} and expert["per_suite"]["tabletop"]["rate"] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, code",
    [
        (signal.SIGKILL, -signal.SIGKILL),
        pytest.param(signal.SIGTERM, 75, marks=pytest.mark.slow),
    ],
)
def test_a_killed_evaluation_continues_where_it_stopped(tmp_path, capfd, number, code):
    """Killed or asked to end after some episodes; the same command plays the others.

    The result is that of an undisturbed one.
    """
    fields = {"env__max_episode_steps": 50, "eval__episodes_per_task": 20}
    whole = play("random", tmp_path / "whole", **fields)
    output = tmp_path / "killed"
    notes = output / "episodes.jsonl"
    arguments = overrides(
        SMALL | {name.replace("__", "."): value for name, value in fields.items()}
    )
    command = [
        sys.executable,
        "-m",
        "pirl_jax.evaluate",
        "--config",
        RECIPE,
        "--policy",
        "random",
        "--output",
        str(output),
    ]
    with subprocess.Popen([*command, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        deadline_s = time.monotonic() + 60
        while not notes.exists() or notes.read_bytes().count(b"\n") < 10:
            assert process.poll() is None and time.monotonic() < deadline_s
            time.sleep(0.005)
        process.send_signal(number)
    assert process.returncode == code
    said = capfd.readouterr().err
    assert said == ("SIGTERM: the same command plays what is missing\n" if code == 75 else "")
    before = notes.read_bytes()
    assert 10 <= before.count(b"\n") < 41 and not (output / "evaluation.json").exists()
    resumed = play("random", output, **fields)
    done = before.count(b"\n") - 1
    assert f"{done} of 40 episodes are in {notes}; playing the others" in capfd.readouterr().out
    assert resumed["episodes"] == whole["episodes"] and resumed["table"] == whole["table"]
    complete = before[: before.rfind(b"\n") + 1]
    assert notes.read_bytes().startswith(complete) and notes.read_bytes().count(b"\n") == 41, (
        "nothing is played twice"
    )


wired = conftest.wired  # a fixture


class Server:
    """Moves by the state it is shown, until it has been asked `healthy` times."""

    def __init__(self):
        self.healthy = 0
        self.fault = None

    async def __call__(self, message):
        self.healthy -= 1
        if self.healthy < 0:
            return self.fault()
        return {"actions": np.tile(np.tanh(message["observation/state"][:7]), (10, 1))}


def refuse():
    raise ValueError("out of memory")


def test_an_evaluation_whose_server_fails_is_continued_by_the_same_command(tmp_path, wired, capsys):
    """One sentence, exit code 2, what is done is kept; in the end the results are those of an
    undisturbed evaluation. (tests/serving/test_client.py knows what else a server may do.)"""
    server = Server()
    server.fault = refuse
    policy = f"ws://127.0.0.1:{wired(server, {'name': 'fake'})}"
    fields = {
        "env__suite": "probe_conditioned",
        "env__tasks": "0,",
        "sft__demonstrations": 0,
        "eval__episodes_during_training": 2,
        "env__split": "published",
        "rollout__num_envs": 1,
        "rollout__num_groups": 1,
        "eval__episodes_per_task": 2,
    }
    server.healthy = 2
    whole = play(policy, tmp_path / "whole", **fields)
    assert len(whole["episodes"]) == 2 and server.healthy == 0
    server.healthy = 1
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        play(policy, tmp_path / "failed", **fields)
    said = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert said[-1] == (
        f"error: --policy={policy}: the server answered with an error (ValueError: out of memory); "
        "mend it, the same command continues the evaluation"
    )
    assert (tmp_path / "failed" / "episodes.jsonl").read_text().count("\n") == 2
    server.healthy = 1
    resumed = play(policy, tmp_path / "failed", **fields)
    assert server.healthy == 0, "what was done is not asked again"
    assert resumed["episodes"] == whole["episodes"] and resumed["policy"] == whole["policy"]
    assert whole["policy"] == {"name": policy, "server": {"name": "fake"}}


def test_another_evaluation_does_not_mix_in(tmp_path, capsys):
    play("expert", tmp_path, eval__episodes_per_task=1)
    with pytest.raises(SystemExit) as exit_:
        play("random", tmp_path, eval__episodes_per_task=1, env__max_episode_steps=10)
    said = capsys.readouterr().err
    assert (
        exit_.value.code == 2
        and "policy.name: 'expert' -> 'random'; protocol.max_episode_steps: 50 -> 10" in said
    )
    assert "give another folder with --output" in said
