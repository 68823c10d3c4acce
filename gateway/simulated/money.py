"""What the account is worth: floating profit, margin, and the structs that show them. Account currency, whole cents."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from gateway.simulated import constants as c
from gateway.simulated.market import UNIT, Market, units
from gateway.simulated.rows import PositionRow
from gateway.simulated.state import CENTS, State
from gateway.simulated.symbols import SymbolSpec

Change = tuple[int, int, float]  # side, units of volume (negative: taken away), price


class Money:
    def __init__(self, state: State, market: Market) -> None:
        self.state = state
        self.market = market

    def floating(self, now_ms: int) -> float:
        """Profit of all open positions at the prices they would close at, without their swap."""
        market, total = self.market, 0.0
        for name, (long, short) in self.state.sides.items():
            if long.count or short.count:
                quote, spec = market.quote(name, now_ms), market.symbols[name]
                unit = UNIT // spec.scale
                value = quote.bid * unit * long.volume - long.value + short.value - quote.ask * unit * short.volume
                total += market.profit(spec, value, now_ms)
        return whole_cents(total)

    def swaps(self) -> float:
        """Swap of all open positions, not yet in the balance."""
        return self.state.swap_cents / CENTS

    def balance(self) -> float:
        return self.state.balance_cents / CENTS

    def equity(self, now_ms: int) -> float:
        return whole_cents(self.balance() + self.floating(now_ms) + self.swaps())

    def margin(self, now_ms: int, symbol: str = "", changes: Sequence[Change] = ()) -> float:
        """Margin in use; with `changes` as it would be after them. Opposite volumes of a symbol are charged once:
        the larger side counts."""
        total = 0.0
        for name, (long, short) in self.state.sides.items():
            if name != symbol:
                total += self._margin_of(name, long.volume, long.value, short.volume, short.value, now_ms)
        if symbol:
            total += self._margin_with(symbol, changes, now_ms)
        return whole_cents(total)

    def _margin_with(self, symbol: str, changes: Sequence[Change], now_ms: int) -> float:
        sides = self.state.sides.get(symbol)
        volumes = [sides[0].volume, sides[1].volume] if sides is not None else [0, 0]
        values = [sides[0].value, sides[1].value] if sides is not None else [0, 0]
        for side, volume, price in changes:
            volumes[side] += volume
            values[side] += volume * units(price)
        return self._margin_of(symbol, volumes[0], values[0], volumes[1], values[1], now_ms)

    def _margin_of(self, name: str, long: int, long_value: int, short: int, short_value: int, now_ms: int) -> float:
        """Of the larger side, which of two equal ones is the dearer."""
        volume, value = (long, long_value) if (long, long_value) >= (short, short_value) else (short, short_value)
        if volume <= 0:
            return 0.0
        spec = self.market.symbols[name]
        return self.market.margin(spec, volume / UNIT, value / volume / UNIT, self.state.world.leverage, now_ms)

    def closing_profit(self, row: PositionRow, volume: int, price: float, now_ms: int) -> float:
        """Profit of closing `volume` units of the position at `price`."""
        difference = units(price) - units(row.price_open)
        signed = difference if row.type == c.POSITION_TYPE_BUY else -difference
        return whole_cents(self.market.profit(self.market.symbols[row.symbol], signed * volume, now_ms))

    def position_tuple(self, row: PositionRow, now_ms: int) -> tuple[Any, ...]:
        """The fields of TradePosition."""
        spec, quote = self.market.symbols[row.symbol], self.market.quote(row.symbol, now_ms)
        current = spec.price(quote.bid if row.type == c.POSITION_TYPE_BUY else quote.ask)
        profit = self.closing_profit(row, units(row.volume), current, now_ms)
        return (
            row.ticket, row.time_msc // 1000, row.time_msc, row.time_update_msc // 1000, row.time_update_msc, row.type,
            row.magic, row.identifier, row.reason, row.volume, row.price_open, row.sl, row.tp, current, row.swap,
            profit, row.symbol, row.comment, "",
        )  # fmt: skip

    def account_tuple(self, now_ms: int) -> tuple[Any, ...]:
        """The fields of AccountInfo. Its profit is the floating profit with the swaps."""
        world, rules = self.state.world, self.state.rules
        balance, margin = self.balance(), self.margin(now_ms)
        profit = round(self.floating(now_ms) + self.swaps(), 2)
        equity = round(balance + profit, 2)
        mode = c.ACCOUNT_TRADE_MODE_REAL if rules.real else c.ACCOUNT_TRADE_MODE_DEMO
        return (
            world.login, mode, world.leverage, rules.limit_orders, c.ACCOUNT_STOPOUT_MODE_PERCENT, rules.trade_allowed,
            rules.trade_expert, world.margin_mode, 2, rules.fifo_close, balance, 0.0, profit, equity, margin,
            round(equity - margin, 2), level(equity, margin), rules.stopout_call, rules.stopout, 0.0, 0.0, 0.0, 0.0,
            0.0, "Order Ledger Simulation", world.server, world.currency, "Order Ledger (simulated)",
        )  # fmt: skip


def level(equity: float, margin: float) -> float:
    """Equity in percent of the margin; 0 without margin."""
    return equity / margin * 100 if margin else 0.0


def costs(spec: SymbolSpec, volume: int) -> tuple[float, float]:
    """Commission and fee of a deal of `volume` units: not positive."""
    return _cost(spec.commission_per_lot, volume), _cost(spec.fee_per_lot, volume)


@lru_cache(1024)  # the same few volumes come again and again, and each is asked for twice
def _cost(per_lot: float, volume: int) -> float:
    return 0.0 - round(per_lot * (volume / UNIT), 2)


def whole_cents(amount: float) -> float:
    """The double nearest to the amount in cents: as `round(amount, 2)`, which takes several times as long."""
    return round(amount * CENTS) / CENTS
