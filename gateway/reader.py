"""Reads the ledger for the HTTP API, in a process of its own: `python -m gateway.reader`.

A question may cost seconds of computing, which in the gateway's process would hold up every order. In on stdin: one
line of JSON, `ReaderSettings`, then one line for every question. Out on stdout: one line for every answer. The end of
stdin ends the process. Questions are `Orders`, `OneOrder`, `Holdings` and `Verify`.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import msgspec

from gateway.cli_proof import verify_ledger
from gateway.config import Settings
from gateway.history import History
from gateway.holdings import By, positions_of, shown
from gateway.orders import KEEP_ENDED, Query, collect, page, row_json
from gateway.processes import as_others
from gateway.secret import Secret
from gateway.times import Span, iso, with_iso_times
from gateway.view import VIEW_FILE, LedgerView
from ledger.errors import LedgerError
from ledger.events import order_stream
from ledger.order import Status
from ledger.store import EventStore, open_store
from ledger.values import plain

SCAN: Final = 50_000  # events a page of orders looks at, at most
NICE: Final = 5


class ReaderSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`witnessed`: whether the audit files of the data folder stand for the witness of the signed heads."""

    ledger_url: str
    data: str
    witnessed: bool = True


class Orders(msgspec.Struct, frozen=True, kw_only=True, tag="orders"):
    """`before`: the seq of the event to go back from; 0 is the end of the ledger."""

    states: tuple[str, ...] = ()
    symbol: str = ""
    open_only: bool = False
    since: datetime | None = None
    until: datetime | None = None
    before: int = 0
    limit: int = 100


class OneOrder(msgspec.Struct, frozen=True, kw_only=True, tag="order"):
    """`stored`: with the bytes of every event as they are stored."""

    order_id: str
    as_of: datetime | None = None
    stored: bool = False


class Holdings(msgspec.Struct, frozen=True, kw_only=True, tag="positions"):
    """Positions at `as_of`, None for now; `everything`: also those that were closed by then."""

    as_of: datetime | None = None
    by: By = "recorded"
    symbol: str = ""
    everything: bool = False
    limit: int = 100


class Verify(msgspec.Struct, frozen=True, tag="verify"):
    """Every event, seal and head."""


Question = Orders | OneOrder | Holdings | Verify


class Reply(msgspec.Struct, frozen=True):
    """`status` as in HTTP; `body` is the answer, or the text of what went wrong."""

    status: int
    body: Any


def answer(store: EventStore, settings: ReaderSettings, question: Question, view: LedgerView) -> Reply:
    """`view`: of this ledger; it is brought up to now where it has the answer. Raises LedgerError."""
    match question:
        case Orders():
            return Reply(200, _orders(store, question))
        case OneOrder():
            return _order(store, question)
        case Holdings():
            return Reply(200, _holdings(store, question, view))
        case Verify():
            local = Settings(
                data=Path(settings.data),
                ledger_url=Secret(settings.ledger_url),
                kafka_brokers=None if settings.witnessed else "elsewhere",
            )
            return Reply(200, verify_ledger(local, progress=False))


def _orders(store: EventStore, asked: Orders) -> dict[str, Any]:
    query = Query(
        created=Span(asked.since, asked.until),
        statuses=frozenset(map(Status, asked.states)),
        open_only=asked.open_only,
        symbol=asked.symbol,
        limit=asked.limit,
    )
    head = store.head()
    before = min(asked.before or 2**63 - 1, (head.seq if head else 0) + 1)
    if asked.open_only:
        # The last checkpoint names them: no need to look through all that ended.
        rows = sorted(collect(store, query, KEEP_ENDED, progress=False), key=lambda row: -row.seq)
        rows = [row for row in rows if row.seq < before]
        more = rows[asked.limit - 1].seq if len(rows) > asked.limit else 0
        rows = rows[: asked.limit]
    else:
        rows, more = page(store, query, before, SCAN)
    return {"orders": [row_json(row) for row in rows], "next": more or None}


def _order(store: EventStore, asked: OneOrder) -> Reply:
    events = store.stream(order_stream(asked.order_id))
    if not events:
        return Reply(404, "no such order in this ledger")
    history = History(asked.order_id, events, asked.as_of)
    steps = history.as_json()
    if asked.stored:
        for step, one in zip(steps, history.steps, strict=True):
            state = one.recorded.state
            step |= {"stored": state.decode(), "stored_sha256": sha256(state).hexdigest()}
    return Reply(
        200,
        {
            "order_id": asked.order_id,
            "as_of": None if asked.as_of is None else iso(asked.as_of),
            "later_events": history.later,
            "state": history.fold.state() if history.steps else None,
            "acts_on": history.targets,
            "acted_on_by": history.targeted_by,
            "events": with_iso_times(steps),
        },
    )


def _holdings(store: EventStore, asked: Holdings, view: LedgerView) -> dict[str, Any]:
    """What is open now is kept: it costs what was recorded since the last question. The rest costs the whole ledger."""
    if asked.as_of is None and asked.by == "recorded" and not asked.everything:
        view.catch_up_now()
        held = sorted(view.positions.values(), key=lambda one: one.position_id)
    else:
        held = positions_of(store, asked.as_of or datetime.max.replace(tzinfo=UTC), asked.by)
    found = [one for one in held if (one.is_open or asked.everything) and asked.symbol in ("", one.symbol)]
    return {
        "as_of": None if asked.as_of is None else iso(asked.as_of),
        "by": asked.by,
        "truncated": len(found) > asked.limit,
        "positions": [with_iso_times(_plain(shown(one))) for one in found[-asked.limit :]],
    }


def _plain(position: dict[str, object]) -> dict[str, object]:
    return {name: f"{plain(one):f}" if isinstance(one, Decimal) else one for name, one in position.items()}


def main() -> None:
    for name in ("SIGINT", "SIGTERM"):  # the parent decides when this ends
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not stand between the answers
    as_others()
    if hasattr(os, "nice"):
        with contextlib.suppress(OSError):
            os.nice(NICE)
    lines = sys.stdin.buffer
    settings = msgspec.json.decode(lines.readline(), type=ReaderSettings)
    read: Callable[[bytes], Question] = msgspec.json.Decoder(Question).decode
    store: EventStore | None = None
    view: LedgerView | None = None
    for line in lines:
        try:
            store = store or open_store(settings.ledger_url, readonly=True)
            view = view or LedgerView(store, Path(settings.data) / VIEW_FILE)
            reply = answer(store, settings, read(line), view)
        except LedgerError as error:
            reply = Reply(503, str(error))
        out.write(msgspec.json.encode(reply) + b"\n")
        out.flush()


if __name__ == "__main__":
    main()
