"""The file of a benchmark: its result with the command, the machine and the package versions."""

from collections.abc import Sequence
import pathlib
from typing import Any

from pirl_jax.core import atomic, outside, secrets
from pirl_jax.monitor import log


def write(
    path: pathlib.Path, benchmark: str, result: dict[str, Any], arguments: Sequence[str]
) -> None:
    """arguments: the words after the command's own name."""
    environment = log.environment()
    # The first word that was typed is a path of this machine.
    shown = secrets.arguments(list(arguments))
    environment["command"] = ["python", "-m", "pirl_jax.bench", *shown]
    path.parent.mkdir(parents=True, exist_ok=True)
    written = {"benchmark": benchmark, "result": result, "environment": environment}
    atomic.write_json(path, written)


def read(path: pathlib.Path, benchmark: str, flag: str) -> dict[str, Any]:
    """The result that such a file holds.

    Raises:
      ValueError: it is not one of this benchmark.
    """
    remedy = f"give another {flag}"
    written = outside.read_json(path, remedy=remedy)
    if outside.part(written, "benchmark", str, path, remedy) != benchmark:
        raise ValueError(f"{path} is of bench {written['benchmark']}; {remedy}")
    return outside.part(written, "result", dict, path, remedy)
