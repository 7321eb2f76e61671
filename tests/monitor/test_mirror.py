"""The mirror at Weights & Biases: asked before anything starts, and gone without a trace.

The package is a stand-in: what it does and raises is what the real one was seen to do.
"""

import importlib.machinery
import json
import sys
import types

import pytest

from pirl_jax import train
from pirl_jax.monitor import log, mirror

CONFIG = {"suite": "tabletop"}
SERVICE = "api.wandb.ai"


class CommError(Exception):
    """As wandb's, which is an Exception and nothing more special."""


@pytest.fixture
def wandb(monkeypatch, tmp_path):
    """The package, installed; `wandb.fails` is what its init raises."""
    module = types.ModuleType("wandb")
    module.fails = None
    module.rows = []

    def init(**options):
        (tmp_path / "run" / "wandb").mkdir(exist_ok=True)
        module.options = options
        if module.fails:
            raise module.fails
        return types.SimpleNamespace(
            define_metric=lambda *args, **kwargs: None,
            log=module.rows.append,
            finish=lambda: None,
        )

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_PROJECT", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    return module


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(mirror.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="not installed; run pip install wandb or set it to False"):
        mirror.check()


def test_without_a_key(wandb, tmp_path):
    said = r"has no key \(wandb login\); set WANDB_API_KEY or WANDB_MODE=offline, or run.wandb=Fal"
    with pytest.raises(ValueError, match=said):
        mirror.check()
    (tmp_path / "home" / ".netrc").write_text("machine example.org login user password word\n")
    with pytest.raises(ValueError, match=said):
        mirror.check()
    (tmp_path / "home" / ".netrc").write_text("no such thing\n")
    with pytest.raises(ValueError, match=said):
        mirror.check()


@pytest.mark.parametrize(
    "variables",
    [{"WANDB_API_KEY": "0123456789"}, {"WANDB_MODE": "offline"}, {"WANDB_MODE": "disabled"}],
)
def test_with_a_key_or_offline(wandb, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    mirror.check()


@pytest.mark.parametrize("host", [SERVICE, "wandb.example.org"])
def test_who_logged_in_before(wandb, tmp_path, monkeypatch, host):
    if host != SERVICE:
        monkeypatch.setenv("WANDB_BASE_URL", f"https://{host}")
    file = tmp_path / "home" / "named"
    file.write_text(f"machine {host} login user password 0123456789\n")
    file.chmod(0o600)
    monkeypatch.setenv("NETRC", "~/named")
    mirror.check()


def test_a_run_of_it(wandb, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for resume_at in (None, 0):
        run = log.RunDir(tmp_path / "run", CONFIG, resume_at, wandb=True)
        run.write(0, {"actor/loss": 1.0})
        run.close()
        first = json.loads((tmp_path / "run" / "config.json").read_text())
        assert first == CONFIG == wandb.options["config"]
    assert wandb.options["id"] == (tmp_path / "run" / "wandb_id.txt").read_text()
    assert wandb.rows == [{"iteration": 0, "actor/loss": 1.0}] * 2


@pytest.mark.parametrize(
    "error", [CommError("It appears that you do\nnot have permission"), TimeoutError()]
)
def test_a_service_that_fails_leaves_nothing(wandb, tmp_path, monkeypatch, error):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789")
    wandb.fails = error
    text = " ".join(str(error).split()) or "TimeoutError"
    with pytest.raises(ValueError, match=f"does not start .{text}.; set WANDB_API_KEY or"):
        log.RunDir(tmp_path / "run", CONFIG, wandb=True)
    assert not (tmp_path / "run").exists()


def test_a_service_that_fails_leaves_a_standing_run_alone(wandb, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789")
    run = log.RunDir(tmp_path / "run", CONFIG)
    run.write(0, {"actor/loss": 1.0})
    run.close()
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    wandb.fails = CommError("no network")
    with pytest.raises(ValueError, match="no network"):
        log.RunDir(tmp_path / "run", CONFIG, 1, wandb=True)
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_training_asks_before_anything_starts(wandb, tmp_path, monkeypatch, capsys):
    """No simulator is up yet, and nothing is written."""
    monkeypatch.setattr(train.training.simulators, "open_envs", None)
    directory = f"--config.run.directory={tmp_path / 'run'}"
    fields = ["--config.run.wandb=True", "--config.run.compilation_cache="]
    with pytest.raises(SystemExit) as exit_:
        train.main(["train", "--config=probe", directory, *fields])
    said = capsys.readouterr().err
    assert exit_.value.code == 2
    assert (
        said.startswith("error: run.wandb is True but wandb has no key") and said.count("\n") == 1
    )
    assert not (tmp_path / "run").exists()
