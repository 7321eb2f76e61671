"""A run at SwanLab.  Knows no metric."""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

from pirl_jax.core import paths
from pirl_jax.monitor import columns, services

WITHOUT_ACCOUNT = ("offline", "local", "disabled")  # values of SWANLAB_MODE
FOLDER = "swanlog"  # that the package makes in the run directory


def check(labels: services.Labels) -> None:
    """Raises: ValueError where the package is absent, or nobody logged in."""
    services.require_account("swanlab", labels, WITHOUT_ACCOUNT, _logged_in)


def _logged_in() -> bool:
    """Whether `swanlab login` left a key: of this folder, or of this user."""
    own = paths.of_variable("SWANLAB_ROOT") or paths.of_variable("SWANLAB_SAVE_DIR")
    folders = [paths.absolute(".swanlab"), own or paths.absolute("~/.swanlab")]
    return services.has_login([folder / ".netrc" for folder in folders])


class Run:
    """Begun or continued."""

    def __init__(self, opening: services.Opening) -> None:
        import swanlab  # an optional package

        self._swanlab = swanlab
        self._run = swanlab.init(
            project=opening.project("swanlab"),
            name=opening.experiment,
            id=opening.number,
            resume="allow",
            log_dir=str(opening.path / FOLDER),
            config=dict(opening.config),
            **opening.mode,
        )

    def log(self, iteration: int, row: Mapping[str, float]) -> None:
        self._run.log(dict(row), step=iteration)

    def table(self, iteration: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        # Its own kind of table needs another package.
        text = columns.of_rows(rows)
        self._run.log({name: self._swanlab.Text(text)}, step=iteration)

    def video(self, iteration: int, name: str, path: pathlib.Path) -> None:
        """It shows GIF alone: the MP4 stays in the run directory."""

    def finish(self) -> None:
        self._run.finish()
