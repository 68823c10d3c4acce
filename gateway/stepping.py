"""Asks the plan what is next for an order, with the real clock and how long this process has waited."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from ledger.order import Order, Status
from ledger.plan import Policy, Step, next_step
from ledger.writer import Ledger

_LAST: Final = datetime.max.replace(tzinfo=UTC)


def at_broker_first(order: Order) -> tuple[bool, datetime]:
    """The order in which open orders are taken up: what may be at the broker, then the rest by age."""
    since = order.requested.age_from if order.requested else None
    return order.status not in (Status.SENDING, Status.UNKNOWN), since or _LAST


class Stepper:
    def __init__(self, ledger: Ledger, clock: Callable[[], datetime], policy: Policy) -> None:
        self._ledger, self._clock, self._policy = ledger, clock, policy
        self._waiting: dict[str, tuple[int, float]] = {}  # the failed attempt, and since when (monotonic)

    def step(self, order: Order) -> Step:
        """What is next. A wait is measured monotonically: the wall clock may go back meanwhile."""
        waited_s = 0.0
        if order.status in (Status.WAITING, Status.PARKED):
            attempt, since = self._waiting.get(order.order_id, (-1, 0.0))
            if attempt != order.attempt:
                since = time.monotonic()
                self._waiting[order.order_id] = (order.attempt, since)
            waited_s = time.monotonic() - since
        halted = self._ledger.account.halted
        return next_step(order, self._clock(), self._policy, waited_s=waited_s, halted=halted)

    def forget(self, order_id: str) -> None:
        """It waits no more."""
        self._waiting.pop(order_id, None)

    def waiting(self) -> list[str]:
        return list(self._waiting)
