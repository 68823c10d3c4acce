"""PURE: the events that tell how an order stands at the broker or how it ended, built from what is known of it."""

from ledger.order import WORKING, Order
from ledger.order_events import (
    OrderCancelled,
    OrderEvent,
    OrderExpired,
    OrderFailed,
    OrderPlaced,
    OrderRejected,
    OutcomeUnknown,
    RequestCompleted,
)
from ledger.trade import (
    ORDER_STATE_CANCELED,
    ORDER_STATE_EXPIRED,
    ORDER_STATE_REJECTED,
    ORDER_TYPES,
    ZERO,
    BrokerOrder,
    Deal,
    TradeResult,
)
from ledger.values import plain, shorten


def unknown(order: Order, code: int, reason: str) -> OutcomeUnknown:
    return OutcomeUnknown(attempt=order.attempt, code=code, reason=reason, symbol=order.symbol)


def failed(order: Order, reason: str, category: str = "fatal") -> OrderFailed:
    return OrderFailed(symbol=order.symbol, category=category, reason=reason, attempts=order.attempt)


def placed(order: Order, ticket: int, retcode: int = 0, retcode_name: str = "") -> OrderPlaced:
    sent = order.sent
    return OrderPlaced(
        symbol=order.symbol,
        side="sell" if sent is not None and sent.type % 2 else "buy",
        order_ticket=ticket,
        order_type=ORDER_TYPES[sent.type] if sent is not None and sent.type < len(ORDER_TYPES) else "",
        volume=sent.volume if sent else order.volume,
        price=sent.price if sent else ZERO,
        stop_limit_price=sent.stoplimit if sent else ZERO,
        sl=sent.sl if sent else ZERO,
        tp=sent.tp if sent else ZERO,
        attempts=order.attempt,
        retcode=retcode,
        retcode_name=retcode_name,
    )


def completed(order: Order, result: TradeResult | None = None, retcode_name: str = "") -> RequestCompleted:
    request, sent, before = order.request, order.sent, order.before
    return RequestCompleted(
        symbol=order.symbol,
        action=order.action,
        order_ticket=sent.order if sent else 0,
        position_id=before.position.identifier if before and before.position else (sent.position if sent else 0),
        target_order_id=(request.target_order_id if request else None) or "",
        attempts=order.attempt,
        retcode=result.retcode if result else 0,
        retcode_name=retcode_name,
    )


def provisional(order: Order, result: TradeResult) -> Deal:
    """A fill known from the result alone: no costs yet, completed when the deal shows. A result names one deal and the
    volume of all, so what is known of the others is taken off; where they are more than it tells, they came later."""
    sent = order.sent
    uncounted = plain((result.volume or order.volume) - order.filled_volume)
    return Deal(
        ticket=result.deal,
        type=sent.type % 2 if sent else 0,
        position_id=(sent.position if sent else 0) or result.order,
        volume=uncounted if uncounted > ZERO else result.volume,
        price=result.price,
    )


def cancelled(order: Order, ticket: int, reason: str, by: str = "") -> OrderCancelled:
    return OrderCancelled(
        symbol=order.symbol,
        order_ticket=ticket or order.order_ticket,
        filled_volume=order.filled_volume,
        remaining_volume=plain(order.remaining),
        reason=reason,
        by=by,
    )


def counted(order: Order, deals: tuple[Deal, ...]) -> list[OrderEvent]:
    """The end of an order that the broker dealt by deals which stand in the ledger as nobody's: what they moved stays
    moved, once."""
    others = [deal for deal in deals if order.deal(deal.ticket) is None]
    if order.status not in WORKING or not others:
        return []
    named = shorten(", ".join(str(deal.ticket) for deal in others), 256)
    reason = (
        f"order {order.order_ticket} was dealt, but not by us: its deals {named} are in the ledger as external ones, "
        "which moved the position; they are not counted again"
    )
    return [cancelled(order, order.order_ticket, reason)]


def ended_at_broker(order: Order, shown: BrokerOrder, by: str = "") -> list[OrderEvent]:
    match shown.state:
        case state if state == ORDER_STATE_CANCELED:
            return [cancelled(order, shown.ticket, "cancelled at the broker" if not by else "", by)]
        case state if state == ORDER_STATE_EXPIRED:
            return [
                OrderExpired(
                    symbol=order.symbol,
                    order_ticket=shown.ticket,
                    filled_volume=order.filled_volume,
                    remaining_volume=plain(order.remaining),
                )
            ]
        case state if state == ORDER_STATE_REJECTED and not order.filled_volume:
            return [
                OrderRejected(
                    symbol=order.symbol,
                    retcode=order.answer_retcode,
                    retcode_name=order.answer_name,
                    category="fatal",
                    description=f"the broker rejected its order {shown.ticket} later",
                    attempts=order.attempt,
                )
            ]
        case state if state == ORDER_STATE_REJECTED:
            return [cancelled(order, shown.ticket, "the broker rejected the rest", by)]
        case _:
            return []
