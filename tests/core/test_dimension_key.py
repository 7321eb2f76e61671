"""The dimension key in the docstring of core/types.py, held against the code.

A name that ends in capital letters names the axes of an array; so do the letters of an einsum.
"""

import ast
import collections
import pathlib
import re

from pirl_jax.core import types

PACKAGE = pathlib.Path(types.__file__).parents[1]
ENTRY = re.compile(r"(?:^ {4}|\s{2,})([A-Za-z])  (\S+(?: \S+)*)")
# A small letter or a digit before the underscore: constants and private classes are no arrays.
SUFFIX = re.compile(r"[a-z0-9]_([A-Z][A-Za-z0-9]*)$")
# Those of small letters alone contract coordinates.
EINSUM = re.compile(r"(?=.*[A-Z])[A-Za-z]+(,[A-Za-z]+)*->[A-Za-z]*")


def read_key() -> list[tuple[str, str]]:
    """Letter and meaning of every entry."""
    table = [line for line in types.__doc__.splitlines() if re.match(r" {4}[A-Za-z]  \S", line)]
    return [entry for line in table for entry in ENTRY.findall(line)]


KEY = dict(read_key())
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}


def bound_names(tree: ast.AST) -> list[tuple[str, int]]:
    """Names that the module gives; those of a library are its own business."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            found.append((node.arg, node.lineno))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.append((node.id, node.lineno))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.append((node.attr, node.lineno))
    return found


def unknown_letters(text: str) -> list[str]:
    return [letter for letter in text if letter.isalpha() and letter not in KEY]


def test_the_key_has_one_meaning_per_letter_and_one_letter_per_meaning():
    entries = read_key()
    assert {"B", "T", "S", "D", "N", "K", "h", "n"} <= set(KEY), "the table was not read"
    for part in zip(*entries, strict=True):
        twice = [item for item, times in collections.Counter(part).items() if times > 1]
        assert not twice, twice


def test_every_suffix_is_spelled_in_letters_of_the_key():
    wrong = []
    for path, tree in TREES.items():
        for name, line in bound_names(tree):
            suffix = SUFFIX.search(name)
            if suffix and unknown_letters(suffix.group(1)):
                wrong.append(f"{path.relative_to(PACKAGE)}:{line} {name}")
    assert not wrong, "\n".join(wrong)


def test_every_einsum_is_spelled_in_letters_of_the_key():
    wrong = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and EINSUM.fullmatch(text) and unknown_letters(text):
                wrong.append(f"{path.relative_to(PACKAGE)}:{node.lineno} {text}")
    assert not wrong, "\n".join(wrong)
