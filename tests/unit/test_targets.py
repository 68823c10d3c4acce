"""What a request acts on, and which requests may be under way at the same time."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.broker import Target
from gateway.requests import Refusal
from gateway.targets import Aim, InFlight, Pending, Withdraw, aim_of, exclusive_keys
from ledger.facts import OrderRequest
from ledger.order import Order, Status

D = Decimal
POSITION = frozenset({("position", 70)})
OTHER = frozenset({("position", 80)})
BOTH = POSITION | OTHER
SYMBOL = frozenset({("symbol", "EURUSD")})


def named(status: Status, action: str = "open", **fields: object) -> Order:
    request = OrderRequest(order_id="o-1", action=action, symbol="EURUSD", order_type="buy")
    return Order(order_id="o-1", status=status, request=request, **fields)  # type: ignore[arg-type]


def aim(action: str, target: Order | None) -> object:
    request = OrderRequest(order_id="r-1", action=action, target_order_id="o-1")
    return aim_of(request, lambda _: target)


# --- targets ----------------------------------------------------------------------------------------------------


def test_the_brokers_own_numbers_are_taken_as_they_are():
    request = OrderRequest(order_id="r-1", action="close_by", position_id=70, position_by_id=80)
    assert aim_of(request, lambda _: None) == Aim(Target(position_id=70, position_by_id=80))


@pytest.mark.parametrize("status", [Status.REQUESTED, Status.READY, Status.WAITING, Status.PARKED])
def test_a_cancel_of_what_was_not_sent_withdraws_it(status):
    assert aim("cancel", named(status)) == Withdraw("o-1")


@pytest.mark.parametrize("status", [Status.PLACED, Status.PARTIALLY_FILLED])
@pytest.mark.parametrize("action", ["cancel", "modify"])
def test_a_working_order_is_aimed_at_by_its_ticket(action, status):
    assert aim(action, named(status, order_ticket=90)) == Aim(Target(order_ticket=90))


@pytest.mark.parametrize("action", ["cancel", "close", "modify"])
@pytest.mark.parametrize("status", [Status.SENDING, Status.UNKNOWN])
def test_an_order_on_its_way_is_waited_for(action, status):
    assert aim(action, named(status)) == Pending("o-1")


@pytest.mark.parametrize("status", [Status.FILLED, Status.PARTIALLY_FILLED, Status.CANCELLED])
def test_a_close_is_aimed_at_the_position_and_at_no_more_than_the_order_opened(status):
    order = named(status, filled_volume=D("0.2"), position_id=70)
    assert aim("close", order) == Aim(Target(position_id=70), D("0.2"))


def test_a_change_of_a_filled_order_is_one_of_its_position():
    assert aim("modify", named(Status.FILLED, filled_volume=D(1), position_id=70)) == Aim(Target(position_id=70), D(1))


@pytest.mark.parametrize(
    ("action", "order", "reason"),
    [
        ("close", None, "there is no order o-1"),
        ("close", named(Status.FILLED, "close"), "order o-1 is a close: it has opened nothing"),
        ("close", named(Status.REJECTED), "order o-1 is rejected: there is nothing to close"),
        ("close", named(Status.PLACED), "order o-1 is placed: there is nothing to close"),
        ("modify", named(Status.EXPIRED), "order o-1 is expired: there is nothing to modify"),
        ("cancel", named(Status.FILLED), "order o-1 is filled: nothing of it is left to cancel"),
    ],
)
def test_what_cannot_be_aimed_at_says_why(action, order, reason):
    assert aim(action, order) == Refusal((reason,))


# --- one at a time ------------------------------------------------------------------------------------------------


def test_a_target_belongs_to_one_request_and_goes_to_the_next_in_the_order_they_came():
    flight = InFlight()
    assert flight.begin("a", POSITION)
    assert [flight.begin(one, POSITION) for one in ("b", "c")] == [False, False]
    assert flight.holder(("position", 70)) == "a"
    assert flight.end("a") == ["b", "c"]
    assert flight.begin("b", POSITION)
    assert not flight.begin("c", POSITION)
    assert flight.end("b") == ["c"]


def test_nobody_overtakes_who_waits():
    flight = InFlight()
    flight.begin("a", POSITION)
    flight.begin("b", POSITION)
    flight.end("a")
    assert not flight.begin("c", POSITION)
    assert flight.begin("b", POSITION)


def test_a_request_on_two_targets_takes_both_or_none():
    flight = InFlight()
    flight.begin("a", OTHER)
    assert not flight.begin("b", BOTH)
    assert flight.begin("c", POSITION)
    flight.end("a")
    assert not flight.begin("b", BOTH)
    flight.end("c")
    assert flight.begin("b", BOTH)


def test_opening_orders_share_a_symbol_and_a_close_has_it_alone():
    flight = InFlight()
    assert flight.begin("open-1", SYMBOL, shared=True)
    assert flight.begin("open-2", SYMBOL, shared=True)
    assert not flight.begin("close", SYMBOL)
    assert not flight.begin("open-3", SYMBOL, shared=True)  # it must not starve the close
    flight.end("open-1")
    assert not flight.begin("close", SYMBOL)
    assert flight.end("open-2") == ["close", "open-3"]
    assert flight.begin("close", SYMBOL)
    assert flight.end("close") == ["open-3"]
    assert flight.begin("open-3", SYMBOL, shared=True)


def test_whoever_gives_up_waiting_lets_the_others_pass():
    flight = InFlight()
    flight.begin("open-1", SYMBOL, shared=True)
    flight.begin("close", SYMBOL)
    flight.begin("open-2", SYMBOL, shared=True)
    assert flight.end("close") == ["open-2"]
    assert flight.begin("open-2", SYMBOL, shared=True)


def test_what_it_holds_it_may_take_again_and_add_to():
    flight = InFlight()
    assert flight.begin("a", POSITION)
    assert flight.begin("a", POSITION | SYMBOL)
    assert not flight.begin("open", SYMBOL, shared=True)
    flight.end("a")
    assert not flight.holds("a")
    assert flight.begin("open", SYMBOL, shared=True)


CLAIMS = st.sets(st.integers(1, 6), min_size=1, max_size=3)


@given(st.lists(st.tuples(CLAIMS, st.booleans()), min_size=2, max_size=20), st.data())
def test_requests_that_wait_for_each_others_targets_all_get_their_turn(claims, data):
    """Whatever crosses: as long as one waits, another holds something, or one of those that were told can begin."""
    flight = InFlight()
    keys = {f"r{number}": frozenset(("position", one) for one in wanted) for number, (wanted, _) in enumerate(claims)}
    shared = {f"r{number}": share for number, (_, share) in enumerate(claims)}

    def begins(one: str) -> bool:
        return flight.begin(one, keys[one], shared=shared[one])

    held = {one for one in keys if begins(one)}
    waiting = [one for one in keys if one not in held]
    while waiting:
        ended = data.draw(st.sampled_from(sorted(held)))
        held.remove(ended)
        begun = {one for one in data.draw(st.permutations(flight.end(ended))) if begins(one)}
        held |= begun
        waiting = [one for one in waiting if one not in begun]
        assert held or not waiting, f"{waiting} wait for each other"


@pytest.mark.parametrize(
    ("target", "symbol", "netting", "keys"),
    [
        (Target(position_id=70), "EURUSD", False, POSITION),
        (Target(position_id=70), "EURUSD", True, POSITION | SYMBOL),
        (Target(position_id=70, position_by_id=80), "", True, BOTH),
        (Target(order_ticket=90), "", False, frozenset({("order", 90)})),
    ],
)
def test_a_close_excludes_other_deals_of_its_symbol_only_where_they_move_its_position(target, symbol, netting, keys):
    assert exclusive_keys(target, symbol, netting=netting) == keys
