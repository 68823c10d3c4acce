"""`MT5Manager`: the read calls of MetaTrader5 for programs beside the service, with the package's own structs.

It reads through a terminal child of its own, in the query role, so nothing it does can delay or send an order. What
trades is not offered: an order goes through the ledger. `positions_close` does, as a request to the running service.

    from gateway.mt5_manager import MT5Manager, mt5

    manager = MT5Manager()
    if await manager.initialize(terminal_path, server, login, os.environ["MT5_PASSWORD"]):
        print(mt5.account_info().balance, manager.account_currency())

`mt5` stands for the package: its constants, and its read calls at the manager that was initialized last.
"""

import asyncio
import socket
import subprocess
import threading
import uuid
from collections.abc import Mapping
from contextlib import suppress
from decimal import Decimal
from functools import partial
from typing import Any, Final, cast

import msgspec
import orjson

from gateway.broker import Account, TerminalError
from gateway.client import submit_order
from gateway.config import Settings, load
from gateway.mt5_values import NotCarried, Reader, carried, pairs
from gateway.retcodes import LAST_ERRORS
from gateway.simulated import constants
from gateway.terminal_child import READ_CALLS, Call, Connect, Read, Reply, TerminalSettings
from gateway.terminal_link import start_process

SUCCESS: Final = (1, "Success")
OUTCOME_S: Final = 60.0

_encode = msgspec.msgpack.Encoder().encode
_connected = msgspec.msgpack.Decoder(Reply[Account]).decode
_read = msgspec.msgpack.Decoder(Reply[tuple[Any, str | None, tuple[int, str]]]).decode


def _failure(code: int) -> tuple[int, str]:
    return code, LAST_ERRORS[code].text


class _ReadingChild:
    """A terminal child in the query role, asked by a thread that waits, as the package is."""

    def __init__(self, settings: TerminalSettings) -> None:
        self._deadline_s = settings.call_deadline_s
        (self._socket, theirs), (self._evidence, their_evidence) = socket.socketpair(), socket.socketpair()
        try:
            self._process = start_process(settings, theirs, their_evidence)
        finally:
            theirs.close()
            their_evidence.close()

    def connect(self, settings: TerminalSettings, password: str) -> None:
        """Raises TerminalError or LoginRefused."""
        reply = _connected(self._ask(Connect(settings, password), settings.timeout_s + settings.call_deadline_s))
        if reply.failed is not None:
            raise TerminalError(reply.failed.text, reply.failed.code)

    def read(self, call: Read) -> tuple[Any, str | None, tuple[int, str]]:
        """The result as data, the exception's name, last_error. Raises TerminalError."""
        reply = _read(self._ask(call, self._deadline_s))
        if reply.failed is not None or reply.value is None:
            raise TerminalError(
                reply.failed.text if reply.failed else "no result", reply.failed.code if reply.failed else 0
            )
        return reply.value

    def _ask(self, call: Call | Read, deadline_s: float) -> bytes:
        payload = _encode(call)
        self._socket.settimeout(deadline_s)
        try:
            self._socket.sendall(len(payload).to_bytes(4, "little") + payload)
            return self._receive(int.from_bytes(self._receive(4), "little"))
        except TimeoutError:
            raise TerminalError(f"no answer from the terminal in {deadline_s:g} s", -10005) from None
        except OSError as error:
            raise TerminalError(f"the terminal process ended: {error}", -10002) from None

    def _receive(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self._socket.recv(size - len(data))
            if not piece:
                raise TerminalError("the terminal process ended", -10002)
            data += piece
        return bytes(data)

    def close(self) -> None:
        self._socket.close()
        self._evidence.close()
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)


class MT5Manager:
    """The terminal of the settings (flags and environment, as every command reads them), for reading.

    The read calls of MetaTrader5 are its methods: they wait for their answer, and return what the package returns,
    None with `last_error()` for a failure. After a terminal that does not answer in time every call fails until
    `initialize` is called again.
    """

    def __init__(self, data: str | None = None) -> None:
        self._settings: Settings = load({"data": data})
        self._child: _ReadingChild | None = None
        self._reader = Reader()
        self._error: tuple[int, str] = SUCCESS
        self._lock = threading.Lock()  # one call at a time, whichever thread asks

    @property
    def mt5(self) -> "Package":
        """The constants of MetaTrader5, and its read calls at this manager."""
        return Package(self)

    async def initialize(
        self,
        terminal_path: str | None = None,
        server: str | None = None,
        login: int | None = None,
        password: str | None = None,
    ) -> bool:
        """Starts the terminal, logs in, and compares account and server. What is not given comes from the settings.
        False, and `last_error()`, when that fails or another account answers."""
        global _current
        settings = self._settings
        folder = settings.data / "terminal"
        wanted = TerminalSettings(
            folder=str(folder),
            kind=cast(Any, settings.terminal),
            role="query",
            login=settings.mt5_login if login is None else login,
            server=settings.mt5_server if server is None else server,
            path=(settings.mt5_path if terminal_path is None else terminal_path),
            portable=settings.mt5_portable,
            bridge_host=settings.mt5linux_host,
            bridge_port=settings.mt5linux_query_port or settings.mt5linux_port,
            call_deadline_s=settings.call_deadline_s,
            seed=settings.simulated_seed,
        )
        self.shutdown()
        secret = settings.mt5_password.reveal() if password is None else password
        try:
            self._child = await asyncio.to_thread(self._start, wanted, secret)
        except (TerminalError, OSError) as error:
            self._error = (getattr(error, "code", 0) or -10003, str(error))
            return False
        self._reader = Reader()
        self._error = SUCCESS
        _current = self
        return True

    @staticmethod
    def _start(settings: TerminalSettings, password: str) -> _ReadingChild:
        child = _ReadingChild(settings)
        try:
            child.connect(settings, password)
        except TerminalError:
            child.close()
            raise
        return child

    def shutdown(self) -> bool:
        """Ends the connection. Always True, as the package's."""
        child, self._child = self._child, None
        if child is not None:
            child.close()
        self._error = SUCCESS
        return True

    def last_error(self) -> tuple[int, str]:
        return self._error

    def __getattr__(self, name: str) -> Any:
        if name in READ_CALLS:
            return partial(self._call, name)
        if name in ("order_send", "Buy", "Sell", "Close"):
            raise AttributeError(f"{name} is not offered: orders go through the ledger")
        raise AttributeError(name)

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        child = self._child
        if child is None:
            self._error = _failure(-10004)
            return None
        try:
            call = Read(name, tuple(map(_argument, args)), dict(pairs(kwargs)))
            with self._lock:
                result, raised, self._error = child.read(call)
        except NotCarried as error:
            self._error = (-2, str(error))
            return None
        except TerminalError as error:
            self._error = (error.code or -10002, str(error))
            self._child = None
            child.close()
            return None
        if raised is not None:
            raise (TypeError if raised == "TypeError" else RuntimeError)(f"{name} raised {raised}")
        return self._reader.read(result)

    # ---- what the package lacks

    def account_currency(self) -> str | None:
        """The account's currency, such as "USD"."""
        info = self._call("account_info")
        return None if info is None else str(info.currency)

    def account_leverage(self) -> int | None:
        """The account's leverage: 500 means 1:500."""
        info = self._call("account_info")
        return None if info is None else int(info.leverage)

    async def positions_close(
        self,
        ticket: int,
        volume: Decimal | float | None = None,
        *,
        order_id: str | None = None,
        timeout_s: float = OUTCOME_S,
    ) -> Mapping[str, Any]:
        """Closes a position, or `volume` lots of it, by the running service; its final message about the request.

        `order_id` makes it repeatable: the same one twice closes once, whether or not the position is still open (the
        request says nothing that only an open position shows). Without it a new one is made, which is allowed
        for all of a position only: a second request finds nothing to close, but would take a part a second time.
        Raises NoAnswer when the service cannot be reached or says nothing in time.
        """
        if order_id is None:
            if volume is not None:
                raise ValueError("a partial close needs an order_id: without it a repetition would close twice")
            order_id = f"close-{ticket}-{uuid.uuid4().hex[:8]}"
        request: dict[str, Any] = {"order_id": order_id, "action": "close", "position_id": ticket}
        for position in self._call("positions_get", ticket=ticket) or ():
            request["position_id"] = position.identifier
        if volume is not None:
            request["volume"] = str(volume)
        return await submit_order(self._settings, orjson.dumps(request), timeout_s)


def _argument(value: Any) -> Any:
    """A request is a dict; everything else one value."""
    return dict(pairs(value)) if isinstance(value, dict) else carried(value)


class Package:
    """Stands where `import MetaTrader5 as mt5` did: constants, and the read calls at a manager."""

    def __init__(self, manager: MT5Manager | None = None) -> None:
        self._manager = manager

    def __getattr__(self, name: str) -> Any:
        if name.isupper() and not name.startswith("_"):
            return getattr(constants, name)
        manager = self._manager or _current
        if manager is None and (name in READ_CALLS or name == "last_error"):
            return lambda *_, **__: _failure(-10004) if name == "last_error" else None
        return getattr(manager, name)


_current: MT5Manager | None = None
mt5: Final = Package()
