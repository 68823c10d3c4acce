"""The state of one order and what each event makes of it (`evolve`). Pure and total.

A replay of the stored events gives the same state as the life did. `TRANSITIONS` is the one table of states; what
may happen at all is decided in `decide.py`.
"""

from decimal import Decimal
from enum import StrEnum
from types import MappingProxyType
from typing import Final, assert_never

import msgspec

from ledger.facts import OrderRequest, Raw
from ledger.order_events import (
    AnomalyDetected,
    BrokerAnswered,
    ConflictReceived,
    DuplicateReceived,
    OrderChecked,
    OrderEvent,
    OrderFailed,
    OrderFilled,
    OrderPartiallyFilled,
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
from ledger.trade import (
    ZERO,
    TradeRequest,
)


class Status(StrEnum):
    """Where an order stands. `NEW` is the state before its first event."""

    NEW = "new"
    REQUESTED = "requested"
    READY = "ready"
    SENDING = "sending"
    UNKNOWN = "unknown"
    PARTIALLY_FILLED = "partially_filled"
    FILLED = "filled"
    REFUSED = "refused"
    STALE = "stale"
    REJECTED = "rejected"
    FAILED = "failed"


ENDED: Final = frozenset({Status.FILLED, Status.REFUSED, Status.STALE, Status.REJECTED, Status.FAILED})

_S = Status
# (state, event) -> next state. What is not here leaves the state as it is: late facts are kept, not obeyed.
TRANSITIONS: Final = MappingProxyType(
    {
        (_S.NEW, OrderRequested): _S.REQUESTED,
        (_S.REQUESTED, OrderRefused): _S.REFUSED,
        (_S.REQUESTED, OrderStale): _S.STALE,
        (_S.REQUESTED, OrderChecked): _S.READY,
        (_S.REQUESTED, OrderRejected): _S.REJECTED,
        (_S.REQUESTED, OrderFailed): _S.FAILED,
        (_S.REQUESTED, SendStarted): _S.SENDING,
        (_S.READY, OrderRefused): _S.REFUSED,
        (_S.READY, OrderStale): _S.STALE,
        (_S.READY, SendStarted): _S.SENDING,
        (_S.READY, OrderRejected): _S.REJECTED,
        (_S.READY, OrderFailed): _S.FAILED,
        (_S.SENDING, SendAbandoned): _S.READY,
        (_S.SENDING, OutcomeUnknown): _S.UNKNOWN,
        (_S.READY, OutcomeUnknown): _S.UNKNOWN,
        (_S.SENDING, OrderPartiallyFilled): _S.PARTIALLY_FILLED,
        (_S.SENDING, OrderFilled): _S.FILLED,
        (_S.SENDING, OrderRejected): _S.REJECTED,
        (_S.UNKNOWN, OrderPartiallyFilled): _S.PARTIALLY_FILLED,
        (_S.UNKNOWN, OrderFilled): _S.FILLED,
        (_S.UNKNOWN, OrderRejected): _S.REJECTED,
        (_S.UNKNOWN, OrderFailed): _S.FAILED,
        (_S.PARTIALLY_FILLED, OrderPartiallyFilled): _S.PARTIALLY_FILLED,
        (_S.PARTIALLY_FILLED, OrderFilled): _S.FILLED,
        # Evidence that came late is stronger than our conclusion: the state follows it, an anomaly tells of it.
        # From READY too: an order that has a deal must not be sent again (invariant I1).
        (_S.REQUESTED, OrderPartiallyFilled): _S.PARTIALLY_FILLED,
        (_S.REQUESTED, OrderFilled): _S.FILLED,
        (_S.READY, OrderPartiallyFilled): _S.PARTIALLY_FILLED,
        (_S.READY, OrderFilled): _S.FILLED,
        (_S.REFUSED, OrderPartiallyFilled): _S.PARTIALLY_FILLED,
        (_S.REFUSED, OrderFilled): _S.FILLED,
        (_S.STALE, OrderPartiallyFilled): _S.PARTIALLY_FILLED,
        (_S.STALE, OrderFilled): _S.FILLED,
        (_S.FAILED, OrderPartiallyFilled): _S.PARTIALLY_FILLED,
        (_S.FAILED, OrderFilled): _S.FILLED,
        (_S.REJECTED, OrderPartiallyFilled): _S.PARTIALLY_FILLED,
        (_S.REJECTED, OrderFilled): _S.FILLED,
    }
)

# Events that upstream is told of as the outcome so far; a duplicate is answered with the last of them.
OUTCOMES: Final = (
    OrderRequested,
    OrderRefused,
    OrderStale,
    OutcomeUnknown,
    OrderPartiallyFilled,
    OrderFilled,
    OrderRejected,
    OrderFailed,
)


class Order(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The state of one order. `version` is that of its stream; `sent` the request of the current attempt."""

    order_id: str
    status: Status = Status.NEW
    version: int = 0
    symbol: str = ""
    request: OrderRequest | None = None
    content: str = ""
    requested: OrderRequested | None = None
    attempt: int = 0
    sent: TradeRequest | None = None
    filled_volume: Decimal = ZERO
    deals: tuple[int, ...] = ()
    order_ticket: int = 0
    answer_retcode: int = 0
    answer_name: str = ""
    probed: OutcomeProbed | None = None
    duplicates: int = 0
    conflicts: int = 0
    outcome_version: int = 0
    outcome_topic: str = ""

    @property
    def is_open(self) -> bool:
        """Whether something is still to be done or to come."""
        return self.status not in ENDED and self.status is not Status.NEW

    @property
    def volume(self) -> Decimal:
        return (self.request.volume if self.request else None) or ZERO

    @property
    def remaining(self) -> Decimal:
        return max(self.volume - self.filled_volume, ZERO)


def evolve(order: Order, event: OrderEvent) -> Order:
    """The state after the event."""
    changes: dict[str, object] = {
        "version": order.version + 1,
        "status": TRANSITIONS.get((order.status, type(event)), order.status),
    }
    if isinstance(event, OUTCOMES):
        changes["outcome_version"] = order.version + 1
        changes["outcome_topic"] = event.topic()
    match event:
        case OrderRequested():
            changes |= {
                "request": event.request,
                "content": event.content,
                "symbol": event.symbol,
                # Without its text: the ledger has it, and thousands of orders are kept in memory.
                "requested": msgspec.structs.replace(event, raw=Raw(size=event.raw.size, sha256=event.raw.sha256)),
            }
        case DuplicateReceived():
            changes["duplicates"] = event.number
        case ConflictReceived():
            changes["conflicts"] = order.conflicts + 1
        case SendStarted():
            changes |= {"attempt": event.attempt, "sent": event.request, "probed": None}
        case BrokerAnswered():
            changes |= {"answer_retcode": event.result.retcode, "answer_name": event.retcode_name}
            if event.result.order:
                changes["order_ticket"] = event.result.order
        case OutcomeProbed():
            changes["probed"] = event
        case OutcomeResolved():
            if event.order_ticket:
                changes["order_ticket"] = event.order_ticket
        case OrderPartiallyFilled() | OrderFilled():
            changes |= {
                "filled_volume": event.filled_volume,
                "deals": (*order.deals, event.deal),
                "order_ticket": event.order_ticket or order.order_ticket,
            }
        case (
            OrderRefused()
            | OrderStale()
            | OrderChecked()
            | SendAbandoned()
            | OutcomeUnknown()
            | OrderRejected()
            | OrderFailed()
            | AnomalyDetected()
        ):
            pass
        case _:
            assert_never(event)
    return msgspec.structs.replace(order, **changes)


def fold(order_id: str, events: list[OrderEvent]) -> Order:
    """The state after all events of the order's stream."""
    order = Order(order_id=order_id)
    for event in events:
        order = evolve(order, event)
    return order
