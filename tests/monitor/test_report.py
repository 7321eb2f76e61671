import numpy as np
import pytest

from pirl_jax.monitor import report


@pytest.mark.parametrize(
    "successes, episodes, low, high",
    [  # Newcombe 1998, table I (method 3, rounded to four digits) and the textbook case 0 of 10
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (0, 10, 0.0, 0.2775),
    ],
)
def test_wilson_matches_published_intervals(successes, episodes, low, high):
    assert report.wilson(successes, episodes) == pytest.approx((low, high), abs=5e-5)
    failures = report.wilson(episodes - successes, episodes)
    assert failures == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_wilson_ends_exactly_at_no_and_at_every_success():
    """Without rounding noise: a rate beside its interval must lie in it."""
    assert report.wilson(0, 7)[0] == 0.0 and report.wilson(7, 7)[1] == 1.0
    assert [type(end) for end in report.wilson(3, 7)] == [float, float]


def test_wilson_refuses_what_is_no_rate():
    for counts in ((0, 0), (3, 2), (-1, 4)):
        with pytest.raises(ValueError, match="not a success rate"):
            report.wilson(*counts)


RESULTS = {
    "SFT": {"lift the red cube": (20, 50), "stack": (10, 50)},
    "PPO": {"lift the red cube": (50, 50), "stack": (45, 50)},
}


def test_table_totals_and_disjoint_intervals():
    table = report.success_table(RESULTS)
    assert table["rows"]["SFT"]["total"]["rate"] == 0.3
    assert table["rows"]["PPO"]["total"]["successes"] == 95
    assert table["disjoint"]
    assert not report.success_table({"SFT": {"a": (5, 10)}, "PPO": {"a": (6, 10)}})["disjoint"]


def test_text_table_is_aligned_and_complete():
    text = report.as_text(report.success_table(RESULTS))
    lines = text.splitlines()
    assert "100.0 % [ 92.9, 100.0]  50/50" in lines[2]
    assert len({len(line) for line in lines[:-1]}) == 1
    assert lines[-1].endswith("the total intervals of SFT and PPO are disjoint")


def test_suites_get_subtotals_and_steps_a_column():
    suites = {"libero_goal": ["lift the red cube"], "libero_90": ["stack"]}
    table = report.success_table({"policy": RESULTS["SFT"]}, suites)
    goal = table["rows"]["policy"]["suites"]["libero_goal"]
    assert (goal["rate"], goal["low"], goal["high"]) == (0.4, *report.wilson(20, 50))
    lines = report.as_text(table, {"lift the red cube": 31.25, "stack": 99.0}).splitlines()
    names = [line.split("  ")[0] for line in lines[1:-1] if not line.startswith("-")]
    assert names == ["lift the red cube", "stack", "libero_goal", "libero_90", "total"]
    assert lines[0].endswith("steps") and lines[2].endswith(" 31.2") and lines[3].endswith(" 99.0")
    # Tasks reach to the end of the steps, suites and total to the end of the rates.
    tasks, sums = lines[2:4], [lines[5], lines[6], lines[8]]
    assert {len(line) for line in tasks} == {len(lines[0])}
    assert {len(line) for line in sums} == {lines[0].index("policy") + len("policy")}


def test_a_task_that_one_row_lacks_has_an_empty_cell():
    """All of its episodes may be lost with their simulators, before or after training."""
    results = {"SFT": {"stack": (10, 50)}, "PPO": {"lift": (50, 50), "stack": (45, 50)}}
    lines = report.as_text(report.success_table(results)).splitlines()
    assert lines[2].startswith("stack") and "10/50" in lines[2] and "45/50" in lines[2]
    assert lines[3].split() == ["lift", "100.0", "%", "[", "92.9,", "100.0]", "50/50"]
    assert len(lines[3]) == len(lines[2])


def test_learning_curve_is_drawn_from_any_subset_of_metrics(tmp_path):
    names = ("env/success_once", "env/return", "actor/approx_kl3")
    rows = [{"iteration": k} | dict.fromkeys(names, k / 10) for k in range(10)]
    for k in (0, 5, 9):
        rows.append({"iteration": k, "eval/success_once": k / 10, "eval/num_trajectories": 50})
    rows.append({"iteration": 3, "env/return": "nan"})
    path = report.learning_curve(tmp_path / "figures" / "curve.png", rows, "tabletop")
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000
    assert report.learning_curve(tmp_path / "empty.png", []).exists()
    assert report.series(rows, "env/return")[0] == list(range(10))


def test_seeds_of_a_variant_are_thin_lines_and_their_mean_a_thick_one(tmp_path, monkeypatch):
    """As far as all seeds reach; one seed alone is the variant's line."""
    drawn = []
    plot = report.axes.Axes.plot

    def recorded(panel, *values, **style):
        drawn.append((list(values[1]), style.get("label"), style["linewidth"]))
        return plot(panel, *values, **style)

    monkeypatch.setattr(report.axes.Axes, "plot", recorded)
    ends = {"before": report.rate(4, 10), "after": report.rate(8, 10), "panel": "tabletop"}
    runs = []
    for variant, success in (("one", [0.2, 0.4, 0.9]), ("one", [0.4, 0.6]), ("two", [0.1])):
        runs.append({"variant": variant, "success": success} | ends)
    report.comparison(tmp_path / "sheet.png", runs, smooth=1)
    labels = [label for _, label, _ in drawn]
    assert labels == [None, None, "one, mean of 2", "two"]
    np.testing.assert_allclose(drawn[2][0], [0.3, 0.5])
    assert drawn[2][2] > drawn[3][2] > drawn[0][2]
