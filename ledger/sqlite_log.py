"""Keeps the write-ahead log of a SQLite ledger short and ready, beside the commits.

Left to itself SQLite carries the log over into its file within a commit, when it has grown: with ids in no order that
touches pages all over the file, and every commit that hits it takes many milliseconds. Here a thread of its own
carries it over, and the commit after that only the little that came meanwhile, so that the log starts over. A log that
grows costs each commit a change of the file's length, which the file system writes to a journal of its own, behind
whatever else is written on that disk: so it is given its length at the start. What is durable does not change: a
commit is in the log, and the log on the disk, before it returns.
"""

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

PAGE_BYTES: Final = 4_096
EVERY_PAGES: Final = 4_096
EVERY_S: Final = 0.6  # the less often, the more pages were changed several times and are written once
SHORT_S: Final = 0.003  # what was committed during so short a pass is carried over quickly, too
PASSES: Final = 5
_CARRY_OVER: Final = "PRAGMA wal_checkpoint(PASSIVE)"  # never waits for a reader or a writer


class LogKeeper:
    """`connect` gives a connection of its own that may write. The methods are called under the store's lock."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._pages = 0
        self._began = 0.0
        self._thread: threading.Thread | None = None

    def committed(self, events: int, connection: sqlite3.Connection) -> None:
        """To be called behind each commit, with its connection and the number of its events."""
        self._pages += 3 + events * 5 // 4  # about what a commit changes; nobody tells exactly
        thread = self._thread
        if thread is not None:
            if not thread.is_alive():
                self._thread = None
                with contextlib.suppress(sqlite3.Error):  # the next commit says what is wrong with the file
                    connection.execute(_CARRY_OVER)
        elif self._pages >= EVERY_PAGES and time.monotonic() - self._began >= EVERY_S:
            self._pages, self._began = 0, time.monotonic()
            self._thread = threading.Thread(target=self._carry_over, name="ledger-log", daemon=True)
            self._thread.start()

    def close(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _carry_over(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            connection = self._connect()
            try:
                for _ in range(PASSES):
                    began = time.monotonic()
                    connection.execute(_CARRY_OVER)
                    if time.monotonic() - began < SHORT_S:
                        break
            finally:
                connection.close()


def lengthen(log: Path) -> None:
    """Gives the log the length it will grow to, in zeros: behind its valid part SQLite reads nothing. Best effort: a
    disk without room for it is left as it was."""
    with contextlib.suppress(OSError), log.open("r+b") as file:
        length = file.seek(0, os.SEEK_END)
        try:
            file.write(bytes(max(0, EVERY_PAGES * PAGE_BYTES - length)))
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            file.truncate(length)
            raise
