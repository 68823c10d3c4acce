"""Prices of the simulated broker, and what follows from them: ticks, depth, margin, profit, conversion.

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

from gateway.simulated import constants as c
from gateway.simulated.symbols import DAY_MS, MINUTE_MS, SymbolSpec

UNIT: Final = 10**8  # volumes and prices are summed as integers of 1e-8, so that sums are exact and never drift
HOUR_MS: Final = 3_600_000


def units(number: float) -> int:
    return round(number * UNIT)


class Quote(NamedTuple):
    """`time_msc` is UTC; bid and ask are points."""

    time_msc: int
    bid: int
    ask: int


# (period in ms, share of the amplitude): days of drift down to seconds of jitter; the shares add up to 1
OCTAVES: Final = (
    (5 * DAY_MS, 0.34),
    (DAY_MS, 0.25),
    (4 * HOUR_MS, 0.17),
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


def noise_keys(seed: int, name: str) -> list[int]:
    """One key for each octave, and one for the spread."""
    return [
        int.from_bytes(blake2b(f"{seed}/{name}/{octave}".encode(), digest_size=8).digest(), "little")
        for octave in range(len(OCTAVES) + 1)
    ]


class _Noise:
    """A smooth curve in [-1, 1] over time; the lattice points last used are kept."""

    def __init__(self, keys: list[int]) -> None:
        self.keys = keys
        self._last: list[tuple[int, float, float]] = [(-1, 0.0, 0.0)] * len(OCTAVES)

    def at(self, ms: int) -> float:
        total = 0.0
        for octave, (period, share) in enumerate(OCTAVES):
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
        self.seed = seed
        self._noise = {name: _Noise(noise_keys(seed, name)) for name in symbols}
        self._moves: dict[str, list[tuple[int, int]]] = {}
        self._cached: dict[str, Quote] = {}
        self._paths: dict[str, tuple[tuple[str, bool], ...]] = {currency: ()}
        self._extremes: dict[tuple[str, int], tuple[int, int]] = {}

    def define(self, spec: SymbolSpec) -> None:
        """Replaces the symbol's definition."""
        self.symbols = {**self.symbols, spec.name: spec}
        self._cached.pop(spec.name, None)

    def move(self, name: str, from_ms: int, points: int) -> None:
        """From `from_ms` on, the price lies `points` off its curve (not added to earlier moves)."""
        self._moves.setdefault(name, []).append((from_ms, points))
        self._moves[name].sort(key=lambda move: move[0])
        self._cached.pop(name, None)
        self._extremes.clear()

    def moves(self, name: str) -> list[tuple[int, int]]:
        """(from, points), by time."""
        return self._moves.get(name, [])

    def is_open(self, name: str, now_ms: int) -> bool:
        return self.symbols[name].is_open(now_ms + self.offset_ms)

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

    def levels(self, name: str, quote: Quote, *, buy: bool) -> list[tuple[int, int]]:
        """What a buyer (or seller) meets at this tick: (points, units of volume), best first. Empty: no limit."""
        spec, noise = self.symbols[name], self._noise[name]
        best, step = (quote.ask, 1) if buy else (quote.bid, -1)
        index = quote.time_msc // spec.tick_ms
        volume, least = units(spec.volume_step), units(spec.book_volume)
        found = []
        for level in range(spec.book_levels):
            extra = noise.bits(index * 64 + level * 2 + buy) % 4
            found.append((best + step * level, least + extra * volume))
        return found

    def rate(self, currency: str, now_ms: int) -> float:
        """Units of the account's currency for one of `currency`, at middle prices, by a pair or by two."""
        path = self._paths.get(currency)
        if path is None:
            path = self._paths[currency] = self._path(currency)
        rate = 1.0
        for name, inverse in path:
            quote = self.quote(name, now_ms)
            middle = (quote.bid + quote.ask) / 2 / self.symbols[name].scale
            rate *= 1 / middle if inverse else middle
        return rate

    def _path(self, currency: str) -> tuple[tuple[str, bool], ...]:
        direct = self._pair(currency, self.currency)
        if direct is not None:
            return (direct,)
        for over in {spec.currency_profit: 0 for spec in self.symbols.values()}:
            first, second = self._pair(currency, over), self._pair(over, self.currency)
            if first is not None and second is not None:
                return first, second
        raise ValueError(f"no symbols convert {currency} to {self.currency}")

    def _pair(self, one: str, other: str) -> tuple[str, bool] | None:
        for name, inverse in ((one + other, False), (other + one, True)):
            if name in self.symbols:
                return name, inverse
        return None

    def margin(self, spec: SymbolSpec, volume: float, price: float, leverage: int, now_ms: int) -> float:
        """Margin of `volume` lots at `price`, in the account's currency."""
        rate = spec.margin_rate / (leverage if spec.uses_leverage() else 1)
        if spec.calc_mode not in (c.SYMBOL_CALC_MODE_FOREX, c.SYMBOL_CALC_MODE_FOREX_NO_LEVERAGE):
            return volume * spec.contract_size * price * rate * self.rate(spec.currency_profit, now_ms)
        if spec.currency_margin == self.currency:
            return volume * spec.contract_size * rate
        in_account = price if spec.currency_profit == self.currency else self.rate(spec.currency_margin, now_ms)
        return volume * spec.contract_size * rate * in_account

    def profit(self, spec: SymbolSpec, value_units: int, now_ms: int) -> float:
        """Account currency for a price difference times lots, given in units of 1e-16 of the price's currency."""
        return value_units / (UNIT * UNIT) * spec.contract_size * self.rate(spec.currency_profit, now_ms)

    # ---- what a terminal shows

    def tick(self, name: str, now_ms: int) -> tuple[Any, ...]:
        """The fields of Tick, in server time."""
        spec, quote = self.symbols[name], self.quote(name, now_ms)
        ms = quote.time_msc + self.offset_ms
        flags = c.TICK_FLAG_BID | c.TICK_FLAG_ASK
        last, volume = self.last_trade(spec, quote)
        if volume:
            flags |= c.TICK_FLAG_LAST | c.TICK_FLAG_VOLUME
        return ms // 1000, spec.price(quote.bid), spec.price(quote.ask), last, volume, ms, flags, float(volume)

    def last_trade(self, spec: SymbolSpec, quote: Quote) -> tuple[float, int]:
        """Price and volume of the exchange's trade at this tick; nothing off an exchange."""
        if not spec.is_exchange():
            return 0.0, 0
        index = quote.time_msc // spec.tick_ms
        return spec.price((quote.bid + quote.ask) // 2), 1 + self._noise[spec.name].bits(~index & _MASK) % 100

    def book(self, name: str, now_ms: int) -> list[tuple[int, float, int, float]]:
        """The fields of BookInfo for each level, from the highest price to the lowest."""
        spec, quote = self.symbols[name], self.quote(name, now_ms)
        rows = []
        for buy in (True, False):
            levels = self.levels(name, quote, buy=buy)
            type_ = c.BOOK_TYPE_SELL if buy else c.BOOK_TYPE_BUY
            for points, volume in reversed(levels) if buy else levels:
                rows.append((type_, spec.price(points), volume // UNIT, volume / UNIT))
        return rows

    def _day(self, name: str, now_ms: int) -> tuple[int, int, int, int]:
        """Highest and lowest bid and ask since the server's midnight, of the hours' first ticks and the present."""
        quote = self.quote(name, now_ms)
        midnight = now_ms - (now_ms + self.offset_ms) % DAY_MS
        bids, asks = [quote.bid], [quote.ask]
        for hour_ms in range(midnight, now_ms, HOUR_MS):
            known = self._extremes.get((name, hour_ms))
            if known is None:
                first = self.quote(name, hour_ms)
                known = self._extremes[name, hour_ms] = (first.bid, first.ask)
            bids.append(known[0])
            asks.append(known[1])
        if len(self._extremes) > 1000:
            self._extremes.clear()
        self._cached[name] = quote
        return max(bids), min(bids), max(asks), min(asks)

    def symbol_info(self, name: str, now_ms: int) -> dict[str, Any]:
        """The fields of SymbolInfo that are not zero or empty."""
        spec, quote = self.symbols[name], self.quote(name, now_ms)
        tick_value = spec.contract_size * spec.point * self.rate(spec.currency_profit, now_ms)
        bid_high, bid_low, ask_high, ask_low = map(spec.price, self._day(name, now_ms))
        last, volume = self.last_trade(spec, quote)
        return {
            "select": True, "visible": True, "time": (quote.time_msc + self.offset_ms) // 1000,
            "digits": spec.digits, "spread": quote.ask - quote.bid, "spread_float": True,
            "chart_mode": c.SYMBOL_CHART_MODE_LAST if spec.is_exchange() else c.SYMBOL_CHART_MODE_BID,
            "ticks_bookdepth": spec.book_levels * 2, "trade_calc_mode": spec.calc_mode,
            "trade_mode": spec.trade_mode, "trade_exemode": spec.exemode, "trade_stops_level": spec.stops_level,
            "trade_freeze_level": spec.freeze_level, "swap_mode": spec.swap_mode, "swap_long": spec.swap_long,
            "swap_short": spec.swap_short, "swap_rollover3days": spec.swap_rollover3days,
            "margin_hedged_use_leg": True, "expiration_mode": spec.expiration_mode, "filling_mode": spec.filling_mode,
            "order_mode": spec.order_mode, "order_gtc_mode": spec.gtc_mode,
            "bid": spec.price(quote.bid), "bidhigh": bid_high, "bidlow": bid_low, "ask": spec.price(quote.ask),
            "askhigh": ask_high, "asklow": ask_low, "last": last, "lasthigh": last, "lastlow": last,
            "volume": volume, "volume_real": float(volume), "point": spec.point,
            "trade_tick_value": tick_value, "trade_tick_value_profit": tick_value, "trade_tick_value_loss": tick_value,
            "trade_tick_size": spec.point, "trade_contract_size": spec.contract_size, "volume_min": spec.volume_min,
            "volume_max": spec.volume_max, "volume_step": spec.volume_step, "volume_limit": spec.volume_limit,
            "margin_hedged": spec.contract_size, "currency_base": spec.currency_base,
            "currency_profit": spec.currency_profit, "currency_margin": spec.currency_margin,
            "description": spec.description, "name": spec.name, "path": spec.path,
        }  # fmt: skip
