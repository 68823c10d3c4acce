"""The state of one order and what each event makes of it (`evolve`). Pure and total.

A replay of the stored events gives the same state as the life did. `TRANSITIONS` is the one table of states; what
may happen at all is decided in `decide.py`.
"""

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from itertools import product
from types import MappingProxyType
from typing import Final, assert_never

import msgspec

from ledger.facts import Fact, OrderRequest, Raw
from ledger.order_events import (
    AnomalyDetected,
    BrokerAnswered,
    ConflictReceived,
    DuplicateReceived,
    Fill,
    FillCorrected,
    FillCostsChanged,
    OrderCancelled,
    OrderChecked,
    OrderEvent,
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
    OutcomeProbed,
    OutcomeResolved,
    OutcomeUnknown,
    RequestCompleted,
    RetryScheduled,
    SendAbandoned,
    SendStarted,
)
from ledger.trade import ACTION_CLOSE_BY, ZERO, TargetImage, TradeRequest


class Status(StrEnum):
    """Where an order stands. `NEW` is the state before its first event."""

    NEW = "new"
    REQUESTED = "requested"
    READY = "ready"
    WAITING = "waiting"
    PARKED = "parked"
    SENDING = "sending"
    UNKNOWN = "unknown"
    PLACED = "placed"
    PARTIALLY_FILLED = "partially_filled"
    FILLED = "filled"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    REFUSED = "refused"
    STALE = "stale"
    REJECTED = "rejected"
    FAILED = "failed"


_S = Status
# Not at the broker: the next thing may be a send.
IDLE: Final = frozenset({_S.REQUESTED, _S.READY, _S.WAITING, _S.PARKED})
# The broker has it, or may have.
AT_BROKER: Final = frozenset({_S.SENDING, _S.UNKNOWN, _S.PLACED, _S.PARTIALLY_FILLED})
WORKING: Final = frozenset({_S.PLACED, _S.PARTIALLY_FILLED})  # it has it for sure
ENDED: Final = frozenset(
    {_S.FILLED, _S.COMPLETED, _S.CANCELLED, _S.EXPIRED, _S.REFUSED, _S.STALE, _S.REJECTED, _S.FAILED}
)
# Ended by a conclusion of ours or by an answer: a deal or a working order that shows later is stronger.
CONCLUDED: Final = frozenset({_S.REFUSED, _S.STALE, _S.REJECTED, _S.FAILED, _S.COMPLETED})

_Table = dict[tuple[Status, type[Fact]], Status]


def _moves(states: frozenset[Status] | set[Status], moves: dict[type[Fact], Status]) -> _Table:
    return {(state, event): to for state, (event, to) in product(sorted(states), moves.items())}


# (state, event) -> next state. What is not here leaves the state as it is: late facts are kept, not obeyed.
TRANSITIONS: Final = MappingProxyType(
    _moves({_S.NEW}, {OrderRequested: _S.REQUESTED})
    | _moves({_S.REQUESTED}, {OrderChecked: _S.READY})
    | _moves(
        IDLE,
        {
            OrderRefused: _S.REFUSED,
            OrderStale: _S.STALE,
            OrderFailed: _S.FAILED,
            OrderRejected: _S.REJECTED,
            SendStarted: _S.SENDING,
            OrderCancelled: _S.CANCELLED,
            OrderParked: _S.PARKED,
        },
    )
    | _moves({_S.SENDING}, {OutcomeUnknown: _S.UNKNOWN, SendAbandoned: _S.READY})
    | _moves({_S.UNKNOWN}, {OrderFailed: _S.FAILED})
    | _moves({_S.SENDING, _S.UNKNOWN}, {RetryScheduled: _S.WAITING, OrderParked: _S.PARKED})
    | _moves(
        {_S.SENDING, _S.UNKNOWN, _S.PLACED},
        {
            OrderPlaced: _S.PLACED,
            OrderPartiallyFilled: _S.PARTIALLY_FILLED,
            OrderFilled: _S.FILLED,
            OrderRejected: _S.REJECTED,
            RequestCompleted: _S.COMPLETED,
            OrderCancelled: _S.CANCELLED,
            OrderExpired: _S.EXPIRED,
        },
    )
    | _moves(
        {_S.PARTIALLY_FILLED},
        {
            OrderPartiallyFilled: _S.PARTIALLY_FILLED,
            OrderFilled: _S.FILLED,
            FillCorrected: _S.FILLED,  # only when nothing remains after the correction
            OrderCancelled: _S.CANCELLED,
            OrderExpired: _S.EXPIRED,
        },
    )
    | _moves({_S.FILLED}, {FillCorrected: _S.PARTIALLY_FILLED})  # only when something remains after it
    # Evidence that comes late is stronger than our conclusion: the state follows it, an anomaly tells of it.
    # While idle too: an order that has a deal or works at the broker must not be sent again (invariant I1).
    | _moves(
        IDLE | CONCLUDED,
        {
            OrderPartiallyFilled: _S.PARTIALLY_FILLED,
            OrderFilled: _S.FILLED,
            OrderPlaced: _S.PLACED,
            RequestCompleted: _S.COMPLETED,
            OutcomeUnknown: _S.UNKNOWN,  # a success that does not name its effect: it must be looked for
        },
    )
    # The broker itself ended these: a late deal counts, but nothing more is to come.
    | _moves({_S.CANCELLED, _S.EXPIRED}, {OrderFilled: _S.FILLED})
)

# Events that upstream is told of as the outcome so far; a duplicate is answered with the last of them.
OUTCOMES: Final = (
    OrderRequested,
    OrderRefused,
    OrderStale,
    RetryScheduled,
    OrderParked,
    OutcomeUnknown,
    OrderPlaced,
    OrderPartiallyFilled,
    OrderFilled,
    RequestCompleted,
    OrderCancelled,
    OrderExpired,
    OrderRejected,
    OrderFailed,
)

_TOLD: Final = frozenset(OUTCOMES)


# The kind of anomaly that says: this outcome stays unknown until an operator decides.
UNRESOLVED: Final = "unresolved_outcome"


class KnownDeal(msgspec.Struct, frozen=True, gc=False):
    """A deal of the order, as recorded last. `version` is that of its fill."""

    ticket: int
    version: int
    volume: Decimal
    price: Decimal
    commission: Decimal
    swap: Decimal
    fee: Decimal
    profit: Decimal
    provisional: bool


class Terms(msgspec.Struct, frozen=True, gc=False):
    """What the broker is to hold the order to, or the stops of the position it opened; 0 = none."""

    price: Decimal = ZERO
    stop_limit_price: Decimal = ZERO
    sl: Decimal = ZERO
    tp: Decimal = ZERO
    expiration: int = 0


class Order(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The state of one order. `version` is that of its stream; `sent` the request of the current attempt, `before`
    what it acts on, `position_id` the position its deals belong to; `not_before` and `delay_s` tell when a waiting or
    parked order is tried again. `alerted_attempt` is the last whose unknown outcome was alerted."""

    order_id: str
    status: Status = Status.NEW
    version: int = 0
    symbol: str = ""
    request: OrderRequest | None = None
    content: str = ""
    requested: OrderRequested | None = None
    attempt: int = 0
    unreached: int = 0
    retries: int = 0
    not_before: datetime | None = None
    delay_s: Decimal = ZERO
    sent: TradeRequest | None = None
    before: TargetImage | None = None
    terms: Terms = Terms()
    filled_volume: Decimal = ZERO
    deals: tuple[KnownDeal, ...] = ()
    order_ticket: int = 0
    position_id: int = 0
    answer_retcode: int = 0
    answer_name: str = ""
    probed: OutcomeProbed | None = None
    alerted_attempt: int = 0
    duplicates: int = 0
    conflicts: int = 0
    outcome_version: int = 0
    outcome_topic: str = ""

    @property
    def is_open(self) -> bool:
        """Whether something is still to be done or to come."""
        return self.status not in ENDED and self.status is not Status.NEW

    @property
    def action(self) -> str:
        return self.request.action if self.request else ""

    @property
    def volume(self) -> Decimal:
        """Lots to be dealt in all. A close is measured by what was sent, since it is capped to what is there; a
        close-by makes a deal on each of the two positions, so both legs count."""
        if self.sent is not None:
            if self.sent.action == ACTION_CLOSE_BY:
                return self._both_legs()
            if self.action == "close":
                return self.sent.volume
        return (self.request.volume if self.request else None) or ZERO

    def _both_legs(self) -> Decimal:
        before = self.before
        if before is None or before.position is None or before.position_by is None:
            return ZERO
        return 2 * min(before.position.volume, before.position_by.volume)

    @property
    def remaining(self) -> Decimal:
        return max(self.volume - self.filled_volume, ZERO)

    def deal(self, ticket: int) -> KnownDeal | None:
        return next((one for one in self.deals if one.ticket == ticket), None)


def next_status(status: Status, event: OrderEvent) -> Status:
    """The state an event leads to."""
    following = TRANSITIONS.get((status, type(event)), status)
    if type(event) is FillCorrected and following is not status:
        remains = event.remaining_volume > ZERO
        return following if remains is (following is Status.PARTIALLY_FILLED) else status
    return following


def evolve(order: Order, event: OrderEvent) -> Order:
    """The state after the event."""
    changes: dict[str, object] = {"version": order.version + 1, "status": next_status(order.status, event)}
    if type(event) in _TOLD:
        changes["outcome_version"] = order.version + 1
        changes["outcome_topic"] = event.topic()
    match event:  # what every order goes through comes first: the cases are tried in turn
        case OrderRequested():
            changes |= {
                "request": event.request,
                "content": event.content,
                "symbol": event.symbol,
                # Without its text: the ledger has it, and thousands of orders are kept in memory.
                "requested": msgspec.structs.replace(event, raw=Raw(size=event.raw.size, sha256=event.raw.sha256)),
            }
        case OrderChecked():
            pass
        case SendStarted():
            changes |= {"attempt": event.attempt, "sent": event.request, "before": event.before, "probed": None}
            sent = event.request
            changes["symbol"] = sent.symbol or order.symbol
            changes["terms"] = Terms(sent.price, sent.stoplimit, sent.sl, sent.tp, sent.expiration)
        case BrokerAnswered():
            changes |= {"answer_retcode": event.result.retcode, "answer_name": event.retcode_name}
            if event.result.order:
                changes["order_ticket"] = event.result.order
        case OrderPartiallyFilled() | OrderFilled() | FillCorrected():
            changes |= {
                "filled_volume": event.filled_volume,
                "deals": _with_deal(order, event),
                "order_ticket": event.order_ticket or order.order_ticket,
                "position_id": event.position_id or order.position_id,
            }
        case DuplicateReceived():
            changes["duplicates"] = event.number
        case ConflictReceived():
            changes["conflicts"] = order.conflicts + 1
        case SendAbandoned():
            changes["unreached"] = order.unreached + 1
        case RetryScheduled():
            changes |= {"retries": order.retries + 1, "not_before": event.not_before, "delay_s": event.delay_s}
        case OrderParked():
            changes |= {"not_before": event.not_before, "delay_s": event.recheck_s}
        case OutcomeProbed():
            changes["probed"] = event
        case OrderPlaced():
            changes["order_ticket"] = event.order_ticket or order.order_ticket
        case OutcomeResolved():
            if event.order_ticket:
                changes["order_ticket"] = event.order_ticket
        case OrderModified():
            if event.order_ticket:
                terms = Terms(event.price, event.stop_limit_price, event.sl, event.tp, event.expiration)
            else:
                terms = msgspec.structs.replace(order.terms, sl=event.sl, tp=event.tp)
            changes["terms"] = terms
        case FillCostsChanged():
            changes["deals"] = tuple(_with_costs(one, event) for one in order.deals)
        case (
            OrderRefused()
            | OrderStale()
            | OutcomeUnknown()
            | OrderCancelled()
            | OrderExpired()
            | RequestCompleted()
            | OrderRejected()
            | OrderFailed()
        ):
            pass
        case AnomalyDetected():
            if event.kind == UNRESOLVED:
                changes["alerted_attempt"] = order.attempt
        case _:
            assert_never(event)
    return msgspec.structs.replace(order, **changes)


def _with_deal(order: Order, event: Fill | FillCorrected) -> tuple[KnownDeal, ...]:
    known = KnownDeal(
        event.deal,
        event.corrects if isinstance(event, FillCorrected) else order.version + 1,
        event.volume,
        event.price,
        event.commission,
        event.swap,
        event.fee,
        event.profit,
        event.provisional,
    )
    return (*(one for one in order.deals if one.ticket != event.deal), known)


def _with_costs(deal: KnownDeal, event: FillCostsChanged) -> KnownDeal:
    if deal.ticket != event.deal:
        return deal
    return msgspec.structs.replace(
        deal, commission=event.commission, swap=event.swap, fee=event.fee, profit=event.profit
    )


def fold(order_id: str, events: list[OrderEvent]) -> Order:
    """The state after all events of the order's stream."""
    order = Order(order_id=order_id)
    for event in events:
        order = evolve(order, event)
    return order
