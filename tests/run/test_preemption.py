"""Signals as a scheduler, a terminal and a launch script send them, to small programs."""

import asyncio
import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest

from pirl_jax import __main__, serve
from pirl_jax.envs import child
from pirl_jax.run import preemption

ROOT = pathlib.Path(__file__).parents[2]
BUSY_IN_C = "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"  # for ever, without the lock


def start(body, arguments="'the same again goes on', 75", **options):
    """A program that says "ready" and does `body` under a `watch` with these arguments."""
    program = textwrap.dedent("""
        import contextlib, hashlib, os, signal, sys, threading, time
        from pirl_jax.run import preemption
        preemption.GRACE_S = 0.7
        preemption.ECHO_S = 0.3
        @contextlib.contextmanager
        def watching():
            with preemption.watching(ARGUMENTS) as globals()["watch"]:
                yield
        @watching()
        def main():
            print("ready", flush=True)
            BODY
    """)
    body = textwrap.indent(textwrap.dedent(body), "    ").strip()
    program = program.replace("ARGUMENTS", arguments).replace("BODY", body) + "main()\n"
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    assert process.stdout.readline() == "ready\n", process.communicate()
    time.sleep(0.1)  # until it has begun with the next line
    return process


def end(process, *numbers, pause_s=0.4):
    """Send the signals one after the other -> exit code, what it complained of."""
    said = ""
    try:
        for number in numbers:
            process.send_signal(number)
            if number is not numbers[-1] or len(numbers) > 1:
                # However busy the machine is: what comes too soon is an echo of the first.
                said += process.stderr.readline() if not said else ""
                time.sleep(pause_s)
        _, rest = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    return process.returncode, (said + rest).strip()


@pytest.mark.parametrize("number", child.ENDING)
def test_a_command_ends_in_one_line_and_cleans_up(number, tmp_path):
    body = f"""
        try:
            time.sleep(60)
        finally:
            open({str(tmp_path / "tidied")!r}, "w").close()
    """
    assert end(start(body), number) == (75, f"{number.name}: the same again goes on")
    assert (tmp_path / "tidied").exists()


def test_where_going_on_makes_no_sense_the_code_is_that_of_the_signal():
    process = start("time.sleep(60)", arguments="'nothing was compared'")
    assert end(process, signal.SIGINT) == (130, "SIGINT: nothing was compared")


def test_code_in_c_keeps_no_command_alive():
    assert end(start(BUSY_IN_C), signal.SIGTERM)[0] == 75


def test_a_second_signal_ends_at_once():
    """Though the main thread is in C, and what was asked for would take long."""
    body = f"""
        with watch.patient(lambda: None):
            {BUSY_IN_C}
    """
    process = start(body)
    began_s = time.monotonic()
    code, said = end(process, signal.SIGTERM, signal.SIGTERM)
    assert code == 128 + signal.SIGTERM and time.monotonic() - began_s < 5
    assert said == "SIGTERM: saving what can be saved; a second signal ends at once"


SAVE = """
    asked = threading.Event()
    with watch.patient(asked.set):
        asked.wait()
        time.sleep(1.2)
        print("saved", flush=True)
"""


@pytest.mark.parametrize(
    "numbers, pause_s",
    [
        ([signal.SIGTERM, signal.SIGTERM], 0.05),  # a script passes on what its group got anyway
        ([signal.SIGUSR1, signal.SIGTERM], 0.5),  # Slurm foretells the end, then it comes
    ],
)
def test_what_is_no_second_wish(numbers, pause_s):
    process = start(SAVE)
    for number in numbers:
        process.send_signal(number)
        time.sleep(pause_s)
    said, complaint = process.communicate(timeout=60)
    assert process.returncode == 1 and said == "saved\n"
    ending = f"{numbers[0].name}: everything is saved; the same again goes on"
    assert complaint.strip().endswith(f"endings.Preempted: {ending}")


def test_what_was_ignored_stays_ignored():
    """As by nohup; a process inherits what its parent ignores."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start("time.sleep(1)")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert end(process, signal.SIGHUP) == (0, "")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_nobody_has_to_read_what_a_command_says(stream):
    """`pirl ... | head`: no traceback, and the work is done."""
    body = f"""
        time.sleep(0.3)
        for _ in range(100):
            print("x" * 1000, file=sys.{stream}, flush=True)
        os._exit(7)
    """
    process = start(body)
    getattr(process, stream).close()
    other = process.stderr if stream == "stdout" else process.stdout
    assert other.read() == "" and process.wait(20) == 7
    other.close()


@pytest.mark.parametrize("name", [*__main__.COMMANDS])
def test_every_command_is_watched(name):
    path = (
        ROOT
        / "pirl_jax"
        / ("bench/__main__.py" if name == "bench" else f"{name.replace('-', '_')}.py")
    )
    main = path.read_text().partition("\ndef main(")
    assert "@preemption.watching(" in main[0] or "preemption.watching(" in main[2][:300]


@pytest.mark.parametrize("number", child.ENDING)
def test_a_server_ends_normally(number, monkeypatch):
    """That is how it ends at all; before it serves it ends as other commands do."""
    handlers = {each: signal.getsignal(each) for each in child.ENDING}

    @contextlib.asynccontextmanager
    async def serving(*_):
        asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), number)
        yield

    monkeypatch.setattr(serve, "serving", serving)
    with preemption.watching("the policy was not served yet"), socket.create_server(("", 0)) as on:
        asyncio.run(serve._until_signal(None, {}, on, "", 0.0, None))
    for each, handler in handlers.items():
        signal.signal(each, handler)


def test_ctrl_c_while_modules_load_needs_no_traceback():
    """`pirl COMMAND`; the module here loads for ever."""
    code = "import sys, time; from pirl_jax import __main__; "
    code += "__main__.importlib.import_module = lambda _: print('ready') or time.sleep(60); "
    code += "__main__.main(['pirl', 'train'])"
    command = [sys.executable, "-u", "-c", code]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    assert end(process, signal.SIGINT) == (-signal.SIGINT, "")


def test_nobody_has_to_read_what_there_is():
    process = subprocess.Popen(
        [sys.executable, "-m", "pirl_jax"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(20) == 0
    process.stderr.close()


def test_the_line_names_the_command(monkeypatch):
    words = ["--config", "a b.py", "--config.run.directory=$HOME/x"]
    started = f"-m pirl_jax.train --config 'a b.py' '{words[2]}' --resume auto"
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-m", "pirl_jax.train", *words])
    said = preemption.how_to_resume(["train.py", *words])
    assert said == f"to go on, in {os.getcwd()}: {sys.executable} {started}"
    for given in (["--resume", "auto"], ["--resume=auto"]):
        assert preemption.how_to_resume(["train.py", *given]).count("auto") == 1
    assert "--resume" not in preemption.how_to_resume(["train.py", "--plan-only"]), "nothing saved"


@pytest.mark.parametrize("given", [["--resume", "never"], ["--resume=never"]])
def test_the_command_that_goes_on_contradicts_nothing_and_shows_no_key(given, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_token_of_mine")
    words = ["--config=probe", *given, "--config.model.checkpoint=/x/hf_token_of_mine"]
    said = preemption.how_to_resume(["train.py", *words])
    assert "never" not in said and said.endswith(" --resume auto")
    assert "hf_token_of_mine" not in said and "--config=probe" in said
