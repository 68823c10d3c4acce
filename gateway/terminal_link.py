"""The parent's end of a terminal child: the process, its sockets, one exchange at a time, and their deadlines."""

import asyncio
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from gateway.broker import Outcome
from gateway.frames import Frames, frame
from gateway.processes import child_environment
from gateway.terminal_child import Call, Reply, SendAll, TerminalSettings

KILL_WAIT_S: Final = 5.0

_encode = msgspec.msgpack.Encoder().encode
decode_outcome = msgspec.msgpack.Decoder(Reply[Outcome]).decode


class Exchange:
    """One call to the child and its replies. `future` ends when the reply came, or none will come any more."""

    __slots__ = ("begun", "deadline_s", "frame", "future", "has_notes", "proven", "replies")

    def __init__(self, call: Call, deadline_s: float, future: "asyncio.Future[str]") -> None:
        self.frame = frame(_encode(call))
        self.deadline_s = deadline_s
        self.future = future  # "" or why the reply is missing
        self.replies: list[bytes] = []  # the last is the reply to the call, those before it are evidence
        self.has_notes = isinstance(call, SendAll) and len(call.sends) > 1
        self.begun = False  # written to the child
        self.proven = True  # the child is gone: what lies behind the first missing reply was not begun


class Child(asyncio.BufferedProtocol):
    """A running child: one exchange at a time, each with its deadline."""

    def __init__(
        self,
        process: "subprocess.Popen[bytes]",
        evidence: socket.socket,
        on_lost: Callable[["Child", str], None],
    ) -> None:
        self.process = process
        self._evidence = evidence
        self.lost = False
        self.gone = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._frames = Frames()
        self._current: Exchange | None = None
        self._waiting: deque[Exchange] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0  # when the current exchange has had its time; the timer may be earlier
        self._notes = Frames()
        self._peer_closed = False
        self._killed = False
        self._reason = "the terminal process ended"

    # ---- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods, not by its class

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._frames.view

    def buffer_updated(self, nbytes: int) -> None:
        for reply in self._frames.take(nbytes):
            self._answered(reply)

    def eof_received(self) -> None:
        self._peer_closed = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed by the child's end (then it is dead, and all it wrote has been read), or by this one."""
        self._end(proven=self._peer_closed or isinstance(exc, ConnectionError))

    # ---- exchanges

    def submit(self, call: Call, deadline_s: float) -> Exchange:
        exchange = Exchange(call, deadline_s, self._loop.create_future())
        if self.lost:
            exchange.future.set_result(self._reason)
        else:
            self._waiting.append(exchange)
            self._begin_next()
        return exchange

    def _begin_next(self) -> None:
        while self._waiting and self._current is None and not self._killed:
            exchange = self._waiting.popleft()
            if not exchange.future.cancelled():  # nobody waits for it and it was not written: it is dropped
                self._begin(exchange)

    def _begin(self, exchange: Exchange) -> None:
        assert self._transport is not None
        self._current = exchange
        exchange.begun = True
        self._transport.write(exchange.frame)
        self._due = self._loop.time() + exchange.deadline_s
        if self._timer is None or self._timer.when() > self._due:
            self._stop_timer()
            self._timer = self._loop.call_at(self._due, self._expired)

    def _answered(self, reply: bytes) -> None:
        exchange = self._current
        if exchange is None:
            self.kill("the terminal process answered without being asked")
            return
        if exchange.has_notes:
            exchange.replies += self._read_evidence()
        exchange.replies.append(reply)
        self._current = None
        if not exchange.future.done():
            exchange.future.set_result("")
        self._begin_next()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _read_evidence(self) -> list[bytes]:
        """What the child has noted since the last look."""
        notes: list[bytes] = []
        with suppress(BlockingIOError, ConnectionError):
            while received := self._evidence.recv_into(self._notes.view):
                notes += self._notes.take(received)
        return notes

    def _expired(self) -> None:
        """The deadline is each send's own: it counts from the outcome before it. One timer serves all exchanges, so
        it may find that the current one still has time."""
        self._timer = None
        exchange = self._current
        if exchange is None:
            return
        if exchange.has_notes and (notes := self._read_evidence()):
            exchange.replies += notes
            self._due = decode_outcome(notes[-1]).at + exchange.deadline_s  # the loop's clock is time.monotonic
        if self._loop.time() < self._due:
            self._timer = self._loop.call_at(self._due, self._expired)
        else:
            self.kill(f"no answer from the terminal in {exchange.deadline_s:g} s")

    # ---- ending

    def kill(self, reason: str) -> None:
        """SIGKILL; what it answered before is still read, up to the end of the socket."""
        if not (self.lost or self._killed):
            self._killed = True
            self._reason = reason
            self.process.kill()
            self._stop_timer()
            self._timer = self._loop.call_later(KILL_WAIT_S, self._end)

    def _end(self, *, proven: bool = False) -> None:
        if self.lost:
            return
        self.lost = True
        self._stop_timer()
        if self._transport is not None:
            self._transport.abort()
        self.process.kill()
        if self._current is not None:
            self._current.replies += self._read_evidence()
        self._evidence.close()
        for exchange in filter(None, (self._current, *self._waiting)):
            exchange.proven = proven
            if not exchange.future.done():
                exchange.future.set_result(self._reason)
        self._current = None
        self._waiting.clear()
        self._on_lost(self, self._reason)
        self.gone.set()

    def reap(self) -> None:
        """Waits, in a thread of its own, until the operating system has forgotten the process."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(KILL_WAIT_S)


def start_process(settings: TerminalSettings, *sockets: socket.socket) -> "subprocess.Popen[bytes]":
    Path(settings.folder).mkdir(parents=True, exist_ok=True)
    numbers = [sock.fileno() for sock in sockets]
    for sock in sockets:
        sock.set_inheritable(True)
    arguments: dict[str, Any] = {"pass_fds": numbers}
    if os.name == "nt":
        startup = subprocess.STARTUPINFO()  # type: ignore[attr-defined,unused-ignore]
        startup.lpAttributeList = {"handle_list": numbers}
        arguments = {"startupinfo": startup, "close_fds": True}
    with open(Path(settings.folder) / f"terminal-{settings.role}.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "gateway.terminal_child", *map(str, numbers)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=child_environment(),
            start_new_session=True,
            **arguments,
        )
