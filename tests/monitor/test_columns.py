import pytest

from pirl_jax.monitor import columns

ROWS = [("lift", "1.25", ""), ("stack the red cube", "100.00", "far")]


def test_columns_are_aligned_and_two_spaces_apart():
    assert columns.aligned(ROWS, left=2).splitlines() == [
        "lift                1.25",
        "stack the red cube  100.00  far",
    ]
    assert columns.aligned(ROWS).splitlines() == [
        "lift                  1.25",
        "stack the red cube  100.00  far",
    ]


def test_a_header_and_sections_have_rules():
    rows = [("a", "1"), columns.RULE, ("all", "10"), columns.RULE]
    assert columns.aligned(rows, header=("", "count")).splitlines() == [
        "     count",
        "----------",
        "a        1",
        "----------",
        "all     10",
        "----------",
    ]


def test_no_rows_are_a_header():
    assert columns.aligned([], header=("run", "seed")).splitlines() == ["run  seed", "---------"]


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "COLUMNS", "JUPYTER_COLUMNS"])
def test_it_is_plain_text_wherever_it_goes(monkeypatch, variable):
    """Nothing of the terminal gets in: no colour, no wrapping; nothing in a cell is markup."""
    monkeypatch.setenv(variable, "20")
    name = "put [1] and [bold]2[/bold] :smile: away " * 10
    assert columns.aligned([(name.strip(), "3.0")]) == f"{name.strip()}  3.0"
