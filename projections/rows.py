"""PURE: one event → its rows. The same event always gives the same rows, so a rebuild is identical.

`order_events` holds every event with its stored bytes verbatim; `executions` one row per deal. Amounts must fit
`Decimal(18, 8)`: one value beyond it would fail a whole insert and a ninth decimal would be cut silently. What does
not fit is rounded to 8 decimals or set to the nearest bound, and the row names that column in `inexact`; the exact
value stands in the event.
"""

from collections.abc import Iterable
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Any, Final

from ledger.events import Envelope, Recorded
from ledger.order_events import Fill
from ledger.trade import ZERO

# Names and ClickHouse types, in the order of the rows. The types save a question to the server before each insert.
ORDER_EVENTS: Final = {
    "ledger_id": "LowCardinality(String)",
    "seq": "UInt64",
    "event_id": "String",
    "stream": "String",
    "stream_version": "UInt64",
    "event": "LowCardinality(String)",
    "order_id": "String",
    "account": "LowCardinality(String)",
    "recorded_at": "DateTime64(6, 'UTC')",
    "schema_version": "UInt16",
    "correlation_id": "String",
    "causation_id": "String",
    "actor": "LowCardinality(String)",
    "data": "String",
}
EXECUTIONS: Final = {
    "execution_id": "String",
    "ledger_id": "LowCardinality(String)",
    "account": "LowCardinality(String)",
    "order_id": "String",
    "stream_version": "UInt64",
    "seq": "UInt64",
    "event": "LowCardinality(String)",
    "symbol": "LowCardinality(String)",
    "side": "LowCardinality(String)",
    "ticket": "UInt64",
    "deal": "UInt64",
    "position_id": "UInt64",
    "entry": "UInt8",
    "reason": "UInt16",
    "fill_price": "Decimal(18, 8)",
    "fill_quantity": "Decimal(18, 8)",
    "filled_quantity": "Decimal(18, 8)",
    "remaining_quantity": "Decimal(18, 8)",
    "requested_price": "Nullable(Decimal(18, 8))",
    "slippage": "Decimal(18, 8)",
    "slippage_points": "Nullable(Decimal(18, 8))",
    "commission": "Decimal(18, 8)",
    "swap": "Decimal(18, 8)",
    "fee": "Decimal(18, 8)",
    "profit": "Decimal(18, 8)",
    "execution_timestamp": "DateTime64(6, 'UTC')",
    "recorded_at": "DateTime64(6, 'UTC')",
    "broker_time_msc": "Int64",
    "broker_utc_offset_s": "Int32",
    "attempts": "UInt16",
    "retcode": "UInt32",
    "retcode_name": "LowCardinality(String)",
    "provisional": "Bool",
    "correlation_id": "String",
    "inexact": "Array(LowCardinality(String))",
}

_STEP: Final = Decimal("0.00000001")
_BOUND: Final = Decimal("9999999999.99999999")
_EXACT: Final = Context(prec=60, rounding=ROUND_HALF_EVEN)


def ledger_of(event_id: str) -> str:
    """The ledger id inside an event id (`{ledger_id}:{seq}`)."""
    return event_id.rpartition(":")[0]


def order_of(stream: str) -> str:
    """The order id a stream belongs to; empty for the other streams."""
    return stream.removeprefix("order/") if stream.startswith("order/") else ""


def order_event_row(recorded: Recorded, envelope: Envelope) -> tuple[Any, ...]:
    """The `order_events` row of any event."""
    return (
        ledger_of(envelope.event_id),
        recorded.seq,
        envelope.event_id,
        recorded.stream,
        recorded.version,
        recorded.topic,
        order_of(recorded.stream),
        envelope.account,
        microseconds(envelope.recorded_at),
        envelope.schema_version,
        envelope.correlation_id,
        envelope.causation_id,
        envelope.actor,
        recorded.state,
    )


def execution_row(recorded: Recorded, envelope: Envelope) -> tuple[Any, ...] | None:
    """The `executions` row of a fill, None of any other event."""
    fill = envelope.data
    if not isinstance(fill, Fill):
        return None
    inexact: list[str] = []

    def fitted(column: str, value: Decimal) -> Decimal:
        fits, result = fit(value)
        if not fits:
            inexact.append(column)
        return result

    slippage = slippage_of(fill)
    points = slippage_points_of(fill)
    asked = fill.requested_price
    return (
        envelope.event_id,
        ledger_of(envelope.event_id),
        envelope.account,
        order_of(recorded.stream),
        recorded.version,
        recorded.seq,
        recorded.topic,
        fill.symbol,
        fill.side,
        fill.order_ticket,
        fill.deal,
        fill.position_id,
        fill.entry,
        fill.reason,
        fitted("fill_price", fill.price),
        fitted("fill_quantity", fill.volume),
        fitted("filled_quantity", fill.filled_volume),
        fitted("remaining_quantity", fill.remaining_volume),
        None if asked is None else fitted("requested_price", asked),
        fitted("slippage", slippage),
        None if points is None else fitted("slippage_points", points),
        fitted("commission", fill.commission),
        fitted("swap", fill.swap),
        fitted("fee", fill.fee),
        fitted("profit", fill.profit),
        microseconds(fill.broker_time or envelope.recorded_at),
        microseconds(envelope.recorded_at),
        fill.broker_time_msc,
        fill.broker_utc_offset_s,
        fill.attempts,
        fill.retcode,
        fill.retcode_name,
        fill.provisional,
        envelope.correlation_id,
        inexact,
    )


def slippage_of(fill: Fill) -> Decimal:
    """Price units, positive = worse for us: paid more on a buy, got less on a sell. 0 when no price was asked."""
    if fill.requested_price is None:
        return ZERO
    paid_more = _EXACT.subtract(fill.price, fill.requested_price)
    return -paid_more if fill.side == "sell" else paid_more


def slippage_points_of(fill: Fill) -> Decimal | None:
    """The slippage in points of the symbol, at 8 decimals; None when no price was asked or the point is unknown."""
    if fill.requested_price is None or not fill.point:
        return None
    return _EXACT.divide(slippage_of(fill), fill.point).quantize(_STEP, context=_EXACT)


def fit(value: Decimal) -> tuple[bool, Decimal]:
    """Whether the value fits `Decimal(18, 8)`, and the value or the nearest that does."""
    if not value:
        return True, ZERO
    if not value.is_finite():
        return False, ZERO if value.is_nan() else _BOUND.copy_sign(value)
    if -_BOUND <= value <= _BOUND:
        rounded = value.quantize(_STEP, context=_EXACT)
        return rounded == value, rounded
    return False, _BOUND.copy_sign(value)


def microseconds(moment: datetime) -> int:
    """Microseconds since 1970-01-01 UTC, the form a DateTime64(6) is inserted in; exact, unlike `timestamp()`."""
    seconds = (moment - _EPOCH).days * 86_400 + (moment - _EPOCH).seconds
    return seconds * 1_000_000 + moment.microsecond


_EPOCH: Final = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


def columns(rows: Iterable[tuple[Any, ...]]) -> list[list[Any]]:
    """Rows turned into columns, as a columnar insert wants them."""
    return [list(column) for column in zip(*rows, strict=True)]
