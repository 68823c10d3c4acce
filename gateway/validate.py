"""Validation before the broker: every reason against a request at once, in words for its sender. Pure.

The rules are those by which a trade server judges a request (MetaQuotes' documentation of MqlTradeRequest, the
symbol's properties and the return codes), and the firm's own limits, each off unless set. What the terminal does not
show (margin, the sessions of a symbol, limits of the account, whether a market order may be filled by RETURN) stays
the broker's to judge. What may pass by itself, a closed market, trading that is disabled or a frozen order, is told
beside other reasons but refuses nothing alone: the broker's answer parks such an order.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Final

import msgspec

from gateway.broker import Symbol, Tick
from ledger.trade import (
    ACTION_CLOSE_BY,
    ACTION_DEAL,
    ACTION_MODIFY,
    ACTION_PENDING,
    ACTION_REMOVE,
    ACTION_SLTP,
    FILLING_BOC,
    FILLING_FOK,
    FILLING_IOC,
    FILLING_RETURN,
    ORDER_TYPES,
    TYPE_BUY,
    TYPE_SELL,
    ZERO,
    BrokerOrder,
    Position,
    TargetImage,
    TradeRequest,
)
from ledger.values import plain

HEDGING: Final = 2  # ACCOUNT_MARGIN_MODE_RETAIL_HEDGING

# ENUM_SYMBOL_TRADE_MODE
_DISABLED, _LONG_ONLY, _SHORT_ONLY, _CLOSE_ONLY = range(4)
# ENUM_SYMBOL_TRADE_EXECUTION: request and instant execution name a price, market and exchange execution do not.
_PRICED: Final = (0, 1)
# Bits of SYMBOL_ORDER_MODE by order type, and for stops and close-by.
_TYPE_BITS: Final = (1, 1, 2, 2, 4, 4, 8, 8)
_SL_BIT, _TP_BIT, _CLOSE_BY_BIT = 16, 32, 64
_FILLING_BITS: Final = {FILLING_FOK: 1, FILLING_IOC: 2, FILLING_BOC: 4}
_FILLING_NAMES: Final = ("fok", "ioc", "return", "boc")
_LIMIT_TYPES, _STOP_LIMIT_TYPES = (2, 3), (6, 7)
_TIME_NAMES: Final = ("gtc", "day", "specified", "specified_day")
_SPECIFIED, _SPECIFIED_DAY = 2, 3
_DAY_S: Final = 86_400
_EPOCH: Final = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
_FURTHEST_S: Final = 2**33

Reason = tuple[str, bool]  # the text, and whether it may pass by itself


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The firm's own limits on what opens or adds to a position; each is off at its default. Volumes in lots,
    `price_collar_percent` of the market's price, `daily_loss` in the account's currency. `symbols`: names or masks
    (`EUR*`). `max_quote_age_s`: a symbol without a new price for longer counts as closed."""

    symbols: tuple[str, ...] = ()
    min_volume: Decimal = ZERO
    max_volume: Decimal = ZERO
    open_positions: int = 0
    orders_per_minute: int = 0
    price_collar_percent: Decimal = ZERO
    require_sl: bool = False
    require_tp: bool = False
    daily_loss: Decimal = ZERO
    max_quote_age_s: float = 0.0


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the account; None where it is not, and the rule is then left to the broker.

    `target`: what the request acts on; on an account that nets, for a deal, the symbol's position. `open_positions`
    counts those under way too, `orders_last_minute` what was let through before this request."""

    margin_mode: int = HEDGING
    server_utc_offset_s: int | None = None
    target: TargetImage | None = None
    open_positions: int | None = None
    orders_last_minute: int = 0
    daily_loss: Decimal | None = None


def validate(
    request: TradeRequest, symbol: Symbol | None, tick: Tick | None, view: View, limits: Limits, now: datetime
) -> tuple[str, ...]:
    """Every reason why the request cannot be accepted; empty when none is known, or only such as may pass.

    `symbol` None: the broker does not know it. `tick` None: prices are not judged.
    """
    if symbol is None:
        return (f"symbol {request.symbol!r} is not known to the broker",)
    reasons = list(_Judgement(request, symbol, tick, view, limits, now).reasons())
    return tuple(text for text, _ in reasons) if any(not passes for _, passes in reasons) else ()


def opened_volume(request: TradeRequest, view: View) -> Decimal | None:
    """Lots by which the request opens or adds to a position; None when the view does not tell."""
    if request.action == ACTION_PENDING:
        return request.volume
    if request.action != ACTION_DEAL:
        return ZERO
    if view.margin_mode == HEDGING:
        return ZERO if request.position else request.volume
    if view.target is None:
        return ZERO if request.position else None
    position = view.target.position
    if position is None or position.type == request.type:
        return request.volume
    return max(request.volume - position.volume, ZERO)


class _Judgement:
    """One request under all rules. Distances are in points, with the sign of the side that is allowed."""

    def __init__(
        self, request: TradeRequest, symbol: Symbol, tick: Tick | None, view: View, limits: Limits, now: datetime
    ) -> None:
        self.request, self.symbol, self.view, self.limits = request, symbol, view, limits
        self.tick = tick if tick is not None and tick.bid > 0 and tick.ask > 0 else None
        self.now = now
        self.grid = symbol.trade_tick_size or symbol.point
        self.level = max(symbol.trade_stops_level, 1) * symbol.point
        self.opens = opened_volume(request, view)

    def reasons(self) -> Iterator[Reason]:
        request = self.request
        yield from self._tradable()
        rules = {
            ACTION_DEAL: self._deal,
            ACTION_PENDING: self._pending,
            ACTION_SLTP: self._position_stops,
            ACTION_MODIFY: self._working,
            ACTION_REMOVE: self._working,
            ACTION_CLOSE_BY: self._close_by,
        }.get(request.action)
        if rules is None:
            yield f"action {request.action} is none of MetaTrader's trade operations", False
        else:
            yield from rules()
        if self.opens is None or self.opens > 0:
            yield from self._limits()
        elif request.action in (ACTION_SLTP, ACTION_MODIFY):
            yield from self._required_stops()
        if request.action == ACTION_MODIFY:
            yield from self._collar()

    # --- symbol -------------------------------------------------------------------------------------------------

    def _tradable(self) -> Iterator[Reason]:
        name, symbol = self.symbol.name, self.symbol
        if not symbol.select:
            yield f"symbol {name} is not selected in the terminal's Market Watch", False
        removes = self.request.action in (ACTION_MODIFY, ACTION_REMOVE)
        if symbol.trade_mode == _DISABLED and not removes:
            yield f"trading of {name} is disabled", True
        age_s = self._quote_age_s()
        if age_s is not None and 0 < self.limits.max_quote_age_s < age_s:
            yield f"the market of {name} is closed: its last price is {age_s:.0f} s old", True

    def _quote_age_s(self) -> float | None:
        if self.tick is None or not self.tick.time_msc or self.view.server_utc_offset_s is None:
            return None
        return self._server_s() - self.tick.time_msc / 1000

    def _server_s(self) -> float:
        return (self.now - _EPOCH) / timedelta(seconds=1) + (self.view.server_utc_offset_s or 0)

    def _mode(self, buy: bool) -> Iterator[Reason]:
        """Which side may be opened."""
        if not self.opens:
            return
        mode, name = self.symbol.trade_mode, self.symbol.name
        if mode == _CLOSE_ONLY:
            yield f"positions of {name} may only be closed", False
        elif mode == _LONG_ONLY and not buy:
            yield f"only long positions of {name} are allowed", False
        elif mode == _SHORT_ONLY and buy:
            yield f"only short positions of {name} are allowed", False

    def _type_allowed(self, type_: int) -> Iterator[Reason]:
        if not self.symbol.order_mode & _TYPE_BITS[type_]:
            yield f"{self.symbol.name} takes no {ORDER_TYPES[type_]} orders", False

    def _volume(self) -> Iterator[Reason]:
        volume, symbol = self.request.volume, self.symbol
        if not symbol.volume_min <= volume <= symbol.volume_max:
            yield (
                f"volume {volume} is outside {plain(symbol.volume_min)} to {plain(symbol.volume_max)} lots of "
                f"{symbol.name}",
                False,
            )
        if symbol.volume_step > 0 and volume % symbol.volume_step:
            yield f"volume {volume} is not a multiple of {plain(symbol.volume_step)} lots", False

    # --- deals --------------------------------------------------------------------------------------------------

    def _deal(self) -> Iterator[Reason]:
        request, symbol = self.request, self.symbol
        if request.type not in (TYPE_BUY, TYPE_SELL):
            yield f"order type {request.type} makes no deal at once", False
            return
        buy = request.type == TYPE_BUY
        yield from self._type_allowed(request.type)
        yield from self._mode(buy)
        yield from self._volume()
        yield from self._filling(None)
        if request.price < 0:
            yield f"price {request.price} is negative", False
        elif symbol.trade_exemode in _PRICED:
            if not request.price:
                yield f"{symbol.name} is dealt at a stated price, and there is none", False
            yield from self._on_grid("price", request.price)
        position = self.view.target.position if self.view.target is not None else None
        if self.view.margin_mode == HEDGING and request.position and self.view.target is not None:
            yield from self._closes(position)
        elif position is not None and position.type != request.type:
            yield from self._frozen_position(position)
        # Stops are judged only of what is opened; of what is not known to open they are the broker's to judge.
        if self.opens and self.tick is not None:
            yield from self._stops(buy, self.tick.bid if buy else self.tick.ask)

    def _closes(self, position: Position | None) -> Iterator[Reason]:
        request = self.request
        if position is None:
            yield f"position {request.position} is not open", False
            return
        if position.symbol and position.symbol != request.symbol:
            yield f"position {request.position} is of {position.symbol}, not {request.symbol}", False
        if position.type == request.type:
            yield f"position {request.position} is closed by the other side, not by {ORDER_TYPES[request.type]}", False
        if request.volume > position.volume:
            yield f"volume {request.volume} is more than the {position.volume} lots of the position", False
        yield from self._frozen_position(position)

    def _filling(self, pending: int | None) -> Iterator[Reason]:
        """Whether RETURN is allowed for a market order no property tells; it always is for a pending one."""
        filling, symbol = self.request.type_filling, self.symbol
        if filling == FILLING_RETURN:
            return
        allowed = filling in _FILLING_BITS and bool(symbol.filling_mode & _FILLING_BITS[filling])
        if filling == FILLING_BOC:
            allowed = allowed and pending in _LIMIT_TYPES + _STOP_LIMIT_TYPES
        elif filling in _FILLING_BITS and symbol.trade_exemode in _PRICED:
            allowed = True
        if not allowed:
            name = _FILLING_NAMES[filling] if 0 <= filling < len(_FILLING_NAMES) else str(filling)
            yield f"{symbol.name} does not allow filling {name} for this order", False

    # --- prices -------------------------------------------------------------------------------------------------

    def _on_grid(self, name: str, price: Decimal) -> Iterator[Reason]:
        if self.grid > 0 and price % self.grid:
            yield f"{name} {price} is not a multiple of the tick size {plain(self.grid)}", False

    def _stops(self, buy: bool, reference: Decimal) -> Iterator[Reason]:
        """SL on the losing side of the reference, TP on the winning one, each at least the stops level away."""
        for name, price, bit, winning in (
            ("sl", self.request.sl, _SL_BIT, False),
            ("tp", self.request.tp, _TP_BIT, True),
        ):
            if not price:
                continue
            if price < 0:
                yield f"{name} {price} is negative", False
                continue
            if not self.symbol.order_mode & bit:
                yield f"{self.symbol.name} takes no {name}", False
            yield from self._on_grid(name, price)
            above = buy is winning
            yield from self._apart(name, price, reference, above=above)

    def _apart(self, name: str, price: Decimal, reference: Decimal, *, above: bool) -> Iterator[Reason]:
        distance = price - reference if above else reference - price
        if distance < self.level:
            yield (
                f"{name} {price} must be at least {plain(self.level)} {'above' if above else 'below'} "
                f"{plain(reference)}",
                False,
            )

    def _levels(self, type_: int) -> Iterator[Reason]:
        """Prices of a pending order: limits wait on the better side of the market, stops on the worse."""
        request, buy, tick = self.request, type_ % 2 == 0, self.tick
        for name, price, needed in (
            ("price", request.price, True),
            ("stop_limit_price", request.stoplimit, type_ in _STOP_LIMIT_TYPES),
        ):
            if needed and price <= 0:
                yield f"{name} {price} is no price for a pending order", False
            elif needed:
                yield from self._on_grid(name, price)
        if request.price > 0 and tick is not None:
            market = tick.ask if buy else tick.bid
            yield from self._apart("price", request.price, market, above=buy is not (type_ in _LIMIT_TYPES))
        opens_at = request.price
        if type_ in _STOP_LIMIT_TYPES:
            opens_at = request.stoplimit
            better = request.price - request.stoplimit if buy else request.stoplimit - request.price
            if request.stoplimit > 0 and better < self.symbol.point:
                side = "below" if buy else "above"
                yield f"stop_limit_price {request.stoplimit} must be {side} the price {request.price}", False
        if opens_at > 0:
            yield from self._stops(buy, opens_at)

    # --- pending orders -----------------------------------------------------------------------------------------

    def _pending(self) -> Iterator[Reason]:
        type_ = self.request.type
        if not 2 <= type_ <= 7:
            yield f"order type {type_} is no pending order", False
            return
        yield from self._type_allowed(type_)
        yield from self._mode(type_ % 2 == 0)
        yield from self._volume()
        yield from self._filling(type_)
        yield from self._expiry()
        yield from self._levels(type_)

    def _expiry(self) -> Iterator[Reason]:
        request, symbol = self.request, self.symbol
        type_time = request.type_time
        if not 0 <= type_time <= _SPECIFIED_DAY or not symbol.expiration_mode & 1 << type_time:
            name = _TIME_NAMES[type_time] if 0 <= type_time <= _SPECIFIED_DAY else str(type_time)
            yield f"{symbol.name} does not allow time_in_force {name}", False
        if type_time not in (_SPECIFIED, _SPECIFIED_DAY) or self.view.server_utc_offset_s is None:
            return
        ends = request.expiration
        if type_time == _SPECIFIED_DAY:
            ends += _DAY_S - ends % _DAY_S
        if not int(self._server_s()) < ends < _FURTHEST_S:
            yield f"expires_at {self._utc(request.expiration)} is not in the future", False

    def _utc(self, server_s: int) -> str:
        try:
            return f"{_EPOCH + timedelta(seconds=server_s - (self.view.server_utc_offset_s or 0)):%Y-%m-%dT%H:%M:%SZ}"
        except OverflowError:
            return str(server_s)

    def _working(self) -> Iterator[Reason]:
        """A change or a cancel of a working order."""
        request, target = self.request, self.view.target
        order = target.order if target is not None else None
        if target is not None and order is None:
            yield f"order {request.order} is not working", False
            return
        if order is not None:
            yield from self._frozen_order(order)
        if request.action == ACTION_MODIFY:
            yield from self._expiry()
            if order is not None and 2 <= order.type <= 7:
                yield from self._levels(order.type)
            elif order is not None:
                yield f"order {request.order} is no pending order", False

    def _frozen_order(self, order: BrokerOrder) -> Iterator[Reason]:
        if self.tick is None or not self.symbol.trade_freeze_level:
            return
        market = self.tick.ask if order.type % 2 == 0 else self.tick.bid
        if abs(order.price_open - market) <= self.symbol.trade_freeze_level * self.symbol.point:
            yield f"order {order.ticket} is frozen: the market is too near its price {order.price_open}", True

    # --- positions ----------------------------------------------------------------------------------------------

    def _position_stops(self) -> Iterator[Reason]:
        target = self.view.target
        if target is None:
            return
        position = target.position
        if position is None:
            yield f"position {self.request.position} is not open", False
            return
        yield from self._frozen_position(position)
        if self.tick is not None:
            buy = position.type == TYPE_BUY
            yield from self._stops(buy, self.tick.bid if buy else self.tick.ask)

    def _close_by(self) -> Iterator[Reason]:
        request, target = self.request, self.view.target
        if self.view.margin_mode != HEDGING:
            yield "positions are closed by each other on hedging accounts only", False
            return
        if not self.symbol.order_mode & _CLOSE_BY_BIT:
            yield f"positions of {self.symbol.name} cannot be closed by each other", False
        if target is None:
            return
        for ticket, position in (
            (request.position, target.position),
            (request.position_by, target.position_by),
        ):
            if position is None:
                yield f"position {ticket} is not open", False
            else:
                yield from self._frozen_position(position)
        one, other = target.position, target.position_by
        if one is not None and other is not None:
            if one.symbol != other.symbol:
                yield f"the positions are of {one.symbol} and {other.symbol}", False
            if one.type == other.type:
                yield "both positions are on the same side", False

    def _frozen_position(self, position: Position) -> Iterator[Reason]:
        if self.tick is None or not self.symbol.trade_freeze_level:
            return
        market = self.tick.bid if position.type == TYPE_BUY else self.tick.ask
        freeze = self.symbol.trade_freeze_level * self.symbol.point
        if any(price and abs(price - market) <= freeze for price in (position.sl, position.tp)):
            yield f"position {position.identifier} is frozen: the market is too near its stops", True

    # --- the firm's own limits ----------------------------------------------------------------------------------

    def _limits(self) -> Iterator[Reason]:
        limits, request, view = self.limits, self.request, self.view
        name, volume = self.symbol.name, self.request.volume
        if limits.symbols and not any(fnmatchcase(name, mask) for mask in limits.symbols):
            yield f"limit: {name} is none of the symbols allowed", False
        if limits.min_volume and volume < limits.min_volume:
            yield f"limit: volume {volume} is less than {limits.min_volume} lots", False
        if limits.max_volume and volume > limits.max_volume:
            yield f"limit: volume {volume} is more than {limits.max_volume} lots", False
        if limits.open_positions and view.open_positions is None:
            yield "limit: how many positions are open is not known now", False
        elif limits.open_positions and (view.open_positions or 0) >= limits.open_positions:
            yield (
                f"limit: {view.open_positions} positions are open or under way, {limits.open_positions} allowed",
                False,
            )
        if limits.orders_per_minute and view.orders_last_minute >= limits.orders_per_minute:
            yield f"limit: {view.orders_last_minute} orders within a minute, {limits.orders_per_minute} allowed", False
        if limits.daily_loss and view.daily_loss is None:
            yield "limit: today's loss is not known now", False
        elif limits.daily_loss and (view.daily_loss or ZERO) >= limits.daily_loss:
            yield f"limit: today's loss {view.daily_loss} has reached {limits.daily_loss}", False
        yield from self._required_stops()
        if request.action in (ACTION_DEAL, ACTION_PENDING):
            yield from self._collar()

    def _required_stops(self) -> Iterator[Reason]:
        if self.limits.require_sl and not self.request.sl:
            yield "limit: an order needs a stop loss (sl)", False
        if self.limits.require_tp and not self.request.tp:
            yield "limit: an order needs a take profit (tp)", False

    def _collar(self) -> Iterator[Reason]:
        """How far from the market a stated price may be: the typing error that costs most."""
        percent, request = self.limits.price_collar_percent, self.request
        if not percent:
            return
        if self.tick is None:
            yield "limit: the market's price is not known now", False
            return
        side = request.type
        if request.action == ACTION_MODIFY and self.view.target is not None and self.view.target.order is not None:
            side = self.view.target.order.type
        market = self.tick.ask if side % 2 == 0 else self.tick.bid
        prices = [("price", request.price), ("stop_limit_price", request.stoplimit)]
        for name, price in prices:
            if price > 0 and abs(price - market) * 100 > percent * market:
                yield f"limit: {name} {price} is more than {plain(percent)} % off the market at {plain(market)}", False
