"""Given–when–then for an order, and short ways to write its commands and events.

given(*placed("ord_1")).when(start(1)).then(SendStarted(attempt=1, request=...))
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, TypeVar

import msgspec

from ledger.commands import (
    Again,
    EndCounted,
    OrderCommand,
    ReceiveOrder,
    RecordAnswer,
    RecordCheck,
    RecordDeals,
    RecordEvidence,
    RecordModified,
    RecordNotSent,
    RecordOrderState,
    RecordUnknown,
    ResolveOutcome,
    StartSend,
)
from ledger.decide import decide
from ledger.errors import InvariantViolated
from ledger.intake import read_order
from ledger.order import Order, evolve, fold
from ledger.order_events import OrderEvent
from ledger.trade import (
    ACTION_CLOSE_BY,
    ACTION_DEAL,
    ACTION_MODIFY,
    ACTION_PENDING,
    ACTION_REMOVE,
    ACTION_SLTP,
    BrokerOrder,
    CheckResult,
    Deal,
    Position,
    TargetImage,
    TradeRequest,
    TradeResult,
)
from ledger.values import comment_of, magic_of

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
ORDER_ID = "ord_1"
D = Decimal
E = TypeVar("E", bound=OrderEvent)


class given:
    """An order with a past: commands lived through, or events as they would be loaded."""

    def __init__(self, *past: OrderCommand | OrderEvent) -> None:
        self.order = Order(order_id=ORDER_ID)
        self.events: list[OrderEvent] = []
        self.error: InvariantViolated | None = None
        for one in past:
            for event in [one] if isinstance(one, OrderEvent) else decide(self.order, one):
                self.order = evolve(self.order, event)

    def when(self, *commands: OrderCommand) -> "given":
        """Gives the commands one after the other; collects the events of all."""
        for command in commands:
            try:
                new = decide(self.order, command)
            except InvariantViolated as error:
                self.error = error
                return self
            for event in new:
                self.order = evolve(self.order, event)
            self.events += new
        return self

    def then(self, *expected: OrderEvent | type) -> "given":
        """The events that followed: each as it is, or only its type."""
        assert self.error is None
        shown = [event if isinstance(want, OrderEvent) else type(event) for event, want in self._pairs(expected)]
        assert shown == list(expected)
        return self

    def then_nothing(self) -> "given":
        return self.then()

    def then_violates(self, text: str) -> "given":
        assert self.error is not None
        assert text in str(self.error)
        return self

    def the(self, kind: type[E]) -> E:
        """The one event of this kind that followed."""
        (found,) = [event for event in self.events if isinstance(event, kind)]
        return found

    def and_order(self, **expected: Any) -> "given":
        """What the order looks like afterwards."""
        assert {name: getattr(self.order, name) for name in expected} == expected
        return self

    def _pairs(self, expected: Sequence[OrderEvent | type]) -> list[tuple[OrderEvent, Any]]:
        padded = [*expected, *[object] * max(len(self.events) - len(expected), 0)]
        return list(zip(self.events, padded, strict=False))


def message(**changes: Any) -> bytes:
    """The bytes of a sound market order; None leaves a field out."""
    fields = {"order_id": ORDER_ID, "symbol": "EURUSD", "order_type": "buy", "volume": "0.3"} | changes
    return msgspec.json.encode({name: value for name, value in fields.items() if value is not None})


def receive(payload: bytes | None = None, *, unrecorded: int = 0, **changes: Any) -> ReceiveOrder:
    received = read_order(message(**changes) if payload is None else payload)
    return ReceiveOrder(received=received, age_from=NOW, unrecorded=unrecorded)


def check(passed: bool = True, retcode: int = 0) -> RecordCheck:
    return RecordCheck(result=CheckResult(retcode=retcode), passed=passed, retcode_name=f"RETCODE_{retcode}")


def start(attempt: int = 1, *, before: TargetImage | None = None, **changes: Any) -> StartSend:
    fields = {
        "action": ACTION_DEAL,
        "symbol": "EURUSD",
        "volume": D("0.3"),
        "magic": magic_of(ORDER_ID, attempt),
        "comment": comment_of(ORDER_ID, attempt),
    }
    return StartSend(attempt=attempt, request=TradeRequest(**(fields | changes)), before=before)


def again(delay_s: float = 5) -> Again:
    return Again(delay_s=D(str(delay_s)), not_before=NOW + timedelta(seconds=delay_s))


RETCODES = {"success": 10009, "ambiguous": 10012, "retriable": 10004, "wait": 10018, "fatal": 10019}


def answer(
    verdict: str = "success",
    *deals: Deal,
    attempt: int = 1,
    again: Again | None = None,
    point: Decimal | None = None,
    broker_utc_offset_s: int = 0,
    **result: Any,
) -> RecordAnswer:
    """The broker's answer; a success names order 900 unless told otherwise."""
    fields = {"retcode": RETCODES[verdict]} | ({"order": 900} if verdict == "success" else {}) | result
    return RecordAnswer(
        attempt=attempt,
        result=TradeResult(**fields),
        retcode_name=f"RETCODE_{fields['retcode']}",
        verdict=verdict,
        description="as the broker put it",
        advice="what to do",
        latency_s=D("0.0016"),
        deals=deals,
        again=again,
        point=point,
        broker_utc_offset_s=broker_utc_offset_s,
    )


def deal(ticket: int = 1, volume: str = "0.3", **changes: Any) -> Deal:
    fields = {"order": 900, "position_id": 900, "symbol": "EURUSD", "price": D("1.1")} | changes
    return Deal(ticket=ticket, volume=D(volume), **fields)


def deals(*found: Deal) -> RecordDeals:
    return RecordDeals(deals=found)


def end_counted(*found: Deal) -> EndCounted:
    return EndCounted(deals=found)


def not_sent(attempt: int = 1) -> RecordNotSent:
    return RecordNotSent(attempt=attempt, code=-10005, reason="no connection")


def unknown(attempt: int = 1) -> RecordUnknown:
    return RecordUnknown(attempt=attempt, code=-10005, reason="no reply before the deadline")


def evidence(*, complete: bool = True, settled: bool = True, attempt: int = 1, **found: Any) -> RecordEvidence:
    return RecordEvidence(attempt=attempt, complete=complete, settled=settled, **found)


def word(resolution: str, order_ticket: int = 0) -> ResolveOutcome:
    """An operator's."""
    return ResolveOutcome(resolution=resolution, reason="seen at the broker", order_ticket=order_ticket)


def broker_order(ticket: int = 900, state: int = 1, **changes: Any) -> BrokerOrder:
    return BrokerOrder(ticket=ticket, state=state, symbol="EURUSD", **changes)


def order_state(state: int, *, by: str = "", ticket: int = 900, **changes: Any) -> RecordOrderState:
    return RecordOrderState(order=broker_order(ticket, state, **changes), by=by)


def position(identifier: int = 700, volume: str = "0.3", **changes: Any) -> Position:
    fields = {"ticket": identifier, "identifier": identifier, "symbol": "EURUSD", "time_update_msc": 1_000} | changes
    return Position(volume=D(volume), **fields)


def moved_stops(sl: str, tp: str = "0", *, by: str = "") -> RecordModified:
    return RecordModified(position=position(900, sl=D(sl), tp=D(tp)), by=by)


def replayed(events: Sequence[OrderEvent]) -> Order:
    return fold(ORDER_ID, list(events))


# --- pasts ------------------------------------------------------------------------------------------------------

requested = (receive(),)
ready = (*requested, check())
sending = (*ready, start(1))
lost = (*sending, unknown())
abandoned = (*sending, not_sent())
waiting = (*sending, answer("retriable", again=again()))
parked = (*sending, answer("wait", again=again()))
rejected = (*sending, answer("fatal"))
proven_absent = (*lost, evidence())
partly = (*sending, answer("success", deal(volume="0.1")))
filled = (*sending, answer("success", deal()))

# A pending order: where it should trade, and as what it is sent.
limit_order = receive(order_type="buy_limit", price="1.05")
limit_sent = start(1, action=ACTION_PENDING, type=2, price=D("1.05"), type_filling=2)
limit_sending = (limit_order, check(), limit_sent)
limit_lost = (*limit_sending, unknown())
placed = (*limit_sending, answer("success"))
limit_partly = (*placed, deals(deal(volume="0.1", price=D("1.05"))))
limit_filled = (*placed, deals(deal(price=D("1.05"))))
cancelled = (*placed, order_state(2))
expired = (*placed, order_state(6))

# Requests on a target, as it was before: position 700 or order 800.
holding = TargetImage(position=position(700, sl=D("1.0"), tp=D("1.2")))
working = TargetImage(order=broker_order(800, price_open=D("1.05"), sl=D("1.0")))
opposite = TargetImage(position=position(700), position_by=position(701, "0.2", type=1))

close_request = receive(action="close", symbol=None, order_type=None, volume=None, position_id=700)
close_sent = start(1, type=1, position=700, before=holding)
close_lost = (close_request, close_sent, unknown())

stops_request = receive(action="modify", symbol=None, order_type=None, volume=None, position_id=700, sl="1.01", tp="0")
stops_sent = start(1, action=ACTION_SLTP, position=700, volume=D(0), sl=D("1.01"), tp=D(0), before=holding)
stops_sending = (stops_request, stops_sent)
stops_lost = (*stops_sending, unknown())

modify_request = receive(action="modify", symbol=None, order_type=None, volume=None, order_ticket=800, price="1.06")
modify_sent = start(1, action=ACTION_MODIFY, order=800, volume=D(0), price=D("1.06"), sl=D("1.0"), before=working)
modify_lost = (modify_request, modify_sent, unknown())

cancel_request = receive(action="cancel", symbol=None, order_type=None, volume=None, order_ticket=800)
cancel_sent = start(1, action=ACTION_REMOVE, order=800, volume=D(0), before=working)
cancel_lost = (cancel_request, cancel_sent, unknown())

close_by_request = receive(
    action="close_by", symbol=None, order_type=None, volume=None, position_id=700, position_by_id=701
)
close_by_sent = start(1, action=ACTION_CLOSE_BY, type=8, position=700, position_by=701, volume=D(0), before=opposite)
close_by_lost = (close_by_request, close_by_sent, unknown())
