"""The ledger of a campaign, followed from outside, by another process than the one that writes it.

What it shows is durable: so a kill upon an event falls behind that commit, and before what follows from it.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Final

from ledger.events import event_of
from ledger.order import Order, Status, evolve
from ledger.order_events import AnomalyDetected
from ledger.store import open_file

LOOK_EVERY_S: Final = 0.0002
PAGE: Final = 1_000


class Watch:
    """`orders`: the state of each order, as far as it was read; `alerted`: those that a person was told of."""

    def __init__(self, ledger: Path) -> None:
        self._store = open_file(ledger)
        self.seq = 0
        self.orders: dict[str, Order] = {}
        self.alerted: set[str] = set()
        self.topics: Counter[str] = Counter()

    def look(self) -> set[str]:
        """Reads on; the topics of what is new."""
        found: set[str] = set()
        while records := self._store.read(self.seq, PAGE):
            for recorded in records:
                self.topics[recorded.topic] += 1
                found.add(recorded.topic)
                event = event_of(recorded)
                kind, _, order_id = recorded.stream.partition("/")
                if kind == "order":
                    order = self.orders.get(order_id) or Order(order_id=order_id)
                    self.orders[order_id] = evolve(order, event)  # type: ignore[arg-type]  # an order's stream holds its events
                named = order_id if isinstance(event, AnomalyDetected) else getattr(event, "order_id", "")
                if recorded.topic in ("order.anomaly_detected", "account.alert_raised"):
                    self.alerted.add(named)
            self.seq = records[-1].seq
        return found

    async def until(self, topics: Collection[str], within_s: float) -> bool:
        """Returns as soon as an event of one of the topics is durable; False when none was in time."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if self.look() & set(topics):
                return True
            await asyncio.sleep(LOOK_EVERY_S)
        return False

    def in_doubt(self) -> set[str]:
        """Orders whose intent is durable, and whose answer is not."""
        self.look()
        return {one.order_id for one in self.orders.values() if one.status is Status.SENDING}

    def close(self) -> None:
        self._store.close()
