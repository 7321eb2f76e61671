"""Keys and tokens that a command is given, or finds in its environment, are in no file it writes.

Nor in what it prints.  Each writer runs with secrets in every place that can carry one.
"""

import importlib.machinery
import json
import sys
import types

import numpy as np
import pytest

from pirl_jax import compare, convert, evaluate
from pirl_jax.bench import results
from pirl_jax.core import page, secrets
from pirl_jax.monitor import journal, log, services
from pirl_jax.policy import normalize
from pirl_jax.run import command

OF_A_FLAG = "key-of-a-flag-5c1"
OF_AN_ADDRESS = "word-of-an-address-77"
OF_THE_ENVIRONMENT = {
    "PIRL_API_KEY": "served-key-1f0a9",
    "HF_TOKEN": "hf_token_of_mine_42",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HUB_PASSWORD": "correct horse",
}
ALL = (OF_A_FLAG, OF_AN_ADDRESS, *OF_THE_ENVIRONMENT.values())
ADDRESS = f"ws://me:{OF_AN_ADDRESS}@host:8000"
ARGV = [
    *("pirl", "--api-key", OF_A_FLAG, f"--policy={ADDRESS}", f"--key={OF_A_FLAG}"),
    f"--output=https://host/x?token={OF_AN_ADDRESS}",
    *(f"--note={value}" for value in OF_THE_ENVIRONMENT.values()),
]


@pytest.fixture(autouse=True)
def planted(monkeypatch):
    for name, value in OF_THE_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(secrets, "_told", set())
    monkeypatch.setattr(sys, "argv", ARGV)


@pytest.fixture
def nothing_shows(tmp_path, capsys):
    """nothing_shows(): of what was written since, and printed."""

    def check(least=1):
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert len(files) >= least
        said = capsys.readouterr()
        shown = {path.name: path.read_bytes().decode(errors="replace") for path in files}
        shown |= {"stdout": said.out, "stderr": said.err}
        names = " ".join(str(path) for path in files)
        for place, text in (shown | {"names": names}).items():
            found = [secret for secret in ALL if secret in text]
            assert not found, f"{place} shows {found}"

    return check


def test_the_test_finds_a_secret(tmp_path, nothing_shows):
    (tmp_path / "file").write_text(f"command: {OF_A_FLAG}")
    with pytest.raises(AssertionError, match="file shows"):
        nothing_shows()


def test_a_run(tmp_path, nothing_shows, monkeypatch):
    """Its configuration may name an address; a resume finds it unchanged."""
    told = {}
    run = types.SimpleNamespace(define_metric=lambda *a, **k: None, finish=lambda: None)
    run.log = lambda row: None
    wandb = types.ModuleType("wandb")
    wandb.init = lambda **options: told.update(options) or run
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    wandb.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    fields = page.Page().as_dict()
    fields["model"]["checkpoint"] = f"/runs/{OF_THE_ENVIRONMENT['HUB_PASSWORD']}/x"
    fields["env"]["assets"] = ADDRESS
    for resume_at in (None, 3):
        started = log.RunDir(tmp_path, fields, resume_at, ("wandb",), services.Labels(offline=True))
        started.write(3, {"actor/loss": 1.0})
        started.close()
        assert started.changed == []
    assert not [secret for secret in ALL if secret in json.dumps(told["config"])]
    recorded = json.loads((tmp_path / "environment.json").read_text())[0]["command"]
    assert recorded[:3] == ["pirl", "--api-key", "***"]
    nothing_shows(least=4)


def test_an_evaluation(tmp_path, nothing_shows, monkeypatch):
    """As it runs, with an identity of a server that echoes what it was told."""
    make = evaluate._without_network

    def echoing(options, settings, stack):
        made = make(options, settings, stack)
        server = {"greeting": f"hello {OF_A_FLAG}", "token": OF_AN_ADDRESS}
        made.identity.update(name=ADDRESS, server=server)
        return made

    monkeypatch.setattr(evaluate, "_without_network", echoing)
    options = ["--policy=random", f"--api-key={OF_A_FLAG}", f"--output={tmp_path / 'out'}"]
    few = ["rollout.num_envs=2", "eval.episodes_per_task=1", "run.compilation_cache="]
    fields = [f"--config.{field}" for field in few]
    evaluate.main(["evaluate", "--config=probe", *options, *fields])
    evaluated = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert evaluated["policy"]["name"] == "ws://***@host:8000"
    nothing_shows(least=3)


def test_the_journal_of_an_evaluation_goes_on_with_another_key(tmp_path, monkeypatch):
    for key in ("first-key-of-mine", "second-key-of-mine"):
        monkeypatch.setenv("PIRL_API_KEY", key)
        header = secrets.cleaned({"policy": {"name": f"ws://{key}@host", "server": {"key": key}}})
        journal.Journal(tmp_path / "episodes.jsonl", header).close()


def test_a_benchmark(tmp_path, nothing_shows):
    results.write(tmp_path / "bench.json", "plan", {"recipe": ADDRESS}, ARGV[1:])
    written = json.loads((tmp_path / "bench.json").read_text())
    assert written["environment"]["command"][3:5] == ["--api-key", "***"]
    nothing_shows()


def test_a_comparison(tmp_path, nothing_shows, monkeypatch):
    summary = {
        "panel": "p",
        "variant": "v",
        "seed": 0,
        "command": ARGV,
        "environment": {"git": OF_A_FLAG},
    }
    monkeypatch.setattr(compare, "summary", lambda run: summary)
    monkeypatch.setattr(compare.report, "comparison", lambda path, summaries: None)
    monkeypatch.setattr(compare.records, "read", lambda folder: None)
    monkeypatch.setattr(compare.story, "write", lambda path, found: None)
    monkeypatch.setattr(compare, "as_text", lambda summaries: "table")
    secrets.tell(OF_A_FLAG)
    compare.main(["compare", "run", f"--output={tmp_path / 'sheet'}"])
    assert (tmp_path / "sheet.json").is_file()
    nothing_shows()


def test_a_converted_checkpoint(tmp_path, nothing_shows, monkeypatch):
    """Statistics and where they come from are all that convert writes beside the weights."""
    lines = []
    monkeypatch.setattr(convert, "prepare", lambda *args: None)
    monkeypatch.setattr(convert, "convert", lambda *args, **kwargs: lines)
    stats = normalize.identity(8, 7)
    found = stats, f"{ADDRESS}/norm_stats.json"
    lines.append(convert._save_stats(tmp_path, found, "pirl", ""))
    convert.main(["convert", "here", "there", "--to=pirl"])
    nothing_shows()


@pytest.mark.parametrize("secret", ALL)
def test_a_sentence(secret, nothing_shows, tmp_path):
    (tmp_path / "file").write_text("")
    secrets.tell(OF_A_FLAG)
    secrets.tell(OF_AN_ADDRESS)
    with pytest.raises(SystemExit), command.user_errors():
        raise ValueError(f"the server refused {secret}; give another")
    with pytest.raises(SystemExit), command.known_endings():
        raise FileNotFoundError(2, "No such file", f"/x/{secret}")
    with pytest.raises(SystemExit):
        command.Parser("pirl x").error(f"{secret} is no option")
    nothing_shows()


def test_arrays_are_left_alone():
    """What is no JSON is another's business."""
    array = np.zeros(2)
    assert secrets.cleaned({"a": array})["a"] is array
