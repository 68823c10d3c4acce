"""What refuses, and what does not: limits, kinds of order, fillings and switches where they meet other rules."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.simulated import constants as c
from tests.simulated import Desk, at_the_exchange

HOUR_MS = 3_600_000
EVERY_KIND = 127


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.close()


@pytest.fixture
def exchange(tmp_path: Path) -> Iterator[Desk]:
    desk = at_the_exchange(tmp_path)
    yield desk
    desk.close()


def limit(desk: Desk, off: int = -100, **fields: Any) -> dict[str, Any]:
    return {"action": 5, "type": 2, "type_filling": 2, "price": desk.price(off, side="ask")} | fields


def test_pending_orders_count_towards_the_volume_limit_of_their_direction(desk: Desk) -> None:
    """[R46]"""
    desk.define(volume_limit=1.0)
    desk.done(**limit(desk, volume=0.6))
    assert desk.check(volume=0.5) == desk.check(**limit(desk, volume=0.5)) == 10034
    assert desk.check(volume=0.4) == desk.check(**limit(desk, volume=0.4)) == 0
    assert desk.check(volume=1.0, type=1) == 0


def test_take_profits_and_close_by_are_kinds_a_symbol_may_not_take(desk: Desk) -> None:
    """[R47]"""
    one, other = desk.done().order, desk.done(type=1).order
    desk.define(order_mode=EVERY_KIND - 32)
    assert desk.check(tp=desk.price(500)) == 10016
    assert desk.check(sl=desk.price(-500)) == 0
    desk.define(order_mode=EVERY_KIND - 64)
    assert desk.check(action=10, position=one, position_by=other) == 10035


@pytest.mark.parametrize("filling", [c.ORDER_FILLING_FOK, c.ORDER_FILLING_IOC])
def test_a_pending_order_beyond_the_book_ends_as_its_filling_says(exchange: Desk, filling: int) -> None:
    """[R35]"""
    price = exchange.price(-50, "ACME.US", "ask")
    request = {"action": 5, "type": 2, "symbol": "ACME.US", "volume": 5000.0, "price": price, "type_filling": filling}
    ticket = exchange.done(**request).order
    exchange.move(-50, "ACME.US")
    order, filled = exchange.state.orders[ticket], sum(deal.volume for deal in exchange.deals)
    assert (exchange.working, order.state) == ([], c.ORDER_STATE_CANCELED)
    assert order.volume_current == 5000.0 - filled
    assert (filled > 0) == (filling == c.ORDER_FILLING_IOC)


def test_positions_that_are_being_closed_or_are_frozen_are_not_closed_by_each_other(desk: Desk) -> None:
    """[R44] [R60]"""
    one, other, third = desk.done(tp=desk.price(40)).order, desk.done(type=1).order, desk.done(type=1).order
    desk.define(freeze_level=50)
    assert desk.check(action=10, position=one, position_by=other) == 10029
    desk.define(freeze_level=0)
    desk.send(fault="late=1m", position=third)
    assert desk.check(action=10, position=one, position_by=third) == 10039
    assert desk.check(action=10, position=one, position_by=other) == 0


def test_where_trading_is_disabled_stops_and_close_by_are_too(desk: Desk) -> None:
    """[R47]"""
    one, other = desk.done().order, desk.done(type=1).order
    desk.define(trade_mode=c.SYMBOL_TRADE_MODE_DISABLED)
    assert desk.check(action=6, position=one, sl=1.0) == 10017
    assert desk.check(action=10, position=one, position_by=other) == 10017


def test_a_sell_by_instant_execution_is_judged_by_the_bid(desk: Desk) -> None:
    """[R31]"""
    desk.define(exemode=c.SYMBOL_TRADE_EXECUTION_INSTANT)
    assert desk.check(type=1, price=desk.price(side="ask")) == 10004
    assert desk.send(type=1, price=desk.price()).price == desk.price()


@pytest.mark.parametrize(
    ("closed", "open_"), [({"quoting": False}, {"quoting": True}), ({"sessions": ((0, 0, 1),)}, {"sessions": ()})]
)
def test_without_quotes_or_outside_the_session_nothing_is_woken(
    desk: Desk, closed: dict[str, Any], open_: dict[str, Any]
) -> None:
    """[R38] [R47]"""
    desk.done(**limit(desk))
    desk.done(sl=desk.price(-100))
    desk.define(**closed)
    desk.move(-150)
    desk.wait(1000)
    assert (len(desk.working), len(desk.positions)) == (1, 1)
    desk.define(**open_)
    desk.wait(1000)
    assert desk.working == []
    assert [deal.reason for deal in desk.deals].count(c.DEAL_REASON_SL) == 1


def test_a_pending_order_that_would_be_one_position_too_many_is_rejected_when_its_price_comes(desk: Desk) -> None:
    """[R46] [R53]"""
    ticket = desk.done(**limit(desk)).order
    desk.rules(limit_positions=1)
    desk.done()
    desk.move(-150)
    assert desk.state.orders[ticket].state == c.ORDER_STATE_REJECTED
    assert len(desk.positions) == 1


def test_the_switches_of_the_robot_do_not_stop_a_trade_by_hand(desk: Desk) -> None:
    """[R57]"""
    desk.rules(algo_trading="off", trade_expert="off")
    assert desk.check() == 10027
    assert desk.broker.control.do("trade", {"type": "buy", "symbol": "EURUSD", "volume": 0.1})["retcode"] == 10009


def test_an_account_that_may_only_look_does_not_trade(desk: Desk) -> None:
    """TRADE_DISABLED [R47]"""
    desk.rules(trade_allowed="off")
    assert desk.check() == 10017
    assert desk.broker.money.account_tuple(desk.clock())[5] is False


def test_a_real_account_says_so_and_trades_what_is_for_real_ones_only(desk: Desk) -> None:
    """ONLY_REAL"""
    desk.define(real_only=True)
    assert (desk.check(), desk.broker.money.account_tuple(desk.clock())[1]) == (10032, c.ACCOUNT_TRADE_MODE_DEMO)
    desk.rules(real="on")
    assert (desk.check(), desk.broker.money.account_tuple(desk.clock())[1]) == (0, c.ACCOUNT_TRADE_MODE_REAL)


@pytest.mark.parametrize("type_time", [c.ORDER_TIME_DAY, c.ORDER_TIME_SPECIFIED_DAY])
def test_a_day_ends_at_midnight_and_not_at_noon(desk: Desk, type_time: int) -> None:
    """[R40]"""
    desk.clock.ms -= 6 * HOUR_MS  # 08:00 at the server
    expiration = (desk.clock.ms + 2 * HOUR_MS) // 1000 + 60 if type_time == c.ORDER_TIME_SPECIFIED_DAY else 0
    desk.done(**limit(desk, -3000, type_time=type_time, expiration=expiration))
    desk.wait(16 * HOUR_MS - 1)
    assert len(desk.working) == 1
    desk.wait(1)
    assert desk.working == []


def test_hedging_is_prohibited_on_hedging_accounts_only(tmp_path: Path) -> None:
    """[R56]"""
    net = Desk(tmp_path, margin_mode=c.ACCOUNT_MARGIN_MODE_RETAIL_NETTING)
    net.rules(hedge_prohibited="on")
    net.done(volume=0.1)
    net.done(volume=0.3, type=1)
    assert [(row.type, row.volume) for row in net.positions] == [(1, 0.2)]
    net.close()
