"""What goes out on NATS: one message for each event that upstream is told of. Pure.

Subjects: `broker.fill.{symbol}`, `broker.error.{symbol}`, `broker.order.{symbol}`, `broker.alert.{kind}`. Numbers are
JSON numbers with exact digits, times ISO 8601 UTC with microseconds and `Z`; a field without a value is left out.
"""

from decimal import Decimal
from typing import Final, NamedTuple

import msgspec

from gateway.retcodes import lookup
from gateway.times import iso
from ledger.account_events import (
    AccountDisconnected,
    AccountReconciled,
    AlertRaised,
    Difference,
    ExternalDealObserved,
    LoginRefused,
    MessageRejected,
    TradingHalted,
    TradingResumed,
)
from ledger.events import Envelope, Event, Recorded, WriterTookOver
from ledger.order import UNRESOLVED
from ledger.order_events import (
    AnomalyDetected,
    ConflictReceived,
    DealFact,
    DuplicateReceived,
    FillCorrected,
    FillCostsChanged,
    OrderCancelled,
    OrderExpired,
    OrderFailed,
    OrderFilled,
    OrderModified,
    OrderParked,
    OrderPartiallyFilled,
    OrderPlaced,
    OrderRefused,
    OrderRejected,
    OrderRequested,
    OrderStale,
    OutcomeResolved,
    OutcomeUnknown,
    RequestCompleted,
    RetryScheduled,
)
from ledger.values import plain, subject_token

CHANGING: Final = (FillCorrected, FillCostsChanged, OrderModified)  # what is known of an outcome after it
_TERMS: Final = ("price", "stop_limit_price", "sl", "tp")
MOST_DIFFERENCES: Final = 20  # that one alert spells out


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of a message. `status` is the state seen upstream; `final` says that no other outcome follows.
    `slippage` is a price, positive when it went against us; `slippage_points` the same in points. `expiration` is in
    seconds of the broker's own clock, as MetaTrader shows it; 0 is none. `ignored`: fields of the order message that no
    order has, so that a misspelt one is noticed."""

    event: str
    event_id: str
    seq: int
    stream_version: int
    account: str
    recorded_at: str
    order_id: str = ""
    symbol: str = ""
    status: str = ""
    final: bool | None = None
    duplicate: bool | None = None
    ticket: int | None = None
    deal: int | None = None
    position_id: int | None = None
    side: str | None = None
    volume: Decimal | None = None
    price: Decimal | None = None
    timestamp: str | None = None
    commission: Decimal | None = None
    swap: Decimal | None = None
    fee: Decimal | None = None
    profit: Decimal | None = None
    remaining_volume: Decimal | None = None
    requested_price: Decimal | None = None
    slippage: Decimal | None = None
    slippage_points: Decimal | None = None
    broker_time: str | None = None
    was_volume: Decimal | None = None
    was_price: Decimal | None = None
    order_type: str | None = None
    action: str | None = None
    target_order_id: str | None = None
    by: str | None = None
    stop_limit_price: Decimal | None = None
    expiration: int | None = None
    sl: Decimal | None = None
    tp: Decimal | None = None
    kind: str | None = None
    source: str | None = None
    next_attempt_at: str | None = None
    provisional: bool | None = None
    retcode: int | None = None
    retcode_name: str | None = None
    description: str | None = None
    advice: str | None = None
    category: str | None = None
    retriable: bool | None = None
    reasons: tuple[str, ...] | None = None
    ignored: tuple[str, ...] | None = None
    attempts: int | None = None
    correlation_id: str | None = None


class Outgoing(NamedTuple):
    subject: str
    message: Message


_encoder: Final = msgspec.json.Encoder(decimal_format="number")


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def outgoing(recorded: Recorded, envelope: Envelope) -> Outgoing | None:
    """The message of an event, None when upstream is not told of it. A duplicate's answer is `repeated`."""
    event = envelope.data
    order_id = recorded.stream.removeprefix("order/") if recorded.stream.startswith("order/") else ""
    base = {
        "event": recorded.topic,
        "event_id": envelope.event_id,
        "seq": envelope.seq,
        "stream_version": recorded.version,
        "account": envelope.account,
        "recorded_at": iso(envelope.recorded_at),
        "order_id": order_id,
        "correlation_id": envelope.correlation_id or None,
    }

    def made(kind: str, symbol: str, **fields: object) -> Outgoing:
        message = Message(**(base | {"symbol": symbol} | fields))  # type: ignore[arg-type]  # one builder for all kinds
        return Outgoing(f"broker.{kind}.{subject_token(symbol)}", message)

    def alert(kind: str, symbol: str, text: str, **fields: object) -> Outgoing:
        message = Message(**(base | {"symbol": symbol, "kind": kind, "description": text} | fields))  # type: ignore[arg-type]
        return Outgoing(f"broker.alert.{subject_token(kind)}", message)

    match event:
        case OrderFilled() | OrderPartiallyFilled():
            return made("fill", event.symbol, **_fill_fields(event, envelope))
        case OrderRequested() if event.accepted and event.request is not None:
            request = event.request
            return made(
                "order",
                event.symbol,
                status="PENDING",
                final=False,
                action=request.action,
                side=request.side or None,
                order_type=request.order_type or None,
                volume=request.volume,
                requested_price=request.price,
                ticket=request.order_ticket,
                position_id=request.position_id,
                target_order_id=request.target_order_id,
                ignored=event.ignored or None,
            )
        case OrderRefused():
            return made(
                "error",
                event.symbol,
                status="REJECTED",
                final=True,
                category=event.category,
                retriable=False,
                reasons=event.reasons,
                description="; ".join(event.reasons),
            )
        case OrderStale():
            return made(
                "error",
                event.symbol,
                status="FAILED",
                final=True,
                category="stale",
                retriable=False,
                description=_stale(event),
            )
        case ConflictReceived():
            return made(
                "error",
                event.symbol,
                final=True,
                category="conflict",
                retriable=False,
                reasons=event.reasons or None,
                description="this order_id is taken by an order with other content; the first one stands",
            )
        case OrderRejected():
            return made(
                "error",
                event.symbol,
                status="REJECTED",
                final=True,
                category=event.category,
                retriable=event.retriable,
                retcode=event.retcode or None,
                retcode_name=event.retcode_name or None,
                description=event.description,
                advice=event.advice or None,
                attempts=event.attempts,
            )
        case OrderFailed():
            return made(
                "error",
                event.symbol,
                status="FAILED",
                final=True,
                category=event.category,
                retriable=event.retriable,
                description=event.reason,
                attempts=event.attempts,
            )
        case OutcomeUnknown():
            return made(
                "order",
                event.symbol,
                status="SUBMITTED",
                final=False,
                category="unknown",
                description=event.reason,
                attempts=event.attempt,
                retcode=event.code or None,
                retcode_name=lookup(event.code).name if event.code > 0 else None,
            )
        case OutcomeResolved():
            return made("order", event.symbol, final=False, description=f"{event.resolution}: {event.evidence}")
        case RetryScheduled() | OrderParked():
            return made(
                "order",
                event.symbol,
                status="PENDING",
                final=False,
                category="retriable",
                retriable=True,
                description=event.reason,
                attempts=event.attempt,
                retcode=event.retcode or None,
                retcode_name=event.retcode_name or None,
                next_attempt_at=iso(event.not_before) if event.not_before > envelope.recorded_at else None,
            )
        case OrderPlaced():
            return made(
                "order",
                event.symbol,
                status="SUBMITTED",
                final=False,
                ticket=event.order_ticket,
                side=event.side,
                order_type=event.order_type or None,
                volume=event.volume,
                price=event.price or None,
                stop_limit_price=event.stop_limit_price or None,
                sl=event.sl or None,
                tp=event.tp or None,
                attempts=event.attempts,
                retcode=event.retcode or None,
                retcode_name=event.retcode_name or None,
            )
        case FillCorrected():
            fields = _fill_fields(event, envelope)
            if event.volume == event.was_volume:
                # Another price or other costs leave the order as it is, which may be cancelled meanwhile.
                del fields["status"], fields["final"]
            return made("order", event.symbol, **fields, was_volume=event.was_volume, was_price=event.was_price)
        case FillCostsChanged():
            return made("order", event.symbol, deal=event.deal, **_costs(event))
        case OrderModified():
            return made(
                "order",
                event.symbol,
                ticket=event.order_ticket or None,
                position_id=event.position_id or None,
                price=event.price or None,
                stop_limit_price=event.stop_limit_price or None,
                # A position has no expiration of its own.
                expiration=event.expiration if event.order_ticket else None,
                sl=event.sl,
                tp=event.tp,
                by=event.by or None,
            )
        case OrderCancelled():
            return made(
                "order",
                event.symbol,
                status="CANCELLED",
                final=True,
                ticket=event.order_ticket or None,
                remaining_volume=event.remaining_volume,
                description=event.reason or None,
                by=event.by or None,
            )
        case OrderExpired():
            return made(
                "order",
                event.symbol,
                status="CANCELLED",
                final=True,
                ticket=event.order_ticket,
                remaining_volume=event.remaining_volume,
                description="expired at the broker",
            )
        case RequestCompleted():
            return made(
                "order",
                event.symbol,
                status="COMPLETED",
                final=True,
                action=event.action,
                ticket=event.order_ticket or None,
                position_id=event.position_id or None,
                target_order_id=event.target_order_id or None,
                attempts=event.attempts,
                retcode=event.retcode or None,
                retcode_name=event.retcode_name or None,
            )
        case MessageRejected():
            return made(
                "error",
                event.symbol,
                **({"order_id": event.order_id} if event.order_id else {}),
                final=True,
                category="malformed",
                retriable=False,
                reasons=event.reasons,
                description="; ".join(event.reasons),
            )
        case AnomalyDetected():
            kind = UNRESOLVED if event.kind == UNRESOLVED else "anomaly"
            return alert(kind, event.symbol, f"{event.kind}: {event.detail}")
        case AccountDisconnected():
            return alert("disconnected", "", event.reason)
        case LoginRefused():
            return alert("login_refused", "", event.reason, retcode=event.code or None)
        case ExternalDealObserved() if event.deal.symbol:
            return made("order", event.deal.symbol, **_external_fields(event, envelope))
        case AccountReconciled() if event.differences:
            return alert("reconciliation", "", _differences(event.differences))
        case AlertRaised():
            named = {"order_id": event.order_id} if event.order_id else {}
            return alert(event.kind, event.symbol, event.text, **named)
        case TradingHalted():
            return alert("halted", "", event.reason, source=event.source, by=event.by or None)
        case TradingResumed():
            return alert("resumed", "", event.reason or "the halt is lifted", source=event.source, by=event.by or None)
        case WriterTookOver():
            return alert("fenced", "", f"the writer {event.displaced} was displaced by {event.host} ({event.pid})")
        case _:
            return None


def repeated(recorded: Recorded, envelope: Envelope, standing: Outgoing | None) -> Outgoing | None:
    """The answer to a duplicate: the standing outcome again, on its subject, under the duplicate's own event id."""
    if not isinstance(envelope.data, DuplicateReceived) or standing is None:
        return None
    message = msgspec.structs.replace(
        standing.message,
        duplicate=True,
        event_id=envelope.event_id,
        seq=envelope.seq,
        stream_version=recorded.version,
        recorded_at=iso(envelope.recorded_at),
    )
    return Outgoing(standing.subject, message)


def as_known(standing: Outgoing, later: tuple[Event, ...]) -> Outgoing:
    """The outcome as what followed it in its stream left it: a fill that was corrected or whose costs changed, a
    working order whose terms did."""
    message, changes = standing.message, dict[str, object]()
    for event in later:
        match event:
            case FillCorrected() if message.deal is not None:
                ours = event.corrects == message.stream_version
                told = _deal_fields(event) if ours else {}
                changes |= told | _remaining(event) | ({"provisional": None} if ours else {})
            case FillCostsChanged() if event.fill_version == message.stream_version:
                changes |= _costs(event)
            case OrderModified() if event.order_ticket and event.order_ticket == message.ticket:
                changes |= {name: getattr(event, name) or None for name in _TERMS}
    return Outgoing(standing.subject, msgspec.structs.replace(message, **changes))


def _differences(found: tuple[Difference, ...]) -> str:
    words = [
        f"{one.kind} {one.symbol or one.order_id}: ours {one.ours or 'nothing'}, "
        f"the broker's {one.brokers or 'nothing'} ({one.policy})"
        for one in found[:MOST_DIFFERENCES]
    ]
    more = len(found) - MOST_DIFFERENCES
    return "; ".join([*words, *([f"and {more} more"] if more > 0 else [])])


def _stale(event: OrderStale) -> str:
    match event.cause:
        case "valid_until":
            return f"not sent: its valid_until passed {event.age_s} s ago"
        case "life":
            return f"not sent again: {event.age_s} s old, more than the {event.limit_s} s it may live"
        case _:
            return f"not sent: {event.age_s} s old, more than {event.limit_s} s"


def _external_fields(event: ExternalDealObserved, envelope: Envelope) -> dict[str, object]:
    """A deal that no order of ours asked for; `order_id` names the one that opened the position it acts on."""
    deal = event.deal
    fields: dict[str, object] = {
        "ticket": deal.order or None,
        "deal": deal.ticket,
        "position_id": deal.position_id or None,
        "side": "sell" if deal.type else "buy",
        "volume": plain(deal.volume),
        "price": plain(deal.price),
        "timestamp": iso(event.broker_time or envelope.recorded_at),
        "commission": plain(deal.commission),
        "swap": plain(deal.swap),
        "fee": plain(deal.fee),
        "profit": plain(deal.profit),
        "description": event.note or "a deal that no order of this ledger asked for",
    }
    if event.broker_time is not None:
        fields["broker_time"] = iso(event.broker_time)
    if event.order_id:
        fields["order_id"] = event.order_id
    return fields


def _fill_fields(fill: DealFact, envelope: Envelope) -> dict[str, object]:
    return {
        "timestamp": iso(envelope.recorded_at),
        **_remaining(fill),
        **_deal_fields(fill),
        "requested_price": fill.requested_price,
        "retcode": fill.retcode or None,
        "retcode_name": fill.retcode_name or None,
        "attempts": fill.attempts,
        "provisional": fill.provisional or None,
    }


def _remaining(fill: DealFact) -> dict[str, object]:
    return {
        "status": "PARTIALLY_FILLED" if fill.remaining_volume else "FILLED",
        "final": not fill.remaining_volume,
        "remaining_volume": fill.remaining_volume,
    }


def _deal_fields(fill: DealFact) -> dict[str, object]:
    """The deal itself, as it is known by this fact."""
    fields: dict[str, object] = {
        "ticket": fill.order_ticket,
        "deal": fill.deal,
        "position_id": fill.position_id,
        "side": fill.side,
        "volume": fill.volume,
        "price": fill.price,
        **_costs(fill),
    }
    if fill.broker_time is not None:
        fields["timestamp"] = fields["broker_time"] = iso(fill.broker_time)
    if fill.requested_price:
        against = fill.price - fill.requested_price if fill.side == "buy" else fill.requested_price - fill.price
        fields["slippage"] = plain(against)
        if fill.point:
            fields["slippage_points"] = plain(against / fill.point)
    return fields


def _costs(known: DealFact | FillCostsChanged) -> dict[str, object]:
    return {"commission": known.commission, "swap": known.swap, "fee": known.fee, "profit": known.profit}
