"""The Linux bridge: the functions of MetaTrader5 over rpyc, served by an mt5linux server beside the terminal in Wine.

An mt5linux server is rpyc's classic server in a Windows Python that has the MetaTrader5 package. This is a client of
it and stands in the package's place. mt5linux's own client (1.1.1) does not fit a gateway: it starts and removes
containers by itself, writes each request into source text (the password too) that the server evaluates, repeats a
failed `initialize`, has its results pickled, and Python 3.11 cannot read it. Here the server gets mt5_remote.py once,
and a call is one request to that: values go over as values, and results come back as tuples.

What a remote terminal adds, and how it is met:

- The reply may be lost when the order is not: a broken connection or a timeout is last_error -10002, so unknown.
- A request may wait on the way, or behind another client's call: `order_send_until` takes the time limit along, and
  the server looks at it immediately before the call, by its own clock. The difference of the clocks is taken from each
  reply as if that had taken no time to arrive, so the limit can only come early.
- The package keeps one connection and one `last_error` per process: the server runs one call at a time, and reads the
  error of a call before the next begins.

The server does whatever its clients say: it belongs on the loopback or a network of its own. It gets nothing of this
process in return.
"""

import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from gateway import mt5_remote
from gateway.broker import TerminalError
from gateway.elapsed import elapsed_s
from gateway.mt5 import NotAfterPassed
from gateway.mt5_values import NotCarried, Reader, carried, pairs
from gateway.simulated import constants

DEFAULT_PORT: Final = 18812
CONNECT_TIMEOUT_S: Final = 5.0
_BOOLEAN: Final = ("initialize", "login", "symbol_select", "shutdown")  # False, not None, when they fail
_ORDERS: Final = ("order_check", "order_send")
_SUCCESS: Final = (1, "Success")


class Bridge:
    """A module object like MetaTrader5, over the server at `host`:`port`; `initialize` connects to it.

    `timeout_s` bounds each call but `initialize` and `login`, which have the terminal's own; None: wait, as the
    package does. Raises TerminalError when rpyc is not installed.
    """

    __name__ = "MetaTrader5"

    def __init__(self, host: str, port: int = DEFAULT_PORT, *, timeout_s: float | None = None) -> None:
        try:
            import rpyc  # noqa: F401  # a missing library is told here, not at the first call
        except ImportError as error:
            raise TerminalError(
                f"TERMINAL=mt5linux needs rpyc: pip install 'order-ledger[mt5linux]' ({error})"
            ) from None
        self._host = host
        self._port = port
        self._timeout_s = timeout_s
        self._connection: Any = None
        self._remote: Callable[..., Any] | None = None
        self._ahead_s = 0.0  # the server's monotonic clock minus ours, at least
        self._error: tuple[int, str] = _SUCCESS
        self._reader = Reader()

    def __getattr__(self, name: str) -> Any:
        if name.isupper() or name in ("__version__", "__author__"):
            return getattr(constants, name)
        if name.startswith("_"):
            raise AttributeError(name)
        return partial(self._function, name)

    # ---- the functions that are not only passed on

    def initialize(self, *args: Any, **kwargs: Any) -> bool:
        self._disconnect()
        try:
            self._connect()
        except Exception as error:
            self._disconnect()
            self._error = (-10003, f"IPC initialize failed, {self._told(error)}")
            return False
        return bool(self._function("initialize", *args, **kwargs))

    def shutdown(self) -> bool:
        """Closes the terminal's connection for all clients of the server, and this one's to it."""
        if self._remote is not None:
            self._function("shutdown")
        self._disconnect()
        self._error = _SUCCESS
        return True

    def last_error(self) -> tuple[int, str]:
        return self._error

    def order_send_until(self, request: dict[str, Any], not_after: float) -> Any:
        """`order_send`, if the call begins before `not_after` of this machine's `elapsed_s`. Raises
        NotAfterPassed when the server did not begin it."""
        return self._function("order_send", request, until=not_after)

    # ---- calling

    def _function(self, name: str, *args: Any, until: float | None = None, **kwargs: Any) -> Any:
        failed = False if name in _BOOLEAN else None
        if self._remote is None:
            self._error = (-10004, "No IPC connection")
            return failed
        request = None
        try:
            if name in _ORDERS and len(args) == 1 and isinstance(args[0], dict):
                request, args = pairs(args[0]), ()
            call = (name, tuple(map(carried, args)), pairs(kwargs), request)
        except NotCarried as error:
            self._error = (-2, str(error))
            return failed
        # The clock of a server in Wine may stand still while this machine sleeps, as Linux' monotonic one does: what is
        # left is counted by ours, and the server's is only compared with one that stands still as well.
        limit = None if until is None else until - elapsed_s() + time.monotonic() + self._ahead_s
        # rpyc has one limit for the whole connection
        self._connection._config["sync_request_timeout"] = None if name in ("initialize", "login") else self._timeout_s
        try:
            clock, what, result, told = self._remote(*call, limit)
            self._ahead_s = clock - elapsed_s()
            value = self._reader.read(result) if what == "done" else None
        except Exception as problem:  # of the connection, or of a reply that cannot be read: it may have been done
            self._disconnect()
            self._error = (-10002, f"IPC recv failed, {self._told(problem)}")
            return failed
        if what == "late":
            raise NotAfterPassed
        if what == "missing":
            raise AttributeError(f"MetaTrader5 at {self._host}:{self._port} has no {name}")
        if what == "raised":
            raise (TypeError if result == "TypeError" else RuntimeError)(f"{name} raised {result}")
        self._error = told
        return value

    # ---- the connection

    def _connect(self) -> None:
        from rpyc.core.service import ClassicClient
        from rpyc.core.stream import SocketStream
        from rpyc.utils.factory import connect_stream

        sock = socket.create_connection((self._host, self._port), CONNECT_TIMEOUT_S)
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # ClassicClient: unlike rpyc.classic.connect it gives the server no hold of this process.
        limit = {"sync_request_timeout": CONNECT_TIMEOUT_S}
        self._connection = connect_stream(SocketStream(sock), ClassicClient, limit)
        self._connection.execute(Path(mt5_remote.__file__).read_text())
        self._ahead_s = self._connection.namespace["ready"]() - elapsed_s()
        self._remote = self._connection.namespace["call"]
        self._reader = Reader()

    def _disconnect(self) -> None:
        connection, self._connection, self._remote = self._connection, None, None
        if connection is not None:
            connection.close()

    def _told(self, error: Exception) -> str:
        """The error without its text if it comes from the server, which could quote the password."""
        text = str(error) if isinstance(error, OSError | EOFError | ImportError) else ""
        return f"mt5linux at {self._host}:{self._port}: {type(error).__name__}{': ' if text else ''}{text}"
