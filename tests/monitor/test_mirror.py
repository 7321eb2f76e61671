"""Mirrors at services: asked before anything starts, gone without a trace, never the end of a run.

The packages are stand-ins: what they do and raise is what the real ones were seen to do.
"""

import importlib.machinery
import sys
import time
import types

import pytest

from pirl_jax import train
from pirl_jax.core import endings
from pirl_jax.monitor import log, mirror, services, swanlab_service, wandb_service

CONFIG = {"suite": "tabletop"}
SERVICE = "api.wandb.ai"
NOBODY = services.Labels()
KEYS = {"wandb": "WANDB_API_KEY", "swanlab": "SWANLAB_API_KEY"}
BOTH = pytest.mark.parametrize("name", KEYS)


class CommError(Exception):
    """As wandb's, which is an Exception and nothing more special."""


class Package(types.ModuleType):
    """One of the packages; what `fails` names raises it: init, log, table, video, finish."""

    def __init__(self, name, folder):
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.folder = folder
        self.fails = {}
        self.rows = []
        self.options = []
        self.finished = 0

    def _may(self, what):
        if what in self.fails:
            raise self.fails[what]

    def init(self, **options):
        self.folder.mkdir(parents=True, exist_ok=True)
        self.options.append(options)
        self._may("init")
        return types.SimpleNamespace(
            define_metric=lambda *args, **kwargs: None, log=self._log, finish=self._finish
        )

    def _log(self, row, step=None):
        self._may("log")
        self.rows.append(row if step is None else {"iteration": step} | row)

    def _finish(self):
        self._may("finish")
        self.finished += 1

    def Table(self, columns, data):
        self._may("table")
        return "table", columns, data

    def Text(self, content):
        self._may("table")
        return "text", content

    def Video(self, path, format):
        self._may("video")
        return "video", path


@pytest.fixture
def packages(monkeypatch, tmp_path):
    """Both, installed, of a user who never logged in."""
    found = {
        "wandb": Package("wandb", tmp_path / "run" / "wandb"),
        "swanlab": Package("swanlab", tmp_path / "run" / "swanlog"),
    }
    for name, package in found.items():
        monkeypatch.setitem(sys.modules, name, package)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "home")
    others = ("MODE", "BASE_URL", "PROJECT", "ROOT", "SAVE_DIR", "API_KEY")
    for name in (
        "NETRC",
        *(f"{service}_{other}" for service in ("WANDB", "SWANLAB") for other in others),
    ):
        monkeypatch.delenv(name, raising=False)
    return found


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- before anything starts --------------------------------------------------------------------


@BOTH
def test_without_the_package(name, monkeypatch):
    monkeypatch.setattr(services.importlib.util, "find_spec", lambda name: None)
    said = f"run.backends has {name}, which is not installed; run pip install {name}, or leave it"
    with pytest.raises(ValueError, match=said):
        mirror.check(["jsonl", name], NOBODY)
    mirror.check(["jsonl", "tensorboard"], NOBODY)


def test_without_a_key(packages, tmp_path):
    said = r"has no key \(wandb login\); set WANDB_API_KEY or run.offline=True, or leave wandb out"
    with pytest.raises(ValueError, match=said):
        mirror.check(["wandb"], NOBODY)
    for text in ("machine example.org login user password word\n", "no such thing\n"):
        (tmp_path / "home" / ".netrc").write_text(text)
        with pytest.raises(ValueError, match=said):
            mirror.check(["wandb"], NOBODY)
    with pytest.raises(ValueError, match=r"has no key \(swanlab login\); set SWANLAB_API_KEY or"):
        mirror.check(["swanlab"], NOBODY)


@pytest.mark.parametrize(
    "variables",
    [
        {"WANDB_API_KEY": "0123456789", "SWANLAB_API_KEY": "0123456789"},
        {"WANDB_MODE": "offline", "SWANLAB_MODE": "offline"},
        {"WANDB_MODE": "disabled", "SWANLAB_MODE": "local"},
    ],
)
def test_with_a_key_or_offline(packages, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    mirror.check(KEYS, NOBODY)


def test_offline_needs_no_key(packages):
    mirror.check(KEYS, services.Labels(offline=True))


@pytest.mark.parametrize("host", [SERVICE, "wandb.example.org"])
def test_who_logged_in_before(packages, tmp_path, monkeypatch, host):
    if host != SERVICE:
        monkeypatch.setenv("WANDB_BASE_URL", f"https://{host}")
    file = tmp_path / "home" / "named"
    file.write_text(f"machine {host} login user password 0123456789\n")
    file.chmod(0o600)
    monkeypatch.setenv("NETRC", "~/named")
    mirror.check(["wandb"], NOBODY)
    kept = tmp_path / "home" / ".swanlab"
    kept.mkdir()
    (kept / ".netrc").write_text("machine api.swanlab.cn login web password 0123456789\n")
    mirror.check(["swanlab"], NOBODY)


@pytest.mark.parametrize(
    "error", [CommError("It appears that you do\nnot have permission"), TimeoutError()]
)
@BOTH
def test_a_service_that_does_not_start_leaves_nothing(name, packages, tmp_path, monkeypatch, error):
    for key in KEYS.values():
        monkeypatch.setenv(key, "0123456789")
    packages[name].fails["init"] = error
    text = " ".join(str(error).split()) or "TimeoutError"
    said = f"run.backends has {name}, which does not start .{text}.; set {KEYS[name]} or"
    with pytest.raises(ValueError, match=said):
        log.RunDir(tmp_path / "run", CONFIG, backends=KEYS)
    assert not (tmp_path / "run").exists()
    assert packages["wandb"].finished == (name == "swanlab")  # the other had begun


def test_training_asks_before_anything_starts(packages, tmp_path, monkeypatch, capsys):
    """No simulator is up yet, and nothing is written."""
    monkeypatch.setattr(train.training.simulators, "open_envs", None)
    directory = f"--config.run.directory={tmp_path / 'run'}"
    fields = ["--config.run.wandb=True", "--config.run.compilation_cache="]
    with pytest.raises(SystemExit) as exit_:
        train.main(["train", "--config=probe", directory, *fields])
    note, said = capsys.readouterr().err.splitlines()
    assert exit_.value.code == 2
    assert note == ("note: run.wandb=True is an older name; write run.backends=jsonl,wandb")
    assert said.startswith("error: run.backends has wandb, which has no key")
    assert not (tmp_path / "run").exists()


# ---- a run ---------------------------------------------------------------------------------------


@BOTH
def test_a_run_and_its_resume_are_one_there(name, packages, tmp_path, monkeypatch):
    for variables in ({}, {f"{name.upper()}_PROJECT": "of the shell"}):
        for variable, value in variables.items():
            monkeypatch.setenv(variable, value)
        resume_at = 0 if variables else None
        run = log.RunDir(tmp_path / "run", CONFIG, resume_at, [name], services.Labels(offline=True))
        run.write(0, {"actor/loss": 1.0})
        run.close()
    first, second = packages[name].options
    assert first["id"] == second["id"] == (tmp_path / "run" / f"{name}_id.txt").read_text()
    assert first["mode"] == "offline" and first["resume"] == "allow"
    assert (first["name"], first["project"], first["config"]) == ("run", "pirl_jax", CONFIG)
    assert second["project"] == "of the shell"
    assert packages[name].rows == [{"iteration": 0, "actor/loss": 1.0}] * 2
    assert packages[name].finished == 2


@BOTH
def test_names_of_project_and_experiment(name, packages, tmp_path, monkeypatch):
    monkeypatch.setenv(KEYS[name], "0123456789")
    labels = services.Labels("robots", "third try")
    log.RunDir(tmp_path / "run", CONFIG, backends=[name], labels=labels).close()
    (options,) = packages[name].options
    assert (options["project"], options["name"]) == ("robots", "third try")
    assert "mode" not in options


def test_tables_and_videos(packages, tmp_path):
    labels = services.Labels(offline=True)
    run = log.RunDir(tmp_path / "run", CONFIG, None, ["tensorboard", *KEYS], labels)
    rows = [{"task": 0, "episode_len": None}, {"task": 1, "episode_len": 3.5}]
    run.show(4, "evaluation/after", rows, [tmp_path / "task_1.mp4"])
    run.close()
    table, video = packages["wandb"].rows
    assert table == {
        "iteration": 4,
        "evaluation/after": ("table", ["task", "episode_len"], [[0, None], [1, 3.5]]),
    }
    assert video["evaluation/after/task_1"] == ("video", str(tmp_path / "task_1.mp4"))
    (text,) = packages["swanlab"].rows  # it shows no MP4
    assert "episode_len" in text["evaluation/after"][1] and "3.5" in text["evaluation/after"][1]
    written = b"".join(path.read_bytes() for path in (tmp_path / "run" / "tensorboard").iterdir())
    assert b"evaluation/after" in written and b"    task  episode_len" in written


def test_videos_of_rollouts_keep_their_names(packages, tmp_path):
    run = log.RunDir(tmp_path / "run", CONFIG, None, ["wandb"], services.Labels(offline=True))
    for iteration in (3, 4):
        path = tmp_path / f"iteration_{iteration}.mp4"
        run.show_videos(iteration, {"rollout/episode_0": path})
    run.close()
    assert packages["wandb"].rows == [
        {"iteration": k, "rollout/episode_0": ("video", str(tmp_path / f"iteration_{k}.mp4"))}
        for k in (3, 4)
    ]


# ---- a service that fails under way --------------------------------------------------------------


@pytest.mark.parametrize("what", ["log", "table", "video", "finish"])
def test_what_fails_is_said_once_and_the_run_goes_on(what, packages, tmp_path, capsys):
    packages["wandb"].fails[what] = CommError("network\nis gone")
    labels = services.Labels(offline=True)
    run = log.RunDir(tmp_path / "run", CONFIG, None, list(KEYS), labels)
    for iteration in range(2):
        run.write(iteration, {"actor/loss": 1.0})
        run.show(iteration, "evaluation/x", [{"task": 0}], [tmp_path / "a.mp4"])
    run.close()
    said = capsys.readouterr().err
    assert said.count("note: wandb failed (network is gone)") == 1 and said.count("\n") == 1
    assert "every number in" in said and "wandb_stopped.txt" in said
    assert "CommError" in (tmp_path / "run" / "wandb_stopped.txt").read_text()
    assert len(log.read(tmp_path / "run")) == 2
    assert len(packages["swanlab"].rows) == 4 and packages["swanlab"].finished == 1


def test_a_resume_goes_on_without_a_service_that_is_away(packages, tmp_path, capsys):
    labels = services.Labels(offline=True)
    run = log.RunDir(tmp_path / "run", CONFIG, None, list(KEYS), labels)
    run.write(0, {"actor/loss": 1.0})
    run.close()
    packages["wandb"].fails["init"] = TimeoutError("no network")
    packages["swanlab"].rows.clear()
    run = log.RunDir(tmp_path / "run", CONFIG, 1, list(KEYS), labels)
    run.write(1, {"actor/loss": 0.5})
    run.close()
    assert "note: wandb failed (no network)" in capsys.readouterr().err
    assert len(log.read(tmp_path / "run")) == 2 and len(packages["swanlab"].rows) == 1
    # Nor does it need a key any more.
    run = log.RunDir(tmp_path / "run", CONFIG, 2, ["swanlab"])
    run.close()
    assert "swanlab failed (run.backends has swanlab, which has no key" in capsys.readouterr().err


def test_a_service_that_never_finishes_is_left(packages, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(mirror, "FINISH_S", 0.05)
    monkeypatch.setattr(packages["wandb"], "_finish", lambda: time.sleep(0.5))
    labels = services.Labels(offline=True)
    log.RunDir(tmp_path / "run", CONFIG, None, ["wandb"], labels).close()
    assert "note: wandb failed (it still sends after 0 s)" in capsys.readouterr().err


def test_the_end_of_a_run_passes_through(packages, tmp_path):
    """A signal may arrive while a service is told something."""
    packages["wandb"].fails["log"] = endings.Preempted("saved")
    run = log.RunDir(tmp_path / "run", CONFIG, None, ["wandb"], services.Labels(offline=True))
    with pytest.raises(endings.Preempted):
        run.write(0, {"actor/loss": 1.0})


def test_an_id_that_is_none_is_replaced(tmp_path):
    lost = []
    path = tmp_path / "wandb_id.txt"

    def set_aside(place, reason):
        lost.append(reason)

    first = services.identity(path, "wandb", set_aside)
    assert services.identity(path, "wandb", set_aside) == first and lost == []
    path.write_text("")
    assert services.identity(path, "wandb", set_aside) not in ("", first)
    assert lost == [f"{path} is no id, so that wandb gets another run"]


def test_there_are_two_services():
    assert {wandb_service, swanlab_service} == set(mirror.SERVICES.values())
