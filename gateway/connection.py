"""Whether orders may be sent: the trading terminal answers, is connected to its broker, as the account of this ledger.

That is proven by one cheap call, and believed for `connection_check_s` at most. An answer of the broker proves the
connection as well, but not whose account it is: a person may have logged in to another one at the terminal, and orders
would be answered there. So the account is looked at as often, however many orders are answered. Connects, refusals and
disconnects are events of the account, and tell whoever waits for them.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

import structlog

from gateway.broker import Account, Broker, LoginRefused, TerminalError
from gateway.config import Settings
from gateway.elapsed import elapsed_s
from gateway.guarded import cancelled
from gateway.terminal import TerminalStatus, pauses
from ledger.account_events import AccountConnected, AccountDisconnected
from ledger.account_events import LoginRefused as LoginRefusal
from ledger.errors import LedgerError
from ledger.events import Event, account_stream
from ledger.writer import Cause, Ledger

log = structlog.get_logger()

CAUSE: Final = Cause(actor="gateway")


class Connection:
    """`auto_reconnect` False: what was lost stays down until `reconnect` is called. Pauses between two looks at a lost
    connection grow up to `reconnect_interval_s`."""

    def __init__(
        self,
        trade: Broker,
        ledger: Ledger,
        account: Account,
        *,
        terminal: str,
        query: Broker | None = None,
        check_s: float = 1.0,
        auto_reconnect: bool = True,
        reconnect_interval_s: float = 30.0,
    ) -> None:
        self._trade, self._ledger, self._terminal, self._query = trade, ledger, terminal, query
        self.account = account
        self._check_s, self._auto, self._longest_s = check_s, auto_reconnect, reconnect_interval_s
        self._verified_at = self._account_at = elapsed_s()
        self._is_up = asyncio.Event()
        self._is_up.set()
        self.reason, self._refused = "", False  # of a connection that is down: why, and whether by the broker's word
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._verifying: asyncio.Task[bool] | None = None
        self._listeners: list[Callable[[bool], None]] = []

    def use(self, settings: Settings) -> None:
        """Whether and how often a lost connection is looked at, from now on."""
        self._auto, self._longest_s = settings.auto_reconnect, settings.reconnect_interval_s
        self._wake.set()

    @property
    def up(self) -> bool:
        return self._is_up.is_set()

    def on_change(self, listener: Callable[[bool], None]) -> None:
        """Calls it, in the event loop, with whether the connection is up, at every change."""
        self._listeners.append(listener)

    def start(self) -> None:
        self._record(self._connected())
        self._task = asyncio.create_task(self._watch(), name="connection")

    async def stop(self) -> None:
        await cancelled(self._task, self._verifying)

    def answered(self) -> None:
        """The broker answered a request just now, of whatever account."""
        self._verified_at = elapsed_s()

    @property
    def is_fresh(self) -> bool:
        """It is up, and that was proven a moment ago."""
        now = elapsed_s()
        return self.up and now - self._verified_at <= self._check_s and now - self._account_at <= 2 * self._check_s

    async def verify(self) -> bool:
        """Asks the terminal now; callers at the same time share one question."""
        if self._verifying is None or self._verifying.done():
            self._verifying = asyncio.create_task(self._verify(), name="verify-connection")
        return await asyncio.shield(self._verifying)

    async def reconnect(self) -> str:
        """On an operator's word: starts the terminals again where it is needed, and looks. Tells why it is not
        connected, if it is not."""
        for terminal in (self._trade, self._query):
            if terminal is not None:
                with contextlib.suppress(TerminalError):
                    await terminal.connect()
        found = await self._ask()
        if found is not None:
            self._rise(found)
        return "" if self.up else self.reason or "the terminal does not answer"

    def terminal_changed(self, status: TerminalStatus) -> None:
        """News of the trading terminal's process."""
        if status.state == "down":
            self._fall(status.text or "the terminal is down")
        elif status.state == "refused":
            self._fall(status.text, refused=True, code=status.code, for_good=True)
        elif status.state == "connected":
            self._wake.set()

    async def _watch(self) -> None:
        waits = pauses(self._longest_s)
        pause_s = next(waits)
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._check_s / 2 if self.up else min(pause_s, self._longest_s)):
                    await self._wake.wait()
            self._wake.clear()
            if self.up:
                waits = pauses(self._longest_s)
                pause_s = next(waits)
                now = elapsed_s()
                if now - self._verified_at >= self._check_s / 2 or now - self._account_at >= self._check_s:
                    await self.verify()
            elif self._auto:
                await self.verify()
                pause_s = next(waits)

    async def _verify(self) -> bool:
        found = await self._ask()
        if found is not None and (self.up or self._auto):
            self._rise(found)
        return self.up

    async def _ask(self) -> Account | None:
        asked_at = elapsed_s()
        try:
            found = await self._trade.verify()
        except LoginRefused as error:
            self._fall(str(error), refused=True, code=error.code)
            return None
        except TerminalError as error:
            self._fall(str(error))
            return None
        self._verified_at = max(self._verified_at, asked_at)
        self._account_at = max(self._account_at, asked_at)
        return found

    def _rise(self, account: Account) -> None:
        before_s, now_s = self.account.server_utc_offset_s, account.server_utc_offset_s
        if before_s != now_s:
            log.info("the broker's server has another time zone", utc_offset_s=now_s, before_s=before_s)
        self.account = account
        if self.up:
            return
        self._is_up.set()
        self.reason, self._refused = "", False
        log.info("connected to the broker again")
        self._record(self._connected())
        for listener in self._listeners:
            listener(True)

    def _fall(self, reason: str, *, refused: bool = False, code: int = 0, for_good: bool = False) -> None:
        """`for_good`: nothing is tried any more until an operator reconnects."""
        was_up, login, server = self.up, self.account.login, self.account.server
        self._is_up.clear()
        if refused or not self._refused:  # the broker's word says more than that nobody answers since
            self.reason = reason
        remedy = "; orders wait until an operator reconnects" if for_good or not self._auto else ""
        if refused and not self._refused:  # also when it was lost before: that is another matter for a person
            log.error("the broker refuses the login", reason=reason + remedy)
            self._record(LoginRefusal(login=login, server=server, code=code, reason=reason + remedy))
        elif was_up:
            log.error("the connection to the broker is lost", reason=reason + remedy)
            self._record(AccountDisconnected(login=login, server=server, reason=reason + remedy))
        self._refused = self._refused or refused
        if was_up:
            for listener in self._listeners:
                listener(False)

    def _connected(self) -> AccountConnected:
        account = self.account
        return AccountConnected(
            login=account.login,
            server=account.server,
            currency=account.currency,
            margin_mode=account.margin_mode,
            balance=account.balance,
            equity=account.equity,
            terminal=self._terminal,
            broker_utc_offset_s=account.server_utc_offset_s or 0,
        )

    def _record(self, event: Event) -> None:
        if self._ledger.failure.done():
            return
        with contextlib.suppress(LedgerError):
            self._ledger.append(account_stream(self.account.login), event, CAUSE)
