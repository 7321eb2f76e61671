"""The table of RLinf's keys: fields that exist, rows that can be reached, and its page."""

import pathlib

from pirl_jax.recipes import base
from pirl_jax.run import recipes
from pirl_jax.run.rlinf import rows, table

ROOT = pathlib.Path(__file__).parents[3]


def test_every_field_is_on_the_page():
    names = set(recipes.field_names(base.get_config()))
    named = {field for row in table.ROWS for field in row.fields}
    assert named <= names, named - names


def test_no_row_hides_another():
    """A key belongs to the first row that holds it."""
    wrong = []
    for row in table.ROWS:
        for key in rows.patterns(row.keys):
            first = next(other for other in table.ROWS if other.holds(key))
            if first is not row:
                wrong.append(key)
    assert not wrong, wrong


def test_a_row_sets_fields_or_says_why_not():
    for row in table.ROWS:
        assert row.fields or row.words, row.keys
        assert not (row.fields and row.only), row.keys
        assert len(row.fields) < 2 or row.turn, row.keys


def test_the_page_on_rlinf_has_this_table():
    text = (ROOT / "docs" / "rlinf.md").read_text(encoding="utf-8")
    assert table.as_markdown() in text, "python -m pirl_jax.run.rlinf.table prints it"
