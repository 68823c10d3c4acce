from datetime import timedelta
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st

from ledger.commands import ExpireOrder, GiveUp, RecordCheck, RefuseOrder
from ledger.decide import decide
from ledger.errors import InvariantViolated
from ledger.order import ENDED, Order, Status, evolve
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
from ledger.trade import TYPE_SELL, Position
from tests.decider import (
    NOW,
    ORDER_ID,
    answer,
    broker_order,
    check,
    deal,
    evidence,
    given,
    message,
    not_sent,
    receive,
    replayed,
    start,
    unknown,
)

ready = (receive(), check())
sending = (*ready, start(1))
lost = (*sending, unknown())
filled = (*sending, answer("success", deal()))


# --- arriving ---------------------------------------------------------------------------------------------------


def test_a_new_order_is_recorded_with_its_raw_bytes():
    order = receive(account="5001")
    given().when(order).then(
        OrderRequested(
            request=order.received.request,
            content=order.received.content,
            raw=order.received.raw,
            symbol="EURUSD",
            age_from=NOW,
        )
    ).and_order(status=Status.REQUESTED, is_open=True, volume=Decimal("0.3"), version=1)


def test_a_malformed_order_is_recorded_and_refused_with_every_reason():
    bad = receive(volume="NaN", symbol="E U")
    after = given().when(bad)
    after.then(
        OrderRequested(
            request=None,
            content=bad.received.raw.sha256,
            raw=bad.received.raw,
            symbol="E U",
            age_from=NOW,
            accepted=False,
        ),
        OrderRefused(reasons=bad.received.reasons, category="malformed", symbol="E U"),
    ).and_order(status=Status.REFUSED, is_open=False, volume=0)
    assert len(bad.received.reasons) == 2


def test_an_order_we_do_not_allow_is_recorded_and_refused():
    given().when(receive(action="close")).then(OrderRequested, OrderRefused).and_order(status=Status.REFUSED)


@pytest.mark.parametrize(
    ("past", "standing_version", "standing_topic", "status"),
    [
        ((receive(),), 1, "order.requested", "requested"),
        (sending, 1, "order.requested", "sending"),
        (lost, 4, "order.outcome_unknown", "unknown"),
        (filled, 5, "order.filled", "filled"),
        ((receive(), RefuseOrder(reasons=("halted",))), 2, "order.refused", "refused"),
    ],
)
def test_the_same_order_again_is_a_duplicate_that_names_the_standing_outcome(
    past, standing_version, standing_topic, status
):
    given(*past).when(receive(volume=0.3, comment="again")).then(
        DuplicateReceived(number=1, standing_version=standing_version, standing_topic=standing_topic, status=status)
    ).and_order(duplicates=1, status=status)


def test_the_same_order_id_with_other_content_is_a_conflict_and_changes_nothing():
    other = receive(volume="0.4")
    given(*filled).when(other).then(
        ConflictReceived(content=other.received.content, raw=other.received.raw, symbol="EURUSD")
    ).and_order(conflicts=1, status=Status.FILLED, volume=Decimal("0.3"))


def test_a_malformed_message_with_a_known_order_id_is_a_conflict_with_its_reasons():
    bad = receive(volume="NaN")
    after = given(receive()).when(bad).then(ConflictReceived)
    assert after.events[0].reasons == bad.received.reasons


def test_the_same_malformed_bytes_again_are_a_duplicate():
    bad = message(volume="NaN")
    given(receive(bad)).when(receive(bad)).then(DuplicateReceived).and_order(status=Status.REFUSED)


def recorded_of(repeats: int, **changes) -> list[int]:
    """Which of so many repetitions were recorded; the caller counts those that were not."""
    order = given(receive()).order
    recorded, unrecorded = [], 0
    for number in range(1, repeats + 1):
        events = decide(order, receive(unrecorded=unrecorded, **changes))
        unrecorded = 0 if events else unrecorded + 1
        for event in events:
            order = evolve(order, event)
            recorded.append(number)
    return recorded


def test_duplicates_are_recorded_one_by_one_up_to_20_then_every_hundredth_with_its_number():
    assert recorded_of(350) == [*range(1, 21), 100, 200, 300]
    given(receive(), *[receive()] * 20).when(receive(unrecorded=79)).then(
        DuplicateReceived(number=100, standing_version=1, standing_topic="order.requested", status="requested")
    ).and_order(duplicates=100)


def test_conflicts_are_recorded_one_by_one_up_to_20_then_rarely():
    recorded = recorded_of(1_000, volume="0.4")
    assert recorded[:20] == list(range(1, 21))
    assert 5 <= len(recorded) - 20 <= 15


# --- before the broker ------------------------------------------------------------------------------------------


def test_a_passed_check_makes_the_order_ready():
    given(receive()).when(check()).then(OrderChecked).and_order(status=Status.READY)


def test_a_failed_check_rejects_the_order_without_an_attempt():
    given(receive()).when(check(passed=False, retcode=10019)).then(
        OrderChecked,
        OrderRejected(
            symbol="EURUSD", retcode=10019, retcode_name="RETCODE_10019", category="fatal", description="", attempts=0
        ),
    ).and_order(status=Status.REJECTED)


def test_a_check_that_could_not_be_made_stops_nothing():
    unasked = RecordCheck(result=None, passed=False, problem="no reply")
    given(receive()).when(unasked).then(OrderChecked(passed=False, problem="no reply")).and_order(status=Status.READY)


def test_an_intent_is_the_request_as_it_will_be_sent():
    given(*ready).when(start(1)).then(SendStarted(attempt=1, request=start(1).request)).and_order(
        status=Status.SENDING, attempt=1, sent=start(1).request
    )


@pytest.mark.parametrize("past", [(receive(),), ready, (*sending, not_sent())])
def test_what_is_not_at_the_broker_can_be_refused_expired_or_given_up(past):
    attempts = given(*past).order.attempt
    refused, stale = RefuseOrder(reasons=("halted",)), ExpireOrder(age_s=Decimal(31), limit_s=Decimal(30), cause="age")
    given(*past).when(refused).then(OrderRefused(reasons=("halted",), category="refused", symbol="EURUSD"))
    given(*past).when(stale).then(OrderStale(age_s=Decimal(31), limit_s=Decimal(30), symbol="EURUSD"))
    given(*past).when(GiveUp(reason="enough")).then(
        OrderFailed(symbol="EURUSD", category="fatal", reason="enough", attempts=attempts)
    )
    for command, status in ((refused, "refused"), (stale, "stale"), (GiveUp(reason="enough"), "failed")):
        given(*past).when(command).and_order(status=status, is_open=False)


@pytest.mark.parametrize("past", [sending, lost, filled, (*sending, answer("fatal"))])
def test_what_may_be_at_the_broker_cannot_be_refused_expired_given_up_or_checked(past):
    for command in (
        RefuseOrder(reasons=("halted",)),
        ExpireOrder(age_s=Decimal(31), limit_s=Decimal(30), cause="age"),
        GiveUp(reason="enough"),
        check(),
        check(passed=False, retcode=10019),
    ):
        given(*past).when(command).then_nothing()


# --- one attempt at a time (invariant I1) -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("past", "attempt"),
    [
        ((), 1),
        (sending, 2),
        (lost, 2),
        (filled, 2),
        ((*sending, answer("success", deal(volume="0.1"))), 2),
        ((*sending, answer("fatal")), 2),
        ((receive(), RefuseOrder(reasons=("no",))), 1),
        (ready, 2),
        (ready, 0),
        ((*sending, not_sent()), 1),
        ((*sending, not_sent()), 3),
    ],
)
def test_a_send_that_is_not_the_next_of_a_waiting_order_violates_i1(past, attempt):
    if attempt:
        given(*past).when(start(attempt)).then_violates("invariant I1")
    else:
        given(*past).when(msgspec.structs.replace(start(1), attempt=0)).then_violates("invariant I1")


def test_an_attempt_that_provably_was_not_sent_lets_the_next_begin():
    given(*sending).when(not_sent(), start(2)).then(
        SendAbandoned(attempt=1, code=-10005, reason="no connection"), SendStarted
    ).and_order(status=Status.SENDING, attempt=2)


# --- answers ----------------------------------------------------------------------------------------------------


def test_a_deal_that_fills_the_order_ends_it():
    after = given(*sending).when(answer("success", deal(7, order=901, commission=Decimal("-0.70"))))
    after.then(BrokerAnswered, OrderFilled).and_order(
        status=Status.FILLED, is_open=False, deals=(7,), order_ticket=901, filled_volume=Decimal("0.3"), remaining=0
    )
    fill = after.events[1]
    assert (fill.deal, fill.side, fill.volume, fill.remaining_volume) == (7, "buy", Decimal("0.3"), 0)
    assert (fill.commission, fill.provisional, fill.raw.ticket, fill.retcode) == (Decimal("-0.7"), False, 7, 10009)


def test_deals_fill_the_order_one_after_the_other():
    after = given(*sending).when(answer("success", deal(1, "0.1"), deal(2, "0.20")))
    after.then(BrokerAnswered, OrderPartiallyFilled, OrderFilled).and_order(status=Status.FILLED, deals=(1, 2))
    assert [(str(one.filled_volume), str(one.remaining_volume)) for one in after.events[1:]] == [
        ("0.1", "0.2"),
        ("0.3", "0"),
    ]


def test_a_fill_that_leaves_volume_open_leaves_the_order_open():
    given(*sending).when(answer("success", deal(1, "0.1"))).then(BrokerAnswered, OrderPartiallyFilled).and_order(
        status=Status.PARTIALLY_FILLED, remaining=Decimal("0.2"), is_open=True
    )


def test_a_deal_is_counted_once_however_often_it_is_told():
    partly = (*sending, answer("success", deal(1, "0.1")))
    given(*partly).when(answer("success", deal(1, "0.1"))).then(BrokerAnswered)
    given(*partly).when(answer("success", deal(1, "0.1"), deal(2, "0.2"), deal(2, "0.2"))).then(
        BrokerAnswered, OrderFilled
    ).and_order(deals=(1, 2), filled_volume=Decimal("0.3"))


def test_an_answer_that_names_a_deal_nobody_can_see_yet_is_a_provisional_fill():
    after = given(*sending).when(answer("success", deal=55, order=900, volume=Decimal("0.3"), price=Decimal("1.2")))
    after.then(BrokerAnswered, OrderFilled).and_order(status=Status.FILLED, deals=(55,))
    fill = after.events[1]
    assert (fill.provisional, fill.raw, fill.price, fill.side) == (True, None, Decimal("1.2"), "buy")


def test_a_provisional_fill_without_a_volume_counts_as_the_whole_order():
    given(*sending).when(answer("success", deal=55)).then(BrokerAnswered, OrderFilled).and_order(
        filled_volume=Decimal("0.3")
    )


def test_a_broker_time_is_told_as_utc_beside_the_raw_wall_clock():
    at = answer("success", deal(time_msc=1_772_373_600_123))
    fill = given(*sending).when(msgspec.structs.replace(at, broker_utc_offset_s=7200)).events[1]
    assert fill.broker_time_msc == 1_772_373_600_123
    assert fill.broker_time == NOW + timedelta(milliseconds=123)


@pytest.mark.parametrize("time_msc", [2**63 - 1, -(2**63)])
def test_a_broker_time_beyond_all_calendars_is_kept_and_not_interpreted(time_msc):
    fill = given(*sending).when(answer("success", deal(time_msc=time_msc))).events[1]
    assert (fill.broker_time_msc, fill.broker_time) == (time_msc, None)


@pytest.mark.parametrize("verdict", ["success", "ambiguous"])
def test_an_answer_that_settles_nothing_is_unknown_and_not_rejected(verdict):
    given(*sending).when(answer(verdict)).then(BrokerAnswered, OutcomeUnknown).and_order(status=Status.UNKNOWN)


@pytest.mark.parametrize(
    ("verdict", "category", "retriable"),
    [("fatal", "fatal", False), ("retriable", "retries_exhausted", True), ("wait", "retries_exhausted", True)],
)
def test_a_no_of_the_broker_ends_the_order(verdict, category, retriable):
    after = given(*sending).when(answer(verdict)).then(BrokerAnswered, OrderRejected).and_order(status=Status.REJECTED)
    rejected = after.events[1]
    assert (rejected.category, rejected.retriable, rejected.attempts) == (category, retriable, 1)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"symbol": "GBPUSD"}, "fill_symbol"),
        ({"type": TYPE_SELL}, "fill_side"),
        ({"volume": "0.4"}, "fill_volume"),
    ],
)
def test_a_fill_that_does_not_fit_its_request_is_kept_and_flagged(changes, kind):
    after = given(*sending).when(answer("success", deal(**changes)))
    after.then(BrokerAnswered, OrderFilled, AnomalyDetected).and_order(status=Status.FILLED, deals=(1,))
    assert after.events[2].kind == kind


def test_a_sell_is_filled_by_a_selling_deal():
    after = given(receive(order_type="sell"), check(), start(1, type=TYPE_SELL)).when(
        answer("success", deal(type=TYPE_SELL))
    )
    after.then(BrokerAnswered, OrderFilled)
    assert after.events[1].side == "sell"


# --- what comes late --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("past", "name"),
    [
        ((*lost, evidence()), "failed"),
        ((*sending, answer("fatal")), "rejected"),
        ((*sending, not_sent()), "ready"),
        ((*sending, not_sent(), RefuseOrder(reasons=("halted",))), "refused"),
        ((*sending, not_sent(), ExpireOrder(age_s=Decimal(301), limit_s=Decimal(300), cause="life")), "stale"),
    ],
)
def test_a_deal_that_comes_against_our_conclusion_is_believed_and_flagged(past, name):
    given(*past).and_order(status=name)
    given(*past).when(answer("success", deal())).then(
        BrokerAnswered, AnomalyDetected(kind="late_fill", detail=f"a deal after {name}", symbol="EURUSD"), OrderFilled
    ).and_order(status=Status.FILLED)
    given(*past).when(answer("success", deal(volume="0.1"))).and_order(status=Status.PARTIALLY_FILLED)


def test_an_order_with_a_deal_is_never_sent_again():
    given(*sending, not_sent()).when(answer("success", deal(volume="0.1")), start(2)).then_violates("invariant I1")


@pytest.mark.parametrize("verdict", ["success", "ambiguous", "retriable", "wait", "fatal"])
@pytest.mark.parametrize("past", [filled, (*sending, answer("fatal")), (*lost, evidence())])
def test_an_answer_without_a_deal_changes_no_order_that_has_ended(past, verdict):
    status = given(*past).order.status
    given(*past).when(answer(verdict)).then(BrokerAnswered).and_order(status=status)


@pytest.mark.parametrize("verdict", ["success", "ambiguous", "retriable", "fatal"])
def test_an_answer_to_an_earlier_attempt_does_not_decide_over_the_current_one(verdict):
    second = (*sending, not_sent(), start(2))
    given(*second).when(answer(verdict, attempt=1)).then(BrokerAnswered).and_order(status=Status.SENDING, attempt=2)
    given(*second, unknown(2)).when(answer(verdict, attempt=1)).then(BrokerAnswered).and_order(status=Status.UNKNOWN)


def test_the_answer_that_comes_after_the_deadline_settles_the_unknown():
    given(*lost).when(answer("success", deal())).then(BrokerAnswered, OrderFilled).and_order(status=Status.FILLED)
    given(*lost).when(answer("fatal")).then(BrokerAnswered, OrderRejected).and_order(status=Status.REJECTED)
    given(*lost).when(answer("success")).then(BrokerAnswered).and_order(status=Status.UNKNOWN)


@pytest.mark.parametrize("past", [ready, lost, filled, (*sending, not_sent(), start(2))])
def test_news_of_an_attempt_that_is_not_under_way_says_nothing(past):
    given(*past).when(not_sent(1), unknown(1), not_sent(3), unknown(3)).then_nothing()


# --- unknown outcomes and evidence --------------------------------------------------------------------------------


def test_no_answer_is_unknown_and_never_a_rejection():
    given(*sending).when(unknown()).then(
        OutcomeUnknown(attempt=1, code=-10005, reason="no reply before the deadline", symbol="EURUSD")
    ).and_order(status=Status.UNKNOWN, is_open=True)


def test_a_deal_of_the_attempt_is_adopted():
    after = given(*lost).when(evidence(complete=False, settled=False, deals=(deal(7, order=901),)))
    after.then(OutcomeResolved, OrderFilled).and_order(status=Status.FILLED, order_ticket=901, deals=(7,))
    assert (after.events[0].resolution, after.events[0].by, after.events[0].order_ticket) == ("found", "probe", 901)


def test_a_working_order_is_evidence_that_leaves_the_outcome_open():
    given(*lost).when(evidence(orders=(broker_order(),))).then(
        OutcomeProbed(attempt=1, complete=True, found=True)
    ).and_order(status=Status.UNKNOWN)


@pytest.mark.parametrize(("state", "how"), [(2, "cancelled"), (5, "rejected"), (6, "expired")])
def test_a_past_order_that_ended_without_a_deal_rejects(state, how):
    after = given(*lost).when(evidence(history=(broker_order(901, state),)))
    after.then(OutcomeResolved, OrderRejected).and_order(status=Status.REJECTED, order_ticket=901)
    assert how in after.events[0].evidence
    assert how in after.events[1].description


@pytest.mark.parametrize(
    "found",
    [
        {"settled": False},
        {"complete": False},
        {"positions": (Position(ticket=900, magic=1),)},
        {"orders": (broker_order(902),)},
    ],
)
def test_a_past_order_without_a_deal_is_believed_only_when_a_full_view_shows_nothing_else(found):
    given(*lost).when(evidence(history=(broker_order(901, 2),), **found)).then(OutcomeProbed).and_order(
        status=Status.UNKNOWN
    )


def test_absence_is_proven_when_all_was_seen_and_nothing_can_arrive_any_more():
    after = given(*lost).when(evidence())
    after.then(OutcomeResolved, OrderFailed).and_order(status=Status.FAILED, is_open=False)
    assert (after.events[0].resolution, after.events[1].attempts) == ("absent", 1)


@pytest.mark.parametrize(
    "found",
    [
        {"complete": False},
        {"settled": False},
        {"complete": False, "settled": False},
        {"positions": (Position(ticket=900),)},
        {"history": (broker_order(900, 4),)},
    ],
)
def test_absence_is_not_guessed(found):
    given(*lost).when(evidence(**found)).then(OutcomeProbed).and_order(status=Status.UNKNOWN)


def test_a_probe_that_shows_the_same_again_is_not_recorded_again():
    same = evidence(settled=False)
    given(*lost).when(same, same, same).then(OutcomeProbed)
    given(*lost).when(same, evidence(complete=False, reason="x"), same).then(*[OutcomeProbed] * 3)


@pytest.mark.parametrize("past", [ready, sending, filled, (*lost, evidence())])
def test_evidence_says_nothing_when_nothing_is_unknown(past):
    given(*past).when(evidence(), evidence(deals=(deal(9),))).then_nothing()


def test_evidence_of_another_attempt_says_nothing():
    given(*lost).when(evidence(attempt=2), evidence(attempt=0)).then_nothing()


# --- laws -------------------------------------------------------------------------------------------------------

attempts = st.integers(1, 3)
deals = st.lists(
    st.builds(
        deal,
        st.integers(1, 4),
        st.sampled_from(["0.1", "0.2", "0.3", "0"]),
        type=st.integers(0, 2),
        symbol=st.sampled_from(["EURUSD", "GBPUSD", ""]),
        time_msc=st.integers(-(2**63), 2**63 - 1),
    ),
    max_size=3,
).map(tuple)
broker_orders = st.lists(st.builds(broker_order, st.integers(900, 902), st.integers(0, 9)), max_size=2).map(tuple)
verdicts = st.sampled_from(["success", "ambiguous", "retriable", "wait", "fatal"])
commands = st.one_of(
    st.builds(receive, volume=st.sampled_from(["0.3", "0.4", "NaN"]), unrecorded=st.integers(0, 120)),
    st.builds(check, st.booleans(), st.sampled_from([0, 10019])),
    st.builds(start, attempts),
    st.builds(start, attempts),
    st.builds(not_sent, attempts),
    st.builds(unknown, attempts),
    st.builds(
        lambda verdict, deals, attempt, ticket: answer(verdict, *deals, attempt=attempt, deal=ticket),
        verdicts,
        deals,
        attempts,
        st.integers(0, 4),
    ),
    st.builds(
        evidence,
        complete=st.booleans(),
        settled=st.booleans(),
        attempt=attempts,
        orders=broker_orders,
        history=broker_orders,
        deals=deals,
    ),
    st.just(RefuseOrder(reasons=("halted",))),
    st.just(ExpireOrder(age_s=Decimal(31), limit_s=Decimal(30), cause="age")),
    st.just(GiveUp(reason="enough")),
)
lives = st.lists(commands, max_size=25).map(lambda rest: [receive(), *rest])


def live(sequence) -> tuple[Order, list[OrderEvent]]:
    """Lives through the commands; StartSend alone may be turned away."""
    order, events = Order(order_id=ORDER_ID), []
    for command in sequence:
        try:
            new = decide(order, command)
        except InvariantViolated:
            assert type(command).__name__ == "StartSend"
            continue
        assert decide(order, command) == new
        for event in new:
            order = evolve(order, event)
        events += new
    return order, events


@for_all(lives)
@settings(max_examples=300)
def test_a_replay_of_the_events_gives_the_state_of_the_life(sequence):
    order, events = live(sequence)
    assert replayed(events) == order
    assert order.version == len(events)


@for_all(lives)
@settings(max_examples=300)
def test_whatever_happens_at_most_one_attempt_is_unresolved(sequence):
    _, events = live(sequence)
    open_attempt = 0
    for event in events:
        if isinstance(event, SendStarted):
            assert open_attempt == 0
            assert event.attempt == 1 + max((e.attempt for e in before(events, event, SendStarted)), default=0)
            assert not before(events, event, Fill)
            open_attempt = event.attempt
        elif isinstance(event, SendAbandoned):
            assert event.attempt == open_attempt
            open_attempt = 0


def before(events, event, kind) -> list:
    return [
        one for one in events[: next(i for i, other in enumerate(events) if other is event)] if isinstance(one, kind)
    ]


@for_all(lives)
@settings(max_examples=300)
def test_every_deal_is_filled_once_and_the_sums_agree(sequence):
    order, events = live(sequence)
    fills = [event for event in events if isinstance(event, Fill)]
    assert len({fill.deal for fill in fills}) == len(fills) == len(order.deals)
    assert order.filled_volume == sum(fill.volume for fill in fills)
    assert all(isinstance(fill, OrderFilled) == (fill.remaining_volume == 0) for fill in fills)
    if fills:
        assert order.status in (Status.FILLED, Status.PARTIALLY_FILLED)


@for_all(lives)
def test_what_has_ended_moves_again_for_a_deal_and_for_nothing_else(sequence):
    _, events = live(sequence)
    order = Order(order_id=ORDER_ID)
    for event in events:
        after = evolve(order, event)
        if order.status in ENDED and after.status is not order.status:
            assert isinstance(event, Fill)
        assert order.status is not Status.FILLED or after.status is Status.FILLED
        order = after


@for_all(lives)
def test_a_duplicate_is_always_pointed_to_a_stored_outcome(sequence):
    _, events = live(sequence)
    for event in events:
        if isinstance(event, DuplicateReceived):
            assert events[event.standing_version - 1].topic() == event.standing_topic
