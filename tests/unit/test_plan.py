"""What is to be done next for an order, and when: a function of its state, the time and the policy."""

from datetime import timedelta
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from ledger.commands import Again, ExpireOrder, RecordCheck, RefuseOrder
from ledger.order import Order, Status
from ledger.plan import (
    PROBE_DELAYS_S,
    Abandon,
    Await,
    Check,
    End,
    Expire,
    Policy,
    Probe,
    Refuse,
    Send,
    Wait,
    next_step,
    opens_risk,
    park,
    resend,
    retry,
)
from ledger.values import order_hash
from tests.decider import (
    NOW,
    ORDER_ID,
    D,
    abandoned,
    again,
    answer,
    cancel_request,
    cancelled,
    check,
    close_by_request,
    close_request,
    evidence,
    expired,
    filled,
    given,
    limit_partly,
    lost,
    modify_request,
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
    stops_request,
    stops_sending,
    waiting,
)

POLICY = Policy()
UNCHECKED = Policy(validate_before_send=False)
EXPIRED = ExpireOrder(age_s=Decimal(31), limit_s=Decimal(30), cause="age")


def at(after_s: float):
    return NOW + timedelta(seconds=after_s)


def step(*past, after_s: float = 1.0, policy: Policy = POLICY, probes: int = 0, halted: str = ""):
    return next_step(given(*past).order, at(after_s), policy, probes=probes, halted=halted)


def valid_for(seconds: float, *past) -> Order:
    """The order, as if its request had said until when it is valid."""
    order = given(*past).order
    return msgspec.structs.replace(order, request=msgspec.structs.replace(order.request, valid_until=at(seconds)))


@pytest.mark.parametrize(
    ("past", "expected"),
    [
        (requested, Check()),
        (ready, Send(1)),
        ((receive(), RecordCheck(result=None, passed=False, problem="no reply")), Send(1)),
        (sending, Probe(1, 0.0)),
        (lost, Probe(1, 0.0)),
        ((*lost, evidence(settled=False)), Probe(1, 0.0)),
        (abandoned, Send(2)),
        (waiting, Wait(4.0)),
        (parked, Wait(4.0)),
        ((*abandoned, start(2)), Probe(2, 0.0)),
        (placed, Await()),
        (partly, Await()),
        (limit_partly, Await()),
        (filled, End()),
        (cancelled, End()),
        (expired, End()),
        (rejected, End()),
        (proven_absent, End()),
        ((*stops_sending, answer("success")), End()),
        ((receive(), check(passed=False, retcode=10019)), End()),
        ((receive(), RefuseOrder(reasons=("halted",))), End()),
        ((receive(), EXPIRED), End()),
        ((receive(volume="NaN"),), End()),
    ],
)
def test_the_next_step_follows_from_the_state_alone(past, expected):
    assert step(*past) == expected


def test_an_order_nobody_requested_needs_nothing():
    assert next_step(Order(order_id=ORDER_ID), NOW, POLICY) == End()


def test_without_validation_the_first_step_is_the_send():
    assert step(*requested, policy=UNCHECKED) == Send(1)


def test_an_order_found_in_sending_after_a_restart_is_probed_and_never_sent():
    assert step(*sending, after_s=10_000) == Probe(1, 0.0)
    assert step(*sending, after_s=10_000, policy=UNCHECKED, probes=3) == Probe(1, 1.0)


def test_probes_begin_at_once_and_slow_down_to_the_last_delay():
    delays = [step(*lost, probes=n).delay_s for n in range(10)]
    assert delays[: len(PROBE_DELAYS_S)] == [0.0, 0.25, 0.5, 1.0, 2.0, 5.0]
    assert set(delays[len(PROBE_DELAYS_S) :]) == {5.0}
    assert next_step(given(*lost).order, NOW, POLICY) == Probe(1, 0.0)


# --- giving up --------------------------------------------------------------------------------------------------


def test_an_order_whose_attempts_do_not_reach_the_broker_is_given_up():
    few = Policy(max_unreached=2)
    assert step(*abandoned, policy=few) == Send(2)
    assert step(*abandoned, start(2), not_sent(2), policy=few) == Abandon("2 attempts did not reach the broker")


def test_attempts_that_reached_the_broker_do_not_count_as_unreached():
    twice = (*waiting, start(2), answer("retriable", attempt=2, again=again()))
    assert step(*twice, after_s=60, policy=Policy(max_unreached=1)) == Send(3)


def test_an_order_whose_attempts_cannot_be_told_apart_any_more_is_given_up():
    many = msgspec.structs.replace(given(*abandoned).order, attempt=254)
    assert next_step(many, NOW, POLICY) == Send(255)
    last = msgspec.structs.replace(many, attempt=255)
    assert next_step(last, NOW, POLICY) == Abandon("255 attempts were made, no more can be told apart")


# --- halts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("past", [requested, ready, abandoned, waiting, parked])
def test_a_halt_refuses_what_opens_risk_wherever_it_waits(past):
    assert step(*past, halted="operator: news") == Refuse(("trading is halted: operator: news",))


@pytest.mark.parametrize("past", [sending, lost, placed, filled])
def test_a_halt_changes_nothing_for_what_may_be_at_the_broker(past):
    assert step(*past, halted="operator: news") == step(*past)


@pytest.mark.parametrize("request_", [close_request, close_by_request, cancel_request, stops_request])
def test_a_halt_lets_pass_what_reduces_risk(request_):
    assert step(request_, halted="operator: news") == Send(1)


stop_limit_change = receive(
    action="modify", symbol=None, order_type=None, volume=None, order_ticket=800, stop_limit_price="1.04"
)


@pytest.mark.parametrize("request_", [requested[0], modify_request, stop_limit_change])
def test_a_new_price_of_a_pending_order_is_a_new_risk(request_):
    assert opens_risk(given(request_).order)


def test_what_nobody_understood_is_taken_for_a_risk():
    assert opens_risk(Order(order_id=ORDER_ID))


def test_too_old_is_told_before_halted():
    assert isinstance(step(*ready, after_s=31, halted="operator: news"), Expire)


# --- age, life and validity -------------------------------------------------------------------------------------


@pytest.mark.parametrize("past", [requested, ready])
def test_an_order_too_old_for_its_first_send_expires(past):
    assert step(*past, after_s=30.0) in (Check(), Send(1))
    assert step(*past, after_s=30.001) == Expire(Decimal("30.001"), Decimal("30.0"), "age")


@pytest.mark.parametrize("past", [abandoned, waiting, parked])
def test_a_retry_ends_by_the_life_of_the_order_not_by_its_age(past):
    assert step(*past, after_s=31) == Send(2)
    assert step(*past, after_s=300) == Send(2)
    assert step(*past, after_s=300.5) == Expire(Decimal("300.5"), Decimal("300.0"), "life")


def test_a_limit_of_0_switches_the_age_off():
    ageless = Policy(max_order_age_s=0, max_order_life_s=0)
    assert step(*ready, after_s=1e9, policy=ageless) == Send(1)
    assert step(*abandoned, after_s=1e9, policy=ageless) == Send(2)
    assert step(*abandoned, after_s=301, policy=Policy(max_order_age_s=0)) == Expire(D(301), D("300.0"), "life")
    assert step(*ready, after_s=0.5, policy=Policy(max_order_age_s=0.25)) == Expire(D("0.5"), D("0.25"), "age")


@pytest.mark.parametrize(("past", "attempt"), [(ready, 1), (abandoned, 2)])
def test_valid_until_is_judged_before_every_send(past, attempt):
    order = valid_for(5, *past)
    assert next_step(order, at(5), POLICY) == Send(attempt)
    assert next_step(order, at(5.25), POLICY) == Expire(Decimal("0.25"), Decimal(0), "valid_until")


def test_an_order_whose_age_nobody_knows_does_not_expire_by_age():
    ageless = msgspec.structs.replace(receive(), age_from=None)
    assert step(ageless, after_s=1e6) == Check()
    assert step(ageless, check(), *sending[2:], answer("retriable", again=again()), after_s=1) == Wait(4.0)


def test_an_order_of_which_only_the_state_is_known_has_no_age():
    bare = msgspec.structs.replace(given(*waiting).order, requested=None)
    assert next_step(bare, at(1e6), POLICY) == Send(2)
    assert next_step(bare, NOW, POLICY) == Wait(5.0)


def test_an_order_from_the_future_is_not_too_old():
    assert step(*ready, after_s=-3600) == Send(1)


@pytest.mark.parametrize("past", [sending, lost, placed, partly, limit_partly])
def test_what_may_be_at_the_broker_never_expires(past):
    assert not isinstance(step(*past, after_s=1e8), Expire | Abandon | Send)


@for_all(st.floats(-1e6, 1e9), st.floats(0, 1e6), st.integers(1, 8))
def test_a_step_never_skips_an_attempt_and_an_expired_order_says_by_how_much(after_s, limit_s, unreached):
    found = step(*abandoned, after_s=after_s, policy=Policy(max_order_life_s=limit_s, max_unreached=unreached))
    if isinstance(found, Send):
        assert found.attempt == 2
    elif isinstance(found, Expire):
        assert found.age_s >= found.limit_s - 1
        assert found.age_s == found.age_s.quantize(Decimal("0.001"))
    else:
        assert found == Abandon("1 attempts did not reach the broker")


# --- waiting ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("past", [waiting, parked])
def test_an_order_waits_until_it_is_due(past):
    assert step(*past, after_s=0) == Wait(5.0)
    assert step(*past, after_s=4.75) == Wait(0.25)
    assert step(*past, after_s=5) == Send(2)


@pytest.mark.parametrize("past", [waiting, parked])
def test_a_clock_that_went_back_does_not_make_the_wait_longer(past):
    order = given(*past).order
    assert next_step(order, at(-3600), POLICY) == Wait(5.0)
    assert next_step(order, at(-3600), POLICY, waited_s=4.5) == Wait(0.5)
    assert next_step(order, at(-3600), POLICY, waited_s=5) == Send(2)
    assert next_step(order, at(4.75), POLICY, waited_s=1) == Wait(0.25)


def test_a_wait_ends_when_the_order_will_be_too_old():
    late = (*sending, answer("retriable", again=again(400)))
    assert step(*late, after_s=299) == Wait(pytest.approx(1.001))
    assert isinstance(step(*late, after_s=300.001), Expire)
    assert next_step(valid_for(10, *late), at(8), POLICY) == Wait(pytest.approx(2.001))
    assert next_step(valid_for(10, *late), at(10), POLICY) == Wait(0.001)


def test_a_wait_nobody_timed_is_over():
    untimed = msgspec.structs.replace(given(*waiting).order, not_before=None)
    assert next_step(untimed, NOW, POLICY) == Send(2)


# --- retries ----------------------------------------------------------------------------------------------------

EXACT = Policy(retry_jitter=0, max_retries=10, max_order_life_s=0)


def after_retries(number: int, *past) -> Order:
    return msgspec.structs.replace(given(*(past or waiting)).order, retries=number)


def test_each_retry_waits_longer_up_to_the_longest_delay():
    delays = [retry(after_retries(n), n + 1, NOW, EXACT).delay_s for n in range(6)]
    assert delays == [D(5), D(10), D(20), D(40), D(60), D(60)]


def test_a_retry_is_due_its_delay_from_now():
    assert retry(after_retries(0), 1, at(3), EXACT) == Again(delay_s=D(5), not_before=at(8))
    uneven = msgspec.structs.replace(EXACT, retry_delay_s=0.12345)
    assert retry(after_retries(0), 1, NOW, uneven) == Again(delay_s=D("0.123"), not_before=at(0.123))


def test_the_retries_are_used_up_by_the_policy_or_by_the_lower_limit_of_the_return_code():
    order = after_retries(3)
    assert retry(order, 4, NOW, msgspec.structs.replace(EXACT, max_retries=4)) is not None
    assert retry(order, 4, NOW, msgspec.structs.replace(EXACT, max_retries=3)) is None
    assert retry(order, 4, NOW, EXACT, max_retries=4) is not None
    assert retry(order, 4, NOW, EXACT, max_retries=3) is None
    assert retry(order, 4, NOW, msgspec.structs.replace(EXACT, max_retries=3), max_retries=9) is None


def test_the_jitter_shortens_a_delay_by_order_attempt_and_seed_and_by_nothing_else():
    varied = msgspec.structs.replace(EXACT, retry_jitter=0.5, jitter_seed="s")
    share = order_hash("ord_1/2/s") / 2**55
    assert retry(after_retries(0), 2, NOW, varied).delay_s == round(D(5 * (1 - 0.5 * share)), 3)
    delays = {retry(after_retries(0), attempt, NOW, varied).delay_s for attempt in range(1, 50)}
    assert len(delays) > 40
    assert all(D("2.5") <= delay <= D(5) for delay in delays)
    other = msgspec.structs.replace(varied, jitter_seed="t")
    assert retry(after_retries(0), 2, NOW, other) != retry(after_retries(0), 2, NOW, varied)


def test_a_retry_that_comes_too_late_is_none():
    limited = msgspec.structs.replace(EXACT, max_order_life_s=300.0)
    assert retry(after_retries(0), 1, at(294.999), limited) is not None
    assert retry(after_retries(0), 1, at(295), limited) is None
    assert retry(valid_for(5, *waiting), 1, NOW, msgspec.structs.replace(EXACT, retry_delay_s=5)) is None
    assert retry(valid_for(10, *waiting), 1, at(400), EXACT) is None


def test_a_life_of_less_than_a_second_is_a_limit():
    assert retry(after_retries(0), 1, NOW, msgspec.structs.replace(EXACT, max_order_life_s=0.5)) is None


def test_the_sooner_of_life_and_validity_limits_a_retry():
    limited = msgspec.structs.replace(EXACT, max_order_life_s=300.0)
    assert retry(valid_for(1_000, *sending), 1, at(296), limited) is None
    assert retry(valid_for(4, *sending), 1, NOW, limited) is None


def test_a_parked_order_is_tried_again_after_a_fixed_time_while_it_is_young_enough():
    assert park(after_retries(9, *parked), at(1), POLICY) == Again(delay_s=D(5), not_before=at(6))
    assert park(given(*parked).order, at(294), Policy(park_recheck_s=7)) is None


def test_what_is_proven_absent_is_sent_again_only_where_the_policy_says_so():
    order = given(*lost).order
    allowed = msgspec.structs.replace(EXACT, resend_after_proven_absence=True, retry_jitter=0.5)
    assert resend(order, NOW, EXACT) is None
    assert resend(order, NOW, allowed) == retry(order, 1, NOW, allowed)
    assert resend(after_retries(10, *lost), NOW, allowed) is None


@pytest.mark.parametrize("status", Status)
def test_every_state_has_a_next_step(status):
    order = msgspec.structs.replace(given(*waiting).order, status=status)
    assert next_step(order, NOW, POLICY) is not None
