"""What a terminal may ask of the broker without changing anything: selections of orders, deals, positions, symbols."""

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final, TypeVar

import msgspec

from gateway.simulated.market import Market
from gateway.simulated.state import DealRow, OrderRow, PositionRow, State
from gateway.simulated.structs import SymbolInfo

Row = TypeVar("Row", OrderRow, DealRow)

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
    def __init__(self, state: State, market: Market) -> None:
        self.state = state
        self.market = market

    def symbol(self, name: str, now_ms: int) -> Sequence[Any] | None:
        if name not in self.market.symbols:
            return None
        return list((_EMPTY_SYMBOL | self.market.symbol_info(name, now_ms)).values())

    def symbols(self, group: str, now_ms: int) -> list[Sequence[Any] | None]:
        matches = group_matcher(group)
        return [self.symbol(name, now_ms) for name in self.market.symbols if matches(name)]

    def tick(self, name: str, now_ms: int) -> Sequence[Any] | None:
        return self.market.tick(name, now_ms) if name in self.market.symbols else None

    def positions(self, wanted: Selection, now_ms: int) -> list[Sequence[Any]]:
        rows: Iterable[PositionRow] = self.state.positions.values()
        if wanted.ticket:
            row = self.state.positions.get(wanted.ticket)
            rows = () if row is None else (row,)
        elif wanted.symbol:
            rows = (row for row in rows if row.symbol == wanted.symbol)
        elif wanted.group:
            matches = group_matcher(wanted.group)
            rows = (row for row in rows if matches(row.symbol))
        return [self.state.position_tuple(row, self.market, now_ms) for row in rows]

    def history_orders(self, wanted: Selection) -> Sequence[OrderRow]:
        state = self.state
        if wanted.ticket:
            order = state.orders.get(wanted.ticket)
            return () if order is None else (order,)
        if wanted.position:
            return state.orders_of_position(wanted.position)
        return _in_group(state.orders_between(wanted.first_s, wanted.last_s), wanted.group)

    def history_deals(self, wanted: Selection) -> Sequence[DealRow]:
        state = self.state
        if wanted.ticket:
            deal = state.deals.get(wanted.ticket)
            return () if deal is None else (deal,)
        if wanted.position:
            return state.deals_of_position(wanted.position)
        return _in_group(state.deals_between(wanted.first_s, wanted.last_s), wanted.group)


def _in_group(rows: Sequence[Row], group: str) -> Sequence[Row]:
    if not group:
        return rows
    matches = group_matcher(group)
    return [row for row in rows if matches(row.symbol)]
