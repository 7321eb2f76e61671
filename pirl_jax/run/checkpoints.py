"""A checkpoint as every command takes it: found once, held, in agreement, and on the record.

Refuses to know arrays and devices.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import pathlib
import time
from typing import Any

import ml_collections

from pirl_jax.core import atomic, outside, page
from pirl_jax.weights import claims, folders, resolve, sources, store

REMOVAL_S = 2.0  # a checkpoint that is being removed is gone by then
RECORD = "checkpoint.json"  # in the assets of a run: what it started from
MODE_NAMES = {"zscore": "mean and std", "quantile": "quantiles", "": "normalised as nobody says"}


@dataclasses.dataclass(frozen=True)
class Record:
    """What was found and chosen, before anything is loaded."""

    path: str  # of the weights
    maker: str  # whose layout it is
    family: str  # pi0 | pi0.5
    step: int | None
    tensors: int
    files: int  # that hold them; 0: a folder of orbax
    statistics: str  # where they lie
    norm_mode: str  # "": no file says it, and nobody was asked
    action_horizon: int  # 0: the same
    says: dict[str, Any]  # field of the model section -> [value, key and file that say so]
    notes: dict[str, Any]  # of the files, what no field of ours is

    def __str__(self) -> str:
        parts = [f"{self.family} of {self.maker}"]
        if self.step is not None:
            parts.append(f"step {self.step}")
        shards = f" in {self.files} shards" if self.files > 1 else ""
        parts.append(f"{self.tensors} tensors{shards} ({self.path})")
        parts.append(f"statistics from {self.statistics or 'nowhere'}")
        parts.append(MODE_NAMES[self.norm_mode])
        parts.append(f"horizon {self.action_horizon or 'unknown'}")
        return ", ".join(parts)

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def record(source: sources.Source, statistics: str, model: page.Model | None = None) -> Record:
    """Of a whole checkpoint that was opened.

    Args:
      statistics: where they lie.
      model: how it will be used; None: only what its files say is known.
    """
    place = source.place
    said = claims.read(place)
    known = {claim.field: claim.value for claim in said.claims}
    if model is not None:
        known = {"norm_mode": model.norm_mode, "action_horizon": model.action_horizon}
    files = 0
    if place.kind == "safetensors" and place.weights.is_dir():
        files = len(list(place.weights.glob("model*.safetensors")))
    return Record(
        path=str(place.weights),
        maker=said.maker,
        family="pi0.5" if source.cfg.pi05 else "pi0",
        step=place.step,
        tensors=source.num_tensors,
        files=files,
        statistics=statistics,
        norm_mode=known.get("norm_mode", ""),
        action_horizon=known.get("action_horizon", 0),
        says={claim.field: [claim.value, claim.source] for claim in said.claims},
        notes=said.notes,
    )


# ---- held ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def held(path: str | pathlib.Path, iteration: int = -1) -> Iterator[resolve.Place]:
    """The checkpoint at a path, intact, which nobody removes before the block ends.

    Args:
      iteration: -1 is the newest.

    Raises:
      ValueError: there is none, more than one is meant, it is damaged, or went away meanwhile.
    """
    with found(path, iteration) as place, _while_it_is_there(place.folder):
        folders.require_intact(place.folder)
        yield place


@contextlib.contextmanager
def found(path: str | pathlib.Path, iteration: int = -1) -> Iterator[resolve.Place]:
    """As `held`, of which only small files are read: whether the others are whole nobody asks."""
    path = pathlib.Path(path)
    with folders.holding(path, iteration) as folder:
        yield resolve.find(folder, iteration)


@contextlib.contextmanager
def _while_it_is_there(path: pathlib.Path) -> Iterator[None]:
    """Where storage has no locks, a run that still trains removes what somebody reads."""
    try:
        yield
    except Exception as error:
        # Removing takes a while, too.
        deadline_s = time.monotonic() + REMOVAL_S
        while path.exists() and time.monotonic() < deadline_s:
            time.sleep(0.1)
        if path.exists():
            raise
        raise ValueError(
            f"checkpoint {path} went away while it was read; its run still trains:"
            f" run the same command again, or raise run.keep there"
        ) from error


def identity(place: resolve.Place) -> dict[str, Any]:
    """What names a checkpoint: its place, its iteration and when it was written.

    A copy of a run keeps that time.  Foreign checkpoints have no iteration.
    """
    if place.kind != "pirl" or place.step is None:
        written_ns = place.weights.stat().st_mtime_ns
        return {"run": str(place.weights), "iteration": None, "written_ns": written_ns}
    saved = store.Store(place.folder.parent, create=False)
    try:
        return {"run": str(place.run or place.folder.parent)} | saved.identity(place.step)
    finally:
        saved.close()


# ---- in agreement --------------------------------------------------------------------------------


def agreed(
    raw: ml_collections.ConfigDict,
    path: str | pathlib.Path,
    iteration: int = -1,
    given: Sequence[str] = (),
) -> ml_collections.ConfigDict:
    """The page with what the files of a checkpoint say about themselves.

    Where model.preset is empty, fields that still have their default take what the files say.

    Args:
      given: fields that the command line sets, whatever to.

    Raises:
      ValueError: one sentence with every contradiction, both values and the file.
    """
    with found(path, iteration) as place:
        said = claims.read(place)
    taken, wrong, flags = [], [], []
    for claim in said.claims:
        current = raw.model[claim.field]
        if current == claim.value:
            continue
        if _is_open(raw, claim.field) and f"model.{claim.field}" not in given:
            taken.append(claim)
            continue
        wrong.append(
            f"{claim.field} is {claim.value} in the checkpoint ({claim.source}) and {current} in "
            f"the configuration"
        )
        flags.append(f"--config.model.{claim.field}={claim.value}")
    if wrong:
        without = ["--config.model.preset="] if raw.model.preset else []
        raise ValueError(f"{'; '.join(wrong)}; {' '.join([*without, *flags])} would agree")
    for claim in taken:
        raw.model[claim.field] = claim.value
        print(f"model.{claim.field}={claim.value} is taken from {claim.source}")
    return raw


def _is_open(raw: ml_collections.ConfigDict, field: str) -> bool:
    """Whether nobody has decided on a field of the model section."""
    return not raw.model.preset and raw.model[field] == getattr(page.Model(), field)


# ---- what a run started from -------------------------------------------------------------------


def save(run_dir: pathlib.Path, started_from: Record) -> None:
    """For whoever looks at the run, and for its resumes."""
    path = run_dir / "assets" / RECORD
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_json(path, started_from.as_json())


def agreed_again(
    raw: ml_collections.ConfigDict, run_dir: pathlib.Path, given: Sequence[str] = ()
) -> ml_collections.ConfigDict:
    """As `agreed`, for a resume, whose checkpoint to start from may be gone.

    Whoever contradicts it by a flag means the run to change.
    """
    path = run_dir / "assets" / RECORD
    if not path.is_file():
        return raw
    remedy = f"move {path} away and set the model section by flags"
    says = outside.part(outside.read_json(path, remedy=remedy), "says", dict, path, remedy)
    for field, entry in says.items():
        is_given = f"model.{field}" in given
        if field in raw.model and _is_open(raw, field) and not is_given:
            raw.model[field] = outside.part(entry, "", list, path, remedy)[0]
    return raw
