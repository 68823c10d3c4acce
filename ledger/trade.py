"""What goes to the broker and what comes back, under MetaTrader 5's own field names.

These records are kept in full inside events, so they follow the rules of stored data: a field is never
renamed or retyped, a new one has a default. Amounts are Decimal (the binding's floats end in `gateway/mt5.py`),
integers are MetaTrader's enumerations, times are the server's wall clock as the terminal reports it.
"""

from decimal import Decimal
from typing import Final

import msgspec

ZERO: Final = Decimal(0)

# ENUM_TRADE_REQUEST_ACTIONS
ACTION_DEAL: Final = 1
ACTION_PENDING: Final = 5
ACTION_SLTP: Final = 6
ACTION_MODIFY: Final = 7
ACTION_REMOVE: Final = 8
ACTION_CLOSE_BY: Final = 10
# ENUM_ORDER_TYPE
TYPE_BUY: Final = 0
TYPE_SELL: Final = 1
ORDER_TYPES: Final = (
    "buy",
    "sell",
    "buy_limit",
    "sell_limit",
    "buy_stop",
    "sell_stop",
    "buy_stop_limit",
    "sell_stop_limit",
    "close_by",
)
# ENUM_ORDER_TYPE_FILLING
FILLING_FOK: Final = 0
FILLING_IOC: Final = 1
FILLING_RETURN: Final = 2
FILLING_BOC: Final = 3
# ENUM_ORDER_STATE
ORDER_STATE_STARTED: Final = 0
ORDER_STATE_PLACED: Final = 1
ORDER_STATE_CANCELED: Final = 2
ORDER_STATE_PARTIAL: Final = 3
ORDER_STATE_FILLED: Final = 4
ORDER_STATE_REJECTED: Final = 5
ORDER_STATE_EXPIRED: Final = 6
# Started, placed, partly filled, and the three that wait for the server to add, change or cancel it.
WORKING_STATES: Final = frozenset({0, 1, 3, 7, 8, 9})
# ENUM_DEAL_REASON
DEAL_REASON_EXPERT: Final = 3
# Return codes whose meaning the domain itself needs
RETCODE_DONE_PARTIAL: Final = 10010


class TradeRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """MqlTradeRequest: every field the binding knows; an absent one is 0 or empty."""

    action: int
    symbol: str = ""
    volume: Decimal = ZERO
    type: int = 0
    price: Decimal = ZERO
    stoplimit: Decimal = ZERO
    sl: Decimal = ZERO
    tp: Decimal = ZERO
    deviation: int = 0
    type_filling: int = 0
    type_time: int = 0
    expiration: int = 0
    magic: int = 0
    order: int = 0
    position: int = 0
    position_by: int = 0
    comment: str = ""


class TradeResult(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """MqlTradeResult. `price` and `volume` may be 0, `deal` is 0 until it is known; no costs, no symbol, no time."""

    retcode: int
    deal: int = 0
    order: int = 0
    volume: Decimal = ZERO
    price: Decimal = ZERO
    bid: Decimal = ZERO
    ask: Decimal = ZERO
    comment: str = ""
    request_id: int = 0
    retcode_external: int = 0


class CheckResult(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """MqlTradeCheckResult. Success is retcode 0, not 10009."""

    retcode: int
    balance: Decimal = ZERO
    equity: Decimal = ZERO
    profit: Decimal = ZERO
    margin: Decimal = ZERO
    margin_free: Decimal = ZERO
    margin_level: Decimal = ZERO
    comment: str = ""


class Deal(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """TradeDeal: an execution. Its ticket is the key of a fill; costs are here and nowhere else."""

    ticket: int
    order: int = 0
    time_msc: int = 0
    type: int = 0
    entry: int = 0
    magic: int = 0
    position_id: int = 0
    reason: int = 0
    volume: Decimal = ZERO
    price: Decimal = ZERO
    commission: Decimal = ZERO
    swap: Decimal = ZERO
    profit: Decimal = ZERO
    fee: Decimal = ZERO
    symbol: str = ""
    comment: str = ""
    external_id: str = ""


class BrokerOrder(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """TradeOrder, working or in history."""

    ticket: int
    time_setup_msc: int = 0
    time_done_msc: int = 0
    time_expiration: int = 0
    type: int = 0
    type_time: int = 0
    type_filling: int = 0
    state: int = 0
    magic: int = 0
    position_id: int = 0
    position_by_id: int = 0
    reason: int = 0
    volume_initial: Decimal = ZERO
    volume_current: Decimal = ZERO
    price_open: Decimal = ZERO
    price_stoplimit: Decimal = ZERO
    sl: Decimal = ZERO
    tp: Decimal = ZERO
    symbol: str = ""
    comment: str = ""
    external_id: str = ""


class Position(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """TradePosition. `identifier` is the lasting key; `ticket` changes on a netting reversal."""

    ticket: int
    identifier: int = 0
    time_msc: int = 0
    time_update_msc: int = 0
    type: int = 0
    magic: int = 0
    reason: int = 0
    volume: Decimal = ZERO
    price_open: Decimal = ZERO
    price_current: Decimal = ZERO
    sl: Decimal = ZERO
    tp: Decimal = ZERO
    swap: Decimal = ZERO
    profit: Decimal = ZERO
    symbol: str = ""
    comment: str = ""
    external_id: str = ""


class TargetImage(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """What a request acts on, as the broker showed it: a position (a second one for close-by), or a working order."""

    position: Position | None = None
    position_by: Position | None = None
    order: BrokerOrder | None = None
