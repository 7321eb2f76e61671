"""Reading speed as a figure: width cannot pay for length.

Counted over code alone: Python's tokens without comments and docstrings, per line that holds one.
Codebases that this field likes to read have 6.3 to 9.6 of them, and 8.6 to 14.6 in their densest
file.
"""

import ast
import io
import pathlib
import tokenize
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / "pirl_jax").rglob("*.py"))
MAX_IN_PACKAGE = 9.0  # tokens per code line
MAX_IN_FILE = 12.0
MAX_IN_SHORT_FILE = 15.0
SHORT = 60  # code lines: a page of formulas is dense and soon read
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
COMPREHENSIONS = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


class Size(NamedTuple):
    tokens: int
    lines: int

    @property
    def density(self) -> float:
        return self.tokens / max(self.lines, 1)


def docstring_lines(tree) -> set[int]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            text = node.body[0]
            found |= set(range(text.lineno, text.end_lineno + 1))
    return found


def size(source: str) -> Size:
    """Tokens and lines of code."""
    skipped, tokens, lines = docstring_lines(ast.parse(source)), 0, set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE and token.start[0] not in skipped:
            tokens += 1
            lines |= set(range(token.start[0], token.end[0] + 1))
    return Size(tokens, len(lines))


def test_what_is_counted():
    source = '"""Text\n\nof two lines."""\n\n# why\nx = [\n    1,\n]  # here\n'
    source += '\n\ndef f():\n    "d"\n    return x\n'
    assert size(source) == Size(13, 5)


@pytest.fixture(scope="module")
def sizes():
    return {path.relative_to(ROOT): size(path.read_text(encoding="utf-8")) for path in FILES}


def test_no_file_is_dense(sizes):
    wrong = []
    for path, found in sizes.items():
        most = MAX_IN_SHORT_FILE if found.lines < SHORT else MAX_IN_FILE
        if found.density > most:
            wrong.append(f"{path}: {found.density:.1f} tokens per line, at most {most}")
    assert not wrong, "\n".join(wrong)


def test_the_package_is_not_dense(sizes):
    tokens, lines = (sum(column) for column in zip(*sizes.values(), strict=True))
    assert tokens / lines <= MAX_IN_PACKAGE, f"{tokens / lines:.2f} tokens per line"


def test_no_comprehension_within_another():
    wrong = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, COMPREHENSIONS):
                continue
            inner = [child for child in ast.walk(node) if isinstance(child, COMPREHENSIONS)]
            if len(inner) > 1 or len(node.generators) > 1:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not wrong, "\n".join(wrong)


def test_a_function_that_has_a_name_is_defined_as_one():
    wrong = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Lambda):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not wrong, "\n".join(wrong)


def test_the_formatter_decides_every_shape():
    switch = "fmt" + ": "  # so that this file does not match itself
    wrong = []
    for path in [*FILES, *(ROOT / "configs").glob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if any(f"# {switch}{word}" in line for word in ("skip", "off")):
                wrong.append(f"{path.relative_to(ROOT)}:{number}")
    assert not wrong, "\n".join(wrong)
