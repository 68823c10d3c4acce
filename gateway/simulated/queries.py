"""What a terminal may ask of the broker without changing anything: selections of orders, deals, positions, symbols.

A terminal without connection goes on answering from what it knew: `freeze` keeps that.
"""

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from msgspec.structs import replace

from gateway.simulated.market import Market
from gateway.simulated.money import Money
from gateway.simulated.rows import DealRow, OrderRow, PositionRow
from gateway.simulated.state import State
from gateway.simulated.structs import SymbolInfo

Row = TypeVar("Row", OrderRow, DealRow)
OpenRow = TypeVar("OpenRow", OrderRow, PositionRow)

_FIELDS: Final = SymbolInfo.__match_args__
_FLAGS: Final = frozenset(("custom", "select", "visible", "spread_float", "margin_hedged_use_leg"))


def _nothing(index: int, field: str) -> str | bool | int | float:
    """The struct has its integers first, then the floats from `bid` on, then the strings from `basis` on."""
    if index >= _FIELDS.index("basis"):
        return ""
    if index >= _FIELDS.index("bid"):
        return 0.0
    return False if field in _FLAGS else 0


# SymbolInfo with nothing in it: fields are filled by name, the rest stays as here.
_EMPTY_SYMBOL: Final = {field: _nothing(index, field) for index, field in enumerate(_FIELDS)}


class Selection(msgspec.Struct, array_like=True, frozen=True):
    """Which records are wanted. The first that is given decides: ticket, position, symbol, group; none = all."""

    ticket: int = 0
    position: int = 0
    symbol: str = ""
    group: str = ""
    first_s: int = 0
    last_s: int = 0


class Frozen(NamedTuple):
    positions: dict[int, PositionRow]
    working: dict[int, OrderRow]


def group_matcher(group: str) -> Callable[[str], bool]:
    """MetaTrader's symbol masks: comma-separated, `*` any run of characters, `!` excludes. A name is in the group if
    a mask includes it (or all masks exclude) and none excludes it."""
    masks = [mask.strip() for mask in group.split(",") if mask.strip()]
    included = [mask for mask in masks if not mask.startswith("!")]
    excluded = [mask[1:] for mask in masks if mask.startswith("!")]

    def matches(name: str) -> bool:
        if any(fnmatchcase(name, mask) for mask in excluded):
            return False
        return not included or any(fnmatchcase(name, mask) for mask in included)

    return matches


class Queries:
    """`look` sets the moment that is shown; `now` is it, in UTC milliseconds."""

    def __init__(self, state: State, market: Market, money: Money) -> None:
        self.state = state
        self.market = market
        self.money = money
        self.now = 0
        self._last_msc = 0  # newest server time shown
        self._frozen: Frozen | None = None
        self._lags = False

    def freeze(self, now_ms: int) -> None:
        """The terminal loses its connection: it keeps showing what is there now."""
        self.look(now_ms, 0)
        self._frozen = Frozen(dict(self.state.positions), dict(self.state.working))

    def look(self, now_ms: int, lag_ms: int) -> None:
        """Questions are answered as of now, or of the moment the connection was lost; records younger than `lag_ms`
        are not shown yet."""
        cut = self.state.cut
        disconnected = cut.from_ms <= now_ms < cut.until_ms
        if self._frozen is not None and not disconnected:
            self._frozen = None
        self.now = cut.from_ms if disconnected else now_ms
        self._lags = bool(lag_ms) or disconnected
        self._last_msc = self.now + self.market.offset_ms - lag_ms

    # ---- symbols

    def symbol(self, name: str) -> Sequence[Any] | None:
        if name not in self.market.symbols:
            return None
        return list((_EMPTY_SYMBOL | self.market.symbol_info(name, self.now)).values())

    def symbols(self, group: str) -> list[Sequence[Any] | None]:
        matches = group_matcher(group)
        return [self.symbol(name) for name in self.market.symbols if matches(name)]

    def tick(self, name: str) -> Sequence[Any] | None:
        return self.market.tick(name, self.now) if name in self.market.symbols else None

    def book(self, name: str) -> Sequence[Any] | None:
        return self.market.book(name, self.now) if name in self.market.symbols else None

    def chart(self, name: str) -> Sequence[Any] | None:
        """What a terminal needs to draw the symbol's past itself."""
        spec = self.market.symbols.get(name)
        if spec is None:
            return None
        return self.market.seed, self.market.offset_ms, self.now, spec, self.market.moves(name)

    # ---- what is open

    def totals(self) -> tuple[int, int, int]:
        return len(self.market.symbols), len(self._working()), len(self._positions())

    def _positions(self) -> dict[int, PositionRow]:
        return self._frozen.positions if self._frozen is not None else self.state.positions

    def _working(self) -> dict[int, OrderRow]:
        return self._frozen.working if self._frozen is not None else self.state.working

    def positions(self, wanted: Selection) -> list[Sequence[Any]]:
        positions = self._positions()
        if wanted.ticket:
            known = self.state.identifiers.get(wanted.ticket, wanted.ticket)
            row = positions.get(known)
            rows: Iterable[PositionRow] = () if row is None or row.ticket != wanted.ticket else (row,)
        else:
            rows = _selected(positions.values(), wanted)
        return [self.money.position_tuple(row, self.now) for row in rows if self._shown(row.time_update_msc)]

    def orders(self, wanted: Selection) -> list[OrderRow]:
        working = self._working()
        if wanted.ticket:
            row = working.get(wanted.ticket)
            rows: Iterable[OrderRow] = () if row is None else (row,)
        else:
            rows = _selected(working.values(), wanted)
        return [self._priced(row) for row in rows if self._shown(row.time_setup_msc)]

    def _shown(self, msc: int) -> bool:
        return not self._lags or msc <= self._last_msc

    def _priced(self, row: OrderRow) -> OrderRow:
        spec, quote = self.market.symbols[row.symbol], self.market.quote(row.symbol, self.now)
        return replace(row, price_current=spec.price(quote.ask if row.type % 2 == 0 else quote.bid))

    # ---- history

    def history_orders(self, wanted: Selection) -> Sequence[OrderRow]:
        state = self.state
        if wanted.ticket:
            order = state.orders.get(wanted.ticket)
            rows: Sequence[OrderRow] = () if order is None else (order,)
        elif wanted.position:
            rows = state.orders_of_position(wanted.position)
        else:
            rows = _in_group(state.orders_between(wanted.first_s, wanted.last_s), wanted.group)
        return [row for row in rows if row.time_done_msc <= self._last_msc] if self._lags else rows

    def history_deals(self, wanted: Selection) -> Sequence[DealRow]:
        state = self.state
        if wanted.ticket:
            deal = state.deals.get(wanted.ticket)
            rows: Sequence[DealRow] = () if deal is None else (deal,)
        elif wanted.position:
            rows = state.deals_of_position(wanted.position)
        else:
            rows = _in_group(state.deals_between(wanted.first_s, wanted.last_s), wanted.group)
        return [row for row in rows if row.time_msc <= self._last_msc] if self._lags else rows


def _selected(rows: Iterable[OpenRow], wanted: Selection) -> Iterable[OpenRow]:
    if wanted.symbol:
        return [row for row in rows if row.symbol == wanted.symbol]
    if wanted.group:
        matches = group_matcher(wanted.group)
        return [row for row in rows if matches(row.symbol)]
    return rows


def _in_group(rows: Sequence[Row], group: str) -> Sequence[Row]:
    if not group:
        return rows
    matches = group_matcher(group)
    return [row for row in rows if matches(row.symbol)]
