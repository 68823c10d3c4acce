"""The gateway in the process of a test: a real ledger, real terminal children, a real simulated broker.

Without message bus and projections, so it starts in a moment; what would be told to upstream is read off the events.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

from gateway.config import Settings, load
from gateway.connection import Connection
from gateway.messages import Message, outgoing
from gateway.reconcile import Reconciler
from gateway.simulated.link import stop_broker
from gateway.simulated.window import ask
from gateway.submit import Submitter
from gateway.sync import Sync
from gateway.terminal import TerminalProcess, TerminalStatus
from gateway.terminal_child import TerminalSettings
from ledger.commands import ReceiveOrder
from ledger.events import Event, decode, event_of
from ledger.intake import read_order
from ledger.order import Order, Status
from ledger.store import open_store
from ledger.writer import Cause, Ledger

CLIENT = Cause(actor="client")
QUICK = {
    "CALL_DEADLINE_S": "1",
    "SERVER_TIMEOUT_S": "0.2",
    "NOT_AFTER_S": "0.5",
    "RETRY_DELAY_S": "0.05",
    "PARK_RECHECK_S": "0.1",
    "RECONNECT_INTERVAL_S": "0.2",
    "CONNECTION_CHECK_S": "0.3",
    "POLL_INTERVAL_S": "0.1",
}


class Desk:
    """One account, its ledger and its broker. `clock` may be set by the test."""

    def __init__(self, folder: Path, *options: str, reconciles: bool = False, **settings: str) -> None:
        self.folder, self._options, self._reconciles = folder, options, reconciles
        self.settings: Settings = load({"data": str(folder)}, QUICK | settings)
        self.ahead = timedelta()
        self._changed = asyncio.Event()
        self._terminal_changed: Callable[[TerminalStatus], None] = lambda _: None

    def clock(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    async def start(self, *, take_over: bool = False) -> "Desk":
        settings = self.settings
        common = TerminalSettings(
            folder=str(self.folder),
            call_deadline_s=settings.call_deadline_s,
            restart=settings.auto_reconnect,
            reconnect_interval_s=settings.reconnect_interval_s,
            simulated_options=self._options,
        )
        self.trade = TerminalProcess(common, on_change=lambda status: self._terminal_changed(status))
        self.query = TerminalProcess(TerminalSettings(**{**_fields(common), "role": "query", "restart": True}))
        account = await self.trade.connect()
        await self.query.connect()
        store = open_store(settings.ledger_url.reveal())
        self.store = store
        self.ledger = await Ledger.open(
            store,
            login=account.login,
            server=account.server,
            clock=self.clock,
            build="test",
            take_over=take_over,
            patience_s=5,
        )
        self.ledger.tail.on_commit(self._changed.set)
        self.connection = Connection(
            self.trade,
            self.ledger,
            account,
            query=self.query,
            terminal="simulated",
            check_s=settings.connection_check_s,
            auto_reconnect=settings.auto_reconnect,
            reconnect_interval_s=settings.reconnect_interval_s,
        )
        self._terminal_changed = self.connection.terminal_changed
        self.connection.start()
        self.submitter = Submitter(self.ledger, self.trade, self.query, settings, self.clock, self.connection)
        self.sync = Sync(self.ledger, store, self.query, settings, self.clock, self.connection, self.submitter)
        self.reconciler = Reconciler(
            self.ledger, store, self.query, settings, self.clock, self.connection, self.submitter, self.sync
        )
        await self.sync.start(after=self.reconciler.start if self._reconciles else None)
        self.submitter.start()
        return self

    async def stop(self) -> None:
        await self.submitter.stop(2.0)
        await self.reconciler.stop()
        await self.sync.stop()
        await self.connection.stop()
        await self.trade.close()
        await self.query.close()
        for failure in (self.submitter.failure, self.reconciler.failure, self.ledger.failure):
            assert not failure.done(), failure.result()
        await self.ledger.close()

    async def crash(self) -> None:
        """Ends without a word, as a kill would: nothing that is under way is waited for or recorded."""
        for one in (self.submitter._guard, self.reconciler._guard, self.sync._guard):
            await one.stop()
        await self.connection.stop()
        for terminal in (self.trade, self.query):
            await terminal.close()
        self.ledger._task.cancel()  # type: ignore[union-attr]
        await self.ledger._end()
        self.ledger._lock.release()
        self.store.close()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    # ---- asking

    async def submit(self, order_id: str, **fields: Any) -> None:
        """Records the order and hands it on, as the bus does."""
        message = orjson.dumps({"order_id": order_id} | fields)
        received = read_order(message, str(self.ledger.login))
        assert received.order_id is not None
        await self.ledger.load([received.order_id])
        executed = self.ledger.execute(
            received.order_id, ReceiveOrder(received=received, age_from=self.clock()), CLIENT, soon=True
        )
        if executed.order.version == len(executed.events) and executed.order.is_open:
            self.submitter.take(received.order_id, CLIENT)
        await executed.durable

    async def open(self, order_id: str, **fields: Any) -> Order:
        """Opens a position, or places a working order, and waits until the broker has it."""
        await self.submit(order_id, **({"symbol": "EURUSD", "order_type": "buy", "volume": 0.1} | fields))
        return await self.until(order_id, Status.FILLED, Status.PLACED)

    async def until(self, order_id: str, *wanted: Status, timeout_s: float = 15.0) -> Order:
        """The order, once it has one of the states."""

        def found() -> Order | None:
            order = self.stored(order_id)
            return order if order is not None and order.status in wanted else None

        return await self.when(found, timeout_s, lambda: f"{order_id}: {self.topics(order_id)}")

    async def ended(self, order_id: str, timeout_s: float = 15.0) -> Order:
        def found() -> Order | None:
            order = self.stored(order_id)
            return None if order is None or order.is_open else order

        return await self.when(found, timeout_s, lambda: f"{order_id}: {self.topics(order_id)}")

    async def event(self, order_id: str, topic: str, timeout_s: float = 15.0) -> Any:
        """The first event of this topic in the stream of the order, or of the account if `order_id` is empty."""

        def found() -> Event | None:
            return next((one for one in self.events(order_id) if one.topic() == topic), None)

        return await self.when(found, timeout_s, lambda: f"{order_id}: {self.topics(order_id)}")

    async def when(self, found: Callable[[], Any], timeout_s: float, told: Callable[[], str]) -> Any:
        """What `found` returns, as soon as it returns anything: looked at after every commit."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    self._changed.clear()
                    if (value := found()) is not None:
                        return value
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(told()) from None

    # ---- looking

    def stored(self, order_id: str) -> Order | None:
        """The order, if all of its events are durable."""
        order = self.ledger.order(order_id)
        if order is None or self.store.last_version(f"order/{order_id}") < order.version:
            return None
        return order

    def events(self, order_id: str) -> list[Any]:
        stream = f"order/{order_id}" if order_id else f"account/{self.ledger.login}"
        return [event_of(one) for one in self.store.stream(stream)]

    def topics(self, order_id: str) -> list[str]:
        return [event.topic().removeprefix("order.") for event in self.events(order_id)]

    def messages(self, order_id: str) -> list[tuple[str, Message]]:
        """What upstream is told of the order: subjects and bodies."""
        made = [outgoing(one, decode(one)) for one in self.store.stream(f"order/{order_id}")]
        return [(one.subject, one.message) for one in made if one is not None]

    def window(self, verb: str, **arguments: Any) -> Any:
        """What a person at the terminal's window does or sees."""
        return ask(self.folder / "broker", verb, **arguments)

    def fault(self, rules: str) -> None:
        self.window("fault", add=rules, clear=True)

    def price(self, symbol: str = "EURUSD", **where: Any) -> float:
        """The bid, after moving it."""
        bid: float = self.window("price", symbol=symbol, **where)["bid"]
        return bid

    def deals(self) -> list[dict[str, Any]]:
        """The broker's deals but the deposit."""
        return [deal for deal in self.window("deals") if deal["symbol"]]


def _fields(settings: TerminalSettings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in TerminalSettings.__struct_fields__}


@contextlib.asynccontextmanager
async def desk_in(folder: Path, *options: str, reconciles: bool = False, **settings: str) -> AsyncIterator[Desk]:
    """A gateway that runs, ended at the end with everything around it."""
    desk = Desk(folder, *options, reconciles=reconciles, **settings)
    try:
        await desk.start()
        yield desk
        await desk.stop()
    finally:
        for terminal in (desk.trade, desk.query):
            await terminal.close()
        stop_broker(folder / "broker")
