"""Rows of text as aligned columns: what a terminal, a table.txt and `cat` show alike.

Plain text of fixed width, drawn by rich: no colours, no wrapping, whatever it is written to.
Knows nothing of what stands in the cells.
"""

from collections.abc import Iterable, Mapping, Sequence
import io

from rich import box, console, table

RULE = ()  # among the rows: a line under the row before it
WIDEST = 100_000  # characters; rich cuts what is wider, so no line ever is

# Lines of dashes below the header and between sections; nothing between columns, no frame.
_RULES = box.Box(
    "    \n"  # top
    "    \n"  # header
    "----\n"  # below the header
    "    \n"  # row
    "----\n"  # below a section
    "    \n"  # above the footer
    "    \n"  # footer
    "    \n",  # bottom
    ascii=True,
)


def aligned(rows: Iterable[Sequence[str]], header: Sequence[str] = (), left: int = 1) -> str:
    """Lines without trailing spaces, columns two spaces apart.

    Args:
      rows: cells by row, a shorter row ends early; RULE draws a line.
      header: a cell per column, with a line below; (): no header.
      left: so many columns are aligned on the left, all others on the right.
    """
    rows = list(rows)
    width = max(map(len, [header, *rows]))
    grid = table.Table(
        box=_RULES,
        show_header=bool(header),
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),  # one space here, the other is the box's own between columns
    )
    for column in range(width):
        grid.add_column(
            header[column] if header else "",
            justify="left" if column < left else "right",
            no_wrap=True,
        )
    for row in rows:
        if row == RULE:
            grid.add_section()
        else:
            grid.add_row(*row)
    lines = _drawn(grid)
    # rich draws lines between sections only, none under the last one.
    if rows and rows[-1] == RULE:
        lines.append("-" * max(map(len, lines)))
    return "\n".join(lines)


def of_rows(rows: Sequence[Mapping[str, object]]) -> str:
    """The same of rows with equal names, which become the header; None is an empty cell."""
    cells = []
    for row in rows:
        cells.append(["" if value is None else str(value) for value in row.values()])
    return aligned(cells, header=list(rows[0]))


def _drawn(grid: table.Table) -> list[str]:
    """What rich makes of it, without what it would do for a terminal."""
    text = io.StringIO()
    plain = console.Console(
        file=text,
        width=WIDEST,
        color_system=None,
        force_jupyter=False,
        # "[1]" and ":smile:" in an instruction are text.
        markup=False,
        emoji=False,
        highlight=False,
    )
    plain.print(grid)
    return [line.rstrip() for line in text.getvalue().splitlines()]
