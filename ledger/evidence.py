"""PURE: what the broker shows of an attempt whose outcome is unknown → what that proves.

An opening order leaves its magic on orders, deals and positions. A close, modify or cancel may leave none, so each
is judged on its target, against the image of it that was recorded before the send. Absence is proof only when every
query succeeded and nothing can arrive any more; whatever is less than proof leaves the outcome unknown.
"""

from typing import Final

import msgspec

from ledger.commands import RecordEvidence
from ledger.order import Order
from ledger.trade import (
    ACTION_CLOSE_BY,
    ACTION_DEAL,
    ACTION_MODIFY,
    ACTION_PENDING,
    ACTION_REMOVE,
    ACTION_SLTP,
    DEAL_REASON_EXPERT,
    ORDER_STATE_CANCELED,
    ORDER_STATE_EXPIRED,
    ORDER_STATE_FILLED,
    ORDER_STATE_REJECTED,
    WORKING_STATES,
    ZERO,
    BrokerOrder,
    Deal,
    Position,
    TradeRequest,
)

ENDED_STATES: Final = {
    ORDER_STATE_CANCELED: "cancelled",
    ORDER_STATE_REJECTED: "rejected",
    ORDER_STATE_EXPIRED: "expired",
}


class Dealt(msgspec.Struct, frozen=True):
    """It took effect: these deals are its."""

    deals: tuple[Deal, ...]
    evidence: str


class Working(msgspec.Struct, frozen=True):
    """It took effect: the broker holds it as this working order."""

    order: BrokerOrder
    evidence: str


class Ended(msgspec.Struct, frozen=True):
    """It reached the broker and ended there without a deal."""

    order: BrokerOrder
    evidence: str


class Done(msgspec.Struct, frozen=True):
    """The target is as the request wanted it."""

    evidence: str


class Absent(msgspec.Struct, frozen=True):
    """It had no effect and can have none any more. `final` tells why repeating it makes no sense, if so."""

    evidence: str
    final: str = ""


class Superseded(msgspec.Struct, frozen=True):
    """The target has moved on: whether the request acted on it for a moment cannot be told, and matters no more."""

    evidence: str


class Inconclusive(msgspec.Struct, frozen=True):
    """Proves nothing yet. `found`: there are traces."""

    found: bool
    reason: str = ""


Judgement = Dealt | Working | Ended | Done | Absent | Superseded | Inconclusive


def judge(order: Order, seen: RecordEvidence) -> Judgement:
    """What the evidence proves of the current attempt of the order."""
    sent = order.sent
    if sent is None:
        return Inconclusive(found=False, reason="the request that was sent is not known")
    made = tuple(deal for deal in seen.deals if _may_be_made_by(order, deal))
    if made:
        listed = ", ".join(str(deal.ticket) for deal in made)
        return Dealt(made, f"the broker shows deal {listed} of this attempt")
    match sent.action:
        case action if action == ACTION_DEAL and order.before is not None and order.before.position is not None:
            return _close(order.before.position, sent, seen)
        case action if action in (ACTION_DEAL, ACTION_PENDING):
            return _opening(sent, seen)
        case action if action == ACTION_SLTP:
            return _stops(order, sent, seen)
        case action if action == ACTION_MODIFY:
            return _pending(order, sent, seen)
        case action if action == ACTION_REMOVE:
            return _removal(order, seen)
        case action if action == ACTION_CLOSE_BY:
            return _close_by(order, seen)
        case _:
            return Inconclusive(found=False, reason=f"no rule for action {sent.action}")


def _may_be_made_by(order: Order, deal: Deal) -> bool:
    """What happens to a position later may carry the magic of the order that opened it. ENUM_DEAL_REASON: above
    EXPERT it is the server's own (stop loss, take profit, stop-out, a position reopened over night, a split …), below
    it a hand's."""
    if deal.reason > DEAL_REASON_EXPERT:
        return False
    by_hand = deal.reason < DEAL_REASON_EXPERT
    return not (by_hand and deal.entry and order.action == "open")


def _ended(seen: RecordEvidence) -> BrokerOrder | None:
    """The order of the attempt that ended without a deal, when no other one shows. An order may be filled in part and
    then end: so its own volumes must say too that nothing was dealt."""
    if seen.orders or any(one.state not in ENDED_STATES for one in seen.history):
        return None
    return next((one for one in seen.history if one.volume_current >= one.volume_initial), None)


def _opening(sent: TradeRequest, seen: RecordEvidence) -> Judgement:
    working = next((one for one in seen.orders if one.state in WORKING_STATES), None)
    if working is not None and sent.action == ACTION_PENDING:
        return Working(working, f"the broker holds it as working order {working.ticket}")
    traces = bool(seen.orders or seen.history or seen.positions or seen.deals)
    if not (seen.complete and seen.settled):
        return Inconclusive(found=traces, reason=seen.reason)
    ended = _ended(seen)
    if ended is not None and not (seen.positions or seen.deals):
        how = ENDED_STATES[ended.state]
        return Ended(ended, f"the broker shows order {ended.ticket} of this attempt, {how} without a deal")
    if traces:
        return Inconclusive(found=True, reason=seen.reason)
    return Absent(
        "no working order, past order, deal or position carries the magic or comment of this attempt, "
        "and none can arrive any more"
    )


def _close(before: Position, sent: TradeRequest, seen: RecordEvidence) -> Judgement:
    ended = _ended(seen)
    if not (seen.complete and seen.settled) or seen.target is None:
        return Inconclusive(found=bool(seen.orders or seen.history), reason=seen.reason)
    if ended is not None:
        return Ended(ended, f"the broker shows order {ended.ticket} of this attempt, no deal came of it")
    if seen.orders or seen.history:
        return Inconclusive(found=True, reason=seen.reason)
    later = [deal for deal in seen.target_deals if deal.time_msc > before.time_update_msc]
    now = seen.target.position
    # A deal made by a program under a lost magic may be this attempt's; under another's magic it is not.
    if any(deal.reason == DEAL_REASON_EXPERT and deal.magic in (0, sent.magic) for deal in later):
        return Inconclusive(found=True, reason=f"a deal of position {before.identifier} may be of this attempt")
    if now is not None and now.volume == before.volume:
        return Absent(f"position {before.identifier} still holds {before.volume} lots, and the close cannot arrive")
    if not later:
        return Inconclusive(found=True, reason=f"position {before.identifier} changed, and no deal says by what")
    if now is None:
        gone = f"position {before.identifier} was closed by others"
        return Absent(f"{gone}: none of its deals is of this attempt", final=gone)
    return Absent(f"position {before.identifier} was reduced by others: none of its deals is of this attempt")


def _stops(order: Order, sent: TradeRequest, seen: RecordEvidence) -> Judgement:
    before = order.before.position if order.before else None
    if before is None or seen.target is None or not seen.complete:
        return Inconclusive(found=False, reason=seen.reason)
    now = seen.target.position
    wanted = (sent.sl, sent.tp)
    if now is not None and (now.sl, now.tp) == wanted != (before.sl, before.tp):
        return Done(f"position {before.identifier} has the wanted stops")
    if not seen.settled:
        return Inconclusive(found=False, reason=seen.reason)
    if now is None:
        return Superseded(f"position {before.identifier} is closed")
    if (now.sl, now.tp) == (before.sl, before.tp):
        return Absent(f"position {before.identifier} has the stops it had before")
    return Superseded(f"position {before.identifier} has stops that neither were before nor were asked for")


def _pending(order: Order, sent: TradeRequest, seen: RecordEvidence) -> Judgement:
    before = order.before.order if order.before else None
    if before is None or seen.target is None or not seen.complete:
        return Inconclusive(found=False, reason=seen.reason)
    now = seen.target.order
    wanted = (sent.price, sent.stoplimit, sent.sl, sent.tp, sent.expiration)
    if now is not None and _terms(now) == wanted != _terms(before):
        return Done(f"order {before.ticket} has the wanted values")
    if not seen.settled:
        return Inconclusive(found=False, reason=seen.reason)
    if now is None:
        return Superseded(f"order {before.ticket} works no more")
    if _terms(now) == _terms(before):
        return Absent(f"order {before.ticket} has the values it had before")
    return Superseded(f"order {before.ticket} has values that neither were before nor were asked for")


def _terms(order: BrokerOrder) -> tuple[object, ...]:
    return (order.price_open, order.price_stoplimit, order.sl, order.tp, order.time_expiration)


def _removal(order: Order, seen: RecordEvidence) -> Judgement:
    before = order.before.order if order.before else None
    if before is None or seen.target is None:
        return Inconclusive(found=False, reason=seen.reason)
    past = seen.target_history
    if past is not None and past.state == ORDER_STATE_CANCELED:
        return Done(f"order {before.ticket} is cancelled")
    if not (seen.complete and seen.settled):
        return Inconclusive(found=False, reason=seen.reason)
    if past is not None and past.state in (ORDER_STATE_FILLED, ORDER_STATE_EXPIRED, ORDER_STATE_REJECTED):
        how = {ORDER_STATE_FILLED: "filled"}.get(past.state) or ENDED_STATES[past.state]
        return Absent(f"order {before.ticket} was {how}, not cancelled", final=f"order {before.ticket} was {how}")
    if seen.target.order is not None:
        return Absent(f"order {before.ticket} still works, and the cancel cannot arrive any more")
    return Inconclusive(found=False, reason=f"order {before.ticket} is neither working nor in history")


def _close_by(order: Order, seen: RecordEvidence) -> Judgement:
    first = order.before.position if order.before else None
    second = order.before.position_by if order.before else None
    if first is None or second is None or seen.target is None or not (seen.complete and seen.settled):
        return Inconclusive(found=bool(seen.orders or seen.history), reason=seen.reason)
    ended = _ended(seen)
    if ended is not None:
        return Ended(ended, f"the broker shows order {ended.ticket} of this attempt, no deal came of it")
    if seen.orders or seen.history:
        return Inconclusive(found=True, reason=seen.reason)
    now, other = seen.target.position, seen.target.position_by
    if _unchanged(first, now) and _unchanged(second, other):
        return Absent(f"positions {first.identifier} and {second.identifier} hold what they held before")
    # It takes the same from both: what left one as it was, or what the deals of others explain, was not this.
    kept = next((one.identifier for one, then in ((first, now), (second, other)) if _unchanged(one, then)), 0)
    if not kept and not _reduced_by_others(order, first, now, seen):
        return Inconclusive(found=True, reason="the positions changed, and no deal says whether by this attempt")
    why = f"position {kept} holds what it held before" if kept else f"others made the deals of {first.identifier}"
    gone = next((one.identifier for one, then in ((first, now), (second, other)) if then is None), 0)
    return Absent(f"{why}: a close-by takes from both", final=f"position {gone} was closed by others" if gone else "")


def _reduced_by_others(order: Order, before: Position, now: Position | None, seen: RecordEvidence) -> bool:
    """Whether deals that cannot be this attempt's account for all that the position has lost."""
    later = [deal for deal in seen.target_deals if deal.time_msc > before.time_update_msc and deal.entry]
    magics = (0, order.sent.magic if order.sent is not None else 0)
    if any(deal.reason == DEAL_REASON_EXPERT and deal.magic in magics for deal in later):
        return False
    lost = before.volume - (now.volume if now is not None else ZERO)
    return sum((deal.volume for deal in later), ZERO) == lost


def _unchanged(before: Position, now: Position | None) -> bool:
    return now is not None and now.volume == before.volume
