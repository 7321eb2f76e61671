"""Where files made once per machine are kept: in the user's cache, or where nobody can write there
in a temporary folder.

Every process of a user finds the same places.  Refuses to know what is kept.
"""

import functools
import importlib.util
import os
import pathlib
import tempfile

ROOT_VARIABLE = "XDG_CACHE_HOME"
# Compiled functions of robosuite: numba refuses to be imported with where there is no place.
NUMBA_VARIABLE = "NUMBA_CACHE_DIR"
MATPLOTLIB_VARIABLE = "MPLCONFIGDIR"  # would complain in every process
NO_PLACE = f"set {ROOT_VARIABLE} to a folder that can be written"


def expanded(path: str | os.PathLike) -> pathlib.Path:
    """With the home folder for ~, which no shell expands in a variable of a job file."""
    return pathlib.Path(os.path.expanduser(path))


def users(name: str) -> pathlib.Path:
    """A folder of ours in the user's cache, whether it can be written or not."""
    return _users_root() / "pirl_jax" / name


def folder(name: str) -> pathlib.Path:
    """The same where it can be written, else its stand-in.

    Raises:
        ValueError: there is neither.
    """
    own = users(name)
    return own if can_write(own.parent) else _stand_in() / name


def find(name: str, file: str) -> pathlib.Path:
    """Where a file of such a folder is, or will be: one that was made before its disk became
    read-only is there."""
    own = users(name) / file
    return own if own.exists() else folder(name) / file


@functools.cache
def can_write(place: pathlib.Path) -> bool:
    """Whether the folder and files in it can be made; asked once, leaves nothing behind."""
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError:
        return False
    return True


def variables() -> dict[str, str]:
    """Environment variables with which libraries find a place, where they would find none.

    Raises:
        ValueError: there is none.
    """
    chosen = {}
    if not any(map(can_write, _numba_places())):
        chosen[NUMBA_VARIABLE] = str(_stand_in() / "numba")
    config = os.environ.get(MATPLOTLIB_VARIABLE) or _of_home("XDG_CONFIG_HOME", ".config")
    if not can_write(expanded(config)):
        chosen[MATPLOTLIB_VARIABLE] = str(_stand_in() / "matplotlib")
    return chosen


def moved() -> str:
    """What is kept elsewhere than usual, in a sentence; "" where nothing is.

    Raises:
        ValueError: there is no other place.
    """
    own = users("")
    if can_write(own) and NUMBA_VARIABLE not in variables():
        return ""
    return (
        f"caches cannot be written in {own if not can_write(own) else 'any place of numba'} and"
        f" are kept in {_stand_in()}, perhaps until the machine restarts; {NO_PLACE}"
    )


def _users_root() -> pathlib.Path:
    return expanded(_of_home(ROOT_VARIABLE, ".cache"))


def _of_home(variable: str, name: str) -> str:
    return os.environ.get(variable) or f"~/{name}"


def _numba_places() -> list[pathlib.Path]:
    """Where numba looks for one that it can write, in its order."""
    chosen = os.environ.get(NUMBA_VARIABLE)
    own = [pathlib.Path(chosen)] if chosen else []
    return [*own, *_beside_robosuite(), _users_root() / "numba"]


def _beside_robosuite() -> list[pathlib.Path]:
    spec = importlib.util.find_spec("robosuite")
    if spec is None:
        return []
    return [pathlib.Path(spec.submodule_search_locations[0], "utils", "__pycache__")]


@functools.cache
def _stand_in() -> pathlib.Path:
    """A folder of this user's alone: what lies there is code that numba runs.

    Raises:
        ValueError: it is somebody else's, or cannot be made.
    """
    try:
        place = pathlib.Path(tempfile.gettempdir(), f"pirl_jax_{os.getuid()}")
        place.mkdir(mode=0o700, exist_ok=True)
        found = place.lstat()
    except OSError as error:
        raise ValueError(
            f"no cache can be written, in {users('')} or in a temporary folder"
            f" ({error.strerror}); {NO_PLACE}"
        ) from error
    is_ours = found.st_uid == os.getuid() and found.st_mode & 0o077 == 0
    if not is_ours or place.is_symlink() or not can_write(place):
        raise ValueError(f"{place} is not a folder of this user's alone; {NO_PLACE}")
    return place
