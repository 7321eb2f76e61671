"""docs/reliability.md: every promise names a test, and every test that it names exists."""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", PAGE)


def test_the_tests_exist():
    absent = []
    for path, name in NAMED:
        tree = ast.parse((ROOT / "tests" / path).read_text(encoding="utf-8"))
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        if name and name not in functions:
            absent.append(f"{path}::{name}")
    assert not absent


def test_every_promise_has_one():
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")]
    promises = [row for row in rows if row != "| promise | tests |"]
    assert len(promises) > 25
    assert not [row for row in promises if not re.search(r"\.py(::\w+)?`", row)]
