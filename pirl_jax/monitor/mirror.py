"""Mirrors of the numbers at services: optional packages, and services that may be away.

A run that begins refuses a service that does not start.  A run that has begun never ends for one:
what failed is said once and stands in SERVICE_stopped.txt of the run directory, whose own files
have every number.  The id at a service lies there too, so that a resume finds the run again.  Knows
no metric.
"""

from collections.abc import Callable, Collection, Iterable
import pathlib
import shutil
import signal
import sys
import threading
import traceback
import types

from pirl_jax.core import atomic, endings, secrets
from pirl_jax.monitor import services, swanlab_service, wandb_service

SERVICES = {"wandb": wandb_service, "swanlab": swanlab_service}
FINISH_S = 60.0  # a service may send what it has for so long
HURRIED_S = 5.0  # and in a run that was asked to end


def check(backends: Collection[str], labels: services.Labels) -> None:
    """Before anything starts: whether mirrors can be begun, as far as this machine knows.

    Raises:
      ValueError: a package is absent, or nobody logged in.
    """
    for name in _named(backends):
        SERVICES[name].check(labels)


def _named(backends: Collection[str]) -> list[str]:
    return [name for name in SERVICES if name in backends]


class Mirror:
    """A run at one service, until that fails."""

    def __init__(self, name: str, path: pathlib.Path, service: services.Service | None) -> None:
        self._name = name
        self._path = path
        self._service = service

    def tell(self, what: Callable[[services.Service], None]) -> None:
        """Hand something on; a service that failed before is left alone."""
        if self._service is None:
            return
        try:
            what(self._service)
        # These end the run, whoever was being told.
        except endings.Failure:
            raise
        # Its own errors, its network library's and the system's have no base class in common.
        except Exception as error:
            self.stop(error)

    def stop(self, error: Exception) -> None:
        """The run goes on without it."""
        self._service = None
        noted = self._path / f"{self._name}_stopped.txt"
        atomic.write_text(noted, secrets.text("".join(traceback.format_exception(error))))
        print(
            f"note: {self._name} failed ({_said(error)}) and gets nothing more; the run goes on,"
            f" with every number in {self._path / 'metrics.jsonl'} and the error in {noted.name}",
            file=sys.stderr,
        )

    def finish(self) -> None:
        """The service sends what it has, for a limited time."""
        hurried = isinstance(sys.exception(), endings.Preempted)
        limit = HURRIED_S if hurried else FINISH_S
        self.tell(lambda service: _finish(service, limit))


def _finish(service: services.Service, limit_s: float) -> None:
    """SwanLab ends in the main thread alone, so that no other thread can wait for it.

    Raises:
      TimeoutError: the service takes longer.
    """
    if threading.current_thread() is not threading.main_thread():
        service.finish()
        return

    def over(number: int, frame: types.FrameType | None) -> None:
        raise TimeoutError(f"it still sends after {limit_s:.0f} s")

    handler = signal.signal(signal.SIGALRM, over)
    before = signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        service.finish()
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)
        signal.signal(signal.SIGALRM, handler)


def start(
    path: pathlib.Path,
    config: dict,
    backends: Collection[str],
    labels: services.Labels,
    set_aside: Callable[[pathlib.Path, str], None],
    began: bool,
) -> list[Mirror]:
    """The open mirrors of the run in that folder, which is made.

    set_aside: (file, reason) puts a damaged file out of the way.
    began: the run stands there, and goes on without a service that does not start.

    Raises:
      ValueError: a run that begins has a service that does not start; what was made for it is gone.
    """
    if not began:
        check(backends, labels)
    made = _absent(path)
    mirrors = []
    for name in _named(backends):
        path.mkdir(parents=True, exist_ok=True)
        id_path = path / f"{name}_id.txt"
        own = (id_path, path / SERVICES[name].FOLDER)
        made += [place for place in own if not place.exists()]
        number = services.identity(id_path, name, set_aside)
        try:
            if began:
                SERVICES[name].check(labels)
            opening = services.Opening(path, secrets.cleaned(config), labels, number)
            mirrors.append(Mirror(name, path, SERVICES[name].Run(opening)))
        except Exception as error:
            if began:
                mirrors.append(Mirror(name, path, None))
                mirrors[-1].stop(error)
                continue
            _undo(mirrors, made)
            raise ValueError(
                f"run.backends has {name}, which does not start ({_said(error)});"
                f" {services.remedy(name)}"
            ) from error
    return mirrors


def _said(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _undo(mirrors: Iterable[Mirror], made: Iterable[pathlib.Path]) -> None:
    for mirror in mirrors:
        mirror.finish()
    for place in made:
        if place.is_dir():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)


def _absent(path: pathlib.Path) -> list[pathlib.Path]:
    """The topmost folder that has to be made for a path, if any."""
    absent = [folder for folder in (path, *path.parents) if not folder.exists()]
    return absent[-1:]
