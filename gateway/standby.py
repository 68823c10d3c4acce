"""A gateway that waits for another one to end: `serve --standby`."""

import asyncio
from collections.abc import Callable
from typing import Final

from ledger.errors import LedgerLocked
from ledger.store import EventStore, WriterLock

LOOK_EVERY_S: Final = 0.2


async def lock_when_free(store: EventStore, say: Callable[[str], None]) -> "HeldLock":
    """The writer's lock, as soon as no other writer holds it. Of several that wait one gets it; the others wait on."""
    waits = False
    while True:
        try:
            return HeldLock(await asyncio.to_thread(store.lock))
        except LedgerLocked:
            if not waits:
                say(f"STANDBY: another gateway writes {store.name}; this one goes on in its place when it ends")
            waits = True
            await asyncio.sleep(LOOK_EVERY_S)


class HeldLock:
    """The writer's lock, held before the ledger is opened. It is given back once, by the ledger that was opened with
    it, or by a start that did not come so far."""

    def __init__(self, lock: WriterLock) -> None:
        self._lock: WriterLock | None = lock

    def check(self) -> None:
        if self._lock is not None:
            self._lock.check()

    def release(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()
