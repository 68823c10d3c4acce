"""The only module that speaks MetaTrader5: builds its requests, reads its structs, interprets its errors.

Synchronous, because the binding is: it blocks, never releases the GIL, and serves one terminal per process
(`gateway/terminal.py` gives it a process of its own). Floats exist here and nowhere else: a Decimal goes out only if
the float that carries it reads back as the same number, and a float comes in as the Decimal of its shortest
representation; NaN and infinity never become a Decimal.

The binding's rules that shape this module (observed of package 5.0.6231): volume and prices must be float, even 0;
a symbol or comment may have 29 UTF-16 units; a failed call returns None and `last_error()` must be read at once; a
date of a history query is the server's wall clock, and `date_to` must lie beyond it or fresh deals are missed;
`history_deals_get(ticket=)` takes a deal's ticket and returns at most that one.
"""

import math
import time
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, Final, TypeVar

from gateway import mt5_decode as decode
from gateway.broker import (
    Account,
    Activity,
    Answered,
    Checked,
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
from gateway.elapsed import elapsed_s
from gateway.mt5_decode import Unreadable
from gateway.mt5_remote import plain
from gateway.retcodes import OrderEffect, lookup_error
from ledger.trade import Deal, Position, TargetImage, TradeRequest

MAX_TEXT: Final = 29
NOT_AFTER_PASSED: Final = NotSent(0, "not_after passed")
NOT_CONNECTED: Final = "the terminal is not connected to its broker"
LINK_DOWN: Final = NotSent(-10004, "the terminal's link is down")
_DAY_S: Final = 86_400
_QUARTER_S: Final = 900
_FRESH_S: Final = 30  # a tick this close to a whole quarter hour off our clock shows the server's zone
_ZONE_EVERY_S: Final = 2.0  # how often the zone is looked at: well within _FRESH_S, for two looks tell of a move
_WIDEST_ZONE_S: Final = 14 * 3600  # while the offset is not known
_DEAL_POLL_S: Final = 0.005
_FLOATS: Final = ("volume", "price", "stoplimit", "sl", "tp")
_INTEGERS: Final = (
    "magic", "order", "deviation", "type_filling", "type_time", "expiration", "position", "position_by",
)  # fmt: skip

T = TypeVar("T")


class NotAfterPassed(Exception):
    """Raised by a module's `order_send_until` that did not begin the call: it was too late."""


class _NotCarried(Exception):
    """The request cannot be expressed to the binding as it is."""


def build_request(request: TradeRequest) -> dict[str, Any]:
    """The binding's dict. Raises _NotCarried for what would arrive as something else."""
    fields: dict[str, Any] = {"action": request.action, "symbol": request.symbol, "type": request.type}
    for name in _FLOATS:
        value: Decimal = getattr(request, name)
        if value:
            fields[name] = _to_float(name, value)
    for name in _INTEGERS:
        number: int = getattr(request, name)
        if number:
            fields[name] = number
    if request.comment:
        fields["comment"] = request.comment
    for name, text in (("symbol", request.symbol), ("comment", request.comment)):
        if len(text) > MAX_TEXT or not text.isascii():
            raise _NotCarried(f'"{name}" must be ASCII of at most {MAX_TEXT} characters')
    return fields


def _to_float(name: str, value: Decimal) -> float:
    number = float(value)
    if not math.isfinite(number) or Decimal(repr(number)) != value:
        raise _NotCarried(f'"{name}" {value} has no exact float')
    return number


class Mt5Session:
    """One terminal, logged in to one account. `module` is MetaTrader5 or anything with its functions.

    `deal_wait_s` bounds how long `send` waits for a deal its result names; `timeout_s` is for initialize and login
    only: the binding offers none for other calls. `monotonic` must be the clock of `Send.not_after`.
    """

    def __init__(
        self,
        module: Any,
        *,
        login: int,
        password: str = "",
        server: str = "",
        path: str = "",
        portable: bool = False,
        timeout_s: float = 60.0,
        deal_wait_s: float = 0.05,
        clock_symbol: str = "EURUSD",
        monotonic: Callable[[], float] = elapsed_s,
        wall: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._mt5 = module
        # Of a terminal elsewhere (mt5_bridge.py). Looked for in the class: a stand-in may answer to any name.
        self._send_until = module.order_send_until if hasattr(type(module), "order_send_until") else None
        self._login = login
        self._password = password
        self._server = server
        self._path = path
        self._portable = portable
        self._timeout_s = timeout_s
        self._deal_wait_s = deal_wait_s
        self._clock_symbol = clock_symbol
        self._monotonic = monotonic
        self._wall = wall
        self._sleep = sleep
        self._told: set[str] = set()  # structs whose fields the reader of `read` knows
        self.link_broken = True
        self.server_utc_offset_s: int | None = None
        self._last_tick = (0.0, -math.inf)  # of the clock symbol: its time, and when we looked
        self._zone_at = -math.inf  # when it was looked at, also in vain
        self._lower: int | None = None  # what the last tick that had just moved showed

    def __repr__(self) -> str:
        return f"Mt5Session(login={self._login}, server={self._server!r})"

    # ---- connection

    def connect(self) -> Account:
        """Initialises the terminal and logs in. Raises LoginRefused if another account or server answers."""
        arguments: dict[str, Any] = {"timeout": max(1, round(self._timeout_s * 1000))}
        if self._login:
            arguments["login"] = self._login
        if self._password:
            arguments["password"] = self._password
        if self._server:
            arguments["server"] = self._server
        if self._portable:
            arguments["portable"] = True
        connected = self._guard("initialize", *((self._path,) if self._path else ()), **arguments)
        if not connected:
            code, text = self._last_error()
            if code == -6:
                raise LoginRefused(text, code)
            raise TerminalError(text, code)
        self.link_broken = False
        account = self.account()
        self._look_at_zone()
        return self._with_offset(account)

    def close(self) -> None:
        self.link_broken = True
        self._guard("shutdown")

    def account(self) -> Account:
        """Raises LoginRefused if the terminal is now logged in to another account or server."""
        account = self._read(decode.account, self._ask("account_info"))
        if self._login and account.login != self._login:
            raise LoginRefused(f"the terminal is logged in to account {account.login}, not {self._login}")
        if self._server and account.server != self._server:
            raise LoginRefused(f"the terminal is logged in at {account.server!r}, not {self._server!r}")
        return self._with_offset(account)

    def _with_offset(self, account: Account) -> Account:
        return decode.with_offset(account, self.server_utc_offset_s)

    # ---- orders

    def check(self, request: TradeRequest) -> CheckOutcome:
        outcome = self._call_order("order_check", request, None)
        if isinstance(outcome, NotSent | Unknown):
            return outcome
        try:
            return Checked(decode.check_result(outcome))
        except Unreadable as error:
            return Unknown(0, f"order_check: {error}")

    def send(self, send: Send) -> Outcome:
        """Sends once. Whatever happens is told as an outcome; no exception leaves an order's fate open."""
        answer = self._call_order("order_send", send.request, send.not_after)
        if isinstance(answer, NotSent | Unknown):
            return answer
        try:
            result = decode.trade_result(answer)
        except Unreadable as error:
            return Unknown(0, f"order_send: {error}")
        return Answered(result, self._deals(result.deal) if result.deal else ())

    def _call_order(self, function: str, request: TradeRequest, not_after: float | None) -> Any:
        """The result struct, or NotSent, or Unknown."""
        if self.link_broken:
            return LINK_DOWN
        try:
            fields = build_request(request)
        except _NotCarried as error:
            return NotSent(0, str(error))
        if not_after is not None and self._monotonic() > not_after:
            return NOT_AFTER_PASSED
        try:
            if not_after is not None and self._send_until is not None:
                result = self._send_until(fields, not_after)
            else:
                result = getattr(self._mt5, function)(fields)
        except NotAfterPassed:
            return NOT_AFTER_PASSED
        except Exception as error:  # the binding does not raise here; a remote one may, at any point
            return Unknown(0, f"{function} raised {type(error).__name__}")
        if result is not None:
            return result
        try:
            code, text = self._last_error()
        except TerminalError as error:
            return Unknown(0, str(error))
        if lookup_error(code).order_effect is OrderEffect.NOT_SENT:
            return NotSent(code, text)
        return Unknown(code, text)

    def _deals(self, ticket: int) -> tuple[Deal, ...]:
        """The deal, if it becomes visible in time. A failure here says nothing about the order, so it is not told."""
        deadline = self._monotonic() + self._deal_wait_s
        while True:
            try:
                rows = self._ask("history_deals_get", ticket=ticket)
                found = tuple(self._read(decode.deal, row) for row in rows if row.ticket == ticket)
            except TerminalError:
                return ()
            if found or self._monotonic() >= deadline:
                return found
            self._sleep(_DEAL_POLL_S)

    # ---- questions

    def symbol(self, name: str) -> Symbol | None:
        info = self._ask_or_none("symbol_info", name)
        return None if info is None else self._read(decode.symbol, info)

    def tick(self, name: str) -> Tick | None:
        row = self._ask_or_none("symbol_info_tick", name)
        if row is None:
            return None
        tick = self._read(decode.tick, row)
        if name == self._clock_symbol:
            self._learn_offset(tick.time_msc / 1000)
        return tick

    def _learn_offset(self, tick_s: float) -> None:
        """A live tick is a whole number of quarter hours off our clock. A stale one can only show too little, so any
        other tick may raise the offset. Only ticks that move may lower it (end of summer time), and it takes two: a
        terminal that finds its way back may show one old tick after another old one."""
        before_s, looked_at = self._last_tick
        now = self._monotonic()
        self._last_tick = (tick_s, now)
        ahead = tick_s - self._wall()
        offset = round(ahead / _QUARTER_S) * _QUARTER_S
        if abs(ahead - offset) > _FRESH_S or abs(offset) > _WIDEST_ZONE_S:
            return
        moved, known = before_s != tick_s, self.server_utc_offset_s
        just_moved = moved and now - looked_at < _FRESH_S
        if known is None or (moved and offset > known) or (just_moved and self._lower == offset):
            self.server_utc_offset_s = offset
        if moved:
            self._lower = offset if just_moved else None

    def _look_at_zone(self) -> None:
        self._zone_at = self._monotonic()
        try:
            self.tick(self._clock_symbol)
        except TerminalError:  # a broker may have no such symbol: then the zone stays unknown
            if self.link_broken:
                raise

    def find(self, magics: Sequence[int], comments: Sequence[str], since_s: float) -> Evidence:
        """Four fresh queries, in the direction an order moves: working, history, deals, positions."""
        wanted = frozenset(magics) - {0}
        tokens = tuple(filter(None, comments))

        def carries(row: Any) -> bool:
            return row.magic in wanted or any(token in row.comment for token in tokens)

        offset = self.server_utc_offset_s
        now = self._wall() + (offset or 0)
        slack = _DAY_S if offset is None else 60
        first, last = max(int(now - since_s - slack), 1), int(now + _DAY_S + (0 if offset is not None else slack))
        try:
            self.verify()
            orders = [row for row in self._ask("orders_get") if carries(row)]
            history = [row for row in self._ask("history_orders_get", first, last) if carries(row)]
            known = {row.ticket for row in (*orders, *history)}
            deals = [row for row in self._ask("history_deals_get", first, last) if carries(row) or row.order in known]
            positions = [row for row in self._ask("positions_get") if carries(row)]
            self.verify()
            return Evidence(
                complete=True,
                orders=tuple(self._read(decode.order, row) for row in orders),
                history=tuple(self._read(decode.order, row) for row in history),
                deals=tuple(self._read(decode.deal, row) for row in deals),
                positions=tuple(self._read(decode.position, row) for row in positions),
            )
        except LoginRefused:
            raise
        except TerminalError as error:
            return Evidence(complete=False, reason=f"{error.code}: {error}")

    def target(self, target: Target) -> TargetView:
        """The target as it is now. Raises TerminalError unless every question was answered while connected."""
        self.verify()
        image = TargetImage(
            position=self._position(target.position_id),
            position_by=self._position(target.position_by_id),
            order=self._one(decode.order, "orders_get", target.order_ticket),
        )
        history = None
        if target.order_ticket and image.order is None:
            history = self._one(decode.order, "history_orders_get", target.order_ticket)
        deals: tuple[Deal, ...] = ()
        if target.position_id:
            rows = self._ask("history_deals_get", position=target.position_id)
            deals = tuple(self._read(decode.deal, row) for row in rows)
        self.verify()
        return TargetView(image=image, history=history, deals=deals)

    def _position(self, identifier: int) -> Position | None:
        """By its identifier. Its ticket is the same number until a netting reversal or a swap re-opening."""
        if not identifier:
            return None
        for rows in (self._ask("positions_get", ticket=identifier), self._ask("positions_get")):
            for row in rows:
                if row.identifier == identifier:
                    return self._read(decode.position, row)
        return None

    def _one(self, reader: Callable[[Any], T], function: str, ticket: int) -> T | None:
        rows = self._ask(function, ticket=ticket) if ticket else ()
        return next((self._read(reader, row) for row in rows if row.ticket == ticket), None)

    def activity(self, since_msc: int, *, orders: bool = True, rest: bool = True) -> Activity:
        """Working before ended before dealt: what moves meanwhile is seen twice rather than not at all."""
        self.verify()
        first, last = max(since_msc // 1000, 1), int(self._wall() + _WIDEST_ZONE_S + _DAY_S)
        working = self._all(decode.order, "orders_get") if orders else ()
        history = self._all(decode.order, "history_orders_get", first, last) if rest else ()
        deals = self._all(decode.deal, "history_deals_get", first, last)
        positions = self._all(decode.position, "positions_get") if rest else ()
        self.verify()
        return Activity(positions=positions, orders=working, history=history, deals=deals)

    def verify(self) -> Account:
        """The account, with the server's zone as it is now: it changes twice a year while we are connected. Raises
        TerminalError unless the terminal is connected to its broker, as the account this session is for."""
        if not self._ask("terminal_info").connected:
            raise TerminalError(NOT_CONNECTED)
        if not 0 <= self._monotonic() - self._zone_at < _ZONE_EVERY_S:
            self._look_at_zone()
        return self.account()

    def _all(self, reader: Callable[[Any], T], function: str, *args: Any) -> tuple[T, ...]:
        return tuple(self._read(reader, row) for row in self._ask(function, *args))

    def read(
        self, function: str, arguments: Sequence[Any], keywords: dict[str, Any]
    ) -> tuple[Any, Any, tuple[int, str]]:
        """The module's own result as data (`mt5_values.Reader` reads it), the name of an exception it raised, and
        last_error. Raises TerminalError when the link is down."""
        if self.link_broken:
            raise TerminalError(LINK_DOWN.text, LINK_DOWN.code)
        try:
            result = getattr(self._mt5, function)(*arguments, **keywords)
        except Exception as error:
            return None, type(error).__name__, (1, "Success")
        return plain(result, self._told), None, self._last_error() if result is None else (1, "Success")

    # ---- calling

    def _ask(self, function: str, *args: Any, **kwargs: Any) -> Any:
        """The result. Raises TerminalError for None."""
        if self.link_broken:
            raise TerminalError(LINK_DOWN.text, LINK_DOWN.code)
        result = self._guard(function, *args, **kwargs)
        if result is None:
            code, text = self._last_error()
            raise TerminalError(f"{function}: {text}", code)
        return result

    def _ask_or_none(self, function: str, *args: Any) -> Any:
        """The result, or None for "not found"."""
        try:
            return self._ask(function, *args)
        except TerminalError as error:
            if error.code in (-4, 1):
                return None
            raise

    def _guard(self, function: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return getattr(self._mt5, function)(*args, **kwargs)
        except Exception as error:  # its text could quote the arguments, the password among them: only the type is told
            raise TerminalError(f"{function} raised {type(error).__name__}") from None

    def _last_error(self) -> tuple[int, str]:
        try:
            code, text = self._guard("last_error")
            code, text = int(code), str(text)
        except (TypeError, ValueError):
            raise TerminalError("last_error is not a code and a text") from None
        self.link_broken = self.link_broken or lookup_error(code).link_broken
        return code, text.replace(self._password, "***") if self._password else text

    @staticmethod
    def _read(reader: Callable[[Any], T], row: Any) -> T:
        try:
            return reader(row)
        except Unreadable as error:
            raise TerminalError(str(error)) from None
