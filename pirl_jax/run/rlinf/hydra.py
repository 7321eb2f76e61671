"""YAML as programs on Hydra and OmegaConf read it: defaults lists, packages, interpolations.

A file of a defaults list is looked for beside the first one and in hydra.searchpath.  One that is
not there is named, and a stand-in of the caller's takes its place.  Knows no key but Hydra's own.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import importlib.util
import io
import operator
import pathlib
import re
from typing import Any

from pirl_jax.core import outside, paths

REMEDY = "give the YAML that RLinf is started with"
MOST_BYTES = 1 << 20
MOST_ALIASES = 16  # of YAML's `*name`: each may multiply what stands behind it
HEADER = re.compile(r"#\s*@package\s+(\S+)")
RESOLVERS = {  # RLinf registers these beside OmegaConf's own
    "multiply": operator.mul,
    "divide": operator.truediv,
    "int_div": operator.floordiv,
    "add": operator.add,
    "subtract": operator.sub,
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of a defaults list."""

    file: str  # without its ending, from the root of the search
    package: str  # dotted; "" is the root


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A whole configuration; keys are dotted, a list is one value."""

    values: dict[str, Any]
    unresolved: dict[str, str]  # key -> its interpolation, and why nothing stands for it
    absent: tuple[Entry, ...]  # files of defaults lists that are nowhere


def load(path: pathlib.Path, stand_ins: Mapping[str, Mapping]) -> Loaded:
    """The configuration that a file stands for.

    stand_ins: {file of a defaults list: its content}, where that file is nowhere.

    Raises:
      ValueError: omegaconf is not installed, or one sentence on a file that is no such YAML.
    """
    if importlib.util.find_spec("omegaconf") is None:
        raise ValueError(
            f"{path} is YAML of RLinf, which takes omegaconf to read; run pip install"
            f" 'pirl_jax[rlinf]' (or pip install omegaconf)"
        )
    import omegaconf  # an optional package

    for name, function in RESOLVERS.items():
        if not omegaconf.OmegaConf.has_resolver(name):
            omegaconf.OmegaConf.register_resolver(name, function)
    composer = _Composer(path, stand_ins)
    composer.include(path, "", ())
    values, unresolved = {}, {}
    raw = omegaconf.OmegaConf.to_container(composer.whole, resolve=False)
    for key, place in _leaves(composer.whole, raw, ""):
        try:
            values[key] = _plain(place)
        except (omegaconf.errors.OmegaConfBaseException, TypeError, ZeroDivisionError) as error:
            unresolved[key] = outside.shown(str(error).partition("\n")[0])
    return Loaded(values, unresolved, tuple(composer.absent))


class _Composer:
    """Merges files in the order in which Hydra does."""

    def __init__(self, path: pathlib.Path, stand_ins: Mapping[str, Mapping]) -> None:
        import omegaconf

        self._omegaconf = omegaconf.OmegaConf
        self._stand_ins = stand_ins
        self._folders = [path.parent]
        self.whole = self._omegaconf.create({})
        self.absent: list[Entry] = []

    def include(self, path: pathlib.Path, package: str, chain: tuple[pathlib.Path, ...]) -> None:
        """Merge a file and what its defaults list names; `chain` led here."""
        import omegaconf

        if path in chain:
            raise ValueError(f"{path} includes itself through its defaults list; {REMEDY}")
        text = outside.read_text(path, MOST_BYTES, REMEDY)
        content = self._parsed(text, path)
        header = HEADER.search(text.partition("\n")[0])
        if header:
            package = "" if header[1] == "_global_" else header[1]
        if not chain:
            self._folders += list(_searchpath(content))
        defaults = content.pop("defaults", None) or []
        if not isinstance(defaults, omegaconf.ListConfig | list):
            raise ValueError(f"{path} has defaults that are no list; {REMEDY}")
        merged = False
        for line in defaults:
            if line == "_self_":
                self._merge(content, package)
                merged = True
                continue
            for entry in _entries(line, package):
                self._include_entry(entry, (*chain, path))
        if not merged:
            self._merge(content, package)  # what a file says itself counts most

    def _include_entry(self, entry: Entry, chain: tuple[pathlib.Path, ...]) -> None:
        for folder in self._folders:
            path = folder / f"{entry.file}.yaml"
            if path.is_file():
                self.include(path, entry.package, chain)
                return
        self.absent.append(entry)
        content = self._stand_ins.get(entry.file)
        if content:
            self._merge(self._omegaconf.create(dict(content)), entry.package)

    def _merge(self, content: Any, package: str) -> None:
        nested = content
        for name in reversed(package.split(".") if package else ()):
            nested = {name: nested}
        self.whole = self._omegaconf.merge(self.whole, nested)

    def _parsed(self, text: str, path: pathlib.Path) -> Any:
        """The mapping that a YAML text is."""
        import omegaconf
        import yaml

        try:
            _refuse_bombs(text, yaml)
            content = self._omegaconf.load(io.StringIO(text))
        except RecursionError as error:
            raise ValueError(f"{path} is nested too deep; {REMEDY}") from error
        # OSError: a number or a date, where OmegaConf wants more.
        except (yaml.YAMLError, omegaconf.errors.OmegaConfBaseException, OSError) as error:
            said = outside.shown(error)
            raise ValueError(f"{path} is no YAML ({said}); {REMEDY}") from error
        if not isinstance(content, omegaconf.DictConfig):
            raise ValueError(f"{path} is YAML of a list and should have sections; {REMEDY}")
        return content


def _refuse_bombs(text: str, yaml: Any) -> None:
    """Few bytes of YAML can stand for more than fits into memory."""
    aliases = 0
    for event in yaml.parse(text):
        aliases += isinstance(event, yaml.AliasEvent)
        if aliases > MOST_ALIASES:
            raise yaml.YAMLError(f"more than {MOST_ALIASES} aliases")


def _searchpath(content: Any) -> Iterator[pathlib.Path]:
    """Folders of hydra.searchpath, as far as their variables are set."""
    import omegaconf

    hydra = content.get("hydra") or {}
    for i in range(len(hydra.get("searchpath") or [])):
        try:
            place = str(hydra.searchpath[i])
        except omegaconf.errors.OmegaConfBaseException:
            continue  # what is not found there is named later
        if place.startswith("file://"):
            yield paths.absolute(place.removeprefix("file://"))


def _entries(line: Any, parent: str) -> Iterator[Entry]:
    """What a line of a defaults list asks for.

    `group/option@package`, `group@package: option`, `group: [option, option]`.
    """
    pairs = [(str(line), None)] if isinstance(line, str) else list(line.items())
    for group, options in pairs:
        group = str(group).removeprefix("optional ").strip()
        if group.startswith("override ") or group == "_self_":
            continue  # of Hydra's own groups
        name, _, package = group.removeprefix("/").partition("@")
        for option in _options(options):
            file = f"{name}/{option}" if option else name
            yield Entry(file, _package(package, file, parent))


def _options(options: Any) -> list[str]:
    """The option of a group, several of them, or that the name says it all."""
    if options is None:
        return [""]
    return [options] if isinstance(options, str) else [str(option) for option in options]


def _package(given: str, file: str, parent: str) -> str:
    if given == "_global_":
        return ""
    own = given or file.rpartition("/")[0].replace("/", ".")
    return f"{parent}.{own}".strip(".")


def _leaves(node: Any, raw: Mapping, prefix: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """(dotted key, (section, name)) of everything that is no section itself.

    raw: the same section as plain values, interpolations unresolved.
    """
    for name, value in raw.items():
        if isinstance(value, dict) and value:
            yield from _leaves(node[name], value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", (node, name)


def _plain(place: tuple[Any, Any]) -> Any:
    """The value with its interpolations resolved, of Python's own kinds."""
    import omegaconf

    node, name = place
    value = node[name]
    if omegaconf.OmegaConf.is_config(value):
        return omegaconf.OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
    return value
