"""The rules of the broker: what it accepts. `order_check` and `order_send` share this judgement, so they can not
disagree; the activation of a pending order shares its parts.

Rules follow MetaQuotes' documentation of MqlTradeRequest and the return codes; docs/mt5.md lists them.
"""

from collections import deque
from typing import Final

from gateway.simulated import constants as c
from gateway.simulated import symbols as s
from gateway.simulated.market import UNIT, Market, Quote, units
from gateway.simulated.money import Change, Money, costs
from gateway.simulated.plans import (
    HEDGE_PROHIBITED,
    NONE,
    CloseByPlan,
    DealPlan,
    Fill,
    ModifyPlan,
    PlacePlan,
    Plan,
    Refusal,
    RemovePlan,
    StopsPlan,
    Tampering,
)
from gateway.simulated.prices import (
    PRICED_MODES,
    expiry_s,
    filling_allowed,
    is_frozen,
    on_grid,
    pending_price_fits,
    position_is_frozen,
    stops_fit,
    volume_fits,
)
from gateway.simulated.rows import OrderRow, PositionRow, Request
from gateway.simulated.state import State
from gateway.simulated.symbols import SymbolSpec

MARKET_TYPES: Final = (c.ORDER_TYPE_BUY, c.ORDER_TYPE_SELL)
PENDING_TYPES: Final = range(c.ORDER_TYPE_BUY_LIMIT, c.ORDER_TYPE_SELL_STOP_LIMIT + 1)
_TYPE_FLAGS: Final = {
    c.ORDER_TYPE_BUY_LIMIT: s.ORDER_LIMIT_FLAG,
    c.ORDER_TYPE_SELL_LIMIT: s.ORDER_LIMIT_FLAG,
    c.ORDER_TYPE_BUY_STOP: s.ORDER_STOP_FLAG,
    c.ORDER_TYPE_SELL_STOP: s.ORDER_STOP_FLAG,
    c.ORDER_TYPE_BUY_STOP_LIMIT: s.ORDER_STOP_LIMIT_FLAG,
    c.ORDER_TYPE_SELL_STOP_LIMIT: s.ORDER_STOP_LIMIT_FLAG,
}
_SECOND_MS: Final = 1000
_BEYOND: Final = 1e9  # no price and no volume is that large


class Judge:
    def __init__(self, state: State, market: Market, money: Money) -> None:
        self.state = state
        self.market = market
        self.money = money
        self.recent: deque[int] = deque()  # when trade requests came, UTC ms

    def judge(self, request: Request, now: int, *, expert: bool = True, tampering: Tampering = NONE) -> Refusal | Plan:
        if expert and (refused := self._gate(now)):
            return Refusal(refused)
        if tampering.retcode:
            return Refusal(tampering.retcode)
        if not (
            -_BEYOND < request.volume < _BEYOND
            and -_BEYOND < request.price < _BEYOND
            and -_BEYOND < request.stoplimit < _BEYOND
            and -_BEYOND < request.sl < _BEYOND
            and -_BEYOND < request.tp < _BEYOND
        ):  # nor a NaN
            return Refusal(c.TRADE_RETCODE_INVALID)
        judged: int | Plan
        match request.action:
            case c.TRADE_ACTION_DEAL:
                judged = self._deal(request, now, tampering)
            case c.TRADE_ACTION_PENDING:
                judged = self._pending(request, now)
            case c.TRADE_ACTION_SLTP:
                judged = self._stops(request, now)
            case c.TRADE_ACTION_MODIFY:
                judged = self._modify(request, now)
            case c.TRADE_ACTION_REMOVE:
                judged = self._remove(request, now)
            case c.TRADE_ACTION_CLOSE_BY:
                judged = self._close_by(request, now)
            case _:
                judged = c.TRADE_RETCODE_INVALID
        return Refusal(judged) if isinstance(judged, int) else judged

    def _gate(self, now: int) -> int:
        rules, cut = self.state.rules, self.state.cut
        if cut.from_ms <= now < cut.until_ms:
            return c.TRADE_RETCODE_CONNECTION
        if not rules.algo_trading:
            return c.TRADE_RETCODE_CLIENT_DISABLES_AT
        if not rules.trade_expert:
            return c.TRADE_RETCODE_SERVER_DISABLES_AT
        if not rules.trade_allowed:
            return c.TRADE_RETCODE_TRADE_DISABLED
        if rules.limit_requests:
            while self.recent and self.recent[0] <= now - _SECOND_MS:
                self.recent.popleft()
            if len(self.recent) >= rules.limit_requests:
                return c.TRADE_RETCODE_TOO_MANY_REQUESTS
        return 0

    def _symbol(self, name: str) -> SymbolSpec | int:
        spec = self.market.symbols.get(name)
        if spec is None:
            return c.TRADE_RETCODE_INVALID
        if spec.real_only and not self.state.rules.real:
            return c.TRADE_RETCODE_ONLY_REAL
        return spec

    def _quoted(self, spec: SymbolSpec, now: int) -> int:
        if not self.market.is_open(spec.name, now):
            return c.TRADE_RETCODE_MARKET_CLOSED
        return 0 if spec.quoting else c.TRADE_RETCODE_PRICE_OFF

    # ---- market deals

    def _deal(self, request: Request, now: int, tampering: Tampering) -> int | DealPlan:
        if request.type not in MARKET_TYPES:
            return c.TRADE_RETCODE_INVALID_ORDER
        spec = self._symbol(request.symbol)
        if isinstance(spec, int):
            return spec
        if not spec.order_mode & s.ORDER_MARKET_FLAG:
            return c.TRADE_RETCODE_INVALID_ORDER
        target, refused = self._target(request, spec, now)
        if refused:
            return refused
        buy, volume = request.type == c.ORDER_TYPE_BUY, units(request.volume)
        closing = min(volume, units(target.volume)) if target is not None and target.type != request.type else 0
        if refused := self._form_refusal(request, spec, buy, closing, target):
            return refused
        if refused := self._quoted(spec, now):
            return refused
        quote = self.market.quote(spec.name, now)
        price = spec.price(quote.ask if buy else quote.bid)
        if refused := _price_refusal(request, spec, price):
            return refused
        opening = volume - closing
        if opening and not stops_fit(spec, quote.bid if buy else quote.ask, buy, request.sl, request.tp):
            return c.TRADE_RETCODE_INVALID_STOPS
        changes = _changes(request.type, target, closing, opening, price)
        if opening and (refused := self.room_refusal(spec, buy, opening, volume, changes, now, target is None)):
            return refused
        fills = self.fills(spec, quote, buy, volume)
        if tampering.partial < 1:
            fills = _cut(fills, spec, int(volume * tampering.partial))
        left = volume - sum(filled for _, filled in fills)
        if left and (request.type_filling == c.ORDER_FILLING_FOK or (not fills and not spec.return_filling)):
            return c.TRADE_RETCODE_REJECT
        if tampering.slip:
            fills = [(max(points + (tampering.slip if buy else -tampering.slip), 1), took) for points, took in fills]
        return DealPlan(spec, quote, fills, left, target, changes)

    def _target(self, request: Request, spec: SymbolSpec, now: int) -> tuple[PositionRow | None, int]:
        """The position a deal acts on: on a hedging account the one it names, on a netting account the symbol's."""
        state = self.state
        named = state.position_by_ticket(request.position) if request.position else None
        if request.position and named is None:
            return None, c.TRADE_RETCODE_POSITION_CLOSED
        if named is not None and named.symbol != spec.name:
            return None, c.TRADE_RETCODE_INVALID
        target = named if state.is_hedging() else state.position_of_symbol(spec.name)
        if target is None or target.type == request.type:
            return target, 0 if target is None or not state.is_hedging() else c.TRADE_RETCODE_INVALID
        return target, self._close_refusal(spec, target, now)

    def _close_refusal(self, spec: SymbolSpec, target: PositionRow, now: int) -> int:
        state = self.state
        if any(queued.position == target.identifier for queued in state.queued.values()):
            return c.TRADE_RETCODE_CLOSE_ORDER_EXIST
        if state.rules.fifo_close and state.is_hedging():
            oldest = next(row for row in state.positions.values() if row.symbol == target.symbol)
            if oldest.identifier != target.identifier:
                return c.TRADE_RETCODE_FIFO_CLOSE
        if spec.freeze_level and position_is_frozen(spec, self.market.quote(spec.name, now), target):
            return c.TRADE_RETCODE_FROZEN
        return 0

    def _form_refusal(
        self, request: Request, spec: SymbolSpec, buy: bool, closing: int, target: PositionRow | None
    ) -> int:
        volume = units(request.volume)
        if refused := self.mode_refusal(spec, buy, opening=volume > closing):
            return refused
        if not volume_fits(spec, request.volume):
            return c.TRADE_RETCODE_INVALID_VOLUME
        if target is not None and self.state.is_hedging() and volume > units(target.volume):
            return c.TRADE_RETCODE_INVALID_CLOSE_VOLUME
        if not filling_allowed(spec, request.type_filling):
            return c.TRADE_RETCODE_INVALID_FILL
        return c.TRADE_RETCODE_INVALID_EXPIRATION if request.type_time > c.ORDER_TIME_SPECIFIED_DAY else 0

    def mode_refusal(self, spec: SymbolSpec, buy: bool, *, opening: bool) -> int:
        mode = spec.trade_mode
        if mode == c.SYMBOL_TRADE_MODE_DISABLED:
            return c.TRADE_RETCODE_TRADE_DISABLED
        if not opening:
            return 0
        if mode == c.SYMBOL_TRADE_MODE_CLOSEONLY:
            return c.TRADE_RETCODE_CLOSE_ONLY
        if mode == c.SYMBOL_TRADE_MODE_LONGONLY and not buy:
            return c.TRADE_RETCODE_LONG_ONLY
        if mode == c.SYMBOL_TRADE_MODE_SHORTONLY and buy:
            return c.TRADE_RETCODE_SHORT_ONLY
        sides = self.state.sides.get(spec.name)
        if self.state.rules.hedge_prohibited and self.state.is_hedging() and sides and sides[buy].count:
            return HEDGE_PROHIBITED
        return 0

    def room_refusal(
        self, spec: SymbolSpec, buy: bool, opening: int, volume: int, changes: list[Change], now: int, new: bool
    ) -> int:
        """Limits of positions and volume, and the money for it. `new`: one position more."""
        rules = self.state.rules
        if new and rules.limit_positions and len(self.state.positions) >= rules.limit_positions:
            return c.TRADE_RETCODE_LIMIT_POSITIONS
        if spec.volume_limit and self._committed(spec.name, buy) + opening > units(spec.volume_limit):
            return c.TRADE_RETCODE_LIMIT_VOLUME
        return self.money_refusal(spec, volume, changes, now)

    def money_refusal(self, spec: SymbolSpec, volume: int, changes: list[Change], now: int) -> int:
        cost = -sum(costs(spec, volume))
        after = self.money.margin(now, spec.name, changes)
        return 0 if self.money.equity(now) - cost >= after else c.TRADE_RETCODE_NO_MONEY

    def _committed(self, symbol: str, buy: bool) -> int:
        """Units of one direction in positions and pending orders."""
        sides = self.state.sides.get(symbol)
        side = 0 if buy else 1
        pending = (row for row in self.state.working.values() if row.symbol == symbol and row.type % 2 == side)
        return (sides[side].volume if sides else 0) + sum(units(row.volume_current) for row in pending)

    def fills(self, spec: SymbolSpec, quote: Quote, buy: bool, volume: int, limit: int | None = None) -> list[Fill]:
        """What the book gives at this tick beyond what was already taken from it, not worse than `limit` points."""
        if not spec.book_levels:
            return [(quote.ask if buy else quote.bid, volume)]
        type_ = c.DEAL_TYPE_BUY if buy else c.DEAL_TYPE_SELL
        since = quote.time_msc + self.market.offset_ms
        taken = sum(
            units(deal.volume)
            for deal in self.state.deals_since(since)
            if deal.symbol == spec.name and deal.type == type_
        )
        found, wanted = [], volume
        for points, there in self.market.levels(spec.name, quote, buy=buy):
            skipped = min(taken, there)
            taken -= skipped
            took = min(there - skipped, wanted)
            if limit is not None and (points > limit if buy else points < limit):
                break
            if took:
                found.append((points, took))
                wanted -= took
        return found

    # ---- pending orders

    def _pending(self, request: Request, now: int) -> int | PlacePlan:
        flag = _TYPE_FLAGS.get(request.type)
        if flag is None:
            return c.TRADE_RETCODE_INVALID_ORDER
        spec = self._symbol(request.symbol)
        if isinstance(spec, int):
            return spec
        if not spec.order_mode & flag:
            return c.TRADE_RETCODE_INVALID_ORDER
        buy = request.type % 2 == 0
        if refused := self.mode_refusal(spec, buy, opening=True):
            return refused
        if not volume_fits(spec, request.volume):
            return c.TRADE_RETCODE_INVALID_VOLUME
        if not filling_allowed(spec, request.type_filling, request.type):
            return c.TRADE_RETCODE_INVALID_FILL
        expires = expiry_s(spec, request.type_time, request.expiration, self._server_s(now))
        if expires is None:
            return c.TRADE_RETCODE_INVALID_EXPIRATION
        if refused := self._levels_refusal(request, request.type, spec, now):
            return refused
        if len(self.state.working) >= self.state.rules.limit_orders:
            return c.TRADE_RETCODE_LIMIT_ORDERS
        if spec.volume_limit and self._committed(spec.name, buy) + units(request.volume) > units(spec.volume_limit):
            return c.TRADE_RETCODE_LIMIT_VOLUME
        return PlacePlan(spec, expires)

    def _server_s(self, now: int) -> int:
        return (now + self.market.offset_ms) // 1000

    def _levels_refusal(self, request: Request, type_: int, spec: SymbolSpec, now: int) -> int:
        """Prices of a pending order: on the market's right side, with its stops on theirs."""
        if refused := self._quoted(spec, now):
            return refused
        if not pending_price_fits(spec, self.market.quote(spec.name, now), type_, request.price, request.stoplimit):
            return c.TRADE_RETCODE_INVALID_PRICE
        stop_limit = type_ in (c.ORDER_TYPE_BUY_STOP_LIMIT, c.ORDER_TYPE_SELL_STOP_LIMIT)
        opens_at = round((request.stoplimit if stop_limit else request.price) * spec.scale)
        if not stops_fit(spec, opens_at, type_ % 2 == 0, request.sl, request.tp):
            return c.TRADE_RETCODE_INVALID_STOPS
        return 0

    def _working(self, request: Request, now: int) -> tuple[SymbolSpec, OrderRow] | int:
        order = self.state.working.get(request.order)
        if order is None:
            known = request.order in self.state.orders
            return c.TRADE_RETCODE_ORDER_CHANGED if known else c.TRADE_RETCODE_INVALID_ORDER
        if order.ticket in self.state.queued:
            return c.TRADE_RETCODE_LOCKED
        spec = self.market.symbols[order.symbol]
        if refused := self._quoted(spec, now):
            return refused
        if spec.freeze_level and is_frozen(spec, self.market.quote(spec.name, now), order):
            return c.TRADE_RETCODE_FROZEN
        return spec, order

    def _modify(self, request: Request, now: int) -> int | ModifyPlan:
        found = self._working(request, now)
        if isinstance(found, int):
            return found
        spec, order = found
        if order.type not in PENDING_TYPES:
            return c.TRADE_RETCODE_INVALID_ORDER
        expires = expiry_s(spec, request.type_time, request.expiration, self._server_s(now))
        if expires is None:
            return c.TRADE_RETCODE_INVALID_EXPIRATION
        if refused := self._levels_refusal(request, order.type, spec, now):
            return refused
        wanted = (request.price, request.stoplimit, request.sl, request.tp, request.type_time, expires)
        had = (order.price_open, order.price_stoplimit, order.sl, order.tp, order.type_time, order.time_expiration)
        return c.TRADE_RETCODE_NO_CHANGES if wanted == had else ModifyPlan(spec, order, expires)

    def _remove(self, request: Request, now: int) -> int | RemovePlan:
        found = self._working(request, now)
        return found if isinstance(found, int) else RemovePlan(*found)

    # ---- positions

    def _stops(self, request: Request, now: int) -> int | StopsPlan:
        spec = self._symbol(request.symbol)
        if isinstance(spec, int):
            return spec
        state = self.state
        by_symbol = not request.position and not state.is_hedging()
        row = state.position_of_symbol(spec.name) if by_symbol else state.position_by_ticket(request.position)
        if row is None:
            return c.TRADE_RETCODE_POSITION_CLOSED
        if row.symbol != spec.name:
            return c.TRADE_RETCODE_INVALID
        if spec.trade_mode == c.SYMBOL_TRADE_MODE_DISABLED:
            return c.TRADE_RETCODE_TRADE_DISABLED
        if refused := self._quoted(spec, now):
            return refused
        if any(queued.position == row.identifier for queued in state.queued.values()):
            return c.TRADE_RETCODE_LOCKED
        quote, buy = self.market.quote(spec.name, now), row.type == c.POSITION_TYPE_BUY
        if spec.freeze_level and position_is_frozen(spec, quote, row):
            return c.TRADE_RETCODE_FROZEN
        if not stops_fit(spec, quote.bid if buy else quote.ask, buy, request.sl, request.tp):
            return c.TRADE_RETCODE_INVALID_STOPS
        if (row.sl, row.tp) == (request.sl, request.tp):
            return c.TRADE_RETCODE_NO_CHANGES
        return StopsPlan(spec, row)

    def _close_by(self, request: Request, now: int) -> int | CloseByPlan:
        state = self.state
        if not state.is_hedging():
            return c.TRADE_RETCODE_INVALID
        one, other = state.position_by_ticket(request.position), state.position_by_ticket(request.position_by)
        if one is None or other is None:
            return c.TRADE_RETCODE_POSITION_CLOSED
        if one.symbol != other.symbol or one.type == other.type or request.symbol not in ("", one.symbol):
            return c.TRADE_RETCODE_INVALID
        spec = self.market.symbols[one.symbol]
        if not spec.order_mode & s.ORDER_CLOSEBY_FLAG:
            return c.TRADE_RETCODE_INVALID_ORDER
        if spec.trade_mode == c.SYMBOL_TRADE_MODE_DISABLED:
            return c.TRADE_RETCODE_TRADE_DISABLED
        if refused := self._quoted(spec, now):
            return refused
        for row in (one, other):
            if any(queued.position == row.identifier for queued in state.queued.values()):
                return c.TRADE_RETCODE_CLOSE_ORDER_EXIST
            if spec.freeze_level and position_is_frozen(spec, self.market.quote(spec.name, now), row):
                return c.TRADE_RETCODE_FROZEN
        return CloseByPlan(spec, one, other)


def _price_refusal(request: Request, spec: SymbolSpec, price: float) -> int:
    """Instant and request execution name a price, and are refused where the market has left it."""
    if request.price < 0:
        return c.TRADE_RETCODE_INVALID_PRICE
    if spec.exemode not in PRICED_MODES:
        return 0
    if request.price == 0 or not on_grid(spec, request.price):
        return c.TRADE_RETCODE_INVALID_PRICE
    if abs(request.price - price) <= (request.deviation + 0.5) * spec.point:
        return 0
    instant = spec.exemode == c.SYMBOL_TRADE_EXECUTION_INSTANT
    return c.TRADE_RETCODE_REQUOTE if instant else c.TRADE_RETCODE_PRICE_CHANGED


def _changes(type_: int, target: PositionRow | None, closing: int, opening: int, price: float) -> list[Change]:
    changes: list[Change] = []
    if closing and target is not None:
        changes.append((target.type, -closing, target.price_open))
    if opening:
        changes.append((type_, opening, price))
    return changes


def _cut(fills: list[Fill], spec: SymbolSpec, available: int) -> list[Fill]:
    step = round(spec.volume_step * UNIT)
    available -= available % step
    found = []
    for points, there in fills:
        took = min(there, available)
        available -= took
        if took:
            found.append((points, took))
    return found
