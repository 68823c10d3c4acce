"""What ends or holds up an order before it is sent, and the alert about an outcome that stays unknown."""

import pytest

from ledger.commands import CompleteCancel, ParkOrder, WithdrawOrder
from ledger.order import UNRESOLVED, Status
from ledger.order_events import (
    AnomalyDetected,
    OrderCancelled,
    OrderFilled,
    OrderParked,
    OutcomeProbed,
    RequestCompleted,
)
from tests.decider import (
    D,
    again,
    answer,
    broker_order,
    cancel_request,
    deal,
    evidence,
    filled,
    given,
    lost,
    ready,
    receive,
    requested,
    sending,
    start,
    unknown,
)

WITHDRAW = WithdrawOrder(by="cancel-1")
OFFLINE = ParkOrder(reason="not connected to the broker", again=again(3))
BY_ORDER = receive(action="cancel", symbol=None, order_type=None, volume=None, target_order_id="o-9")


@pytest.mark.parametrize("before", [requested, ready], ids=["requested", "ready"])
def test_an_order_that_was_not_sent_is_withdrawn_without_the_broker(before):
    gone = given(*before).when(WITHDRAW)
    order = gone.order
    gone.then(
        OrderCancelled(
            symbol=order.symbol,
            order_ticket=0,
            filled_volume=D(0),
            remaining_volume=order.remaining,
            reason="cancelled before it was sent",
            by="cancel-1",
        )
    )
    assert order.status is Status.CANCELLED


@pytest.mark.parametrize("before", [sending, lost, filled], ids=["sending", "unknown", "filled"])
@pytest.mark.parametrize("command", [WITHDRAW, OFFLINE, CompleteCancel()], ids=["withdraw", "park", "complete"])
def test_what_may_be_at_the_broker_is_neither_withdrawn_nor_parked_nor_completed(before, command):
    given(*before).when(command).then_nothing()


@pytest.mark.parametrize("request_", [cancel_request, BY_ORDER], ids=["by ticket", "by order"])
def test_a_cancel_of_what_was_never_sent_is_complete(request_):
    done = given(request_).when(CompleteCancel())
    event = done.the(RequestCompleted)
    assert (event.action, event.target_order_id) == ("cancel", done.order.request.target_order_id or "")
    assert (event.order_ticket, event.position_id) == (0, 0)  # nothing was sent that names one
    assert done.order.status is Status.COMPLETED


def test_an_order_that_cannot_be_sent_now_is_parked_once_and_says_why():
    held = given(*ready).when(OFFLINE)
    held.then(
        OrderParked(
            attempt=0,
            recheck_s=D(3),
            not_before=again(3).not_before,
            reason="not connected to the broker",
            symbol="EURUSD",
        )
    )
    assert held.order.status is Status.PARKED
    given(*ready, OFFLINE).when(OFFLINE).then_nothing()


UNDECIDED = {"history": (broker_order(900, 4),)}  # filled, it says, and shows no deal
ALERT = AnomalyDetected(
    kind=UNRESOLVED, detail="attempt 1: what the broker shows decides nothing", symbol=given(*lost).order.symbol
)


def test_an_outcome_that_stays_unknown_is_alerted_when_nothing_can_arrive_any_more():
    given(*lost).when(evidence(**UNDECIDED)).then(OutcomeProbed, ALERT)
    given(*lost).when(evidence(settled=False, **UNDECIDED)).then(OutcomeProbed)
    given(*lost).when(evidence(complete=False, **UNDECIDED)).then(OutcomeProbed)


def test_the_alert_says_what_speaks_against_the_evidence():
    reason = "the history cannot be read"
    told = given(*lost).when(evidence(reason=reason, **UNDECIDED)).the(AnomalyDetected)
    probed = given(*lost).when(evidence(reason=reason, **UNDECIDED)).the(OutcomeProbed)
    assert told.detail == f"attempt 1: {probed.reason or 'what the broker shows decides nothing'}"


def test_it_is_alerted_once_for_each_attempt():
    given(*lost, evidence(**UNDECIDED)).when(evidence(**UNDECIDED)).then_nothing()
    less = (*lost, evidence(**UNDECIDED), evidence(complete=False, settled=False, reason="no history"))
    given(*less).when(evidence(**UNDECIDED)).then(OutcomeProbed)
    again_lost = (*lost, evidence(**UNDECIDED), evidence(again=again()), start(2), unknown(2))
    assert given(*again_lost).when(evidence(attempt=2, **UNDECIDED)).the(AnomalyDetected).detail.startswith("attempt 2")


def test_a_fill_tells_the_order_its_position():
    done = given(*sending).when(answer("success", deal(position_id=700)))
    assert (done.the(OrderFilled).position_id, done.order.position_id) == (700, 700)
