"""What may happen to an order before it is at the broker, and that only one attempt is under way at a time."""

from decimal import Decimal

import msgspec
import pytest

from ledger.commands import ExpireOrder, GiveUp, RecordCheck, RefuseOrder
from ledger.decide import decide
from ledger.order import Status, evolve
from ledger.order_events import (
    ConflictReceived,
    DuplicateReceived,
    OrderChecked,
    OrderFailed,
    OrderRefused,
    OrderRejected,
    OrderRequested,
    OrderStale,
    SendAbandoned,
    SendStarted,
)
from tests.decider import (
    NOW,
    abandoned,
    cancelled,
    check,
    expired,
    filled,
    given,
    holding,
    limit_partly,
    lost,
    message,
    not_sent,
    parked,
    partly,
    placed,
    proven_absent,
    ready,
    receive,
    rejected,
    requested,
    sending,
    start,
    waiting,
)

REFUSE = RefuseOrder(reasons=("halted", "too large"))
EXPIRE = ExpireOrder(age_s=Decimal(31), limit_s=Decimal(30), cause="age")
GIVE_UP = GiveUp(reason="enough")
stale = (*ready, EXPIRE)
IDLE = {"requested": requested, "ready": ready, "abandoned": abandoned, "waiting": waiting, "parked": parked}
AT_BROKER = {"sending": sending, "unknown": lost, "placed": placed, "partly": partly, "limit partly": limit_partly}
ENDED = {
    "filled": filled,
    "cancelled": cancelled,
    "expired": expired,
    "rejected": rejected,
    "failed": proven_absent,
    "refused": (*requested, REFUSE),
    "stale": stale,
}


def each(*groups: dict) -> list:
    return [pytest.param(past, id=name) for group in groups for name, past in group.items()]


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
    assert given().when(receive(volume="0")).the(OrderRefused).category == "refused"


@pytest.mark.parametrize(
    ("past", "standing_version", "standing_topic", "status"),
    [
        ((receive(),), 1, "order.requested", "requested"),
        (sending, 1, "order.requested", "sending"),
        (lost, 4, "order.outcome_unknown", "unknown"),
        (filled, 5, "order.filled", "filled"),
        (waiting, 5, "order.retry_scheduled", "waiting"),
        (parked, 5, "order.parked", "parked"),
        (abandoned, 1, "order.requested", "ready"),
        (placed, 5, "order.placed", "placed"),
        (partly, 5, "order.partially_filled", "partially_filled"),
        (cancelled, 6, "order.cancelled", "cancelled"),
        (expired, 6, "order.expired", "expired"),
        (rejected, 5, "order.rejected", "rejected"),
        (stale, 3, "order.stale", "stale"),
        (proven_absent, 6, "order.failed", "failed"),
        ((receive(), RefuseOrder(reasons=("halted",))), 2, "order.refused", "refused"),
    ],
)
def test_the_same_order_again_is_a_duplicate_that_names_the_standing_outcome(
    past, standing_version, standing_topic, status
):
    given(*past).when(past[0]).then(
        DuplicateReceived(number=1, standing_version=standing_version, standing_topic=standing_topic, status=status)
    ).and_order(duplicates=1, status=status)


def test_an_order_written_in_another_way_is_the_same_order():
    given(*filled).when(receive(volume=0.3, comment="again", strategy_id="s")).then(DuplicateReceived)


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
    assert recorded[20:23] == [101, 181, 260]
    assert 5 <= len(recorded) - 20 <= 15


# --- before the broker ------------------------------------------------------------------------------------------


def test_a_passed_check_makes_the_order_ready():
    given(*requested).when(check()).then(
        OrderChecked(passed=True, result=check().result, retcode_name="RETCODE_0")
    ).and_order(status=Status.READY)


def test_a_failed_check_rejects_the_order_without_an_attempt():
    failed = msgspec.structs.replace(check(passed=False, retcode=10019), description="no money", advice="add funds")
    given(*requested).when(failed).then(
        OrderChecked(passed=False, result=failed.result, retcode_name="RETCODE_10019"),
        OrderRejected(
            symbol="EURUSD",
            retcode=10019,
            retcode_name="RETCODE_10019",
            category="fatal",
            description="no money",
            attempts=0,
            advice="add funds",
        ),
    ).and_order(status=Status.REJECTED)


def test_a_check_that_could_not_be_made_stops_nothing():
    unasked = RecordCheck(result=None, passed=False, problem="no reply")
    given(*requested).when(unasked).then(OrderChecked(passed=False, problem="no reply")).and_order(status=Status.READY)


@pytest.mark.parametrize("past", each(IDLE))
def test_what_is_not_at_the_broker_can_be_refused_expired_or_given_up(past):
    attempts = given(*past).order.attempt
    given(*past).when(REFUSE).then(
        OrderRefused(reasons=("halted", "too large"), category="refused", symbol="EURUSD")
    ).and_order(status=Status.REFUSED, is_open=False)
    given(*past).when(EXPIRE).then(
        OrderStale(age_s=Decimal(31), limit_s=Decimal(30), symbol="EURUSD", cause="age")
    ).and_order(status=Status.STALE, is_open=False)
    given(*past).when(GIVE_UP).then(
        OrderFailed(symbol="EURUSD", category="fatal", reason="enough", attempts=attempts)
    ).and_order(status=Status.FAILED, is_open=False)


@pytest.mark.parametrize("past", each(AT_BROKER, ENDED))
def test_what_may_be_at_the_broker_or_has_ended_cannot_be_refused_expired_or_given_up(past):
    given(*past).when(REFUSE, EXPIRE, GIVE_UP).then_nothing()


@pytest.mark.parametrize("past", each({k: v for k, v in IDLE.items() if k != "requested"}, AT_BROKER, ENDED))
def test_only_a_fresh_order_is_checked(past):
    given(*past).when(check(), check(passed=False, retcode=10019)).then_nothing()


# --- one attempt at a time (invariant I1) -------------------------------------------------------------------------


def test_an_intent_is_the_request_as_it_will_be_sent_and_what_it_acts_on():
    intent = start(1, symbol="EURUSD.r", position=700, before=holding, sl=Decimal(1), tp=Decimal(2))
    given(*ready).when(intent).then(SendStarted(attempt=1, request=intent.request, before=holding)).and_order(
        status=Status.SENDING, attempt=1, sent=intent.request, before=holding, symbol="EURUSD.r"
    )


@pytest.mark.parametrize("past", each(IDLE))
def test_from_an_idle_state_the_next_attempt_and_no_other_may_start(past):
    order = given(*past).order
    given(*past).when(start(order.attempt + 1)).then(SendStarted).and_order(
        status=Status.SENDING, attempt=order.attempt + 1
    )
    for attempt in (order.attempt, order.attempt + 2):
        wrong = msgspec.structs.replace(start(1), attempt=attempt)
        given(*past).when(wrong).then_violates(
            f"order ord_1: attempt {attempt} may not start in state {order.status.value} "
            f"after attempt {order.attempt} (invariant I1)"
        )


@pytest.mark.parametrize("past", each(AT_BROKER, ENDED))
def test_while_an_order_may_be_at_the_broker_or_has_ended_no_attempt_starts(past):
    for attempt in (1, 2):
        given(*past).when(start(attempt)).then_violates("invariant I1")


def test_an_attempt_that_provably_was_not_sent_lets_the_next_begin():
    given(*sending).when(not_sent(), start(2)).then(
        SendAbandoned(attempt=1, code=-10005, reason="no connection"), SendStarted
    ).and_order(status=Status.SENDING, attempt=2, unreached=1)


def test_an_order_nobody_requested_accepts_nothing():
    given().when(start(1)).then_violates("order ord_1 does not exist: StartSend has no object")
    given().when(check()).then_violates("order ord_1 does not exist: RecordCheck has no object")
