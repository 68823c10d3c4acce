"""Asks the plan what is next for an order, with the real clock and how long this process has waited."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from ledger.order import AT_BROKER, Order, Status
from ledger.plan import Policy, Step, next_step
from ledger.writer import Ledger

_LAST: Final = datetime.max.replace(tzinfo=UTC)


def at_broker_first(order: Order) -> tuple[bool, datetime]:
    """The order in which open orders are taken up: what may be at the broker, then the rest by age."""
    since = order.requested.age_from if order.requested else None
    return order.status not in AT_BROKER, since or _LAST


class Stepper:
    def __init__(self, ledger: Ledger, clock: Callable[[], datetime], policy: Policy) -> None:
        self._ledger, self._clock, self._policy = ledger, clock, policy
        self._begun: dict[str, Policy] = {}  # of orders that began under an earlier policy
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
        return next_step(order, self._clock(), self.policy_of(order.order_id), waited_s=waited_s, halted=halted)

    def use(self, policy: Policy) -> None:
        """For orders that come from now on: those that are open go to their end under the policy they began with."""
        self._begun = {one: self.policy_of(one) for one in self._ledger.open_orders}
        self._policy = policy

    def policy_of(self, order_id: str) -> Policy:
        return self._begun.get(order_id, self._policy)

    def forget(self, order_id: str) -> None:
        """It waits no more."""
        self._waiting.pop(order_id, None)

    def waiting(self) -> list[str]:
        return list(self._waiting)
