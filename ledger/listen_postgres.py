"""Hears of commits in PostgreSQL: LISTEN on a connection of its own, made anew whenever it ends."""

import contextlib
import threading
from collections.abc import Callable
from typing import Any, Final

import psycopg

from ledger.cut import cut

CHANNEL: Final = "order_ledger"
AGAIN_FIRST_S: Final = 0.1
AGAIN_MOST_S: Final = 5.0
TOGETHER_S: Final = 0.05
JOIN_S: Final = 2.0
# A server that vanished without a word is noticed within half a minute; until then the head is looked up anyway.
_ALIVE: Final = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 20_000}


class Listener:
    """Calls `told`, in a thread of its own, soon after each commit to the ledger in `schema`, and whenever it listens
    again after the connection was lost: what was committed meanwhile went unheard."""

    def __init__(self, parameters: dict[str, Any], schema: str, told: Callable[[], None]) -> None:
        self._parameters, self._schema, self._told = {**_ALIVE, **parameters}, schema, told
        self._ended = threading.Event()
        self._guard = threading.Lock()
        self._descriptor: int | None = None
        self._thread = threading.Thread(target=self._run, name="ledger-listen", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        with self._guard:
            if self._descriptor is not None:
                cut(self._descriptor)
        self._thread.join(JOIN_S)

    def _run(self) -> None:
        pause_s = AGAIN_FIRST_S
        while not self._ended.is_set():
            with contextlib.suppress(psycopg.Error), psycopg.connect(**self._parameters, autocommit=True) as connection:
                connection.execute(f"LISTEN {CHANNEL}")
                pause_s = AGAIN_FIRST_S
                self._listen(connection)
            self._ended.wait(pause_s)
            pause_s = min(2 * pause_s, AGAIN_MOST_S)

    def _listen(self, connection: "psycopg.Connection[Any]") -> None:
        with self._guard:
            self._descriptor = connection.fileno()
        try:
            self._told()
            while not self._ended.is_set():
                heard = list(connection.notifies(stop_after=1))
                # A busy ledger commits hundreds of times a second: what comes within this time is one call.
                self._ended.wait(TOGETHER_S)
                heard += connection.notifies(timeout=0)
                if any(notice.payload == self._schema for notice in heard):
                    self._told()
        finally:
            # Before the connection is closed: its number may be another file's then.
            with self._guard:
                self._descriptor = None
