"""The page of fields in words: docs/config.md, and what a value on the command line must be.

python -m pirl_jax.run.reference > docs/config.md
"""

from collections.abc import Iterable, Iterator
import dataclasses
import typing

from pirl_jax.core import bounds, page

HEAD = """# Every field of a configuration

Made from `pirl_jax/core/page.py` by `python -m pirl_jax.run.reference > docs/config.md`.

A recipe overrides fields of this page, a command line any: `--config.section.field=value`.
Tuples are written `0,1,2`. A value outside of its bound ends in one sentence before anything
starts; whole numbers are at most 2147483647 where nothing else is said, other numbers finite."""
COLUMNS = "| field | default | unit | bound | meaning |\n|---|---|---|---|---|"


def what_it_must_be(name: str) -> str:
    """Kind and bound of "section.field" in words."""
    section, _, last = name.rpartition(".")
    owner = page.SECTIONS[section] if section else page.Page
    (field,) = [field for field in dataclasses.fields(owner) if field.name == last]
    kind = field.type
    if typing.get_origin(kind) is tuple:
        kind = bounds.element_kind(kind)
    return bounds.in_words(kind, field.metadata["bound"])


def as_markdown() -> str:
    """The whole document."""
    top = [field for field in dataclasses.fields(page.Page) if "bound" in field.metadata]
    parts = [HEAD, _table(top)]
    for name, section in page.SECTIONS.items():
        parts.append(f"## {name}\n\n{section.__doc__}")
        parts.append(_table(dataclasses.fields(section)))
    return "\n\n".join(parts) + "\n"


def _table(fields: Iterable[dataclasses.Field]) -> str:
    return "\n".join([COLUMNS, *_rows(fields)])


def _rows(fields: Iterable[dataclasses.Field]) -> Iterator[str]:
    for field in fields:
        cells = (
            f"`{field.name}`",
            f"`{field.default!r}`",
            field.metadata["unit"],
            _bound(field),
            field.metadata["meaning"],
        )
        yield f"| {' | '.join(cells)} |"


def _bound(field: dataclasses.Field) -> str:
    bound = field.metadata["bound"]
    if bound.choices:
        names = ", ".join(f"`{choice}`" if choice else "empty" for choice in bound.choices)
        if bound.several:
            names += "; or several, with commas"
        return f"{names}; or a path with a slash" if bound.folder else names
    if typing.get_origin(field.type) is not tuple:
        return _words(field.type, bound)
    words = f"each a {_words(bounds.element_kind(field.type), bound)}"
    return f"{words}, none twice" if bound.distinct else words


def _words(kind: type, bound: bounds.Bound) -> str:
    text = bound.text()
    name = bounds.KINDS[kind].removeprefix("a ")  # a cell of a table needs no article
    return f"{name}, {text}" if text else name


if __name__ == "__main__":
    print(as_markdown(), end="")
