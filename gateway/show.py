"""What people see on the command line: an outcome, a verification, a table. And the ledger they ask."""

import urllib.error
import urllib.parse
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

import msgspec
import orjson
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from gateway.client import NoAnswer, running
from gateway.config import Settings, safe_url
from ledger.store import EventStore, open_store

SQL_TIMEOUT_S: Final = 60.0
WIDE: Final = 200
GOOD: Final = ("order.placed", "order.partially_filled", "order.filled", "order.completed")  # of a request


def console() -> Console:
    """Standard output; wide where it is no terminal, so that a pipe gets whole lines."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=max(out.width, WIDE))


def open_ledger(settings: Settings) -> EventStore:
    """The ledger of the service that runs on this data folder, else the one the settings name; read only."""
    url = settings.ledger_url.reveal()
    found = running(settings)
    if found is not None and url == f"sqlite:///{settings.data / 'ledger.db'}":
        url = str(found["ledger_url"])
    return open_store(url, readonly=True)


# --- outcome ----------------------------------------------------------------------------------------------------


def print_outcome(outcome: dict[str, Any]) -> None:
    told = outcome_line(outcome)
    style = "green" if outcome.get("event") in GOOD else "red"
    console().print(f"[{style}]{escape(told)}[/]", soft_wrap=True)


def outcome_line(outcome: dict[str, Any]) -> str:
    """One line: what became of the order."""
    name = outcome.get("order_id") or "message"
    again = " (again: a duplicate)" if outcome.get("duplicate") else ""
    if "price" in outcome and "deal" in outcome:
        return (
            f"{name}: {str(outcome.get('status', '')).lower()}{again}: {outcome.get('side')} {outcome.get('volume')} "
            f"{outcome.get('symbol')} at {outcome.get('price')}, deal {outcome.get('deal')}, "
            f"position {outcome.get('position_id')}, commission {outcome.get('commission')}"
        )
    if outcome.get("event") == "order.placed":
        kind = str(outcome.get("order_type") or outcome.get("side")).replace("_", " ")
        price = f" at {outcome['price']}" if "price" in outcome else ""
        what = f"{outcome.get('volume')} {outcome.get('symbol')}{price}, order {outcome.get('ticket')}"
        return f"{name}: placed{again}: {kind} {what}"
    # What ended without a deal and without an error has a status and no category.
    kind = outcome.get("category") or str(outcome.get("status", "")).lower()
    retcode = f"{outcome['retcode']} {outcome.get('retcode_name', '')}: " if outcome.get("retcode") else ""
    by = f"by {outcome['by']}" if outcome.get("by") else ""
    what = outcome.get("description") or by or outcome.get("action", "")
    left = f", {outcome['remaining_volume']} not filled" if outcome.get("remaining_volume") else ""
    return f"{name}: {kind}{again}: {retcode}{what}{left}"


# --- sql --------------------------------------------------------------------------------------------------------


class Answer(msgspec.Struct):
    """What ClickHouse answered: the bytes and the format they are in."""

    body: bytes
    format: str


def ask_http(url: str, query: str, *, database: str, format: str, user: str = "", password: str = "") -> Answer:
    """One query over ClickHouse's HTTP interface. Raises NoAnswer with the server's own words."""
    parameters = urllib.parse.urlencode({"database": database, "default_format": format})
    parts = urllib.parse.urlsplit(url)
    user, password = urllib.parse.unquote(parts.username or user), urllib.parse.unquote(parts.password or password)
    bare = safe_url(url).rstrip("/")
    request = urllib.request.Request(f"{bare}/?{parameters}", data=query.encode())  # noqa: S310
    if user and password:
        request.add_header("Authorization", "Basic " + b64encode(f"{user}:{password}".encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=SQL_TIMEOUT_S) as response:  # noqa: S310
            return Answer(response.read(), response.headers.get("X-ClickHouse-Format") or format)
    except urllib.error.HTTPError as error:
        raise NoAnswer(error.read().decode(errors="replace").strip()) from None
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        raise NoAnswer(f"ClickHouse does not answer at {bare}: {error}. Does `order-ledger serve` run?") from None


def print_answer(answer: Answer, asked_format: str, *, as_json: bool) -> None:
    """A table, JSON, or the bytes as they came when the query had a format of its own."""
    out = console()
    if answer.format != asked_format:
        out.file.write(answer.body.decode(errors="replace"))
        return
    found = orjson.loads(answer.body) if answer.body else {"meta": [], "data": []}
    names = [column["name"] for column in found["meta"]]
    if as_json:
        rows = [dict(zip(names, row, strict=True)) for row in found["data"]]
        out.file.write(orjson.dumps(rows, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode())
        return
    table = rows_table(found)
    if Measurement.get(out, out.options.update(max_width=10_000), table).maximum <= out.width:
        out.print(table)
        return
    # Too wide to be read side by side: one block a row.
    width = max(map(len, names), default=0)
    for number, row in enumerate(found["data"], 1):
        out.print(f"row {number}", style="dim")
        for name, value in zip(names, row, strict=True):
            out.print(f"  {escape(name):<{width}}  {'' if value is None else escape(str(value))}", soft_wrap=True)


def rows_table(found: dict[str, Any], title: str = "") -> Table:
    """A table of ClickHouse's JSONCompact."""
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for column in found["meta"]:
        numeric = any(kind in column["type"] for kind in ("Int", "Decimal", "Float"))
        table.add_column(escape(column["name"]), justify="right" if numeric else "left", overflow="fold")
    for row in found["data"]:
        table.add_row(*("" if value is None else escape(str(value)) for value in row))
    return table


# --- progress -------------------------------------------------------------------------------------------------


class progress_bar:
    """`with progress_bar("verifying", n) as advance: consume(advance(items))`; shown on a terminal's stderr."""

    def __init__(self, what: str, total: int, *, shown: bool = True) -> None:
        out = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=out,
            transient=True,
            disable=not (shown and out.is_terminal),
        )
        self._task = self._bar.add_task(what, total=total)

    def __enter__(self) -> "progress_bar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, items: Any) -> Iterator[Any]:
        # In pieces: counting each item would cost as much as checking half of it.
        waiting = iter(items)
        while piece := list(islice(waiting, 500)):
            yield from piece
            self._bar.advance(self._task, len(piece))

    def step(self, done: int = 1) -> None:
        self._bar.advance(self._task, done)

    def at(self, done: int, of: int) -> None:
        """So many are done, of a total that may grow."""
        self._bar.update(self._task, completed=done, total=of)
