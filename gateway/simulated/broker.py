"""The broker process: `python -m gateway.simulated.broker --dir DIR [--seed N] …`.

One process per folder (a file lock), one thread, any number of terminals. It outlives them: what it accepted is on
disk before it is answered, and it ends by itself after a while without clients, at a `stop` frame, or at SIGTERM.
Its address is written to DIR/broker.json, atomically, once it listens. A DIR/password file, if present, holds the
one password that logs in; without it any does.
"""

import argparse
import hmac
import os
import secrets
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from filelock import FileLock, Timeout

from gateway.simulated import link
from gateway.simulated.journal import Journal
from gateway.simulated.market import DEFAULT_SYMBOLS, Market
from gateway.simulated.queries import Queries, Selection
from gateway.simulated.state import Created, Effect, PriceMoved, State, World
from gateway.simulated.trading import Request, Trading

IDLE_EXIT_S: Final = 15.0
LOCK_TIMEOUT_S: Final = 8.0  # for a predecessor that is just ending
MAX_REQUEST: Final = 1 << 16
NOT_FOUND: Final = -4
INVALID: Final = -2
REFUSED: Final = -6

T = TypeVar("T")

_head = msgspec.msgpack.Decoder(tuple[int, msgspec.Raw])
_encoder = msgspec.msgpack.Encoder()


_request = msgspec.msgpack.Decoder(Request)
_selection = msgspec.msgpack.Decoder(Selection)
_text = msgspec.msgpack.Decoder(str)
_login = msgspec.msgpack.Decoder(tuple[int, str, str])
_move = msgspec.msgpack.Decoder(tuple[str, int])
_margin = msgspec.msgpack.Decoder(tuple[int, str, float, float])
_profit = msgspec.msgpack.Decoder(tuple[int, str, float, float, float])


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class Broker:
    """State, market and rules over a journal; `answer` maps one request to its reply."""

    def __init__(self, folder: Path, world: World, clock: Callable[[], int] = wall_clock_ms) -> None:
        self.folder = folder
        self.clock = clock
        self.state = State()
        self.journal = Journal(folder / "journal.bin")
        self.journal.replay(self.state)
        if self.state.created:
            world = self.state.world
        else:
            self._commit([Created(world)])
        self.market = Market(world.seed, DEFAULT_SYMBOLS, world.utc_offset_s, world.currency)
        for move in self.state.moves:
            self.market.move(move.symbol, move.from_ms, move.points)
        self.trading = Trading(self.state, self.market, self._commit, clock)
        self.queries = Queries(self.state, self.market)

    def _commit(self, effects: list[Effect]) -> None:
        self.journal.append(effects)
        self.state.apply(effects)

    def answer(self, command: int, arguments: msgspec.Raw) -> tuple[int, Any]:
        """Status (1 or a last_error code) and value."""
        match command:
            case link.ORDER_SEND:
                return link.OK, self.trading.send(_request.decode(arguments))
            case link.ORDER_CHECK:
                return link.OK, self.trading.check(_request.decode(arguments))
            case link.HISTORY_DEALS:
                return link.OK, self.queries.history_deals(_selection.decode(arguments))
            case link.HISTORY_ORDERS:
                return link.OK, self.queries.history_orders(_selection.decode(arguments))
            case link.POSITIONS:
                return link.OK, self.queries.positions(_selection.decode(arguments), self.clock())
            case link.ORDERS:
                return link.OK, ()  # there are no pending orders yet
            case link.TICK:
                return _found(self.queries.tick(_text.decode(arguments), self.clock()))
            case link.SYMBOL:
                return _found(self.queries.symbol(_text.decode(arguments), self.clock()))
            case link.SYMBOLS:
                return link.OK, self.queries.symbols(_text.decode(arguments), self.clock())
            case link.ACCOUNT:
                return link.OK, self.state.account_tuple(self.market, self.clock())
            case link.TOTALS:
                return link.OK, (len(self.market.symbols), 0, len(self.state.positions))
            case link.LOGIN:
                return self._login(*_login.decode(arguments)), None
            case link.MOVE_PRICE:
                return self._move_price(*_move.decode(arguments)), None
            case link.CALC_MARGIN:
                return self._calc_margin(*_margin.decode(arguments))
            case link.CALC_PROFIT:
                return self._calc_profit(*_profit.decode(arguments))
        return INVALID, None

    def _login(self, login: int, password: str, server: str) -> int:
        """A login or server of 0 or "" means the account the terminal remembers."""
        world = self.state.world
        if login not in (0, world.login) or server not in ("", world.server):
            return REFUSED
        try:
            wanted = (self.folder / "password").read_text().strip()
        except FileNotFoundError:
            return link.OK
        return link.OK if hmac.compare_digest(wanted.encode(), password.encode()) else REFUSED

    def _move_price(self, symbol: str, points: int) -> int:
        if symbol not in self.market.symbols:
            return NOT_FOUND
        moved = PriceMoved(symbol, self.clock(), points)
        self._commit([moved])
        self.market.move(moved.symbol, moved.from_ms, moved.points)
        return link.OK

    def _calc_margin(self, action: int, symbol: str, volume: float, price: float) -> tuple[int, float | None]:
        spec = self.market.symbols.get(symbol)
        if spec is None:
            return NOT_FOUND, None
        if action not in (0, 1) or volume <= 0 or price <= 0:
            return INVALID, None
        return link.OK, round(self.market.margin(spec, volume, price, self.state.world.leverage, self.clock()), 2)

    def _calc_profit(
        self, action: int, symbol: str, volume: float, price_open: float, price_close: float
    ) -> tuple[int, float | None]:
        spec = self.market.symbols.get(symbol)
        if spec is None:
            return NOT_FOUND, None
        if action not in (0, 1) or volume <= 0 or price_open <= 0 or price_close <= 0:
            return INVALID, None
        difference = (price_close - price_open) if action == 0 else (price_open - price_close)
        rate = self.market.rate(spec.currency_profit, self.clock())
        return link.OK, round(difference * volume * spec.contract_size * rate, 2)


def _found(value: T | None) -> tuple[int, T | None]:
    return (link.OK, value) if value is not None else (NOT_FOUND, None)


class Client:
    """A terminal's connection: bytes in, whole frames out; replies that do not fit the socket wait here."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.admitted = False
        self.incoming = bytearray()
        self.outgoing = bytearray()

    def frames(self) -> list[bytes]:
        """Complete frames received so far. Raises ValueError at one that is too long."""
        frames = []
        while len(self.incoming) >= 4:
            length = int.from_bytes(self.incoming[:4], "little")
            if length > MAX_REQUEST:
                raise ValueError("request too long")
            if len(self.incoming) < 4 + length:
                break
            frames.append(bytes(self.incoming[4 : 4 + length]))
            del self.incoming[: 4 + length]
        return frames


class Server:
    """The listening sockets and their clients, in one thread."""

    def __init__(self, broker: Broker, idle_exit_s: float) -> None:
        self.broker = broker
        self.path = link.socket_path(broker.folder)
        self.idle_exit_s = idle_exit_s
        self.token = secrets.token_hex(16)
        self.stopping = False
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.selector = selectors.DefaultSelector()
        for listener in (self.listener, *self._unix_listener()):
            listener.setblocking(False)
            self.selector.register(listener, selectors.EVENT_READ, listener)
        self.clients = 0

    def _unix_listener(self) -> list[socket.socket]:
        if not self.path:
            return []
        Path(self.path).unlink(missing_ok=True)  # left by a killed predecessor: the folder's lock is ours
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        os.chmod(self.path, 0o600)
        listener.listen(64)
        return [listener]

    def run(self) -> None:
        idle_since = time.monotonic()
        while not self.stopping:
            for key, events in self.selector.select(0.25):
                if isinstance(key.data, Client):
                    self._serve(key.data, events)
                else:
                    self._accept(key.data)
            if self.clients:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > self.idle_exit_s:
                return

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        sock.setblocking(False)
        if listener is self.listener:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.selector.register(sock, selectors.EVENT_READ, Client(sock))
        self.clients += 1

    def _serve(self, client: Client, events: int) -> None:
        try:
            if events & selectors.EVENT_READ:
                data = client.socket.recv(65536)
                if not data:
                    raise ConnectionResetError
                client.incoming += data
                for frame in client.frames():
                    client.outgoing += self._reply(client, frame)
            sent = client.socket.send(client.outgoing) if client.outgoing else 0
            del client.outgoing[:sent]
        except BlockingIOError:
            pass
        except (OSError, ValueError):
            self.selector.unregister(client.socket)
            client.socket.close()
            self.clients -= 1
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.outgoing else 0)
        if events & selectors.EVENT_WRITE or wanted & selectors.EVENT_WRITE:
            self.selector.modify(client.socket, wanted, client)

    def _reply(self, client: Client, frame: bytes) -> bytes:
        """The reply frame. Raises ValueError for a client that is not admitted or speaks something else."""
        command, arguments = _head.decode(frame)
        if command == link.HELLO:
            if not hmac.compare_digest(_text.decode(arguments), self.token):
                raise ValueError("wrong token")
            client.admitted = True
            status, value = link.OK, os.getpid()
        elif not client.admitted:
            raise ValueError("no hello")
        elif command == link.STOP:
            self.stopping = True
            status, value = link.OK, 0
        else:
            try:
                status, value = self.broker.answer(command, arguments)
            except msgspec.ValidationError:
                status, value = INVALID, 0
        payload = _encoder.encode((command, status, value))
        return len(payload).to_bytes(4, "little") + payload

    def publish(self, folder: Path) -> None:
        """Writes broker.json: whoever reads it can connect."""
        port: int = self.listener.getsockname()[1]
        address = link.Address(port=port, token=self.token, pid=os.getpid(), path=self.path)
        fresh = folder / f"broker.json.{os.getpid()}"
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(msgspec.json.encode(address))
        os.replace(fresh, link.address_path(folder))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gateway.simulated.broker", description="The simulated broker.")
    parser.add_argument("--dir", type=Path, required=True, help="the folder its state lives in")
    parser.add_argument("--idle-exit-s", type=float, default=IDLE_EXIT_S, help="end after this long without clients")
    defaults = World()
    for field in ("seed", "login", "server", "leverage", "balance", "utc_offset_s"):
        value = getattr(defaults, field)
        help_text = f"of a new broker (default {value})"
        parser.add_argument("--" + field.replace("_", "-"), type=type(value), default=value, help=help_text)
    options = vars(parser.parse_args(arguments))
    folder: Path = options.pop("dir")
    idle_exit_s: float = options.pop("idle_exit_s")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "broker.lock", timeout=LOCK_TIMEOUT_S, poll_interval=0.01, fallback_to_soft=False):
            _run(folder, World(**options), idle_exit_s)
    except Timeout:
        sys.stderr.write(f"{folder}: another broker holds the folder\n")
        return 3
    return 0


def _run(folder: Path, world: World, idle_exit_s: float) -> None:
    broker = Broker(folder, world)
    server = Server(broker, idle_exit_s)

    def stop(*_: object) -> None:
        server.stopping = True

    # The terminal that starts a broker may ignore these signals, and a child inherits that.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)
    server.publish(folder)
    try:
        server.run()
    finally:
        link.address_path(folder).unlink(missing_ok=True)
        if server.path:
            Path(server.path).unlink(missing_ok=True)
        broker.journal.close()


if __name__ == "__main__":
    sys.exit(main())
