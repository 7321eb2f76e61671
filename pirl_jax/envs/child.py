"""One question to a process of its own: what may crash, hang or change this process runs there.

Drivers and imports do.  The module that is run answers with one JSON object as the last line of its
output; `answer` writes it.  Refuses to know the questions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys

# Where the package lies: the child imports the same copy, from any folder.
ROOT = pathlib.Path(__file__).parents[2]
# Of simulators: modules are found as in the parent, and never by chance in the current folder.
PYTHON_FLAGS = ("-P",)
# How long a killed process may take to go; one that hangs inside a driver cannot be killed at all.
KILL_S = 5.0
# What a terminal or a scheduler sends to a whole process group; the parent decides what ends when.
ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class ChildError(RuntimeError):
    """The process failed, crashed or gave no answer in time; one clause says which."""


@contextlib.contextmanager
def shielded(*more: int) -> Iterator[None]:
    """Processes started in the block, by this thread, are not reached by ENDING and `more`.

    Neither between their start and their first line: a signal mask is inherited.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*ENDING, *more})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ask(
    arguments: Sequence[str],
    variables: Mapping[str, str | None] | None = None,
    timeout_s: float = 60.0,
) -> dict:
    """Run `python ARGUMENTS` and return the JSON object of its last line, within about timeout_s.

    variables: environment variables on top of this process's; None removes one.

    Raises:
        ChildError: there is no such answer.
    """
    with shielded():
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env=_environment(variables or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        process.kill()
        # One that does not go is left behind; what matters is that we go on.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=KILL_S)
        raise ChildError(f"no answer within {timeout_s:g} s") from error
    except BaseException:
        process.kill()  # this process is asked to end, and the child is not
        raise
    return _read(process.returncode, output.strip(), errors.strip())


def _environment(variables: Mapping[str, str | None]) -> dict[str, str]:
    search_path = [str(ROOT)]
    if os.environ.get("PYTHONPATH"):
        search_path.append(os.environ["PYTHONPATH"])
    merged = {**os.environ, "PYTHONPATH": os.pathsep.join(search_path), **variables}
    return {name: value for name, value in merged.items() if value is not None}


def _read(code: int, output: str, errors: str) -> dict:
    """The answer of a process that has ended with this exit code."""
    if code < 0:
        raise ChildError(f"crashed with {signal.Signals(-code).name}")
    if code > 0 or not output:
        # The last line of a traceback names the error.
        reason = errors.splitlines()[-1] if errors else f"ended with exit code {code} and no answer"
        raise ChildError(reason)
    result = json.loads(output.splitlines()[-1])
    if "error" in result:
        raise ChildError(result["error"])
    return result


def answer(function: Callable[[], dict]) -> None:
    """In the child: write what `function` returns, as one line of JSON.

    Its exception is an answer, too: {"error": ...}.
    """
    try:
        result = function()
    except ValueError as error:  # a sentence for the user as it is
        result = {"error": str(error)}
    except Exception as error:
        # Any of them: what destructors print later would hide it in the traceback.
        result = {"error": f"{type(error).__name__}: {error}"}
    # A line of its own, whatever was printed before without an end of line.
    sys.stdout.write("\n" + json.dumps(result) + "\n")
