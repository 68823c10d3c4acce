"""PURE: an order → the trade request of its next attempt, under MetaTrader's own fields.

What the sender gave is sent as given. What was not given is chosen from what the symbol allows (filling, time in
force) or taken from the target as the broker shows it now (stops and prices that a change leaves alone).
"""

from datetime import datetime
from decimal import Decimal
from typing import Final, NamedTuple

from gateway.broker import Symbol
from ledger.facts import OrderRequest
from ledger.order import Order
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
from ledger.values import comment_of, magic_of, plain

FILLINGS: Final = {"fok": FILLING_FOK, "ioc": FILLING_IOC, "return": FILLING_RETURN, "boc": FILLING_BOC}
TIMES: Final = {"gtc": 0, "day": 1, "specified": 2, "specified_day": 3}  # ENUM_ORDER_TYPE_TIME
EXECUTION_MARKET: Final = 2  # from here on price and deviation are not looked at by the server
NETTING_MODES: Final = frozenset({0, 1})  # ENUM_ACCOUNT_MARGIN_MODE: netting, exchange
_FLAG_FOK, _FLAG_IOC = 1, 2
_FLAG_GTC, _FLAG_DAY = 1, 2


class Refusal(NamedTuple):
    """It cannot be asked for: every reason."""

    reasons: tuple[str, ...]


class Facts(NamedTuple):
    """What a request is built from beside the order. `bid` and `ask` as fresh as the attempt needs them; `offset_s`:
    the server's clock minus UTC, None while it is unknown; `cap`: the most that a close may close, where it names
    the order that opened."""

    symbol: Symbol
    bid: Decimal
    ask: Decimal
    deviation: int
    offset_s: int | None = None
    image: TargetImage | None = None
    cap: Decimal | None = None


def build_request(order: Order, attempt: int, facts: Facts) -> TradeRequest | Refusal:
    """The request of this attempt, or why there is none."""
    request = order.request
    if request is None:
        return Refusal(("the request could not be read",))
    image = facts.image or TargetImage()
    match request.action:
        case "open":
            return _open(order, request, attempt, facts)
        case "close":
            if image.position is None:
                return _no_position(request.position_id)
            return _close(order, request, attempt, facts, image.position)
        case "close_by":
            return _close_by(order, request, attempt, image)
        case "cancel":
            if image.order is None:
                return _no_order(request.order_ticket)
            return TradeRequest(action=ACTION_REMOVE, order=image.order.ticket, symbol=image.order.symbol)
        case _:
            if image.order is not None:
                return _change_order(request, facts, image.order)
            if image.position is not None:
                return _change_stops(request, image.position)
            return _no_order(request.order_ticket) if request.order_ticket else _no_position(request.position_id)


def _no_position(position_id: int | None) -> Refusal:
    return Refusal((f"position {position_id} is not open" if position_id else "the position is not open any more",))


def _no_order(ticket: int | None) -> Refusal:
    return Refusal((f"order {ticket} is not working" if ticket else "the order is not working any more",))


# --- opening ----------------------------------------------------------------------------------------------------


def _open(order: Order, request: OrderRequest, attempt: int, facts: Facts) -> TradeRequest | Refusal:
    kind = ORDER_TYPES.index(request.order_type)
    if kind not in (TYPE_BUY, TYPE_SELL):
        return _place(order, request, attempt, facts, kind)
    priced = _market_price(request, facts, buy=kind == TYPE_BUY, again=attempt > 1)
    if isinstance(priced, Refusal):
        return priced
    price, deviation = priced
    return TradeRequest(
        action=ACTION_DEAL,
        symbol=request.symbol,
        volume=request.volume or ZERO,
        type=kind,
        price=price,
        sl=request.sl or ZERO,
        tp=request.tp or ZERO,
        deviation=deviation,
        type_filling=_filling(request, facts.symbol),
        magic=magic_of(order.order_id, attempt),
        comment=comment_of(order.order_id, attempt),
    )


def _place(order: Order, request: OrderRequest, attempt: int, facts: Facts, kind: int) -> TradeRequest | Refusal:
    timed = _time_in_force(request, facts)
    if isinstance(timed, Refusal):
        return timed
    type_time, expiration = timed
    return TradeRequest(
        action=ACTION_PENDING,
        symbol=request.symbol,
        volume=request.volume or ZERO,
        type=kind,
        price=request.price or ZERO,
        stoplimit=request.stop_limit_price or ZERO,
        sl=request.sl or ZERO,
        tp=request.tp or ZERO,
        # A pending order stays with what it could not deal at once.
        type_filling=FILLING_RETURN if request.filling is None else FILLINGS[request.filling],
        type_time=type_time,
        expiration=expiration,
        magic=magic_of(order.order_id, attempt),
        comment=comment_of(order.order_id, attempt),
    )


def _market_price(request: OrderRequest, facts: Facts, *, buy: bool, again: bool) -> tuple[Decimal, int] | Refusal:
    """Price and deviation. The first attempt carries the sender's reference price as it is; a later one the price of
    now, with what is left of the deviation, so that no attempt may deal worse than the first."""
    deviation = request.deviation if request.deviation is not None else facts.deviation
    now = facts.ask if buy else facts.bid
    reference = request.price
    if not reference:
        return now, deviation
    if not again:
        return reference, deviation
    point = facts.symbol.point
    worse = (now - reference if buy else reference - now) / point if point else ZERO
    if worse <= 0:
        return now, deviation
    if worse <= deviation:
        return now, deviation - int(worse.to_integral_value(rounding="ROUND_CEILING"))
    if facts.symbol.trade_exemode < EXECUTION_MARKET:  # the server itself refuses what is beyond
        limit = deviation * point
        return plain(reference + limit if buy else reference - limit), 0
    return Refusal(
        (
            f"the price is {plain(worse):f} points worse than the {reference} asked for, "
            f"more than the deviation of {deviation}",
        )
    )


def _filling(request: OrderRequest, symbol: Symbol) -> int:
    if request.filling is not None:
        return FILLINGS[request.filling]
    if symbol.trade_exemode < EXECUTION_MARKET or symbol.filling_mode & _FLAG_FOK:
        return FILLING_FOK
    return FILLING_IOC if symbol.filling_mode & _FLAG_IOC else FILLING_RETURN


def _time_in_force(request: OrderRequest, facts: Facts) -> tuple[int, int] | Refusal:
    """`type_time` and `expiration` in seconds of the server's clock."""
    named = request.time_in_force
    if named is None and request.expires_at is None:
        allowed = facts.symbol.expiration_mode
        return (TIMES["day"], 0) if allowed & _FLAG_DAY and not allowed & _FLAG_GTC else (TIMES["gtc"], 0)
    type_time = TIMES[named or "specified"]
    if request.expires_at is None:
        return type_time, 0
    if facts.offset_s is None:
        return Refusal(("the server's time zone is not known yet, so expires_at cannot be told to it",))
    return type_time, int(datetime.fromisoformat(request.expires_at).timestamp()) + facts.offset_s


# --- acting on a position ---------------------------------------------------------------------------------------


def _close(
    order: Order, request: OrderRequest, attempt: int, facts: Facts, position: Position
) -> TradeRequest | Refusal:
    """Never more than there is: beyond that a netting account would open the other side."""
    there = position.volume if facts.cap is None else min(position.volume, facts.cap)
    volume = there if request.volume is None else min(request.volume, there)
    if volume <= 0:
        return _no_position(position.identifier)
    buys = position.type == TYPE_SELL  # to close is to do the opposite
    priced = _market_price(request, facts, buy=buys, again=attempt > 1)
    if isinstance(priced, Refusal):
        return priced
    price, deviation = priced
    return TradeRequest(
        action=ACTION_DEAL,
        symbol=position.symbol,
        volume=plain(volume),
        type=TYPE_BUY if buys else TYPE_SELL,
        price=price,
        deviation=deviation,
        type_filling=_filling(request, facts.symbol),
        position=position.ticket,
        magic=magic_of(order.order_id, attempt),
        comment=comment_of(order.order_id, attempt),
    )


def _close_by(order: Order, request: OrderRequest, attempt: int, image: TargetImage) -> TradeRequest | Refusal:
    first, second = image.position, image.position_by
    if first is None or second is None:
        gone = [_no_position(request.position_id)] if first is None else []
        gone += [_no_position(request.position_by_id)] if second is None else []
        return Refusal(tuple(reason for one in gone for reason in one.reasons))
    reasons = []
    if first.symbol != second.symbol:
        reasons.append(f"position {first.identifier} is in {first.symbol}, {second.identifier} in {second.symbol}")
    elif first.type == second.type:
        reasons.append(f"positions {first.identifier} and {second.identifier} have the same side")
    if reasons:
        return Refusal(tuple(reasons))
    return TradeRequest(
        action=ACTION_CLOSE_BY,
        symbol=first.symbol,
        position=first.ticket,
        position_by=second.ticket,
        magic=magic_of(order.order_id, attempt),
        comment=comment_of(order.order_id, attempt),
    )


def _change_stops(request: OrderRequest, position: Position) -> TradeRequest | Refusal:
    named = ("price", "stop_limit_price", "time_in_force", "expires_at")
    reasons = tuple(
        f"{name} does not belong to a position, and the order is filled"
        for name in named
        if getattr(request, name) is not None
    )
    if reasons:
        return Refusal(reasons)
    return TradeRequest(
        action=ACTION_SLTP,
        symbol=position.symbol,
        position=position.ticket,
        sl=plain(position.sl if request.sl is None else request.sl),
        tp=plain(position.tp if request.tp is None else request.tp),
    )


# --- acting on a working order ----------------------------------------------------------------------------------


def _change_order(request: OrderRequest, facts: Facts, working: BrokerOrder) -> TradeRequest | Refusal:
    timed: tuple[int, int] | Refusal = (working.type_time, working.time_expiration)
    if request.time_in_force is not None or request.expires_at is not None:
        timed = _time_in_force(request, facts)
    if isinstance(timed, Refusal):
        return timed

    def new(given: Decimal | None, held: Decimal) -> Decimal:
        return plain(held if given is None else given)

    return TradeRequest(
        action=ACTION_MODIFY,
        symbol=working.symbol,
        order=working.ticket,
        price=new(request.price, working.price_open),
        stoplimit=new(request.stop_limit_price, working.price_stoplimit),
        sl=new(request.sl, working.sl),
        tp=new(request.tp, working.tp),
        type_time=timed[0],
        expiration=timed[1],
    )
