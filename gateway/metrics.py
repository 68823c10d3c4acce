"""Numbers about the running service, counted from what the ledger tells.

Nothing on the way of an order counts: the events that were committed are read from the ledger's tail four times a
second, and before every answer. What is counted are plain integers here; `exposition.py` shows them. Every label comes
from a set that is bounded: a name that a client chose is either known to the broker, or it is `other`.
"""

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import msgspec

from gateway.retcodes import RETCODES
from gateway.slippage import pips_worse
from ledger.events import TOPICS, Recorded
from ledger.order import UNRESOLVED
from ledger.reconcile import CLASSES
from ledger.tail import Tail
from ledger.trade import ZERO

EVERY_S: Final = 0.25
AT_ONCE: Final = 128
IDLE_S: Final = 5.0
OTHER: Final = "other"
MAX_NAMES: Final = 64  # values of one label
MAX_ORDERS: Final = 50_000  # whose times are remembered; working orders may wait for weeks

LATENCIES_S: Final = (
    *(0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    *(30, 60, 300, 3_600, 86_400),
)
COMMITS_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 10)
BATCHES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PIPS: Final = (-10, -5, -3, -2, -1, -0.5, -0.1, 0, 0.1, 0.5, 1, 2, 3, 5, 10, 50)
# From when it was in the ledger, to the intent, the broker's answer, the deal; and from first to last.
STAGES: Final = ("requested_sent", "sent_answered", "answered_filled", "requested_filled")
# How an order can end, as events tell it, and whether they name a category.
OUTCOMES: Final = {
    "order.filled": "filled",
    "order.completed": "completed",
    "order.cancelled": "cancelled",
    "order.expired": "expired",
    "order.refused": "refused",
    "order.stale": "stale",
    "order.rejected": "rejected",
    "order.failed": "failed",
}
# Known from the start, since an increase from nothing to one is none for Prometheus.
ALERTS: Final = (
    *(UNRESOLVED, "reconciliation", "slippage", "slow_broker", "sink_stopped", "halted", "fenced"),
    *("anomaly", "standing_order", "tamper", "disconnected", "login_refused"),
)
DIFFERENCES: Final = tuple((kind, policy) for kind, policies in CLASSES.items() for policy in policies)
_RETCODES: Final = frozenset(one.name for one in RETCODES.values())


class Histogram:
    """How many values are at most each bound, as Prometheus counts them; `counts` has one place more, for the rest."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Counts:
    """A counter by some labels. What is new beyond `most` combinations counts as `other`."""

    __slots__ = ("_most", "values")

    def __init__(self, known: Iterable[tuple[str, ...]] = (), most: int = MAX_NAMES) -> None:
        self.values: dict[tuple[str, ...], float] = dict.fromkeys(known, 0)
        self._most = most

    def add(self, labels: tuple[str, ...], amount: float = 1) -> None:
        values = self.values
        if labels not in values and len(values) >= self._most:
            labels = (OTHER,) * len(labels)
        values[labels] = values.get(labels, 0) + amount


class _Difference(msgspec.Struct, gc=False):
    kind: str
    policy: str


class _Data(msgspec.Struct, gc=False):
    """What is counted of any event. To read this alone takes a third of the time of reading the event."""

    attempt: int = 0
    retcode_name: str = ""
    verdict: str = ""
    latency_s: Decimal = ZERO
    symbol: str = ""
    side: str = ""
    volume: Decimal = ZERO
    price: Decimal = ZERO
    requested_price: Decimal | None = None
    point: Decimal | None = None
    category: str = ""
    kind: str = ""
    differences: list[_Difference] = []
    first: int = 0
    last: int = 0


class _Seen(msgspec.Struct, gc=False):
    recorded_at: datetime
    data: _Data


_read: Final = msgspec.json.Decoder(_Seen).decode


class _Times:
    """When an order came to each stage, as far as it was seen."""

    __slots__ = ("answered", "requested", "sent")

    def __init__(self, requested: datetime) -> None:
        self.requested = requested
        self.sent: datetime | None = None
        self.answered: datetime | None = None


class Metrics:
    """Counts from its start on, as Prometheus expects it. `commits` is emptied of what it holds: seconds of the
    ledger's commits."""

    def __init__(self, tail: Tail, after: int, commits: Callable[[], Iterable[float]] = tuple) -> None:
        self._tail, self._after, self._commits = tail, after, commits
        self._times: dict[str, _Times] = {}
        self._reading = asyncio.Lock()
        self._connected = 0
        self.events: dict[str, int] = dict.fromkeys(sorted(TOPICS), 0)
        self.outcomes = Counts((one, "") for one in ("filled", "completed", "cancelled", "expired", "stale"))
        self.answers = Counts(most=len(_RETCODES) + 1)
        self.stages = {stage: Histogram(LATENCIES_S) for stage in STAGES}
        self.calls = Histogram(LATENCIES_S)
        self.commit_s = Histogram(COMMITS_S)
        self.batch = Histogram(BATCHES)
        self.slippage = Histogram(PIPS)
        self.fills = Counts()
        self.lots = Counts()
        self.alerts = Counts((kind,) for kind in ALERTS)
        self.differences = Counts(DIFFERENCES)
        self.broker_reconnects = 0
        self._handlers: dict[str, Callable[[Recorded, _Data, datetime], None]] = {
            **dict.fromkeys(OUTCOMES, self._ended),
            "order.requested": self._requested,
            "order.send_started": self._sent,
            "order.broker_answered": self._answered,
            "order.partially_filled": self._filled,
            "order.filled": self._filled,
            "order.anomaly_detected": self._anomaly,
            "account.alert_raised": self._alert,
            "account.halted": lambda *_: self.alerts.add(("halted",)),
            "account.disconnected": lambda *_: self.alerts.add(("disconnected",)),
            "account.login_refused": lambda *_: self.alerts.add(("login_refused",)),
            "writer.took_over": lambda *_: self.alerts.add(("fenced",)),
            "account.reconciled": self._reconciled,
            "account.connected": self._connected_again,
            "writer.batch_sealed": self._sealed,
        }

    async def run(self) -> None:
        """Counts for ever."""
        while True:
            await self._tail.wait(self._after, IDLE_S)
            await asyncio.sleep(EVERY_S)
            await self.catch_up()

    async def catch_up(self) -> None:
        """Returns when all is counted that was committed before the call."""
        async with self._reading:
            while records := await self._tail.read(self._after, AT_ONCE):
                self.take(records)
                self._after = records[-1].seq
                await asyncio.sleep(0)
            for seconds in self._commits():
                self.commit_s.observe(seconds)

    def take(self, batch: Iterable[Recorded]) -> None:
        """Counts these events. Of those that only count nothing is read."""
        events, handlers = self.events, self._handlers
        for recorded in batch:
            topic = recorded.topic
            events[topic] += 1
            handler = handlers.get(topic)
            if handler is not None:
                seen = _read(recorded.state)
                handler(recorded, seen.data, seen.recorded_at)

    # --- events of orders ---------------------------------------------------------------------------------------

    def _requested(self, recorded: Recorded, _: _Data, at: datetime) -> None:
        times = self._times
        times[recorded.stream] = _Times(at)
        if len(times) > MAX_ORDERS:
            del times[next(iter(times))]

    def _sent(self, recorded: Recorded, event: _Data, at: datetime) -> None:
        times = self._times.get(recorded.stream)
        if times is None:
            return
        if event.attempt == 1:
            self.stages["requested_sent"].observe(_seconds(times.requested, at))
        times.sent = at

    def _answered(self, recorded: Recorded, event: _Data, at: datetime) -> None:
        name = event.retcode_name
        self.answers.add((name if name in _RETCODES else OTHER, event.verdict))
        self.calls.observe(float(event.latency_s))
        times = self._times.get(recorded.stream)
        if times is not None:
            if times.sent is not None:
                self.stages["sent_answered"].observe(_seconds(times.sent, at))
            times.answered = at

    def _filled(self, recorded: Recorded, event: _Data, at: datetime) -> None:
        # The broker deals in what it knows, so its symbols are as many as it has.
        self.fills.add((event.symbol, event.side))
        self.lots.add((event.symbol, event.side), float(event.volume))
        pips = pips_worse(event)
        if pips is not None:
            self.slippage.observe(float(pips))
        times = self._times.get(recorded.stream)
        if times is not None:
            if times.answered is not None:
                self.stages["answered_filled"].observe(_seconds(times.answered, at))
            self.stages["requested_filled"].observe(_seconds(times.requested, at))
        if recorded.topic == "order.filled":
            self._ended(recorded, event, at)

    def _ended(self, recorded: Recorded, event: _Data, _: datetime) -> None:
        self.outcomes.add((OUTCOMES[recorded.topic], event.category))
        self._times.pop(recorded.stream, None)

    # --- the rest -----------------------------------------------------------------------------------------------

    def _alert(self, _: Recorded, event: _Data, __: datetime) -> None:
        self.alerts.add((event.kind,))

    def _anomaly(self, _: Recorded, event: _Data, __: datetime) -> None:
        self.alerts.add((UNRESOLVED if event.kind == UNRESOLVED else "anomaly",))

    def _reconciled(self, _: Recorded, event: _Data, __: datetime) -> None:
        if event.differences:
            self.alerts.add(("reconciliation",))
        for one in event.differences:
            self.differences.add((one.kind, one.policy))

    def _connected_again(self, *_: Any) -> None:
        self._connected += 1
        self.broker_reconnects = self._connected - 1

    def _sealed(self, _: Recorded, event: _Data, __: datetime) -> None:
        self.batch.observe(event.last - event.first + 1)


def _seconds(begin: datetime, end: datetime) -> float:
    """Never below 0: the clock may have been set back."""
    return max(0.0, (end - begin).total_seconds())
