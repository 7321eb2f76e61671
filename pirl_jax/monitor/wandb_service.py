"""A run at Weights & Biases.  Knows no metric."""

from collections.abc import Mapping, Sequence
import os
import pathlib
from typing import Any
import urllib.parse

from pirl_jax.core import paths
from pirl_jax.monitor import services

WITHOUT_ACCOUNT = ("offline", "disabled", "dryrun")  # values of WANDB_MODE
HOST = "https://api.wandb.ai"
FOLDER = "wandb"  # that the package makes in the run directory


def check(labels: services.Labels) -> None:
    """Raises: ValueError where the package is absent, or nobody logged in."""
    services.require_account("wandb", labels, WITHOUT_ACCOUNT, _logged_in)


def _logged_in() -> bool:
    """Whether `wandb login` left a key: in the file that programs keep such things in."""
    url = urllib.parse.urlsplit(os.environ.get("WANDB_BASE_URL") or HOST)
    named = paths.of_variable("NETRC")
    files = [named] if named else [paths.absolute("~/.netrc"), paths.absolute("~/_netrc")]
    return services.has_login(files, url.hostname or "")


class Run:
    """Begun or continued."""

    def __init__(self, opening: services.Opening) -> None:
        import wandb  # an optional package

        self._wandb = wandb
        self._run = wandb.init(
            project=opening.project("wandb"),
            id=opening.number,
            resume="allow",  # goes on where a run of this id exists, else starts it
            dir=str(opening.path),
            config=dict(opening.config),
            name=opening.experiment,
            **opening.mode,
        )
        # wandb's own step may not go back after a resume; iteration is the axis instead.
        self._run.define_metric("*", step_metric="iteration")

    def log(self, iteration: int, row: Mapping[str, float]) -> None:
        self._run.log({"iteration": iteration} | row)

    def table(self, iteration: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        table = self._wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
        self._run.log({"iteration": iteration, name: table})

    def video(self, iteration: int, name: str, path: pathlib.Path) -> None:
        self._run.log({"iteration": iteration, name: self._wandb.Video(str(path), format="mp4")})

    def finish(self) -> None:
        self._run.finish()
