"""Tables for people, at any width: side by side where that can be read, else a paragraph for each row."""

import io
from collections.abc import Iterator
from typing import Final

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from gateway.show import console

ENDLESS: Final = 100_000
FOLDED: Final = 16  # a column of text is still read at this width, where the column does not ask for more
_GAP: Final = 2


def print_table(table: Table, out: Console | None = None) -> None:
    """Prints the table. No number or name is cut or broken (`no_wrap` columns); texts fold. A pipe gets whole lines."""
    out = out or console()
    if not out.is_terminal:
        whole = io.StringIO()
        Console(file=whole, width=ENDLESS, highlight=False, color_system=None).print(table)
        out.file.write("".join(f"{line.rstrip()}\n" for line in whole.getvalue().splitlines()))
    elif fits(table, out.width):
        out.print(table)
    else:
        for row in zip(*(column.cells for column in table.columns), strict=True):
            _print_row(table, [_text(cell) for cell in row], out)


def fits(table: Table, width: int) -> bool:
    """Whether the table can be read at this width."""
    return sum(map(_least, table.columns)) + _GAP * (len(table.columns) - 1) <= width


def _least(column: Column) -> int:
    longest = max(map(_width, (column.header, *column.cells)), default=0)
    return longest if column.no_wrap else min(longest, max(FOLDED, column.min_width or 0))


def _width(cell: object) -> int:
    return max(map(cell_len, _text(cell).plain.splitlines()), default=0)


def _text(cell: object) -> Text:
    return cell if isinstance(cell, Text) else Text.from_markup(str(cell))


def _print_row(table: Table, cells: list[Text], out: Console) -> None:
    """The first cell is the heading; then the short ones in a paragraph, and every text on a line of its own."""
    names = [_text(column.header).plain for column in table.columns]
    out.print(Text.assemble(f"{names[0]} " if names[0] else "", cells[0]), style="bold")
    for line in _paragraphs(table, names, cells):
        out.print(Padding(line, (0, 0, 0, 2), expand=False))


def _paragraphs(table: Table, names: list[str], cells: list[Text]) -> Iterator[Text]:
    told = [
        (column.no_wrap, Text.assemble((f"{name} ", "dim"), cell))
        for column, name, cell in zip(table.columns, names, cells, strict=True)
        if cell.plain and cell is not cells[0]
    ]
    if short := [one for is_short, one in told if is_short]:
        yield Text(", ").join(short)
    yield from (one for is_short, one in told if not is_short)
