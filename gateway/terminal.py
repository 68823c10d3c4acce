"""The broker port over a child process that hosts the terminal.

The binding blocks, has no timeout and never releases the GIL, so it lives in a process that can be killed. The parent
keeps the deadlines and says of every request what it can prove:

- Answered: the child's reply arrived.
- Unknown: the child may have begun it and no reply came.
- NotSent: it was never written to the child, or the child ended before it could begin it. The child writes the
  outcome of each send of a batch before it begins the next, and its end of the socket closes only when it dies; so
  once that end is seen closed, only the first send without an outcome can have been begun.

A child that misses a deadline, dies or loses its terminal is replaced in the background, with growing delays.
"""

import asyncio
import random
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, Literal, TypeVar

import msgspec

from gateway.broker import (
    Account,
    Activity,
    Answered,
    CheckOutcome,
    Evidence,
    LoginRefused,
    NotSent,
    Outcome,
    Send,
    Symbol,
    Target,
    TargetView,
    TerminalError,
    Tick,
    Unknown,
)
from gateway.config import Settings
from gateway.retcodes import lookup_error
from gateway.terminal_child import (
    AskAccount,
    AskActivity,
    AskSymbol,
    AskTarget,
    AskTick,
    Call,
    CheckAll,
    Connect,
    Find,
    Reply,
    SendAll,
    TerminalSettings,
    Verify,
)
from gateway.terminal_link import Child, Exchange, decode_outcome, start_process
from ledger.trade import TradeRequest

BATCH: Final = 8  # sends written to the child at once
FIRST_DELAY_S: Final = 0.1
FIND_CALLS: Final = 4  # a find is that many queries: its deadline is as many times longer

T = TypeVar("T")

_checks = msgspec.msgpack.Decoder(Reply[list[CheckOutcome]]).decode
_account = msgspec.msgpack.Decoder(Reply[Account]).decode
_symbol = msgspec.msgpack.Decoder(Reply[Symbol]).decode
_tick = msgspec.msgpack.Decoder(Reply[Tick]).decode
_evidence = msgspec.msgpack.Decoder(Reply[Evidence]).decode
_target = msgspec.msgpack.Decoder(Reply[TargetView]).decode
_activity = msgspec.msgpack.Decoder(Reply[Activity]).decode


class TerminalStatus(msgspec.Struct, frozen=True):
    """`refused` and `closed` are final until `connect` is called; `down` is followed by attempts to reconnect."""

    state: Literal["closed", "connecting", "connected", "down", "refused"]
    text: str = ""
    code: int = 0


class TerminalProcess:
    """Implements `gateway.broker.Broker`. `on_change` is called, in the event loop, at every change of status."""

    def __init__(
        self,
        settings: TerminalSettings,
        password: str = "",
        *,
        on_change: Callable[[TerminalStatus], None] = lambda _: None,
        jitter: random.Random | None = None,
    ) -> None:
        self.settings = settings
        self.status = TerminalStatus("closed")
        self._password = password
        self._on_change = on_change
        self._jitter = jitter or random.Random()
        self._child: Child | None = None  # the connected one
        self._children: set[Child] = set()  # all that are not gone yet
        self._starting = asyncio.Lock()
        self._restart: asyncio.Task[None] | None = None
        self._settings_changed = asyncio.Event()
        self._reaping: set[asyncio.Future[Any]] = set()

    def __repr__(self) -> str:
        return f"TerminalProcess({self.settings!r}, {self.status.state})"

    @property
    def pid(self) -> int | None:
        """Of the child that is connected now."""
        return self._child.process.pid if self._child is not None else None

    # ---- life

    async def connect(self) -> Account:
        """Starts the child, or asks the one that runs. Raises TerminalError (attempts go on in the background if
        `settings.restart`) or LoginRefused (they do not)."""
        async with self._starting:
            child = self._child
            if child is not None:
                try:
                    return await self.account()
                except TerminalError as error:
                    if not child.lost or isinstance(error, LoginRefused):
                        raise
            try:
                return await self._start()
            except LoginRefused:
                raise
            except TerminalError:
                self._restart_later()
                raise

    async def close(self) -> None:
        self._set("closed")
        if self._restart is not None:
            self._restart.cancel()
            with suppress(asyncio.CancelledError):
                await self._restart
        self._child = None
        for child in tuple(self._children):
            child.kill("the terminal was closed")
            await child.gone.wait()
        if self._reaping:
            await asyncio.wait(self._reaping)

    def use(self, settings: Settings) -> None:
        """Whether and how often a lost terminal is started again, from now on. The one for queries always is."""
        restart = settings.auto_reconnect or self.settings.role == "query"
        self.settings = msgspec.structs.replace(
            self.settings, restart=restart, reconnect_interval_s=settings.reconnect_interval_s
        )
        self._settings_changed.set()
        if self.status.state == "down":
            self._restart_later()

    def _set(self, state: Any, text: str = "", code: int = 0) -> None:
        status = TerminalStatus(state, text, code)
        if status != self.status:
            self.status = status
            self._on_change(status)

    async def _start(self) -> Account:
        self._set("connecting")
        settings = self.settings
        child = await self._spawn()
        wait = settings.timeout_s + settings.lock_wait_s + settings.call_deadline_s
        exchange = child.submit(Connect(settings, self._password), wait)
        try:
            account = _value(exchange, await exchange.future, _account)
            if account is None or child.lost or self.status.state == "closed":
                raise TerminalError("the terminal process ended")
        except TerminalError as error:
            child.kill(str(error))
            if self.status.state != "closed":
                self._set("refused" if isinstance(error, LoginRefused) else "down", str(error), error.code)
            raise
        except asyncio.CancelledError:
            child.kill("no longer wanted")
            raise
        self._child = child
        self._set("connected")
        return account

    async def _spawn(self) -> Child:
        loop = asyncio.get_running_loop()
        try:
            (ours, theirs), (evidence, their_evidence) = socket.socketpair(), socket.socketpair()
        except OSError as error:
            raise TerminalError(f"the terminal process could not be started: {error}") from None
        ours.setblocking(False)
        evidence.setblocking(False)
        try:
            process = start_process(self.settings, theirs, their_evidence)
        except OSError as error:
            ours.close()
            evidence.close()
            raise TerminalError(f"the terminal process could not be started: {error}") from None
        finally:
            theirs.close()
            their_evidence.close()
        child = Child(process, evidence, self._lost)
        self._children.add(child)
        if ours.family == getattr(socket, "AF_UNIX", None):
            await loop.create_unix_connection(lambda: child, sock=ours)
        else:  # a pair of sockets is a TCP connection on Windows
            await loop.create_connection(lambda: child, sock=ours)
        return child

    def _lost(self, child: Child, reason: str) -> None:
        reaping = asyncio.get_running_loop().run_in_executor(None, child.reap)
        self._children.discard(child)
        self._reaping.add(reaping)
        reaping.add_done_callback(self._reaping.discard)
        if child is self._child:
            self._child = None
            self._set("down", reason)
            self._restart_later()

    def _restart_later(self) -> None:
        if self.settings.restart and self.status.state != "closed" and (self._restart is None or self._restart.done()):
            self._restart = asyncio.get_running_loop().create_task(self._restart_until_connected())

    async def _restart_until_connected(self) -> None:
        waits = pauses(self.settings.reconnect_interval_s)
        while True:
            self._settings_changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(next(waits) * self._jitter.uniform(0.75, 1.25)):
                    await self._settings_changed.wait()
                    waits = pauses(self.settings.reconnect_interval_s)
            if not self.settings.restart:
                return
            async with self._starting:
                if self._child is not None:
                    return
                try:
                    await self._start()
                except LoginRefused:
                    return
                except TerminalError:
                    continue
                return

    # ---- the port

    async def send(self, sends: Sequence[Send]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for start in range(0, len(sends), BATCH):
            batch = tuple(sends[start : start + BATCH])
            child = self._child
            if child is None:
                outcomes += [self._not_running()] * len(batch)
                continue
            exchange = child.submit(SendAll(batch), self.settings.call_deadline_s)
            found = _outcomes(exchange, await exchange.future, len(batch))
            if any(not isinstance(one, Answered) and lookup_error(one.code).link_broken for one in found):
                child.kill("the terminal's link is broken")  # what is sent after that would only be unknown too
            outcomes += found
        return outcomes

    async def check(self, requests: Sequence[TradeRequest]) -> list[CheckOutcome]:
        child = self._child
        if child is None or not requests:
            return [self._not_running()] * len(requests)
        exchange = child.submit(CheckAll(tuple(requests)), self.settings.call_deadline_s)
        missing = await exchange.future
        if not exchange.begun:
            return [NotSent(0, missing)] * len(requests)
        try:
            return _value(exchange, missing, _checks) or []
        except TerminalError as error:
            return [Unknown(error.code, str(error))] * len(requests)

    async def symbol(self, name: str) -> Symbol | None:
        return await self._ask(AskSymbol(name), _symbol)

    async def tick(self, name: str) -> Tick | None:
        return await self._ask(AskTick(name), _tick)

    async def account(self) -> Account:
        account = await self._ask(AskAccount(), _account)
        if account is None:
            raise TerminalError("the terminal shows no account")
        return account

    async def find(self, magics: Sequence[int], comments: Sequence[str], since_s: float) -> Evidence:
        """Never raises for a terminal that does not answer: evidence is then incomplete."""
        try:
            evidence = await self._ask(Find(tuple(magics), tuple(comments), since_s), _evidence, calls=FIND_CALLS)
        except LoginRefused:
            raise
        except TerminalError as error:
            return Evidence(complete=False, reason=f"{error.code}: {error}")
        return evidence or Evidence(complete=False, reason="the terminal gave no evidence")

    async def target(self, target: Target) -> TargetView:
        view = await self._ask(AskTarget(target), _target, calls=FIND_CALLS)
        if view is None:
            raise TerminalError("the terminal did not show the target")
        return view

    async def activity(self, since_msc: int, *, orders: bool = True, rest: bool = True) -> Activity:
        activity = await self._ask(AskActivity(since_msc, orders, rest), _activity, calls=FIND_CALLS)
        if activity is None:
            raise TerminalError("the terminal did not show the account's activity")
        return activity

    async def verify(self) -> Account:
        account = await self._ask(Verify(), _account)
        if account is None:
            raise TerminalError("the terminal shows no account")
        return account

    async def _ask(self, call: Call, decode: Callable[[bytes], Reply[T]], calls: int = 1) -> T | None:
        child = self._child
        if child is None:
            raise TerminalError(self._not_running().text)
        exchange = child.submit(call, self.settings.call_deadline_s * calls)
        return _value(exchange, await exchange.future, decode)

    def _not_running(self) -> NotSent:
        return NotSent(0, f"the terminal is {self.status.state}: {self.status.text}".rstrip(": "))


def pauses(longest_s: float) -> Iterator[float]:
    """Seconds between one attempt to connect and the next, for ever: each twice as long as the one before, up to the
    longest."""
    pause_s = min(FIRST_DELAY_S, longest_s)
    while True:
        yield pause_s
        pause_s = min(pause_s * 2, longest_s)


def _outcomes(exchange: Exchange, missing: str, count: int) -> list[Outcome]:
    """One outcome per send: those the child told, then what can be said of the others."""
    if not exchange.begun:
        return [NotSent(0, missing)] * count
    outcomes: list[Outcome] = []
    for frame in exchange.replies:
        try:
            outcomes.append(decode_outcome(frame).value or Unknown(0, "the terminal process gave no outcome"))
        except msgspec.MsgspecError as error:
            outcomes.append(Unknown(0, f"the terminal process answered unreadably: {error}"))
    if len(outcomes) < count:
        outcomes.append(Unknown(0, missing))
    behind = NotSent(0, missing) if exchange.proven else Unknown(0, missing)
    return outcomes + [behind] * (count - len(outcomes))


def _value(exchange: Exchange, missing: str, decode: Callable[[bytes], Reply[T]]) -> T | None:
    if not exchange.replies:
        raise TerminalError(missing)
    try:
        reply = decode(exchange.replies[-1])
    except msgspec.MsgspecError as error:
        raise TerminalError(f"the terminal process answered unreadably: {error}") from None
    if reply.failed is not None:
        kind = LoginRefused if reply.failed.refused else TerminalError
        raise kind(reply.failed.text, reply.failed.code)
    return reply.value
