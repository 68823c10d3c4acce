"""The part of the terminal that shows the market: symbols, ticks, depth, charts."""

from typing import Any, Final

import msgspec

from gateway.simulated import constants, link, structs
from gateway.simulated.arguments import U32, BadArgument, Int, parse_keywords, seconds, symbol_name, whole
from gateway.simulated.symbols import SymbolSpec

MAX_BARS: Final = 100_000
TEXTS: Final = {
    1: "Success",
    -1: "Terminal: Call failed",
    -2: "Terminal: Invalid params",
    -3: "Terminal: Out of memory",
    -4: "Terminal: Not found",
    -5: "Terminal: Incompatible versions",
    -6: "Terminal: Authorization failed",
    -7: "Terminal: Unsupported function",
    -8: "Auto-Trading using Python API disabled in Terminal",
    -10000: "IPC call failed",
    -10001: "IPC send failed",
    -10002: "IPC recv failed",
    -10003: "IPC initialize failed, terminal could not be started",
    -10004: "No IPC connection",
    -10005: "IPC timeout",
}
_NAME, _SELECT, _VISIBLE = map(structs.SymbolInfo.__match_args__.index, ("name", "select", "visible"))
_COUNT: Final = Int(1, 2**31)
_POSITION: Final = Int(0, 2**31)
_FLAGS: Final = Int(-1, 2**31)
_TIMEFRAMES: Final = frozenset(value for name, value in vars(constants).items() if name.startswith("TIMEFRAME_"))


class Failed(Exception):
    """A call ends with this last_error."""

    def __init__(self, code: int, text: str = "") -> None:
        super().__init__(text)
        self.code = code
        self.text = text or TEXTS[code]


class MarketCalls:
    def __init__(self) -> None:
        self.hidden: set[str] = set()  # symbols taken out of this terminal's Market Watch
        self.books: set[str] = set()  # symbols whose depth this terminal has subscribed to

    def _call(self, command: int, arguments: Any = None, timeout_s: float | None = None) -> Any:
        raise NotImplementedError

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
        return self._symbol(self._call(link.SYMBOL, symbol_name(args)))

    def symbol_info_tick(self, *args: Any) -> Any:
        return structs.Tick(self._call(link.TICK, symbol_name(args)))

    def symbol_select(self, *args: Any) -> bool:
        if len(args) not in (1, 2):
            raise BadArgument("Invalid number of arguments")
        name = symbol_name(args[:1])
        self._call(link.SYMBOL, name)
        if len(args) == 1 or args[1]:
            self.hidden.discard(name)
        elif self._call(link.POSITIONS, (0, 0, name)):
            raise Failed(-1)  # a symbol with open positions stays
        else:
            self.hidden.add(name)
        return True

    # ---- depth of market

    def market_book_add(self, *args: Any) -> bool:
        name = symbol_name(args)
        self._call(link.BOOK, name)
        self.books.add(name)
        return True

    def market_book_get(self, *args: Any) -> tuple[Any, ...]:
        name = symbol_name(args)
        rows = self._call(link.BOOK, name)
        if name not in self.books:
            raise Failed(-4)
        return tuple(structs.BookInfo(row) for row in rows)

    def market_book_release(self, *args: Any) -> bool:
        name = symbol_name(args)
        self._call(link.BOOK, name)
        self.books.discard(name)
        return True

    # ---- charts

    def _chart(self, name: str) -> Any:
        from gateway.simulated.charts import Chart

        seed, offset_ms, now_ms, spec, moves = self._call(link.CHART, name)
        return Chart(seed, offset_ms, now_ms, msgspec.convert(spec, SymbolSpec), [tuple(move) for move in moves])

    def copy_rates_from(self, *args: Any) -> Any:
        name, timeframe, date_from, count = _chart_arguments(args)
        return self._chart(name).rates_from(timeframe, seconds(date_from), min(whole(count, _COUNT), MAX_BARS))

    def copy_rates_from_pos(self, *args: Any) -> Any:
        name, timeframe, position, count = _chart_arguments(args)
        first, bars = whole(position, _POSITION), whole(count, _COUNT)
        if first >= MAX_BARS:
            raise Failed(-1)
        return self._chart(name).rates_from_pos(timeframe, first, min(bars, MAX_BARS - first))

    def copy_rates_range(self, *args: Any) -> Any:
        name, timeframe, date_from, date_to = _chart_arguments(args)
        return self._chart(name).rates_range(timeframe, seconds(date_from), seconds(date_to), MAX_BARS)

    def copy_ticks_from(self, *args: Any) -> Any:
        name, date_from, count, flags = _tick_arguments(args)
        return self._chart(name).ticks_from(seconds(date_from), whole(count, _COUNT), flags)

    def copy_ticks_range(self, *args: Any) -> Any:
        name, date_from, date_to, flags = _tick_arguments(args)
        return self._chart(name).ticks_range(seconds(date_from), seconds(date_to), flags)


def _chart_arguments(args: tuple[Any, ...]) -> tuple[str, int, Any, Any]:
    if len(args) != 4:
        raise BadArgument("Invalid number of arguments")
    timeframe = whole(args[1], U32)
    if timeframe not in _TIMEFRAMES:
        raise Failed(-2)
    return symbol_name(args[:1]), timeframe, args[2], args[3]


def _tick_arguments(args: tuple[Any, ...]) -> tuple[str, Any, Any, int]:
    if len(args) != 4:
        raise BadArgument("Invalid number of arguments")
    return symbol_name(args[:1]), args[1], args[2], whole(args[3], _FLAGS)
