"""Writes docs/clickhouse.md from the tables and views that the migrations make: `make docs`."""

import tempfile
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "clickhouse.md"
HEAD = """\
# The ClickHouse tables

Written from the database by `make docs`; a test holds it current. `order-ledger rebuild` makes all of it again from the
ledger, and `order-ledger verify --clickhouse` compares every table with what the ledger gives.

A row may be there twice until ClickHouse has merged it away: read the views, which never count a row twice, or a table
with FINAL (the read-only endpoint of the service adds it). Lots, prices and money are exact decimals; a value that does
not fit its column is bounded there, named in `inexact`, and exact in `order_events.data`.
"""
_TABLES = (
    "SELECT name, engine, sorting_key, comment, create_table_query FROM system.tables "
    "WHERE database = {db:String} AND name NOT LIKE '.%' ORDER BY engine LIKE '%View', name"
)
_COLUMNS = (
    "SELECT name, type, comment FROM system.columns "
    "WHERE database = {db:String} AND table = {t:String} ORDER BY position"
)


def page(client: Any, database: str) -> str:
    """Of a database that was migrated."""
    parts = [HEAD]
    for name, engine, key, comment, _ in client.query(_TABLES, parameters={"db": database}).result_rows:
        columns = client.query(_COLUMNS, parameters={"db": database, "t": name}).result_rows
        parts.append(f"\n## {name}\n\n" + _sentence(comment))
        parts.append("View.\n\n" if engine.endswith("View") else f"One row per {_cells(key)}.\n\n")
        if not columns:  # the database does not tell those of a view that takes parameters
            parts.append(f"Takes a time, UTC: `SELECT * FROM {name}(at = '2026-01-30 12:00:00')`.\n")
            continue
        parts.append("| column | type | meaning |\n|---|---|---|\n")
        for column, kind, meaning in columns:
            cells = (f"`{column}`", f"`{kind}`", meaning)
            parts.append("| " + " | ".join(_escaped(cell) for cell in cells) + " |\n")
    return "".join(parts)


def _sentence(comment: str) -> str:
    return f"{comment.rstrip('.')}. " if comment else ""


def _cells(key: str) -> str:
    return ", ".join(f"`{one}`" for one in key.split(", "))


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


def main() -> None:
    from projections.clickhouse import Target, connect
    from projections.migrate import Place, migrate

    with tempfile.TemporaryDirectory() as folder, connect(Target(path=folder)) as client:
        migrate(client, Place(database="suho_analytics"))
        PAGE.write_text(page(client, "suho_analytics"))
    print(PAGE)


if __name__ == "__main__":
    main()
