"""The broker process: `python -m gateway.simulated.broker --dir DIR [--seed N] …`.

One process per folder (a file lock), one thread, any number of terminals. It outlives them: what it accepted is on
disk before it is answered, and it ends by itself after a while without clients, at a `stop` frame, or at SIGTERM.
Its address is written to DIR/broker.json, atomically, once it listens. A DIR/password file, if present, holds the
one password that logs in; without it any does.
"""

import argparse
import contextlib
import heapq
import hmac
import os
import secrets
import selectors
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec
from filelock import FileLock, Timeout

from gateway.frames import Frames, frame
from gateway.processes import tune_collector
from gateway.simulated import constants, link
from gateway.simulated.faults import Fault
from gateway.simulated.rows import World
from gateway.simulated.service import INVALID, Broker

IDLE_EXIT_S: Final = 15.0
LOCK_TIMEOUT_S: Final = 8.0  # for a predecessor that is just ending
MAX_REQUEST: Final = 1 << 16
_TURN_S: Final = 0.25  # at least so often the market is looked at
_KILL: Final = getattr(signal, "SIGKILL", signal.SIGTERM)
_MARGIN_MODES: Final = {
    "hedging": constants.ACCOUNT_MARGIN_MODE_RETAIL_HEDGING,
    "netting": constants.ACCOUNT_MARGIN_MODE_RETAIL_NETTING,
    "exchange": constants.ACCOUNT_MARGIN_MODE_EXCHANGE,
}

_head = msgspec.msgpack.Decoder(tuple[int, msgspec.Raw])
_hello = msgspec.msgpack.Decoder(tuple[str, int])
_encoder = msgspec.msgpack.Encoder()


class Client:
    """A terminal's connection: bytes in, whole frames out; replies that do not fit the socket wait here."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.admitted = False
        self.closed = False
        self.pid = 0
        self.incoming = Frames(MAX_REQUEST)
        self.outgoing = bytearray()


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
        self._count = 0
        self._later: list[tuple[float, int, Client, bytes | None, int, msgspec.Raw | None]] = []

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
            ready = self.selector.select(self._patience())
            for key, events in ready:
                if isinstance(key.data, Client):
                    self._serve(key.data, events)
                else:
                    self._accept(key.data)
            self._do_late()
            if not ready:
                self.broker.trading.advance()
            if self.clients:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > self.idle_exit_s:
                return

    def _patience(self) -> float:
        return min(_TURN_S, max(self._later[0][0] - time.monotonic(), 0.0)) if self._later else _TURN_S

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
                received = client.socket.recv_into(client.incoming.view)
                if not received:
                    raise ConnectionResetError
                for request in client.incoming.take(received):
                    self._handle(client, request)
            self._send(client, events)
        except (OSError, ValueError):
            self._drop(client)

    def _send(self, client: Client, events: int = 0) -> None:
        if client.closed:
            return
        try:
            sent = client.socket.send(client.outgoing) if client.outgoing else 0
        except BlockingIOError:
            sent = 0
        del client.outgoing[:sent]
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.outgoing else 0)
        if events & selectors.EVENT_WRITE or wanted & selectors.EVENT_WRITE:
            self.selector.modify(client.socket, wanted, client)

    def _drop(self, client: Client) -> None:
        if not client.closed:
            client.closed = True
            self.selector.unregister(client.socket)
            client.socket.close()
            self.clients -= 1

    def _handle(self, client: Client, frame: bytes) -> None:
        """Answers, sooner or later. Raises ValueError for a client that is not admitted or speaks something else."""
        command, arguments = _head.decode(frame)
        if command == link.HELLO:
            token, client.pid = _hello.decode(arguments)
            if not hmac.compare_digest(token, self.token):
                raise ValueError("wrong token")
            client.admitted = True
            client.outgoing += _reply(command, link.OK, os.getpid())
        elif not client.admitted:
            raise ValueError("no hello")
        elif command == link.STOP:
            self.stopping = True
            client.outgoing += _reply(command, link.OK, 0)
        else:
            self._answer(client, command, arguments, self.broker.fault_of(command))

    def _answer(self, client: Client, command: int, arguments: msgspec.Raw, fault: Fault | None) -> None:
        """What the fault does to the call itself; what it does to the trade is the broker's."""
        if fault is None:
            client.outgoing += self._done(command, arguments, None)
            return
        match fault.name:
            case "error":
                client.outgoing += _reply(command, fault.value, None)
            case "lost":
                self._done(command, arguments, None)
                client.outgoing += _reply(command, fault.value, None)
            case "hang" | "hang_after":
                if fault.name == "hang_after":
                    self._done(command, arguments, None)
                if fault.value:
                    self._do_later(fault.value, client, None, command, None)
            case "delay":
                self._do_later(fault.value, client, self._done(command, arguments, None), command, None)
            case "slow":
                self._do_later(fault.value, client, b"", command, arguments.copy())
            case "kill" | "kill_after":
                if fault.name == "kill_after":
                    self._done(command, arguments, None)
                os.kill(os.getpid(), _KILL)
            case "crash" | "crash_after":
                if fault.name == "crash_after":
                    self._done(command, arguments, None)
                if client.pid:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(client.pid, _KILL)
                raise ValueError("the terminal's process is gone")
            case _:
                client.outgoing += self._done(command, arguments, fault)

    def _done(self, command: int, arguments: msgspec.Raw, fault: Fault | None) -> bytes:
        try:
            status, value = self.broker.answer(command, arguments, fault)
        except msgspec.ValidationError:
            status, value = INVALID, None
        return _reply(command, status, value)

    def _do_later(
        self, after_ms: int, client: Client, reply: bytes | None, command: int, arguments: msgspec.Raw | None
    ) -> None:
        """A reply for later; None closes the connection, and `arguments` are a request still to be done."""
        self._count += 1
        due = time.monotonic() + after_ms / 1000
        heapq.heappush(self._later, (due, self._count, client, reply, command, arguments))

    def _do_late(self) -> None:
        while self._later and self._later[0][0] <= time.monotonic():
            _, _, client, reply, command, arguments = heapq.heappop(self._later)
            if arguments is not None:  # its client may have gone: it was sent all the same
                reply = self._done(command, arguments, None)
            if client.closed:
                continue
            if reply is None:
                self._drop(client)
                continue
            client.outgoing += reply
            try:
                self._send(client)
            except OSError:
                self._drop(client)

    def publish(self, folder: Path) -> None:
        """Writes broker.json: whoever reads it can connect."""
        port: int = self.listener.getsockname()[1]
        address = link.Address(port=port, token=self.token, pid=os.getpid(), path=self.path)
        fresh = folder / f"broker.json.{os.getpid()}"
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(msgspec.json.encode(address))
        os.replace(fresh, link.address_path(folder))


def _reply(command: int, status: int, value: Any) -> bytes:
    return frame(_encoder.encode((command, status, value)))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gateway.simulated.broker", description="The simulated broker.")
    parser.add_argument("--dir", type=Path, required=True, help="the folder its state lives in")
    parser.add_argument("--idle-exit-s", type=float, default=IDLE_EXIT_S, help="end after this long without clients")
    defaults = World()
    for field in ("seed", "login", "server", "leverage", "balance", "utc_offset_s"):
        value = getattr(defaults, field)
        help_text = f"of a new broker (default {value})"
        parser.add_argument("--" + field.replace("_", "-"), type=type(value), default=value, help=help_text)
    parser.add_argument("--margin-mode", choices=_MARGIN_MODES, default="hedging", help="of a new broker")
    parser.add_argument("--currency", default=defaults.currency, help="of a new account")
    options = vars(parser.parse_args(arguments))
    folder: Path = options.pop("dir")
    idle_exit_s: float = options.pop("idle_exit_s")
    options["margin_mode"] = _MARGIN_MODES[options["margin_mode"]]
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
    tune_collector()
    try:
        server.run()
    finally:
        link.address_path(folder).unlink(missing_ok=True)
        if server.path:
            Path(server.path).unlink(missing_ok=True)
        broker.close()


if __name__ == "__main__":
    sys.exit(main())
