"""Tables that fit a terminal without splitting an id: on a narrow one, columns stack cells."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from xalen_batch.cli.output import STDOUT, grid, safe

# The columns of a table, each with the names of the cells that it stacks.
Layout = Sequence[Sequence[str]]
# The least width of a folded cell, in characters.
NARROWEST = 20
# Longer words are split. `rotated_from=key_…` with its id has this many characters.
LONGEST_WORD = 56
# Characters between two columns.
BETWEEN = 3


def stacked(
    layouts: Sequence[Layout],
    rows: Iterable[Sequence[object]],
    *,
    right: Collection[str] = (),
    folded: Collection[str] = (),
    has_total: bool = False,
    console: Console = STDOUT,
) -> Table:
    """A table in the first layout that fits the console, or else in one column.

    In a pipe, each cell has a column. Layouts are ordered from the widest to the narrowest. `rows`
    have a cell for each name of the first layout, in its order; a cell that is no `Text` is made
    safe. `right`: names of figures. Only the cells named in `folded` are folded, between words, so
    that each id can be copied. `has_total`: the last row is the sum of the others, and is set off.
    """
    names, texts = (
        names_of(layouts[0]),
        [[cell if isinstance(cell, Text) else Text(safe(cell)) for cell in row] for row in rows],
    )
    if not console.is_terminal:
        table = grid(names, texts[:-1] if has_total else texts, right=tuple(right))
        if has_total:
            table.add_section()
            table.add_row(*texts[-1])
        return table
    cells = [dict(zip(names, row, strict=True)) for row in texts]
    found = [(layout, _widths(layout, cells, folded)) for layout in (*layouts, [names])]
    layout, widths = next(
        ((layout, widths) for layout, widths in found if _whole(widths) <= console.width), found[-1]
    )
    spare = max(console.width - _whole(widths), 0)
    table = grid(
        ["\n".join(column) for column in layout],
        (),
        right=["\n".join(column) for column in layout if set(column) <= set(right)],
    )
    for shown, least, most in zip(table.columns, widths, _widths(layout, cells, ()), strict=True):
        shown.width = min(most, least + spare)
        spare -= shown.width - least
    for number, row in enumerate(cells, 1):
        table.add_row(*(Text("\n").join([row[name] for name in column]) for column in layout))
        if len(layout) < len(names) or (has_total and number == len(cells) - 1):
            table.add_section()
    return table


def names_of(layout: Layout) -> list[str]:
    """The names of all cells, in the order of the layout."""
    return [name for column in layout for name in column]


def _widths(
    layout: Layout, rows: Sequence[Mapping[str, Text]], folded: Collection[str]
) -> list[int]:
    """The width of each column in characters; a cell of `folded` needs that of its longest word."""
    return [
        max(
            len(name) if row is None else _width(row[name], name in folded)
            for name in column
            for row in (None, *rows)
        )
        for column in layout
    ]


def _width(cell: Text, may_fold: bool) -> int:
    if not may_fold:
        return cell.cell_len
    words = [cell_len(word) for word in cell.plain.split()]
    return min(
        cell.cell_len, max([NARROWEST, *(length for length in words if length <= LONGEST_WORD)])
    )


def _whole(widths: Sequence[int]) -> int:
    return sum(widths) + BETWEEN * (len(widths) - 1)
