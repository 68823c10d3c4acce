"""Stores sealed batches, one after the other: all of a batch or nothing, and never twice."""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Final, TypeVar

from ledger.errors import DiskFull, LedgerFenced, LedgerUnavailable
from ledger.events import Recorded
from ledger.store import EventStore, VersionTaken

T = TypeVar("T")

PATIENCE_S: Final = 10.0
INLINE_MOST: Final = 16
PAUSE_FIRST_S: Final = 0.01
PAUSE_MOST_S: Final = 0.5
JOIN_S: Final = 1.0
TIMES_KEPT: Final = 4_096


class Committer:
    """Commits to `store`. A commit of unknown fate is repeated identically until its seal tells: for at most
    `patience_s`, with growing pauses, and never in the event loop. `on_full`: gets, in any thread, what is wrong while
    the disk is full, and "" after it; where somebody listens, a full disk is waited for without end."""

    def __init__(self, store: EventStore, patience_s: float) -> None:
        self._store = store
        self._patience_s = patience_s
        self.on_full: Callable[[str], None] | None = None
        self.took_s: deque[float] = deque(maxlen=TIMES_KEPT)  # of the latest commits; whoever looks may empty it
        self._loop = asyncio.get_running_loop()
        # One thread and a queue: a pool would cost more than the hop itself.
        self._queue: SimpleQueue[tuple[Callable[[], None], asyncio.Future[None]] | None] = SimpleQueue()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ledger-commit", daemon=True)
        self._thread.start()

    async def commit(self, records: list[Recorded]) -> None:
        """Returns when the batch is durable.

        Raises LedgerFenced when another writer holds its place, LedgerUnavailable when it is not known in time
        whether the batch is stored.
        """
        if self._store.is_local and len(records) <= INLINE_MOST:
            # A small commit on a local file takes less time than the way to another thread and back. With many
            # events there is work for the loop meanwhile.
            with contextlib.suppress(LedgerUnavailable):  # the thread repeats it, and says what is wrong if it stays
                self._store_once(records)
                return
        await self._in_thread(lambda: self._store_once(records))

    async def displace(self, build: Callable[[], Sequence[Recorded]]) -> None:
        """Stores the batch that `build` makes of the head, however busy another writer is. When it is not known
        whether that was stored, `build` is asked again: it answers with nothing where the head is its own.

        Raises LedgerUnavailable.
        """
        await self._in_thread(lambda: self._store.insert_next(build))

    async def _in_thread(self, work: Callable[[], None]) -> None:
        done: asyncio.Future[None] = self._loop.create_future()
        self._queue.put((work, done))
        await done

    def stop(self) -> None:
        """Repeats nothing any more."""
        self._stopped.set()

    def close(self) -> None:
        """Ends the thread. One that hangs in a call to the database is left: it ends with the process."""
        self.stop()
        self._queue.put(None)
        self._thread.join(JOIN_S)

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            work, done = job
            failure: BaseException | None = None
            try:
                self.patiently(work)
            except BaseException as error:  # whatever it is, the loop must hear of it
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits any more
                self._loop.call_soon_threadsafe(_settle, done, failure)

    def patiently(self, work: Callable[[], T]) -> T:
        """What `work` returns, for which a database that is away for a moment is waited; never in the event loop."""
        pause_s, deadline, is_full = PAUSE_FIRST_S, time.monotonic() + self._patience_s, False
        try:
            while True:
                try:
                    return work()
                except LedgerUnavailable as error:
                    if self.on_full is not None and isinstance(error, DiskFull):
                        # Not of unknown fate: it is not stored, nobody is told that it were, and room may come.
                        deadline = time.monotonic() + PAUSE_MOST_S + self._patience_s
                        if not is_full:
                            self.on_full(str(error))
                        is_full = True
                    if time.monotonic() + pause_s > deadline or self._stopped.wait(pause_s):
                        raise
                    pause_s = min(2 * pause_s, PAUSE_MOST_S)
        finally:
            if is_full and self.on_full is not None:
                self.on_full("")

    def _store_once(self, records: list[Recorded]) -> None:
        began = time.perf_counter()
        try:
            self._store.insert(records)
            self.took_s.append(time.perf_counter() - began)
        except VersionTaken:
            if not self._store.is_stored(records[-1]):
                raise LedgerFenced(
                    f"ledger {self._store.name}: another writer committed at {records[0].seq}: this one stops"
                ) from None


def _settle(done: "asyncio.Future[None]", failure: BaseException | None) -> None:
    if done.cancelled():
        return
    if failure is None:
        done.set_result(None)
    else:
        done.set_exception(failure)
