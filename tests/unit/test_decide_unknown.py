"""How an unknown outcome ends, and what the broker shows of an order afterwards."""

import msgspec
import pytest

from ledger.decide import MAX_EVIDENCE
from ledger.order import Status, Terms
from ledger.order_events import (
    AnomalyDetected,
    OrderCancelled,
    OrderExpired,
    OrderFailed,
    OrderFilled,
    OrderModified,
    OrderPartiallyFilled,
    OrderPlaced,
    OrderRejected,
    OutcomeProbed,
    OutcomeResolved,
    OutcomeUnknown,
    RequestCompleted,
    RetryScheduled,
)
from ledger.trade import TargetImage
from tests.decider import (
    D,
    abandoned,
    again,
    broker_order,
    cancel_lost,
    cancelled,
    check,
    close_lost,
    deal,
    deals,
    end_counted,
    evidence,
    expired,
    filled,
    given,
    limit_filled,
    limit_lost,
    limit_order,
    limit_partly,
    limit_sending,
    lost,
    modify_lost,
    moved_stops,
    not_sent,
    order_state,
    parked,
    partly,
    placed,
    position,
    proven_absent,
    ready,
    rejected,
    sending,
    start,
    stops_lost,
    unknown,
    waiting,
    word,
)

# --- evidence ---------------------------------------------------------------------------------------------------


def test_no_answer_is_unknown_and_never_a_rejection():
    given(*sending).when(unknown()).then(
        OutcomeUnknown(attempt=1, code=-10005, reason="no reply before the deadline", symbol="EURUSD")
    ).and_order(status=Status.UNKNOWN, is_open=True)


def test_a_deal_of_the_attempt_is_adopted():
    made = deal(7, order=901)
    found = msgspec.structs.replace(
        evidence(complete=False, settled=False, deals=(made,)), point=D("0.1"), broker_utc_offset_s=3600
    )
    after = given(*lost).when(found)
    after.then(
        OutcomeResolved(
            attempt=1,
            resolution="found",
            by="probe",
            evidence="the broker shows deal 7 of this attempt",
            order_ticket=901,
            symbol="EURUSD",
            deals=(made,),
        ),
        OrderFilled,
    ).and_order(status=Status.FILLED, order_ticket=901)
    assert (after.the(OrderFilled).point, after.the(OrderFilled).broker_utc_offset_s) == (D("0.1"), 3600)


def test_the_order_of_an_adopted_deal_is_taken_from_where_it_shows():
    by_order = {"deals": (deal(7, order=0),), "orders": (broker_order(902),), "history": (broker_order(903, 4),)}
    after = given(*lost).when(evidence(**by_order))
    assert after.the(OutcomeResolved).order_ticket == after.the(OrderFilled).order_ticket == 902
    named = evidence(deals=(deal(7, order=901),), history=(broker_order(903, 4),))
    assert given(*lost).when(named).the(OutcomeResolved).order_ticket == 901
    assert given(*lost).when(evidence(deals=(deal(7, order=0),))).the(OutcomeResolved).order_ticket == 0
    by_history = evidence(deals=(deal(7, order=0),), history=(broker_order(903, 4),))
    assert given(*lost).when(by_history).the(OrderFilled).order_ticket == 903


def test_adopted_deals_that_leave_volume_open_leave_the_order_open():
    given(*lost).when(evidence(deals=(deal(7, "0.1"), deal(8, "0.1")))).then(
        OutcomeResolved, OrderPartiallyFilled, OrderPartiallyFilled
    ).and_order(status=Status.PARTIALLY_FILLED, remaining=D("0.1"))


def test_a_rest_that_ended_with_an_adopted_deal_is_cancelled():
    rest = {"volume_initial": D("0.3"), "volume_current": D("0.2")}
    other = broker_order(899, 2, volume_initial=D("0.3"))
    ended = evidence(deals=(deal(7, "0.1"),), history=(other, broker_order(900, 2, **rest)))
    given(*lost).when(ended).then(
        OutcomeResolved,
        OrderPartiallyFilled,
        OrderCancelled(
            symbol="EURUSD",
            order_ticket=900,
            filled_volume=D("0.1"),
            remaining_volume=D("0.2"),
            reason="cancelled at the broker",
        ),
    ).and_order(status=Status.CANCELLED, filled_volume=D("0.1"))
    missing = evidence(deals=(deal(7, "0.05"),), history=(broker_order(900, 2, **rest),))
    given(*lost).when(missing).then(OutcomeResolved, OrderPartiallyFilled)
    standing = evidence(deals=(deal(7, "0.1"),), history=(broker_order(900, 3, sl=D("1.0")),))
    given(*lost).when(standing).then(OutcomeResolved, OrderPartiallyFilled)
    whole = evidence(deals=(deal(7),), history=(broker_order(900, 4, volume_initial=D("0.3")),))
    given(*lost).when(whole).then(OutcomeResolved, OrderFilled)


def test_a_working_pending_order_is_adopted():
    after = given(*limit_lost).when(evidence(complete=False, settled=False, orders=(broker_order(901),)))
    after.then(OutcomeResolved, OrderPlaced).and_order(status=Status.PLACED, order_ticket=901)
    assert (after.the(OutcomeResolved).resolution, after.the(OutcomeResolved).order_ticket) == ("found", 901)
    assert after.the(OutcomeResolved).evidence == "the broker holds it as working order 901"
    shown = after.the(OrderPlaced)
    assert (shown.order_ticket, shown.retcode, shown.retcode_name) == (901, 0, "")


@pytest.mark.parametrize(
    ("state", "kind", "status"),
    [(2, OrderCancelled, "cancelled"), (5, OrderRejected, "rejected"), (6, OrderExpired, "expired")],
)
def test_a_past_order_that_ended_without_a_deal_ends_the_attempt(state, kind, status):
    after = given(*lost).when(evidence(history=(broker_order(901, state),)))
    after.then(OutcomeResolved, kind).and_order(status=status, order_ticket=901)
    assert after.the(OutcomeResolved).evidence.startswith("the broker shows order 901 of this attempt")
    assert getattr(after.the(kind), "by", "") == ""
    assert (after.the(OutcomeResolved).resolution, after.the(OutcomeResolved).order_ticket) == ("found", 901)


def test_a_target_that_is_as_wanted_completes_the_request():
    now = TargetImage(position=position(700, sl=D("1.01")))
    after = given(*stops_lost).when(evidence(target=now)).then(OutcomeResolved, RequestCompleted)
    assert (after.the(OutcomeResolved).resolution, after.the(OutcomeResolved).order_ticket) == ("found", 0)
    assert after.the(OutcomeResolved).evidence == "position 700 has the wanted stops"
    assert (after.the(RequestCompleted).retcode, after.the(RequestCompleted).retcode_name) == (0, "")
    after.and_order(status=Status.COMPLETED)


def test_proven_absence_ends_the_order():
    after = given(*lost).when(evidence())
    after.then(
        OutcomeResolved,
        OrderFailed(
            symbol="EURUSD",
            category="fatal",
            reason="the request did not reach the broker: proven by its absence there",
            attempts=1,
        ),
    ).and_order(status=Status.FAILED, is_open=False)
    assert after.the(OutcomeResolved).resolution == "absent"
    assert after.the(OutcomeResolved).evidence.startswith("no working order, past order, deal or position")


def test_proven_absence_schedules_another_attempt_where_that_is_allowed():
    given(*lost).when(evidence(again=again(2))).then(
        OutcomeResolved,
        RetryScheduled(
            attempt=1,
            delay_s=D(2),
            not_before=again(2).not_before,
            reason="proven absent at the broker",
            symbol="EURUSD",
        ),
    ).and_order(status=Status.WAITING, retries=1)


def test_proven_absence_ends_a_request_that_has_no_object_any_more_even_where_repeating_is_allowed():
    others = (deal(9, reason=0, time_msc=2_000),)
    gone = evidence(target=TargetImage(), target_deals=others, again=again())
    after = given(*close_lost).when(gone).then(OutcomeResolved, OrderFailed)
    assert after.the(OrderFailed).reason == "position 700 was closed by others"
    assert after.the(OrderFailed).category == "fatal"


def test_a_request_whose_target_moved_on_fails_as_unknown_and_says_why():
    given(*stops_lost).when(evidence(target=TargetImage(), again=again())).then(
        OutcomeResolved(
            attempt=1,
            resolution="superseded",
            by="probe",
            evidence="position 700 is closed",
            symbol="EURUSD",
        ),
        OrderFailed(
            symbol="EURUSD",
            category="unknown",
            reason="position 700 is closed: the request has no object any more",
            attempts=1,
        ),
    ).and_order(status=Status.FAILED)


def test_what_is_less_than_proof_leaves_the_outcome_unknown():
    given(*lost).when(evidence(complete=False, positions=(position(900),), reason="no connection")).then(
        OutcomeProbed(attempt=1, complete=False, found=True, reason="no connection")
    ).and_order(status=Status.UNKNOWN)


def test_a_probe_that_shows_the_same_again_is_not_recorded_again():
    same = evidence(settled=False)
    given(*lost).when(same, same, same).then(OutcomeProbed)
    given(*lost).when(same, evidence(complete=False, reason="x"), same).then(*[OutcomeProbed] * 3)


def test_a_probe_of_the_next_attempt_is_news_again():
    same, next_ = evidence(settled=False), evidence(settled=False, attempt=2)
    second = given(*lost, same, evidence(again=again()), start(2), unknown(2)).and_order(probed=None)
    second.when(next_).then(OutcomeProbed(attempt=2, complete=True, found=False))


@pytest.mark.parametrize("past", [ready, sending, filled, placed, waiting, proven_absent])
def test_evidence_says_nothing_when_nothing_is_unknown(past):
    given(*past).when(evidence(), evidence(deals=(deal(9),))).then_nothing()


def test_evidence_of_another_attempt_says_nothing():
    given(*lost).when(evidence(attempt=2), evidence(attempt=0)).then_nothing()


def test_the_records_the_proof_rests_on_are_kept_up_to_a_limit():
    past = broker_order(800, 2)
    many = {
        "orders": tuple(broker_order(n) for n in range(30)),
        "history": tuple(broker_order(n, 4) for n in range(30)),
        "positions": tuple(position(n) for n in range(1, 31)),
        "deals": tuple(deal(n, "0.01") for n in range(1, 31)),
    }
    kept = given(*lost).when(evidence(**many)).the(OutcomeResolved)
    for name, records in many.items():
        assert getattr(kept, name) == records[:MAX_EVIDENCE]
    done = given(*cancel_lost).when(
        evidence(target=TargetImage(), target_history=past, target_deals=(deal(1),), history=(broker_order(3, 4),))
    )
    kept = done.the(OutcomeResolved)
    assert (kept.history, kept.deals) == ((broker_order(3, 4), past), (deal(1),))


# --- an operator's word -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("resolution", "category"), [("absent", "fatal"), ("abandoned", "unknown")])
def test_an_operator_s_word_that_nothing_is_there_ends_the_order(resolution, category):
    given(*lost).when(word(resolution)).then(
        OutcomeResolved(
            attempt=1, resolution=resolution, by="operator", evidence="seen at the broker", symbol="EURUSD"
        ),
        OrderFailed(
            symbol="EURUSD",
            category=category,
            reason=f"{resolution}, by an operator's word: seen at the broker",
            attempts=1,
        ),
    ).and_order(status=Status.FAILED)


def test_an_operator_s_word_that_it_is_there_waits_for_its_deals():
    after = given(*lost).when(word("found", 901)).then(OutcomeResolved, OrderPlaced)
    after.and_order(status=Status.PLACED, order_ticket=901)
    assert after.the(OutcomeResolved).order_ticket == after.the(OrderPlaced).order_ticket == 901
    after.when(deals(deal(order=901))).and_order(status=Status.FILLED)


@pytest.mark.parametrize("past", [stops_lost, modify_lost, cancel_lost])
def test_an_operator_s_word_that_a_request_without_a_deal_took_effect_completes_it(past):
    given(*past).when(word("found")).then(OutcomeResolved, RequestCompleted).and_order(status=Status.COMPLETED)


@pytest.mark.parametrize("past", [ready, sending, waiting, placed, filled, proven_absent])
def test_an_operator_s_word_is_heard_only_on_what_is_unknown(past):
    given(*past).when(word("found", 901), word("absent"), word("abandoned")).then_nothing()


@pytest.mark.parametrize("resolution", ["absent", "abandoned"])
def test_what_shows_against_an_operator_s_word_is_recorded_all_the_same(resolution):
    given(*lost, word(resolution)).when(deals(deal())).then(AnomalyDetected, OrderFilled).and_order(
        status=Status.FILLED
    )


def test_deals_that_are_nobody_s_already_end_the_order_that_an_operator_found_and_fill_nothing():
    ended = given(*lost, word("found", 901)).when(end_counted(deal(7), deal(8))).then(OrderCancelled)
    ended.and_order(status=Status.CANCELLED, filled_volume=D(0), remaining=D("0.3"))
    assert "order 901 was dealt, but not by us: its deals 7, 8 are" in ended.the(OrderCancelled).reason


def test_deals_that_are_its_own_or_come_when_it_has_ended_end_nothing():
    given(*limit_partly).when(end_counted(deal(volume="0.1")), end_counted()).then_nothing()
    given(*filled).when(end_counted(deal(99))).then_nothing()


# --- what the broker shows of a working order -------------------------------------------------------------------


@pytest.mark.parametrize("state", [0, 1, 3, 7, 8, 9])
def test_a_working_order_that_is_as_it_was_placed_is_no_news(state):
    given(*placed).when(order_state(state, price_open=D("1.050"))).then_nothing()


@pytest.mark.parametrize("past", [placed, limit_partly])
def test_changed_terms_of_a_working_order_are_told_once(past):
    new = {
        "price_open": D("1.0600"),
        "price_stoplimit": D("1.07"),
        "sl": D("1.01"),
        "tp": D("1.20"),
        "time_expiration": 99,
    }
    status = given(*past).order.status
    given(*past).when(order_state(1, **new, by="ord_2"), order_state(1, **new)).then(
        OrderModified(
            symbol="EURUSD",
            order_ticket=900,
            price=D("1.06"),
            stop_limit_price=D("1.07"),
            sl=D("1.01"),
            tp=D("1.2"),
            expiration=99,
            by="ord_2",
        )
    ).and_order(terms=Terms(D("1.06"), D("1.07"), D("1.01"), D("1.2"), 99), status=status)


@pytest.mark.parametrize("past", [sending, lost, limit_lost, filled, cancelled, expired])
def test_a_working_order_says_nothing_while_another_source_tells_or_after_the_end(past):
    given(*past).when(order_state(1)).then_nothing()


@pytest.mark.parametrize(
    ("past", "name"),
    [
        ((limit_order, check()), "ready"),
        ((*limit_sending, not_sent()), "ready"),
        (waiting, "waiting"),
        (parked, "parked"),
        (rejected, "rejected"),
        (proven_absent, "failed"),
    ],
)
def test_a_working_order_where_none_was_expected_is_believed_and_flagged(past, name):
    after = given(*past).when(order_state(1, ticket=905))
    assert after.events[0] == AnomalyDetected(
        kind="late_order", detail=f"an order of attempt {after.order.attempt} after {name}", symbol="EURUSD"
    )
    after.and_order(status=Status.PLACED, order_ticket=905)


def test_a_working_order_that_comes_late_tells_how_it_stands_at_once():
    late = order_state(1, price_open=D("1.05"), sl=D("1.0"), by="ord_2")
    after = given(*abandoned).when(late, late).then(AnomalyDetected, OrderPlaced, OrderModified)
    assert after.and_order(terms=Terms(price=D("1.05"), sl=D("1.0"))).the(OrderModified).by == "ord_2"


def test_an_order_cancelled_at_the_broker_is_cancelled():
    given(*placed).when(order_state(2)).then(
        OrderCancelled(
            symbol="EURUSD",
            order_ticket=900,
            filled_volume=D(0),
            remaining_volume=D("0.3"),
            reason="cancelled at the broker",
        )
    ).and_order(status=Status.CANCELLED)
    ours = given(*placed).when(order_state(2, by="ord_2", ticket=905)).the(OrderCancelled)
    assert (ours.by, ours.reason, ours.order_ticket) == ("ord_2", "", 905)


def test_an_order_that_expired_at_the_broker_is_expired():
    given(*limit_partly).when(order_state(6)).then(
        OrderExpired(symbol="EURUSD", order_ticket=900, filled_volume=D("0.1"), remaining_volume=D("0.2"))
    ).and_order(status=Status.EXPIRED)


def test_an_order_the_broker_rejects_after_all_is_rejected_by_its_own_answer():
    given(*placed).when(order_state(5)).then(
        OrderRejected(
            symbol="EURUSD",
            retcode=10009,
            retcode_name="RETCODE_10009",
            category="fatal",
            description="the broker rejected its order 900 later",
            attempts=1,
        )
    ).and_order(status=Status.REJECTED)


def test_a_rest_the_broker_rejects_is_cancelled():
    given(*limit_partly).when(order_state(5, by="ord_2", ticket=905)).then(
        OrderCancelled(
            symbol="EURUSD",
            order_ticket=905,
            filled_volume=D("0.1"),
            remaining_volume=D("0.2"),
            reason="the broker rejected the rest",
            by="ord_2",
        )
    ).and_order(status=Status.CANCELLED)


def test_an_order_that_is_filled_waits_for_its_deals():
    given(*placed).when(order_state(4, volume_initial=D("0.3"))).then_nothing()
    given(*limit_partly).when(order_state(4)).then_nothing()


def test_an_order_that_ended_waits_for_the_deals_it_made_before():
    ended = order_state(2, volume_initial=D("0.3"), volume_current=D("0.2"))
    given(*placed).when(ended).then_nothing()
    given(*limit_partly).when(ended).then(OrderCancelled)


@pytest.mark.parametrize("state", [2, 4, 5, 6])
@pytest.mark.parametrize("past", [ready, sending, lost, waiting, filled, limit_filled, cancelled, rejected])
def test_the_end_of_an_order_is_news_only_while_it_works(past, state):
    given(*past).when(order_state(state)).then_nothing()


# --- the stops of the position ----------------------------------------------------------------------------------


@pytest.mark.parametrize("past", [filled, partly])
def test_changed_stops_of_its_position_are_told_once(past):
    given(*past).when(moved_stops("1.050", "1.20", by="ord_2"), moved_stops("1.05", "1.2")).then(
        OrderModified(symbol="EURUSD", position_id=900, sl=D("1.05"), tp=D("1.2"), by="ord_2")
    ).and_order(terms=Terms(sl=D("1.05"), tp=D("1.2")), status=given(*past).order.status)


def test_one_changed_stop_is_a_change():
    given(*filled, moved_stops("1.05", "1.2")).when(moved_stops("1.05", "1.3")).then(OrderModified)
    given(*filled, moved_stops("1.05", "1.2")).when(moved_stops("1.04", "1.2")).then(OrderModified)
    given(*filled).when(moved_stops("0", "0")).then_nothing()


def test_new_stops_leave_the_price_of_the_order_as_it_is():
    given(*limit_filled).when(moved_stops("1.01")).and_order(terms=Terms(price=D("1.05"), sl=D("1.01")))


def test_the_stops_of_a_position_without_a_symbol_are_those_of_the_order():
    bare = msgspec.structs.replace(moved_stops("1.01"), position=position(900, sl=D("1.01"), symbol=""))
    assert given(*filled).when(bare).the(OrderModified).symbol == "EURUSD"


def test_a_late_working_order_after_an_abandoned_attempt_is_not_sent_again():
    given(*abandoned).when(order_state(1), start(2)).then_violates("invariant I1")
    given(*limit_sending, not_sent()).when(order_state(1), start(2)).then_violates("invariant I1")
