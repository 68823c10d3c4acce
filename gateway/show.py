"""What people see of a ledger on the command line: an order's story, an outcome, a verification, a table."""

import urllib.error
import urllib.parse
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from datetime import datetime
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
from ledger.errors import LedgerError
from ledger.events import Event, Recorded, decode, order_stream
from ledger.order_events import (
    AnomalyDetected,
    BrokerAnswered,
    ConflictReceived,
    DuplicateReceived,
    Fill,
    OrderChecked,
    OrderFailed,
    OrderRefused,
    OrderRejected,
    OrderRequested,
    OrderStale,
    OutcomeProbed,
    OutcomeResolved,
    OutcomeUnknown,
    SendAbandoned,
    SendStarted,
)
from ledger.store import EventStore, open_store
from ledger.values import Refused, parse_order_id

SQL_TIMEOUT_S: Final = 60.0
WIDE: Final = 200


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


# --- history ----------------------------------------------------------------------------------------------------


def history_of(settings: Settings, order_id: str) -> list[dict[str, Any]]:
    """The events of an order as stored, oldest first, with stream, version and topic; none for an unknown order."""
    try:
        parse_order_id(order_id)
    except Refused as refused:
        raise LedgerError(str(refused)) from None
    store = open_ledger(settings)
    try:
        found = store.stream(order_stream(order_id))
    finally:
        store.close()
    return [_whole(recorded) for recorded in found]


def _whole(recorded: Recorded) -> dict[str, Any]:
    stored: dict[str, Any] = orjson.loads(recorded.state)
    return {
        "stream": recorded.stream,
        "version": recorded.version,
        "topic": recorded.topic,
        "told": describe(decode(recorded).data),
    } | stored


def print_history(order_id: str, events: list[dict[str, Any]]) -> None:
    days = sorted({event["recorded_at"][:10] for event in events})
    title = f"order {escape(order_id)}, {' to '.join(dict.fromkeys((days[0], days[-1])))}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("seq", justify="right", style="dim")
    table.add_column("recorded (UTC)", no_wrap=True)
    table.add_column("+ms", justify="right", style="dim")
    table.add_column("event", style="bold", no_wrap=True)
    table.add_column("what", overflow="fold")
    first = None
    for event in events:
        at = datetime.fromisoformat(event["recorded_at"])
        first = first or at
        table.add_row(
            str(event["seq"]),
            f"{at:%H:%M:%S.%f}" if len(days) == 1 else f"{at:%m-%d %H:%M:%S.%f}",
            f"{(at - first).total_seconds() * 1e3:.1f}",
            event["topic"].removeprefix("order."),
            escape(event["told"]),
        )
    console().print(table)


def describe(event: Event) -> str:
    """An event in a few words."""
    match event:
        case OrderRequested(request=None):
            return f"a message of {event.raw.size} bytes that could not be read as an order"
        case OrderRequested(request=request) if request is not None:
            told = f"{request.order_type} {request.volume} {request.symbol}"
            parts = [
                f"{name} {value}" for name in ("price", "sl", "tp") if (value := getattr(request, name)) is not None
            ]
            return " ".join([told, *parts])
        case OrderRefused():
            return f"{event.category}: {'; '.join(event.reasons)}"
        case OrderStale():
            return f"{event.age_s} s old, limit {event.limit_s} s"
        case OrderChecked(passed=True):
            return f"order_check passed, margin {event.result.margin if event.result else '?'}"
        case OrderChecked():
            return f"order_check did not pass: {event.problem or event.retcode_name}"
        case SendStarted(request=request):
            return f"attempt {event.attempt}, magic {request.magic}, comment {request.comment}"
        case BrokerAnswered(result=result):
            deal = f", order {result.order}, deal {result.deal}" if result.order else ""
            return f"{result.retcode} {event.retcode_name} ({event.verdict}){deal}, {event.latency_s * 1000:.1f} ms"
        case SendAbandoned():
            return f"attempt {event.attempt} did not reach the broker: {event.reason}"
        case OutcomeUnknown():
            return f"attempt {event.attempt}: {event.reason}"
        case OutcomeProbed():
            seen = "traces found" if event.found else "nothing found"
            return f"attempt {event.attempt}: {seen}{'' if event.complete else ', incomplete'} {event.reason}"
        case OutcomeResolved():
            return f"{event.resolution} by {event.by}: {event.evidence}"
        case Fill():
            costs = f", commission {event.commission}" if event.commission else ""
            left = f", {event.remaining_volume} left" if event.remaining_volume else ""
            return (
                f"{event.side} {event.volume} {event.symbol} at {event.price}, deal {event.deal}, "
                f"position {event.position_id}{costs}{left}"
            )
        case OrderRejected():
            return f"{event.retcode} {event.retcode_name} ({event.category}): {event.description}"
        case OrderFailed():
            return f"{event.category}: {event.reason}"
        case DuplicateReceived():
            return f"repetition {event.number}; the order is {event.status}"
        case ConflictReceived():
            return "the same order_id with other content: refused"
        case AnomalyDetected():
            return f"{event.kind}: {event.detail}"
        case _:
            return ""


# --- outcome ----------------------------------------------------------------------------------------------------


def print_outcome(outcome: dict[str, Any]) -> None:
    told = outcome_line(outcome)
    style = "green" if outcome.get("event") in ("order.filled", "order.partially_filled") else "red"
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
    retcode = f"{outcome['retcode']} {outcome.get('retcode_name', '')}: " if outcome.get("retcode") else ""
    return f"{name}: {outcome.get('category')}{again}: {retcode}{outcome.get('description', '')}"


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
