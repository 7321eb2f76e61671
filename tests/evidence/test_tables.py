"""The tables of docs/results.md are those that its results give."""

import json
import pathlib

import pytest

from pirl_jax.core import atomic
from pirl_jax.evidence import cells, tables
from pirl_jax.monitor import diagnosis, report

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results" / "evidence"
PAGE = ROOT / "docs" / "results.md"
CELLS = (
    cells.Cell("a", "quick_one", "probe", {}, seeds=(0, 1), goals={"least": 0.9}),
    cells.Cell("c", "far_one", "probe", {}, start="start", perturbed=True),
)
TABLE = cells.Table({}, CELLS)
TRIALS = [
    {"rung": 3, "settings": {"sft.demonstrations": 13}, "rate": report.rate(3, 10)},
    {"rung": 5, "settings": {"sft.demonstrations": 28}, "rate": report.rate(5, 10)},
]


def result(cell, seed, before=5, after=9, **more):
    evaluated = {"held_out": report.rate(after // 3, 3), "renderer": "egl", "protocol": {}}
    found = {
        "cell": cell,
        "row": next(one.row for one in CELLS if one.name == cell),
        "seed": seed,
        "state": "complete",
        "before": {"all": report.rate(before, 10)} | evaluated,
        "after": {"all": report.rate(after, 10)} | evaluated,
        "episodes": 7936,
        "wall_s": 1200.0,
        "success": [0.5, 0.6 + 0.1 * seed],
        "command": ["pirl", "train", "--config=probe", "--config.env.tasks=(0, 2)"],
        "environment": {"python": "3.11", "packages": {"jax": "0.10.2", "mujoco": "3.3.7"}},
        "revisions": ["0123456789abcdef-dirty"],
        "diagnosis": [vars(diagnosis.Finding("Why?", "seen", diagnosis.LOOK, "more of it"))],
        "start": {"rung": 5, "trials": TRIALS},
    }
    return found | more


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results" / "evidence"
    folder.mkdir(parents=True)

    def add(name, tree):
        atomic.write_json(folder / f"{name}.json", tree)
        return folder

    return add


def section(folder):
    return tables.section(tables.read(folder), tables.perturbed(folder), TABLE, folder.name)


def line(text, start, under="### "):
    """The cells of the first table line that begins so, below a heading."""
    lines = text.partition(under)[2].splitlines()
    found = next(line for line in lines if line.startswith(f"| {start} |"))
    return [word.strip() for word in found.strip("|").split("|")]


def test_the_page_is_what_the_results_say():
    """python -m pirl_jax.evidence tables writes it anew."""
    told = tables.section(
        tables.read(RESULTS), tables.perturbed(RESULTS), cells.TABLE, RESULTS.name
    )
    text = PAGE.read_text(encoding="utf-8")
    assert text.partition(tables.BEGIN)[2].partition(tables.END)[0].strip("\n") == told.strip("\n")
    for picture in RESULTS.glob("*.png"):
        assert f"](results/evidence/{picture.name})" in text


def test_what_has_no_result_is_not_run(results):
    folder = results("quick_one_1", result("quick_one", 1))
    text = section(folder)
    assert line(text, "`far_one`")[1:4] == ["0", "not run", "-"]
    assert line(text, "`quick_one`")[1] == "1 (0 not run)"
    assert "Not run, by cell and seed: `far_one` (0)." in text
    assert "reached" not in section(folder.parent / "none")


def test_every_seed_its_interval_and_the_mean(results):
    results("quick_one_0", result("quick_one", 0, after=8))
    folder = results("quick_one_1", result("quick_one", 1, after=9, state="ended at its bound"))
    _, seeds, before, after, mean, held, episodes, minutes, goal = line(
        section(folder), "`quick_one`"
    )
    assert seeds == "0, 1" and before == "50.0 % [23.7, 76.3]; 50.0 % [23.7, 76.3]"
    assert after == "80.0 % [49.0, 94.3]; 90.0 % [59.6, 98.2] (ended at its bound)"
    assert mean == "**85.0 %**" and goal == "90 %: not reached"
    assert held == "66.7 % [20.8, 93.9] of 3; 100.0 % [43.9, 100.0] of 3"
    assert episodes == "7,936; 7,936" and minutes == "20; 20"


def test_a_goal_is_reached_by_the_mean(results):
    results("quick_one_0", result("quick_one", 0, after=10))
    folder = results("quick_one_1", result("quick_one", 1, after=8))
    assert line(section(folder), "`quick_one`")[-1] == "90 %: reached"


def test_where_numbers_are_from(results):
    folder = results("far_one_0", result("far_one", 0))
    text = section(folder)
    own = [row for row in text.splitlines() if row.startswith("| `far_one` | 0 |")]
    _, diagnosed, origin = own
    assert "more of it" in diagnosed
    assert "sft.demonstrations=13: 30.0 %; sft.demonstrations=28: 50.0 % (taken)" in origin
    assert "`0123456789ab-dirty`" in origin
    assert "Python 3.11, jax 0.10.2, mujoco 3.3.7" in origin and "egl" in origin
    assert "pirl train --config=probe '--config.env.tasks=(0, 2)'" in text


def test_perturbed_tasks_have_a_table_each(results):
    change = report.paired_difference({(True, False): 6, (True, True): 2, (False, False): 2})
    ends = {"before": report.rate(2, 10), "after": report.rate(8, 10)}
    dimension = ends | {"change": change}
    tree = {"cell": "far_one", "seed": 0, "dimensions": {"libero_object_swap": dimension}}
    text = section(results("far_one_0.perturbed", tree))
    assert "**libero_object_swap**" in text
    found = line(text, "`far_one` | 0", under="**libero_object_swap**")
    assert found[2] == "20.0 % [5.7, 51.0]" and found[4].startswith("+60.0 [+") and found[5] == "10"
    assert "by cell and seed" not in text


def test_the_section_of_a_page_is_written_anew_and_nothing_else(results, tmp_path):
    results("quick_one_0", result("quick_one", 0))
    folder = results("quick_one_1", result("quick_one", 1))
    page = tmp_path / "results.md"
    page.write_text(f"# Results\n\n{tables.BEGIN}\nwhat was before\n{tables.END}\n\nrest\n")
    for _ in range(2):
        tables.write(page, folder, TABLE)
        text = page.read_text()
        assert text.startswith(f"# Results\n\n{tables.BEGIN}\n") and text.endswith("\n\nrest\n")
        assert "what was before" not in text and text.count("### a: ") == 1
    assert "](results/evidence/a.png)" in text and "](results/evidence/c.png)" not in text
    assert (folder / "a.png").read_bytes().startswith(b"\x89PNG")
    page.write_text("# Results\n")
    with pytest.raises(ValueError, match="has no lines"):
        tables.write(page, folder, TABLE)


@pytest.mark.parametrize("field", tables.NEEDED)
def test_a_damaged_result_is_named(results, field):
    tree = json.loads(json.dumps(result("quick_one", 0)))
    *above, last = field.split(".")
    inner = tree
    for name in above:
        inner = inner[name]
    del inner[last]
    folder = results("quick_one_0", tree)
    with pytest.raises(ValueError, match=rf"quick_one_0\.json has no {field}; remove it"):
        tables.read(folder)
