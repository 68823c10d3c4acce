"""What may happen to an order: `decide` answers a command with events. Pure and total.

It may refuse a request of a client, never a fact of the broker: a fact that does not fit is recorded and flagged.
"""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final, assert_never

from ledger.commands import (
    ExpireOrder,
    GiveUp,
    OrderCommand,
    ReceiveOrder,
    RecordAnswer,
    RecordCheck,
    RecordEvidence,
    RecordNotSent,
    RecordUnknown,
    RefuseOrder,
    StartSend,
)
from ledger.errors import InvariantViolated
from ledger.order import Order, Status
from ledger.order_events import (
    AnomalyDetected,
    BrokerAnswered,
    ConflictReceived,
    DuplicateReceived,
    Fill,
    OrderChecked,
    OrderEvent,
    OrderFailed,
    OrderFilled,
    OrderPartiallyFilled,
    OrderRefused,
    OrderRejected,
    OrderRequested,
    OrderStale,
    OutcomeProbed,
    OutcomeResolved,
    OutcomeUnknown,
    SendAbandoned,
    SendStarted,
)
from ledger.trade import (
    ORDER_STATE_CANCELED,
    ORDER_STATE_EXPIRED,
    ORDER_STATE_REJECTED,
    TYPE_BUY,
    TYPE_SELL,
    ZERO,
    Deal,
)
from ledger.values import plain

MAX_RECORDED_REPEATS: Final = 20
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# Where a deal is no surprise.
_DEALS_EXPECTED: Final = frozenset({Status.SENDING, Status.UNKNOWN, Status.PARTIALLY_FILLED, Status.FILLED})


def decide(order: Order, command: OrderCommand) -> list[OrderEvent]:
    """The events that the command causes; none when it has nothing new to say.

    Raises InvariantViolated for a command that only a defect of ours can give: a second attempt while one is open.
    """
    match command:
        case ReceiveOrder():
            return _receive(order, command)
        case RefuseOrder():
            if order.status not in (Status.REQUESTED, Status.READY):
                return []
            return [OrderRefused(reasons=command.reasons, category="refused", symbol=order.symbol)]
        case ExpireOrder():
            if order.status not in (Status.REQUESTED, Status.READY):
                return []
            return [OrderStale(age_s=command.age_s, limit_s=command.limit_s, symbol=order.symbol)]
        case RecordCheck():
            return _checked(order, command)
        case StartSend():
            return _start(order, command)
        case RecordAnswer():
            return _answered(order, command)
        case RecordNotSent():
            if order.status is not Status.SENDING or order.attempt != command.attempt:
                return []
            return [SendAbandoned(attempt=command.attempt, code=command.code, reason=command.reason)]
        case RecordUnknown():
            if order.status is not Status.SENDING or order.attempt != command.attempt:
                return []
            return [
                OutcomeUnknown(attempt=command.attempt, code=command.code, reason=command.reason, symbol=order.symbol)
            ]
        case RecordEvidence():
            return _evidence(order, command)
        case GiveUp():
            if order.status not in (Status.REQUESTED, Status.READY):
                return []
            return [OrderFailed(symbol=order.symbol, category="fatal", reason=command.reason, attempts=order.attempt)]
        case _:
            assert_never(command)


def _receive(order: Order, command: ReceiveOrder) -> list[OrderEvent]:
    received = command.received
    if order.status is Status.NEW:
        events: list[OrderEvent] = [
            OrderRequested(
                request=received.request,
                content=received.content,
                raw=received.raw,
                symbol=received.symbol,
                age_from=command.age_from,
                accepted=not received.reasons,
            )
        ]
        if received.reasons:
            events.append(OrderRefused(reasons=received.reasons, category=received.category, symbol=received.symbol))
        return events
    if received.content == order.content:
        number = order.duplicates + command.unrecorded + 1
        if number > MAX_RECORDED_REPEATS and number % 100:
            return []
        return [
            DuplicateReceived(
                number=number,
                standing_version=order.outcome_version,
                standing_topic=order.outcome_topic,
                status=order.status.value,
            )
        ]
    if order.conflicts + command.unrecorded >= MAX_RECORDED_REPEATS and (order.conflicts + command.unrecorded) % 100:
        return []
    return [
        ConflictReceived(content=received.content, raw=received.raw, reasons=received.reasons, symbol=received.symbol)
    ]


def _checked(order: Order, command: RecordCheck) -> list[OrderEvent]:
    if order.status is not Status.REQUESTED:
        return []
    checked = OrderChecked(
        passed=command.passed, result=command.result, retcode_name=command.retcode_name, problem=command.problem
    )
    if command.passed or command.result is None:
        return [checked]
    return [
        checked,
        OrderRejected(
            symbol=order.symbol,
            retcode=command.result.retcode,
            retcode_name=command.retcode_name,
            category=command.category,
            description=command.description,
            attempts=order.attempt,
            advice=command.advice,
        ),
    ]


def _start(order: Order, command: StartSend) -> list[OrderEvent]:
    if order.status not in (Status.REQUESTED, Status.READY) or command.attempt != order.attempt + 1:
        raise InvariantViolated(
            f"order {order.order_id}: attempt {command.attempt} may not start in state {order.status.value} "
            f"after attempt {order.attempt} (invariant I1)"
        )
    return [SendStarted(attempt=command.attempt, request=command.request)]


def _answered(order: Order, command: RecordAnswer) -> list[OrderEvent]:
    result = command.result
    events: list[OrderEvent] = [
        BrokerAnswered(
            attempt=command.attempt,
            result=result,
            retcode_name=command.retcode_name,
            verdict=command.verdict,
            description=command.description,
            latency_s=command.latency_s,
        )
    ]
    if command.verdict == "success" and (command.deals or result.deal):
        deals = command.deals or (_provisional(order, command),)
        events.extend(
            _fills(
                order,
                deals,
                point=command.point,
                offset_s=command.broker_utc_offset_s,
                retcode=result.retcode,
                retcode_name=command.retcode_name,
                order_ticket=result.order,
                provisional=not command.deals,
            )
        )
    elif command.attempt != order.attempt:
        pass  # the answer to an attempt that is over says nothing about the one that is not
    elif command.verdict in ("success", "ambiguous"):
        # Also when the attempt was taken for abandoned: an answer says that it was not.
        if order.status in (Status.SENDING, Status.READY):
            events.append(
                OutcomeUnknown(
                    attempt=command.attempt,
                    code=result.retcode,
                    reason=f"{command.retcode_name}: the answer names no deal",
                    symbol=order.symbol,
                )
            )
    elif order.status in (Status.SENDING, Status.UNKNOWN):
        events.append(
            OrderRejected(
                symbol=order.symbol,
                retcode=result.retcode,
                retcode_name=command.retcode_name,
                category="fatal" if command.verdict == "fatal" else "retries_exhausted",
                description=command.description,
                attempts=command.attempt,
                retriable=command.verdict in ("retriable", "wait"),
                advice=command.advice,
            )
        )
    return events


def _provisional(order: Order, command: RecordAnswer) -> Deal:
    """A fill known from the result alone: no costs yet, completed when the deal shows."""
    result = command.result
    sent = order.sent
    return Deal(
        ticket=result.deal,
        order=result.order,
        type=sent.type if sent else 0,
        magic=sent.magic if sent else 0,
        position_id=result.order,
        volume=result.volume or order.remaining,
        price=result.price,
        symbol=order.symbol,
    )


def _fills(
    order: Order,
    deals: tuple[Deal, ...],
    *,
    point: Decimal | None,
    offset_s: int,
    retcode: int,
    retcode_name: str,
    order_ticket: int,
    provisional: bool = False,
) -> list[OrderEvent]:
    """One fill per deal that is not known yet, and an anomaly for each that does not fit the request."""
    events: list[OrderEvent] = []
    seen = set(order.deals)
    filled = order.filled_volume
    if order.status not in _DEALS_EXPECTED and any(deal.ticket not in seen for deal in deals):
        events.append(
            AnomalyDetected(kind="late_fill", detail=f"a deal after {order.status.value}", symbol=order.symbol)
        )
    for deal in deals:
        if deal.ticket in seen:
            continue
        seen.add(deal.ticket)
        filled = plain(filled + deal.volume)
        remaining = plain(max(order.volume - filled, ZERO))
        kind: type[Fill] = OrderPartiallyFilled if remaining else OrderFilled
        fill = kind(
            symbol=deal.symbol or order.symbol,
            side="buy" if deal.type == TYPE_BUY else "sell",
            order_ticket=deal.order or order_ticket,
            deal=deal.ticket,
            position_id=deal.position_id,
            volume=plain(deal.volume),
            price=plain(deal.price),
            filled_volume=filled,
            remaining_volume=remaining,
            attempts=order.attempt,
            requested_price=order.request.price if order.request else None,
            point=point,
            commission=plain(deal.commission),
            swap=plain(deal.swap),
            fee=plain(deal.fee),
            profit=plain(deal.profit),
            entry=deal.entry,
            reason=deal.reason,
            broker_time_msc=deal.time_msc,
            broker_utc_offset_s=offset_s,
            broker_time=_utc(deal.time_msc, offset_s),
            retcode=retcode,
            retcode_name=retcode_name,
            provisional=provisional,
            raw=None if provisional else deal,
        )
        events.append(fill)  # type: ignore[arg-type]  # kind is one of the two members of OrderEvent
        events.extend(
            AnomalyDetected(kind=kind_, detail=detail, symbol=order.symbol)
            for kind_, detail in _mismatches(order, deal, filled)
        )
    return events


def _utc(time_msc: int, offset_s: int) -> datetime | None:
    """The server's wall clock as UTC; None when it is not known, or no time at all (it stays in the raw deal)."""
    if not time_msc:
        return None
    try:
        return _EPOCH + timedelta(milliseconds=time_msc, seconds=-offset_s)
    except OverflowError:
        return None


def _mismatches(order: Order, deal: Deal, filled: Decimal) -> list[tuple[str, str]]:
    found = []
    if deal.symbol and deal.symbol != order.symbol:
        found.append(("fill_symbol", f"deal {deal.ticket} is in {deal.symbol}, asked was {order.symbol}"))
    wanted = TYPE_SELL if order.request is not None and order.request.side == "sell" else TYPE_BUY
    if deal.type != wanted:
        found.append(("fill_side", f"deal {deal.ticket} has type {deal.type}, asked was {wanted}"))
    if filled > order.volume:
        found.append(("fill_volume", f"deal {deal.ticket} brings the volume to {filled} of {order.volume}"))
    return found


_ENDED_WITHOUT_DEAL: Final = {
    ORDER_STATE_CANCELED: "cancelled",
    ORDER_STATE_REJECTED: "rejected",
    ORDER_STATE_EXPIRED: "expired",
}


def _evidence(order: Order, command: RecordEvidence) -> list[OrderEvent]:
    if order.status is not Status.UNKNOWN or order.attempt != command.attempt:
        return []
    ticket = next((one.ticket for one in (*command.orders, *command.history)), 0)
    if command.deals:
        ticket = ticket or command.deals[0].order
        listed = ", ".join(str(deal.ticket) for deal in command.deals)
        resolved = OutcomeResolved(
            attempt=command.attempt,
            resolution="found",
            by="probe",
            evidence=f"the broker shows deal {listed} of this attempt",
            order_ticket=ticket,
            symbol=order.symbol,
        )
        fills = _fills(
            order,
            command.deals,
            point=command.point,
            offset_s=command.broker_utc_offset_s,
            retcode=0,
            retcode_name="",
            order_ticket=ticket,
        )
        return [resolved, *fills]
    ended = next((one for one in command.history if one.state in _ENDED_WITHOUT_DEAL), None)
    # Only a full view shows that there is no deal: an order may be filled in part and then cancelled.
    if ended is not None and command.complete and command.settled and not (command.orders or command.positions):
        how = _ENDED_WITHOUT_DEAL[ended.state]
        return [
            OutcomeResolved(
                attempt=command.attempt,
                resolution="found",
                by="probe",
                evidence=f"the broker shows order {ended.ticket} of this attempt, {how} without a deal",
                order_ticket=ended.ticket,
                symbol=order.symbol,
            ),
            OrderRejected(
                symbol=order.symbol,
                retcode=order.answer_retcode,
                retcode_name=order.answer_name,
                category="fatal",
                description=f"the broker's order {ended.ticket} was {how} without a deal",
                attempts=order.attempt,
            ),
        ]
    found = bool(command.orders or command.history or command.positions)
    if command.complete and command.settled and not found:
        return [
            OutcomeResolved(
                attempt=command.attempt,
                resolution="absent",
                by="probe",
                evidence="no working order, past order, deal or position carries the magic or comment of this "
                "attempt, and none can arrive any more",
                symbol=order.symbol,
            ),
            OrderFailed(
                symbol=order.symbol,
                category="fatal",
                reason="the request did not reach the broker: proven by its absence there",
                attempts=order.attempt,
            ),
        ]
    probed = OutcomeProbed(attempt=command.attempt, complete=command.complete, found=found, reason=command.reason)
    return [] if probed == order.probed else [probed]
