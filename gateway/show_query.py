"""Answers of the broker as tables for people."""

from typing import Any, Final

from rich.markup import escape
from rich.table import Table

from gateway.show import console
from gateway.show_table import print_table

_COLUMNS: Final = {
    "positions": (
        "identifier",
        "symbol",
        "type",
        "volume",
        "price_open",
        "price_current",
        "sl",
        "tp",
        "swap",
        "profit",
    ),
    "orders": ("ticket", "symbol", "type", "volume_current", "price_open", "price_stoplimit", "sl", "tp", "state"),
    "deals": ("ticket", "order", "symbol", "type", "entry", "volume", "price", "commission", "swap", "profit"),
}
_TYPES: Final = (
    "buy",
    "sell",
    "buy limit",
    "sell limit",
    "buy stop",
    "sell stop",
    "buy stop limit",
    "sell stop limit",
    "close by",
)


def print_answer(what: str, answer: dict[str, Any]) -> None:
    """The rows of lists; the fields of anything else."""
    lists = [name for name in ("positions", "orders", "deals", "events") if name in answer]
    for name in lists:
        rows = [row["order"] | {"order_id": row.get("order_id", "")} if "order" in row and what == "orders" else row
                for row in answer[name]]  # fmt: skip
        _print_rows(name, rows)
    if not lists:
        _print_fields(answer if what != "symbol" else answer["symbol"])
    for halt in answer.get("halts", ()):
        console().print(f"halted: {escape(halt['source'])}: {escape(halt['reason'])}", style="bold red")
    if answer.get("truncated"):
        console().print("there is more: narrow it by --symbol, --since or --limit", style="dim")


def _print_rows(name: str, rows: list[dict[str, Any]]) -> None:
    if not rows:
        console().print(f"no {name}")
        return
    if name == "events":
        for row in rows:
            data = row["data"]
            fields = ", ".join(
                f"{key} {value}" for key, value in data.items() if key not in ("event", "raw", "request")
            )
            console().print(f"{row['seq']:>8} {row['recorded_at']} {data['event']}: {escape(fields[:200])}")
        return
    columns = _COLUMNS[name] + (("order_id",) if rows and "order_id" in rows[0] else ())
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column.replace("_", " "), no_wrap=True)
    for row in rows:
        table.add_row(*(escape(_shown(column, row.get(column, ""))) for column in columns))
    print_table(table)


def _shown(column: str, value: Any) -> str:
    if column == "type" and isinstance(value, int) and 0 <= value < len(_TYPES):
        return _TYPES[value]
    return str(value)


def _print_fields(fields: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in fields.items():
        if name != "halts":
            table.add_row(name.replace("_", " "), escape(str(value)))
    console().print(table)
