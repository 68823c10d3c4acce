"""Whether the numbers of a request lie where the symbol wants them: volumes, prices, stops, fillings, expirations."""

from typing import Final

from gateway.simulated import constants as c
from gateway.simulated import symbols as s
from gateway.simulated.market import Quote, units
from gateway.simulated.rows import OrderRow, PositionRow
from gateway.simulated.symbols import SymbolSpec

PRICED_MODES: Final = (c.SYMBOL_TRADE_EXECUTION_REQUEST, c.SYMBOL_TRADE_EXECUTION_INSTANT)
_TOLERANCE: Final = 1e-6  # points: a price written as a double may miss its decimal by an ulp
_LIMITS: Final = (
    c.ORDER_TYPE_BUY_LIMIT,
    c.ORDER_TYPE_SELL_LIMIT,
    c.ORDER_TYPE_BUY_STOP_LIMIT,
    c.ORDER_TYPE_SELL_STOP_LIMIT,
)
_STOP_LIMITS: Final = _LIMITS[2:]
_DAY_S: Final = 86_400


def on_grid(spec: SymbolSpec, price: float) -> bool:
    points = price * spec.scale
    return abs(points - round(points)) < 1e-3


def volume_fits(spec: SymbolSpec, volume: float) -> bool:
    if not spec.volume_min <= volume <= spec.volume_max:
        return False
    return units(volume) % units(spec.volume_step) == 0


def filling_allowed(spec: SymbolSpec, filling: int, pending: int | None = None) -> bool:
    """FOK and IOC follow the symbol's flags where the execution is market or exchange. RETURN always fits a pending
    order; BOC fits one that waits in the book."""
    if filling == c.ORDER_FILLING_RETURN:
        return pending is not None or spec.return_filling
    if filling == c.ORDER_FILLING_BOC:
        return pending in _LIMITS and bool(spec.filling_mode & s.FILLING_BOC_FLAG)
    if filling not in (c.ORDER_FILLING_FOK, c.ORDER_FILLING_IOC):
        return False
    if spec.exemode in PRICED_MODES:
        return True
    flag = s.FILLING_FOK_FLAG if filling == c.ORDER_FILLING_FOK else s.FILLING_IOC_FLAG
    return bool(spec.filling_mode & flag)


def stops_fit(spec: SymbolSpec, reference: int, buy: bool, sl: float, tp: float) -> bool:
    """Stops lie on their side of the reference (points), at least the stops level away, on the price grid."""
    if not (sl or tp):
        return True
    if sl < 0 or tp < 0 or not on_grid(spec, sl) or not on_grid(spec, tp):
        return False
    if (sl and not spec.order_mode & s.ORDER_SL_FLAG) or (tp and not spec.order_mode & s.ORDER_TP_FLAG):
        return False
    sign = 1 if buy else -1
    level = max(spec.stops_level, 1) - _TOLERANCE
    if sl and (reference - sl * spec.scale) * sign < level:
        return False
    return not (tp and (tp * spec.scale - reference) * sign < level)


def pending_price_fits(spec: SymbolSpec, quote: Quote, type_: int, price: float, stoplimit: float) -> bool:
    """Limits wait on the better side of the market, stops on the worse, at least the stops level away. The limit of a
    stop-limit order lies on the better side of its stop."""
    if price <= 0 or not on_grid(spec, price):
        return False
    buy = type_ % 2 == 0
    market = quote.ask if buy else quote.bid
    better = (market - price * spec.scale) * (1 if buy else -1)  # points the price is better than the market
    distance = better if type_ in _LIMITS[:2] else -better
    if distance < max(spec.stops_level, 1) - _TOLERANCE:
        return False
    if type_ not in _STOP_LIMITS:
        return True
    if stoplimit <= 0 or not on_grid(spec, stoplimit):
        return False
    return (price - stoplimit) * spec.scale * (1 if buy else -1) >= 1 - _TOLERANCE


def expiry_s(spec: SymbolSpec, type_time: int, expiration: int, server_s: int) -> int | None:
    """Server seconds at which the order ends by itself, 0 for never; None where the request is not allowed."""
    if type_time > c.ORDER_TIME_SPECIFIED_DAY or not spec.expiration_mode & 1 << type_time:
        return None
    midnight = server_s - server_s % _DAY_S + _DAY_S
    if type_time == c.ORDER_TIME_GTC:
        return 0 if spec.gtc_mode == c.SYMBOL_ORDERS_GTC else midnight
    if type_time == c.ORDER_TIME_DAY:
        return midnight
    if type_time == c.ORDER_TIME_SPECIFIED_DAY:
        expiration += _DAY_S - expiration % _DAY_S
    return expiration if server_s < expiration < 2**33 else None


def is_frozen(spec: SymbolSpec, quote: Quote, order: OrderRow) -> bool:
    """The market is within the freeze level of the order's price."""
    market = quote.ask if order.type % 2 == 0 else quote.bid
    return abs(order.price_open * spec.scale - market) <= spec.freeze_level


def position_is_frozen(spec: SymbolSpec, quote: Quote, row: PositionRow) -> bool:
    """The market is within the freeze level of one of the position's stops."""
    market = quote.bid if row.type == c.POSITION_TYPE_BUY else quote.ask
    return any(price and abs(price * spec.scale - market) <= spec.freeze_level for price in (row.sl, row.tp))
