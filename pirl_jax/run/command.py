"""The command line of every command: a recipe, overrides of its fields, the command's own flags; errors in one sentence."""

import contextlib
import difflib
import importlib.util
import json
import pathlib
import re
import sys

from absl import flags
import ml_collections
from ml_collections import config_flags


def parse(argv: list[str], define_flags) -> tuple[flags.FlagValues, ml_collections.ConfigDict]:
    """Read --config FILE.py, --config.a.b=value and the command's own flags."""
    values = flags.FlagValues()
    define_flags(values)
    if {"-h", "--help"} & set(argv):
        print(sys.modules[define_flags.__module__].__doc__, values.get_help(), sep="\n")
        sys.exit(0)
    recipe, argv = _split(argv)
    page = (
        load_recipe(recipe)
        if recipe or not (run := _split(argv, "checkpoint")[0])
        else load_run(run)
    )
    _check_overrides(argv, page)
    try:
        config_flags.DEFINE_config_dict("config", page, flag_values=values, sys_argv=argv)
        rest = values(argv)[1:]
    except (flags.Error, AttributeError, KeyError, TypeError) as error:
        raise ValueError(" ".join(str(error).replace("\n", " ").split())) from error
    if rest:
        raise ValueError(f"argument {rest[0]!r} belongs to no option; write --name=value")
    return values, values.config


def _split(argv, name="config"):
    """-> the value of --name, the other arguments."""
    value, rest, arguments = "", [], iter(argv)
    for arg in arguments:
        if re.fullmatch(f"--?{name}", arg):
            value = next(arguments, "")
        elif re.match(f"--?{name}=", arg):
            value = arg.partition("=")[2]
        else:
            rest.append(arg)
    return value, rest


def load_run(directory: str) -> ml_collections.ConfigDict:
    """The page that a run was started with."""
    folder = pathlib.Path(directory)
    path = (folder.parent if folder.name == "checkpoints" else folder) / "config.json"
    if not path.is_file():
        raise ValueError(
            f"--checkpoint {directory} has no config.json beside its checkpoints; give the recipe with --config"
        )
    from configs import base  # recipes and their page belong to the checkout, not to the package

    page = base.get_config()
    saved = ml_collections.ConfigDict(json.loads(path.read_text(), object_hook=_tuples))
    unlike = sorted(set(_flat_names(page)) ^ set(_flat_names(saved)))
    if unlike:
        raise ValueError(
            f"{path} is of another version (fields {', '.join(unlike)}); give the recipe with --config"
        )
    page.update(saved)
    return page


def _tuples(fields: dict) -> dict:
    """JSON has lists only."""
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }


def load_recipe(name: str) -> ml_collections.ConfigDict:
    """The page that a recipe file describes."""
    if not name:
        raise ValueError(
            "--config is missing; give a recipe, for example --config configs/quickstart.py"
        )
    path = pathlib.Path(name)
    if not path.is_file():
        there = ", ".join(
            sorted(
                str(one) for one in path.parent.glob("*.py") if one.stem not in ("__init__", "base")
            )
        )
        raise ValueError(
            f"--config {name} does not exist; {path.parent} has: {there or 'no recipe'}"
        )
    spec = importlib.util.spec_from_file_location("recipe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def _check_overrides(argv, page):
    """ml_collections names a wrong field without its section, and suggests one only where the spelling is close."""
    names = list(_flat_names(page))
    for arg in argv[1:]:
        match = re.match(r"--?(?:no)?config\.([\w.]+)", arg)
        if not match or match[1] in names:
            continue
        field = match[1].rpartition(".")[2]
        close = [name for name in names if name.rpartition(".")[2] == field]
        close = close or difflib.get_close_matches(match[1], names, n=1, cutoff=0.8)
        if close:
            remedy = f"did you mean {' or '.join(f'--config.{name}' for name in close)}?"
        else:
            section = match[1].partition(".")[0]
            here = page[section] if section in page else page
            remedy = f"{section if section in page else 'it'} has: {', '.join(sorted(here))}"
        raise ValueError(f"--config.{match[1]} is no field of the configuration; {remedy}")


def _flat_names(page, prefix=""):
    for name, value in page.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from _flat_names(value, f"{prefix}{name}.")
        else:
            yield prefix + name


@contextlib.contextmanager
def user_errors():
    """What the user can mend (ValueError while a run is being set up) ends in one sentence and exit code 2."""
    try:
        yield
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
