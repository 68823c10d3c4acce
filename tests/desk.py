"""The gateway's edge around a real ledger, for tests: a clock they set, orders that go nowhere, a broker they show."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from gateway.config import Settings, load
from gateway.errands import Errands
from gateway.halts import Halts
from ledger.account_events import AccountEvent, MessageRejected
from ledger.commands import OrderCommand
from ledger.events import account_stream, event_of, order_stream
from ledger.intake import raw_of
from ledger.order_events import OrderEvent
from ledger.store import EventStore, open_store
from ledger.writer import Cause, Ledger
from tests.broker_fake import FakeBroker
from tests.decider import receive

CAUSE = Cause(actor="test")


class Taken:
    """Stands where the submitter stands: remembers what it was handed."""

    def __init__(self) -> None:
        self.order_ids: list[str] = []

    def take(self, order_id: str, cause: Cause) -> None:
        self.order_ids.append(order_id)


class Desk:
    def __init__(self, ledger: Ledger, store: EventStore, settings: Settings) -> None:
        self.ledger, self.store, self.settings = ledger, store, settings
        self.now = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
        self.broker = FakeBroker()
        self.submitter: Any = Taken()
        self.errands = Errands(ledger, self.submitter, self.clock)
        self.halts = Halts(ledger, self.errands, settings)

    def clock(self) -> datetime:
        return self.now

    def wait(self, **span: float) -> None:
        self.now += timedelta(**span)

    async def order(self, order_id: str, *commands: OrderCommand, **fields: Any) -> None:
        """An order of ours, and what happened to it."""
        for command in (receive(order_id=order_id, **fields), *commands):
            await self.ledger.execute(order_id, command, CAUSE).durable

    async def account_events(self) -> list[AccountEvent]:
        """What stands in the account's stream, once all is durable."""
        return [event_of(one) for one in await self._stream(account_stream(self.ledger.login))]  # type: ignore[misc]

    async def order_events(self, order_id: str) -> list[OrderEvent]:
        return [event_of(one) for one in await self._stream(order_stream(order_id))]  # type: ignore[misc]

    async def _stream(self, name: str) -> list[Any]:
        await self.ledger.append("inbox/none", _nothing(), CAUSE)
        return self.store.stream(name)


def _nothing() -> Any:
    return MessageRejected(reasons=("nothing",), raw=raw_of(b""))


async def until(condition: Callable[[], object]) -> None:
    """Waits for what other tasks bring about."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # what is waited for has no event of its own
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def desk(folder: Path, **environment: str) -> AsyncIterator[Desk]:
    store = open_store(f"sqlite:///{folder / 'ledger.db'}")
    now = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
    ledger = await Ledger.open(store, login=7, server="s", clock=lambda: now, build="test")
    try:
        yield Desk(ledger, store, load({"data": str(folder)}, environment))
    finally:
        await ledger.close()
