"""PURE: one order, followed through its events: where it stands, when it got there, what was dealt and why it ended.

`OrderTrace` is what reports need beside the state that decisions need (`order.py`). Its states come from the same
table; a test holds the two folds together.
"""

from collections.abc import Callable
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Any, Final

from msgspec.structs import replace

from ledger.events import Envelope, Recorded
from ledger.facts import OrderRequest
from ledger.order import ENDED, TRANSITIONS, Status, next_status
from ledger.order_events import (
    AnomalyDetected,
    BrokerAnswered,
    ConflictReceived,
    DealFact,
    DuplicateReceived,
    Fill,
    FillCorrected,
    FillCostsChanged,
    OrderCancelled,
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
    SendAbandoned,
    SendStarted,
)
from ledger.positions import ENTRY_IN, Dealt, amount
from ledger.trade import ZERO

_EXACT: Final = Context(prec=80, rounding=ROUND_HALF_EVEN)


class FillTrace:
    """A fill as it is known now: `fact` its latest telling, `version` and `seq` those of the fill itself, `changed_seq`
    that of the event that changed it last."""

    __slots__ = (
        "changed_seq",
        "commission",
        "corrections",
        "dealt",
        "envelope",
        "fact",
        "fee",
        "filled_volume",
        "order_id",
        "profit",
        "remaining_volume",
        "seq",
        "swap",
        "topic",
        "version",
    )

    def __init__(self, order_id: str, recorded: Recorded, envelope: Envelope, fact: Fill, dealt: Dealt) -> None:
        self.order_id, self.version, self.topic = order_id, recorded.version, recorded.topic
        self.seq = self.changed_seq = recorded.seq
        self.envelope, self.dealt = envelope, dealt
        self.fact: DealFact = fact
        self.filled_volume, self.remaining_volume = amount(fact.filled_volume), amount(fact.remaining_volume)
        self.commission, self.swap, self.fee, self.profit = fact.commission, fact.swap, fact.fee, fact.profit
        self.corrections = 0

    @property
    def position_id(self) -> int:
        return self.dealt.position_id


class Effect:
    """What an event of an order does beyond it. `old` and `new`: a deal before and after; `begins`: it is the first
    of its position; `stops`: those of the position `position_id` are now these."""

    __slots__ = ("begins", "costs_only", "fill", "new", "old", "position_id", "stops")

    def __init__(
        self,
        fill: FillTrace | None = None,
        old: Dealt | None = None,
        new: Dealt | None = None,
        *,
        begins: bool = False,
        costs_only: bool = False,
        position_id: int = 0,
        stops: tuple[Decimal, Decimal] | None = None,
    ) -> None:
        self.fill, self.old, self.new = fill, old, new
        self.begins, self.costs_only = begins, costs_only
        self.position_id, self.stops = position_id, stops


class OrderTrace:
    """Times are those of the gateway's clock. `value` is the sum of volume times price of the fills. `reason`: why it
    ended without success; `problem`: the last trouble on its way."""

    __slots__ = (
        "account",
        "anomalies",
        "answered_at",
        "attempts",
        "cancelled_at",
        "category",
        "conflicts",
        "correlation_id",
        "duplicates",
        "ended_at",
        "filled_at",
        "filled_volume",
        "fills",
        "first_seq",
        "order_id",
        "order_ticket",
        "placed_at",
        "price",
        "problem",
        "reason",
        "request",
        "requested_at",
        "resolution",
        "retcode",
        "retcode_name",
        "retries",
        "seq",
        "sl",
        "status",
        "stop_limit_price",
        "submitted_at",
        "symbol",
        "target",
        "tp",
        "unknown_at",
        "updated_at",
        "value",
        "version",
        "volume",
    )

    def __init__(self, order_id: str) -> None:
        self.order_id = order_id
        self.account = self.correlation_id = self.symbol = self.reason = self.problem = self.category = ""
        self.retcode_name = self.resolution = ""
        self.status = Status.NEW
        self.first_seq = self.seq = self.version = self.attempts = self.retries = self.retcode = 0
        self.duplicates = self.conflicts = self.anomalies = self.order_ticket = self.target = 0
        self.request: OrderRequest | None = None
        self.price = self.stop_limit_price = self.sl = self.tp = ZERO
        self.volume = self.filled_volume = self.value = ZERO
        self.fills: dict[int, FillTrace] = {}  # by deal
        self.requested_at: datetime | None = None
        self.submitted_at: datetime | None = None
        self.answered_at: datetime | None = None
        self.placed_at: datetime | None = None
        self.filled_at: datetime | None = None
        self.cancelled_at: datetime | None = None
        self.unknown_at: datetime | None = None
        self.ended_at: datetime | None = None
        self.updated_at: datetime | None = None

    @property
    def is_open(self) -> bool:
        return self.status not in ENDED and self.status is not Status.NEW

    @property
    def average_price(self) -> Decimal | None:
        """Of all fills, weighted by volume; None without a fill."""
        return _EXACT.divide(self.value, self.filled_volume) if self.filled_volume > ZERO else None


def follow(trace: OrderTrace, recorded: Recorded, envelope: Envelope) -> Effect | None:
    """Takes the trace one event on; what the event does to a fill or a position."""
    event: Any = envelope.data
    kind = type(event)
    at = envelope.recorded_at
    trace.seq, trace.version, trace.updated_at = recorded.seq, recorded.version, at
    status = trace.status
    # The table itself, where the event alone says where it leads: this is done for every event there is.
    following = next_status(status, event) if kind is FillCorrected else TRANSITIONS.get((status, kind), status)
    if following is not status:
        trace.status = following
        trace.ended_at = at if following in ENDED else None
    handler = _HANDLERS.get(kind)
    return handler(trace, event, recorded, envelope) if handler is not None else None


def _requested(trace: OrderTrace, event: OrderRequested, recorded: Recorded, envelope: Envelope) -> None:
    request = event.request
    trace.account, trace.correlation_id = envelope.account, envelope.correlation_id
    trace.first_seq, trace.requested_at = recorded.seq, envelope.recorded_at
    trace.request, trace.symbol = request, event.symbol
    if request is not None:
        trace.volume = request.volume or ZERO
        trace.price, trace.stop_limit_price = request.price or ZERO, request.stop_limit_price or ZERO
        trace.sl, trace.tp = request.sl or ZERO, request.tp or ZERO
        trace.target = request.position_id or 0


def _started(trace: OrderTrace, event: SendStarted, _: Recorded, envelope: Envelope) -> None:
    sent = event.request
    trace.attempts = event.attempt
    trace.submitted_at = trace.submitted_at or envelope.recorded_at
    trace.symbol = sent.symbol or trace.symbol
    trace.target = sent.position
    trace.sl, trace.tp = sent.sl, sent.tp
    if trace.request is not None and trace.request.action == "close":
        trace.volume = sent.volume


def _answered(trace: OrderTrace, event: BrokerAnswered, _: Recorded, envelope: Envelope) -> None:
    trace.answered_at = envelope.recorded_at
    trace.retcode, trace.retcode_name = event.result.retcode, event.retcode_name
    trace.order_ticket = event.result.order or trace.order_ticket
    if event.verdict != "success":
        trace.problem = event.description or event.retcode_name


def _filled(trace: OrderTrace, event: Fill, recorded: Recorded, envelope: Envelope) -> Effect:
    known = trace.fills.get(event.deal)
    deal = _deal(trace, event, envelope.recorded_at)
    begins = (
        deal.position_id == event.order_ticket
        and event.entry == ENTRY_IN
        and all(one.position_id != deal.position_id for one in trace.fills.values())
    )
    fill = FillTrace(trace.order_id, recorded, envelope, event, deal)
    trace.fills[event.deal] = fill
    trace.filled_volume = amount(event.filled_volume)
    trace.value += _value(event)
    trace.order_ticket = event.order_ticket or trace.order_ticket
    if event.retcode and not trace.retcode:
        trace.retcode, trace.retcode_name = event.retcode, event.retcode_name
    if trace.status is Status.FILLED:
        trace.filled_at = envelope.recorded_at
    return Effect(fill, None if known is None else known.dealt, deal, begins=begins)


def _corrected(trace: OrderTrace, event: FillCorrected, recorded: Recorded, envelope: Envelope) -> Effect | None:
    trace.filled_volume = amount(event.filled_volume)
    trace.order_ticket = event.order_ticket or trace.order_ticket
    trace.filled_at = (trace.filled_at or envelope.recorded_at) if trace.status is Status.FILLED else None
    fill = trace.fills.get(event.deal)
    if fill is None:
        return None
    old, was = fill.dealt, fill.fact
    trace.value += _value(event) - _value(was)
    more = amount(event.volume) - amount(was.volume)
    fill.fact, fill.dealt = event, _deal(trace, event, fill.envelope.recorded_at)
    fill.filled_volume += more
    fill.remaining_volume = max(fill.remaining_volume - more, ZERO)
    fill.commission, fill.swap, fill.fee, fill.profit = event.commission, event.swap, event.fee, event.profit
    fill.changed_seq, fill.corrections = recorded.seq, fill.corrections + 1
    new = fill.dealt
    begins = new.position_id != old.position_id and new.position_id == event.order_ticket and event.entry == ENTRY_IN
    others = (one for one in trace.fills.values() if one is not fill)
    return Effect(fill, old, new, begins=begins and all(one.position_id != new.position_id for one in others))


def _costs(trace: OrderTrace, event: FillCostsChanged, recorded: Recorded, _: Envelope) -> Effect | None:
    fill = trace.fills.get(event.deal)
    if fill is None:
        return None
    old = fill.dealt
    fill.commission, fill.swap, fill.fee, fill.profit = event.commission, event.swap, event.fee, event.profit
    fill.changed_seq = recorded.seq
    fill.dealt = replace(old, commission=event.commission, swap=event.swap, fee=event.fee, profit=event.profit)
    return Effect(fill, old, fill.dealt, costs_only=True)


def _value(fact: DealFact) -> Decimal:
    return _EXACT.multiply(amount(fact.volume), amount(fact.price))


def _deal(trace: OrderTrace, fact: DealFact, recorded_at: datetime) -> Dealt:
    """The deal for the fold of positions. Until a deal names its position that is the one the request acts on, or the
    one the order opens, whose identifier is the order's ticket."""
    return Dealt(
        ticket=fact.deal,
        position_id=fact.position_id or trace.target or fact.order_ticket,
        symbol=fact.symbol,
        buy=fact.side == "buy",
        volume=fact.volume,
        price=fact.price,
        at=fact.broker_time or recorded_at,
        entry=fact.entry,
        reason=fact.reason,
        profit=fact.profit,
        commission=fact.commission,
        swap=fact.swap,
        fee=fact.fee,
        order_id=trace.order_id,
        sl=trace.sl,
        tp=trace.tp,
        provisional=fact.provisional,
    )


def _refused(trace: OrderTrace, event: OrderRefused, *_: object) -> None:
    trace.reason, trace.category = "; ".join(event.reasons), event.category


def _stale(trace: OrderTrace, event: OrderStale, *_: object) -> None:
    limit = f", {event.limit_s} s allowed" if event.limit_s else ""
    trace.reason, trace.category = f"too old to be sent: {event.cause} {event.age_s} s{limit}", "stale"


def _abandoned(trace: OrderTrace, event: SendAbandoned, *_: object) -> None:
    trace.problem = event.reason


def _retried(trace: OrderTrace, event: RetryScheduled | OrderParked, *_: object) -> None:
    trace.retries += type(event) is RetryScheduled
    trace.problem = event.reason
    if event.retcode:
        trace.retcode, trace.retcode_name = event.retcode, event.retcode_name


def _unknown(trace: OrderTrace, event: OutcomeUnknown, _: Recorded, envelope: Envelope) -> None:
    trace.problem = event.reason
    trace.unknown_at = envelope.recorded_at


def _resolved(trace: OrderTrace, event: OutcomeResolved, *_: object) -> None:
    trace.resolution = event.resolution
    trace.order_ticket = event.order_ticket or trace.order_ticket


def _placed(trace: OrderTrace, event: OrderPlaced, _: Recorded, envelope: Envelope) -> None:
    trace.placed_at = envelope.recorded_at
    trace.order_ticket = event.order_ticket or trace.order_ticket


def _modified(trace: OrderTrace, event: OrderModified, *_: object) -> Effect | None:
    trace.sl, trace.tp = event.sl, event.tp
    if event.order_ticket:
        trace.price, trace.stop_limit_price = event.price, event.stop_limit_price
        return None
    return Effect(position_id=event.position_id, stops=(event.sl, event.tp))


def _completed(trace: OrderTrace, event: RequestCompleted, *_: object) -> Effect | None:
    if event.action != "modify" or not event.position_id or event.order_ticket:
        return None
    return Effect(position_id=event.position_id, stops=(trace.sl, trace.tp))


def _cancelled(trace: OrderTrace, event: OrderCancelled, _: Recorded, envelope: Envelope) -> None:
    trace.cancelled_at = envelope.recorded_at
    trace.problem = event.reason or trace.problem


def _rejected(trace: OrderTrace, event: OrderRejected, *_: object) -> None:
    trace.reason, trace.category = event.description or event.retcode_name, event.category
    trace.retcode, trace.retcode_name = event.retcode, event.retcode_name


def _failed(trace: OrderTrace, event: OrderFailed, *_: object) -> None:
    trace.reason, trace.category = event.reason, event.category


def _duplicate(trace: OrderTrace, event: DuplicateReceived, *_: object) -> None:
    trace.duplicates = event.number


def _conflict(trace: OrderTrace, *_: object) -> None:
    trace.conflicts += 1


def _anomaly(trace: OrderTrace, *_: object) -> None:
    trace.anomalies += 1


# Events that are not here change nothing but the state: checked, probed, expired.
_HANDLERS: Final[dict[type, Callable[..., Effect | None]]] = {
    OrderRequested: _requested,
    SendStarted: _started,
    BrokerAnswered: _answered,
    OrderPartiallyFilled: _filled,
    OrderFilled: _filled,
    FillCorrected: _corrected,
    FillCostsChanged: _costs,
    OrderRefused: _refused,
    OrderStale: _stale,
    SendAbandoned: _abandoned,
    RetryScheduled: _retried,
    OrderParked: _retried,
    OutcomeUnknown: _unknown,
    OutcomeResolved: _resolved,
    OrderPlaced: _placed,
    OrderModified: _modified,
    RequestCompleted: _completed,
    OrderCancelled: _cancelled,
    OrderRejected: _rejected,
    OrderFailed: _failed,
    DuplicateReceived: _duplicate,
    ConflictReceived: _conflict,
    AnomalyDetected: _anomaly,
}
