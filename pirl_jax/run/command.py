"""The command line of every command: one dialect of flags, errors in one sentence.

Flags are --like-this VALUE or --like-this=VALUE.  --config names a recipe;
--config.section.field=VALUE overrides one of its fields.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
import contextlib
import difflib
import math
import pathlib
import re
import sys
from typing import NoReturn

from absl import flags
import ml_collections
from ml_collections import config_flags

from pirl_jax.core import bounds, endings, paths, secrets
from pirl_jax.envs.pool import supervisor
from pirl_jax.run import recipes, reference

# What belongs to the page, and is read by absl, which ml_collections builds on.
OVERRIDE = re.compile(r"--?(no)?config\.([\w.]+)(=.*)?", re.DOTALL)
# RLinf's names of fields, which users know.
ALIASES = {"rollout.pipeline_stage_num": "rollout.num_groups"}
# How absl begins the sentence about a value that it cannot read: field, value.
UNREADABLE = re.compile(r"flag --config\.([\w.]+)=(.*?): ")


class Parser(argparse.ArgumentParser):
    """argparse with the conventions of this package.

    A wrong argument ends in one sentence and exit code 2.  Spellings of earlier versions
    (--like_this, -like-this) are understood and named as old.
    """

    def __init__(self, prog: str, description: str = "", **options) -> None:
        super().__init__(
            prog=prog,
            description=description,
            formatter_class=argparse.RawTextHelpFormatter,
            allow_abbrev=False,
            **options,
        )

    def error(self, message: str) -> NoReturn:
        """Called by argparse where the arguments are wrong."""
        _say(f"{message}; {self.prog} --help lists the arguments")
        sys.exit(2)

    def parse_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """As argparse's; an argument that it does not know is named with what comes closest."""
        options, unknown = self.parse_known_args(args, namespace)
        for name, value in vars(options).items():
            if secrets.names_one(name):
                secrets.tell(value)
        if unknown:
            self.error(self._about(unknown[0]))
        return options

    def _about(self, unknown: str) -> str:
        if not unknown.startswith("-"):
            return f"argument {unknown!r} belongs to no option, write --name=value"
        name = unknown.partition("=")[0]
        close = difflib.get_close_matches(name, self._option_string_actions, n=1)
        return f"{name} is no option" + (f", did you mean {close[0]}?" if close else "")

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse's, after old spellings have been replaced."""
        given = sys.argv[1:] if args is None else args
        given = [self._today(arg) for arg in given]
        self._refuse_contradictions(given)
        return super().parse_known_args(given, namespace)

    def _refuse_contradictions(self, given: Sequence[str]) -> None:
        """argparse would take the last value without a word; a repeated one is no contradiction."""
        values = {}
        for i, arg in enumerate(given):
            name, equals, value = arg.partition("=")
            action = self._option_string_actions.get(name)
            if not isinstance(action, argparse._StoreAction):
                continue
            value = value if equals else "".join(given[i + 1 : i + 2])
            if values.setdefault(action.dest, value) != value:
                self.error(f"{name} is given twice, with different values; give it once")

    def _today(self, arg: str) -> str:
        """An argument as it is spelled today."""
        name, equals, value = arg.partition("=")
        spelled = f"--{name.lstrip('-').replace('_', '-')}"
        if (
            not name.startswith("-")
            or name == spelled
            or spelled not in self._option_string_actions
        ):
            return arg
        if name in self._option_string_actions:  # a short flag such as -h
            return arg
        print(f"note: {name} is the old spelling of {spelled}", file=sys.stderr)
        return spelled + equals + value


# ---- values of flags: argparse's `type` --------------------------------------------------------


def path(value: str) -> pathlib.Path:
    """A path, made whole."""
    try:
        return paths.absolute(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def text(value: str) -> str:
    """A text that says something: an unset variable of a script would say nothing."""
    if not value.strip() or not value.isprintable():
        raise argparse.ArgumentTypeError(f"{value!r} is no text; leave the flag out or fill it")
    return value


def key(value: str) -> str:
    """What goes into a header of HTTP.  An empty key would leave a server open."""
    if not (value.isascii() and value.isprintable()) or re.search(r"\s", value) or not value:
        raise argparse.ArgumentTypeError("a key has printable ASCII characters and no spaces")
    return value


def number(kind: type, low: float = -math.inf, high: float = math.inf) -> Callable[[str], float]:
    """A finite number of that kind (int or float), both bounds included."""
    bound = bounds.Bound(low=low, high=high)

    def convert(value: str) -> float:
        try:
            result = kind(value)
        except ValueError:
            result = math.nan
        if not math.isfinite(result) or not bound.holds(result):
            words = bounds.in_words(kind, bound)
            raise argparse.ArgumentTypeError(f"{value!r} must be {words}")
        return result

    return convert


# ---- the page ------------------------------------------------------------------------------------


def parse(
    argv: Sequence[str], parser: Parser, needs_page: bool = True
) -> tuple[argparse.Namespace, ml_collections.ConfigDict | None]:
    """Read --config RECIPE, --config.a.b=value and the command's own flags.

    Without --config the page is that of the run that --checkpoint names.  `overrides` of the
    namespace are the arguments that change the page, `fields` the fields that they set.

    Args:
      argv: as sys.argv, the program's name first.
      parser: knows the command's own flags.
      needs_page: False: None where neither --config nor a field of it is given.

    Raises:
      ValueError: an override names no field, or its value does not fit.
    """
    parser.add_argument(
        "--config",
        nargs="?",
        default="",
        const="",
        metavar="RECIPE",
        help="recipe, as a path or by its name",
    )
    parser.epilog = (
        "--config.section.field=VALUE overrides a field of the recipe; docs/config.md lists them"
    )
    overrides, own = _split(argv[1:])
    options = parser.parse_args(own)
    options.overrides = tuple(overrides)
    options.fields = tuple(OVERRIDE.fullmatch(arg)[2] for arg in overrides)
    run = getattr(options, "checkpoint", None)
    if not needs_page and not options.config and not overrides:
        return options, None
    if run and not options.config:
        page = recipes.load_run(run)
    else:
        page = recipes.load_recipe(options.config)
    return options, override(page, overrides)


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """-> overrides of the page, the other arguments.

    `--config.a.b VALUE` in two words is one override.
    """
    overrides, own = [], []
    waiting = list(arguments)
    while waiting:
        arg = waiting.pop(0)
        match = OVERRIDE.fullmatch(arg)
        if match is None:
            own.append(arg)
            continue
        negated, _, value = match.groups()
        complete = negated or value is not None
        if not complete and waiting and not waiting[0].startswith("--"):
            arg += f"={waiting.pop(0)}"
        overrides.append(_renamed(arg))
    return overrides, own


def _renamed(arg: str) -> str:
    """An override by the name that the page has for its field."""
    name = OVERRIDE.fullmatch(arg)[2]
    return arg.replace(name, ALIASES.get(name, name), 1)


def override(
    page: ml_collections.ConfigDict, overrides: Sequence[str]
) -> ml_collections.ConfigDict:
    """The page with `--config.section.field=VALUE` carried out.

    Raises:
      ValueError: no such field, or a value of another type.
    """
    _check_names(page, overrides)
    values, argv = flags.FlagValues(), ["pirl", *overrides]
    try:
        config_flags.DEFINE_config_dict("config", page, flag_values=values, sys_argv=argv)
        rest = values(argv)[1:]
    except (flags.Error, AttributeError, KeyError, TypeError) as error:
        raise ValueError(_about_value(error)) from error
    if rest:
        raise ValueError(f"argument {rest[0]!r} belongs to no option; write --name=value")
    return values.config


def _about_value(error: Exception) -> str:
    """absl names a value that it cannot read, and not what would be read."""
    text = " ".join(str(error).split())
    match = UNREADABLE.match(text)
    if match is None:
        return text
    name, value = match.groups()
    return f"{name}={value} must be {reference.what_it_must_be(name)}"


def _check_names(page: ml_collections.ConfigDict, overrides: Sequence[str]) -> None:
    """ml_collections names a wrong field without its section, and suggests few."""
    names = recipes.field_names(page)
    for arg in overrides:
        wanted = OVERRIDE.fullmatch(arg)[2]
        if wanted not in names:
            remedy = _remedy(page, names, wanted)
            raise ValueError(f"--config.{wanted} is no field of the configuration; {remedy}")


def _remedy(page: ml_collections.ConfigDict, names: list[str], wanted: str) -> str:
    """What somebody who wrote `wanted` may have meant."""
    if wanted in page:  # a whole section
        return f"{wanted} has: {', '.join(sorted(page[wanted]))}"
    field = wanted.rpartition(".")[2]
    close = [name for name in names if name.rpartition(".")[2] == field]
    close = close or difflib.get_close_matches(wanted, names, n=1, cutoff=0.8)
    if close:
        return f"did you mean {' or '.join(f'--config.{name}' for name in close)}?"
    section = wanted.partition(".")[0]
    if section in page:
        return f"{section} has: {', '.join(sorted(page[section]))}"
    return f"it has: {', '.join(sorted(page))}"


# ---- ends --------------------------------------------------------------------------------------


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """What the user can mend ends in one sentence and exit code 2.

    That is a ValueError while a command is being set up.
    """
    with known_endings():
        try:
            yield
        except ValueError as error:
            if endings.is_of_runtime(error):
                raise
            raise endings.Failure(str(error)) from error


@contextlib.contextmanager
def known_endings() -> Iterator[None]:
    """While a command works: an ending that has a sentence needs no traceback.

    So does what the machine refuses, such as a full disk, and what simulators fail of.
    """
    try:
        yield
    except endings.Failure as ending:
        _say(str(ending), ending.prefix)
        sys.exit(ending.code)
    except supervisor.EnvError as error:
        summary, _, details = str(error).partition("\n")
        print(secrets.text(details), file=sys.stderr)
        _say(f"{summary}; mend what the lines above say, or raise env.restarts_per_hour")
        sys.exit(endings.Failure.code)
    except OSError as error:
        sentence = endings.about(error)
        if sentence is None:
            raise
        _say(sentence)
        sys.exit(endings.Failure.code)


def _say(sentence: str, prefix: str = endings.Failure.prefix) -> None:
    """One line, whatever was quoted in it."""
    line = " ".join(secrets.text(sentence).splitlines())
    print(f"{prefix}{line}", file=sys.stderr)
