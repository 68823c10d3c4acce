"""PURE: events, and what the ledger's book makes of them → rows. The same events always give the same rows.

`order_events` holds every event with its stored bytes verbatim; `executions` one row per deal, as it is known now;
`orders` and `positions` where each stands; `position_history` every version of each position. An amount that does not
fit its column is rounded or bounded (`units.py`), and the row names that column in `inexact`; the exact value stands
in the event.
"""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import msgspec

from ledger.account_events import AccountConnected, AccountReconciled, ExternalDealObserved, SnapshotTaken
from ledger.book import Changes, PositionVersion, external
from ledger.events import Envelope, Header, Recorded
from ledger.order import Status
from ledger.order_events import DealFact
from ledger.positions import Position
from ledger.trace import FillTrace, OrderTrace
from ledger.trade import ZERO
from projections.tables import (
    ACCOUNT_SNAPSHOTS,
    EXECUTIONS,
    ORDER_EVENTS,
    ORDERS,
    POSITION_HISTORY,
    POSITIONS,
    RECONCILIATIONS,
    Row,
)
from projections.units import EPOCH, EXACT, STEP, Amounts, microseconds, moment_or_null, wide

_encode_position = msgspec.json.Encoder(decimal_format="string").encode
_decode_position = msgspec.json.Decoder(Position).decode

# What auditors read instead of our states; the column `state` has the exact one.
ORDER_STATUS: Final = {
    Status.NEW: "pending",
    Status.REQUESTED: "pending",
    Status.READY: "pending",
    Status.WAITING: "submitted",
    Status.SENDING: "submitted",
    Status.STALE: "refused",
}
_KINDS: Final = {"limit": "limit", "stop": "stop", "stop_limit": "stop_limit", "": "market"}


def rows_of(batch: Sequence[tuple[Recorded, Envelope]], changes: Changes) -> dict[str, list[Row]]:
    """The rows of a batch by table, and only the tables that have any."""
    events = [order_event_row(recorded, envelope) for recorded, envelope in batch]
    return derived_rows(batch, changes) | ({ORDER_EVENTS.name: events} if events else {})


def derived_rows(batch: Sequence[tuple[Recorded, Envelope]], changes: Changes) -> dict[str, list[Row]]:
    """The same of all tables but `order_events`."""
    found: dict[str, list[Row]] = {
        EXECUTIONS.name: [execution_row(fill) for fill in changes.fills.values()],
        ORDERS.name: [order_row(trace, ledger_of(batch[0][1].event_id)) for trace in changes.orders.values()],
        POSITION_HISTORY.name: [history_row(version) for version in changes.positions],
        RECONCILIATIONS.name: [],
        ACCOUNT_SNAPSHOTS.name: [],
    }
    current = {row[_POSITION_ID]: row[:-1] for row in found[POSITION_HISTORY.name]}
    found[POSITIONS.name] = list(current.values())
    for recorded, envelope in batch:
        of_account = _OF_ACCOUNT.get(type(envelope.data))
        if of_account is not None:
            table, maker = of_account
            row = maker(recorded, envelope)
            if row is not None:
                found[table].append(row)
    return {table: rows for table, rows in found.items() if rows}


_POSITION_ID: Final = list(POSITIONS.columns).index("position_id")


def ledger_of(event_id: str) -> str:
    """The ledger id inside an event id (`{ledger_id}:{seq}`)."""
    return event_id.rpartition(":")[0]


def order_of(stream: str) -> str:
    """The order id a stream belongs to; empty for the other streams."""
    return stream[6:] if stream.startswith("order/") else ""


def order_event_row(recorded: Recorded, envelope: Envelope | Header) -> Row:
    """The `order_events` row of any event."""
    event_id, stream = envelope.event_id, recorded.stream
    return (
        event_id.rpartition(":")[0],
        recorded.seq,
        event_id,
        stream,
        recorded.version,
        recorded.topic,
        stream[6:] if stream.startswith("order/") else "",
        envelope.account,
        microseconds(envelope.recorded_at),
        envelope.schema_version,
        envelope.correlation_id,
        envelope.causation_id,
        envelope.actor,
        recorded.state,
    )


def execution_row(fill: FillTrace) -> Row:
    """The `executions` row of a fill of ours, as it is known now."""
    fact, envelope = fill.fact, fill.envelope
    row = Amounts()
    points = slippage_points_of(fact)
    return (
        envelope.event_id,
        ledger_of(envelope.event_id),
        envelope.account,
        fill.order_id,
        fill.version,
        fill.seq,
        fill.changed_seq,
        fill.topic,
        fact.symbol,
        fact.side,
        fact.order_ticket,
        fact.deal,
        fill.position_id,
        fact.entry,
        fact.reason,
        row.fit("fill_price", fact.price),
        row.fit("fill_quantity", fact.volume),
        row.fit("filled_quantity", fill.filled_volume),
        row.fit("remaining_quantity", fill.remaining_volume),
        row.or_null("requested_price", fact.requested_price),
        row.fit("slippage", slippage_of(fact)),
        row.or_null("slippage_points", points),
        row.fit("commission", fill.commission),
        row.fit("swap", fill.swap),
        row.fit("fee", fill.fee),
        row.fit("profit", fill.profit),
        microseconds(fact.broker_time or envelope.recorded_at),
        microseconds(envelope.recorded_at),
        fact.broker_time_msc,
        fact.broker_utc_offset_s,
        fact.attempts,
        fact.retcode,
        fact.retcode_name,
        fact.provisional,
        fill.corrections,
        envelope.correlation_id,
        row.inexact,
    )


def external_row(recorded: Recorded, envelope: Envelope) -> Row | None:
    """The `executions` row of a deal that is none of ours: without an order. None of one that only moves money."""
    event = envelope.data
    deal = external(event, envelope.recorded_at) if isinstance(event, ExternalDealObserved) else None
    if deal is None or not isinstance(event, ExternalDealObserved):
        return None
    row = Amounts()
    return (
        envelope.event_id,
        ledger_of(envelope.event_id),
        envelope.account,
        "",
        recorded.version,
        recorded.seq,
        recorded.seq,
        recorded.topic,
        deal.symbol,
        "buy" if deal.buy else "sell",
        event.deal.order,
        deal.ticket,
        deal.position_id,
        deal.entry,
        deal.reason,
        row.fit("fill_price", deal.price),
        row.fit("fill_quantity", deal.volume),
        row.fit("filled_quantity", deal.volume),
        0,
        None,
        0,
        None,
        row.fit("commission", deal.commission),
        row.fit("swap", deal.swap),
        row.fit("fee", deal.fee),
        row.fit("profit", deal.profit),
        microseconds(deal.at),
        microseconds(envelope.recorded_at),
        event.deal.time_msc,
        event.broker_utc_offset_s,
        0,
        0,
        "",
        False,
        0,
        envelope.correlation_id,
        row.inexact,
    )


def order_row(trace: OrderTrace, ledger_id: str) -> Row:
    """The `orders` row: where the order stands after the last event it took."""
    request, row = trace.request, Amounts()
    side, _, kind = request.order_type.partition("_") if request is not None else ("", "", "")
    price, stop_price = _prices(trace, kind)
    fills = trace.fills.values()
    commission = swap = fee = profit = ZERO
    for fill in fills:
        commission += fill.commission
        swap += fill.swap
        fee += fill.fee
        profit += fill.profit
    requested = trace.requested_at or trace.updated_at or EPOCH
    created = request.created_at if request is not None and request.created_at is not None else requested
    average = trace.average_price
    status = trace.status
    return (
        ledger_id,
        trace.account,
        trace.order_id,
        trace.version,
        trace.seq,
        microseconds(created),
        microseconds(requested),
        microseconds(trace.updated_at or requested),
        (request.signal_id or "") if request is not None else "",
        (request.strategy_id or "") if request is not None else "",
        trace.correlation_id,
        request.action if request is not None else "",
        trace.symbol,
        (request.timeframe or "") if request is not None else "",
        _KINDS.get(kind, kind) if side else "",
        side,
        row.fit("quantity", trace.volume),
        row.or_null("price", price),
        row.or_null("stop_price", stop_price),
        row.or_null("stop_loss", trace.sl or None),
        row.or_null("take_profit", trace.tp or None),
        next((fill.position_id for fill in fills), trace.target),
        ORDER_STATUS.get(status) or status.value,
        status.value,
        trace.is_open,
        trace.order_ticket,
        "MT5",
        trace.attempts,
        trace.retries,
        moment_or_null(trace.submitted_at),
        moment_or_null(trace.answered_at),
        moment_or_null(trace.placed_at),
        moment_or_null(trace.filled_at),
        moment_or_null(trace.cancelled_at),
        moment_or_null(trace.unknown_at),
        moment_or_null(trace.ended_at),
        row.fit("filled_quantity", trace.filled_volume),
        row.fit("remaining_quantity", max(trace.volume - trace.filled_volume, ZERO)),
        row.or_null("average_fill_price", average and average.quantize(STEP, context=EXACT)),
        row.fit("commission", commission),
        row.fit("swap", swap),
        row.fit("fee", fee),
        row.fit("profit", profit),
        len(trace.fills),
        next(reversed(trace.fills), 0),
        trace.retcode,
        trace.retcode_name,
        trace.category,
        trace.reason,
        trace.problem,
        trace.resolution,
        trace.duplicates,
        trace.conflicts,
        trace.anomalies,
        row.inexact,
    )


def _prices(trace: OrderTrace, kind: str) -> tuple[Decimal | None, Decimal | None]:
    """Price and stop price: a stop order has only the price that triggers it, a stop limit order both."""
    price, limit = trace.price or None, trace.stop_limit_price or None
    if kind == "stop":
        return None, price
    return (limit, price) if kind == "stop_limit" else (price, None)


def history_row(version: PositionVersion) -> Row:
    """The `position_history` row; without its last value it is the `positions` row."""
    recorded, envelope, position = version
    row = Amounts()
    open_now = position.is_open
    closed_at = position.closed_at
    held = None if closed_at is None else hours(position.opened_at, closed_at)
    return (
        ledger_of(envelope.event_id),
        envelope.account,
        position.position_id,
        recorded.seq,
        recorded.stream,
        recorded.version,
        recorded.topic,
        _deal_of(envelope.data),
        microseconds(envelope.recorded_at),
        microseconds(position.opened_at),
        position.symbol,
        position.side,
        row.fit("quantity", position.volume),
        row.fit("entry_price", position.entry_price),
        row.or_null("stop_loss", position.sl or None),
        row.or_null("take_profit", position.tp or None),
        "open" if open_now else "closed",
        row.or_null("current_price", position.current_price),
        row.or_null("unrealized_pnl", position.floating_profit),
        row.fit("realized_pnl", position.realized_profit),
        row.fit("commission_total", position.commission + position.fee),
        row.fit("swap_total", position.swap),
        row.or_null("exit_price", position.exit_price if position.exit_volume else None),
        row.fit("exit_quantity", position.exit_volume),
        position.exit_reason,
        moment_or_null(closed_at),
        row.or_null("r_multiple", r_multiple(position)),
        row.or_null("holding_period_hours", held),
        position.entry_order_id,
        position.exit_order_id,
        position.deals,
        row.inexact,
        int(position.void),
        _encode_position(position),
    )


def position_of(fold: str) -> Position:
    """The position a `fold` column holds, exactly. Raises msgspec.MsgspecError."""
    return _decode_position(fold)


def r_multiple(position: Position) -> Decimal | None:
    """What a closed position made of what it risked: the way from entry to exit in units of the way from entry to the
    first stop loss. None while it is open, or without a stop loss at its beginning."""
    risk = position.entry_price - position.initial_sl
    if position.is_open or not position.initial_sl or not position.exit_volume or not risk:
        return None
    gained = position.exit_price - position.entry_price
    return EXACT.divide(gained, risk).quantize(STEP, context=EXACT)


def hours(start: datetime, end: datetime) -> Decimal:
    """Hours between two times, at 8 decimals."""
    return (Decimal(microseconds(end) - microseconds(start)) / 3_600_000_000).quantize(STEP, context=EXACT)


def reconciliation_row(recorded: Recorded, envelope: Envelope) -> Row | None:
    event = envelope.data
    if not isinstance(event, AccountReconciled):
        return None
    found = event.differences
    return (
        ledger_of(envelope.event_id),
        envelope.account,
        recorded.seq,
        recorded.version,
        microseconds(envelope.recorded_at),
        event.trigger,
        event.positions,
        event.orders,
        event.deals,
        moment_or_null(event.deals_since),
        len(found),
        [one.kind for one in found],
        [one.ours for one in found],
        [one.brokers for one in found],
        [one.policy for one in found],
        [one.order_id for one in found],
        [one.order_ticket for one in found],
        [one.position_id for one in found],
        [one.deal for one in found],
        [one.symbol for one in found],
    )


def snapshot_row(recorded: Recorded, envelope: Envelope) -> Row | None:
    """The `account_snapshots` row of a snapshot, or of a connection, which tells balance and equity only."""
    event = envelope.data
    if not isinstance(event, SnapshotTaken | AccountConnected):
        return None
    whole = event if isinstance(event, SnapshotTaken) else None
    return (
        ledger_of(envelope.event_id),
        envelope.account,
        recorded.seq,
        recorded.version,
        recorded.topic,
        microseconds(envelope.recorded_at),
        event.currency,
        wide(event.balance),
        wide(event.equity),
        None if whole is None else wide(whole.margin),
        None if whole is None else wide(whole.margin_free),
        None if whole is None else wide(whole.profit),
        None if whole is None else len(whole.positions),
        None if whole is None else whole.working_orders,
    )


_OF_ACCOUNT: Final[dict[type, tuple[str, Any]]] = {
    ExternalDealObserved: (EXECUTIONS.name, external_row),
    AccountReconciled: (RECONCILIATIONS.name, reconciliation_row),
    SnapshotTaken: (ACCOUNT_SNAPSHOTS.name, snapshot_row),
    AccountConnected: (ACCOUNT_SNAPSHOTS.name, snapshot_row),
}


def _deal_of(event: object) -> int:
    return deal if isinstance(deal := getattr(event, "deal", 0), int) else int(deal.ticket)


def slippage_of(fill: DealFact) -> Decimal:
    """Price units, positive = worse for us: paid more on a buy, got less on a sell. 0 when no price was asked."""
    if fill.requested_price is None:
        return ZERO
    paid_more = EXACT.subtract(fill.price, fill.requested_price)
    return -paid_more if fill.side == "sell" else paid_more


def slippage_points_of(fill: DealFact) -> Decimal | None:
    """The slippage in points of the symbol, at 8 decimals; None when no price was asked or the point is unknown."""
    if fill.requested_price is None or not fill.point:
        return None
    return EXACT.divide(slippage_of(fill), fill.point).quantize(STEP, context=EXACT)
