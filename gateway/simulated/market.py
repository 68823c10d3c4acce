"""Symbols, trading sessions and prices of the simulated broker.

A price is a pure function of (seed, symbol, time): value noise in octaves around the symbol's base price. Nothing is
stored, so any past moment can be asked again and gives the same answer. What is not a function of time, a price moved
by hand in a test or a demonstration, is a list of (from, points) that the broker keeps on disk and hands in.

Times here are UTC milliseconds unless the name says server. Prices are whole points: floats appear only where a
struct of the terminal is filled.
"""

from bisect import bisect_right
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import msgspec

from gateway.simulated import constants as c

# Flags of filling_mode, expiration_mode and order_mode: MQL5 has them, the Python package does not.
FILLING_FOK_FLAG: Final = 1
FILLING_IOC_FLAG: Final = 2
FILLING_BOC_FLAG: Final = 4
EXPIRATION_ALL_FLAGS: Final = 1 | 2 | 4 | 8
ORDER_ALL_FLAGS: Final = 1 | 2 | 4 | 8 | 16 | 32 | 64

MINUTE_MS: Final = 60_000
DAY_MS: Final = 86_400_000
_SCALES: Final[tuple[int, ...]] = tuple(10**digits for digits in range(9))
UNIT: Final = 10**8  # volumes and prices are summed as integers of 1e-8, so that sums are exact and never drift


class SymbolSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the broker defines of a symbol. Money per lot is in the account's currency."""

    name: str
    description: str
    path: str
    base_price: float
    digits: int
    contract_size: float
    calc_mode: int
    currency_base: str
    currency_profit: str
    currency_margin: str
    volume_min: float = 0.01
    volume_max: float = 100.0
    volume_step: float = 0.01
    volume_limit: float = 0.0  # of one direction, 0 = none
    exemode: int = c.SYMBOL_TRADE_EXECUTION_MARKET
    trade_mode: int = c.SYMBOL_TRADE_MODE_FULL
    filling_mode: int = FILLING_FOK_FLAG | FILLING_IOC_FLAG
    return_filling: bool = False  # sources differ for market execution, so it is a property of the symbol
    stops_level: int = 0  # points
    freeze_level: int = 0  # points
    margin_rate: float = 1.0
    commission_per_lot: float = 3.5  # for one side
    spread_points: int = 10
    amplitude: float = 0.0028  # the price stays within base_price * (1 ± amplitude)
    tick_ms: int = 100
    sessions: tuple[tuple[int, int, int], ...] = ()  # (day, from minute, to minute), Sunday = 0; none = always open

    @property
    def scale(self) -> int:
        return _SCALES[self.digits]

    @property
    def point(self) -> float:
        return 1 / self.scale

    def price(self, points: int) -> float:
        """The double nearest to the decimal price."""
        return points / self.scale

    def uses_leverage(self) -> bool:
        return self.calc_mode in (c.SYMBOL_CALC_MODE_FOREX, c.SYMBOL_CALC_MODE_CFDLEVERAGE)

    def is_open(self, server_ms: int) -> bool:
        if not self.sessions:
            return True
        day, minute = _weekday(server_ms), server_ms % DAY_MS / MINUTE_MS
        return any(d == day and start <= minute < end for d, start, end in self.sessions)

    def last_open(self, server_ms: int) -> int:
        """The latest moment not after `server_ms` at which the symbol was quoted."""
        if self.is_open(server_ms):
            return server_ms
        midnight = server_ms - server_ms % DAY_MS
        for back in range(8):
            start_of_day = midnight - back * DAY_MS
            ends = [
                start_of_day + end * MINUTE_MS - 1
                for day, _, end in self.sessions
                if day == _weekday(start_of_day) and start_of_day + end * MINUTE_MS <= server_ms
            ]
            if ends:
                return max(ends)
        return server_ms


class Quote(NamedTuple):
    """`time_msc` is UTC; bid and ask are points."""

    time_msc: int
    bid: int
    ask: int


def _weekday(ms: int) -> int:
    return (ms // DAY_MS + 4) % 7  # the epoch was a Thursday; Sunday = 0


_FOREX: Final[dict[str, Any]] = {
    "contract_size": 100_000.0,
    "calc_mode": c.SYMBOL_CALC_MODE_FOREX,
    "stops_level": 10,
}
_WEEKDAYS_US: Final = tuple((day, 16 * 60 + 30, 23 * 60) for day in range(1, 6))

DEFAULT_SYMBOLS: Final[Mapping[str, SymbolSpec]] = {
    spec.name: spec
    for spec in (
        SymbolSpec(
            name="EURUSD", description="Euro vs US Dollar", path="Forex\\EURUSD", base_price=1.08, digits=5,
            currency_base="EUR", currency_profit="USD", currency_margin="EUR", **_FOREX,
        ),
        SymbolSpec(
            name="GBPUSD", description="Great Britain Pound vs US Dollar", path="Forex\\GBPUSD", base_price=1.27,
            digits=5, currency_base="GBP", currency_profit="USD", currency_margin="GBP", spread_points=12, **_FOREX,
        ),
        SymbolSpec(
            name="USDJPY", description="US Dollar vs Japanese Yen", path="Forex\\USDJPY", base_price=150.0, digits=3,
            currency_base="USD", currency_profit="JPY", currency_margin="USD", **_FOREX,
        ),
        SymbolSpec(  # margin 5 % of the value whatever the account's leverage: 1,000 lots are beyond the account
            name="XAUUSD", description="Gold vs US Dollar", path="Metals\\XAUUSD", base_price=2650.0, digits=2,
            contract_size=100.0, calc_mode=c.SYMBOL_CALC_MODE_CFD, margin_rate=0.05, volume_max=1000.0,
            currency_base="XAU", currency_profit="USD", currency_margin="USD", stops_level=20, spread_points=20,
        ),
        SymbolSpec(
            name="US500", description="US 500 Index", path="Indices\\US500", base_price=5800.0, digits=1,
            contract_size=1.0, calc_mode=c.SYMBOL_CALC_MODE_CFDINDEX, margin_rate=0.05, volume_min=0.1,
            volume_step=0.1, volume_max=500.0, currency_base="USD", currency_profit="USD", currency_margin="USD",
            stops_level=5, spread_points=5, commission_per_lot=0.0, filling_mode=FILLING_FOK_FLAG,
        ),
        SymbolSpec(
            name="ACME.US", description="Acme Corporation", path="Stocks\\ACME.US", base_price=120.0, digits=2,
            contract_size=1.0, calc_mode=c.SYMBOL_CALC_MODE_EXCH_STOCKS, exemode=c.SYMBOL_TRADE_EXECUTION_EXCHANGE,
            return_filling=True, volume_min=1.0, volume_step=1.0, volume_max=10_000.0, currency_base="USD",
            currency_profit="USD", currency_margin="USD", spread_points=4, commission_per_lot=0.02, tick_ms=500,
            sessions=_WEEKDAYS_US,
        ),
    )
}  # fmt: skip

# (period in ms, share of the amplitude): days of drift down to seconds of jitter; the shares add up to 1
_OCTAVES: Final = (
    (5 * DAY_MS, 0.34),
    (DAY_MS, 0.25),
    (4 * 3_600_000, 0.17),
    (30 * MINUTE_MS, 0.10),
    (4 * MINUTE_MS, 0.07),
    (20_000, 0.05),
    (2_000, 0.02),
)
_MASK: Final = (1 << 64) - 1


def _mix(value: int) -> int:
    """The splitmix64 finaliser: 64 well-mixed bits, the same on every machine."""
    value = (value * 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


class _Noise:
    """A smooth curve in [-1, 1] over time; the lattice points last used are kept."""

    def __init__(self, seed: int, name: str) -> None:
        self.keys = [
            int.from_bytes(blake2b(f"{seed}/{name}/{octave}".encode(), digest_size=8).digest(), "little")
            for octave in range(len(_OCTAVES) + 1)
        ]
        self._last: list[tuple[int, float, float]] = [(-1, 0.0, 0.0)] * len(_OCTAVES)

    def at(self, ms: int) -> float:
        total = 0.0
        for octave, (period, share) in enumerate(_OCTAVES):
            cell, rest = divmod(ms, period)
            known, left, right = self._last[octave]
            if known != cell:
                key = self.keys[octave]
                left, right = _lattice(key, cell), _lattice(key, cell + 1)
                self._last[octave] = (cell, left, right)
            x = rest / period
            total += share * (left + (right - left) * x * x * (3 - 2 * x))
        return total

    def bits(self, index: int) -> int:
        return _mix(self.keys[-1] ^ index)


def _lattice(key: int, cell: int) -> float:
    return _mix((key + cell) & _MASK) / (1 << 63) - 1.0


class Market:
    """The quotes of one seeded market, and conversion into the account's currency."""

    def __init__(self, seed: int, symbols: Mapping[str, SymbolSpec], utc_offset_s: int, currency: str) -> None:
        self.symbols = symbols
        self.offset_ms = utc_offset_s * 1000
        self.currency = currency
        self._noise = {name: _Noise(seed, name) for name in symbols}
        self._moves: dict[str, list[tuple[int, int]]] = {}
        self._cached: dict[str, Quote] = {}

    def move(self, name: str, from_ms: int, points: int) -> None:
        """From `from_ms` on, the price lies `points` off its curve (not added to earlier moves)."""
        self._moves.setdefault(name, []).append((from_ms, points))
        self._moves[name].sort()
        self._cached.pop(name, None)

    def quote(self, name: str, now_ms: int) -> Quote:
        """The last tick not after `now_ms`."""
        spec = self.symbols[name]
        if spec.sessions:
            now_ms = spec.last_open(now_ms + self.offset_ms) - self.offset_ms
        index = now_ms // spec.tick_ms
        tick_ms = index * spec.tick_ms
        cached = self._cached.get(name)
        if cached is not None and cached.time_msc == tick_ms:
            return cached
        noise = self._noise[name]
        middle = round(spec.base_price * spec.scale * (1 + spec.amplitude * noise.at(tick_ms)))
        moves = self._moves.get(name)
        if moves:
            position = bisect_right(moves, (tick_ms + spec.tick_ms - 1, _MASK))
            middle += moves[position - 1][1] if position else 0
        fifth = spec.spread_points // 5
        spread = spec.spread_points - fifth + noise.bits(index) % (2 * fifth + 1)
        bid = max(middle - spread // 2, 1)
        quote = Quote(tick_ms, bid, bid + spread)
        self._cached[name] = quote
        return quote

    def rate(self, currency: str, now_ms: int) -> float:
        """Units of the account's currency for one of `currency`, at the middle price."""
        if currency == self.currency:
            return 1.0
        for name, inverse in ((currency + self.currency, False), (self.currency + currency, True)):
            if name in self.symbols:
                quote = self.quote(name, now_ms)
                middle = (quote.bid + quote.ask) / 2 / self.symbols[name].scale
                return 1 / middle if inverse else middle
        raise ValueError(f"no symbol converts {currency} to {self.currency}")

    def margin(self, spec: SymbolSpec, volume: float, price: float, leverage: int, now_ms: int) -> float:
        """Margin of `volume` lots at `price`, in the account's currency."""
        rate = spec.margin_rate / (leverage if spec.uses_leverage() else 1)
        if spec.calc_mode != c.SYMBOL_CALC_MODE_FOREX:
            return volume * spec.contract_size * price * rate * self.rate(spec.currency_profit, now_ms)
        if spec.currency_margin == self.currency:
            return volume * spec.contract_size * rate
        in_account = price if spec.currency_profit == self.currency else self.rate(spec.currency_margin, now_ms)
        return volume * spec.contract_size * rate * in_account

    def profit(self, spec: SymbolSpec, value_units: int, now_ms: int) -> float:
        """Account currency for a price difference times lots, given in units of 1e-16 of the price's currency."""
        return value_units / (UNIT * UNIT) * spec.contract_size * self.rate(spec.currency_profit, now_ms)

    def tick(self, name: str, now_ms: int) -> tuple[Any, ...]:
        """The fields of Tick, in server time."""
        spec, quote = self.symbols[name], self.quote(name, now_ms)
        ms = quote.time_msc + self.offset_ms
        flags = c.TICK_FLAG_BID | c.TICK_FLAG_ASK
        return ms // 1000, spec.price(quote.bid), spec.price(quote.ask), 0.0, 0, ms, flags, 0.0

    def symbol_info(self, name: str, now_ms: int) -> dict[str, Any]:
        """The fields of SymbolInfo that are not zero or empty."""
        spec, quote = self.symbols[name], self.quote(name, now_ms)
        tick_value = spec.contract_size * spec.point * self.rate(spec.currency_profit, now_ms)
        return {
            "select": True, "visible": True, "time": (quote.time_msc + self.offset_ms) // 1000,
            "digits": spec.digits, "spread": quote.ask - quote.bid, "spread_float": True,
            "trade_calc_mode": spec.calc_mode, "trade_mode": spec.trade_mode, "trade_exemode": spec.exemode,
            "trade_stops_level": spec.stops_level, "trade_freeze_level": spec.freeze_level,
            "swap_mode": c.SYMBOL_SWAP_MODE_DISABLED, "swap_rollover3days": c.DAY_OF_WEEK_WEDNESDAY,
            "expiration_mode": EXPIRATION_ALL_FLAGS, "filling_mode": spec.filling_mode, "order_mode": ORDER_ALL_FLAGS,
            "bid": spec.price(quote.bid), "ask": spec.price(quote.ask), "point": spec.point,
            "trade_tick_value": tick_value, "trade_tick_value_profit": tick_value, "trade_tick_value_loss": tick_value,
            "trade_tick_size": spec.point, "trade_contract_size": spec.contract_size, "volume_min": spec.volume_min,
            "volume_max": spec.volume_max, "volume_step": spec.volume_step, "volume_limit": spec.volume_limit,
            "margin_hedged": spec.contract_size, "currency_base": spec.currency_base,
            "currency_profit": spec.currency_profit, "currency_margin": spec.currency_margin,
            "description": spec.description, "name": spec.name, "path": spec.path,
        }  # fmt: skip
