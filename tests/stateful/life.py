"""A ledger that is led through crashes, lost replies and second writers, and checked against a journal of all it was
told: what is stored is a prefix of the journal, cut between two decisions, and holds all that was acknowledged."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

from ledger.commands import OrderCommand, StartSend
from ledger.errors import LedgerFenced, LedgerLocked, LedgerUnavailable
from ledger.events import WRITER_STREAM, BatchSealed, Checkpointed, Event, Recorded, decode, order_stream
from ledger.order import Order, evolve, fold
from ledger.order_events import OrderEvent
from ledger.seal import verify
from ledger.store import EventStore, open_store
from ledger.writer import Cause, Committed, Executed, Ledger

CAUSE: Final = Cause(actor="client")
PATIENCE_S: Final = 20.0


class Fault(StrEnum):
    """What happens to one insert of the store."""

    NONE = "none"
    REPLY_LOST = "reply lost"
    REQUEST_LOST = "request lost"
    AWAY = "away from now on"
    KILLED_BEFORE = "killed before"
    KILLED_AFTER = "killed after"


class Crash(StrEnum):
    """How a process ends."""

    IDLE = "before the writer took anything"
    BEFORE_COMMIT = "before a commit"
    AFTER_COMMIT = "after a commit, before its reply"
    AWAY = "the database does not come back"
    AWAY_STORED = "the database stores and does not come back"


_FAULTS: Final = {
    Crash.BEFORE_COMMIT: [Fault.KILLED_BEFORE],
    Crash.AFTER_COMMIT: [Fault.KILLED_AFTER],
    Crash.AWAY: [Fault.AWAY],
    Crash.AWAY_STORED: [Fault.REPLY_LOST, Fault.AWAY],
}


class Killed(BaseException):
    """The process is gone: nobody catches this and goes on."""


class FaultyStore:
    """A real store; `faults` says what happens to the inserts to come, one each."""

    def __init__(self, store: EventStore, *, is_local: bool) -> None:
        self._store, self.is_local = store, is_local
        self.faults: deque[Fault] = deque()
        self._dead = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def insert(self, batch: Sequence[Recorded]) -> None:
        fault = self.faults.popleft() if self.faults else Fault.NONE
        if fault is Fault.AWAY:
            self.faults.appendleft(fault)
        if self._dead or fault is Fault.KILLED_BEFORE:
            self._dead = True
            raise Killed
        if fault in (Fault.REQUEST_LOST, Fault.AWAY):
            raise LedgerUnavailable("the database is away")
        self._store.insert(batch)
        if fault is Fault.KILLED_AFTER:
            self._dead = True
            raise Killed
        if fault is Fault.REPLY_LOST:
            raise LedgerUnavailable("the connection was lost")


class UnlockedStore(FaultyStore):
    """The store of a writer that believes to hold the lock: another took it by force."""

    class Lock:
        def check(self) -> None: ...
        def release(self) -> None: ...

    def lock(self) -> Lock:
        return self.Lock()


class Told(NamedTuple):
    """One decision: its events, and the promise of their durability."""

    stream: str
    events: list[Any]
    durable: "asyncio.Future[Committed]"

    @property
    def acknowledged(self) -> bool:
        return self.durable.done() and not self.durable.cancelled() and self.durable.exception() is None


class Life:
    """The ledger under test, on an event loop of its own that turns only when it is told to: what is executed in
    between waits in the writer's queue. `on_sent` hears of every intent once it is durable."""

    def __init__(self, url: str, clock: Callable[[], datetime], *, is_local: bool) -> None:
        self._url, self._clock, self._is_local = url, clock, is_local
        self.loop = asyncio.new_event_loop()
        self.waiting: list[Told] = []
        self.orders: dict[str, Order] = {}
        self._events: dict[str, list[OrderEvent]] = {}
        self._read_to = 0
        self.on_sent: Callable[[str, StartSend], None] = lambda order_id, command: None
        self._intents: list[tuple[str, StartSend, asyncio.Future[Committed]]] = []
        self._ledger: Ledger | None = None
        self.open()

    # --- telling --------------------------------------------------------------------------------------------------

    @property
    def ledger(self) -> Ledger:
        assert self._ledger is not None
        return self._ledger

    @property
    def store(self) -> FaultyStore:
        return self.ledger._store  # type: ignore[return-value]

    def order(self, order_id: str) -> Order:
        """The state of the order, pending events included."""
        if self.ledger.order(order_id) is None:
            self._load(order_id)
        return self.ledger.order(order_id) or Order(order_id=order_id)

    def _load(self, order_id: str) -> None:
        if self._is_local:  # then it does not give way to the writer
            with self._inside(), contextlib.suppress(StopIteration):
                self.ledger.load([order_id]).send(None)
                raise AssertionError("a local store is read at once")
            return
        self.settle()  # how far the writer gets meanwhile would be chance
        self.run(self.ledger.load([order_id]))

    def execute(self, order_id: str, command: OrderCommand, *, soon: bool = False) -> Executed:
        """Decides, and lets the result wait: the loop does not turn."""
        before = self.order(order_id)
        with self._inside():
            executed = self.ledger.execute(order_id, command, CAUSE, soon=soon)
        assert executed.order == _evolved(before, executed.events) == self.ledger.order(order_id)
        if executed.events:
            self.waiting.append(Told(order_stream(order_id), executed.events, executed.durable))
        if isinstance(command, StartSend):
            self._intents.append((order_id, command, executed.durable))
        return executed

    def append(self, stream: str, event: Event) -> None:
        with self._inside():
            self.waiting.append(Told(stream, [event], self.ledger.append(stream, event, CAUSE)))

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, PATIENCE_S))

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        """As if called by a task of the loop, which has no turn meanwhile."""
        asyncio._set_running_loop(self.loop)
        try:
            yield
        finally:
            asyncio._set_running_loop(None)

    # --- waiting for durability -----------------------------------------------------------------------------------

    def settle(self, *, after: int = 0, fault: Fault = Fault.NONE) -> None:
        """All that waits becomes durable, although the commit after `after` others meets the fault."""
        self.store.faults.extend([Fault.NONE] * after + [fault])
        self._let_it_commit()
        self.store.faults.clear()
        for told in self.waiting:
            told.durable.result()
        self.acknowledge()
        self.read_on()
        assert not self.waiting
        for order_id, order in self.orders.items():
            assert self.ledger.order(order_id) in (order, None)
        assert self.ledger.open_orders == self._open()

    def _let_it_commit(self) -> None:
        """Until nothing waits any more, or the writer has failed."""
        self.run(_ended(*[told.durable for told in self.waiting]))
        # It may have something of its own to add: whether that is stored must not be chance.
        while self.ledger._wake.is_set() and not self.ledger.failure.done():
            self.run(asyncio.sleep(0))

    def acknowledge(self) -> None:
        """What is durable now may have its effect."""
        for intent in list(self._intents):
            order_id, command, durable = intent
            if durable.done():
                self._intents.remove(intent)
                if not durable.exception():
                    self.on_sent(order_id, command)

    def read_on(self) -> None:
        """Reads what is stored since, and finds it in the journal: the same events in the same order, sealed."""
        journal = deque((told, event) for told in self.waiting for event in told.events)
        found = self.store.read(self._read_to, 10_000)
        for record in found:
            self._read_to += 1
            assert record.seq == self._read_to
            event = decode(record).data
            if record.stream == WRITER_STREAM:
                if isinstance(event, BatchSealed):  # a decision is never cut in two
                    assert not journal or journal[0][1] is journal[0][0].events[0]
                elif isinstance(event, Checkpointed):
                    assert set(event.open_orders) == self._open().keys()
                continue
            told, expected = journal.popleft()
            assert (record.stream, event) == (told.stream, expected)
            if record.stream.startswith("order/"):
                self._stored(record.stream.removeprefix("order/"), event)
        assert not found or found[-1].topic == "writer.batch_sealed"
        unstored = {id(told) for told, _ in journal}
        self.waiting = [told for told in self.waiting if id(told) in unstored]
        assert not any(told.acknowledged for told in self.waiting), "acknowledged, and not stored"

    def _stored(self, order_id: str, event: Any) -> None:
        self._events.setdefault(order_id, []).append(event)
        self.orders[order_id] = evolve(self.orders.get(order_id) or Order(order_id=order_id), event)

    def _open(self) -> dict[str, Order]:
        return {order_id: order for order_id, order in self.orders.items() if order.is_open}

    # --- ends and beginnings --------------------------------------------------------------------------------------

    def open(self, store: type[FaultyStore] = FaultyStore) -> None:
        """A new process on the same ledger: it knows all that is stored, and nothing else."""
        self._ledger = self.run(self._opened(store))
        self._ledger_is_as_stored()

    async def _opened(self, store: type[FaultyStore]) -> Ledger:
        while True:
            inner = open_store(self._url)
            try:
                return await Ledger.open(
                    store(inner, is_local=self._is_local),  # type: ignore[arg-type]
                    login=5001,
                    server="Demo",
                    patience_s=0.03,
                    clock=self._clock,
                    build="test",
                )
            except LedgerLocked:  # a server may take a moment to notice that the process before is gone
                inner.close()
                if inner.is_local:
                    raise
                await asyncio.sleep(0.01)

    def _ledger_is_as_stored(self) -> None:
        self.read_on()
        self.waiting.clear()
        self._intents.clear()
        assert self.ledger.open_orders == self._open()

    def crash(self, how: Crash, after: int = 0) -> None:
        """The process ends like this, at the commit after `after` others; the next one finds what was stored."""
        if how is Crash.IDLE:
            with self._inside():
                self.ledger._task.cancel()  # type: ignore[union-attr]
        else:
            self.store.faults.extend([Fault.NONE] * after + _FAULTS[how])
            self._let_it_commit()
        self.run(_dropped(self.ledger))
        self.acknowledge()
        self.open()

    def restart(self) -> None:
        """A clean stop and start: all that waited is durable."""
        self.run(self.ledger.close())
        assert all(told.acknowledged for told in self.waiting)
        self.acknowledge()
        self.open()

    def overtaken(self, mine: tuple[str, OrderCommand], theirs: tuple[str, OrderCommand], *, ahead: bool) -> None:
        """A second writer takes the ledger over and decides `theirs`, before the first decides `mine` (`ahead`) or
        at the same time. One of them goes on, the other stops; nothing is mixed."""
        self.settle()
        first, (my_id, my_command), (their_id, their_command) = self.ledger, mine, theirs
        self.order(my_id)
        ahead = ahead or not self._is_local  # from other threads it would be chance who is first
        self.open(UnlockedStore)
        second = self.ledger
        self.order(their_id)
        with self._inside():
            promises = [(second, their_id, second.execute(their_id, their_command, CAUSE))]
        if ahead:
            self.run(_ended(promises[0][2].durable))
        with self._inside():
            promises.append((first, my_id, first.execute(my_id, my_command, CAUSE)))
        self.run(_ended(*[executed.durable for *_, executed in promises]))
        kept = [one for one in promises if one[2].durable.exception() is None]
        assert len(kept) == 1
        winner, order_id, executed = kept[0]
        loser = first if winner is second else second
        assert not (ahead and winner is first)
        assert isinstance(loser.failure.result(), LedgerFenced)
        self.waiting = [Told(order_stream(order_id), executed.events, executed.durable)]
        for one in (loser, winner):
            self.run(one.close())
        self.open()

    def forget(self) -> None:
        """Orders that ended leave the memory; the store brings them back."""
        self.settle()
        self.ledger._ended.clear()

    def check_all(self) -> None:
        """The whole ledger from its first event: sealed, dense, and the same state by replay."""
        records = list(self.store.scan())
        found = verify(records)
        assert found.ok, found.problem
        assert [one.seq for one in records] == list(range(1, len(records) + 1))
        assert self.orders == {order_id: fold(order_id, events) for order_id, events in self._events.items()}

    def end(self) -> None:
        """Frees everything, whatever happened before."""
        if self._ledger is not None:
            self.run(_dropped(self._ledger))
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


def _evolved(order: Order, events: Sequence[OrderEvent]) -> Order:
    for event in events:
        order = evolve(order, event)
    return order


async def _ended(*futures: "asyncio.Future[Committed]") -> None:
    await asyncio.gather(*futures, return_exceptions=True)


async def _dropped(ledger: Ledger) -> None:
    """The end of a process: what is not stored is gone, the lock is free."""
    task = ledger._task
    assert task is not None
    await ledger._end()
    ledger._lock.release()
    ledger._store.close()
    if not task.cancelled():
        task.exception()  # looked at: the loop need not complain
