"""What the launch scripts make of signals and exit codes; a stub stands for Python."""

import pathlib
import re
import shutil
import signal
import subprocess
import time

import pytest

from pirl_jax import train
from pirl_jax.run import command, config, learnable

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted(path.name for path in (ROOT / "launch").glob("*.sh"))
# Notes what it was started with and, asked to end, needs a moment for it.
STUB = """#!/usr/bin/env bash
echo "$@" >>"$CALLS"
end() { sleep 0.3; echo "saved after $1" >>"$CALLS"; exit 75; }
trap 'end HUP' HUP
trap 'end TERM' TERM
trap 'end USR1' USR1
[[ -z "${FAILS:-}" ]] || exit "$FAILS"
for _ in {1..200}; do sleep 0.05; done
"""


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """Starts a script of a checkout that is set up, in a process group of its own."""
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    functions, setting_up = (ROOT / "launch" / "setup.sh").read_text().split('mkdir -p "$VENV"')
    assert "relay()" in functions and "make_venv" in setting_up
    (tmp_path / "launch" / "setup.sh").write_text(functions + 'cd "$ROOT"\n')
    for name, text in {"python": STUB, "ssh": '#!/usr/bin/env bash\nexec bash -c "$2"\n'}.items():
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.delenv("SEEDS", raising=False)
    started = []

    def start(script, *arguments, calls=1):
        """Returns when the stub has been called so often."""
        process = subprocess.Popen(
            ["bash", str(tmp_path / "launch" / script), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        wait_for(lambda: len(said(tmp_path)) >= calls)
        time.sleep(0.1)  # until it has its handlers
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def said(folder):
    calls = folder / "calls"
    return calls.read_text().splitlines() if calls.exists() else []


def wait_for(condition, limit_s=10.0):
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def ended(process):
    """-> exit code, its complaints; whoever outlives it has nothing to add."""
    code = process.wait(20)
    calls = said(pathlib.Path(process.args[1]).parents[1])
    _, complaint = process.communicate(timeout=20)
    assert said(pathlib.Path(process.args[1]).parents[1]) == calls
    return code, complaint


@pytest.mark.parametrize(
    "number, passed_on",
    [
        (signal.SIGTERM, "TERM"),
        (signal.SIGHUP, "HUP"),
        (signal.SIGUSR1, "USR1"),
        (signal.SIGINT, "TERM"),  # what runs in the background ignores SIGINT
    ],
)
def test_learning_waits_for_the_trainer_and_says_how_to_go_on(launch, tmp_path, number, passed_on):
    process = launch("learning.sh", "tabletop", "pi0")
    process.send_signal(number)
    code, complaint = ended(process)
    again = f"bash {tmp_path}/launch/learning.sh tabletop pi0"
    assert code == 75 and complaint.strip().endswith(f"to go on: {again}")
    (start, saved) = said(tmp_path)  # and nothing was started after it
    assert "-m pirl_jax.train" in start and saved == f"saved after {passed_on}"


def test_the_evidence_is_played_at_low_priority_and_waited_for(launch, tmp_path, monkeypatch):
    """Asked to end it writes no tables; else it does, and keeps the exit code."""
    monkeypatch.setenv("SEEDS", "0 1")
    process = launch("learning.sh", "evidence", "a", "b", "--runs", "/somewhere")
    process.send_signal(signal.SIGTERM)
    code, complaint = ended(process)
    again = f"env SEEDS=0\\ 1 bash {tmp_path}/launch/learning.sh evidence a b --runs /somewhere"
    assert code == 75 and complaint.strip().endswith(f"to go on: {again}")
    (start, saved) = said(tmp_path)
    assert start == "-m pirl_jax.evidence play a b --runs /somewhere --seeds=0 1"
    assert saved == "saved after TERM" and "nice -n 15" in (ROOT / "launch/learning.sh").read_text()
    monkeypatch.setenv("FAILS", "2")
    code, _ = ended(launch("learning.sh", "evidence", calls=3))
    assert code == 2 and said(tmp_path)[2:] == [
        "-m pirl_jax.evidence play --seeds=0 1",
        "-m pirl_jax.evidence tables",
    ]


def test_learning_stops_where_a_run_fails(launch, tmp_path, monkeypatch):
    monkeypatch.setenv("FAILS", "2")
    code, complaint = ended(launch("learning.sh", "tabletop", "pi0"))
    assert code == 2 and len(said(tmp_path)) == 1 and "to go on" not in complaint


@pytest.mark.parametrize("suite", ["tabletop", "libero_object", "libero_spatial", "exploration"])
def test_every_training_that_learning_starts_could_learn(launch, tmp_path, monkeypatch, suite):
    """Its settings fit together; each writes into a folder of its own."""
    monkeypatch.setenv("FAILS", "0")  # the trainer ends at once, and well
    monkeypatch.setenv("SEEDS", "3")
    code, complaint = ended(launch("learning.sh", suite))
    *trainings, comparison = said(tmp_path)
    assert code == 0 and "-m pirl_jax.compare" in comparison, complaint
    directories = set()
    for training in trainings:
        program, *arguments = training.removeprefix("-m ").split()
        assert program == "pirl_jax.train"
        monkeypatch.chdir(ROOT)
        _, raw = command.parse([program, *arguments], train._parser())
        settings = config.settings(raw)
        learnable.check(settings.raw)
        assert settings.raw.seed == 3
        directories.add(settings.raw.run.directory)
    assert len(directories) == len(trainings) > 6


def test_the_quickstart_is_the_trainer(launch, tmp_path):
    process = launch("quickstart.sh")
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 75 and said(tmp_path)[1] == "saved after TERM"


def test_a_signal_to_the_script_of_several_hosts_is_one_to_all(launch, tmp_path):
    process = launch("hosts.sh", "one,two", "--config", "a recipe", calls=2)
    process.send_signal(signal.SIGTERM)
    code, complaint = ended(process)
    assert code == 75 and said(tmp_path)[2:] == ["saved after TERM"] * 2
    again = f"bash {tmp_path}/launch/hosts.sh one\\,two --config a\\ recipe --resume auto"
    assert complaint.strip().endswith(f"to go on: {again}")


def test_hosts_save_where_the_script_is_gone(launch, tmp_path):
    launch("hosts.sh", "one,two", calls=2).kill()
    wait_for(lambda: said(tmp_path)[2:] == ["saved after HUP"] * 2)


def test_a_host_that_fails_ends_the_others(launch, tmp_path, monkeypatch):
    monkeypatch.setenv("FAILS", "3")
    assert launch("hosts.sh", "one,two").wait(20) == 3


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_script_leaves_a_command_alone(script):
    """Whatever works for long is the script's own process, or signals are passed on to it."""
    text = (ROOT / "launch" / script).read_text()
    lines = re.findall(
        r"^.*python -m pirl_jax\.(?:train|bench|evidence play).*$", text, flags=re.MULTILINE
    )
    lines = [line.strip() for line in lines if not line.startswith("#")]
    alone = [line for line in lines if not re.match(r"exec |relay |.* &$", line)]
    assert not alone, alone
