"""What the broker keeps and the effects that change it: the records of the journal.

Effects are array-like: a field may be added at the end with a default, none may be taken out or moved.
"""

from typing import Any, Final

import msgspec

from gateway.simulated import constants as c

FIRST_ORDER: Final = 50_000_001
FIRST_DEAL: Final = 40_000_000  # the deposit an account starts with


class Request(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """MqlTradeRequest, in the field order of the package's TradeRequest."""

    action: int
    magic: int
    order: int
    symbol: str
    volume: float
    price: float
    stoplimit: float
    sl: float
    tp: float
    deviation: int
    type: int
    type_filling: int
    type_time: int
    expiration: int
    comment: str
    position: int
    position_by: int


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


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What may be changed of account and terminal while the broker runs."""

    real: bool = False  # a real account: needed where a symbol is for such only
    trade_allowed: bool = True  # False: logged in as an investor
    trade_expert: bool = True  # False: the server takes no automated orders
    algo_trading: bool = True  # the terminal's button
    python_api: bool = True  # False: switched off in the terminal's options
    limit_orders: int = 200  # pending orders
    limit_positions: int = 0  # 0 = none
    limit_requests: int = 0  # trade requests in a second, 0 = none
    fifo_close: bool = False
    hedge_prohibited: bool = False
    stopout_call: float = 50.0  # percent of the margin
    stopout: float = 30.0


class Created(msgspec.Struct, array_like=True, frozen=True, tag=0):
    world: World


class OrderDone(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """An order has ended and is history."""

    order: OrderRow


class Dealt(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """A deal was made; or, of one that there is, its amounts were booked anew."""

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


class OrderSet(msgspec.Struct, array_like=True, frozen=True, tag=6):
    """A working order was placed or changed."""

    order: OrderRow


class Queued(msgspec.Struct, array_like=True, frozen=True, tag=7):
    """A working order that the server has accepted and not yet processed: what happens to it, and when."""

    ticket: int
    due_ms: int  # UTC
    retcode: int = 0  # it will be rejected with this one
    position: int = 0  # the identifier of the position it closes


class RolledOver(msgspec.Struct, array_like=True, frozen=True, tag=8):
    """Swap for a symbol's positions: account currency for one lot, times the open price where `by_open`."""

    day: int  # server days since the epoch that are now charged
    symbol: str = ""
    long: float = 0.0
    short: float = 0.0
    by_open: bool = False


class SymbolSet(msgspec.Struct, array_like=True, frozen=True, tag=9):
    symbol: str
    changes: dict[str, Any]
    from_ms: int  # UTC


class RulesSet(msgspec.Struct, array_like=True, frozen=True, tag=10):
    rules: Rules


class FaultsSet(msgspec.Struct, array_like=True, frozen=True, tag=11):
    """The faults in force. `given` is the text a terminal brought along; `generation` reseeds rates after a crash."""

    given: str
    rules: str
    generation: int


class ClockSet(msgspec.Struct, array_like=True, frozen=True, tag=12):
    shift_ms: int


class LinkCut(msgspec.Struct, array_like=True, frozen=True, tag=13):
    """The terminal has no connection to the trade server in [from_ms, until_ms), UTC."""

    from_ms: int
    until_ms: int


Effect = (
    Created
    | OrderDone
    | Dealt
    | PositionSet
    | PositionGone
    | PriceMoved
    | OrderSet
    | Queued
    | RolledOver
    | SymbolSet
    | RulesSet
    | FaultsSet
    | ClockSet
    | LinkCut
)
