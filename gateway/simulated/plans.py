"""What a judgement ends in: a refusal with its return code, or the plan that `order_send` carries out."""

from typing import Final

import msgspec

from gateway.simulated import constants as c
from gateway.simulated.market import Quote
from gateway.simulated.money import Change
from gateway.simulated.rows import OrderRow, PositionRow
from gateway.simulated.symbols import SymbolSpec

HEDGE_PROHIBITED: Final = 10046  # MQL5 has it, the Python package does not

COMMENTS: Final = {
    0: "Done",
    c.TRADE_RETCODE_REQUOTE: "Requote",
    c.TRADE_RETCODE_REJECT: "Request rejected",
    c.TRADE_RETCODE_CANCEL: "Request canceled by trader",
    c.TRADE_RETCODE_PLACED: "Order placed",
    c.TRADE_RETCODE_DONE: "Request executed",
    c.TRADE_RETCODE_DONE_PARTIAL: "Request executed partially",
    c.TRADE_RETCODE_ERROR: "Request processing error",
    c.TRADE_RETCODE_TIMEOUT: "Request canceled by timeout",
    c.TRADE_RETCODE_INVALID: "Invalid request",
    c.TRADE_RETCODE_INVALID_VOLUME: "Invalid volume",
    c.TRADE_RETCODE_INVALID_PRICE: "Invalid price",
    c.TRADE_RETCODE_INVALID_STOPS: "Invalid stops",
    c.TRADE_RETCODE_TRADE_DISABLED: "Trade disabled",
    c.TRADE_RETCODE_MARKET_CLOSED: "Market closed",
    c.TRADE_RETCODE_NO_MONEY: "No money",
    c.TRADE_RETCODE_PRICE_CHANGED: "Price changed",
    c.TRADE_RETCODE_PRICE_OFF: "Off quotes",
    c.TRADE_RETCODE_INVALID_EXPIRATION: "Invalid expiration",
    c.TRADE_RETCODE_ORDER_CHANGED: "Order changed",
    c.TRADE_RETCODE_TOO_MANY_REQUESTS: "Too many requests",
    c.TRADE_RETCODE_NO_CHANGES: "No changes",
    c.TRADE_RETCODE_SERVER_DISABLES_AT: "AutoTrading disabled by server",
    c.TRADE_RETCODE_CLIENT_DISABLES_AT: "AutoTrading disabled by client",
    c.TRADE_RETCODE_LOCKED: "Request locked",
    c.TRADE_RETCODE_FROZEN: "Order frozen",
    c.TRADE_RETCODE_INVALID_FILL: "Unsupported filling mode",
    c.TRADE_RETCODE_CONNECTION: "No connection",
    c.TRADE_RETCODE_ONLY_REAL: "Only real accounts allowed",
    c.TRADE_RETCODE_LIMIT_ORDERS: "Limit orders",
    c.TRADE_RETCODE_LIMIT_VOLUME: "Limit volume",
    c.TRADE_RETCODE_INVALID_ORDER: "Invalid order",
    c.TRADE_RETCODE_POSITION_CLOSED: "Position doesn't exist",
    c.TRADE_RETCODE_INVALID_CLOSE_VOLUME: "Invalid close volume",
    c.TRADE_RETCODE_CLOSE_ORDER_EXIST: "Close order already exists",
    c.TRADE_RETCODE_LIMIT_POSITIONS: "Limit positions",
    c.TRADE_RETCODE_REJECT_CANCEL: "Activation rejected, order canceled",
    c.TRADE_RETCODE_LONG_ONLY: "Only long positions allowed",
    c.TRADE_RETCODE_SHORT_ONLY: "Only short positions allowed",
    c.TRADE_RETCODE_CLOSE_ONLY: "Only position closing allowed",
    c.TRADE_RETCODE_FIFO_CLOSE: "Only FIFO closing allowed",
    HEDGE_PROHIBITED: "Hedging is prohibited",
}

Fill = tuple[int, int]  # price in points, units of volume


class Refusal(msgspec.Struct, frozen=True, gc=False):
    retcode: int


class DealPlan(msgspec.Struct, frozen=True, gc=False):
    """A market deal: `fills` are made now, `left` is what found no counterpart. `target` is the position that is
    closed, added to or reversed."""

    spec: SymbolSpec
    quote: Quote
    fills: list[Fill]
    left: int
    target: PositionRow | None
    changes: list[Change]


class PlacePlan(msgspec.Struct, frozen=True, gc=False):
    spec: SymbolSpec
    expires_s: int


class ModifyPlan(msgspec.Struct, frozen=True, gc=False):
    spec: SymbolSpec
    order: OrderRow
    expires_s: int


class RemovePlan(msgspec.Struct, frozen=True, gc=False):
    spec: SymbolSpec
    order: OrderRow


class StopsPlan(msgspec.Struct, frozen=True, gc=False):
    spec: SymbolSpec
    position: PositionRow


class CloseByPlan(msgspec.Struct, frozen=True, gc=False):
    spec: SymbolSpec
    position: PositionRow
    by: PositionRow


Plan = DealPlan | PlacePlan | ModifyPlan | RemovePlan | StopsPlan | CloseByPlan


class Tampering(msgspec.Struct, frozen=True, kw_only=True):
    """What a scripted fault does to a trade request."""

    retcode: int = 0  # refused with this one
    late_ms: int = 0  # accepted with PLACED, processed so much later …
    late_retcode: int = 0  # … and then rejected with this one
    partial: float = 1.0  # the share of the volume that finds a counterpart
    slip: int = 0  # points, against the client
    comment: str | None = None  # what the server writes over the client's comment


NONE: Final = Tampering()
