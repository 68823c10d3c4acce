"""What a deal means for its order: counted once, completed, corrected, flagged, and believed however late it is."""

from datetime import timedelta

import msgspec
import pytest

from ledger.commands import ExpireOrder, RecordDeals, RefuseOrder
from ledger.fills import broker_utc
from ledger.order import KnownDeal, Status
from ledger.order_events import (
    AnomalyDetected,
    BrokerAnswered,
    FillCorrected,
    FillCostsChanged,
    OrderFilled,
    OrderPartiallyFilled,
)
from ledger.positions import ENTRY_INOUT
from ledger.trade import TYPE_SELL, TargetImage
from ledger.values import magic_of
from tests.decider import (
    NOW,
    ORDER_ID,
    D,
    abandoned,
    answer,
    cancelled,
    check,
    close_by_request,
    close_by_sent,
    close_request,
    close_sent,
    deal,
    deals,
    expired,
    filled,
    given,
    limit_partly,
    limit_sending,
    not_sent,
    order_state,
    parked,
    partly,
    placed,
    position,
    proven_absent,
    ready,
    receive,
    rejected,
    requested,
    sending,
    start,
    waiting,
)

UTC_NOON = 1_772_366_400_000  # NOW, in milliseconds
# An answer that names its deal before the deal itself can be seen.
named = (*sending, answer("success", deal=55, volume=D("0.3"), price=D("1.2")))


# --- a fill is a deal -------------------------------------------------------------------------------------------


def test_a_fill_tells_all_of_its_deal_and_of_the_answer_that_named_it():
    made = deal(
        7,
        order=901,
        commission=D("-0.70"),
        swap=D("-0.1"),
        fee=D("-0.2"),
        profit=D("3.0"),
        entry=1,
        reason=3,
        time_msc=UTC_NOON + 7_200_123,
    )
    told = answer("success", made, point=D("0.00001"), broker_utc_offset_s=7200)
    given(*sending).when(told).then(
        BrokerAnswered,
        OrderFilled(
            symbol="EURUSD",
            side="buy",
            order_ticket=901,
            deal=7,
            position_id=900,
            volume=D("0.3"),
            price=D("1.1"),
            filled_volume=D("0.3"),
            remaining_volume=D(0),
            attempts=1,
            requested_price=None,
            point=D("0.00001"),
            commission=D("-0.7"),
            swap=D("-0.1"),
            fee=D("-0.2"),
            profit=D(3),
            entry=1,
            reason=3,
            broker_time_msc=UTC_NOON + 7_200_123,
            broker_utc_offset_s=7200,
            broker_time=NOW + timedelta(milliseconds=123),
            retcode=10009,
            retcode_name="RETCODE_10009",
            raw=made,
        ),
    ).and_order(status=Status.FILLED, is_open=False, order_ticket=901, filled_volume=D("0.3"), remaining=D(0))


def test_a_filled_order_knows_its_deals():
    made = deal(7, commission=D("-0.7"), swap=D(1), fee=D(2), profit=D(3))
    given(*sending).when(answer("success", made)).and_order(
        deals=(KnownDeal(7, 5, D("0.3"), D("1.1"), D("-0.7"), D(1), D(2), D(3), False),)
    )


def test_a_deal_shown_without_an_answer_tells_point_and_time_and_no_retcode():
    seen = RecordDeals(deals=(deal(time_msc=UTC_NOON + 3_600_000),), point=D("0.1"), broker_utc_offset_s=3600)
    fill = given(*placed).when(seen).the(OrderFilled)
    assert (fill.point, fill.broker_time, fill.retcode, fill.retcode_name) == (D("0.1"), NOW, 0, "")
    assert (fill.requested_price, fill.attempts) == (D("1.05"), 1)


def test_a_deal_that_names_neither_order_nor_symbol_belongs_to_what_is_known():
    bare = deal(order=0, symbol="")
    assert given(*sending).when(answer("success", bare)).the(OrderFilled).order_ticket == 900
    fill = given(*placed).when(deals(bare)).the(OrderFilled)
    assert (fill.order_ticket, fill.symbol) == (900, "EURUSD")


def test_deals_fill_the_order_one_after_the_other():
    after = given(*sending).when(answer("success", deal(1, "0.1"), deal(2, "0.20")))
    after.then(BrokerAnswered, OrderPartiallyFilled, OrderFilled).and_order(status=Status.FILLED)
    assert [(str(one.filled_volume), str(one.remaining_volume)) for one in after.events[1:]] == [
        ("0.1", "0.2"),
        ("0.3", "0"),
    ]


def test_a_fill_that_leaves_volume_open_leaves_the_order_open():
    given(*sending).when(answer("success", deal(1, "0.1"))).then(BrokerAnswered, OrderPartiallyFilled).and_order(
        status=Status.PARTIALLY_FILLED, remaining=D("0.2"), is_open=True
    )


def test_a_deal_is_counted_once_however_often_it_is_told():
    given(*partly).when(answer("success", deal(1, "0.1")), deals(deal(1, "0.10"))).then(BrokerAnswered)
    given(*partly).when(answer("success", deal(1, "0.1"), deal(2, "0.2"), deal(2, "0.2"))).then(
        BrokerAnswered, OrderFilled
    ).and_order(filled_volume=D("0.3"))


def test_a_sell_is_filled_by_a_selling_deal():
    sold = given(receive(order_type="sell"), check(), start(1, type=TYPE_SELL)).when(
        answer("success", deal(type=TYPE_SELL))
    )
    assert sold.then(BrokerAnswered, OrderFilled).the(OrderFilled).side == "sell"


def test_a_close_is_measured_by_what_was_sent():
    given(close_request, close_sent).and_order(volume=D("0.3"))
    made = deal(volume="0.3", type=TYPE_SELL, position_id=700)
    given(close_request, close_sent).when(answer("success", made)).then(BrokerAnswered, OrderFilled)


def test_a_close_by_is_complete_when_both_positions_have_their_deal():
    legs = deal(1, "0.2", position_id=700, type=TYPE_SELL), deal(2, "0.2", position_id=701)
    given(close_by_request, close_by_sent).when(answer("success", *legs)).then(
        BrokerAnswered, OrderPartiallyFilled, OrderFilled
    ).and_order(volume=D("0.4"))


def test_a_close_by_of_which_nothing_was_seen_before_has_no_volume():
    blind = msgspec.structs.replace(close_by_sent, before=TargetImage(position=position(700)))
    given(close_by_request, blind).and_order(volume=D(0), remaining=D(0))
    given(close_by_request, msgspec.structs.replace(blind, before=None)).and_order(volume=D(0))


@pytest.mark.parametrize(("offset_s", "hours"), [(0, 0), (7200, -2), (-18_000, 5)])
def test_a_broker_time_is_told_as_utc(offset_s, hours):
    assert broker_utc(UTC_NOON, offset_s) == NOW + timedelta(hours=hours)


@pytest.mark.parametrize("time_msc", [0, 2**63 - 1, -(2**63)])
def test_a_broker_time_that_is_none_or_beyond_all_calendars_is_kept_and_not_interpreted(time_msc):
    fill = given(*sending).when(answer("success", deal(time_msc=time_msc))).the(OrderFilled)
    assert (fill.broker_time_msc, fill.broker_time) == (time_msc, None)


# --- provisional fills ------------------------------------------------------------------------------------------


def test_an_answer_that_names_a_deal_nobody_can_see_yet_is_a_provisional_fill():
    after = given(*sending).when(
        answer("success", deal=55, volume=D("0.1"), price=D("1.2"), order=901), answer("success", deal=55)
    )
    after.then(BrokerAnswered, OrderPartiallyFilled, BrokerAnswered)
    fill = after.the(OrderPartiallyFilled)
    assert (fill.provisional, fill.raw, fill.price, fill.volume) == (True, None, D("1.2"), D("0.1"))
    assert (fill.side, fill.symbol, fill.order_ticket, fill.position_id) == ("buy", "EURUSD", 901, 901)
    assert after.order.deals[0].provisional


def test_a_provisional_fill_without_a_volume_counts_as_all_that_is_left():
    given(*sending).when(answer("success", deal=55)).then(BrokerAnswered, OrderFilled).and_order(filled_volume=D("0.3"))
    given(*partly).when(answer("success", deal=55)).then(BrokerAnswered, OrderFilled).and_order(filled_volume=D("0.3"))


@pytest.mark.parametrize(
    ("known", "told", "counted", "filled_volume"),
    [
        ("0.2", "0.3", "0.1", "0.3"),  # the other deal of two, shown before the answer came
        ("0.1", "0.2", "0.1", "0.2"),
        ("0.2", "0.1", "0.1", "0.3"),  # a deal that came after what the answer tells
    ],
)
def test_a_provisional_fill_counts_what_is_not_counted_yet(
    known: str, told: str, counted: str, filled_volume: str
) -> None:
    early = deals(deal(56, volume=D(known)))
    after = given(*sending).when(early, answer("success", deal=55, volume=D(told)))
    assert [one.volume for one in after.order.deals] == [D(known), D(counted)]
    assert after.order.filled_volume == D(filled_volume)
    assert not [one for one in after.events if isinstance(one, AnomalyDetected)]


def test_a_provisional_fill_of_a_close_is_of_the_position_it_closes():
    fill = given(close_request, close_sent).when(answer("success", deal=55)).the(OrderFilled)
    assert (fill.side, fill.position_id) == ("sell", 700)


def test_a_provisional_fill_gives_back_what_it_counted_of_a_deal_that_is_shown_before_it():
    found = given(*named).when(deals(deal(56, volume=D("0.2")), deal(55, volume=D("0.1"))))
    found.then(FillCorrected, OrderFilled)
    assert (found.order.status, found.order.filled_volume) == (Status.FILLED, D("0.3"))


def test_the_deal_itself_completes_the_provisional_fill_with_its_costs():
    made = deal(55, price=D("1.2"), commission=D("-0.7"), order=902)
    after = given(*named).when(deals(made))
    after.then(FillCorrected).and_order(status=Status.FILLED, filled_volume=D("0.3"), order_ticket=902)
    found = after.the(FillCorrected)
    assert (found.corrects, found.was_volume, found.was_price) == (5, D("0.3"), D("1.2"))
    assert (found.commission, found.provisional, found.raw) == (D("-0.7"), False, made)
    assert (found.filled_volume, found.remaining_volume) == (D("0.3"), D(0))
    given(*named).when(deals(made), deals(made), answer("success", deal=55)).then(FillCorrected, BrokerAnswered)


def test_a_deal_that_turns_out_smaller_opens_the_order_again_until_the_next_deal_fills_it():
    given(*named).when(deals(deal(55, "0.1"))).then(FillCorrected).and_order(
        status=Status.PARTIALLY_FILLED, filled_volume=D("0.1"), remaining=D("0.2")
    )
    given(*named).when(deals(deal(55, "0.1"), deal(56, "0.2"))).then(FillCorrected, OrderFilled).and_order(
        status=Status.FILLED, filled_volume=D("0.3")
    )


def test_a_deal_that_turns_out_larger_fills_the_order():
    small = (*sending, answer("success", deal=55, volume=D("0.1"), price=D("1.2")))
    given(*small).when(deals(deal(55, "0.3"))).then(FillCorrected).and_order(status=Status.FILLED)
    given(*small).when(deals(deal(55, "0.2"))).then(FillCorrected).and_order(status=Status.PARTIALLY_FILLED)


def test_a_completed_fill_is_checked_against_its_request_once_more():
    after = given(*named).when(deals(deal(55, "0.4", symbol="GBPUSD"))).then(FillCorrected, *[AnomalyDetected] * 2)
    assert [event.kind for event in after.events[1:]] == ["fill_symbol", "fill_volume"]


# --- what changes later -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", ["commission", "swap", "fee", "profit"])
def test_costs_that_are_booked_later_are_told_as_new_totals(cost):
    before = {"commission": D(-1), "swap": D(-2), "fee": D(-3), "profit": D(4)}
    fill = (*sending, answer("success", deal(7, **before)))
    costs = before | {cost: D("-9.50")}
    after = given(*fill).when(deals(deal(7, **costs, symbol="")), deals(deal(7, **costs)))
    after.then(FillCostsChanged(deal=7, fill_version=5, symbol="EURUSD", **costs))
    known = after.order.deals[0]
    assert {name: getattr(known, name) for name in costs} == costs
    assert (known.volume, known.version) == (D("0.3"), 5)


def test_new_costs_are_those_of_their_deal_alone():
    two = (*sending, answer("success", deal(1, "0.1"), deal(2, "0.2")))
    after = given(*two).when(deals(deal(1, "0.1", swap=D(-1)))).then(FillCostsChanged)
    assert [(one.ticket, one.swap) for one in after.order.deals] == [(1, D(-1)), (2, D(0))]


def test_costs_after_a_correction_name_the_fill_they_belong_to():
    after = given(*named).when(deals(deal(55)), deals(deal(55, swap=D(-1))))
    assert after.then(FillCorrected, FillCostsChanged).the(FillCostsChanged).fill_version == 5


def test_a_deal_the_broker_changes_afterwards_is_corrected_and_flagged():
    given(*filled).when(deals(deal(1, "0.2", price=D("1.3")))).then(
        FillCorrected,
        AnomalyDetected(
            kind="deal_changed",
            detail="deal 1 was 0.3 at 1.1, the broker now shows 0.2 at 1.3",
            symbol="EURUSD",
        ),
    ).and_order(filled_volume=D("0.2"), status=Status.PARTIALLY_FILLED)
    given(*filled).when(deals(deal(1, price=D("1.3")))).then(FillCorrected, AnomalyDetected)


# --- what does not fit its request ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "kind", "detail"),
    [
        ({"symbol": "GBPUSD"}, "fill_symbol", "deal 1 is in GBPUSD, asked was EURUSD"),
        ({"type": TYPE_SELL}, "fill_side", "deal 1 has type 1, asked was 0"),
        ({"volume": "0.4"}, "fill_volume", "deal 1 brings the volume to 0.4 of 0.3"),
    ],
)
def test_a_fill_that_does_not_fit_its_request_is_kept_and_flagged(changes, kind, detail):
    given(*sending).when(answer("success", deal(**changes))).then(
        BrokerAnswered, OrderFilled, AnomalyDetected(kind=kind, detail=detail, symbol="EURUSD")
    ).and_order(status=Status.FILLED)


def test_everything_that_does_not_fit_is_flagged():
    after = given(*sending).when(answer("success", deal(symbol="GBPUSD", type=TYPE_SELL, volume="0.4")))
    after.then(BrokerAnswered, OrderFilled, *[AnomalyDetected] * 3)


def test_a_deal_too_many_is_flagged():
    given(*filled).when(deals(deal(2, "0.1"))).then(OrderFilled, AnomalyDetected).and_order(
        status=Status.FILLED, filled_volume=D("0.4"), remaining=D(0)
    )


def test_a_deal_of_an_earlier_attempt_is_flagged_for_two_may_be_at_the_broker():
    first, second = magic_of(ORDER_ID, 1), magic_of(ORDER_ID, 2)
    resent = (*abandoned, start(2))
    given(*resent).when(deals(deal(magic=first))).then(
        OrderFilled,
        AnomalyDetected(
            kind="fill_attempt", detail=f"deal 1 carries magic {first}, attempt 2 has {second}", symbol="EURUSD"
        ),
    ).and_order(status=Status.FILLED)
    given(*resent).when(deals(deal(magic=second))).then(OrderFilled)
    given(*resent).when(deals(deal(magic=0))).then(OrderFilled)
    given(*ready, start(1, magic=0)).when(deals(deal(magic=first))).then(OrderFilled)


@pytest.mark.parametrize(("side", "sent_type", "deal_type"), [("buy", 0, 1), ("sell", 1, 0), ("buy_limit", 2, 1)])
def test_a_deal_on_the_wrong_side_is_flagged(side, sent_type, deal_type):
    order = receive(order_type=side, price=None if side in ("buy", "sell") else "1.05")
    after = given(order, start(1, type=sent_type)).when(deals(deal(type=deal_type, price=D("1.05"))))
    assert after.the(AnomalyDetected).detail == f"deal 1 has type {deal_type}, asked was {1 - deal_type}"


@pytest.mark.parametrize(("side", "deal_type"), [("buy", 0), ("sell", 1)])
def test_a_deal_of_an_order_that_was_never_sent_is_judged_by_its_request(side, deal_type):
    never = given(receive(order_type=side))
    never.when(deals(deal(type=deal_type))).then(AnomalyDetected, OrderFilled)
    assert never.events[0].kind == "late_fill"
    wrong = given(receive(order_type=side)).when(deals(deal(type=1 - deal_type)))
    assert wrong.events[-1].kind == "fill_side"


def test_a_deal_of_what_nobody_understood_is_recorded_and_flagged():
    after = given(receive(volume="NaN")).when(deals(deal()))
    after.then(AnomalyDetected, OrderFilled, AnomalyDetected).and_order(status=Status.FILLED)
    assert (after.events[0].kind, after.events[2].kind) == ("late_fill", "fill_volume")
    assert after.the(OrderFilled).requested_price is None


@pytest.mark.parametrize(("position_id", "fits"), [(700, True), (77, True), (0, True), (701, False), (900, False)])
def test_the_deal_of_a_close_must_be_of_the_position_it_closes(position_id, fits):
    after_reversal = TargetImage(position=position(700, ticket=77))
    sent = start(1, type=TYPE_SELL, position=77, before=after_reversal)
    after = given(close_request, sent).when(deals(deal(type=TYPE_SELL, position_id=position_id)))
    flagged = [event.detail for event in after.events if isinstance(event, AnomalyDetected)]
    assert flagged == ([] if fits else [f"deal 1 is of position {position_id}, asked was 77"])


def test_a_close_that_opened_the_other_side_is_flagged():
    """On a netting account, where somebody reduced the position between the look at it and the send."""
    sold = deal(type=TYPE_SELL, position_id=700, entry=ENTRY_INOUT)
    assert given(close_request, close_sent).when(deals(sold)).the(AnomalyDetected).kind == "fill_entry"
    meant = given(*sending).when(deals(sold))  # who opens may mean to turn the position
    assert "fill_entry" not in {getattr(one, "kind", "") for one in meant.events}


def test_the_deals_of_a_close_by_are_of_its_two_positions_on_either_side():
    legs = [deal(1, "0.2", position_id=700, type=TYPE_SELL), deal(2, "0.2", position_id=701)]
    given(close_by_request, close_by_sent).when(deals(*legs)).then(OrderPartiallyFilled, OrderFilled)
    foreign = given(close_by_request, close_by_sent).when(deals(deal(1, "0.2", position_id=702)))
    assert foreign.the(AnomalyDetected).kind == "fill_position"
    unseen = given(close_by_request, msgspec.structs.replace(close_by_sent, before=None))
    assert "fill_position" not in {getattr(one, "kind", "") for one in unseen.when(deals(legs[1])).events}


@pytest.mark.parametrize(
    ("order_type", "deal_type", "price", "fits"),
    [
        ("buy_limit", 0, "1.05", True),
        ("buy_limit", 0, "1.04", True),
        ("buy_limit", 0, "1.06", False),
        ("sell_limit", 1, "1.05", True),
        ("sell_limit", 1, "1.06", True),
        ("sell_limit", 1, "1.04", False),
        ("buy_stop", 0, "1.5", True),
        ("sell_stop", 1, "0.5", True),
        ("buy_stop_limit", 0, "1.03", True),
        ("buy_stop_limit", 0, "1.04", False),
        ("sell_stop_limit", 1, "1.02", False),
        ("buy", 0, "9", True),
    ],
)
def test_a_deal_worse_than_the_limit_is_flagged_and_market_and_stop_orders_slip(order_type, deal_type, price, fits):
    limits = {"price": "1.05" if order_type != "buy" else None}
    limits |= {"stop_limit_price": "1.03"} if order_type.endswith("stop_limit") else {}
    order = given(receive(order_type=order_type, **limits), start(1, type=deal_type))
    order.when(deals(deal(type=deal_type, price=D(price))))
    flagged = [event.detail for event in order.events if getattr(event, "kind", "") == "fill_price"]
    limit = limits.get("stop_limit_price", "1.05")
    assert flagged == ([] if fits else [f"deal 1 is at {price}, worse than the {limit} asked for"])


def test_a_limit_that_was_changed_is_the_limit_a_deal_is_held_to():
    moved = (*placed, order_state(1, price_open=D("1.07")))
    given(*moved).when(deals(deal(price=D("1.07")))).then(OrderFilled)
    given(*moved).when(deals(deal(price=D("1.08")))).then(OrderFilled, AnomalyDetected)
    stop_limit = receive(order_type="buy_stop_limit", price="1.06", stop_limit_price="1.05")
    sent = start(1, action=5, type=6, price=D("1.06"), stoplimit=D("1.05"))
    moved = (stop_limit, sent, answer("success"), order_state(1, price_open=D("1.06"), price_stoplimit=D("1.07")))
    given(*moved).when(deals(deal(price=D("1.07")))).then(OrderFilled)


# --- what comes late --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("past", "name"),
    [
        (requested, "requested"),
        (ready, "ready"),
        (abandoned, "ready"),
        (waiting, "waiting"),
        (parked, "parked"),
        (proven_absent, "failed"),
        (rejected, "rejected"),
        ((*abandoned, RefuseOrder(reasons=("halted",))), "refused"),
        ((*abandoned, ExpireOrder(age_s=D(301), limit_s=D(300), cause="life")), "stale"),
    ],
)
def test_a_deal_that_comes_against_our_conclusion_is_believed_and_flagged(past, name):
    given(*past).and_order(status=name)
    flag = AnomalyDetected(kind="late_fill", detail=f"a deal after {name}", symbol="EURUSD")
    given(*past).when(deals(deal())).then(flag, OrderFilled).and_order(status=Status.FILLED)
    given(*past).when(deals(deal(1, "0.1"), deal(2, "0.2"))).then(flag, OrderPartiallyFilled, OrderFilled)
    given(*past).when(deals(deal(volume="0.1"))).and_order(status=Status.PARTIALLY_FILLED, is_open=True)


@pytest.mark.parametrize(("past", "name"), [(cancelled, "cancelled"), (expired, "expired")])
def test_a_deal_after_the_broker_ended_the_order_counts_but_opens_nothing_again(past, name):
    flag = AnomalyDetected(kind="late_fill", detail=f"a deal after {name}", symbol="EURUSD")
    cheap = {"price": D("1.05")}
    given(*past).when(deals(deal(volume="0.1", **cheap))).then(flag, OrderPartiallyFilled).and_order(
        status=name, is_open=False, filled_volume=D("0.1")
    )
    given(*past).when(deals(deal(**cheap))).then(flag, OrderFilled).and_order(status=Status.FILLED)


@pytest.mark.parametrize("past", [sending, partly, filled, placed, limit_partly])
def test_a_deal_of_an_order_the_broker_has_is_no_surprise(past):
    kinds = [getattr(one, "kind", "") for one in given(*past).when(deals(deal(9, "0.1", price=D("1.05")))).events]
    assert "late_fill" not in kinds


def test_new_costs_and_no_deals_are_never_late():
    ended = (*limit_partly, order_state(2))
    given(*ended).when(deals(deal(volume="0.1", price=D("1.05"), swap=D(-1)))).then(FillCostsChanged)
    given(*ended).when(deals()).then_nothing()
    given(*abandoned).when(deals()).then_nothing()


def test_an_order_with_a_deal_is_never_sent_again():
    for past in (abandoned, waiting, parked):
        given(*past).when(deals(deal(volume="0.1")), start(2)).then_violates("invariant I1")
    given(*limit_sending, not_sent()).when(answer("success"), start(2)).then_violates("invariant I1")
