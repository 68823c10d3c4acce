"""The simulated terminal: a module object with the MetaTrader5 package's functions, argument rules and errors.

As in the package: calls block; a failed call returns None (False where the package says bool) and `last_error()`
tells why; the functions that take no keywords raise TypeError for one; numbers are not converted (a volume must be a
float); times are the server's wall clock, given as if it were UTC. After a broken connection every call fails until
`initialize()` is called again, because the package does not close its pipe either.
"""

import os
import types
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from gateway.simulated import constants, helpers, link, structs
from gateway.simulated.arguments import (
    U32,
    U64,
    BadArgument,
    Int,
    Kind,
    parse_keywords,
    read_request,
    seconds,
    symbol_name,
)
from gateway.simulated.market_calls import MAX_BARS, Failed, MarketCalls

FAULTS_VARIABLE: Final = "SIMULATED_FAULTS"
VERSION: Final = (500, 5660, "12 Jun 2026")
_DEALS_KEPT: Final = 256
_LOGIN_TIMEOUT_MS: Final = 60_000  # of initialize and login, unless given
_BROKEN: Final = (-10000, -10001, -10002, -10004)  # the pipe is of no use any more
_LOGIN_KEYWORDS: Final[dict[str, Kind]] = {"login": U64, "password": str, "server": str, "timeout": U32}
_CONNECT_KEYWORDS: Final[dict[str, Kind]] = {**_LOGIN_KEYWORDS, "portable": Int(0, 2)}
_SELECT_KEYWORDS: Final[dict[str, Kind]] = {"symbol": str, "group": str, "ticket": U64}
_HISTORY_KEYWORDS: Final[dict[str, Kind]] = {"group": str, "ticket": U64, "position": U64}


def load(
    folder: Path, *, seed: int = 1, options: tuple[str, ...] = (), faults: str = "", share_cpu: bool = False
) -> types.ModuleType:
    """A module like `import MetaTrader5`, over the broker of `folder`, which `initialize()` starts if none runs.

    `seed` and `options` (arguments of gateway.simulated.broker) count only when the folder is new. `faults` are put in
    force by `initialize()`, by default those of SIMULATED_FAULTS. `share_cpu` keeps this process and the broker on one
    CPU.
    """
    terminal = _Terminal(folder, seed, options, faults, share_cpu)
    module = types.ModuleType("MetaTrader5", "A simulated MetaTrader 5 terminal.")
    for name, value in vars(constants).items():
        if name.isupper():
            setattr(module, name, value)
    for struct in vars(structs).values():
        if isinstance(struct, type) and struct.__base__ is structs.StructSequence:
            setattr(module, struct.__name__, struct)
    module.__dict__.update(__version__=constants.__version__, __author__=constants.__author__)
    for name, (misread, failed) in _Terminal.FUNCTIONS.items():
        setattr(module, name, _guarded(terminal, getattr(terminal, name), misread, failed))
    module.__dict__["last_error"] = terminal.last_error
    helpers.install(module)
    return module


def _guarded(terminal: "_Terminal", function: Callable[..., Any], misread: Any, failed: Any) -> Callable[..., Any]:
    """Every call starts with last_error = Success; a bad argument becomes `misread` and an expected failure `failed`,
    and both a last_error."""

    def call(*args: Any, **kwargs: Any) -> Any:
        terminal.error = (1, "Success")
        try:
            return function(*args, **kwargs)
        except BadArgument as error:
            terminal.error = (-2, str(error))
            return misread
        except Failed as error:
            terminal.error = (error.code, error.text)
            return failed

    call.__name__ = call.__qualname__ = function.__name__
    return call


class _Terminal(MarketCalls):
    # function -> what it returns for a bad argument, and when the call fails
    FUNCTIONS: Final[dict[str, tuple[Any, Any]]] = (
        dict.fromkeys(("initialize", "login", "symbol_select"), (False, False))
        | dict.fromkeys(("market_book_add", "market_book_release"), (None, False))
        | dict.fromkeys(
            (
                "shutdown", "version", "terminal_info", "account_info", "symbols_total", "symbols_get", "symbol_info",
                "symbol_info_tick", "market_book_get", "copy_rates_from", "copy_rates_from_pos", "copy_rates_range",
                "copy_ticks_from", "copy_ticks_range", "orders_total", "orders_get", "positions_total",
                "positions_get", "history_orders_total", "history_orders_get", "history_deals_total",
                "history_deals_get", "order_check", "order_send", "order_calc_margin", "order_calc_profit",
            ),
            (None, None),
        )
    )  # fmt: skip

    def __init__(self, folder: Path, seed: int, options: tuple[str, ...], faults: str, share_cpu: bool) -> None:
        super().__init__()
        self.folder = folder
        self.seed = seed
        self.options = options
        self.faults = faults
        self.share_cpu = share_cpu
        self.error = (1, "Success")
        self.link: link.Link | None = None
        self.broken = -10004  # how a call fails once the pipe is of no use
        self.requests = 0  # request_id counts from 1 in each session
        # A terminal learns of its own deals with the answer: they need no question of their own.
        self.deals: OrderedDict[int, list[Any]] = OrderedDict()

    def _call(self, command: int, arguments: Any = None, timeout_s: float | None = None) -> Any:
        if self.link is None:
            raise Failed(self.broken)
        try:
            if timeout_s is None:
                status, value = self.link.call(command, arguments)
            else:
                status, value = self.link.call_within(timeout_s, command, arguments)
        except link.LinkBroken as error:
            status, value = error.code, None
        if status in _BROKEN:
            self.link.close()  # the package keeps its broken pipe: later calls fail at sending
            self.link = None
            self.broken = -10001 if status == -10002 else status
        if status != link.OK:
            raise Failed(status, value if isinstance(value, str) else "")
        return value

    # ---- connection

    def initialize(self, *args: Any, **kwargs: Any) -> bool:
        if len(args) > 1:
            raise BadArgument("Invalid number of arguments")
        if args and not isinstance(args[0], str):
            raise BadArgument('Invalid "path" argument')
        given = parse_keywords(kwargs, _CONNECT_KEYWORDS)
        self._close()
        try:
            self.link = link.ensure_broker(self.folder, self.seed, options=self.options)
        except (link.BrokerUnreachable, OSError):
            raise Failed(-10003, "IPC initialize failed, terminal could not be started") from None
        if self.share_cpu:
            link.share_cpu(self.folder)
        self.requests = 0
        try:
            account = (given.get("login", 0), given.get("password", ""), given.get("server", ""))
            faults = self.faults or os.environ.get(FAULTS_VARIABLE)
            self._call(link.INITIALIZE, (*account, faults), _timeout_s(given))
        except Failed:
            self._close()
            raise
        return True

    def login(self, *args: Any, **kwargs: Any) -> bool:
        if len(args) > 3:
            raise BadArgument("Invalid number of arguments")
        given = dict(zip(("login", "password", "server"), args, strict=False)) | kwargs
        parsed = parse_keywords(given, _LOGIN_KEYWORDS)
        account = (parsed.get("login", 0), parsed.get("password", ""), parsed.get("server", ""))
        try:
            self._call(link.LOGIN, account, _timeout_s(parsed))
        except Failed as error:
            if error.code == -10005 and self.link is not None:
                self.link.close()  # the reply may still come: the next call gets a fresh connection
                self.link = link.try_connect(self.folder)
            raise
        return True

    def shutdown(self) -> bool:
        self._close()
        return True

    def _close(self) -> None:
        if self.link is not None:
            self.link.close()
        self.link = None
        self.broken = -10004
        self.deals.clear()
        self.books.clear()

    def last_error(self) -> tuple[int, str]:
        return self.error

    def version(self) -> tuple[int, int, str]:
        self._call(link.TOTALS)
        return VERSION

    def terminal_info(self) -> Any:
        connected, algo_trading, disabled = self._call(link.TERMINAL)
        place = str(self.folder)
        return structs.TerminalInfo(
            (
                False, False, connected, False, algo_trading, disabled, False, False, False, False, VERSION[1],
                MAX_BARS, 0, 100, 0.0, 0.0, "Order Ledger",
                "Order Ledger simulated terminal", "English", place, place, place,
            )
        )  # fmt: skip

    def account_info(self) -> Any:
        return structs.AccountInfo(self._call(link.ACCOUNT))

    # ---- what is open

    def orders_total(self) -> int:
        total: int = self._call(link.TOTALS)[1]
        return total

    def positions_total(self) -> int:
        total: int = self._call(link.TOTALS)[2]
        return total

    def orders_get(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        return _rows(structs.TradeOrder, self._call(link.ORDERS, _selection(args, kwargs)))

    def positions_get(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        return _rows(structs.TradePosition, self._call(link.POSITIONS, _selection(args, kwargs)))

    # ---- history

    def history_orders_total(self, *args: Any) -> int:
        return len(self._history(link.HISTORY_ORDERS, args, {}))

    def history_deals_total(self, *args: Any) -> int:
        return len(self._history(link.HISTORY_DEALS, args, {}))

    def history_orders_get(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        return _rows(structs.TradeOrder, self._history(link.HISTORY_ORDERS, args, kwargs))

    def history_deals_get(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        if not args and len(kwargs) == 1:
            ticket = kwargs.get("ticket")
            if type(ticket) is int and ticket in self.deals:
                return (structs.TradeDeal(self.deals[ticket]),)
        try:
            return _rows(structs.TradeDeal, self._history(link.HISTORY_DEALS, args, kwargs))
        except Failed as error:
            if error.code != -4:
                raise
            return ()

    def _history(self, command: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """By ticket, by position, or by server time: a date of 0 counts as not given."""
        given = parse_keywords(kwargs, _HISTORY_KEYWORDS)
        if len(args) > 2 or (len(args) == 1):
            raise BadArgument("Invalid arguments")
        first, last = (seconds(args[0]), seconds(args[1])) if args else (0, 0)
        ticket, position = given.get("ticket", 0), given.get("position", 0)
        if not (first or last or ticket or position):
            raise BadArgument("Invalid arguments")
        return self._call(command, (ticket, position, "", given.get("group", ""), first, last))

    # ---- trading

    def order_check(self, *args: Any, **kwargs: Any) -> Any:
        request = read_request(args, kwargs)
        return structs.OrderCheckResult((*self._call(link.ORDER_CHECK, request), structs.TradeRequest(request)))

    def order_send(self, *args: Any, **kwargs: Any) -> Any:
        request = read_request(args, kwargs)
        result, deals = self._call(link.ORDER_SEND, request)
        for deal in deals:
            self.deals[deal[0]] = deal
            if len(self.deals) > _DEALS_KEPT:
                self.deals.popitem(last=False)
        self.requests += 1
        return structs.OrderSendResult((*result, self.requests, 0, structs.TradeRequest(request)))

    def order_calc_margin(self, *args: Any) -> Any:
        return self._call(link.CALC_MARGIN, _calculation(args, 2))

    def order_calc_profit(self, *args: Any) -> Any:
        return self._call(link.CALC_PROFIT, _calculation(args, 3))


def _rows(struct: type[structs.StructSequence], rows: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(struct(row) for row in rows)


def _selection(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int, str, str]:
    if args:
        raise BadArgument("Unnamed arguments not allowed")
    given = parse_keywords(kwargs, _SELECT_KEYWORDS)
    return given.get("ticket", 0), 0, given.get("symbol", ""), given.get("group", "")


def _calculation(args: tuple[Any, ...], prices: int) -> tuple[Any, ...]:
    """action, symbol, volume and prices; here, unlike in a trade request, whatever has a float may stand for one."""
    if len(args) != 3 + prices - 1:
        raise BadArgument("Invalid number of arguments")
    action, symbol, *numbers = args
    if not isinstance(action, int) or any(isinstance(number, str | bytes | bytearray) for number in numbers):
        raise BadArgument("Invalid arguments")
    try:
        return (action % 2**32, symbol_name((symbol,)), *map(float, numbers))
    except (TypeError, ValueError, OverflowError):
        raise BadArgument("Invalid arguments") from None


def _timeout_s(given: dict[str, Any]) -> float:
    milliseconds: int = given.get("timeout", _LOGIN_TIMEOUT_MS)
    return max(milliseconds, 1) / 1000
