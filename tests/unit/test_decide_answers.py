"""What an answer of the broker makes of an order: success, no, not now, and nothing that settles it."""

import msgspec
import pytest

from ledger.commands import ExpireOrder, RefuseOrder
from ledger.order import Status
from ledger.order_events import (
    AnomalyDetected,
    BrokerAnswered,
    OrderCancelled,
    OrderFilled,
    OrderParked,
    OrderPartiallyFilled,
    OrderPlaced,
    OrderRejected,
    OutcomeUnknown,
    RequestCompleted,
    RetryScheduled,
)
from ledger.trade import ACTION_SLTP, FILLING_FOK, FILLING_IOC, FILLING_RETURN, TargetImage
from tests.decider import (
    D,
    abandoned,
    again,
    answer,
    cancel_request,
    cancel_sent,
    cancelled,
    check,
    deal,
    expired,
    filled,
    given,
    limit_filled,
    limit_lost,
    limit_order,
    limit_partly,
    limit_sending,
    limit_sent,
    lost,
    modify_request,
    modify_sent,
    not_sent,
    parked,
    partly,
    placed,
    position,
    proven_absent,
    ready,
    receive,
    rejected,
    sending,
    start,
    stops_lost,
    stops_sending,
    unknown,
    waiting,
)

VERDICTS = ["success", "ambiguous", "retriable", "wait", "fatal"]
REFUSE = RefuseOrder(reasons=("halted",))
EXPIRE = ExpireOrder(age_s=D(301), limit_s=D(300), cause="life")
second = (*abandoned, start(2))
limit_second = msgspec.structs.replace(limit_sent, attempt=2)
stops_second = msgspec.structs.replace(stops_sending[-1], attempt=2)


def test_an_answer_is_recorded_in_full():
    given(*sending).when(answer("fatal", order=901, comment="no money")).then(
        BrokerAnswered(
            attempt=1,
            result=answer("fatal", order=901, comment="no money").result,
            retcode_name="RETCODE_10019",
            verdict="fatal",
            description="as the broker put it",
            latency_s=D("0.0016"),
        ),
        OrderRejected,
    ).and_order(answer_retcode=10019, answer_name="RETCODE_10019", order_ticket=901)


@pytest.mark.parametrize("verdict", ["success", "ambiguous"])
def test_an_answer_that_settles_nothing_is_unknown_and_not_rejected(verdict):
    retcode = answer(verdict).result.retcode
    given(*sending).when(answer(verdict)).then(
        BrokerAnswered,
        OutcomeUnknown(attempt=1, code=retcode, reason=f"RETCODE_{retcode}: the answer names no deal", symbol="EURUSD"),
    ).and_order(status=Status.UNKNOWN)


# --- no, and not now --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("past", [sending, lost])
@pytest.mark.parametrize(
    ("verdict", "category", "retriable"),
    [("fatal", "fatal", False), ("retriable", "retries_exhausted", True), ("wait", "retries_exhausted", True)],
)
def test_a_no_of_the_broker_ends_the_order_when_no_other_attempt_is_allowed(past, verdict, category, retriable):
    retcode = answer(verdict).result.retcode
    given(*past).when(answer(verdict)).then(
        BrokerAnswered,
        OrderRejected(
            symbol="EURUSD",
            retcode=retcode,
            retcode_name=f"RETCODE_{retcode}",
            category=category,
            description="as the broker put it",
            attempts=1,
            retriable=retriable,
            advice="what to do",
        ),
    ).and_order(status=Status.REJECTED)


@pytest.mark.parametrize("past", [sending, lost])
def test_a_no_that_may_pass_schedules_another_attempt(past):
    given(*past).when(answer("retriable", again=again(2.5))).then(
        BrokerAnswered,
        RetryScheduled(
            attempt=1,
            delay_s=D("2.5"),
            not_before=again(2.5).not_before,
            reason="as the broker put it",
            retcode=10004,
            retcode_name="RETCODE_10004",
            symbol="EURUSD",
        ),
    ).and_order(status=Status.WAITING, retries=1, delay_s=D("2.5"), not_before=again(2.5).not_before, unreached=0)


@pytest.mark.parametrize("past", [sending, lost])
def test_a_market_that_is_closed_parks_the_order(past):
    given(*past).when(answer("wait", again=again(5))).then(
        BrokerAnswered,
        OrderParked(
            attempt=1,
            recheck_s=D(5),
            not_before=again(5).not_before,
            reason="as the broker put it",
            retcode=10018,
            retcode_name="RETCODE_10018",
            symbol="EURUSD",
        ),
    ).and_order(status=Status.PARKED, retries=0, delay_s=D(5), not_before=again(5).not_before)


def test_a_fatal_no_is_final_although_another_attempt_would_be_allowed():
    given(*sending).when(answer("fatal", again=again())).then(BrokerAnswered, OrderRejected)


def test_retries_and_parkings_are_counted_apart():
    given(*sending).when(
        answer("retriable", again=again()),
        start(2),
        answer("wait", attempt=2, again=again()),
        start(3),
        answer("retriable", attempt=3, again=again()),
    ).and_order(status=Status.WAITING, attempt=3, retries=2)


# --- a pending order --------------------------------------------------------------------------------------------


def test_a_pending_order_is_placed_under_its_ticket():
    after = given(*limit_sending).when(answer("success"))
    after.then(
        BrokerAnswered,
        OrderPlaced(
            symbol="EURUSD",
            side="buy",
            order_ticket=900,
            order_type="buy_limit",
            volume=D("0.3"),
            price=D("1.05"),
            attempts=1,
            retcode=10009,
            retcode_name="RETCODE_10009",
        ),
    ).and_order(status=Status.PLACED, order_ticket=900, is_open=True)


def test_a_placed_order_tells_all_its_terms():
    sent = start(1, action=5, type=7, price=D("1.05"), stoplimit=D("1.04"), sl=D("1.1"), tp=D("0.9"))
    stop_limit = receive(order_type="sell_stop_limit", price="1.05", stop_limit_price="1.04")
    shown = given(stop_limit, sent).when(answer("success")).the(OrderPlaced)
    assert (shown.side, shown.order_type) == ("sell", "sell_stop_limit")
    assert (shown.price, shown.stop_limit_price, shown.sl, shown.tp) == (D("1.05"), D("1.04"), D("1.1"), D("0.9"))


def test_a_placed_order_has_the_volume_it_was_sent_with_and_its_attempt():
    capped = start(2, action=5, type=2, volume=D("0.2"), price=D("1.05"))
    shown = given(*limit_sending, not_sent(), capped).when(answer("success", attempt=2)).the(OrderPlaced)
    assert (shown.volume, shown.attempts) == (D("0.2"), 2)


def test_a_placed_order_of_a_type_nobody_knows_has_none():
    odd = given(limit_order, start(1, action=5, type=9)).when(answer("success"))
    assert odd.the(OrderPlaced).order_type == ""


def test_a_pending_order_that_dealt_at_once_is_placed_and_filled():
    given(*limit_sending).when(answer("success", deal(price=D("1.05")))).then(
        BrokerAnswered, OrderPlaced, OrderFilled
    ).and_order(status=Status.FILLED)


def test_a_pending_order_whose_success_names_no_order_is_unknown():
    given(*limit_sending).when(answer("success", order=0)).then(BrokerAnswered, OutcomeUnknown)
    given(*limit_sending).when(answer("success", order=0, deal=55)).then(BrokerAnswered, OutcomeUnknown)


@pytest.mark.parametrize("past", [placed, limit_partly, limit_filled, cancelled, expired])
def test_that_an_order_the_broker_has_or_had_was_placed_is_no_news(past):
    status = given(*past).order.status
    given(*past).when(answer("success")).then(BrokerAnswered).and_order(status=status)


# --- requests that make no deal ---------------------------------------------------------------------------------


def test_changed_stops_complete_the_request_on_the_position():
    given(*stops_sending).when(answer("success")).then(
        BrokerAnswered,
        RequestCompleted(
            symbol="EURUSD",
            action="modify",
            position_id=700,
            attempts=1,
            retcode=10009,
            retcode_name="RETCODE_10009",
        ),
    ).and_order(status=Status.COMPLETED, is_open=False)


@pytest.mark.parametrize(
    ("request_", "sent", "action"), [(cancel_request, cancel_sent, "cancel"), (modify_request, modify_sent, "modify")]
)
def test_a_request_on_a_pending_order_completes_on_that_order(request_, sent, action):
    done = given(request_, sent).when(answer("success")).the(RequestCompleted)
    assert (done.action, done.order_ticket, done.position_id, done.target_order_id) == (action, 800, 0, "")


def test_a_completed_request_names_the_lasting_key_of_its_position_and_its_attempt():
    reversed_ = TargetImage(position=position(700, ticket=77))
    sent = start(2, action=ACTION_SLTP, position=77, before=reversed_)
    done = given(*stops_sending, not_sent(), sent).when(answer("success", attempt=2)).the(RequestCompleted)
    assert (done.position_id, done.attempts) == (700, 2)


def test_a_completed_request_names_the_order_it_was_asked_for():
    by_order = receive(action="modify", symbol=None, order_type=None, volume=None, target_order_id="ord_0", sl="1.01")
    sent = start(1, action=ACTION_SLTP, position=699, volume=D(0), sl=D("1.01"))
    done = given(by_order, sent).when(answer("success")).the(RequestCompleted)
    assert (done.target_order_id, done.position_id) == ("ord_0", 699)


def test_a_success_told_twice_completes_once():
    given(*stops_sending).when(answer("success"), answer("success")).then(
        BrokerAnswered, RequestCompleted, BrokerAnswered
    )
    given(*stops_lost).when(answer("success")).then(BrokerAnswered, RequestCompleted)


# --- partial fills ----------------------------------------------------------------------------------------------


def filling(mode: int) -> tuple:
    return (*ready, start(1, type_filling=mode))


@pytest.mark.parametrize("mode", [FILLING_FOK, FILLING_IOC])
def test_the_rest_of_a_partial_fill_is_cancelled_where_it_may_not_stand(mode):
    given(*filling(mode)).when(answer("success", deal(volume="0.1"), retcode=10010, volume=D("0.1"))).then(
        BrokerAnswered,
        OrderPartiallyFilled,
        OrderCancelled(
            symbol="EURUSD",
            order_ticket=900,
            filled_volume=D("0.1"),
            remaining_volume=D("0.2"),
            reason="the rest was not available at once",
        ),
    ).and_order(status=Status.CANCELLED, is_open=False, remaining=D("0.2"))


def test_the_cancelled_rest_is_that_of_the_order_in_the_answer_or_else_of_the_deal():
    for named, ticket in ((900, 900), (0, 901)):
        partial = answer("success", deal(volume="0.1", order=901), retcode=10010, order=named, volume=D("0.1"))
        assert given(*filling(FILLING_IOC)).when(partial).the(OrderCancelled).order_ticket == ticket


@pytest.mark.parametrize(
    ("mode", "retcode", "told", "dealt"),
    [
        (FILLING_RETURN, 10010, "0.1", "0.1"),  # the rest stands in the market
        (FILLING_IOC, 10009, "0.1", "0.1"),  # the answer does not say that it is all
        (FILLING_IOC, 10010, "0.2", "0.1"),  # a deal is still to show
        (FILLING_IOC, 10010, "0.3", "0.3"),  # nothing is left
    ],
)
def test_a_rest_is_not_taken_for_cancelled_without_need(mode, retcode, told, dealt):
    after = given(*filling(mode)).when(answer("success", deal(volume=dealt), retcode=retcode, volume=D(told)))
    assert not [event for event in after.events if isinstance(event, OrderCancelled)]


# --- answers that come late -------------------------------------------------------------------------------------


def test_the_answer_that_comes_after_the_deadline_settles_the_unknown():
    given(*lost).when(answer("success", deal())).then(BrokerAnswered, OrderFilled).and_order(status=Status.FILLED)
    given(*lost).when(answer("success")).then(BrokerAnswered).and_order(status=Status.UNKNOWN)
    given(*limit_lost).when(answer("success")).then(BrokerAnswered, OrderPlaced).and_order(status=Status.PLACED)


@pytest.mark.parametrize("verdict", ["ambiguous", "retriable", "wait", "fatal"])
@pytest.mark.parametrize("past", [filled, rejected, proven_absent, placed, cancelled])
def test_an_answer_that_is_no_success_changes_no_order_that_has_ended_or_works(past, verdict):
    status = given(*past).order.status
    given(*past).when(answer(verdict, again=again())).then(BrokerAnswered).and_order(status=status)


@pytest.mark.parametrize("verdict", ["retriable", "wait", "fatal"])
@pytest.mark.parametrize("past", [abandoned, waiting, parked])
def test_a_late_no_leaves_the_order_to_its_next_attempt(past, verdict):
    status = given(*past).order.status
    given(*past).when(answer(verdict, again=again())).then(BrokerAnswered).and_order(status=status)


@pytest.mark.parametrize(
    "past", [(limit_order, check(), limit_sent, *news) for news in [(not_sent(),), (answer("fatal"),)]]
)
def test_a_late_success_of_a_pending_order_says_that_it_works_and_is_flagged(past):
    name = given(*past).order.status.value
    given(*past).when(answer("success")).then(
        BrokerAnswered,
        AnomalyDetected(kind="late_order", detail=f"an order of attempt 1 after {name}", symbol="EURUSD"),
        OrderPlaced,
    ).and_order(status=Status.PLACED)


@pytest.mark.parametrize(
    ("past", "verdict"),
    [
        (abandoned, "success"),
        (abandoned, "ambiguous"),
        (waiting, "success"),
        (waiting, "ambiguous"),
        (parked, "success"),
        (parked, "ambiguous"),
        (rejected, "success"),
        (proven_absent, "success"),
        ((*abandoned, REFUSE), "success"),
        ((*abandoned, EXPIRE), "success"),
    ],
)
def test_a_late_answer_that_names_no_deal_makes_the_outcome_unknown_and_is_flagged(past, verdict):
    late = given(*past)
    name = late.order.status.value
    late.when(answer(verdict, attempt=1)).then(
        BrokerAnswered,
        AnomalyDetected(kind="late_answer", detail=f"an answer of attempt 1 after {name}", symbol="EURUSD"),
        OutcomeUnknown,
    ).and_order(status=Status.UNKNOWN, is_open=True)
    late.when(start(2)).then_violates("invariant I1")


@pytest.mark.parametrize("past", [filled, partly, cancelled, expired])
def test_a_success_told_again_of_what_the_broker_had_changes_nothing(past):
    status = given(*past).order.status
    given(*past).when(answer("success")).then(BrokerAnswered).and_order(status=status)


@pytest.mark.parametrize("news", [not_sent(), answer("fatal"), answer("retriable", again=again())])
def test_a_late_success_of_a_request_without_a_deal_completes_it_and_is_flagged(news):
    late = given(*stops_sending, news)
    name = late.order.status.value
    late.when(answer("success")).then(
        BrokerAnswered,
        AnomalyDetected(kind="late_answer", detail=f"an answer of attempt 1 after {name}", symbol="EURUSD"),
        RequestCompleted,
    ).and_order(status=Status.COMPLETED)


@pytest.mark.parametrize("verdict", ["ambiguous", "retriable", "wait", "fatal"])
def test_an_answer_to_an_earlier_attempt_does_not_decide_over_the_current_one(verdict):
    given(*second).when(answer(verdict, attempt=1)).then(BrokerAnswered).and_order(status=Status.SENDING, attempt=2)
    given(*second, unknown(2)).when(answer(verdict, attempt=1)).then(BrokerAnswered).and_order(status=Status.UNKNOWN)


def test_a_success_of_an_earlier_attempt_is_flagged_and_leaves_the_current_one_open():
    flag = AnomalyDetected(
        kind="late_answer", detail="a success of attempt 1 while at attempt 2, sending", symbol="EURUSD"
    )
    given(*second).when(answer("success")).then(BrokerAnswered, flag).and_order(status=Status.SENDING, attempt=2)
    given(*second, unknown(2)).when(answer("success")).then(BrokerAnswered, AnomalyDetected).and_order(
        status=Status.UNKNOWN
    )
    given(*second).when(answer("success", deal())).then(BrokerAnswered, flag, OrderFilled).and_order(
        status=Status.FILLED
    )
    pending = (*limit_sending, not_sent(), limit_second, unknown(2))
    given(*pending).when(answer("success")).then(BrokerAnswered, AnomalyDetected).and_order(status=Status.UNKNOWN)
    stops = (*stops_sending, not_sent(), stops_second)
    given(*stops).when(answer("success")).then(BrokerAnswered, AnomalyDetected).and_order(status=Status.SENDING)


def test_a_deal_named_late_is_on_the_side_that_was_sent():
    sold = receive(order_type="sell_limit", price="1.05")
    sent = start(1, action=5, type=3, price=D("1.05"))
    pending = (sold, sent, not_sent(), msgspec.structs.replace(sent, attempt=2))
    late = given(*pending).when(answer("success", deal=55, price=D("1.05")))
    late.then(BrokerAnswered, AnomalyDetected, OrderFilled)
    assert late.the(OrderFilled).side == "sell"


def test_a_success_of_an_order_that_was_never_sent_is_believed_and_flagged():
    never = given(*ready).when(answer("success", deal=55, order=901))
    never.then(BrokerAnswered, AnomalyDetected, AnomalyDetected, OrderFilled).and_order(status=Status.FILLED)
    fill = never.the(OrderFilled)
    assert (fill.side, fill.position_id, fill.order_ticket) == ("buy", 901, 901)


@pytest.mark.parametrize("end", [not_sent(2), answer("fatal", attempt=2)])
def test_a_success_of_an_earlier_attempt_decides_when_nothing_else_is_under_way(end):
    over = (*second, end)
    given(*over).when(answer("success")).and_order(status=Status.UNKNOWN)
    pending = (*limit_sending, not_sent(), limit_second, end)
    given(*pending).when(answer("success")).and_order(status=Status.PLACED, order_ticket=900)
    stops = (*stops_sending, not_sent(), stops_second, end)
    given(*stops).when(answer("success")).and_order(status=Status.COMPLETED)


def test_news_of_an_attempt_that_is_not_under_way_says_nothing():
    for past in (ready, lost, filled, placed, waiting, second):
        given(*past).when(not_sent(1), unknown(1), not_sent(3), unknown(3)).then_nothing()
