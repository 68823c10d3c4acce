"""The account, its orders, deals and positions, changed by applying effects and in no other way.

The same effects are what the journal keeps, so a replayed state is the live one by construction. Sums that every
request needs (margin, floating profit) are kept per symbol and side as exact integers: 10,000 open positions cost a
request nothing. Times are server wall clock in milliseconds, as the terminal reports them.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec

from gateway.simulated import constants as c
from gateway.simulated.market import UNIT, Market

FIRST_ORDER: Final = 50_000_001
FIRST_DEAL: Final = 40_000_001
CENTS: Final = 100


class OrderRow(msgspec.Struct, array_like=True, frozen=True, kw_only=True, gc=False):
    """TradeOrder, in its field order: encoded, it is what the terminal makes the struct from."""

    ticket: int
    time_setup: int
    time_setup_msc: int
    time_done: int
    time_done_msc: int
    time_expiration: int
    type: int
    type_time: int
    type_filling: int
    state: int
    magic: int
    position_id: int
    position_by_id: int
    reason: int
    volume_initial: float
    volume_current: float
    price_open: float
    sl: float
    tp: float
    price_current: float
    price_stoplimit: float
    symbol: str
    comment: str
    external_id: str


class DealRow(msgspec.Struct, array_like=True, frozen=True, kw_only=True, gc=False):
    """TradeDeal, in its field order."""

    ticket: int
    order: int
    time: int
    time_msc: int
    type: int
    entry: int
    magic: int
    position_id: int
    reason: int
    volume: float
    price: float
    commission: float
    swap: float
    profit: float
    fee: float
    symbol: str
    comment: str
    external_id: str


class PositionRow(msgspec.Struct, array_like=True, frozen=True, kw_only=True, gc=False):
    """What is stored of a TradePosition; current price and profit follow from the market."""

    ticket: int
    identifier: int
    time_msc: int
    time_update_msc: int
    type: int
    magic: int
    reason: int
    volume: float
    price_open: float
    sl: float
    tp: float
    swap: float
    symbol: str
    comment: str


class World(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """How the broker was created. Kept in its folder: later starts go on with it, whatever they are told."""

    seed: int = 1
    login: int = 5_000_001
    server: str = "OrderLedger-Sim"
    currency: str = "USD"
    leverage: int = 500
    margin_mode: int = c.ACCOUNT_MARGIN_MODE_RETAIL_HEDGING
    balance: float = 10_000_000.0
    utc_offset_s: int = 7200  # the server's zone


class Created(msgspec.Struct, array_like=True, frozen=True, tag=0):
    world: World


class OrderDone(msgspec.Struct, array_like=True, frozen=True, tag=1):
    order: OrderRow


class Dealt(msgspec.Struct, array_like=True, frozen=True, tag=2):
    deal: DealRow


class PositionSet(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """A position was opened or changed: this is all of it."""

    position: PositionRow


class PositionGone(msgspec.Struct, array_like=True, frozen=True, tag=4):
    identifier: int


class PriceMoved(msgspec.Struct, array_like=True, frozen=True, tag=5):
    symbol: str
    from_ms: int  # UTC
    points: int


Effect = Created | OrderDone | Dealt | PositionSet | PositionGone | PriceMoved


class Side:
    """Open volume of one direction of one symbol, and its volume × open price, in units of 1e-8 and 1e-16."""

    __slots__ = ("count", "value", "volume")

    def __init__(self) -> None:
        self.volume = 0
        self.value = 0
        self.count = 0


def units(number: float) -> int:
    return round(number * UNIT)


class State:
    def __init__(self) -> None:
        self.created = False
        self.world = World()
        self.balance_cents = 0
        self.positions: dict[int, PositionRow] = {}
        self.orders: dict[int, OrderRow] = {}  # history, by ticket, in the order of their end
        self.deals: dict[int, DealRow] = {}
        self.sides: dict[str, tuple[Side, Side]] = {}  # by symbol: long, short
        self.moves: list[PriceMoved] = []
        self.next_order = FIRST_ORDER
        self.next_deal = FIRST_DEAL
        self.last_ms = 0  # of the newest deal or order: server time never runs backwards
        self._order_times: list[int] = []
        self._order_rows: list[OrderRow] = []
        self._deal_times: list[int] = []
        self._deal_rows: list[DealRow] = []
        self._deals_of: dict[int, list[int]] = {}  # deal tickets by position identifier
        self._orders_of: dict[int, list[int]] = {}

    # ---- changing

    def apply(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case PositionSet(position):
                    self._count(self.positions.get(position.identifier), -1)
                    self.positions[position.identifier] = position
                    self._count(position, 1)
                case PositionGone(identifier):
                    self._count(self.positions.pop(identifier), -1)
                case OrderDone(order):
                    self._end_order(order)
                case Dealt(deal):
                    self._add_deal(deal)
                case PriceMoved():
                    self.moves.append(effect)
                case Created(world):
                    self.created = True
                    self.world = world
                    self.balance_cents = round(world.balance * CENTS)

    def _count(self, position: PositionRow | None, sign: int) -> None:
        if position is None:
            return
        sides = self.sides.get(position.symbol)
        if sides is None:
            sides = self.sides[position.symbol] = (Side(), Side())
        side = sides[position.type]
        volume = units(position.volume)
        side.volume += sign * volume
        side.value += sign * volume * units(position.price_open)
        side.count += sign

    def _end_order(self, order: OrderRow) -> None:
        self.orders[order.ticket] = order
        self._order_times.append(order.time_done)
        self._order_rows.append(order)
        self._orders_of.setdefault(order.position_id, []).append(order.ticket)
        self.next_order = max(self.next_order, order.ticket + 1)
        self.last_ms = max(self.last_ms, order.time_done_msc)

    def _add_deal(self, deal: DealRow) -> None:
        self.deals[deal.ticket] = deal
        self._deal_times.append(deal.time)
        self._deal_rows.append(deal)
        self._deals_of.setdefault(deal.position_id, []).append(deal.ticket)
        self.next_deal = max(self.next_deal, deal.ticket + 1)
        self.last_ms = max(self.last_ms, deal.time_msc)
        self.balance_cents += round((deal.profit + deal.commission + deal.swap + deal.fee) * CENTS)

    @property
    def effects_needed(self) -> int:
        """How many `as_effects` would give."""
        return 1 + len(self.moves) + len(self._order_rows) + len(self._deal_rows) + len(self.positions)

    def as_effects(self) -> Iterator[Effect]:
        """The shortest effects that make this state: what a compacted journal holds."""
        yield Created(self.world)
        yield from self.moves
        for order in self._order_rows:
            yield OrderDone(order)
        for deal in self._deal_rows:
            yield Dealt(deal)
        for position in self.positions.values():
            yield PositionSet(position)

    # ---- asking

    def orders_between(self, first_s: int, last_s: int) -> Sequence[OrderRow]:
        """History orders that ended in [first_s, last_s], server seconds."""
        return self._order_rows[bisect_left(self._order_times, first_s) : bisect_right(self._order_times, last_s)]

    def deals_between(self, first_s: int, last_s: int) -> Sequence[DealRow]:
        return self._deal_rows[bisect_left(self._deal_times, first_s) : bisect_right(self._deal_times, last_s)]

    def orders_of_position(self, identifier: int) -> list[OrderRow]:
        return [self.orders[ticket] for ticket in self._orders_of.get(identifier, ())]

    def deals_of_position(self, identifier: int) -> list[DealRow]:
        return [self.deals[ticket] for ticket in self._deals_of.get(identifier, ())]

    def floating(self, market: Market, now_ms: int) -> float:
        """Profit of all open positions at the prices they would close at, in the account's currency."""
        total = 0.0
        for name, (long, short) in self.sides.items():
            if long.count or short.count:
                quote, spec = market.quote(name, now_ms), market.symbols[name]
                bid, ask = (points * UNIT // spec.scale for points in (quote.bid, quote.ask))
                value = bid * long.volume - long.value + short.value - ask * short.volume
                total += market.profit(spec, value, now_ms)
        return round(total, 2)

    def margin(self, market: Market, now_ms: int, extra: tuple[str, int, int, float] | None = None) -> float:
        """Margin in use; with `extra` (symbol, side, volume, price) as it would be after that volume is added, or
        removed when it is negative. Opposite volumes of a symbol are charged once: the larger side counts."""
        names = list(self.sides)
        if extra is not None and extra[0] not in self.sides:
            names.append(extra[0])
        total = 0.0
        for name in names:
            sides = self.sides.get(name)
            volumes = [(side.volume, side.value) for side in sides] if sides is not None else [(0, 0), (0, 0)]
            if extra is not None and extra[0] == name:
                _, side_index, volume, price = extra
                had_volume, had_value = volumes[side_index]
                volumes[side_index] = (had_volume + volume, had_value + volume * units(price))
            volume, value = max(volumes)
            if volume > 0:
                lots, average = volume / UNIT, value / volume / UNIT
                total += market.margin(market.symbols[name], lots, average, self.world.leverage, now_ms)
        return round(total, 2)

    def position_tuple(self, row: PositionRow, market: Market, now_ms: int) -> tuple[Any, ...]:
        """The fields of TradePosition."""
        spec, quote = market.symbols[row.symbol], market.quote(row.symbol, now_ms)
        buy = row.type == c.POSITION_TYPE_BUY
        current = spec.price(quote.bid if buy else quote.ask)
        profit = self.closing_profit(row, row.volume, current, market, now_ms)
        return (
            row.ticket, row.time_msc // 1000, row.time_msc, row.time_update_msc // 1000, row.time_update_msc, row.type,
            row.magic, row.identifier, row.reason, row.volume, row.price_open, row.sl, row.tp, current, row.swap,
            profit, row.symbol, row.comment, "",
        )  # fmt: skip

    def closing_profit(self, row: PositionRow, volume: float, price: float, market: Market, now_ms: int) -> float:
        """Profit in whole cents of closing `volume` lots of the position at `price`."""
        difference = units(price) - units(row.price_open)
        signed = difference if row.type == c.POSITION_TYPE_BUY else -difference
        return round(market.profit(market.symbols[row.symbol], signed * units(volume), now_ms), 2)

    def account_tuple(self, market: Market, now_ms: int) -> tuple[Any, ...]:
        """The fields of AccountInfo."""
        world = self.world
        balance, profit = self.balance_cents / CENTS, self.floating(market, now_ms)
        margin = self.margin(market, now_ms)
        equity = round(balance + profit, 2)
        level = equity / margin * 100 if margin else 0.0
        return (
            world.login, c.ACCOUNT_TRADE_MODE_DEMO, world.leverage, 200, c.ACCOUNT_STOPOUT_MODE_PERCENT, True, True,
            world.margin_mode, 2, False, balance, 0.0, profit, equity, margin, round(equity - margin, 2), level,
            50.0, 30.0, 0.0, 0.0, 0.0, 0.0, 0.0, "Order Ledger Simulation", world.server, world.currency,
            "Order Ledger (simulated)",
        )  # fmt: skip
