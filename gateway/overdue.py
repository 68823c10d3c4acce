"""Orders that should have moved on and have not: a person is told, and their next step is asked for again.

Whatever an order waits for wakes it: a timer, the connection, a target that is given back. So none should be found
here but behind a queue that is too long, or a target whose holder has no outcome. Should there be a hole in that, the
order must not stand silently until the next start.
"""

import asyncio
import time
from collections.abc import Callable
from datetime import datetime
from typing import Final

from gateway.alerts import Alerts
from gateway.guarded import cancelled
from gateway.submit import Submitter
from ledger.account_events import AlertRaised
from ledger.order import IDLE, Order, Status
from ledger.writer import Ledger

LOOK_EVERY_S: Final = 10.0
STANDS_S: Final = 60.0
STANDING: Final = "standing_order"


class Overdue:
    """Looks for orders without an event for `stands_s` in a state in which the gateway has to act."""

    def __init__(
        self,
        ledger: Ledger,
        submitter: Submitter,
        alerts: Alerts,
        clock: Callable[[], datetime],
        stands_s: float = STANDS_S,
    ) -> None:
        self._ledger, self._submitter, self._alerts = ledger, submitter, alerts
        self._clock, self._stands_s = clock, stands_s
        self._seen: dict[str, tuple[int, float]] = {}  # the version of each, and since when (monotonic)
        self._told: set[tuple[str, int]] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> "asyncio.Task[None]":
        self._task = asyncio.create_task(self._run(), name="overdue")
        return self._task

    async def stop(self) -> None:
        await cancelled(self._task)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            self.look()

    def look(self) -> list[str]:
        """The orders that are overdue now."""
        now, clock = time.monotonic(), self._clock()
        before, self._seen, overdue = self._seen, {}, []
        for order in self._ledger.open_orders.values():
            if not _has_to_act(order, clock):
                continue
            version, since = before.get(order.order_id, (0, 0.0))
            if version != order.version:
                since = now
            self._seen[order.order_id] = (order.version, since)
            if now - since >= self._stands_s:
                overdue.append(order)
        for order in overdue:
            self._tell(order)
        found = [order.order_id for order in overdue]
        self._submitter.recheck(found)
        return found

    def _tell(self, order: Order) -> None:
        key = (order.order_id, order.version)
        if key in self._told:
            return
        self._told = {(one, version) for one, version in self._told if one in self._seen} | {key}
        text = (
            f"order {order.order_id} has stood at {order.status.value} for {self._stands_s:g} s: its target is busy, "
            "the queue to the broker too long, or the gateway has lost sight of it"
        )
        self._alerts.raise_(AlertRaised(kind=STANDING, text=text, order_id=order.order_id, symbol=order.symbol))


def _has_to_act(order: Order, now: datetime) -> bool:
    """A parked order waits visibly, and one that waits for its next attempt until that is due."""
    if order.status is Status.WAITING:
        return order.not_before is None or order.not_before <= now
    return order.status in IDLE and order.status is not Status.PARKED
