"""PURE: the deals the broker shows of an order → what they mean for it.

A deal is counted once, by its ticket. A fill known from a result alone is provisional: the deal itself completes or
corrects it. What does not fit the request is recorded all the same, and flagged: it happened.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final, NamedTuple

from ledger.order import KnownDeal, Order, Status, evolve
from ledger.order_events import (
    AnomalyDetected,
    Fill,
    FillCorrected,
    FillCostsChanged,
    OrderEvent,
    OrderFilled,
    OrderPartiallyFilled,
)
from ledger.positions import ENTRY_INOUT
from ledger.trade import ACTION_CLOSE_BY, TYPE_BUY, TYPE_SELL, ZERO, Deal
from ledger.values import plain

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# Where a deal is no surprise.
_EXPECTED: Final = frozenset(
    {Status.SENDING, Status.UNKNOWN, Status.PLACED, Status.PARTIALLY_FILLED, Status.FILLED, Status.COMPLETED}
)


class Context(NamedTuple):
    """What is known beside the deals: the symbol's point, the server's clock, the answer that named them."""

    point: Decimal | None = None
    offset_s: int = 0
    retcode: int = 0
    retcode_name: str = ""
    order_ticket: int = 0
    provisional: bool = False


def record_deals(order: Order, deals: Sequence[Deal], context: Context) -> list[OrderEvent]:
    """The events of these deals: a fill for each that is new, a correction or new costs for each that changed."""
    events: list[OrderEvent] = []
    if order.status not in _EXPECTED and any(order.deal(deal.ticket) is None for deal in deals):
        events.append(
            AnomalyDetected(kind="late_fill", detail=f"a deal after {order.status.value}", symbol=order.symbol)
        )
    # Known ones first: a provisional fill gives back what it counted of the other deals of its order.
    deals = sorted(deals, key=lambda deal: order.deal(deal.ticket) is None)
    for number, deal in enumerate(deals, 1):
        new = _one(order, deal, context)
        events += new
        if number < len(deals):  # the state after the last one is nobody's question
            for event in new:
                order = evolve(order, event)
    return events


def _one(order: Order, deal: Deal, context: Context) -> list[OrderEvent]:
    known = order.deal(deal.ticket)
    if known is None:
        filled = plain(order.filled_volume + deal.volume)
        remaining = plain(max(order.volume - filled, ZERO))
        kind: type[Fill] = OrderPartiallyFilled if remaining else OrderFilled
        fill = kind(
            **_fields(order, deal, context),  # type: ignore[arg-type]  # one builder for all kinds
            filled_volume=filled,
            remaining_volume=remaining,
            provisional=context.provisional,
            raw=None if context.provisional else deal,
        )
        return [fill, *_mismatches(order, deal, filled)]  # type: ignore[list-item]  # one of the two members
    if context.provisional:
        return []
    if known.provisional or (known.volume, known.price) != (deal.volume, deal.price):
        return _corrected(order, known, deal, context)
    costs = (deal.commission, deal.swap, deal.fee, deal.profit)
    if costs != (known.commission, known.swap, known.fee, known.profit):
        return [
            FillCostsChanged(
                deal=deal.ticket,
                fill_version=known.version,
                commission=plain(deal.commission),
                swap=plain(deal.swap),
                fee=plain(deal.fee),
                profit=plain(deal.profit),
                symbol=deal.symbol or order.symbol,
            )
        ]
    return []


def _corrected(order: Order, known: KnownDeal, deal: Deal, context: Context) -> list[OrderEvent]:
    filled = plain(order.filled_volume - known.volume + deal.volume)
    corrected = FillCorrected(
        **_fields(order, deal, context),  # type: ignore[arg-type]
        filled_volume=filled,
        remaining_volume=plain(max(order.volume - filled, ZERO)),
        raw=deal,
        corrects=known.version,
        was_volume=known.volume,
        was_price=known.price,
    )
    if known.provisional:
        return [corrected, *_mismatches(order, deal, filled)]
    detail = (
        f"deal {deal.ticket} was {known.volume} at {known.price}, the broker now shows {deal.volume} at {deal.price}"
    )
    return [corrected, AnomalyDetected(kind="deal_changed", detail=detail, symbol=order.symbol)]


def _fields(order: Order, deal: Deal, context: Context) -> dict[str, object]:
    return {
        "symbol": deal.symbol or order.symbol,
        "side": "buy" if deal.type == TYPE_BUY else "sell",
        "order_ticket": deal.order or context.order_ticket,
        "deal": deal.ticket,
        "position_id": deal.position_id,
        "volume": plain(deal.volume),
        "price": plain(deal.price),
        "attempts": order.attempt,
        "requested_price": order.request.price if order.request else None,
        "point": context.point,
        "commission": plain(deal.commission),
        "swap": plain(deal.swap),
        "fee": plain(deal.fee),
        "profit": plain(deal.profit),
        "entry": deal.entry,
        "reason": deal.reason,
        "broker_time_msc": deal.time_msc,
        "broker_utc_offset_s": context.offset_s,
        "broker_time": broker_utc(deal.time_msc, context.offset_s),
        "retcode": context.retcode,
        "retcode_name": context.retcode_name,
    }


def broker_utc(time_msc: int, offset_s: int) -> datetime | None:
    """The server's wall clock as UTC; None when it is not known, or no time at all (it stays in the raw deal)."""
    if not time_msc:
        return None
    try:
        return _EPOCH + timedelta(milliseconds=time_msc, seconds=-offset_s)
    except OverflowError:
        return None


def _mismatches(order: Order, deal: Deal, filled: Decimal) -> list[AnomalyDetected]:
    """What the deal contradicts in its request (the rule of the system: symbol, side, position, attempt, volume,
    price)."""
    found = []
    request, sent = order.request, order.sent
    by_both = sent is not None and sent.action == ACTION_CLOSE_BY
    if deal.symbol and order.symbol and deal.symbol != order.symbol:
        found.append(("fill_symbol", f"deal {deal.ticket} is in {deal.symbol}, asked was {order.symbol}"))
    asked = TYPE_SELL if request is not None and request.side == "sell" else TYPE_BUY
    wanted = sent.type % 2 if sent is not None else asked  # even order types buy, odd ones sell
    if deal.type != wanted and not by_both:
        found.append(("fill_side", f"deal {deal.ticket} has type {deal.type}, asked was {wanted}"))
    targets = {sent.position, sent.position_by} - {0} if sent is not None else set()
    if order.before is not None and order.before.position is not None:
        targets |= {order.before.position.identifier}
    if order.before is not None and order.before.position_by is not None:
        targets |= {order.before.position_by.identifier}
    if targets and deal.position_id and deal.position_id not in targets:
        found.append(
            ("fill_position", f"deal {deal.ticket} is of position {deal.position_id}, asked was {min(targets)}")
        )
    if sent is not None and deal.magic and sent.magic and deal.magic != sent.magic:
        found.append(
            ("fill_attempt", f"deal {deal.ticket} carries magic {deal.magic}, attempt {order.attempt} has {sent.magic}")
        )
    if deal.entry == ENTRY_INOUT and order.action == "close":
        found.append(("fill_entry", f"deal {deal.ticket} closed position {deal.position_id} and opened its other side"))
    if filled > order.volume:
        found.append(("fill_volume", f"deal {deal.ticket} brings the volume to {filled} of {order.volume}"))
    limit = _worst_price(order)
    if limit is not None and (deal.price > limit if deal.type == TYPE_BUY else deal.price < limit):
        found.append(("fill_price", f"deal {deal.ticket} is at {deal.price}, worse than the {limit} asked for"))
    return [AnomalyDetected(kind=kind, detail=detail, symbol=order.symbol) for kind, detail in found]


def _worst_price(order: Order) -> Decimal | None:
    """The worst price allowed: of a limit or stop-limit order its limit, as it was sent or changed last. Market and
    stop orders slip."""
    request = order.request
    if request is None or request.price is None:
        return None
    if request.order_type in ("buy_limit", "sell_limit"):
        return order.terms.price or request.price
    if request.order_type.endswith("_stop_limit"):
        return order.terms.stop_limit_price or request.stop_limit_price
    return None
