"""The newest events, kept in memory for the followers that live in the writer's process."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from ledger.events import Recorded
from ledger.store import EventStore

MAX_TAIL: Final = 20_000
MAX_TAIL_BYTES: Final = 32 * 1024 * 1024  # of stored bytes; what is older is read from the store


class Tail:
    """The newest events, kept in memory for the followers of this process (an `EventSource`)."""

    def __init__(self, store: EventStore, head: int) -> None:
        self._store = store
        self._recent: deque[Recorded] = deque()
        self._bytes = 0
        self._head = head
        self._moved = asyncio.Event()
        self._listeners: list[Callable[[], None]] = []

    def extend(self, batch: Iterable[Recorded]) -> None:
        for one in batch:
            self._recent.append(one)
            self._bytes += len(one.state)
        while len(self._recent) > MAX_TAIL or (self._bytes > MAX_TAIL_BYTES and len(self._recent) > 1):
            self._bytes -= len(self._recent.popleft().state)
        self._head = self._recent[-1].seq
        self.wake()
        for listener in self._listeners:
            listener()

    def wake(self) -> None:
        """Ends every `wait`, as a commit would."""
        self._moved.set()
        self._moved = asyncio.Event()

    def on_commit(self, listener: Callable[[], None]) -> None:
        """Calls `listener` after every commit, in the writer's loop: it must return at once."""
        self._listeners.append(listener)

    @property
    def newest(self) -> int:
        """The seq of the last event."""
        return self._head

    async def head(self) -> int:
        return self._head

    async def at(self, seq: int) -> Recorded | None:
        found = await self.read(seq - 1, 1)
        return found[0] if found and found[0].seq == seq else None

    async def read(self, after: int, limit: int) -> list[Recorded]:
        if after >= self._head:
            return []
        if self._recent and self._recent[0].seq <= after + 1:
            start = after + 1 - self._recent[0].seq
            return [self._recent[i] for i in range(start, min(start + limit, len(self._recent)))]
        found = await asyncio.to_thread(self._store.read, after, limit)
        return [one for one in found if one.seq <= self._head]

    async def wait(self, after: int, timeout_s: float) -> None:
        if self._head > after:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._moved.wait()
