"""The process that hosts a terminal: `python -m gateway.terminal_child CALLS EVIDENCE`.

CALLS and EVIDENCE are sockets inherited from `gateway/terminal.py`. It answers one call at a time on the first and
reads the next after that. Of a batch of sends, each outcome but the last goes to the second, where nobody waits for
it, so that it wakes nobody; should this process die within the batch, they are found there. Two rules fence it off
from a broker it should no longer reach: before every send it looks whether its parent's end of the socket is still
open, and a child that trades holds a file lock per terminal and account, which its successor must obtain first. What
it imports is what it takes to start, so it starts fast.
"""

import os
import select
import signal
import socket
import sys
import threading
import time
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, Generic, Literal, NoReturn, TypeVar

import msgspec

from gateway.broker import LoginRefused, NotSent, Send, Target, TerminalError
from gateway.frames import Frames, frame
from gateway.mt5 import Mt5Session
from gateway.processes import tune_collector
from ledger.trade import TradeRequest

LOCK_POLL_S: Final = 0.02
REFUSES_SENDS: Final = NotSent(0, "a query terminal does not send")

T = TypeVar("T")


class TerminalSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Which terminal, as which account, in which role. The password is handed over separately.

    `folder` holds the lock of the trading child, the children's logs and, for the simulated terminal, its broker.
    """

    folder: str
    kind: Literal["simulated", "native", "mt5linux"] = "simulated"
    role: Literal["trade", "query"] = "trade"
    login: int = 0  # 0: whatever account the terminal is logged in to
    server: str = ""
    path: str = ""
    portable: bool = False
    bridge_host: str = "127.0.0.1"  # of the mt5linux server
    bridge_port: int = 18812
    timeout_s: float = 60.0  # of initialize and login
    call_deadline_s: float = 10.0  # of every other call, kept by the parent
    deal_wait_s: float = 0.05
    lock_wait_s: float = 10.0
    restart: bool = True
    reconnect_interval_s: float = 10.0  # the longest pause between two attempts to connect again
    clock_symbol: str = "EURUSD"  # its ticks show the server's time zone
    seed: int = 1
    simulated_options: tuple[str, ...] = ()  # arguments of a new simulated broker
    simulated_faults: str = ""  # given to it at initialize; "": those of the environment, if any

    @property
    def broker_folder(self) -> Path:
        return Path(self.folder) / "broker"

    @property
    def lock_path(self) -> Path:
        bridge = f"|{self.bridge_host}:{self.bridge_port}" if self.kind == "mt5linux" else ""
        place = blake2b(f"{self.kind}|{self.server}|{self.path}{bridge}".encode(), digest_size=4).hexdigest()
        return Path(self.folder) / f"terminal-{self.login}-{place}.lock"


class Connect(msgspec.Struct, frozen=True, tag=0, array_like=True):
    settings: TerminalSettings
    password: str

    def __repr__(self) -> str:
        return f"Connect({self.settings!r})"


class CheckAll(msgspec.Struct, frozen=True, tag=1, array_like=True):
    requests: tuple[TradeRequest, ...]


class SendAll(msgspec.Struct, frozen=True, tag=2, array_like=True):
    sends: tuple[Send, ...]


class AskSymbol(msgspec.Struct, frozen=True, tag=3, array_like=True):
    name: str


class AskTick(msgspec.Struct, frozen=True, tag=4, array_like=True):
    name: str


class AskAccount(msgspec.Struct, frozen=True, tag=5, array_like=True):
    pass


class Find(msgspec.Struct, frozen=True, tag=6, array_like=True):
    magics: tuple[int, ...]
    comments: tuple[str, ...]
    since_s: float


class AskTarget(msgspec.Struct, frozen=True, tag=7, array_like=True):
    target: Target


class AskActivity(msgspec.Struct, frozen=True, tag=8, array_like=True):
    since_msc: int
    orders: bool = True
    rest: bool = True


class Verify(msgspec.Struct, frozen=True, tag=9, array_like=True):
    pass


Call = Connect | CheckAll | SendAll | AskSymbol | AskTick | AskAccount | Find | AskTarget | AskActivity | Verify


class Read(msgspec.Struct, frozen=True, tag=20, array_like=True):
    """A read call of the module as it is, for those who want its own structs (gateway/mt5_manager.py)."""

    function: str
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


# Those that change nothing: all others are orders, or of the connection.
READ_CALLS: Final = frozenset(
    (
        "version", "terminal_info", "account_info", "symbols_total", "symbols_get", "symbol_info", "symbol_info_tick",
        "market_book_add", "market_book_get", "market_book_release", "copy_rates_from", "copy_rates_from_pos",
        "copy_rates_range", "copy_ticks_from", "copy_ticks_range", "orders_total", "orders_get", "positions_total",
        "positions_get", "history_orders_total", "history_orders_get", "history_deals_total", "history_deals_get",
        "order_check", "order_calc_margin", "order_calc_profit",
    )
)  # fmt: skip


class Failed(msgspec.Struct, frozen=True, array_like=True):
    """A TerminalError on its way to the parent."""

    text: str
    code: int
    refused: bool


class Reply(msgspec.Struct, Generic[T], frozen=True, array_like=True):
    value: T | None = None
    failed: Failed | None = None
    at: float = 0.0  # monotonic time of an outcome within a batch: from then on the next one had its time


_calls = msgspec.msgpack.Decoder(Call | Read)
_encode = msgspec.msgpack.Encoder().encode


class Parent:
    """The other end of the sockets."""

    def __init__(self, sock: socket.socket, evidence: socket.socket) -> None:
        self.socket = sock
        self.evidence = evidence
        self._frames = Frames()
        self._poll = select.poll() if hasattr(select, "poll") else None
        if self._poll is not None:
            self._poll.register(sock, select.POLLIN)

    def receive(self) -> Call | Read:
        """The next request; the process ends when there will be none."""
        try:
            call: Call | Read = _calls.decode(self._frames.receive(self.socket))
        except (OSError, EOFError):
            leave()
        return call

    def reply(self, value: Any = None, failed: Failed | None = None) -> None:
        self._write(self.socket, Reply(value, failed))

    def note(self, value: Any) -> None:
        """An outcome within a batch, complete in the kernel before the next send begins."""
        self._write(self.evidence, Reply(value, None, time.monotonic()))

    @staticmethod
    def _write(sock: socket.socket, reply: Reply[Any]) -> None:
        try:
            sock.sendall(frame(_encode(reply)))
        except OSError:
            leave()

    def leave_if_gone(self) -> None:
        """The parent asks nothing new before it has all answers, so there is data only at its end."""
        try:
            readable = self._poll.poll(0) if self._poll is not None else select.select([self.socket], [], [], 0)[0]
            if readable and not self.socket.recv(1, socket.MSG_PEEK):
                leave()
        except OSError:
            leave()

    def watch(self) -> None:
        """Ends the process as soon as the parent's end closes, also while a call waits for its terminal. The native
        binding holds the GIL in a call; there it is the look before each send that counts."""
        if not hasattr(select, "poll"):
            return
        poll = select.poll()
        poll.register(self.socket, 0)  # errors and hang-ups only

        def wait() -> None:
            poll.poll()
            leave()

        threading.Thread(target=wait, name="parent-watch", daemon=True).start()


def leave(code: int = 0) -> NoReturn:
    """At once: there is nobody to tell, nothing to flush, and the kernel frees the lock."""
    os._exit(code)


def serve(parent: Parent) -> None:
    """Answers requests until the parent goes, or the terminal does."""
    first = parent.receive()
    if not isinstance(first, Connect):
        return
    session = _connected(parent, first)
    if session is None:
        return
    tune_collector()
    while not session.link_broken:
        call = parent.receive()
        try:
            _answer(parent, session, call, may_send=first.settings.role == "trade")
        except TerminalError as error:
            parent.reply(failed=_failed(error))


def _answer(parent: Parent, session: Mt5Session, call: Call | Read, *, may_send: bool) -> None:
    match call:
        case Read(function, arguments, keywords):
            if function not in READ_CALLS:
                raise TerminalError(f"{function} is no read call")
            parent.reply(session.read(function, arguments, keywords))
        case SendAll(sends):
            for left in range(len(sends) - 1, -1, -1):
                parent.leave_if_gone()
                outcome = session.send(sends[-1 - left]) if may_send else REFUSES_SENDS
                if left:
                    parent.note(outcome)
                else:
                    parent.reply(outcome)
        case CheckAll(requests):
            parent.reply([session.check(request) for request in requests])
        case AskSymbol(name):
            parent.reply(session.symbol(name))
        case AskTick(name):
            parent.reply(session.tick(name))
        case AskAccount():
            parent.reply(session.account())
        case Find(magics, comments, since_s):
            parent.reply(session.find(magics, comments, since_s))
        case AskTarget(target):
            parent.reply(session.target(target))
        case AskActivity(since_msc, orders, rest):
            parent.reply(session.activity(since_msc, orders=orders, rest=rest))
        case Verify():
            parent.reply(session.verify())
        case Connect():
            raise TerminalError("already connected")


def _failed(error: TerminalError) -> Failed:
    return Failed(str(error), error.code, isinstance(error, LoginRefused))


def _connected(parent: Parent, call: Connect) -> Mt5Session | None:
    settings = call.settings
    try:
        if settings.role == "trade":
            _obtain_lock(parent, settings)
        session = Mt5Session(
            load_module(settings, share_cpu=True),
            login=settings.login,
            password=call.password,
            server=settings.server,
            path=settings.path,
            portable=settings.portable,
            timeout_s=settings.timeout_s,
            deal_wait_s=settings.deal_wait_s,
            clock_symbol=settings.clock_symbol,
        )
        parent.reply(session.connect())
    except TerminalError as error:
        parent.reply(failed=_failed(error))
        return None
    return session


def _obtain_lock(parent: Parent, settings: TerminalSettings) -> None:
    """Held until this process ends. Raises TerminalError if another child keeps it."""
    from filelock import FileLock, Timeout

    lock = FileLock(settings.lock_path, fallback_to_soft=False, thread_local=False)
    deadline = time.monotonic() + settings.lock_wait_s
    while True:
        parent.leave_if_gone()
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if time.monotonic() > deadline:
                raise TerminalError(
                    f"another process trades account {settings.login} on this terminal: {settings.lock_path} is held"
                ) from None
            time.sleep(LOCK_POLL_S)
        else:
            _held.append(lock)
            return


_held: Final[list[object]] = []


def load_module(settings: TerminalSettings, *, share_cpu: bool = False) -> Any:
    """The MetaTrader5 module, or what stands for it. `share_cpu` keeps this process on one CPU with a simulated broker.
    Raises TerminalError if it is not installed."""
    if settings.kind == "simulated":
        from gateway.simulated.terminal import load

        return load(
            settings.broker_folder,
            seed=settings.seed,
            options=settings.simulated_options,
            faults=settings.simulated_faults,
            share_cpu=share_cpu,
        )
    if settings.kind == "native":
        from importlib import import_module

        try:
            return import_module("MetaTrader5")
        except ImportError as error:
            raise TerminalError(f"cannot import MetaTrader5, which exists for Windows only: {error}") from None
    from gateway.mt5_bridge import Bridge

    return Bridge(settings.bridge_host, settings.bridge_port)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the parent decides when its children end
    parent = Parent(*(socket.socket(fileno=int(number)) for number in sys.argv[1:3]))
    parent.watch()
    serve(parent)
    leave()


if __name__ == "__main__":
    main()
