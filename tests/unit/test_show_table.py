"""What a person sees of a table at any width: every number and name whole, and whole lines in a pipe."""

import io

import pytest
from rich.console import Console
from rich.table import Table

from gateway.show_table import print_table

ORDER = "ord_2026-11-26_000017"
OUTCOME = "buy 0.01 EURUSD at 1.08044, order 50000001, deal 40000001, position 50000001, commission -0.04"


def table() -> Table:
    made = Table(box=None, pad_edge=False)
    for name in ("order", "state", "volume", "ticket"):
        made.add_column(name, no_wrap=True)
    made.add_column("outcome", overflow="fold")
    made.add_row(ORDER, "filled", "", "50000001", OUTCOME)
    return made


def printed(width: int, *, terminal: bool = True) -> str:
    out = io.StringIO()
    print_table(table(), Console(file=out, width=width, force_terminal=terminal, color_system=None, highlight=False))
    return out.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_no_number_and_no_name_is_cut_at_any_width(width: int) -> None:
    told = printed(width)
    assert ORDER in told
    assert "50000001" in told
    assert "…" not in told
    assert max(map(len, told.splitlines())) <= width


def test_what_does_not_fit_side_by_side_is_a_paragraph_for_each_row_without_empty_fields() -> None:
    assert [line.rstrip() for line in printed(60).splitlines()] == [
        f"order {ORDER}",
        "  state filled, ticket 50000001",
        "  outcome buy 0.01 EURUSD at 1.08044, order 50000001, deal",
        "  40000001, position 50000001, commission -0.04",
    ]


def test_a_pipe_gets_one_whole_line_for_each_row_and_no_blanks_behind_it() -> None:
    header, row = printed(60, terminal=False).splitlines()
    assert row.endswith(OUTCOME)
    assert header == header.rstrip()
