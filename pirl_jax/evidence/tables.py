"""Tables and curves of docs/results.md, out of the JSON files of the cells and nothing else.

A cell without a file is "not run".  Plays nothing, and reads no folder of a run.
"""

from collections.abc import Iterator, Mapping, Sequence
import pathlib
from typing import Any

from pirl_jax.core import atomic, outside
from pirl_jax.evidence import cells, goals
from pirl_jax.monitor import diagnosis, report

BEGIN = "<!-- evidence: begin; written by python -m pirl_jax.evidence tables -->"
END = "<!-- evidence: end -->"
NOT_RUN = "not run"
REMEDY = "remove it, and play the cell again"
HEADER = (
    "cell",
    "seeds",
    "before",
    "after, seed by seed",
    "mean after",
    "held out, after",
    "episodes",
    "minutes",
    "goal",
)
Result = Mapping[str, Any]
# What of a result the tables stand on.
NEEDED = {
    "cell": str,
    "row": str,
    "seed": int,
    "state": str,
    "after.all.rate": float,
    "before.all.rate": float,
    "episodes": int,
    "wall_s": float,
    "success": list,
    "command": list,
    "environment": dict,
    "revisions": list,
    "diagnosis": list,
}


def write(page: pathlib.Path, results: pathlib.Path, table: cells.Table) -> None:
    """The section between BEGIN and END of a page, and the curves beside the results.

    Raises:
      ValueError: the page has no such section, or a result is damaged.
    """
    text = outside.read_text(page, remedy="give --page the page of results")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{page} has no lines {BEGIN} and {END}; add them where the tables belong")
    found = read(results)
    for row in cells.ROWS:
        own = [one for one in found if one["row"] == row]
        if own:
            curves(results / f"{row}.png", own)
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    told = section(found, perturbed(results), table, results.name)
    atomic.write_text(page, f"{before}{BEGIN}\n\n{told}\n{END}{after}")


def read(results: pathlib.Path) -> list[dict[str, Any]]:
    """All results of cells, by cell and seed.

    Raises:
      ValueError: one is damaged.
    """
    found = []
    for path in sorted(results.glob("*.json")):
        if path.name.endswith(".perturbed.json"):
            continue
        tree = outside.read_json(path, remedy=REMEDY)
        for names, kind in NEEDED.items():
            outside.part(tree, names, kind, path, REMEDY)
        found.append(tree)
    return sorted(found, key=lambda one: (one["cell"], one["seed"]))


def perturbed(results: pathlib.Path) -> list[dict[str, Any]]:
    """The same of what perturbs their tasks."""
    found = []
    for path in sorted(results.glob("*.perturbed.json")):
        tree = outside.read_json(path, remedy=REMEDY)
        outside.part(tree, "dimensions", dict, path, REMEDY)
        found.append(tree)
    return found


def section(
    found: Sequence[Result], of_perturbed: Sequence[Result], table: cells.Table, folder: str
) -> str:
    """Markdown.  folder: of the curves, seen from the page's folder `results`."""
    lines: list[str] = []
    for row, what in cells.ROWS.items():
        own = [cell for cell in table.cells if cell.row == row]
        if own:
            lines += ["", f"### {row}: {what}", "", *_table(own, found)]
            if any(one["row"] == row for one in found):
                lines += ["", f"![learning curves of row {row}](results/{folder}/{row}.png)"]
        elif row == "h":
            lines += ["", f"### {row}: {what}", "", *_perturbed(table, of_perturbed)]
    if found:
        lines += ["", "### What `pirl diagnose` says", "", *_diagnoses(found)]
        lines += ["", "### Where these numbers are from", "", *_origins(found)]
    return "\n".join(lines[1:]) + "\n"


# ---- one row -----------------------------------------------------------------------------------


def _table(of_row: Sequence[cells.Cell], found: Sequence[Result]) -> Iterator[str]:
    yield _line(HEADER)
    yield _line(["---"] * len(HEADER))
    for cell in of_row:
        own = list(goals.of_cell(cell.name, found).values())
        yield _line([*_cell(cell, own), goals.judged(cell, found) or "-"])


def _line(words: Sequence[str]) -> str:
    return f"| {' | '.join(words)} |"


def _cell(cell: cells.Cell, found: Sequence[Result]) -> list[str]:
    """One line of a table but for its goal; what is not there is not run."""
    name = f"`{cell.name}`"
    played = [one["seed"] for one in found]
    missing = [seed for seed in cell.seeds if seed not in played]
    seeds = ", ".join(str(one["seed"]) for one in found)
    if not found:
        return [name, ", ".join(map(str, cell.seeds)), NOT_RUN, *["-"] * 5]
    if missing:
        seeds += f" ({', '.join(map(str, missing))} {NOT_RUN})"
    mean = goals.mean(goals.of_cell(cell.name, found))
    after = []
    for one in found:
        note = "" if one["state"] == "complete" else f" ({one['state']})"
        after.append(_rate(one["after"]["all"]) + note)
    return [
        name,
        seeds,
        "; ".join(_rate(one["before"]["all"]) for one in found),
        "; ".join(after),
        f"**{_percent(mean)}**",
        "; ".join(_held_out(one) for one in found),
        "; ".join(f"{one['episodes']:,}" for one in found),
        "; ".join(f"{one['wall_s'] / 60:.0f}" for one in found),
    ]


def _rate(rate: Mapping[str, float]) -> str:
    """ "92.7 % [87.3, 95.9]" """
    low, high = (f"{100 * rate[end]:.1f}" for end in ("low", "high"))
    return f"{_percent(rate['rate'])} [{low}, {high}]"


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def _held_out(one: Result) -> str:
    """All of it where training saw none of the start states."""
    held = one["after"].get("held_out")
    return f"{_rate(held)} of {held['episodes']}" if held else "-"


# ---- perturbed tasks ---------------------------------------------------------------------------


def _perturbed(table: cells.Table, found: Sequence[Result]) -> Iterator[str]:
    """One table per dimension, SFT against RL."""
    played = [(one["cell"], one["seed"]) for one in found]
    absent = []
    for cell in table.cells:
        seeds = [seed for seed in cell.seeds if (cell.name, seed) not in played]
        if cell.perturbed and seeds:
            absent.append(f"`{cell.name}` ({', '.join(map(str, seeds))})")
    suites = set().union(*(one["dimensions"] for one in found))
    for suite in sorted(suites):
        yield f"**{suite}**"
        yield ""
        yield _line(("cell", "seed", "before", "after", "difference, paired", "pairs"))
        yield _line(["---"] * 6)
        for one in found:
            if suite in one["dimensions"]:
                yield _line(_dimension(one, one["dimensions"][suite]))
        yield ""
    if absent:
        yield f"{NOT_RUN.capitalize()}, by cell and seed: {', '.join(absent)}."


def _dimension(one: Result, dimension: Mapping[str, Any]) -> list[str]:
    rates = [_rate(dimension[end]) if dimension[end] else "-" for end in ("before", "after")]
    change = dimension["change"]
    compared = ["-", "0"]
    if change:
        low, high = (f"{100 * change[end]:+.1f}" for end in ("low", "high"))
        compared = [f"{100 * change['rate']:+.1f} [{low}, {high}]", str(change["pairs"])]
    return [f"`{one['cell']}`", str(one["seed"]), *rates, *compared]


# ---- below the tables --------------------------------------------------------------------------


def _diagnoses(found: Sequence[Result]) -> Iterator[str]:
    yield _line(("cell", "seed", "next"))
    yield _line(["---"] * 3)
    for one in found:
        first = diagnosis.first([diagnosis.Finding(**answer) for answer in one["diagnosis"]])
        change = first.change if first else "nothing that the metrics tell"
        yield _line((f"`{one['cell']}`", str(one["seed"]), change))


def _origins(found: Sequence[Result]) -> Iterator[str]:
    """Commands, and what they ran on; what several share stands once."""
    yield "Rates are success rates without exploration noise, with Wilson 95 % intervals; RUNS is"
    yield "the folder of all runs, in which a start has the number of its teaching at its end."
    yield ""
    yield _line(("cell", "seed", "taught by", "revision", "versions", "renderer", "assets"))
    yield _line(["---"] * 7)
    for one in found:
        yield _line(_origin(one))
    yield ""
    yield "```bash"
    for one in found:
        yield " ".join(_quoted(word) for word in one["command"])
    yield "```"


def _origin(one: Result) -> list[str]:
    environment = one["environment"]
    packages = environment.get("packages") or {}
    versions = [f"{name} {packages[name]}" for name in ("jax", "mujoco") if name in packages]
    after = one["after"]
    assets = (after.get("protocol") or {}).get("assets") or {}
    drawn = assets.get("package") or str(assets.get("sha256_of_names_and_sizes", "-"))[:12]
    return [
        f"`{one['cell']}`",
        str(one["seed"]),
        _taught(one.get("start")),
        ", ".join(f"`{_short(revision)}`" for revision in one["revisions"]),
        ", ".join([f"Python {environment.get('python')}", *versions]),
        str(after.get("renderer") or "-"),
        f"{drawn}",
    ]


def _short(revision: str) -> str:
    """Of a commit; that files differed from it stays."""
    commit, dash, dirty = revision.partition("-")
    return f"{commit[:12]}{dash}{dirty}"


def _taught(start: Mapping[str, Any] | None) -> str:
    """Which teaching was taken, and what all that were tried gave on training's start states."""
    if start is None:
        return "its recipe"
    tried = []
    for trial in start["trials"]:
        settings = ", ".join(f"{name}={value}" for name, value in trial["settings"].items())
        taken = " (taken)" if trial["rung"] == start["rung"] else ""
        tried.append(f"{settings}: {_percent(trial['rate']['rate'])}{taken}")
    return "; ".join(tried)


def _quoted(word: str) -> str:
    return f"'{word}'" if set(word) & set("() ") else word


# ---- curves ------------------------------------------------------------------------------------


def curves(path: pathlib.Path, found: Sequence[Result]) -> None:
    """All seeds of a row, and their mean."""
    summaries = []
    for one in found:
        summary = {
            "panel": _panel(one["cell"]),
            "variant": one["cell"],
            "success": one["success"],
            "before": one["before"]["all"],
            "after": one["after"]["all"],
        }
        summaries.append(summary)
    report.comparison(path, summaries)


def _panel(cell: str) -> str:
    """Task and model, the first words of a cell's name."""
    return " ".join(cell.split("_")[:2])
