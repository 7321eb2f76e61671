"""Normalisation statistics that travel with weights: where each layout keeps them.

Those of a checkpoint lie in its own folders, never in a neighbour's.  Whether they fit the robot is
the business of statistics.py.
"""

from collections.abc import Iterable
import pathlib
import re
import shlex

from pirl_jax.core import outside
from pirl_jax.policy import normalize
from pirl_jax.weights import lerobot, resolve

LIBERO_ID = "physical-intelligence/libero"  # openpi's name of the data set, part of the path
FILE = "norm_stats.json"
FLAG = "--config.model.norm_stats"  # which every command but convert has
IN_ASSETS = f"assets/**/{FILE}"
# Beside the weights, below the id of the data set (RLinf), which has one part or two.
BESIDE = (FILE, f"*/{FILE}", f"*/*/{FILE}")
# Folders of one checkpoint around its weights, from the inside to the outside.
AROUND = ("model_state_dict", "actor")
# Format -> where its readers look, from the folder of the weights; {} is the id of the data set.
PLACES = {
    "pirl": ("assets",),
    "openpi_jax": ("assets/{}",),
    "openpi_torch": ("assets/{}", "{}"),  # RLinf looks beside its PyTorch weights
}
PART_OF_ID = re.compile(r"[\w.-]+")


def find(
    place: resolve.Place, asset_id: str = "", flag: str = FLAG
) -> tuple[normalize.NormStats, str] | None:
    """Statistics of a checkpoint -> (statistics, where they lie), or None.

    asset_id: the data set, to choose where there are several.
    flag: of the command at hand, that takes a norm_stats.json.
    Raises: ValueError where several lie there and differ.
    """
    processors = None
    if place.kind == "safetensors" and _speaks_for(place):
        processors = lerobot.statistics(place.folder)
    for folder in _folders(place):
        files = _files(folder, place.kind)
        path = _choose(folder, files, asset_id, flag)
        if path is None:
            continue
        if processors is not None:
            raise ValueError(
                f"{place.folder} has statistics of LeRobot ({processors[1]}) and {path}; choose "
                f"with {_given(flag, path)}, or move that file away"
            )
        return normalize.load(path), str(path)
    if processors is None and place.kind == "safetensors" and _speaks_for(place):
        return lerobot.first_statistics(place.folder)
    return processors


def require_id(asset_id: str) -> str:
    """A data set's name as part of a path, such as physical-intelligence/libero.

    Raises: ValueError for what leads anywhere else.
    """
    parts = asset_id.split("/")
    plain = all(PART_OF_ID.fullmatch(part) and part.strip(".") for part in parts)
    if not plain:
        raise ValueError(
            f"{asset_id!r} is no name of a data set; write one like {LIBERO_ID}, of letters, "
            f"digits, '.', '-' and '_', its parts joined by '/'"
        )
    return asset_id


def _folders(place: resolve.Place) -> list[pathlib.Path]:
    """Of this checkpoint alone, from the inside to the outside."""
    folder = place.folder
    if not _speaks_for(place):
        return []
    found = [folder]
    if place.kind == "pirl":
        # Ours lie with the run, above the numbered folders.
        if place.step is not None:
            found.append(folder.parent)
        if place.run is not None:
            found.append(place.run)
    while folder.name in AROUND:
        folder = folder.parent
        found.append(folder)
    return found


def _speaks_for(place: resolve.Place) -> bool:
    """Whether the folder is that of this checkpoint.

    A file of any name that lies among others is not all that its folder is about.
    """
    if place.weights == place.folder or place.kind in resolve.ORBAX.values():
        return True
    name = place.weights.name
    if name in (resolve.WHOLE, resolve.INDEX, resolve.RLINF):
        return True
    suffixes = (resolve.SAFETENSORS, *resolve.PICKLED)
    others = [path for path in place.folder.iterdir() if path.suffix in suffixes]
    return len(others) == 1


def _files(folder: pathlib.Path, kind: str) -> list[pathlib.Path]:
    if kind == "pirl":
        path = folder / "assets" / FILE
        return [path] if path.is_file() else []
    patterns = [IN_ASSETS, FILE] if kind == "openpi_jax" else [IN_ASSETS, *BESIDE]
    found: set[pathlib.Path] = set()
    for pattern in patterns:
        found.update(folder.glob(pattern))
    return sorted(path for path in found if not _of_another(path, folder))


def _of_another(path: pathlib.Path, folder: pathlib.Path) -> bool:
    """Whether a folder in between is a checkpoint or a step of its own."""
    between = path.parent
    while between != folder:
        inner = between / resolve.LEROBOT
        if resolve.number(between.name) is not None or between.name == resolve.STEPS_IN:
            return True
        if resolve.holds_weights(between) or resolve.holds_weights(inner):
            return True
        between = between.parent
    return False


def _choose(
    folder: pathlib.Path, files: Iterable[pathlib.Path], asset_id: str, flag: str
) -> pathlib.Path | None:
    wanted = asset_id.split("/") if asset_id else []
    paths = []
    for path in files:
        parts = path.relative_to(folder).parent.parts
        if not wanted or list(parts[-len(wanted) :]) == wanted:
            paths.append(path)
    # Copies are no choice: openpi_torch alone has two of them.
    if len({outside.read_text(path) for path in paths}) > 1:
        choices = " or ".join(_given(flag, path) for path in paths[: outside.MOST_LISTED])
        raise ValueError(
            f"{folder} has statistics of {len(paths)} data sets; choose one with {choices}"
        )
    return paths[0] if paths else None


def _given(flag: str, path: pathlib.Path) -> str:
    """As one writes it in a shell."""
    return f"{flag}={shlex.quote(str(path))}"


def save(
    folder: pathlib.Path, stats: normalize.NormStats, target: str, asset_id: str = ""
) -> list[pathlib.Path]:
    """Write them where the readers of a format look -> the files.

    target: key of PLACES.  asset_id: name of the data set, "" is LIBERO's.
    Raises: ValueError for statistics that those readers refuse, and for a name that leads away.
    """
    require_id(asset_id or LIBERO_ID)
    if target != "pirl":
        require_moments(stats)
    paths = []
    for place in PLACES[target]:
        path = folder / place.format(asset_id or LIBERO_ID) / FILE
        normalize.save(path, stats)
        paths.append(path)
    return paths


def require_moments(stats: normalize.NormStats) -> None:
    """openpi and RLinf read no statistics without mean and std, whatever they use of them.

    Raises: ValueError where they are absent.
    """
    for name, quantity in (("state", stats.state), ("actions", stats.actions)):
        if quantity.mean is None:
            raise ValueError(
                f"the statistics of {name} have quantiles alone, and openpi reads none without "
                f"mean and std; give a {FILE} with all of them with --norm-stats FILE"
            )
