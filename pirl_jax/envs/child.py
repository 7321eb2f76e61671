"""One question to a process of its own: what may crash, hang or change this process (drivers, imports) runs there.

The module that is run answers with one JSON object as the last line of its output; `answer` writes it.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[
    2
]  # where the package lies: the child imports the same copy, from any folder
KILL_S = 5.0  # how long a killed process may take to go; one that hangs inside a driver cannot be killed at all


class ChildError(RuntimeError):
    """The process failed, crashed or gave no answer in time; one clause says which."""


def ask(
    arguments: Sequence[str],
    variables: Mapping[str, str | None] | None = None,
    timeout_s: float = 60.0,
) -> dict:
    """Run `python ARGUMENTS` and return the JSON object of its last line; raises ChildError within about timeout_s.

    variables: environment variables on top of this process's; None removes one.
    """
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, **(variables or {})}
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env={name: value for name, value in environment.items() if value is not None},
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
        with contextlib.suppress(
            subprocess.TimeoutExpired
        ):  # it is left behind; what matters is that we go on
            process.communicate(timeout=KILL_S)
        raise ChildError(f"no answer within {timeout_s:g} s") from error
    return _read(process.returncode, output.strip(), errors.strip())


def _read(code: int, output: str, errors: str) -> dict:
    if code < 0:
        raise ChildError(f"crashed with {signal.Signals(-code).name}")
    if code > 0 or not output:
        raise ChildError(
            errors.splitlines()[-1] if errors else f"ended with exit code {code} and no answer"
        )
    result = json.loads(output.splitlines()[-1])
    if "error" in result:
        raise ChildError(result["error"])
    return result


def answer(function: Callable[[], dict]) -> None:
    """In the child: write what `function` returns, or its exception as {"error": ...}, as one line of JSON."""
    try:
        result = function()
    except Exception as error:  # any of them is the answer; what destructors print later would hide it in the traceback
        result = {
            "error": f"{type(error).__name__}: {error}"
            if not isinstance(error, ValueError)
            else str(error)
        }
    sys.stdout.write("\n" + json.dumps(result) + "\n")
