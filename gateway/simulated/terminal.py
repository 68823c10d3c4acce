"""The simulated terminal: a module object with the MetaTrader5 package's functions, argument rules and errors.

As in the package: calls block; a failed call returns None (False where the package says bool) and `last_error()`
tells why; the functions that take no keywords raise TypeError for one; numbers are not converted (a volume must be a
float); times are the server's wall clock, given as if it were UTC. After a broken connection every call fails until
`initialize()` is called again, because the package does not close its pipe either.
"""

import types
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from gateway.simulated import constants, link, structs
from gateway.simulated.arguments import (
    MAX_TEXT,
    U32,
    U64,
    BadArgument,
    Int,
    Kind,
    parse_keywords,
    read_request,
    seconds,
    utf16_units,
)

VERSION: Final = (500, 5660, "12 Jun 2026")
_TEXTS: Final = {
    1: "Success",
    -1: "Terminal: Call failed",
    -2: "Terminal: Invalid params",
    -4: "Terminal: Not found",
    -6: "Terminal: Authorization failed",
    -7: "Terminal: Unsupported function",
    -10000: "IPC call failed",
    -10001: "IPC send failed",
    -10002: "IPC recv failed",
    -10004: "No IPC connection",
    -10005: "IPC timeout",
}
_DEALS_KEPT: Final = 256
_NAME, _SELECT, _VISIBLE = map(structs.SymbolInfo.__match_args__.index, ("name", "select", "visible"))
_LOGIN_KEYWORDS: Final[dict[str, Kind]] = {"login": U64, "password": str, "server": str, "timeout": U32}
_CONNECT_KEYWORDS: Final[dict[str, Kind]] = {**_LOGIN_KEYWORDS, "portable": Int(0, 2)}
_SELECT_KEYWORDS: Final[dict[str, Kind]] = {"symbol": str, "group": str, "ticket": U64}
_HISTORY_KEYWORDS: Final[dict[str, Kind]] = {"group": str, "ticket": U64, "position": U64}


class _Failed(Exception):
    """A call ends with this last_error."""

    def __init__(self, code: int, text: str = "") -> None:
        super().__init__(text)
        self.code = code
        self.text = text or _TEXTS[code]


def load(folder: Path, *, seed: int = 1, options: tuple[str, ...] = ()) -> types.ModuleType:
    """A module like `import MetaTrader5`, over the broker of `folder`, which `initialize()` starts if none runs.

    `seed` and `options` (arguments of gateway.simulated.broker) count only when the folder is new.
    """
    terminal = _Terminal(folder, seed, options)
    module = types.ModuleType("MetaTrader5", "A simulated MetaTrader 5 terminal.")
    for name, value in vars(constants).items():
        if name.isupper():
            setattr(module, name, value)
    for struct in vars(structs).values():
        if isinstance(struct, type) and struct.__base__ is structs.StructSequence:
            setattr(module, struct.__name__, struct)
    for name in _Terminal.FUNCTIONS:
        setattr(module, name, _guarded(terminal, getattr(terminal, name), _Terminal.FUNCTIONS[name]))
    module.__dict__["last_error"] = terminal.last_error
    return module


def _guarded(terminal: "_Terminal", function: Callable[..., Any], failed: Any) -> Callable[..., Any]:
    """Every call starts with last_error = Success; an expected failure becomes `failed` and a last_error."""

    def call(*args: Any, **kwargs: Any) -> Any:
        terminal.error = (1, "Success")
        try:
            return function(*args, **kwargs)
        except BadArgument as error:
            terminal.error = (-2, str(error))
        except _Failed as error:
            terminal.error = (error.code, error.text)
        return failed

    call.__name__ = call.__qualname__ = function.__name__
    return call


class _Terminal:
    # function -> what a failed call returns
    FUNCTIONS: Final[dict[str, Any]] = dict.fromkeys(("initialize", "login", "symbol_select"), False) | dict.fromkeys(
        (
            "shutdown", "version", "terminal_info", "account_info", "symbols_total", "symbols_get", "symbol_info",
            "symbol_info_tick", "orders_total", "orders_get", "positions_total", "positions_get",
            "history_orders_total", "history_orders_get", "history_deals_total", "history_deals_get", "order_check",
            "order_send", "order_calc_margin", "order_calc_profit",
        )
    )  # fmt: skip

    def __init__(self, folder: Path, seed: int, options: tuple[str, ...]) -> None:
        self.folder = folder
        self.seed = seed
        self.options = options
        self.error = (1, "Success")
        self.link: link.Link | None = None
        self.hidden: set[str] = set()  # symbols taken out of this terminal's Market Watch
        self.requests = 0  # request_id counts from 1 in each session
        # A terminal learns of its own deals with the answer: they need no question of their own.
        self.deals: OrderedDict[int, list[Any]] = OrderedDict()

    def _call(self, command: int, arguments: Any = None) -> Any:
        if self.link is None:
            raise _Failed(-10004)
        try:
            status, value = self.link.call(command, arguments)
        except link.LinkBroken as error:
            self.link.close()  # a closed socket fails every later call, as a broken pipe does
            raise _Failed(-10002 if error.sent else -10001) from None
        if status != link.OK:
            raise _Failed(status)
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
            raise _Failed(-10003, "IPC initialize failed, terminal could not be started") from None
        self.requests = 0
        try:
            self._log_in(given.get("login", 0), given.get("password", ""), given.get("server", ""))
        except _Failed:
            self._close()
            raise
        return True

    def login(self, *args: Any, **kwargs: Any) -> bool:
        if len(args) > 3:
            raise BadArgument("Invalid number of arguments")
        given = dict(zip(("login", "password", "server"), args, strict=False)) | kwargs
        parsed = parse_keywords(given, _LOGIN_KEYWORDS)
        self._log_in(parsed.get("login", 0), parsed.get("password", ""), parsed.get("server", ""))
        return True

    def _log_in(self, login: int, password: str, server: str) -> None:
        self._call(link.LOGIN, (login, password, server))

    def shutdown(self) -> bool:
        self._close()
        return True

    def _close(self) -> None:
        if self.link is not None:
            self.link.close()
        self.link = None
        self.deals.clear()

    def last_error(self) -> tuple[int, str]:
        return self.error

    def version(self) -> tuple[int, int, str]:
        self._call(link.TOTALS)
        return VERSION

    def terminal_info(self) -> Any:
        self._call(link.TOTALS)
        place = str(self.folder)
        return structs.TerminalInfo(
            (
                False, False, True, False, True, False, False, False, False, False, VERSION[1], 100_000, 0, 100, 0.0,
                0.0, "Order Ledger", "Order Ledger simulated terminal", "English", place, place, place,
            )
        )  # fmt: skip

    def account_info(self) -> Any:
        return structs.AccountInfo(self._call(link.ACCOUNT))

    # ---- symbols

    def _symbol(self, fields: list[Any]) -> Any:
        if fields[_NAME] in self.hidden:
            fields[_SELECT] = fields[_VISIBLE] = False
        return structs.SymbolInfo(fields)

    def symbols_total(self) -> int:
        total: int = self._call(link.TOTALS)[0]
        return total

    def symbols_get(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        if len(args) > 1 or (args and kwargs):
            raise BadArgument("Invalid number of arguments")
        given = parse_keywords({"group": args[0]} if args else kwargs, {"group": str})
        return tuple(self._symbol(fields) for fields in self._call(link.SYMBOLS, given.get("group", "")))

    def symbol_info(self, *args: Any) -> Any:
        return self._symbol(self._call(link.SYMBOL, _symbol_name(args)))

    def symbol_info_tick(self, *args: Any) -> Any:
        return structs.Tick(self._call(link.TICK, _symbol_name(args)))

    def symbol_select(self, *args: Any) -> bool:
        if len(args) not in (1, 2):
            raise BadArgument("Invalid number of arguments")
        name = _symbol_name(args[:1])
        self._call(link.SYMBOL, name)
        if len(args) == 1 or args[1]:
            self.hidden.discard(name)
        elif self._call(link.POSITIONS, (0, 0, name)):
            raise _Failed(-1)  # a symbol with open positions stays
        else:
            self.hidden.add(name)
        return True

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
        return _rows(structs.TradeDeal, self._history(link.HISTORY_DEALS, args, kwargs))

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


def _symbol_name(args: tuple[Any, ...]) -> str:
    if len(args) != 1:
        raise BadArgument("Invalid number of arguments")
    if not isinstance(args[0], str) or utf16_units(args[0]) > MAX_TEXT:
        raise BadArgument("Invalid arguments")
    return args[0]


def _calculation(args: tuple[Any, ...], prices: int) -> tuple[Any, ...]:
    """action, symbol, volume and prices; here, unlike in a trade request, an int may stand for a float."""
    if len(args) != 3 + prices - 1:
        raise BadArgument("Invalid number of arguments")
    action, symbol, *numbers = args
    if not isinstance(action, int) or not all(isinstance(number, int | float) for number in numbers):
        raise BadArgument("Invalid arguments")
    return (action, _symbol_name((symbol,)), *(float(number) for number in numbers))
