"""Carries the write-ahead log of a SQLite ledger over into its file, beside the commits.

Left to itself SQLite does it within a commit, when the log has grown: with ids in no order that touches pages all
over the file, and every commit that hits it takes many milliseconds. Here a thread of its own does it. Where nothing
is committed meanwhile, the log starts over with the next commit. Under a load that never rests it would grow for
ever: once it is long, and all but the newest of it is carried over, one commit carries over the rest. What is durable
does not change: a commit is in the log, and the log on the disk, before it returns.
"""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Final

EVERY_EVENTS: Final = 16_000
LONG_PAGES: Final = 32_768  # 128 MiB
SHORT_S: Final = 0.003  # what was committed during so short a pass is carried over quickly, too
PASSES: Final = 5
_CARRY_OVER: Final = "PRAGMA wal_checkpoint(PASSIVE)"  # never waits for a reader or a writer


class LogKeeper:
    """`connect` gives a connection of its own that may write. The methods are called under the store's lock."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._events = 0
        self._long = False
        self._thread: threading.Thread | None = None

    def committed(self, events: int, connection: sqlite3.Connection) -> None:
        """To be called behind each commit, with its connection and the number of its events."""
        self._events += events
        if self._thread is not None and self._thread.is_alive():
            return
        if self._long:
            self._long = False
            with contextlib.suppress(sqlite3.Error):  # the next commit says what is wrong with the file
                connection.execute(_CARRY_OVER)
        elif self._events >= EVERY_EVENTS:
            self._events = 0
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
                    _, pages, _ = connection.execute(_CARRY_OVER).fetchone()
                    self._long = pages >= LONG_PAGES
                    if not self._long or time.monotonic() - began < SHORT_S:
                        break
            finally:
                connection.close()
