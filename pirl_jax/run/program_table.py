"""What compilers say of the programs of a recipe, as a table (run/outlook.py makes the numbers)."""

from collections.abc import Iterator
from typing import Any

from pirl_jax.monitor import columns
from pirl_jax.run import capacity, placed_outlook

GB = 1e9
ABOUT_ESTIMATES = (
    "compiled, not run; GB and MB of one device; estimate: XLA:TPU's cycles over the clock without "
    "what is exchanged, of GPUs there is none; roofline and links: at the published rates"
)
HEADER = (
    "program",
    "arguments GB",
    "temporary",
    "peak",
    "donated",
    "TFLOP",
    "estimate ms",
    "roofline",
    "links",
    "of peak",
    "exchanged MB",
)


def as_text(result: dict[str, Any]) -> str:
    """Choices, a line per program, and what a reader must know."""
    limit = result["limit"] / GB
    shape = " x ".join(map(str, result["choices"]["mesh"]))
    of_hosts = f" on {result['hosts']} hosts" if result["hosts"] > 1 else ""
    lines = [f"{result['target']}, mesh (data x fsdp) {shape}{of_hosts}, {limit:.2f} GB per device"]
    if result["fits"] is None:
        lines.append("some programs alone: whether a run fits was not asked")
    elif result["fits"]:
        total = result["plan"]["total"] / GB
        lines.append(f"fits: a run needs {total:.2f} GB at most, by the compiler's estimate")
        if result["plan"].get("remedy"):
            lines.append(result["plan"]["remedy"])
    else:
        lines.append(f"does not fit: {result['why']}")
        if result["changes"]:
            lines.append("with that change:")
    choices = (f"{name}={value}" for name, value in result["choices"].items() if name != "mesh")
    chosen = "compiled with" if result["fits"] is None else "chosen for this target"
    lines.append(f"{chosen}: {', '.join(choices)}")
    rows = []
    for name, row in result["programs"].items():
        rows.append([name, *_cells(row)])
    lines += ["", columns.aligned(rows, HEADER), ""]
    for name, row in result["programs"].items():
        lines += _details(name, row)
    lines.append(ABOUT_ESTIMATES)
    lines += result["notes"]
    if "placement" in result:
        lines += ["", placed_outlook.as_text(result["placement"])]
    if "capacity" in result:
        lines += ["", capacity.as_text(result["capacity"])]
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> list[str]:
    if "refused" in row:
        return ["refused", *["-"] * (len(HEADER) - 2)]
    memory = row["memory"]
    share = row["share_of_peak"]
    cells = [_short(memory[name] / GB) for name in ("arguments", "temporary", "peak", "donated")]
    if not row["fits"]:
        cells[2] += " (too much)"
    times = (row["estimated_s"], row["roofline_s"], row["exchange_s"])
    return [
        *cells,
        _short(row["flops"] / 1e12),
        *("-" if seconds is None else _short(1e3 * seconds) for seconds in times),
        "-" if share is None else f"{share:.0%}",
        _short(sum(row["collectives"].values()) / 1e6),
    ]


def _short(value: float) -> str:
    """Three digits."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _details(name: str, row: dict[str, Any]) -> Iterator[str]:
    """What does not fit into columns."""
    if "refused" in row:
        yield f"{name}: {row['refused']}"
        return
    kinds = []
    for kind, size in row["collectives"].items():
        kinds.append(f"{kind} {size / 1e6:.1f} MB in {row['calls'][kind]:.0f}")
    if kinds:
        yield f"{name} exchanges {', '.join(kinds)}"
    if row["unknown_loops"]:
        yield f"{name}: {row['unknown_loops']} loops whose trip count is unknown count once"
    if row["not_counted"]:
        yield f"{name}: the FLOPs of {', '.join(row['not_counted'])} are unknown and not counted"
