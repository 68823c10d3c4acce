"""What may happen to an order: `decide` answers a command with events. Pure and total.

It may refuse a request of a client, never a fact of the broker: a fact that does not fit is recorded and flagged.
"""

from typing import Final, assert_never

from ledger.commands import (
    CompleteCancel,
    EndCounted,
    ExpireOrder,
    GiveUp,
    OrderCommand,
    ParkOrder,
    ReceiveOrder,
    RecordAnswer,
    RecordCheck,
    RecordDeals,
    RecordEvidence,
    RecordModified,
    RecordNotSent,
    RecordOrderState,
    RecordUnknown,
    RefuseOrder,
    ResolveOutcome,
    StartSend,
    WithdrawOrder,
)
from ledger.errors import InvariantViolated
from ledger.evidence import ENDED_STATES, Absent, Dealt, Done, Ended, Inconclusive, Superseded, Working, judge
from ledger.fills import Context, record_deals
from ledger.order import AT_BROKER, CONCLUDED, IDLE, UNRESOLVED, WORKING, Order, Status, Terms, evolve
from ledger.order_events import (
    AnomalyDetected,
    BrokerAnswered,
    ConflictReceived,
    DuplicateReceived,
    OrderChecked,
    OrderEvent,
    OrderModified,
    OrderParked,
    OrderRefused,
    OrderRejected,
    OrderRequested,
    OrderStale,
    OutcomeProbed,
    OutcomeResolved,
    RetryScheduled,
    SendAbandoned,
    SendStarted,
)
from ledger.outcomes import cancelled, completed, counted, ended_at_broker, failed, placed, provisional, unknown
from ledger.trade import (
    ACTION_MODIFY,
    ACTION_PENDING,
    ACTION_REMOVE,
    ACTION_SLTP,
    FILLING_FOK,
    FILLING_IOC,
    RETCODE_DONE_PARTIAL,
    WORKING_STATES,
    BrokerOrder,
    TradeResult,
)
from ledger.values import plain

MAX_RECORDED_REPEATS: Final = 20
MAX_EVIDENCE: Final = 20
# Requests that make no deal and no order: success is that they took effect.
_WITHOUT_DEAL: Final = frozenset({ACTION_SLTP, ACTION_MODIFY, ACTION_REMOVE})
# The broker is known to hold the order, or to have ended it: a working order is no news.
_HELD: Final = frozenset({Status.PLACED, Status.PARTIALLY_FILLED, Status.FILLED, Status.CANCELLED, Status.EXPIRED})


def decide(order: Order, command: OrderCommand) -> list[OrderEvent]:
    """The events that the command causes; none when it has nothing new to say.

    Raises InvariantViolated for a command that only a defect of ours can give: a second attempt while one is open,
    anything on an order that was never requested.
    """
    if order.status is Status.NEW and not isinstance(command, ReceiveOrder):
        raise InvariantViolated(f"order {order.order_id} does not exist: {type(command).__name__} has no object")
    match command:
        case ReceiveOrder():
            return _receive(order, command)
        case RecordCheck():
            return _checked(order, command)
        case StartSend():
            return _start(order, command)
        case RecordAnswer():
            return _answered(order, command)
        case RefuseOrder():
            if order.status not in IDLE:
                return []
            return [OrderRefused(reasons=command.reasons, category="refused", symbol=order.symbol)]
        case ExpireOrder():
            if order.status not in IDLE:
                return []
            return [OrderStale(age_s=command.age_s, limit_s=command.limit_s, symbol=order.symbol, cause=command.cause)]
        case GiveUp():
            if order.status not in IDLE:
                return []
            return [failed(order, command.reason)]
        case WithdrawOrder():
            if order.status not in IDLE:
                return []
            return [cancelled(order, 0, "cancelled before it was sent", command.by)]
        case CompleteCancel():
            return [completed(order)] if order.status in IDLE else []
        case ParkOrder():
            return _park(order, command)
        case RecordNotSent():
            if order.status is not Status.SENDING or order.attempt != command.attempt:
                return []
            return [SendAbandoned(attempt=command.attempt, code=command.code, reason=command.reason)]
        case RecordUnknown():
            if order.status is not Status.SENDING or order.attempt != command.attempt:
                return []
            return [unknown(order, command.code, command.reason)]
        case RecordEvidence():
            return _evidence(order, command)
        case ResolveOutcome():
            return _resolve(order, command)
        case RecordDeals():
            context = Context(command.point, command.broker_utc_offset_s, order_ticket=order.order_ticket)
            return record_deals(order, command.deals, context)
        case EndCounted():
            return counted(order, command.deals)
        case RecordOrderState():
            return _order_state(order, command.order, command.by)
        case RecordModified():
            return _modified(order, command)
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
                ignored=received.ignored,
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
            advice=command.advice,
        ),
    ]


def _park(order: Order, command: ParkOrder) -> list[OrderEvent]:
    if order.status not in IDLE or order.status is Status.PARKED:
        return []
    return [
        OrderParked(
            attempt=order.attempt,
            recheck_s=command.again.delay_s,
            not_before=command.again.not_before,
            reason=command.reason,
            symbol=order.symbol,
        )
    ]


def _start(order: Order, command: StartSend) -> list[OrderEvent]:
    if order.status not in IDLE or command.attempt != order.attempt + 1:
        raise InvariantViolated(
            f"order {order.order_id}: attempt {command.attempt} may not start in state {order.status.value} "
            f"after attempt {order.attempt} (invariant I1)"
        )
    return [SendStarted(attempt=command.attempt, request=command.request, before=command.before)]


# --- answers ----------------------------------------------------------------------------------------------------


def _answered(order: Order, command: RecordAnswer) -> list[OrderEvent]:
    answered = BrokerAnswered(
        attempt=command.attempt,
        result=command.result,
        retcode_name=command.retcode_name,
        verdict=command.verdict,
        description=command.description,
        latency_s=command.latency_s,
    )
    current = command.attempt == order.attempt
    if command.verdict == "success":
        if current:
            return [answered, *_succeeded(order, command, decides=True)]
        # An earlier attempt took effect after all: two may be at the broker. While nothing else is under way or has
        # come of the order, that success decides.
        detail = f"a success of attempt {command.attempt} while at attempt {order.attempt}, {order.status.value}"
        flag = AnomalyDetected(kind="late_answer", detail=detail, symbol=order.symbol)
        return [answered, flag, *_succeeded(order, command, decides=order.status in IDLE | CONCLUDED)]
    if not current:
        return [answered]  # the answer to an attempt that is over says nothing about the one that is not
    if command.verdict == "ambiguous":
        return [answered, *_without_deal(order, command)]
    if order.status not in (Status.SENDING, Status.UNKNOWN):
        return [answered]
    return [answered, _refused_by_broker(order, command)]


def _succeeded(order: Order, command: RecordAnswer, *, decides: bool) -> list[OrderEvent]:
    """What a success means depends on what was asked for."""
    result, sent = command.result, order.sent
    events: list[OrderEvent] = []
    if sent is not None and sent.action in _WITHOUT_DEAL:
        if not decides or order.status is Status.COMPLETED:
            return []
        return [*_late(order, "answer"), completed(order, result, command.retcode_name)]
    if sent is not None and sent.action == ACTION_PENDING and decides:
        if not result.order:
            return _without_deal(order, command)
        if order.status not in _HELD:
            events = [*_late(order, "order"), placed(order, result.order, result.retcode, command.retcode_name)]
        if not command.deals:
            return events
    deals = command.deals or ((provisional(order, result),) if result.deal else ())
    if not deals:
        return [*events, *_without_deal(order, command)] if decides else events
    context = Context(
        command.point,
        command.broker_utc_offset_s,
        result.retcode,
        command.retcode_name,
        result.order,
        provisional=not command.deals,
    )
    for event in events:
        order = evolve(order, event)
    dealt = record_deals(order, deals, context)
    for event in dealt:
        order = evolve(order, event)
    return [*events, *dealt, *_rest_cancelled(order, result)]


def _late(order: Order, what: str) -> list[OrderEvent]:
    """The flag of an effect that shows where none was expected any more."""
    if order.status in AT_BROKER:
        return []
    detail = f"an {what} of attempt {order.attempt} after {order.status.value}"
    return [AnomalyDetected(kind=f"late_{what}", detail=detail, symbol=order.symbol)]


def _rest_cancelled(order: Order, result: TradeResult) -> list[OrderEvent]:
    """An order that may not stand in the market ends with its answer: what was not there to be dealt is cancelled."""
    sent = order.sent
    if (
        result.retcode != RETCODE_DONE_PARTIAL
        or order.status is not Status.PARTIALLY_FILLED
        or sent is None
        or sent.type_filling not in (FILLING_IOC, FILLING_FOK)
        or order.filled_volume != result.volume
    ):
        return []
    return [cancelled(order, result.order, "the rest was not available at once")]


def _without_deal(order: Order, command: RecordAnswer) -> list[OrderEvent]:
    """An answer that names no effect leaves the outcome open, also where the attempt was taken for over: it was not.
    What we concluded stands against an ambiguous answer; a success is stronger."""
    success = command.verdict == "success" and order.status in CONCLUDED
    if order.status is not Status.SENDING and order.status not in IDLE and not success:
        return []
    reason = f"{command.retcode_name}: the answer names no deal"
    return [*_late(order, "answer"), unknown(order, command.result.retcode, reason)]


def _refused_by_broker(order: Order, command: RecordAnswer) -> OrderEvent:
    result, again = command.result, command.again
    if again is not None and command.verdict == "retriable":
        return RetryScheduled(
            attempt=command.attempt,
            delay_s=again.delay_s,
            not_before=again.not_before,
            reason=command.description,
            retcode=result.retcode,
            retcode_name=command.retcode_name,
            symbol=order.symbol,
        )
    if again is not None and command.verdict == "wait":
        return OrderParked(
            attempt=command.attempt,
            recheck_s=again.delay_s,
            not_before=again.not_before,
            reason=command.description,
            retcode=result.retcode,
            retcode_name=command.retcode_name,
            symbol=order.symbol,
        )
    return OrderRejected(
        symbol=order.symbol,
        retcode=result.retcode,
        retcode_name=command.retcode_name,
        category="fatal" if command.verdict == "fatal" else "retries_exhausted",
        description=command.description,
        attempts=command.attempt,
        retriable=command.verdict in ("retriable", "wait"),
        advice=command.advice,
    )


# --- unknown outcomes -------------------------------------------------------------------------------------------


def _evidence(order: Order, command: RecordEvidence) -> list[OrderEvent]:
    if order.status is not Status.UNKNOWN or order.attempt != command.attempt:
        return []
    match judge(order, command):
        case Dealt() as dealt:
            ticket = dealt.deals[0].order or next((one.ticket for one in (*command.orders, *command.history)), 0)
            context = Context(command.point, command.broker_utc_offset_s, order_ticket=ticket)
            events = [
                _resolved(order, command, "found", dealt.evidence, ticket),
                *record_deals(order, dealt.deals, context),
            ]
            for event in events:
                order = evolve(order, event)
            past = next((one for one in command.history if one.ticket == ticket and one.state in ENDED_STATES), None)
            # What remained when it was filled in part may have ended with it.
            return [*events, *(_order_state(order, past, "") if past is not None else [])]
        case Working() as working:
            ticket = working.order.ticket
            return [_resolved(order, command, "found", working.evidence, ticket), placed(order, ticket)]
        case Ended() as ended:
            resolved = _resolved(order, command, "found", ended.evidence, ended.order.ticket)
            return [resolved, *ended_at_broker(order, ended.order)]
        case Done() as done:
            return [_resolved(order, command, "found", done.evidence), completed(order)]
        case Absent() as absent:
            resolved = _resolved(order, command, "absent", absent.evidence)
            if absent.final:
                return [resolved, failed(order, absent.final)]
            if command.again is not None:
                again = RetryScheduled(
                    attempt=order.attempt,
                    delay_s=command.again.delay_s,
                    not_before=command.again.not_before,
                    reason="proven absent at the broker",
                    symbol=order.symbol,
                )
                return [resolved, again]
            return [
                resolved,
                failed(order, "the request did not reach the broker: proven by its absence there"),
            ]
        case Superseded() as superseded:
            resolved = _resolved(order, command, "superseded", superseded.evidence)
            return [
                resolved,
                failed(order, f"{superseded.evidence}: the request has no object any more", "unknown"),
            ]
        case Inconclusive() as open_:
            probed = OutcomeProbed(
                attempt=command.attempt,
                complete=command.complete,
                found=open_.found,
                reason=open_.reason,
                settled=command.complete and command.settled,
            )
            return [] if probed == order.probed else [probed, *_unresolved(order, probed)]


def _unresolved(order: Order, probed: OutcomeProbed) -> list[OrderEvent]:
    """The alert that an outcome stays unknown although nothing can arrive any more: once for each attempt."""
    if not probed.settled or order.alerted_attempt == order.attempt:
        return []
    detail = f"attempt {order.attempt}: {probed.reason or 'what the broker shows decides nothing'}"
    return [AnomalyDetected(kind=UNRESOLVED, detail=detail, symbol=order.symbol)]


def _resolved(
    order: Order, command: RecordEvidence, resolution: str, evidence: str, ticket: int = 0
) -> OutcomeResolved:
    return OutcomeResolved(
        attempt=order.attempt,
        resolution=resolution,
        by="probe",
        evidence=evidence,
        order_ticket=ticket,
        symbol=order.symbol,
        orders=command.orders[:MAX_EVIDENCE],
        history=(*command.history, *([command.target_history] if command.target_history else ()))[:MAX_EVIDENCE],
        positions=command.positions[:MAX_EVIDENCE],
        deals=(*command.deals, *command.target_deals)[:MAX_EVIDENCE],
    )


def _resolve(order: Order, command: ResolveOutcome) -> list[OrderEvent]:
    """An operator's word, where evidence cannot decide. What shows later is recorded all the same."""
    if order.status is not Status.UNKNOWN:
        return []
    resolved = OutcomeResolved(
        attempt=order.attempt,
        resolution=command.resolution,
        by="operator",
        evidence=command.reason,
        order_ticket=command.order_ticket,
        symbol=order.symbol,
    )
    if command.resolution != "found":
        category = "fatal" if command.resolution == "absent" else "unknown"
        return [
            resolved,
            failed(order, f"{command.resolution}, by an operator's word: {command.reason}", category),
        ]
    if order.sent is not None and order.sent.action in _WITHOUT_DEAL:
        return [resolved, completed(order)]
    return [resolved, placed(order, command.order_ticket)]


# --- what the broker shows later --------------------------------------------------------------------------------


def _order_state(order: Order, shown: BrokerOrder, by: str) -> list[OrderEvent]:
    """The broker's order, working or ended, compared with what we hold of it."""
    if shown.state in WORKING_STATES:
        # While it is being sent the answer tells, or the probe.
        if order.status in WORKING:
            return _changed_terms(order, shown, by)
        if order.status in _HELD or order.status in AT_BROKER:
            return []
        return [*_late(order, "order"), placed(order, shown.ticket), *_changed_terms(order, shown, by)]
    if order.status not in WORKING:
        return []
    if plain(shown.volume_initial - shown.volume_current) > order.filled_volume:
        return []  # its deals come first
    return ended_at_broker(order, shown, by)


def _changed_terms(order: Order, shown: BrokerOrder, by: str) -> list[OrderEvent]:
    terms = Terms(
        plain(shown.price_open), plain(shown.price_stoplimit), plain(shown.sl), plain(shown.tp), shown.time_expiration
    )
    if terms == order.terms:
        return []
    return [
        OrderModified(
            symbol=order.symbol,
            order_ticket=shown.ticket,
            price=terms.price,
            stop_limit_price=terms.stop_limit_price,
            sl=terms.sl,
            tp=terms.tp,
            expiration=terms.expiration,
            by=by,
        )
    ]


def _modified(order: Order, command: RecordModified) -> list[OrderEvent]:
    sl, tp = plain(command.position.sl), plain(command.position.tp)
    if (sl, tp) == (order.terms.sl, order.terms.tp):
        return []
    symbol = command.position.symbol or order.symbol
    return [OrderModified(symbol=symbol, position_id=command.position.identifier, sl=sl, tp=tp, by=command.by)]
