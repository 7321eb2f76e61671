"""Tables and curves for people: success rates with their uncertainty, and how they grew.  Takes plain dicts."""

import math
import pathlib

from matplotlib import figure, ticker

Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
COLOURS = {
    "train": "#8fa6bf",
    "eval": "#0b5fa5",
    "return": "#b5651d",
    "kl": "#7a3e9d",
    "grid": "#e4e4e4",
}
VARIANT_COLOURS = ("#0b5fa5", "#b5651d", "#2e8b57", "#7a3e9d", "#444444")


def wilson(successes: int, episodes: int) -> tuple[float, float]:
    """95 % interval of a success rate (Wilson 1927): honest at 0 %, at 100 % and for few episodes."""
    if not 0 <= successes <= episodes or episodes == 0:
        raise ValueError(
            f"{successes} successes in {episodes} episodes is not a success rate; evaluate at least one"
        )
    rate, z2 = successes / episodes, Z_95**2
    centre = (rate + z2 / (2 * episodes)) / (1 + z2 / episodes)
    half = (
        Z_95
        / (1 + z2 / episodes)
        * math.sqrt(rate * (1 - rate) / episodes + z2 / (4 * episodes**2))
    )
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    # Exact at the ends, where the formula leaves rounding noise.
    return (0.0 if successes == 0 else low), (1.0 if successes == episodes else high)


def algorithm_name(adv_type: str) -> str:
    """What people call it: PPO, GRPO, ..."""
    return "PPO" if adv_type == "gae" else adv_type.upper()


def success_table(
    results: dict[str, dict[str, tuple[int, int]]], suites: dict[str, list[str]] | None = None
) -> dict:
    """{"SFT": {task: (successes, episodes)}, "PPO": {...}} -> JSON: rate and interval per task and in total.

    suites: {suite: its tasks}, for a subtotal of each.  disjoint: whether the total intervals of the first and the last row do
    not overlap.
    """
    rows = {}
    for name, tasks in results.items():
        rows[name] = {
            "tasks": {task: _cell(*counts) for task, counts in tasks.items()},
            "suites": {
                suite: _sum(tasks[task] for task in members)
                for suite, members in (suites or {}).items()
            },
            "total": _sum(tasks.values()),
        }
    first, last = (list(rows.values())[k]["total"] for k in (0, -1))
    disjoint = first["high"] < last["low"] or last["high"] < first["low"]
    return {"interval": "Wilson 95 %", "rows": rows, "disjoint": disjoint}


def as_text(table: dict, steps: dict[str, float] | None = None) -> str:
    """The table for a terminal: one line per task, suite and in total, one column per row of `results`.

    steps: mean episode length by task, for a column of its own.
    """
    rows = table["rows"]
    first = next(iter(rows.values()))
    parts = [first["tasks"], first["suites"], {"total": None}]
    width = max(len(name) for part in parts for name in part)
    cells = {
        name: [*map(_cell_text, [*row["tasks"].values(), *row["suites"].values(), row["total"]])]
        for name, row in rows.items()
    }
    if steps:
        cells["steps"] = [
            f"{steps[name]:.1f}" if name in steps else "" for part in parts for name in part
        ]
    columns = {name: max(len(name), *map(len, column)) for name, column in cells.items()}
    lines = ["  ".join([" " * width, *(f"{name:>{columns[name]}}" for name in cells)])]
    rule, k = "-" * len(lines[0]), 0
    for part in filter(None, parts):
        lines.append(rule)
        for name in part:
            lines.append(
                "  ".join(
                    [
                        f"{name:<{width}}",
                        *(f"{cells[column][k]:>{columns[column]}}" for column in cells),
                    ]
                )
            )
            k += 1
    note = f"success rate [{table['interval']} interval] successes/episodes"
    if len(rows) > 1:
        verdict = "are disjoint" if table["disjoint"] else "overlap"
        note += f"; the total intervals of {next(iter(rows))} and {list(rows)[-1]} {verdict}"
    return "\n".join([*lines, rule, note])


def learning_curve(path, rows: list[dict], title: str = "") -> pathlib.Path:
    """PNG of a run: success rate of training rollouts and evaluations above; return and KL below.

    rows: as `log.read` gives them; uses env/success_once, eval/success_once, env/return, actor/approx_kl where present;
    eval/num_trajectories beside an evaluation gives its Wilson interval.
    """
    path = pathlib.Path(path)
    fig = figure.Figure(figsize=(8, 6), dpi=150, layout="constrained")
    top, bottom = fig.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _draw_success(top, rows)
    top.set_title(title, loc="left", fontsize=11, fontweight="bold")
    _draw(bottom, rows, "env/return", "return", label="return of training episodes")
    bottom.set_ylabel("return", color=COLOURS["return"])
    bottom.set_xlabel("iteration (one rollout and its updates)")
    bottom.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    right = bottom.twinx()
    _draw(right, rows, "actor/approx_kl", "kl", linestyle="--")
    right.set_ylabel("approximate KL per update", color=COLOURS["kl"])
    for axes in (top, bottom, right):
        axes.spines[["top", "right"] if axes is not right else ["top", "left"]].set_visible(False)
    for axes in (top, bottom):
        axes.grid(color=COLOURS["grid"], linewidth=0.8)
        axes.set_axisbelow(True)
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path)
    return path


def comparison(path, runs: list[dict], smooth: int = 5) -> pathlib.Path:
    """PNG of several runs: a panel per `panel`, a colour per `variant`, a line per run.

    runs: dicts with panel, variant, success (rate of every training rollout), before and after (cells of success_table).  Lines are
    means over the last `smooth` iterations; dots and bars are the evaluations before and after, with their intervals.
    """
    panels, variants = (
        list(dict.fromkeys(run[name] for run in runs)) for name in ("panel", "variant")
    )
    colours = {name: VARIANT_COLOURS[k % len(VARIANT_COLOURS)] for k, name in enumerate(variants)}
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    fig = figure.Figure(figsize=(5.2 * columns, 3.4 * lines), dpi=130, layout="constrained")
    grid = fig.subplots(lines, columns, squeeze=False, sharey=True).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        for run in runs:
            if run["panel"] == panel:
                _draw_run(
                    axes, run, colours[run["variant"]], smooth, 0.4 * variants.index(run["variant"])
                )
        axes.set_title(panel, loc="left", fontsize=10, fontweight="bold")
        axes.set_xlabel("iteration (one rollout and its updates)", fontsize=8)
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(ticker.PercentFormatter(xmax=1))
        axes.grid(color=COLOURS["grid"], linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        by_label = {
            label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }  # seeds share one
        axes.legend(
            list(by_label.values()), list(by_label), loc="lower right", frameon=False, fontsize=8
        )
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    fig.suptitle(
        "success rate: lines of exploring rollouts,\ndots of evaluations before and after (95 % interval)",
        fontsize=9,
    )
    fig.savefig(path)
    return pathlib.Path(path)


def _draw_run(axes, run, colour, smooth, shift):
    parts = [run["success"][max(0, k - smooth) : k] for k in range(1, len(run["success"]) + 1)]
    axes.plot(
        range(1, len(parts) + 1),
        [sum(part) / len(part) for part in parts],
        color=colour,
        linewidth=1.5,
        label=run["variant"],
    )
    for where, cell in (
        (-shift, run["before"]),
        (len(parts) + 1 + shift, run["after"]),
    ):  # side by side
        bar = [[cell["rate"] - cell["low"]], [cell["high"] - cell["rate"]]]
        axes.errorbar(
            [where], [cell["rate"]], yerr=bar, color=colour, marker="o", markersize=4, linewidth=1
        )


def series(rows: list[dict], name: str) -> tuple[list[int], list[float]]:
    """Iterations and finite values of one metric."""
    pairs = [
        (row["iteration"], float(row[name]))
        for row in rows
        if name in row and math.isfinite(float(row[name]))
    ]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _draw(axes, rows: list[dict], name: str, colour: str, **style) -> None:
    iterations, values = series(rows, name)
    marker = "." if len(values) < 60 else None
    axes.plot(iterations, values, color=COLOURS[colour], linewidth=1.6, marker=marker, **style)


def _draw_success(axes, rows: list[dict]) -> None:
    _draw(axes, rows, "env/success_once", "train", label="training rollouts (exploring)")
    iterations, rates = series(rows, "eval/success_once")
    label = "evaluation (no exploration)"
    axes.plot(iterations, rates, color=COLOURS["eval"], linewidth=2, marker="o", label=label)
    _, counts = series(rows, "eval/num_trajectories")
    if counts:
        bounds = [
            wilson(round(rate * count), round(count))
            for rate, count in zip(rates, counts, strict=True)
        ]
        low, high = zip(*bounds, strict=True)
        style = {"color": COLOURS["eval"], "alpha": 0.15, "linewidth": 0}
        axes.fill_between(iterations, low, high, label="Wilson 95 % interval", **style)
    axes.set_ylabel("success rate")
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(ticker.PercentFormatter(xmax=1))
    axes.legend(loc="lower right", frameon=False, fontsize=9)


def _cell(successes: int, episodes: int) -> dict:
    low, high = wilson(successes, episodes)
    return {
        "successes": successes,
        "episodes": episodes,
        "rate": successes / episodes,
        "low": low,
        "high": high,
    }


def _sum(counts) -> dict:
    return _cell(*(sum(column) for column in zip(*counts, strict=True)))


def _cell_text(cell: dict) -> str:
    interval = f"[{100 * cell['low']:5.1f}, {100 * cell['high']:5.1f}]"
    return f"{100 * cell['rate']:5.1f} % {interval} {cell['successes']:>3}/{cell['episodes']}"
