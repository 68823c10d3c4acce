"""The pure comparison: every class of difference, and none where there is none."""

from datetime import UTC, datetime
from decimal import Decimal as D
from typing import Any

import pytest
from hypothesis import given as holds
from hypothesis import strategies as st

from ledger.book import as_shown
from ledger.order import Status
from ledger.positions import Position
from ledger.reconcile import CLASSES, Brokers, Ours, differences, policy_of
from ledger.trade import BrokerOrder, Deal
from ledger.trade import Position as Shown
from tests.decider import ORDER_ID, answer, given, receive, start

AT = datetime(2026, 3, 1, tzinfo=UTC)


def ours(**fields: Any) -> Position:
    held = {"position_id": 9, "symbol": "EURUSD", "side": "long", "volume": D("0.1"), "entry_price": D("1.1")}
    return Position(**(held | {"opened_at": AT} | fields))


def theirs(**fields: Any) -> Shown:
    shown = {"ticket": 9, "identifier": 9, "symbol": "EURUSD", "volume": D("0.1"), "price_open": D("1.1")}
    return Shown(**(shown | fields))


def kinds(mine: Position | None, shown: Shown | None, **fields: Any) -> list[str]:
    found = differences(
        Ours(positions={9: mine} if mine else {}), Brokers(positions=(shown,) if shown else (), **fields)
    )
    return [one.difference.kind for one in found]


@pytest.mark.parametrize(
    ("mine", "shown", "netting", "kind"),
    [
        (ours(), None, False, "missing_at_broker"),
        (None, theirs(), False, "unknown_at_broker"),
        (ours(), theirs(volume=D("0.2")), False, "volume"),
        (ours(), theirs(type=1), False, "side"),
        (ours(), theirs(type=1), True, "netting_reversal"),
        (ours(), theirs(sl=D(1)), False, "stops"),
        (ours(), theirs(price_open=D("1.101")), False, "price"),
        (ours(), theirs(ticket=10), False, "ticket_changed"),
    ],
)
def test_a_position_that_differs_is_classed(mine: Any, shown: Any, netting: bool, kind: str) -> None:
    assert kinds(mine, shown, netting=netting) == [kind]


def test_equal_views_do_not_differ_nor_do_prices_within_a_point() -> None:
    assert kinds(ours(), theirs()) == []
    assert kinds(ours(), theirs(price_open=D("1.10001")), points={"EURUSD": D("0.00001")}) == []


def test_deals_of_others_that_explain_a_position_are_told_with_it_and_others_for_themselves() -> None:
    deals = (
        Deal(ticket=1, position_id=9, symbol="EURUSD", volume=D("0.1"), price=D("1.1")),
        Deal(ticket=2, position_id=8, symbol="EURUSD", volume=D("0.1"), price=D("1.1")),
        Deal(ticket=3, type=2, profit=D(100)),
    )
    found = differences(Ours(positions={}), Brokers(positions=(theirs(),), deals=deals))
    assert [(one.difference.kind, one.difference.deal) for one in found] == [
        ("unknown_at_broker", 1), ("fill_missing", 3), ("fill_missing", 2),
    ]  # fmt: skip
    assert [deal.ticket for one in found for deal in one.external] == [1, 3, 2]


def test_a_working_order_that_is_none_of_ours_is_unknown_and_nothing_repairs_it() -> None:
    (found,) = differences(Ours(positions={}), Brokers(orders=(BrokerOrder(ticket=5, type=2, state=1),)))
    assert (found.difference.kind, found.repairs) == ("order_unknown", False)


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_may_be_only_alerted_and_is_repaired_by_default(kind: str) -> None:
    assert policy_of({}, kind) in ("adopt", "correct")
    assert policy_of({kind: "alert"}, kind) == "alert"


amounts = st.decimals("0.01", "5", places=2)
shown_positions = st.builds(
    theirs,
    volume=amounts,
    type=st.integers(0, 1),
    sl=amounts,
    tp=amounts,
    price_open=amounts,
    ticket=st.integers(1, 99),
)


@holds(shown_positions, st.booleans(), st.booleans())
def test_a_position_set_as_the_broker_shows_it_differs_no_more(shown: Shown, known: bool, netting: bool) -> None:
    mine = ours() if known else None
    found = differences(Ours(positions={9: mine} if mine else {}), Brokers(positions=(shown,), netting=netting))
    for one in found:
        assert one.position is not None
        mine = as_shown(mine, one.position, AT)
    assert kinds(mine, shown, netting=netting) in ([], ["ticket_changed"])


policies_given = st.fixed_dictionaries({kind: st.sampled_from(both) for kind, both in CLASSES.items()})


@holds(shown_positions, policies_given, st.booleans())
def test_what_policy_only_alerts_of_is_left_as_it_was_and_the_rest_set_right(
    shown: Shown, policies: dict[str, str], netting: bool
) -> None:
    brokers = Brokers(positions=(shown,), netting=netting)
    before = differences(Ours(positions={9: ours()}), brokers, policies)
    told = {one.difference.kind: one.difference.policy for one in before}
    assert told == {kind: policies[kind] for kind in told}
    assert {one.difference.kind for one in before if one.repairs} == {k for k in told if told[k] != "alert"}
    held = Ours(positions={9: ours()})
    for one in before:
        if one.position is not None:
            ticket = {9: one.position.position.ticket}
            held = Ours(positions={9: as_shown(held.positions[9], one.position, AT)}, tickets=ticket)
    after = {one.difference.kind for one in differences(held, brokers, policies)}
    assert after == {kind for kind in told if told[kind] == "alert"}


ADDED = Deal(ticket=3, order=8, position_id=9, symbol="EURUSD", volume=D("0.1"), price=D("1.2"))


def by_deal(**policies: str) -> list[tuple[str, bool, bool]]:
    """Somebody added to a netting position: class, whether the deal is recorded with it, whether it is set."""
    shown = theirs(volume=D("0.2"), price_open=D("1.15"), sl=D(1))
    brokers = Brokers(positions=(shown,), deals=(ADDED,), netting=True)
    found = differences(Ours(positions={9: ours()}), brokers, policies)
    return [(one.difference.kind, bool(one.external), one.position is not None) for one in found]


def test_a_deal_is_recorded_first_and_what_it_does_not_explain_is_judged_then() -> None:
    assert by_deal() == [("volume", True, False), ("price", False, False), ("stops", False, False)]


def test_what_a_deal_decides_is_not_set_while_policy_keeps_the_deal_out() -> None:
    """Else it would count twice once the deal is recorded."""
    assert by_deal(volume="alert") == [("volume", True, False), ("price", False, False), ("stops", False, True)]


def test_a_fill_of_ours_that_is_missing_is_one_difference_and_its_position_and_order_none() -> None:
    limit = receive(order_type="buy_limit", price=D("1.1"))
    placed = given(limit, start(type=2, action=5), answer("success", order=900)).order
    assert placed.status is Status.PLACED
    deal = Deal(ticket=3, order=900, position_id=900, symbol="EURUSD", volume=D("0.3"), price=D("1.1"))
    brokers = Brokers(
        positions=(theirs(ticket=900, identifier=900, volume=D("0.3")),), deals=(deal,), deal_owners={3: ORDER_ID},
        ended=(BrokerOrder(ticket=900, type=2, state=4, volume_initial=D("0.3")),),
    )  # fmt: skip
    found = differences(Ours(positions={}, orders={ORDER_ID: placed}), brokers)
    assert [(one.difference.kind, one.difference.order_id) for one in found] == [("fill_missing", ORDER_ID)]


def test_a_deal_is_not_taken_for_ours_because_an_order_of_ours_has_its_number() -> None:
    """Deals and orders are numbered apart."""
    shown = BrokerOrder(ticket=5, type=2, state=1, volume_current=D("0.1"), symbol="EURUSD")
    deal = Deal(ticket=5, order=77, position_id=77, symbol="EURUSD", volume=D("0.1"), price=D("1.1"))
    found = differences(Ours(positions={}), Brokers(orders=(shown,), deals=(deal,), owners={5: "o"}))
    assert [(one.difference.kind, one.difference.order_id) for one in found] == [
        ("fill_missing", ""), ("order_unknown", "o"),
    ]  # fmt: skip
