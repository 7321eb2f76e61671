"""A configuration of RLinf as a page of ours, and word by word what became of each of its keys.

No key is dropped without a word: it is carried over, or happens here anyway, or is named with the
reason.  Which key is which stands in table.py; how YAML is read, in hydra.py.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import difflib
import importlib
import json
import pathlib
import textwrap
from typing import Any

import ml_collections

from pirl_jax.core import bounds, outside
from pirl_jax.core import page as pages
from pirl_jax.run.rlinf import formulas, hydra, rows, table

SECTIONS = ("actor", "algorithm", "cluster", "env", "rollout", "runner")
# Sections that RLinf's documentation quotes without those around them.
SHORT = {"openpi": "actor.model.openpi", "model": "actor.model", "video_cfg": "env.train.video_cfg"}
# What RLinf takes where a key is absent and this project would take another value.
DEFAULTS = {
    "actor.model.openpi.train_expert_only": False,
    "actor.model.openpi.detach_critic_input": False,
    "rollout.pipeline_stage_num": 1,
}
_PI0 = {
    "model_type": "openpi",
    "action_dim": 7,
    "num_action_chunks": 5,
    "num_steps": 4,
    "openpi": {"config_name": "pi0_libero", "train_expert_only": True},
}
# Published files of defaults lists: what they say, for who has the first file alone.
STAND_INS = {
    "model/pi0": _PI0,
    "model/pi0_5": _PI0
    | {
        "num_action_chunks": 10,
        "num_steps": 5,
        "openpi": {"config_name": "pi05_libero", "train_expert_only": True},
    },
}
for _suite in formulas.SUITES:
    for _file in (f"env/{_suite}", f"env/train/{_suite}", f"env/eval/{_suite}"):
        STAND_INS[_file] = {"task_suite_name": _suite}
ALWAYS = "as it is here anyway"


@dataclasses.dataclass(frozen=True)
class Line:
    """What became of one key."""

    key: str
    value: Any
    text: str  # the fields it set, or the reason why none
    kind: str  # carried | same | left | unknown
    matters: bool = False  # it is left, and something else will be learned


@dataclasses.dataclass(frozen=True)
class Translation:
    """A configuration of RLinf in our words."""

    path: pathlib.Path
    fields: Mapping[str, Any]  # "section.field" -> value
    origins: Mapping[str, str]  # "section.field" -> RLinf's key
    lines: Sequence[Line]
    notes: Sequence[str]

    def of(self, *kinds: str) -> list[Line]:
        """The lines of these kinds."""
        return [line for line in self.lines if line.kind in kinds]

    def page(self) -> ml_collections.ConfigDict:
        """The page of a recipe, not yet checked as a whole."""
        page = importlib.import_module("pirl_jax.recipes.base").get_config()
        for name, value in self.fields.items():
            section, dot, field = name.rpartition(".")
            setattr(page[section] if dot else page, field, value)
        return page


def translate(path: pathlib.Path) -> Translation:
    """Read RLinf's YAML.

    Raises:
      ValueError: one sentence: no such YAML, another environment, model or algorithm, or a value
        that no field can take.
    """
    loaded = hydra.load(path, STAND_INS)
    values = {_whole(key): value for key, value in loaded.values.items()}
    if not {key.partition(".")[0] for key in values} & set(SECTIONS):
        raise ValueError(f"{path} has none of the sections {', '.join(SECTIONS)}; {hydra.REMEDY}")
    source = formulas.Source(values)
    with outside.named(path):
        _refuse_others(source)
        absent = _absent_defaults(source)
        reader = _Reader(formulas.Source(values | absent), absent)
        for one in table.ROWS:
            reader.read(one)
        reader.name_the_rest()
    for key, why in loaded.unresolved.items():
        reader.add(_without_value(_whole(key), why))
    order = {key: i for i, key in enumerate([*values, *absent])}
    lines = sorted(reader.lines, key=lambda line: order.get(line.key, len(order)))
    notes = list(_notes(source, loaded.absent))
    return Translation(path, reader.fields, reader.origins, lines, notes)


def _without_value(key: str, why: str) -> Line:
    """A key whose interpolation stands for nothing."""
    holding = [row for row in table.ROWS if row.holds(key)]
    matters = not holding or bool(holding[0].fields)
    return Line(key, "?", f"its interpolation stands for nothing ({why})", "left", matters)


def _whole(key: str) -> str:
    """`openpi.noise_level` as the documentation has it -> its place in the file."""
    section, dot, rest = key.partition(".")
    return f"{SHORT[section]}.{rest}" if dot and section in SHORT else key


def _refuse_others(source: formulas.Source) -> None:
    """Environments, models and tasks that are none of ours."""
    for keys, wanted, what in (
        (("env.train.env_type", "env.train.simulator_type"), ("libero",), "environment"),
        (("env.eval.env_type", "env.eval.simulator_type"), ("libero",), "environment"),
        (("actor.model.model_type", "actor.model.model_name"), ("openpi",), "model"),
        (("runner.task_type",), ("embodied", "embodied_eval"), "task"),
    ):
        for key in keys:
            value = source.get(key, default=wanted[0])
            if value not in wanted:
                raise formulas.another(key, value, what, wanted)


def _absent_defaults(source: formulas.Source) -> dict[str, Any]:
    """RLinf's own defaults of absent keys, where they say something."""
    found = {key: value for key, value in DEFAULTS.items() if key not in source.values}
    critic = not str(source.get("algorithm.adv_type")).endswith("grpo")
    if source.get("actor.model.openpi.value_after_vlm") or not critic:
        found.pop("actor.model.openpi.detach_critic_input", None)  # which nothing reads
    if source.get("actor.model.openpi.add_value_head", "actor.model.add_value_head") is None:
        found["actor.model.add_value_head"] = critic
    if source.get("actor.model.openpi.config_name", "actor.model.openpi.pi05") is None:
        found["actor.model.openpi.config_name"] = "pi0_libero"
    return found


def _notes(source: formulas.Source, absent: Sequence[hydra.Entry]) -> Iterator[str]:
    """What the keys themselves do not say."""
    for entry in {entry.file: entry for entry in absent}.values():
        known = entry.file in STAND_INS
        words = "its published values are taken" if known else "nothing of it is known here"
        if not known and entry.file.partition("/")[0] in ("training_backend", "weight_syncer"):
            words = "nothing in it has a counterpart"
        yield f"defaults: {entry.file}.yaml is not there; {words}"
    if source.get("env.train.task_suite_name") is None:
        yield "env.train.task_suite_name is not there; env.suite stays libero_spatial"
    yield (
        "model.tokenizer is not in it: pirl download paligemma_tokenizer, then"
        " --config.model.tokenizer=FILE"
    )


class _Reader:
    """Goes through the rows of the table."""

    def __init__(self, source: formulas.Source, absent: Mapping[str, Any]) -> None:
        self._source = source
        self._absent = absent
        self._known: set[str] = set()
        self.lines: list[Line] = []
        self.fields: dict[str, Any] = {}
        self.origins: dict[str, str] = {}

    def add(self, line: Line) -> None:
        """One more line of the answer."""
        self.lines.append(line)

    def read(self, row: rows.Row) -> None:
        """The keys of one row that are there and belong to no row before."""
        keys = [key for key in self._source.values if key not in self._known and row.holds(key)]
        self._known |= set(keys)
        spoken = [key for key in keys if self._source.values[key] is not None]
        for key in keys:
            if key not in spoken:
                self.add(Line(key, None, "nothing is set there", "same"))
        if not spoken:
            return
        if row.fields or row.turn:
            self._carry(row, sorted(spoken, key=row.rank))
            return
        for key in spoken:
            self._judge(row, key)

    def _judge(self, row: rows.Row, key: str) -> None:
        """A key that no field stands for."""
        value = self._source.values[key]
        if any(
            value == one and isinstance(value, bool) == isinstance(one, bool) for one in row.only
        ):
            self.add(Line(key, value, f"{ALWAYS}: {row.words}", "same"))
        else:
            self.add(Line(key, value, row.words, "left", row.matters))

    def _carry(self, row: rows.Row, keys: Sequence[str]) -> None:
        first = keys[0]
        value = self._source.values[first]
        try:
            result = row.turn(self._source, value) if row.turn else {row.fields[0]: value}
        except formulas.NotCarriedError as error:
            for key in keys:
                self.add(Line(key, self._source.values[key], str(error), "left", True))
            return
        for name, chosen in result.items():
            _check(first, value, name, chosen)
        for key in keys:
            self.add(self._outcome(row, key, first, result))
        for name, chosen in result.items():
            self.fields.setdefault(name, chosen)
            self.origins.setdefault(name, first)

    def _outcome(self, row: rows.Row, key: str, first: str, result: Mapping[str, Any]) -> Line:
        value = self._source.values[key]
        if row.turn is None and value != self._source.values[first]:
            return Line(key, value, f"{first} says it", "left", True)
        taken = [name for name, chosen in result.items() if self.fields.get(name, chosen) != chosen]
        if taken:
            return Line(key, value, f"{self.origins[taken[0]]} sets {taken[0]}", "left", True)
        text = ", ".join(f"{name}={chosen!r}" for name, chosen in result.items())
        if "model.preset" in result:
            text = f"model.preset={result['model.preset']!r} and what it stands for"
        if key in self._absent:
            text = f"{text} (RLinf's default)"
        if not result:
            return Line(key, value, f"{ALWAYS}: {row.words}", "same")
        return Line(key, value, text, "carried")

    def name_the_rest(self) -> None:
        """Keys that no row holds."""
        known = [key for key in rows.patterns(_all_keys()) if "*" not in key]
        for key, value in self._source.values.items():
            if key in self._known:
                continue
            name = key.rpartition(".")[2]
            close = [other for other in known if other.rpartition(".")[2] == name]
            close = close or difflib.get_close_matches(key, known, n=1, cutoff=0.8)
            words = "no key that is known here"
            if close:
                words += f"; did you mean {close[0]}?"
            self.add(Line(key, value, words, "unknown", True))


def _all_keys() -> Iterator[str]:
    for one in table.ROWS:
        yield from one.keys


def _check(key: str, value: Any, name: str, chosen: Any) -> None:
    """Whether a field can have such a value; the sentence begins with RLinf's key."""
    section, dot, field = name.rpartition(".")
    owner = pages.SECTIONS[section] if dot else pages.Page
    try:
        bounds.check_field(owner, field, chosen, f"{section}{dot}")
    except ValueError as error:
        raise ValueError(f"{key}={value!r} fits no field: {error}") from error


def notes_of(path: pathlib.Path, found: Translation) -> Iterator[str]:
    """What a command that only wanted a page of it has to say."""
    left = found.of("left", "unknown")
    yield (
        f"{path} is RLinf's: {len(found.of('carried', 'same'))} keys carried over, {len(left)} not;"
        f" pirl from-rlinf lists them all"
    )
    for line in left:
        if line.matters:
            yield f"{_said(line)}: {line.text}"
    yield from found.notes


# ---- in words -----------------------------------------------------------------------------------


def as_text(translation: Translation) -> str:
    """Two lists and the rest, for a terminal."""
    carried = translation.of("carried", "same")
    left = translation.of("left")
    unknown = translation.of("unknown")
    lines = [f"carried over ({len(carried)} keys):", *_listed(carried)]
    if left:
        lines += ["", f"not carried over ({len(left)} keys), and why; ! changes what is learned:"]
        lines += _listed(left)
    if unknown:
        lines += [
            "",
            f"unknown ({len(unknown)} keys), which nothing here reads:",
            *_listed(unknown),
        ]
    lines += ["", *(f"note: {note}" for note in translation.notes)]
    return "\n".join(lines)


def _listed(lines: Sequence[Line]) -> Iterator[str]:
    width = max((len(_said(line)) for line in lines), default=0)
    for line in lines:
        mark = "!" if line.matters else " "
        arrow = "->" if line.kind == "carried" else "  "
        yield f" {mark} {_said(line):<{min(width, 58)}} {arrow} {line.text}"


def _said(line: Line) -> str:
    return outside.shown(f"{line.key} = {_yaml(line.value)}")


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value)


def as_recipe(translation: Translation) -> str:
    """Python that `train --config` runs."""
    lines = [
        f'"""{_harmless(translation.path.stem)}: a configuration of RLinf, by pirl from-rlinf.',
        "",
        "The key that a value comes from stands beside it.  Not carried over:",
        "",
        *_left_out(translation),
        '"""',
        "",
        "import ml_collections",
        "",
        "from pirl_jax.recipes import base",
        "",
        "",
        "def get_config() -> ml_collections.ConfigDict:",
        "    config = base.get_config()",
    ]
    for name in _in_order(translation.fields):
        value = _python(translation.fields[name])
        lines.append(f"    config.{name} = {value}  # {translation.origins[name]}")
    return "\n".join([*lines, "    return config", ""])


def _left_out(translation: Translation) -> Iterator[str]:
    for line in translation.of("left", "unknown"):
        text = _harmless(f"{_said(line)}: {line.text}")
        yield from textwrap.wrap(text, 98, initial_indent="* ", subsequent_indent="  ")


def _harmless(text: str) -> str:
    """Neither the end of a docstring nor an escape in it, whatever a key is called."""
    return text.replace("\\", "/").replace('"', "'")


def _in_order(fields: Mapping[str, Any]) -> list[str]:
    """Section by section, as on the page."""
    sections = ["", *pages.SECTIONS]
    return sorted(fields, key=lambda name: sections.index(name.rpartition(".")[0]))


def _python(value: Any) -> str:
    """As the formatter writes it."""
    return json.dumps(value) if isinstance(value, str) else repr(value)
