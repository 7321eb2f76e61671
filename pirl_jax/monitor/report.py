"""Tables and curves for people: success rates with their uncertainty, and how they grew.

Takes plain dicts.  Knows no run directory: what to draw and where to write it is the caller's.
"""

from collections.abc import Iterable, Mapping, Sequence
import functools
import math
import os
import pathlib
from typing import Any

from matplotlib import axes, figure, ticker
from scipy import stats

from pirl_jax.core import atomic
from pirl_jax.monitor import columns

COLOURS = {
    "train": "#8fa6bf",
    "eval": "#0b5fa5",
    "return": "#b5651d",
    "kl": "#7a3e9d",
    "grid": "#e4e4e4",
}
# Variants go through the colours, and then through them again with the next kind of line.
VARIANT_LINES = ("-", "--", ":", "-.")
VARIANT_COLOURS = ("#0b5fa5", "#b5651d", "#2e8b57", "#7a3e9d", "#444444")
RATES = (-0.03, 1.03)  # limits of an axis of rates: lines at 0 and 1 keep their width
MOST_MARKED = 60  # points of a line; more of them would run together


# ---- rates -------------------------------------------------------------------------------------


@functools.cache  # scipy takes a millisecond, and iterations of equal size repeat each other's
def wilson(successes: int, episodes: int) -> tuple[float, float]:
    """95 % interval of a success rate: honest at 0 %, at 100 % and for few episodes.

    E. B. Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    Raises:
      ValueError: no episodes, or more successes than episodes.
    """
    if episodes == 0 or not 0 <= successes <= episodes:
        raise ValueError(
            f"{successes} successes in {episodes} episodes is not a success rate; "
            f"evaluate at least one"
        )
    test = stats.binomtest(successes, episodes)
    interval = test.proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def paired_difference(counts: Mapping[tuple[bool, bool], int]) -> dict[str, float]:
    """How much higher the first of two success rates is, on the same episodes; 95 % interval.

    R. G. Newcombe 1998, "Improved confidence intervals for the difference between binomial
    proportions based on paired data", method 10: the two Wilson intervals and the correlation.

    Args:
      counts: how many episodes had (success of the first, success of the second).

    Returns:
      {"pairs", "rate" (of the difference), "low", "high"}
    """
    both, first, second, neither = (
        counts.get(outcome, 0)
        for outcome in ((True, True), (True, False), (False, True), (False, False))
    )
    pairs = both + first + second + neither
    low_1, high_1 = wilson(both + first, pairs)
    low_2, high_2 = wilson(both + second, pairs)
    rate_1 = (both + first) / pairs
    rate_2 = (both + second) / pairs
    products = (both + first) * (second + neither) * (both + second) * (first + neither)
    agreement = both * neither - first * second
    if agreement > 0:
        agreement = max(agreement - pairs / 2, 0.0)  # continuity
    correlation = agreement / math.sqrt(products) if products else 0.0
    below = _combined(rate_1 - low_1, high_2 - rate_2, correlation)
    above = _combined(high_1 - rate_1, rate_2 - low_2, correlation)
    difference = (first - second) / pairs
    return {
        "pairs": pairs,
        "rate": difference,
        "low": difference - below,
        "high": difference + above,
    }


def _combined(of_first: float, of_second: float, correlation: float) -> float:
    """Half width of a difference, from those of the two rates."""
    square = of_first**2 - 2 * correlation * of_first * of_second + of_second**2
    return math.sqrt(max(square, 0.0))


def algorithm_name(loss: str, adv_type: str) -> str:
    """What people call it: PPO, GRPO, ..."""
    if loss == "clone":
        return "filtered cloning"
    if loss == "nft":
        return "NFT"
    if adv_type == "gae":
        return "PPO"
    return adv_type.upper()


def success_table(
    results: Mapping[str, Mapping[str, tuple[int, int]]],
    suites: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Rate and interval per task, per suite and in total, as JSON.

    Args:
      results: {"SFT": {task: (successes, episodes)}, "PPO": {...}}
      suites: {suite: its tasks}, for a subtotal of each.

    Returns:
      {"interval": its name, "rows": {"SFT": {"tasks", "suites", "total"}, ...}, "disjoint": whether
      the total intervals of the first and the last row do not overlap}
    """
    rows = {}
    for name, tasks in results.items():
        subtotals = {}
        for suite, members in (suites or {}).items():
            subtotals[suite] = _total(tasks[task] for task in members)
        rows[name] = {
            "tasks": {task: rate(*counts) for task, counts in tasks.items()},
            "suites": subtotals,
            "total": _total(tasks.values()),
        }
    names = list(rows)
    # Stricter than a test of the difference, which may find one where intervals overlap.
    first = rows[names[0]]["total"]
    last = rows[names[-1]]["total"]
    disjoint = first["high"] < last["low"] or last["high"] < first["low"]
    return {"interval": "Wilson 95 %", "rows": rows, "disjoint": disjoint}


def rate(successes: int, episodes: int) -> dict[str, float]:
    """Counts, rate and Wilson interval."""
    low, high = wilson(successes, episodes)
    return {
        "successes": successes,
        "episodes": episodes,
        "rate": successes / episodes,
        "low": low,
        "high": high,
    }


def _total(counts: Iterable[tuple[int, int]]) -> dict[str, float]:
    successes, episodes = zip(*counts, strict=True)
    return rate(sum(successes), sum(episodes))


def as_text(table: Mapping[str, Any], episode_lengths: Mapping[str, float] | None = None) -> str:
    """The table for a terminal: a line per task, suite and in total, a column per row of `results`.

    episode_lengths: mean control steps by task, for a column of their own.
    """
    rows = table["rows"]
    names = list(rows)
    header = ["", *names]
    if episode_lengths:
        header.append("steps")
    lines = []
    for part in ("tasks", "suites"):
        parts = [row[part] for row in rows.values()]
        labels = _labels(parts)
        for label in labels:
            line = [label, *(counts_text(rates.get(label)) for rates in parts)]
            if episode_lengths and label in episode_lengths:
                line.append(f"{episode_lengths[label]:.1f}")
            lines.append(line)
        if labels:
            lines.append(columns.RULE)
    lines.append(["total", *(counts_text(row["total"]) for row in rows.values())])
    lines.append(columns.RULE)
    # A reader of the file alone must know what the brackets are.
    note = f"success rate [{table['interval']} interval] successes/episodes"
    if len(names) > 1:
        verdict = "are disjoint" if table["disjoint"] else "overlap"
        note += f"; the total intervals of {names[0]} and {names[-1]} {verdict}"
    return f"{columns.aligned(lines, header)}\n{note}"


def _labels(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every task, in the order of the first row that has it."""
    found = {}
    for rates in parts:
        found |= dict.fromkeys(rates)
    return list(found)


def interval_text(rate: Mapping[str, float]) -> str:
    """An entry of success_table: "92.7 % [ 87.3,  95.9]"."""
    percent = {name: 100 * rate[name] for name in ("rate", "low", "high")}
    return f"{percent['rate']:5.1f} % [{percent['low']:5.1f}, {percent['high']:5.1f}]"


def counts_text(rate: Mapping[str, float] | None) -> str:
    """The same with what it was counted from: "92.7 % [ 87.3,  95.9] 139/150".

    None: a task all of whose episodes were lost has no rate, and an empty cell.
    """
    if rate is None:
        return ""
    return f"{interval_text(rate)} {rate['successes']:>3}/{rate['episodes']}"


# ---- curves ------------------------------------------------------------------------------------


def learning_curve(
    path: str | os.PathLike, rows: Sequence[Mapping[str, Any]], title: str = ""
) -> pathlib.Path:
    """PNG of a run: success rate of training rollouts and evaluations above; return and KL below.

    rows: as `log.read` gives them.  Uses env/success_once, eval/success_once, env/return,
      actor/approx_kl3 where present; eval/num_trajectories beside an evaluation gives its interval.
    """
    path = pathlib.Path(path)
    sheet = figure.Figure(figsize=(8, 6), dpi=150, layout="constrained")
    success, returns = sheet.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _draw_success(success, rows)
    success.set_title(title, loc="left", fontsize=11, fontweight="bold")
    _draw_metric(returns, rows, "env/return", "return", label="return of training episodes")
    returns.set_ylabel("return", color=COLOURS["return"])
    returns.set_xlabel("iteration (one rollout and its updates)")
    returns.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    # KL has a scale of its own, on the right of the same panel.
    kl = returns.twinx()
    _draw_metric(kl, rows, "actor/approx_kl3", "kl", linestyle="--")
    kl.set_ylabel("approximate KL per update", color=COLOURS["kl"])
    kl.spines[["top", "left"]].set_visible(False)
    for panel in (success, returns):
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color=COLOURS["grid"], linewidth=0.8)
        panel.set_axisbelow(True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.writing(path) as temporary:
        sheet.savefig(temporary, format=pathlib.Path(path).suffix[1:])
    return path


def series(rows: Iterable[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Iterations and finite values of one metric."""
    iterations = []
    values = []
    for row in rows:
        value = float(row.get(name, "nan"))  # log.read gives "nan" and "inf" as strings
        if math.isfinite(value):
            iterations.append(row["iteration"])
            values.append(value)
    return iterations, values


def _draw_metric(
    panel: axes.Axes, rows: Sequence[Mapping[str, Any]], name: str, colour: str, **style: Any
) -> None:
    iterations, values = series(rows, name)
    if len(values) < MOST_MARKED:
        style["marker"] = "."
    panel.plot(iterations, values, color=COLOURS[colour], linewidth=1.6, **style)


def _draw_success(panel: axes.Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    _draw_metric(panel, rows, "env/success_once", "train", label="training rollouts (exploring)")
    iterations, rates = series(rows, "eval/success_once")
    label = "evaluation (no exploration)"
    panel.plot(iterations, rates, color=COLOURS["eval"], linewidth=2, marker="o", label=label)
    _, counts = series(rows, "eval/num_trajectories")
    if counts:
        lows = []
        highs = []
        # A row of an evaluation has both, the rate and what it was counted from.
        for rate, count in zip(rates, counts, strict=True):
            low, high = wilson(round(rate * count), round(count))
            lows.append(low)
            highs.append(high)
        style = {"color": COLOURS["eval"], "alpha": 0.15, "linewidth": 0}
        panel.fill_between(iterations, lows, highs, label="Wilson 95 % interval", **style)
    panel.set_ylabel("success rate")
    _make_percent(panel)
    panel.legend(loc="lower right", frameon=False, fontsize=9)


def _make_percent(panel: axes.Axes) -> None:
    panel.set_ylim(*RATES)
    panel.yaxis.set_major_formatter(ticker.PercentFormatter(xmax=1))


# ---- several runs ------------------------------------------------------------------------------


def comparison(
    path: str | os.PathLike, runs: Sequence[Mapping[str, Any]], smooth: int = 5
) -> pathlib.Path:
    """PNG of several runs: a panel per `panel`, a colour and kind of line per `variant`, a line per
    run; where a variant has several (its seeds), theirs are thin and their mean is thick.

    Lines are means over the last `smooth` iterations; dots and bars are the evaluations before and
    after, with their intervals.

    runs: dicts with panel, variant, success (rate of every training rollout), before and after
      (entries of success_table).
    """
    titles = list(dict.fromkeys(run["panel"] for run in runs))
    variants = list(dict.fromkeys(run["variant"] for run in runs))
    across = min(2, len(titles))
    down = math.ceil(len(titles) / across)
    legend_down = math.ceil(len(variants) / across)
    size = (5.2 * across, 3.4 * down + 0.2 * legend_down)  # inches
    sheet = figure.Figure(figsize=size, dpi=130, layout="constrained")
    panels = sheet.subplots(down, across, squeeze=False, sharey=True).ravel()
    # Not strict: the last row of panels may be half empty.
    for panel, title in zip(panels, titles, strict=False):
        here = [run for run in runs if run["panel"] == title]
        for number, variant in enumerate(variants):
            _draw_variant(panel, [run for run in here if run["variant"] == variant], number, smooth)
        _finish_panel(panel, title)
    for unused in panels[len(titles) :]:
        unused.set_visible(False)
    # Below, where no line is hidden; seeds and panels of a variant share one entry.
    entries: dict[str, Any] = {}
    for panel in panels:
        handles, labels = panel.get_legend_handles_labels()
        entries |= zip(labels, handles, strict=True)
    style = {"loc": "outside lower center", "ncols": across, "frameon": False, "fontsize": 8}
    sheet.legend(list(entries.values()), list(entries), **style)
    sheet.suptitle(
        "success rate: lines of exploring rollouts,\n"
        "dots of evaluations before and after (95 % interval)",
        fontsize=9,
    )
    with atomic.writing(path) as temporary:
        sheet.savefig(temporary, format=pathlib.Path(path).suffix[1:])
    return pathlib.Path(path)


def _draw_variant(
    panel: axes.Axes, runs: Sequence[Mapping[str, Any]], number: int, smooth: int
) -> None:
    """The seeds of the variant of this number, in its colour, and their mean."""
    again, colour = divmod(number, len(VARIANT_COLOURS))
    colour = VARIANT_COLOURS[colour]
    style = {"color": colour, "linestyle": VARIANT_LINES[again % len(VARIANT_LINES)]}
    lines = [_trailing_means(run["success"], smooth) for run in runs]
    is_one = len(runs) == 1
    for run, means in zip(runs, lines, strict=True):
        label = run["variant"] if is_one else None
        width = {"linewidth": 1.5} if is_one else {"linewidth": 0.7, "alpha": 0.5}
        panel.plot(range(1, len(means) + 1), means, label=label, **style, **width)
        # The evaluations of several variants stand side by side, left and right of their lines.
        shift = 0.4 * number
        _draw_evaluation(panel, -shift, run["before"], colour)
        _draw_evaluation(panel, len(means) + 1 + shift, run["after"], colour)
    if len(runs) > 1:
        mean = _mean_line(lines)
        label = f"{runs[0]['variant']}, mean of {len(runs)}"
        panel.plot(range(1, len(mean) + 1), mean, label=label, linewidth=2.0, **style)


def _mean_line(lines: Sequence[Sequence[float]]) -> list[float]:
    """As far as all of them reach: where one has ended the mean would be another's."""
    # Not strict: the others' ends are left out.
    return [sum(values) / len(values) for values in zip(*lines, strict=False)]


def _trailing_means(values: Sequence[float], smooth: int) -> list[float]:
    """Each value's mean with up to `smooth` - 1 before it."""
    means = []
    for end in range(1, len(values) + 1):
        window = values[max(0, end - smooth) : end]
        means.append(sum(window) / len(window))
    return means


def _draw_evaluation(
    panel: axes.Axes, iteration: float, rate: Mapping[str, float], colour: str
) -> None:
    """A dot with its interval."""
    below = rate["rate"] - rate["low"]
    above = rate["high"] - rate["rate"]
    style = {"color": colour, "marker": "o", "markersize": 4, "linewidth": 1}
    panel.errorbar([iteration], [rate["rate"]], yerr=[[below], [above]], **style)


def _finish_panel(panel: axes.Axes, title: str) -> None:
    panel.set_title(title, loc="left", fontsize=10, fontweight="bold")
    panel.set_xlabel("iteration (one rollout and its updates)", fontsize=8)
    _make_percent(panel)
    panel.grid(color=COLOURS["grid"], linewidth=0.8)
    panel.spines[["top", "right"]].set_visible(False)
