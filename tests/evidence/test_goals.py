"""Each kind of goal, reached, missed and open."""

import pytest

from pirl_jax.evidence import cells, goals
from pirl_jax.monitor import report


def result(cell, seed, after, before=10, tasks=((0, 1, 2),)):
    """Rates of 20 episodes; tasks: (number, successes before, successes after) of 4."""
    ends = {}
    for end, won, column in (("before", before, 1), ("after", after, 2)):
        rates = [{"task": task[0], "rate": report.rate(task[column], 4)} for task in tasks]
        ends[end] = {"all": report.rate(won, 20), "tasks": rates}
    return {"cell": cell, "seed": seed} | ends


@pytest.mark.parametrize(
    "kind, value, reached, missed",
    [
        ("least", 0.85, [result("one", 0, 16), result("one", 1, 18)], [result("one", 0, 16)]),
        (
            "disjoint",
            True,
            [result("one", 0, 20), result("one", 1, 19)],
            [result("one", 0, 20), result("one", 1, 12)],
        ),
        (
            "above",
            "other",
            # The other seed of the other decides nothing.
            [result("one", 0, 16), result("other", 0, 15), result("other", 1, 20)],
            [result("one", 0, 15), result("other", 0, 15)],
        ),
        (
            "near",
            ("other", 0.05),
            [result("one", 0, 15), result("other", 0, 16)],
            [result("one", 0, 14), result("other", 0, 16)],
        ),
        (
            "in_interval",
            "other",
            [result("one", 0, 12), result("other", 0, 16)],
            [result("one", 0, 8), result("other", 0, 16)],
        ),
        (
            "no_task_falls",
            True,
            [result("one", 0, 9, tasks=((0, 1, 1), (2, 0, 4)))],
            [result("one", 0, 9, tasks=((0, 1, 4), (2, 2, 1)))],
        ),
    ],
)
def test_a_goal_is_reached_missed_or_open(kind, value, reached, missed):
    cell = cells.Cell("a", "one", "probe", {}, goals={kind: value})
    assert goals.judged(cell, reached).endswith(": reached")
    assert goals.judged(cell, missed).endswith(": not reached")
    assert "reached" not in goals.judged(cell, [result("other", 0, 20)])
    assert goals.judged(cell, [])


def test_every_goal_of_the_table_names_cells_that_are_there():
    names = {cell.name for cell in cells.TABLE.cells}
    for cell in cells.TABLE.cells:
        assert set(cell.goals) <= set(goals.GOALS)
        for kind, value in cell.goals.items():
            if kind in ("above", "near", "in_interval"):
                assert (value if isinstance(value, str) else value[0]) in names - {cell.name}
    assert [cell.name for cell in cells.TABLE.cells if not cell.goals] == [
        "tabletop_pi0_clone",
        "tabletop_pi05_clone",
    ]
