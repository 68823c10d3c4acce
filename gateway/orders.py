"""Which orders there are and where they stand: one pass over the ledger, or its last checkpoint and what follows."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import takewhile
from typing import Any, Final

import msgspec
from rich.markup import escape
from rich.table import Table

from gateway.config import Settings
from gateway.history import OrderFold, envelope_of
from gateway.show import console, open_ledger, progress_bar
from gateway.show_table import print_table
from gateway.times import Span, iso
from ledger.errors import LedgerDamaged, LedgerError
from ledger.events import Checkpointed, Recorded, order_stream
from ledger.order import Status
from ledger.store import EventStore, last_seal

# Ended orders whose state stays in memory: duplicates and late facts mostly come soon after the end.
KEEP_ENDED: Final = 5_000
TABLE_ROWS: Final = 100
PAGE_EVENTS: Final = 2_000


class OrderRow(msgspec.Struct, frozen=True, gc=False):
    """Where an order stands. Times are UTC, amounts text; `outcome` is the standing one in words."""

    seq: int
    order_id: str
    status: Status
    open: bool
    action: str
    symbol: str
    side: str
    volume: str
    filled: str
    average_price: str | None
    attempts: int
    created: datetime
    last_event_at: datetime
    topic: str
    outcome: str


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """Which orders are asked for; `created` is the time of an order's first event. `limit` keeps the newest."""

    created: Span = Span()
    statuses: frozenset[Status] = frozenset()
    open_only: bool = False
    symbol: str = ""
    limit: int = 0

    def wants(self, fold: OrderFold) -> bool:
        order = fold.order
        return (
            (order.is_open or not self.open_only)
            and (not self.statuses or order.status in self.statuses)
            and (not self.symbol or order.symbol == self.symbol)
            and fold.first_at is not None
            and self.created.holds(fold.first_at)
        )


def parse_statuses(texts: Sequence[str]) -> frozenset[Status]:
    """The states of comma lists. Raises LedgerError for one that does not exist."""
    names = {name.strip().lower() for text in texts for name in text.split(",") if name.strip()}
    known = [one.value for one in Status if one is not Status.NEW]
    unknown = sorted(names - set(known))
    if unknown or (texts and not names):
        raise LedgerError(
            f"no order is ever in state {', '.join(unknown) or '(none)'}: the states are {', '.join(known)}"
        )
    return frozenset(map(Status, names))


def list_orders(
    settings: Settings, query: Query, *, progress: bool, keep_ended: int = KEEP_ENDED
) -> tuple[list[OrderRow], int]:
    """The orders asked for, oldest first, and how many there were before the limit. Raises LedgerError."""
    store = open_ledger(settings)
    try:
        found = sorted(collect(store, query, keep_ended, progress=progress), key=lambda row: row.seq)
    finally:
        store.close()
    return (found[-query.limit :] if query.limit else found), len(found)


def collect(store: EventStore, query: Query, keep_ended: int, *, progress: bool) -> Iterator[OrderRow]:
    """The orders asked for, in no order. Raises LedgerError."""
    sealed = last_seal(store)
    if sealed is None:
        return
    head, seal = sealed
    orders = _Orders(store, query, head.seq, keep_ended)
    # What is open needs no more than the orders open at the checkpoint and those that were touched since.
    after = seal.checkpoint if query.open_only else 0
    with progress_bar("reading orders", head.seq - after, shown=progress) as advance:
        for recorded in advance(takewhile(lambda one: one.seq <= head.seq, store.scan(after))):
            orders.take(recorded)
    for order_id in _open_at(store, after):
        orders.add(order_stream(order_id))
    yield from orders.rows()


def _open_at(store: EventStore, checkpoint: int) -> tuple[str, ...]:
    if not checkpoint:
        return ()
    found = store.at(checkpoint)
    data = envelope_of(found).data if found is not None else None
    if not isinstance(data, Checkpointed):
        raise LedgerDamaged(f"the checkpoint {checkpoint} is missing: run `order-ledger verify`", checkpoint)
    return data.open_orders


def page(store: EventStore, query: Query, before: int, scan: int) -> tuple[list[OrderRow], int]:
    """The newest orders asked for whose first event stands before event `before`, at most `query.limit`, and where
    the next page goes on: 0 when there is none. Looks at about `scan` events, so a page may hold fewer than there
    are, or none. Raises LedgerError."""
    found: list[OrderRow] = []
    last, looked = before - 1, 0
    while last > 0 and looked < scan:
        window = min(PAGE_EVENTS, last)
        records = store.read(last - window, window)
        looked += window
        begun = [one for one in records if one.version == 1 and one.stream.startswith("order/")]
        streams = store.streams([one.stream for one in begun])
        for first in reversed(begun):
            fold = OrderFold(first.stream.removeprefix("order/"))
            for one in streams[first.stream]:
                fold.take(one)
            if query.wants(fold):
                found.append(_row(fold))
                if len(found) == query.limit:
                    return found, first.seq if first.seq > 1 else 0
        last -= window
    return found, last + 1 if last > 0 else 0


class _Orders:
    """Folds the events of all orders in one pass.

    Only open orders, and the ones that ended last, are kept as they are folded; of the other ended ones stays a row,
    if it is wanted at all. One that is heard of again after that is read again from its stream.
    """

    def __init__(self, store: EventStore, query: Query, head: int, keep_ended: int) -> None:
        self._store, self._query, self._head = store, query, head
        self._keep_ended = keep_ended
        self._open: dict[str, OrderFold] = {}
        self._ended: OrderedDict[str, OrderFold] = OrderedDict()
        self._rows: dict[str, OrderRow] = {}

    def take(self, recorded: Recorded) -> None:
        stream = recorded.stream
        if not stream.startswith("order/"):
            return
        fold = self._open.pop(stream, None) or self._ended.pop(stream, None)
        if fold is None and recorded.version == 1:
            fold = OrderFold(stream.removeprefix("order/"))
        if fold is None:
            self._rows.pop(stream, None)
            fold = self._read(stream, recorded.seq)
        else:
            fold.take(recorded)
        self._keep(stream, fold)

    def add(self, stream: str) -> None:
        """Makes sure that an order is among the folded ones."""
        if stream not in self._open and stream not in self._ended and stream not in self._rows:
            self._keep(stream, self._read(stream, self._head))

    def rows(self) -> Iterator[OrderRow]:
        """Those that are wanted, in no order."""
        yield from self._rows.values()
        for fold in (*self._open.values(), *self._ended.values()):
            if self._query.wants(fold):
                yield _row(fold)

    def _read(self, stream: str, last_seq: int) -> OrderFold:
        fold = OrderFold(stream.removeprefix("order/"))
        for one in self._store.stream(stream):
            if one.seq <= last_seq:
                fold.take(one)
        return fold

    def _keep(self, stream: str, fold: OrderFold) -> None:
        if fold.order.is_open:
            self._open[stream] = fold
            return
        self._ended[stream] = fold
        if len(self._ended) > self._keep_ended:
            stream, fold = self._ended.popitem(last=False)
            if self._query.wants(fold):
                self._rows[stream] = _row(fold)


def _row(fold: OrderFold) -> OrderRow:
    order, average = fold.order, fold.average_price
    assert fold.first_at is not None
    assert fold.last_at is not None
    return OrderRow(
        seq=fold.first_seq,
        order_id=order.order_id,
        status=order.status,
        open=order.is_open,
        action=fold.action,
        symbol=order.symbol,
        side=fold.side,
        volume=f"{order.volume:f}",
        filled=f"{order.filled_volume:f}",
        average_price=None if average is None else f"{average:f}",
        attempts=order.attempt,
        created=fold.first_at,
        last_event_at=fold.last_at,
        topic=order.outcome_topic,
        outcome=fold.outcome,
    )


# --- output -----------------------------------------------------------------------------------------------------


def row_json(row: OrderRow) -> dict[str, Any]:
    """The row for machines; times in ISO 8601."""
    return {
        "order_id": row.order_id,
        "state": row.status.value,
        "open": row.open,
        "action": row.action,
        "symbol": row.symbol,
        "side": row.side,
        "volume": row.volume,
        "filled_volume": row.filled,
        "average_price": row.average_price,
        "attempts": row.attempts,
        "created": iso(row.created),
        "last_event_at": iso(row.last_event_at),
        "outcome": row.topic,
        "told": row.outcome,
    }


def _seconds(moment: datetime) -> str:
    return iso(moment)[:19].replace("T", " ")


def print_orders(rows: list[OrderRow], total: int) -> None:
    out = console()
    if not rows:
        out.print("no such orders")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("order", "state", "symbol", "side"):
        table.add_column(name, no_wrap=True)
    for name in ("volume", "filled", "avg price", "attempts"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("created (UTC)", "last event"):
        table.add_column(name, no_wrap=True)
    table.add_column("standing outcome", overflow="fold")
    for row in rows:
        created, last = _seconds(row.created), _seconds(row.last_event_at)
        table.add_row(
            escape(row.order_id),
            row.status.value,
            escape(row.symbol),
            escape(" ".join(part for part in (row.action if row.action != "open" else "", row.side) if part)),
            *("" if amount in (None, "0") else str(amount) for amount in (row.volume, row.filled, row.average_price)),
            str(row.attempts),
            created,
            last.removeprefix(f"{created[:10]} "),
            escape(row.outcome if row.topic == f"order.{row.status}" else f"{row.topic}: {row.outcome}"),
        )
    print_table(table)
    if len(rows) < total:
        out.print(f"the newest {len(rows)} of {total} orders; --limit 0 shows all", style="dim")
