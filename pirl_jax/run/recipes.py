"""Where a configuration page comes from: a recipe, or the run that wrote it down.

Refuses to know what the fields mean.
"""

import ast
import importlib
import importlib.util
import pathlib
import sys
import traceback
import types
from typing import Any

import ml_collections

from pirl_jax.core import outside, paths
from pirl_jax.run.rlinf import translation

PACKAGE = "pirl_jax.recipes"
WITHOUT_PAGE = "give the recipe with --config"
NOT_RECIPES = ("__init__", "base")
SECTIONS = ("env", "model", "algorithm")  # that the page of any run has had
YAML = (".yaml", ".yml")
MOST_OF_THEM = 2  # fewer are another program's, which has fields of such names, too


def load_recipe(name: str | pathlib.Path, flag: str = "--config") -> ml_collections.ConfigDict:
    """The page that a recipe describes.

    Args:
      name: path of a Python file with get_config(), or of RLinf's YAML, or the name of a recipe of
        this package.
      flag: where it was given, for errors.

    Raises:
      ValueError: there is no such recipe, it does not run, or it is written for an earlier version.
    """
    if not name:
        raise ValueError(f"{flag} is missing; give a recipe, for example {flag} quickstart")
    if pathlib.PurePath(name).suffix in YAML:
        return _of_rlinf(paths.absolute(name))
    path = _find(str(name), flag)
    _check_imports(path)
    spec = importlib.util.spec_from_file_location("recipe", path)
    module = importlib.util.module_from_spec(spec)
    page = _run(module, path)
    if not isinstance(page, ml_collections.ConfigDict):
        raise ValueError(f"recipe {path} gives no page; get_config() must return base.get_config()")
    return page


def defaults() -> ml_collections.ConfigDict:
    """The page that every recipe begins with."""
    return importlib.import_module(f"{PACKAGE}.base").get_config()


def _of_rlinf(path: pathlib.Path) -> ml_collections.ConfigDict:
    """The page of a configuration of RLinf; what of it has no counterpart is said."""
    found = translation.translate(path)
    for note in translation.notes_of(path, found):
        print(f"note: {note}", file=sys.stderr)
    return found.page()


def _run(module: types.ModuleType, path: pathlib.Path) -> object:
    """What get_config() of a recipe returns.

    Whatever a recipe raises is its own affair, not a mistake of ours: its line is the remedy.
    """
    try:
        module.__spec__.loader.exec_module(module)
        if not callable(getattr(module, "get_config", None)):
            raise TypeError("it has no get_config(); write one that returns base.get_config()")
        return module.get_config()
    except (AttributeError, KeyError, TypeError) as error:  # a locked page refuses so
        where = _line_of(error, path)
        raise ValueError(
            f"recipe {path}{where} does not fit the page: {_one_line(error)}"
        ) from error
    except (Exception, SystemExit) as error:
        what = f"{type(error).__name__}: {_one_line(error)}"
        raise ValueError(f"recipe {path}{_line_of(error, path)} raises {what}; mend it") from error


def _line_of(error: BaseException, path: pathlib.Path) -> str:
    """ ":7", the last line of the recipe that was running; "" where none was."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return f":{lines[-1]}" if lines else ""


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def names() -> list[str]:
    """The recipes of this package."""
    files = _folder().glob("*.py")
    return sorted(file.stem for file in files if file.stem not in NOT_RECIPES)


def _folder() -> pathlib.Path:
    return pathlib.Path(importlib.util.find_spec(PACKAGE).origin).parent


def _find(name: str, flag: str) -> pathlib.Path:
    if name in names():
        return _folder() / f"{name}.py"
    path = paths.absolute(name)
    if path.suffix == ".py" and path.is_file():
        return path
    if path.suffix == ".py" and path.exists():
        raise ValueError(f"{flag} {name} is no file; give a Python file with get_config()")
    if path.parent.is_dir() and path.suffix == ".py":
        here = sorted(path.parent.glob("*.py"))
        there = ", ".join(str(file) for file in here if file.stem not in NOT_RECIPES)
        raise ValueError(f"{flag} {name} does not exist; {path.parent} has: {there or 'no recipe'}")
    raise ValueError(
        f"{flag} {name} is no file and no recipe of this package; it has: {', '.join(names())}"
    )


def _check_imports(path: pathlib.Path) -> None:
    """Recipes used to import each other as `configs`, which is no package outside of a checkout."""
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"recipe {path} is no Python: {_one_line(error)}; mend it") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            imported = [node.module or ""]
        elif isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        else:
            continue
        if any(module.partition(".")[0] == "configs" for module in imported):
            raise ValueError(
                f"{path}:{node.lineno} imports configs, which is now {PACKAGE}; "
                f"write `from {PACKAGE} import base`"
            )


def load_run(directory: str | pathlib.Path) -> ml_collections.ConfigDict:
    """The page that a run was started with.

    Fields that came later have their defaults, which is how the run was played; that is said.

    Raises:
      ValueError: the folder holds no run, or one with fields that today's page does not have.
    """
    folder = paths.absolute(directory)
    if folder.parent.name == "checkpoints" and folder.name.isdecimal():
        folder = folder.parent  # one of the checkpoints of a run
    path = (folder.parent if folder.name == "checkpoints" else folder) / "config.json"
    if not path.exists() and not folder.exists():
        raise ValueError(
            f"--checkpoint {directory} does not exist; give the folder of a run, or a "
            f"checkpoint of openpi, RLinf or LeRobot and its recipe with --config"
        )
    if not path.exists():
        raise ValueError(
            f"--checkpoint {directory} has no config.json beside its checkpoints; {WITHOUT_PAGE}"
        )
    page = defaults()
    fields = _with_tuples(outside.read_json(path, remedy=WITHOUT_PAGE))
    later = _later_fields(path, page, fields)
    try:
        page.update(ml_collections.ConfigDict(fields))
    # A locked page refuses so; OverflowError: a number that no float is.
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} does not fit the page: {outside.shown(error)}; {WITHOUT_PAGE}"
        ) from error
    if later:
        print(
            f"note: {path} is older than the fields {outside.listed(later)}; "
            f"they have their defaults",
            file=sys.stderr,
        )
    return page


def _later_fields(path: pathlib.Path, page: ml_collections.ConfigDict, fields: dict) -> list[str]:
    """Names of today's page that a run of an earlier version did not have.

    Raises:
      ValueError: it has names that the page does not have, or a section without any.
    """
    ours = set(field_names(page))
    theirs = set(_names(fields))
    sections = [name for name in SECTIONS if isinstance(fields.get(name), dict)]
    if len(sections) < MOST_OF_THEM:
        raise ValueError(f"{path} is no config.json of a run of ours; {WITHOUT_PAGE}")
    emptied = {name for name, value in fields.items() if value == {}}
    unlike = sorted(theirs - ours) + sorted(n for n in ours if n.partition(".")[0] in emptied)
    if unlike:
        raise ValueError(
            f"{path} is of another version (fields {outside.listed(unlike)}); {WITHOUT_PAGE}"
        )
    return sorted(ours - theirs)


def _names(fields: dict, section: str = "") -> list[str]:
    """As field_names, of the plain dict."""
    found = []
    for name, value in fields.items():
        if isinstance(value, dict):
            found += _names(value, f"{section}{name}.")
        else:
            found.append(f"{section}{name}")
    return found


def field_names(page: ml_collections.ConfigDict) -> list[str]:
    """Every field as "section.field"."""
    found = []
    for name, value in page.items():
        if isinstance(value, ml_collections.ConfigDict):
            found += [f"{name}.{inner}" for inner in field_names(value)]
        else:
            found.append(name)
    return found


def _with_tuples(value: Any) -> Any:
    """JSON has lists only; the lists of a field are tuples on the page."""
    if isinstance(value, dict):
        return {name: _with_tuples(inner) for name, inner in value.items()}
    return tuple(value) if isinstance(value, list) else value
