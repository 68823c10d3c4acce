"""Given–when–then for an order, and short ways to write its commands and events.

given(*placed("ord_1")).when(start(1)).then(SendStarted(attempt=1, request=...))
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec

from ledger.commands import (
    OrderCommand,
    ReceiveOrder,
    RecordAnswer,
    RecordCheck,
    RecordEvidence,
    RecordNotSent,
    RecordUnknown,
    StartSend,
)
from ledger.decide import decide
from ledger.errors import InvariantViolated
from ledger.intake import read_order
from ledger.order import Order, evolve, fold
from ledger.order_events import OrderEvent
from ledger.trade import ACTION_DEAL, BrokerOrder, CheckResult, Deal, TradeRequest, TradeResult
from ledger.values import comment_of, magic_of

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
ORDER_ID = "ord_1"


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


def start(attempt: int = 1, **changes: Any) -> StartSend:
    fields = {
        "action": ACTION_DEAL,
        "symbol": "EURUSD",
        "volume": Decimal("0.3"),
        "magic": magic_of(ORDER_ID, attempt),
        "comment": comment_of(ORDER_ID, attempt),
    }
    return StartSend(attempt=attempt, request=TradeRequest(**(fields | changes)))


def answer(verdict: str = "success", *deals: Deal, attempt: int = 1, **result: Any) -> RecordAnswer:
    retcode = {"success": 10009, "ambiguous": 10012, "retriable": 10004, "wait": 10024, "fatal": 10019}[verdict]
    return RecordAnswer(
        attempt=attempt,
        result=TradeResult(retcode=retcode, **({"order": 900} if verdict == "success" else {}) | result),
        retcode_name=f"RETCODE_{retcode}",
        verdict=verdict,
        description="as the broker put it",
        deals=deals,
    )


def deal(ticket: int = 1, volume: str = "0.3", **changes: Any) -> Deal:
    fields = {"order": 900, "position_id": 900, "symbol": "EURUSD", "price": Decimal("1.1")} | changes
    return Deal(ticket=ticket, volume=Decimal(volume), **fields)


def not_sent(attempt: int = 1) -> RecordNotSent:
    return RecordNotSent(attempt=attempt, code=-10005, reason="no connection")


def unknown(attempt: int = 1) -> RecordUnknown:
    return RecordUnknown(attempt=attempt, code=-10005, reason="no reply before the deadline")


def evidence(*, complete: bool = True, settled: bool = True, attempt: int = 1, **found: Any) -> RecordEvidence:
    return RecordEvidence(attempt=attempt, complete=complete, settled=settled, **found)


def broker_order(ticket: int = 900, state: int = 1, **changes: Any) -> BrokerOrder:
    return BrokerOrder(ticket=ticket, state=state, symbol="EURUSD", **changes)


def replayed(events: Sequence[OrderEvent]) -> Order:
    return fold(ORDER_ID, list(events))
