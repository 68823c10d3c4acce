"""What the broker shows of an attempt, and what that proves of it: each kind of request by its own rule."""

import msgspec
import pytest

from ledger.evidence import Absent, Dealt, Done, Ended, Inconclusive, Superseded, Working, judge
from ledger.trade import DEAL_REASON_EXPERT, TargetImage
from ledger.values import magic_of
from tests.decider import (
    ORDER_ID,
    D,
    broker_order,
    cancel_lost,
    close_by_lost,
    close_lost,
    close_request,
    close_sent,
    deal,
    evidence,
    given,
    limit_lost,
    lost,
    modify_lost,
    position,
    ready,
    start,
    stops_lost,
    unknown,
)

LESS_THAN_ALL = [{"complete": False}, {"settled": False}, {"complete": False, "settled": False}]
EVERY_KIND = {
    "open": lost,
    "pending": limit_lost,
    "close": close_lost,
    "stops": stops_lost,
    "modify": modify_lost,
    "cancel": cancel_lost,
    "close by": close_by_lost,
}


def judged(past, **found):
    return judge(given(*past).order, evidence(reason="why not", **found))


def open_(found: bool, reason: str = "why not") -> Inconclusive:
    return Inconclusive(found=found, reason=reason)


# --- every kind -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("past", EVERY_KIND.values(), ids=EVERY_KIND)
def test_a_deal_of_the_attempt_proves_its_effect_at_any_time(past):
    made = (deal(7), deal(8))
    found = judged(past, complete=False, settled=False, deals=made)
    assert found == Dealt(made, "the broker shows deal 7, 8 of this attempt")


BY_SERVER = {4: "stop loss", 5: "take profit", 6: "stop out", 7: "rollover", 8: "variation margin", 9: "split"}


@pytest.mark.parametrize("reason", BY_SERVER, ids=BY_SERVER.values())
def test_a_deal_that_the_server_made_of_the_position_is_not_the_attempt_s(reason):
    by_server = deal(9, reason=reason, type=1, order=905)
    found = judged(lost, deals=(deal(7, reason=3), by_server))
    assert found == Dealt((deal(7, reason=3),), "the broker shows deal 7 of this attempt")
    assert judged(lost, deals=(by_server,)) == open_(found=True)
    assert judged(lost, deals=(by_server,), history=(broker_order(905, 2),)) == open_(found=True)


@pytest.mark.parametrize("reason", [0, 1, 2], ids=["desktop", "mobile", "web"])
def test_the_deal_by_which_a_hand_closed_the_position_is_not_that_of_the_order_that_opened_it(reason):
    by_hand = deal(9, reason=reason, entry=1, type=1, order=905)
    found = judged(lost, deals=(deal(7, reason=3), by_hand))
    assert found == Dealt((deal(7, reason=3),), "the broker shows deal 7 of this attempt")


@pytest.mark.parametrize("less", LESS_THAN_ALL, ids=repr)
@pytest.mark.parametrize("past", EVERY_KIND.values(), ids=EVERY_KIND)
def test_nothing_seen_proves_nothing_until_all_was_seen_and_nothing_can_arrive(past, less):
    assert judged(past, **less) == open_(found=False)
    before = given(*past).order.before
    assert judged(past, **less, target=before) == open_(found=False)
    assert judged(past, **less, target=TargetImage()) == open_(found=False)


@pytest.mark.parametrize("kind", ["close", "stops", "modify", "cancel", "close by"])
def test_a_target_that_was_not_asked_for_proves_nothing(kind):
    assert judged(EVERY_KIND[kind]) == open_(found=False)


@pytest.mark.parametrize("kind", ["stops", "modify", "cancel", "close by"])
@pytest.mark.parametrize("before", [None, TargetImage()], ids=["none", "empty"])
def test_a_target_nobody_saw_before_proves_nothing(kind, before):
    request, sent, *rest = EVERY_KIND[kind]
    blind = (request, msgspec.structs.replace(sent, before=before), *rest)
    assert judged(blind, target=TargetImage()) == open_(found=False)


def test_a_request_that_is_not_known_proves_nothing():
    reason = "the request that was sent is not known"
    assert judge(given(*ready).order, evidence(deals=(deal(),))) == Inconclusive(found=False, reason=reason)


def test_a_request_without_a_rule_proves_nothing():
    odd = (*ready, start(1, action=99), unknown())
    assert judged(odd) == Inconclusive(found=False, reason="no rule for action 99")


ended, filled_one = broker_order(901, 2), broker_order(902, 4)


# --- an opening order -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("less", [{}, *LESS_THAN_ALL], ids=repr)
def test_a_working_order_proves_that_a_pending_order_was_placed(less):
    ours = broker_order(901, 1)
    found = judged(limit_lost, orders=(broker_order(900, 2), ours), **less)
    assert found == Working(ours, "the broker holds it as working order 901")


def test_a_working_order_leaves_a_market_order_open():
    assert judged(lost, orders=(broker_order(901, 1),)) == open_(found=True)


@pytest.mark.parametrize("past", [lost, limit_lost])
@pytest.mark.parametrize(("state", "how"), [(2, "cancelled"), (5, "rejected"), (6, "expired")])
def test_a_past_order_that_ended_without_a_deal_is_an_end(past, state, how):
    ended = broker_order(901, state)
    found = judged(past, history=(ended,))
    assert found == Ended(ended, f"the broker shows order 901 of this attempt, {how} without a deal")


@pytest.mark.parametrize(
    "more",
    [*LESS_THAN_ALL, {"positions": (position(900),)}, {"orders": (broker_order(902, 2),)}],
    ids=["incomplete", "unsettled", "neither", "position", "order"],
)
def test_a_past_order_is_no_end_while_anything_else_shows_or_may_show(more):
    assert judged(lost, history=(broker_order(901, 2),), **more) == open_(found=True)


@pytest.mark.parametrize(
    "past", [(broker_order(901, 2, volume_initial=D("0.3"), volume_current=D("0.2")),), (ended, filled_one)]
)
@pytest.mark.parametrize("kind", ["open", "close", "close by"])
def test_an_order_that_dealt_or_another_one_that_was_filled_is_no_end_even_when_no_deal_shows(kind, past):
    before = given(*EVERY_KIND[kind]).order.before
    assert judged(EVERY_KIND[kind], target=before, history=past) == open_(found=True)


@pytest.mark.parametrize(
    "trace",
    [
        {"orders": (broker_order(901, 2),)},
        {"history": (broker_order(901, 4),)},
        {"positions": (position(900),)},
    ],
    ids=["order", "history", "position"],
)
@pytest.mark.parametrize("less", [{}, *LESS_THAN_ALL], ids=repr)
def test_a_trace_without_a_deal_is_neither_absence_nor_effect(trace, less):
    assert judged(lost, **trace, **less) == open_(found=True)


@pytest.mark.parametrize("past", [lost, limit_lost])
def test_an_opening_order_of_which_nothing_shows_is_absent(past):
    assert judged(past) == Absent(
        "no working order, past order, deal or position carries the magic or comment of this attempt, "
        "and none can arrive any more"
    )


def test_a_close_of_which_no_position_was_seen_is_judged_by_its_own_traces():
    blind = (close_request, msgspec.structs.replace(close_sent, before=TargetImage()), unknown())
    assert isinstance(judged(blind), Absent)
    assert judged(blind, history=(broker_order(901, 4),)) == open_(found=True)


# --- a close ----------------------------------------------------------------------------------------------------

same = TargetImage(position=position(700))
smaller = TargetImage(position=position(700, "0.1"))
gone = TargetImage()
ours_perhaps = {"reason": DEAL_REASON_EXPERT, "time_msc": 2_000}
by_hand = deal(9, "0.2", reason=0, time_msc=2_000)
by_another_program = deal(9, "0.2", reason=DEAL_REASON_EXPERT, magic=4711, time_msc=2_000)


@pytest.mark.parametrize("target_deals", [(), (by_hand,), (by_another_program,)])
def test_a_position_that_holds_what_it_held_proves_that_no_close_arrived(target_deals):
    found = judged(close_lost, target=same, target_deals=target_deals)
    assert found == Absent("position 700 still holds 0.3 lots, and the close cannot arrive")


@pytest.mark.parametrize("other", [by_hand, by_another_program])
def test_a_position_that_others_closed_or_reduced_was_not_closed_by_this_attempt(other):
    closed = judged(close_lost, target=gone, target_deals=(other,))
    assert closed == Absent(
        "position 700 was closed by others: none of its deals is of this attempt",
        final="position 700 was closed by others",
    )
    reduced = judged(close_lost, target=smaller, target_deals=(other,))
    assert reduced == Absent("position 700 was reduced by others: none of its deals is of this attempt")


@pytest.mark.parametrize("target", [same, smaller, gone])
@pytest.mark.parametrize("magic", [0, magic_of(ORDER_ID, 1)])
def test_a_program_s_deal_under_a_lost_magic_may_be_this_attempt_s(target, magic):
    perhaps = deal(9, "0.2", magic=magic, **ours_perhaps)
    found = judged(close_lost, target=target, target_deals=(by_hand, perhaps))
    assert found == open_(found=True, reason="a deal of position 700 may be of this attempt")


@pytest.mark.parametrize("target", [smaller, gone])
@pytest.mark.parametrize("time_msc", [0, 999, 1_000])
def test_a_deal_from_before_the_attempt_explains_nothing(target, time_msc):
    earlier = deal(9, reason=DEAL_REASON_EXPERT, time_msc=time_msc)
    found = judged(close_lost, target=target, target_deals=(earlier,))
    assert found == open_(found=True, reason="position 700 changed, and no deal says by what")


@pytest.mark.parametrize("less", LESS_THAN_ALL, ids=repr)
@pytest.mark.parametrize("trace", ["orders", "history"])
def test_a_trace_of_a_close_leaves_it_open(less, trace):
    assert judged(close_lost, target=same, **{trace: (broker_order(901, 4),)}) == open_(found=True)
    assert judged(close_lost, target=same, **{trace: (broker_order(901, 4),)}, **less) == open_(found=True)


def test_the_order_of_a_close_that_ended_without_a_deal_is_an_end():
    rejected = broker_order(901, 5)
    found = judged(close_lost, target=same, history=(rejected,))
    assert found == Ended(rejected, "the broker shows order 901 of this attempt, no deal came of it")
    still = judged(close_lost, target=same, history=(rejected,), orders=(broker_order(902),))
    assert still == open_(found=True)


# --- the stops of a position ------------------------------------------------------------------------------------


def stops(sl: str, tp: str) -> TargetImage:
    return TargetImage(position=position(700, sl=D(sl), tp=D(tp)))


def test_the_wanted_stops_prove_the_effect_before_everything_has_settled():
    found = judged(stops_lost, settled=False, target=stops("1.010", "0"))
    assert found == Done("position 700 has the wanted stops")
    assert judged(stops_lost, complete=False, target=stops("1.01", "0")) == open_(found=False)


def test_the_stops_from_before_prove_absence():
    assert judged(stops_lost, target=stops("1.0", "1.2")) == Absent("position 700 has the stops it had before")


def test_stops_that_were_before_what_was_wanted_prove_no_effect():
    idle = (stops_lost[0], start(1, action=6, position=700, sl=D(1), tp=D("1.2"), before=stops("1", "1.2")), unknown())
    assert judged(idle, settled=False, target=stops("1", "1.2")) == open_(found=False)
    assert judged(idle, target=stops("1", "1.2")) == Absent("position 700 has the stops it had before")


@pytest.mark.parametrize(("sl", "tp"), [("1.01", "1.2"), ("1.0", "0"), ("5", "5")])
def test_other_stops_or_a_closed_position_supersede_the_request(sl, tp):
    text = "position 700 has stops that neither were before nor were asked for"
    assert judged(stops_lost, target=stops(sl, tp)) == Superseded(text)
    assert judged(stops_lost, target=gone) == Superseded("position 700 is closed")


# --- a pending order --------------------------------------------------------------------------------------------


def terms(price: str = "1.05", **changes) -> TargetImage:
    return TargetImage(order=broker_order(800, price_open=D(price), **({"sl": D("1.0")} | changes)))


def test_the_wanted_values_prove_the_effect_before_everything_has_settled():
    assert judged(modify_lost, settled=False, target=terms("1.06")) == Done("order 800 has the wanted values")
    assert judged(modify_lost, complete=False, target=terms("1.06")) == open_(found=False)


def test_the_values_from_before_prove_absence():
    assert judged(modify_lost, target=terms()) == Absent("order 800 has the values it had before")


def test_values_that_were_before_what_was_wanted_prove_no_effect():
    idle = (modify_lost[0], start(1, action=7, order=800, price=D("1.05"), sl=D(1), before=terms()), unknown())
    assert judged(idle, settled=False, target=terms()) == open_(found=False)
    assert judged(idle, target=terms()) == Absent("order 800 has the values it had before")


@pytest.mark.parametrize(
    "changes", [{"price_stoplimit": D(1)}, {"sl": D(2)}, {"tp": D(1)}, {"time_expiration": 9}], ids=repr
)
@pytest.mark.parametrize("price", ["1.05", "1.06"])
def test_other_values_supersede_the_request(price, changes):
    text = "order 800 has values that neither were before nor were asked for"
    assert judged(modify_lost, target=terms(price, **changes)) == Superseded(text)


def test_an_order_that_works_no_more_supersedes_its_change():
    assert judged(modify_lost, target=gone) == Superseded("order 800 works no more")


# --- a cancel ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("less", [{}, *LESS_THAN_ALL], ids=repr)
def test_a_cancelled_order_proves_the_cancel_at_any_time(less):
    found = judged(cancel_lost, target=gone, target_history=broker_order(800, 2), **less)
    assert found == Done("order 800 is cancelled")


@pytest.mark.parametrize(("state", "how"), [(4, "filled"), (5, "rejected"), (6, "expired")])
def test_an_order_that_ended_in_another_way_was_not_cancelled_and_cannot_be(state, how):
    past = broker_order(800, state)
    assert judged(cancel_lost, target=gone, target_history=past) == Absent(
        f"order 800 was {how}, not cancelled", final=f"order 800 was {how}"
    )
    assert judged(cancel_lost, target=gone, target_history=past, settled=False) == open_(found=False)


@pytest.mark.parametrize("past", [None, broker_order(800, 1)])
def test_an_order_that_still_works_proves_that_no_cancel_arrived(past):
    found = judged(cancel_lost, target=terms(), target_history=past)
    assert found == Absent("order 800 still works, and the cancel cannot arrive any more")


@pytest.mark.parametrize("past", [None, broker_order(800, 1)])
def test_an_order_that_is_nowhere_proves_nothing(past):
    found = judged(cancel_lost, target=gone, target_history=past)
    assert found == open_(found=False, reason="order 800 is neither working nor in history")


# --- a close by -------------------------------------------------------------------------------------------------


def both(first: str | None, second: str | None) -> TargetImage:
    return TargetImage(
        position=position(700, first) if first else None, position_by=position(701, second) if second else None
    )


def test_two_positions_that_hold_what_they_held_prove_absence():
    found = judged(close_by_lost, target=both("0.3", "0.20"))
    assert found == Absent("positions 700 and 701 hold what they held before")


@pytest.mark.parametrize(
    ("first", "second", "kept", "gone"),
    [("0.3", None, 700, 701), (None, "0.2", 701, 700), ("0.3", "0.1", 700, 0), ("0.1", "0.2", 701, 0)],
)
def test_a_close_by_takes_from_both_positions_so_that_one_as_it_was_proves_absence(first, second, kept, gone):
    assert judged(close_by_lost, target=both(first, second)) == Absent(
        f"position {kept} holds what it held before: a close-by takes from both",
        final=f"position {gone} was closed by others" if gone else "",
    )


def test_deals_of_others_that_explain_all_a_position_has_lost_prove_that_a_close_by_took_nothing():
    def seen(*deals):
        return judged(close_by_lost, target=both("0.1", None), target_deals=deals)

    out = {"entry": 1, "time_msc": 2_000, "position_id": 700}
    by_hand = (deal(8, "0.15", **out), deal(9, "0.05", **out))
    assert seen(*by_hand).evidence == "others made the deals of 700: a close-by takes from both"
    reason = "the positions changed, and no deal says whether by this attempt"
    assert seen(by_hand[0]) == open_(found=True, reason=reason)
    ours = deal(10, "0.05", **out | {"entry": 3}, reason=3)
    assert seen(by_hand[0], ours) == open_(found=True, reason=reason)


@pytest.mark.parametrize(("first", "second"), [("0.1", None), (None, None), ("0.2", "0.1")])
def test_positions_that_changed_without_a_deal_to_say_why_prove_nothing(first, second):
    reason = "the positions changed, and no deal says whether by this attempt"
    assert judged(close_by_lost, target=both(first, second)) == open_(found=True, reason=reason)


@pytest.mark.parametrize("trace", ["orders", "history"])
def test_a_trace_of_a_close_by_is_told_while_it_proves_nothing(trace):
    assert judged(close_by_lost, settled=False, **{trace: (broker_order(901, 4),)}) == open_(found=True)


@pytest.mark.parametrize("trace", [{"orders": (broker_order(901),)}, {"history": (broker_order(901, 4),)}], ids=repr)
def test_a_close_by_that_left_a_trace_is_not_absent(trace):
    assert judged(close_by_lost, target=both("0.3", "0.2"), **trace) == open_(found=True)


def test_the_order_of_a_close_by_that_ended_without_a_deal_is_an_end():
    rejected = broker_order(901, 5)
    found = judged(close_by_lost, target=both("0.3", "0.2"), history=(rejected,))
    assert found == Ended(rejected, "the broker shows order 901 of this attempt, no deal came of it")
    still = judged(close_by_lost, target=both("0.3", "0.2"), history=(rejected,), orders=(broker_order(902),))
    assert still == open_(found=True)


def test_a_close_by_needs_both_positions_as_they_were():
    half = msgspec.structs.replace(close_by_lost[1], before=TargetImage(position=position(700)))
    blind = (close_by_lost[0], half, unknown())
    assert judged(blind, target=both("0.3", "0.2")) == open_(found=False)
