"""What the mirrors of a run share: names at a service, the id to find a run again, who logged in.

Knows no service; wandb_service.py and swanlab_service.py do.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import importlib.util
import netrc
import os
import pathlib
import re
from typing import Any, Protocol
import uuid

from pirl_jax.core import atomic

ID = re.compile(rb"[0-9a-f]{32}")
PROJECT = "pirl_jax"


@dataclasses.dataclass(frozen=True)
class Labels:
    """What a run is called at a service, and whether anybody is asked at all."""

    project: str = ""  # empty: the service's own variable, or PROJECT
    experiment: str = ""  # empty: the name of the run directory
    offline: bool = False


@dataclasses.dataclass(frozen=True)
class Opening:
    """What a service needs to begin or continue a run."""

    path: pathlib.Path  # the run directory
    config: Mapping[str, Any]
    labels: Labels
    number: str  # the id of the run there

    @property
    def experiment(self) -> str:
        return self.labels.experiment or self.path.name

    def project(self, service: str) -> str:
        variable = f"{service.upper()}_PROJECT"
        return self.labels.project or os.environ.get(variable, PROJECT)

    @property
    def mode(self) -> dict[str, str]:
        """What a service is told besides; without a word its own variable decides."""
        return {"mode": "offline"} if self.labels.offline else {}


class Service(Protocol):
    """A run at a service."""

    def log(self, iteration: int, row: Mapping[str, float]) -> None: ...

    def table(self, iteration: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None: ...

    def video(self, iteration: int, name: str, path: pathlib.Path) -> None: ...

    def finish(self) -> None: ...


def remedy(name: str) -> str:
    """What to do about a service that lets nobody in."""
    return f"set {name.upper()}_API_KEY or run.offline=True, or leave {name} out of run.backends"


def require_account(
    name: str, labels: Labels, without_account: Sequence[str], logged_in: Callable[[], bool]
) -> None:
    """
    Args:
      without_account: values of the service's variable for its mode that need none.
      logged_in: whether an earlier login left a key.

    Raises:
      ValueError: the package is absent, or nobody logged in.
    """
    require_package(name)
    prefix = name.upper()
    is_alone = labels.offline or os.environ.get(f"{prefix}_MODE") in without_account
    if not (is_alone or os.environ.get(f"{prefix}_API_KEY") or logged_in()):
        raise ValueError(
            f"run.backends has {name}, which has no key ({name} login); {remedy(name)}"
        )


def require_package(name: str) -> None:
    """Raises: ValueError where an optional package is not installed."""
    if importlib.util.find_spec(name) is None:
        raise ValueError(
            f"run.backends has {name}, which is not installed; run pip install {name}, or leave it"
            f" out"
        )


def has_login(files: Sequence[pathlib.Path], host: str | None = None) -> bool:
    """Whether one of these files keeps a key: of that host, or of any."""
    for file in files:
        try:
            kept = netrc.netrc(file)
        except (OSError, netrc.NetrcParseError):
            continue  # the service reads none of it either
        if kept.authenticators(host) if host is not None else kept.hosts:
            return True
    return False


def identity(path: pathlib.Path, name: str, set_aside: Callable[[pathlib.Path, str], None]) -> str:
    """The id in that file; a new one where there is none, or a damaged one.

    name: of the service.
    set_aside: (file, reason) puts a damaged file out of the way.
    """
    if path.exists():
        known = path.read_bytes().strip()
        if ID.fullmatch(known):
            return known.decode()
        set_aside(path, f"{path} is no id, so that {name} gets another run")
    number = uuid.uuid4().hex
    atomic.write_text(path, number)
    return number
