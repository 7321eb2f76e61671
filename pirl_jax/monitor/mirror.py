"""A mirror of the metrics at Weights & Biases: an optional package, and a service that may be away.

Its id lies in the run directory, so that a resume finds it again.  Knows no metric.
"""

import importlib.util
import netrc
import os
import pathlib
import shutil
from typing import Any
import urllib.parse
import uuid

from pirl_jax.core import paths, secrets

WITHOUT_ACCOUNT = ("offline", "disabled", "dryrun")  # values of WANDB_MODE
SERVICE = "https://api.wandb.ai"
REMEDY = "set WANDB_API_KEY or WANDB_MODE=offline, or run.wandb=False"


def check() -> None:
    """Before anything starts: whether a mirror can be begun, as far as this machine knows.

    Raises:
      ValueError: the package is absent, or nobody logged in.
    """
    if importlib.util.find_spec("wandb") is None:
        raise ValueError(
            "run.wandb is True but wandb is not installed; run pip install wandb or set it to False"
        )
    without_account = os.environ.get("WANDB_MODE") in WITHOUT_ACCOUNT
    if not (without_account or os.environ.get("WANDB_API_KEY") or _logged_in()):
        raise ValueError(f"run.wandb is True but wandb has no key (wandb login); {REMEDY}")


def _logged_in() -> bool:
    """Whether `wandb login` left a key: in the file that programs keep such things in."""
    url = urllib.parse.urlsplit(os.environ.get("WANDB_BASE_URL") or SERVICE)
    named = paths.of_variable("NETRC")
    for file in [named] if named else [paths.absolute("~/.netrc"), paths.absolute("~/_netrc")]:
        try:
            found = netrc.netrc(file).authenticators(url.hostname or "")
        except (OSError, netrc.NetrcParseError):
            continue  # wandb reads none of it either
        if found:
            return True
    return False


def start(path: pathlib.Path, config: dict) -> Any:
    """The open mirror of the run in that folder, which is made.

    Raises:
      ValueError: it cannot be begun; what was made for it is gone again.
    """
    check()
    import wandb  # an optional package

    made = _absent(path)
    path.mkdir(parents=True, exist_ok=True)
    id_path = path / "wandb_id.txt"
    made = made or [place for place in (id_path, path / "wandb") if not place.exists()]
    if not id_path.exists():
        id_path.write_text(uuid.uuid4().hex)
    try:
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "pirl_jax"),
            id=id_path.read_text(),
            resume="allow",  # goes on where a run of this id exists, else starts it
            dir=str(path),
            config=secrets.cleaned(config),
            name=path.name,
        )
    # Its own errors, its network library's and the system's have no base class in common.
    except Exception as error:
        for place in made:
            _remove(place)
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"run.wandb is True but wandb does not start ({said}); {REMEDY}"
        ) from error
    # wandb's own step may not go back after a resume; iteration is the axis instead.
    run.define_metric("*", step_metric="iteration")
    return run


def _absent(path: pathlib.Path) -> list[pathlib.Path]:
    """The topmost folder that has to be made for a path, if any."""
    absent = [folder for folder in (path, *path.parents) if not folder.exists()]
    return absent[-1:]


def _remove(place: pathlib.Path) -> None:
    if place.is_dir():
        shutil.rmtree(place, ignore_errors=True)
    else:
        place.unlink(missing_ok=True)
