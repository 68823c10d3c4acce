"""The symbols of the simulated broker: what it defines of each, their sessions, and the six it starts with."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from gateway.simulated import constants as c

# Flags of filling_mode, expiration_mode and order_mode: MQL5 has them, the Python package does not.
FILLING_FOK_FLAG: Final = 1
FILLING_IOC_FLAG: Final = 2
FILLING_BOC_FLAG: Final = 4
EXPIRATION_ALL_FLAGS: Final = 1 | 2 | 4 | 8  # bit n allows the type_time n
ORDER_MARKET_FLAG: Final = 1
ORDER_LIMIT_FLAG: Final = 2
ORDER_STOP_FLAG: Final = 4
ORDER_STOP_LIMIT_FLAG: Final = 8
ORDER_SL_FLAG: Final = 16
ORDER_TP_FLAG: Final = 32
ORDER_CLOSEBY_FLAG: Final = 64
ORDER_ALL_FLAGS: Final = 127

MINUTE_MS: Final = 60_000
DAY_MS: Final = 86_400_000
_SCALES: Final[tuple[int, ...]] = tuple(10**digits for digits in range(9))


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
    volume_limit: float = 0.0  # of one direction, positions and pending orders together; 0 = none
    exemode: int = c.SYMBOL_TRADE_EXECUTION_MARKET
    trade_mode: int = c.SYMBOL_TRADE_MODE_FULL
    filling_mode: int = FILLING_FOK_FLAG | FILLING_IOC_FLAG
    return_filling: bool = False  # of market orders; sources differ for market execution, so it is a property
    expiration_mode: int = EXPIRATION_ALL_FLAGS
    order_mode: int = ORDER_ALL_FLAGS
    gtc_mode: int = c.SYMBOL_ORDERS_GTC
    stops_level: int = 0  # points
    freeze_level: int = 0  # points
    margin_rate: float = 1.0
    commission_per_lot: float = 3.5  # for one side
    fee_per_lot: float = 0.0  # for one side
    swap_mode: int = c.SYMBOL_SWAP_MODE_DISABLED
    swap_long: float = 0.0
    swap_short: float = 0.0
    swap_rollover3days: int = c.DAY_OF_WEEK_WEDNESDAY
    spread_points: int = 10
    amplitude: float = 0.0028  # the price stays within base_price * (1 ± amplitude)
    tick_ms: int = 500
    book_levels: int = 0  # of the depth of market, one point apart; 0 = none, and no limit of liquidity
    book_volume: float = 0.0  # least volume at a level
    quoting: bool = True  # without quotes nothing is traded
    real_only: bool = False
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

    def is_exchange(self) -> bool:
        return self.exemode == c.SYMBOL_TRADE_EXECUTION_EXCHANGE

    def is_open(self, server_ms: int) -> bool:
        if not self.sessions:
            return True
        day, minute = weekday(server_ms), server_ms % DAY_MS / MINUTE_MS
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
                if day == weekday(start_of_day) and start_of_day + end * MINUTE_MS <= server_ms
            ]
            if ends:
                return max(ends)
        return server_ms


def objections(spec: SymbolSpec) -> list[str]:
    """What keeps a definition from making sense; empty for a sound one."""
    below = [name for name in _NOT_NEGATIVE if not 0 <= getattr(spec, name) < 1e9]
    found = [f"{name} must be from 0 to 1e9" for name in below]
    if not 0 < spec.volume_step <= spec.volume_min <= spec.volume_max < 1e9:
        found.append("0 < volume_step <= volume_min <= volume_max must hold")
    if not abs(spec.swap_long) < 1e6 or not abs(spec.swap_short) < 1e6:
        found.append("swap_long and swap_short must be numbers below 1e6")
    if spec.book_levels > 20 or (spec.book_levels and spec.book_volume < spec.volume_step):
        found.append("a book has at most 20 book_levels, and a book_volume of at least volume_step")
    if spec.spread_points < 1:
        found.append("spread_points must be 1 or more")
    return found


_NOT_NEGATIVE: Final = (
    "volume_limit", "filling_mode", "expiration_mode", "order_mode", "stops_level", "freeze_level", "margin_rate",
    "commission_per_lot", "fee_per_lot", "book_levels", "book_volume", "spread_points", "trade_mode", "exemode",
    "swap_mode", "gtc_mode", "swap_rollover3days",
)  # fmt: skip


def weekday(ms: int) -> int:
    """Sunday = 0."""
    return (ms // DAY_MS + 4) % 7  # the epoch was a Thursday


# What may be changed of a symbol while the broker runs. The rest shapes its past prices.
CHANGEABLE: Final = frozenset(SymbolSpec.__struct_fields__) - {
    "name", "base_price", "digits", "amplitude", "tick_ms", "calc_mode", "contract_size", "currency_base",
    "currency_profit", "currency_margin",
}  # fmt: skip
NAMED_SESSIONS: Final[dict[str, tuple[tuple[int, int, int], ...]]] = {
    "always": (),
    "weekdays": tuple((day, 0, 1440) for day in range(1, 6)),
    "never": ((0, 0, 0),),
}

_FOREX: Final[dict[str, Any]] = {
    "contract_size": 100_000.0,
    "calc_mode": c.SYMBOL_CALC_MODE_FOREX,
    "stops_level": 10,
    "swap_mode": c.SYMBOL_SWAP_MODE_POINTS,
}
_WEEKDAYS_US: Final = tuple((day, 16 * 60 + 30, 23 * 60) for day in range(1, 6))
_WEEKDAYS_INDEX: Final = tuple((day, 60, 24 * 60) for day in range(1, 6))

DEFAULT_SYMBOLS: Final[Mapping[str, SymbolSpec]] = {
    spec.name: spec
    for spec in (
        SymbolSpec(
            name="EURUSD", description="Euro vs US Dollar", path="Forex\\EURUSD", base_price=1.08, digits=5,
            currency_base="EUR", currency_profit="USD", currency_margin="EUR", swap_long=-6.5, swap_short=2.1,
            **_FOREX,
        ),
        SymbolSpec(
            name="GBPUSD", description="Great Britain Pound vs US Dollar", path="Forex\\GBPUSD", base_price=1.27,
            digits=5, currency_base="GBP", currency_profit="USD", currency_margin="GBP", spread_points=12,
            swap_long=-2.4, swap_short=-1.6, **_FOREX,
        ),
        SymbolSpec(
            name="USDJPY", description="US Dollar vs Japanese Yen", path="Forex\\USDJPY", base_price=150.0, digits=3,
            currency_base="USD", currency_profit="JPY", currency_margin="USD", swap_long=11.2, swap_short=-21.4,
            **_FOREX,
        ),
        SymbolSpec(  # margin 5 % of the value whatever the account's leverage: 1,000 lots are beyond the account
            name="XAUUSD", description="Gold vs US Dollar", path="Metals\\XAUUSD", base_price=2650.0, digits=2,
            contract_size=100.0, calc_mode=c.SYMBOL_CALC_MODE_CFD, margin_rate=0.05, volume_max=1000.0,
            currency_base="XAU", currency_profit="USD", currency_margin="USD", stops_level=20, spread_points=20,
            swap_mode=c.SYMBOL_SWAP_MODE_POINTS, swap_long=-38.0, swap_short=14.0,
        ),
        SymbolSpec(
            name="US500", description="US 500 Index", path="Indices\\US500", base_price=5800.0, digits=1,
            contract_size=1.0, calc_mode=c.SYMBOL_CALC_MODE_CFDINDEX, margin_rate=0.05, volume_min=0.1,
            volume_step=0.1, volume_max=500.0, currency_base="USD", currency_profit="USD", currency_margin="USD",
            stops_level=5, spread_points=5, commission_per_lot=0.0, filling_mode=FILLING_FOK_FLAG,
            swap_mode=c.SYMBOL_SWAP_MODE_INTEREST_CURRENT, swap_long=-7.0, swap_short=3.0,
            swap_rollover3days=c.DAY_OF_WEEK_FRIDAY, sessions=_WEEKDAYS_INDEX,
        ),
        SymbolSpec(
            name="ACME.US", description="Acme Corporation", path="Stocks\\ACME.US", base_price=120.0, digits=2,
            contract_size=1.0, calc_mode=c.SYMBOL_CALC_MODE_EXCH_STOCKS, exemode=c.SYMBOL_TRADE_EXECUTION_EXCHANGE,
            filling_mode=FILLING_FOK_FLAG | FILLING_IOC_FLAG | FILLING_BOC_FLAG, return_filling=True, volume_min=1.0,
            volume_step=1.0, volume_max=10_000.0, currency_base="USD", currency_profit="USD", currency_margin="USD",
            spread_points=4, commission_per_lot=0.02, fee_per_lot=0.003, book_levels=5, book_volume=400.0,
            sessions=_WEEKDAYS_US,
        ),
    )
}  # fmt: skip
