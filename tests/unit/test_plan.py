from datetime import timedelta
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from ledger.commands import ExpireOrder, RecordCheck, RefuseOrder
from ledger.order import Order
from ledger.plan import PROBE_DELAYS_S, Abandon, Await, Check, End, Expire, Policy, Probe, Send, next_step
from tests.decider import NOW, ORDER_ID, answer, check, deal, evidence, given, not_sent, receive, start, unknown

POLICY = Policy()
UNCHECKED = Policy(validate_before_send=False)


def step(*past, after_s: float = 1.0, policy: Policy = POLICY, probes: int = 0):
    return next_step(given(*past).order, NOW + timedelta(seconds=after_s), policy, probes=probes)


requested = (receive(),)
ready = (receive(), check())
sending = (*ready, start(1))
lost = (*sending, unknown())
retrying = (*sending, not_sent())


@pytest.mark.parametrize(
    ("past", "expected"),
    [
        (requested, Check()),
        (ready, Send(1)),
        ((receive(), RecordCheck(result=None, passed=False, problem="no reply")), Send(1)),
        (sending, Probe(1, 0.0)),
        (lost, Probe(1, 0.0)),
        ((*lost, evidence(settled=False)), Probe(1, 0.0)),
        (retrying, Send(2)),
        ((*retrying, start(2)), Probe(2, 0.0)),
        ((*sending, answer("success", deal(volume="0.1"))), Await()),
        ((*sending, answer("success", deal())), End()),
        ((*sending, answer("fatal")), End()),
        ((*lost, evidence()), End()),
        ((receive(), check(passed=False, retcode=10019)), End()),
        ((receive(), RefuseOrder(reasons=("halted",))), End()),
        ((receive(), ExpireOrder(age_s=Decimal(31), limit_s=Decimal(30), cause="age")), End()),
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


def test_an_order_that_used_up_its_attempts_is_given_up():
    few = Policy(max_attempts=2)
    twice = (*retrying, start(2), not_sent(2))
    assert step(*retrying, policy=few) == Send(2)
    assert step(*twice, policy=few) == Abandon("2 attempts did not reach the broker")


# --- age, life and validity -------------------------------------------------------------------------------------


@pytest.mark.parametrize("past", [requested, ready])
def test_an_order_too_old_for_its_first_send_expires(past):
    assert step(*past, after_s=30.0) in (Check(), Send(1))
    assert step(*past, after_s=30.001) == Expire(Decimal("30.001"), Decimal("30.0"))


def test_a_retry_ends_by_the_life_of_the_order_not_by_its_age():
    assert step(*retrying, after_s=31) == Send(2)
    assert step(*retrying, after_s=300) == Send(2)
    assert step(*retrying, after_s=300.5) == Expire(Decimal("300.5"), Decimal("300.0"))


def test_a_limit_of_0_switches_the_age_off():
    ageless = Policy(max_order_age_s=0, max_order_life_s=0)
    assert step(*ready, after_s=1e9, policy=ageless) == Send(1)
    assert step(*retrying, after_s=1e9, policy=ageless) == Send(2)
    assert step(*retrying, after_s=301, policy=Policy(max_order_age_s=0)) == Expire(Decimal(301), Decimal("300.0"))


@pytest.mark.parametrize(("past", "attempt"), [(ready, 1), (retrying, 2)])
def test_valid_until_is_judged_before_every_send(past, attempt):
    until = given(*past).order
    request = msgspec.structs.replace(until.request, valid_until=NOW + timedelta(seconds=5))
    until = msgspec.structs.replace(until, request=request)
    assert next_step(until, NOW + timedelta(seconds=5), POLICY) == Send(attempt)
    assert next_step(until, NOW + timedelta(seconds=5.25), POLICY) == Expire(Decimal("0.25"), Decimal(0))


def test_an_order_whose_age_nobody_knows_does_not_expire_by_age():
    ageless = msgspec.structs.replace(receive(), age_from=None)
    assert step(ageless, after_s=1e6) == Check()


def test_an_order_from_the_future_is_not_too_old():
    assert step(*ready, after_s=-3600) == Send(1)


@pytest.mark.parametrize("past", [sending, lost, (*sending, answer("success", deal(volume="0.1")))])
def test_what_may_be_at_the_broker_never_expires(past):
    assert not isinstance(step(*past, after_s=1e8), Expire | Abandon | Send)


@for_all(st.floats(-1e6, 1e9), st.floats(0, 1e6), st.integers(1, 8))
def test_a_step_never_skips_an_attempt_and_an_expired_order_says_by_how_much(after_s, limit_s, attempts):
    found = step(*retrying, after_s=after_s, policy=Policy(max_order_life_s=limit_s, max_attempts=attempts))
    if isinstance(found, Send):
        assert found.attempt == 2
    elif isinstance(found, Expire):
        assert found.age_s >= found.limit_s - 1
        assert found.age_s == found.age_s.quantize(Decimal("0.001"))
    else:
        assert found == Abandon("1 attempts did not reach the broker")
