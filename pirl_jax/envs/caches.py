"""Where files made once per machine are kept: in the user's cache, or where nobody can write there
in a temporary folder.

Every process of a user finds the same places.  Refuses to know what is kept.
"""

import functools
import importlib.util
import os
import pathlib
import tempfile

from pirl_jax.envs import places

ROOT_VARIABLE = "XDG_CACHE_HOME"
# Compiled functions, ours and robosuite's: modules that have some cannot be imported without.
NUMBA_VARIABLE = "NUMBA_CACHE_DIR"
MATPLOTLIB_VARIABLE = "MPLCONFIGDIR"  # would complain in every process
NO_PLACE = f"set {ROOT_VARIABLE} to a folder that can be written"


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
    own = places.of_variable(NUMBA_VARIABLE)
    if not _numba_has_a_place():
        chosen[NUMBA_VARIABLE] = str(_stand_in() / "numba")
    elif own is not None:
        chosen[NUMBA_VARIABLE] = str(own)  # numba would make a folder called ~
    config = places.of_variable(MATPLOTLIB_VARIABLE) or _of_home("XDG_CONFIG_HOME", ".config")
    if not can_write(config):
        chosen[MATPLOTLIB_VARIABLE] = str(_stand_in() / "matplotlib")
    return chosen


def prepare() -> None:
    """For this process, which imports such libraries too; before it does."""
    os.environ.update(variables())


def moved() -> str:
    """What is kept elsewhere than usual, in a sentence; "" where nothing is.

    Raises:
        ValueError: there is no other place.
    """
    own = users("")
    if not can_write(own):
        where = str(own)
    elif not _numba_has_a_place():
        where = "any place of numba"
    else:
        return ""
    return (
        f"caches cannot be written in {where} and are kept in {_stand_in()}, perhaps until the"
        f" machine restarts; {NO_PLACE}"
    )


def _users_root() -> pathlib.Path:
    return _of_home(ROOT_VARIABLE, ".cache")


def _of_home(variable: str, name: str) -> pathlib.Path:
    return places.of_variable(variable) or places.whole("~") / name


def _numba_has_a_place() -> bool:
    """One that is named, or the user's; else one beside each file that it compiles."""
    chosen = places.of_variable(NUMBA_VARIABLE)
    if chosen is not None and can_write(chosen):
        return True
    return can_write(_users_root() / "numba") or all(map(can_write, _beside_compiled()))


def _beside_compiled() -> list[pathlib.Path]:
    """Caches of robosuite's compiled functions, and of ours."""
    folders = [pathlib.Path(__file__).parent / "libero"]
    spec = importlib.util.find_spec("robosuite")
    if spec is not None:
        folders.append(pathlib.Path(spec.submodule_search_locations[0], "utils"))
    return [folder / "__pycache__" for folder in folders]


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
