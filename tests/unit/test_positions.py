"""Positions as the fold of deals: by hand, and against the simulated broker after any trading."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.simulated.market import UNIT, units
from gateway.simulated.rows import DealRow
from ledger.positions import (
    MAX_TAIL,
    Dealt,
    Position,
    amount,
    average,
    corrected,
    costs_changed,
    dealt,
    exit_reason,
    fold,
    marked,
    with_stops,
)
from tests.simulated import Desk
from tests.unit.test_simulated_laws import ACCOUNTS, laws, step, steps

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def deal(side: str, volume: str, price: str, ticket: int = 1, **more: Any) -> Dealt:
    fields: dict[str, Any] = {"position_id": 7, "symbol": "EURUSD", "at": NOON + timedelta(seconds=ticket)}
    fields |= {"ticket": ticket, "buy": side == "buy", "volume": Decimal(volume), "price": Decimal(price)}
    return Dealt(**(fields | more))


def after(*deals: Dealt) -> Position:
    """The one position these deals make, numbered as they stand."""
    (position,) = fold(deals).values()
    return position


def core(position: Position) -> tuple[Any, ...]:
    return (position.side, position.volume, position.entry_price, position.realized_profit)


# --- by hand ----------------------------------------------------------------------------------------------------


def test_a_buy_opens_a_long_position_at_its_price() -> None:
    assert core(after(deal("buy", "0.5", "1.1"))) == ("long", Decimal("0.5"), Decimal("1.1"), 0)


def test_more_of_the_same_side_averages_the_entry_price_by_volume() -> None:
    assert core(after(deal("sell", "1", "100"), deal("sell", "3", "104")))[:3] == ("short", 4, 103)


def test_a_partial_close_leaves_the_entry_price_and_realises_its_profit() -> None:
    position = after(deal("buy", "2", "100"), deal("sell", "0.5", "110", entry=1, profit=Decimal(5)))
    assert core(position) == ("long", Decimal("1.5"), 100, 5)
    assert (position.closed_at, position.exit_price, position.exit_volume) == (None, 110, Decimal("0.5"))


def test_a_position_whose_volume_is_gone_is_closed_and_keeps_its_side() -> None:
    position = after(deal("buy", "1", "100"), deal("sell", "1", "90", 2, entry=1, order_id="out"))
    assert (position.is_open, position.side, position.entry_price) == (False, "long", 100)
    assert (position.closed_at, position.exit_order_id) == (NOON + timedelta(seconds=2), "out")


def test_the_exit_price_is_the_average_of_what_was_closed() -> None:
    position = after(deal("buy", "3", "100"), deal("sell", "1", "110", 2), deal("sell", "2", "101", 3))
    assert (position.exit_price, position.exit_volume) == (104, 3)


def test_a_reversal_keeps_the_identifier_and_opens_the_other_side_at_its_price() -> None:
    position = after(
        deal("buy", "1", "100", sl=Decimal(90)), deal("sell", "3", "110", 2, entry=2, profit=Decimal(10), order_id="r")
    )
    assert core(position) == ("short", 2, 110, 10)
    assert (position.position_id, position.sl, position.entry_order_id) == (7, 0, "r")
    assert position.opened_at == NOON + timedelta(seconds=2)


def test_a_position_closed_and_opened_again_over_night_goes_on() -> None:
    position = after(deal("buy", "1", "100"), deal("sell", "1", "101", 2, entry=1), deal("buy", "1", "102", 3))
    assert core(position)[:3] == ("long", 1, 102)
    assert position.closed_at is None


def test_costs_are_summed_apart_from_profit() -> None:
    position = after(
        deal("buy", "1", "1", commission=Decimal("-1.5"), fee=Decimal("-0.25")),
        deal("sell", "1", "2", profit=Decimal(10), swap=Decimal("-0.2"), commission=Decimal("-1.5")),
    )
    assert (position.realized_profit, position.commission, position.fee, position.swap) == (
        10, -3, Decimal("-0.25"), Decimal("-0.2"),
    )  # fmt: skip


def test_a_deal_that_leaves_a_position_nobody_saw_opens_nothing() -> None:
    position = after(deal("sell", "1", "100", entry=1, profit=Decimal(3)))
    assert (position.is_open, position.side, position.realized_profit) == (False, "long", 3)


def test_a_closing_deal_never_opens_the_other_side() -> None:
    assert core(after(deal("buy", "1", "100"), deal("sell", "2", "101", entry=1)))[:2] == ("long", 0)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"reason": 4}, "stop_loss"),
        ({"reason": 5}, "take_profit"),
        ({"reason": 6}, "stop_out"),
        ({"entry": 3, "order_id": "o"}, "close_by"),
        ({"reason": 3, "order_id": "o"}, "signal"),
        ({"reason": 1}, "manual"),
        ({"reason": 3}, "external"),
    ],
)
def test_why_a_position_was_left_follows_from_the_deal(fields: dict[str, Any], reason: str) -> None:
    assert exit_reason(deal("sell", "1", "1", **fields)) == reason


def test_stops_and_the_brokers_last_word_are_kept_until_the_position_is_closed() -> None:
    stopped = with_stops(after(deal("buy", "1", "1")), Decimal("0.9"), Decimal("1.2"))
    position = marked(stopped, Decimal("1.05"), Decimal(5))
    assert (position.sl, position.tp, position.current_price, position.floating_profit) == (
        Decimal("0.9"), Decimal("1.2"), Decimal("1.05"), 5,
    )  # fmt: skip
    closed = dealt(position, deal("sell", "1", "1.1", 2, entry=1))
    assert (closed.current_price, closed.floating_profit) == (None, None)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (("1.08061", "1"), ("1.08062", "15"), "1.08061938"),  # …9375: half goes to the even step
        (("0.00000001", "1"), ("0.00000002", "1"), "0.00000002"),
        (("-0.00000001", "1"), ("-0.00000002", "1"), "-0.00000002"),
        (("0.00000002", "1"), ("0.00000003", "1"), "0.00000002"),
    ],
)
def test_averages_are_rounded_once_and_half_to_even(one: Any, other: Any, expected: str) -> None:
    assert average(*map(Decimal, one), *map(Decimal, other)) == Decimal(expected)


@given(st.decimals(allow_nan=True, allow_infinity=True))
def test_whatever_a_broker_says_is_taken_as_some_amount(value: Decimal) -> None:
    assert amount(value) == amount(amount(value))


# --- corrections ------------------------------------------------------------------------------------------------

prices = st.integers(1, 500).map(lambda n: Decimal(n) / 100)
volumes = st.integers(1, 50).map(lambda n: Decimal(n) / 10)


@st.composite
def tradings(draw: Any, size: int = 12) -> list[Dealt]:
    sides = draw(st.lists(st.sampled_from(["buy", "sell"]), min_size=1, max_size=size))
    return [
        deal(side, str(draw(volumes)), str(draw(prices)), number, profit=draw(prices), commission=-draw(prices))
        for number, side in enumerate(sides, 1)
    ]


@given(tradings(), st.data())
def test_a_provisional_deal_corrected_later_leads_where_the_true_deals_lead(true: list[Dealt], data: Any) -> None:

    known = dict.fromkeys(data.draw(st.lists(st.integers(0, len(true) - 1), unique=True)))
    told = list(true)
    for place in known:
        told[place] = replace(
            true[place], volume=data.draw(volumes), price=data.draw(prices), profit=Decimal(0), provisional=True
        )
    position = None
    waiting = list(known)
    for place, one in enumerate(told):
        position = dealt(position, one)
        while waiting and waiting[0] <= place and data.draw(st.booleans()):
            position = corrected(position, told[waiting[0]], true[waiting.pop(0)])
    for place in waiting:
        assert position is not None
        position = corrected(position, told[place], true[place])
    assert position == after(*true)


@given(tradings(), st.data())
def test_a_deal_that_belongs_elsewhere_leaves_as_if_it_had_not_been(true: list[Dealt], data: Any) -> None:

    place = data.draw(st.integers(0, len(true)))
    stray = replace(deal("buy", "9", "9", 99), provisional=True)
    position = None
    for one in [*true[:place], stray, *true[place:]]:
        position = dealt(position, one)
    assert position is not None
    assert corrected(position, stray, None) == after(*true)


def test_a_position_whose_only_deal_belongs_elsewhere_is_void() -> None:
    stray = deal("buy", "1", "1", provisional=True, commission=Decimal(-1))
    position = corrected(after(stray), stray, None)
    assert (position.void, position.volume, position.commission) == (True, 0, 0)
    assert core(dealt(position, deal("sell", "2", "3")))[:3] == ("short", 2, 3)


@given(tradings(), st.data())
def test_later_costs_count_as_if_they_had_been_there_from_the_beginning(true: list[Dealt], data: Any) -> None:

    place = data.draw(st.integers(0, len(true) - 1))
    late = replace(true[place], commission=Decimal(0), swap=Decimal(0))
    position = None
    for number, one in enumerate(true):
        position = dealt(position, late if number == place else one)
    assert position is not None
    assert costs_changed(position, late, true[place]) == after(*true)


def test_what_waits_for_its_deal_is_bounded() -> None:
    position = after(*(deal("buy", "1", "1", n, provisional=True) for n in range(1, MAX_TAIL + 10)))
    assert len(position.tail) == MAX_TAIL
    assert position.volume == MAX_TAIL + 9


def test_a_final_deal_that_changes_is_corrected_by_its_difference() -> None:
    first, second = deal("buy", "1", "100", 1), deal("buy", "1", "102", 2)
    position = corrected(after(first, second), second, deal("buy", "3", "104", 2, profit=Decimal(1)))
    assert core(position) == ("long", 4, 103, 1)


# --- against the simulated broker -------------------------------------------------------------------------------


def seen(row: DealRow) -> Dealt:
    def exact(value: float, places: int = 8) -> Decimal:
        return Decimal(units(value)) / UNIT if places == 8 else Decimal(repr(round(value, places)))

    return Dealt(
        ticket=row.ticket, position_id=row.position_id, symbol=row.symbol, buy=row.type == 0, volume=exact(row.volume),
        price=exact(row.price), at=datetime.fromtimestamp(row.time_msc / 1000, UTC), entry=row.entry,
        reason=row.reason, profit=exact(row.profit, 2), commission=exact(row.commission, 2), swap=exact(row.swap, 2),
        fee=exact(row.fee, 2),
    )  # fmt: skip


def assert_equals_the_broker(desk: Desk) -> None:
    """Open volume, side and entry price of every position, and the money of all of them."""
    positions = fold(seen(row) for row in desk.deals)
    ours = {one.position_id: (one.side, one.volume, one.entry_price) for one in positions.values() if one.is_open}
    theirs = {
        row.identifier: (
            "short" if row.type else "long", Decimal(units(row.volume)) / UNIT, Decimal(units(row.price_open)) / UNIT,
        )
        for row in desk.positions
    }  # fmt: skip
    assert ours == theirs
    money = sum(one.realized_profit + one.commission + one.swap + one.fee for one in positions.values())
    deposits = sum(Decimal(repr(row.profit)) for row in desk.state.deals.values() if not row.symbol)
    assert money + deposits == Decimal(desk.state.balance_cents) / 100


@laws
@given(st.sampled_from(ACCOUNTS), steps)
def test_after_any_trading_the_fold_equals_the_brokers_positions(
    tmp_path_factory: pytest.TempPathFactory, account: int, calls: list[tuple[Any, ...]]
) -> None:
    desk = Desk(tmp_path_factory.mktemp("desk"), margin_mode=account, balance=200_000.0)
    desk.clock.ms += 4 * 3_600_000
    for call in calls:
        step(desk, *call)
    assert_equals_the_broker(desk)
    desk.close()
