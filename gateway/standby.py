"""A gateway that waits for another one to end: `serve --standby`."""

import asyncio
from collections.abc import Callable
from typing import Final

from ledger.errors import LedgerLocked
from ledger.store import EventStore

LOOK_EVERY_S: Final = 0.2


async def lock_is_free(store: EventStore, say: Callable[[str], None]) -> None:
    """Returns when no other writer holds the ledger. Of several that wait, those that come second end with
    LedgerLocked when they open it: whoever keeps the service running starts them again."""
    waits = False
    while True:
        try:
            lock = await asyncio.to_thread(store.lock)
        except LedgerLocked:
            if not waits:
                say(f"STANDBY: another gateway writes {store.name}; this one goes on in its place when it ends")
            waits = True
            await asyncio.sleep(LOOK_EVERY_S)
        else:
            await asyncio.to_thread(lock.release)
            return
