"""What a follower in its own process reads: the ledger's database, woken by whoever writes it.

Wake-ups come from the process that started this one, or from PostgreSQL itself (`ledger/listener.py`). Only in case
one was lost is the head looked up now and then.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from ledger.events import LedgerCreated, Recorded, decode
from ledger.store import EventStore

T = TypeVar("T")
LOOK_EVERY_S: Final = 1.0
FEW: Final = 256


class StoreSource:
    """An `EventSource` over a store that another process writes. `wake` says that there may be more; without it, the
    head is looked up every `poll_s`. `on_head` is told each new head."""

    def __init__(
        self, store: EventStore, poll_s: float = LOOK_EVERY_S, on_head: Callable[[int], None] | None = None
    ) -> None:
        self._store, self._poll_s, self._on_head = store, poll_s, on_head
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._woken = asyncio.Event()
        self._looking: asyncio.Task[int] | None = None
        self._known = 0

    async def read(self, after: int, limit: int) -> list[Recorded]:
        if self._store.is_local and limit <= FEW:
            return self._store.read(after, limit)  # takes less time than the way to a thread and back
        return await self._call(lambda: self._store.read(after, limit))

    async def at(self, seq: int) -> Recorded | None:
        return await self._call(lambda: self._store.at(seq))

    def streams(self, streams: Sequence[str]) -> dict[str, list[Recorded]]:
        """All events of these streams; blocks, and may be called from any thread."""
        return self._store.streams(streams)

    async def head(self) -> int:
        found = self._store.head() if self._store.is_local else await self._call(self._store.head)
        head = found.seq if found else 0
        if head > self._known:
            self._known = head
            if self._on_head is not None:
                self._on_head(head)
        return head

    async def wait(self, after: int, timeout_s: float) -> None:
        """Returns when the ledger holds something after `after`, at the latest after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while True:
            woken = self._woken
            if await self._look() > after:
                return
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return
            try:
                await asyncio.wait_for(woken.wait(), min(left_s, self._poll_s))
            except TimeoutError:
                continue

    def wake(self) -> None:
        """Whoever waits looks again now."""
        woken, self._woken = self._woken, asyncio.Event()
        self._looking = None  # what is being read may have begun before the commit
        woken.set()

    async def ledger_id(self, timeout_s: float) -> str | None:
        """The id of the ledger, waiting for its creation; None when it is not created in time."""
        deadline = time.monotonic() + timeout_s
        while (first := await self.at(1)) is None:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return None
            await self.wait(0, min(left_s, self._poll_s))
        created = decode(first).data
        return created.ledger_id if isinstance(created, LedgerCreated) else None

    def close(self) -> None:
        self._thread.shutdown(wait=True)
        self._store.close()

    async def _look(self) -> int:
        """The head, looked up once for all that wait at the same time."""
        task = self._looking
        if task is None or task.done():
            task = self._looking = asyncio.ensure_future(self.head())
        return await asyncio.shield(task)

    async def _call(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
