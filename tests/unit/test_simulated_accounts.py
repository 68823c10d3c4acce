"""Positions and money: hedging, netting, exchange; costs, swap, margin, stop-out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.simulated import constants as c
from gateway.simulated.symbols import DAY_MS
from tests.simulated import Desk, at_the_exchange

NETTING = c.ACCOUNT_MARGIN_MODE_RETAIL_NETTING
EXCHANGE = c.ACCOUNT_MARGIN_MODE_EXCHANGE
STOCK: dict[str, Any] = {"symbol": "ACME.US", "volume": 100.0}


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.close()


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path, margin_mode=NETTING)
    yield desk
    desk.close()


@pytest.fixture
def exchange(tmp_path: Path) -> Iterator[Desk]:
    desk = at_the_exchange(tmp_path)
    yield desk
    desk.close()


def test_hedging_opens_a_position_for_each_order_and_closes_the_one_that_is_named(desk: Desk) -> None:
    """[R33]"""
    one, other = desk.done().order, desk.done(type=1).order
    desk.done(type=1, position=one)
    assert [row.identifier for row in desk.positions] == [other]


def test_netting_adds_to_the_position_at_the_average_price(net: Desk) -> None:
    """[R34]"""
    first = net.done(volume=0.1)
    net.move(100)
    second = net.done(volume=0.3)
    [row] = net.positions
    assert (row.ticket, row.identifier, row.volume) == (first.order, first.order, 0.4)
    assert row.price_open == pytest.approx((first.price + 3 * second.price) / 4, abs=1e-8)
    assert [deal.entry for deal in net.deals] == [0, 0]


def test_netting_reduces_without_naming_a_position(net: Desk) -> None:
    """[R34]"""
    ticket = net.done(volume=0.3).order
    net.done(volume=0.1, type=1)
    assert [(row.identifier, row.volume, row.type) for row in net.positions] == [(ticket, 0.2, 0)]
    net.done(volume=0.2, type=1)
    assert net.positions == []
    assert [(deal.entry, deal.position_id) for deal in net.deals] == [(0, ticket), (1, ticket), (1, ticket)]


def test_a_netting_reversal_keeps_the_identifier_and_takes_the_new_ticket(net: Desk) -> None:
    """[R34]"""
    opened = net.done(volume=0.1, magic=1)
    net.move(50)
    turned = net.done(volume=0.3, type=1, magic=2)
    [row], deal = net.positions, net.deals[-1]
    assert (row.identifier, row.ticket, row.type, row.volume) == (opened.order, turned.order, 1, 0.2)
    assert (row.price_open, row.magic) == (turned.price, 2)
    assert (deal.entry, deal.volume, deal.position_id) == (c.DEAL_ENTRY_INOUT, 0.3, opened.order)
    assert deal.profit == pytest.approx((turned.price - opened.price) * 10_000, abs=0.005)
    assert net.check(type=0, position=opened.order) == 10036
    assert net.done(volume=0.2, position=turned.order)
    assert net.positions == []


def test_on_a_netting_account_stops_are_changed_by_symbol_and_nothing_closes_by(net: Desk) -> None:
    """[R34] [R45]"""
    ticket = net.done().order
    net.done(action=6, sl=1.0)
    assert net.positions[0].sl == 1.0
    assert net.check(action=10, position=ticket, position_by=ticket) == 10013


def test_close_by_makes_two_deals_and_leaves_the_rest_of_the_larger(desk: Desk) -> None:
    """[R45]"""
    long = desk.done(volume=0.3)
    desk.move(100)
    short = desk.done(volume=0.1, type=1)
    before = desk.broker.money.equity(desk.clock())
    result = desk.done(action=10, position=long.order, position_by=short.order)
    one, other = desk.deals[-2:]
    order = desk.state.orders[result.order]
    assert [(row.identifier, row.volume) for row in desk.positions] == [(long.order, 0.2)]
    assert (order.type, order.position_id, order.position_by_id) == (8, long.order, short.order)
    assert {one.entry, other.entry} == {c.DEAL_ENTRY_OUT_BY}
    assert (one.position_id, one.price, other.position_id, other.price) == (
        long.order,
        short.price,
        short.order,
        long.price,
    )
    assert one.profit == pytest.approx((short.price - long.price) * 10_000, abs=0.005)
    assert (other.profit, one.commission, other.commission) == (0.0, 0.0, 0.0)
    bid, ask = desk.points()  # what the other way would have cost: the spread, a dollar a point and lot
    assert desk.broker.money.equity(desk.clock()) == pytest.approx(before + (ask - bid) * 0.1, abs=0.01)


def test_close_by_wants_two_opposite_positions_of_one_symbol(desk: Desk) -> None:
    """[R45]"""
    long, more, short = desk.done().order, desk.done().order, desk.done(type=1).order
    pound = desk.done(symbol="GBPUSD", type=1).order
    assert desk.check(action=10, position=long, position_by=more) == 10013
    assert desk.check(action=10, position=long, position_by=pound) == 10013
    assert desk.check(action=10, position=long, position_by=4711) == 10036
    assert desk.check(action=10, position=long, position_by=short) == 0


def test_an_order_that_walks_the_book_makes_a_deal_at_each_level(exchange: Desk) -> None:
    """[R35] [R36]"""
    result = exchange.done(**STOCK | {"volume": 1000.0})
    deals = exchange.deals
    assert len(deals) == 3
    assert {deal.order for deal in deals} == {result.order}
    assert [deal.price for deal in deals] == sorted(deal.price for deal in deals)
    assert sum(deal.volume for deal in deals) == result.volume == 1000.0
    assert result.deal == deals[-1].ticket
    assert (deals[0].commission, deals[0].fee) == (
        pytest.approx(-0.02 * deals[0].volume, abs=0.005),
        pytest.approx(-0.003 * deals[0].volume, abs=0.005),
    )


@pytest.mark.parametrize(("filling", "retcode"), [(0, 10006), (1, 10010), (2, 10010)])
def test_a_volume_beyond_the_book_is_refused_cut_or_waits_as_the_filling_says(
    exchange: Desk, filling: int, retcode: int
) -> None:
    """[R32] [R35]"""
    result = exchange.send(**STOCK | {"volume": 5000.0, "type_filling": filling})
    assert result.retcode == retcode
    if filling == 1:
        order = exchange.state.orders[result.order]
        assert (order.state, order.volume_current) == (c.ORDER_STATE_CANCELED, 5000.0 - result.volume)
    if filling == 2:
        [order] = exchange.working
        assert (order.state, order.volume_current) == (c.ORDER_STATE_PARTIAL, 5000.0 - result.volume)
        exchange.wait(2000)
        assert exchange.working == []
        assert exchange.positions[0].volume == 5000.0


def test_what_was_taken_from_the_book_is_gone_until_the_next_tick(exchange: Desk) -> None:
    """[R35]"""
    first = exchange.done(**STOCK | {"volume": 400.0})
    second = exchange.done(**STOCK | {"volume": 400.0})
    assert second.price > first.price


def test_a_limit_order_at_an_exchange_is_placed_and_fills_as_far_as_the_book_goes(exchange: Desk) -> None:
    """[R35] [R55]"""
    price = exchange.price(-50, "ACME.US", "ask")
    result = exchange.send(action=5, type=2, type_filling=2, price=price, **STOCK | {"volume": 3000.0})
    assert result.retcode == 10008
    exchange.move(-50, "ACME.US")
    [order] = exchange.working
    assert (order.state, 0 < order.volume_current < 3000) == (c.ORDER_STATE_PARTIAL, True)
    assert all(deal.price <= price for deal in exchange.deals)


def test_market_execution_ignores_price_and_deviation(desk: Desk) -> None:
    """[R31]"""
    assert desk.done(price=5.0, deviation=0).price == desk.price(side="ask")


def test_instant_execution_requotes_beyond_the_deviation_and_names_the_new_prices(desk: Desk) -> None:
    """[R31]"""
    desk.define(exemode=c.SYMBOL_TRADE_EXECUTION_INSTANT)
    result = desk.send(price=desk.price(11, side="ask"), deviation=10)
    assert (result.retcode, result.bid, result.ask) == (10004, desk.price(), desk.price(side="ask"))
    assert desk.send(price=desk.price(10, side="ask"), deviation=10).retcode == 10009


def test_request_execution_deals_at_the_market_within_the_deviation_and_else_says_that_the_price_changed(
    desk: Desk,
) -> None:
    """[R31]"""
    desk.define(exemode=c.SYMBOL_TRADE_EXECUTION_REQUEST, filling_mode=0)
    for filling in (c.ORDER_FILLING_FOK, c.ORDER_FILLING_IOC):
        result = desk.send(price=desk.price(10, side="ask"), deviation=10, type_filling=filling)
        assert (result.retcode, result.price) == (10009, desk.price(side="ask"))
    changed = desk.send(price=desk.price(11, side="ask"), deviation=10)
    assert (changed.retcode, changed.bid, changed.ask) == (10020, desk.price(), desk.price(side="ask"))
    assert desk.send(deviation=10).retcode == 10015


def test_with_fifo_the_oldest_position_is_closed_first_and_then_the_next(desk: Desk) -> None:
    """[R56]"""
    desk.rules(fifo_close="on")
    oldest, next_, other = desk.done().order, desk.done().order, desk.done(symbol="GBPUSD").order
    assert desk.send(type=1, position=next_).retcode == 10045
    desk.done(type=1, symbol="GBPUSD", position=other)
    desk.done(type=1, position=oldest)
    desk.done(type=1, position=next_)
    assert desk.positions == []


def test_profit_in_another_currency_is_converted_over_one_pair_or_two(tmp_path: Path) -> None:
    """[R49]"""
    desk = Desk(tmp_path, currency="EUR")
    opened = desk.done(symbol="USDJPY", volume=1.0)
    desk.move(500, "USDJPY")
    closed = desk.done(symbol="USDJPY", volume=1.0, type=1, position=opened.order)
    yen = (closed.price - opened.price) * 100_000
    assert desk.deals[-1].profit == pytest.approx(yen / closed.price / desk.price(), rel=1e-3)
    desk.close()


def test_swap_is_charged_at_midnight_and_three_times_on_the_triple_day(desk: Desk) -> None:
    """[R50]"""
    desk.done(volume=1.0)
    desk.done(volume=1.0, type=1)
    desk.wait(DAY_MS)  # Wednesday night
    assert [row.swap for row in desk.positions] == [-19.5, 6.3]
    desk.wait(DAY_MS)
    assert [row.swap for row in desk.positions] == [-26.0, 8.4]
    desk.wait(3 * DAY_MS)  # Friday night counts, Saturday and Sunday do not
    assert [row.swap for row in desk.positions] == [-32.5, 10.5]


def test_swap_goes_into_the_balance_with_the_part_that_is_closed(desk: Desk) -> None:
    """[R50] [R52]"""
    ticket = desk.done(volume=1.0).order
    desk.wait(2 * DAY_MS)
    desk.done(volume=0.25, type=1, position=ticket)
    assert (desk.deals[-1].swap, desk.positions[0].swap) == (-6.5, -19.5)
    desk.done(volume=0.75, type=1, position=ticket)
    assert desk.deals[-1].swap == -19.5


@pytest.mark.parametrize(
    ("mode", "long", "amount"),
    [
        (c.SYMBOL_SWAP_MODE_CURRENCY_SYMBOL, -5.0, -5.0 * 1.08),
        (c.SYMBOL_SWAP_MODE_CURRENCY_MARGIN, -5.0, -5.0 * 1.08),
        (c.SYMBOL_SWAP_MODE_CURRENCY_DEPOSIT, -5.0, -5.0),
        (c.SYMBOL_SWAP_MODE_INTEREST_CURRENT, -3.6, -0.0001 * 108_000),
        (c.SYMBOL_SWAP_MODE_INTEREST_OPEN, -3.6, -0.0001 * 108_000),
        (c.SYMBOL_SWAP_MODE_DISABLED, -5.0, 0.0),
    ],
)
def test_swap_follows_the_symbols_mode(desk: Desk, mode: int, long: float, amount: float) -> None:
    """[R50]"""
    desk.define(swap_mode=mode, swap_long=long, swap_rollover3days=0)
    desk.done(volume=1.0)
    desk.wait(DAY_MS)
    assert desk.positions[0].swap == pytest.approx(amount, rel=0.01)


@pytest.mark.parametrize("mode", [c.SYMBOL_SWAP_MODE_REOPEN_CURRENT, c.SYMBOL_SWAP_MODE_REOPEN_BID])
def test_a_position_reopened_over_night_keeps_its_identifier_and_changes_its_ticket(desk: Desk, mode: int) -> None:
    """[R51]"""
    desk.define(swap_mode=mode, swap_long=-6.0, swap_rollover3days=0)
    opened = desk.done(volume=1.0, magic=3)
    desk.wait(DAY_MS)
    [row], (out, into) = desk.positions, desk.deals[-2:]
    assert row.identifier == opened.order != row.ticket
    assert (out.reason, into.reason, out.entry, into.entry) == (7, 7, 1, 0)
    assert {out.position_id, into.position_id} == {opened.order}
    assert row.price_open == into.price == round(out.price + 0.00006, 5)
    assert row.magic == 3


def test_margin_is_charged_once_for_opposite_positions(desk: Desk) -> None:
    """[R48]"""
    price = desk.done(volume=1.0).price
    assert desk.broker.money.margin(desk.clock()) == pytest.approx(price * 200, abs=0.01)
    desk.done(volume=0.4, type=1)
    assert desk.broker.money.margin(desk.clock()) == pytest.approx(price * 200, abs=0.01)


def test_below_the_stop_out_level_the_worst_position_is_closed_first(tmp_path: Path) -> None:
    """[R42]"""
    desk = Desk(tmp_path, balance=3000.0)
    worst, better = desk.done(volume=5.0), desk.done(volume=2.0)
    desk.move(-390)
    desk.wait(500)
    closing = desk.deals[-1]
    assert (closing.reason, closing.position_id) == (c.DEAL_REASON_SO, worst.order)
    assert closing.comment.startswith("[so ")
    assert [row.identifier for row in desk.positions] == [better.order]
    desk.close()


def test_a_trade_by_hand_has_no_magic_and_the_reason_client(desk: Desk) -> None:
    """[R57]"""
    ticket = desk.broker.control.do("trade", {"type": "buy", "symbol": "EURUSD", "volume": 0.1})["order"]
    desk.broker.control.do("close", {"ticket": ticket})
    assert {(deal.magic, deal.reason) for deal in desk.deals} == {(0, c.DEAL_REASON_CLIENT)}
    assert desk.positions == []


def test_the_deals_of_an_account_begin_with_its_deposit(desk: Desk) -> None:
    """[R52]"""
    [deposit] = desk.state.deals.values()
    assert (deposit.type, deposit.profit, deposit.order, deposit.symbol) == (c.DEAL_TYPE_BALANCE, 1e7, 0, "")
    desk.broker.control.do("transfer", {"amount": -250.5, "comment": "rent"})
    assert desk.state.balance_cents == 999_974_950
