"""Carries the write-ahead log of a SQLite ledger over into its file, beside the commits.

Left to itself SQLite does it within a commit, when the log has grown: with ids in no order that touches pages all
over the file, and every commit that hits it takes many milliseconds. Here a thread of its own carries over most of
the log, and a commit only the little that came meanwhile, so that the log starts over and stays small. What is
durable does not change: a commit is in the log, and the log on the disk, before it returns.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Callable
from typing import Final

EVERY_EVENTS: Final = 2_000
_CARRY_OVER: Final = "PRAGMA wal_checkpoint(PASSIVE)"  # never waits for a reader or a writer


class LogKeeper:
    """`connect` gives a connection of its own that may write. The methods are called under the store's lock."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._events = 0
        self._thread: threading.Thread | None = None

    def committed(self, events: int, connection: sqlite3.Connection) -> None:
        """To be called behind each commit, with its connection and the number of its events."""
        self._events += events
        thread = self._thread
        if thread is not None:
            if not thread.is_alive():
                self._thread = None
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
                connection.execute(_CARRY_OVER)
            finally:
                connection.close()
