"""Pending orders, stops and what wakes them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.simulated import constants as c
from gateway.simulated.symbols import DAY_MS
from tests.simulated import Desk

HOUR_MS = 3_600_000
# type: (a good price off the ask or bid, the jump of the market that activates it)
PENDING = {
    c.ORDER_TYPE_BUY_LIMIT: ("ask", -100, -150),
    c.ORDER_TYPE_SELL_LIMIT: ("bid", 100, 150),
    c.ORDER_TYPE_BUY_STOP: ("ask", 100, 150),
    c.ORDER_TYPE_SELL_STOP: ("bid", -100, -150),
}


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.close()


def place(desk: Desk, type_: int, off: int, side: str, **fields: Any) -> dict[str, Any]:
    return {"action": 5, "type": type_, "type_filling": 2, "price": desk.price(off, side=side)} | fields


@pytest.mark.parametrize("type_", PENDING)
def test_a_pending_order_waits_for_its_price_and_then_opens_a_position(desk: Desk, type_: int) -> None:
    """[R37] [R38]"""
    side, off, jump = PENDING[type_]
    ticket = desk.done(**place(desk, type_, off, side, magic=7, comment="wait")).order
    desk.wait(1000)
    assert [(row.ticket, row.state, row.type) for row in desk.working] == [(ticket, c.ORDER_STATE_PLACED, type_)]
    desk.move(jump)
    [row], [deal], order = desk.positions, desk.deals, desk.state.orders[ticket]
    assert desk.working == []
    assert (row.identifier, row.type, row.magic, row.comment) == (ticket, type_ % 2, 7, "wait")
    assert (deal.order, deal.reason, order.state, order.type) == (ticket, c.DEAL_REASON_EXPERT, 4, type_)


@pytest.mark.parametrize("type_", PENDING)
def test_a_pending_order_on_the_wrong_side_or_too_near_is_refused(desk: Desk, type_: int) -> None:
    """[R37]"""
    side, off, _ = PENDING[type_]
    sign = 1 if off > 0 else -1
    assert desk.check(**place(desk, type_, sign * 10, side)) == 0
    assert desk.check(**place(desk, type_, sign * 9, side)) == 10015
    assert desk.check(**place(desk, type_, -off, side)) == 10015
    assert desk.check(**place(desk, type_, off, side, price=0.0)) == 10015
    assert desk.check(**place(desk, type_, off, side, price=1.0000051)) == 10015


@pytest.mark.parametrize(("type_", "side", "sign"), [(6, "ask", 1), (7, "bid", -1)])
def test_a_stop_limit_becomes_a_limit_with_the_same_ticket(desk: Desk, type_: int, side: str, sign: int) -> None:
    """[R39]"""
    limit = desk.price(sign * 50, side=side)
    request = place(desk, type_, sign * 100, side, stoplimit=limit)
    assert desk.check(**request | {"stoplimit": desk.price(sign * 150, side=side)}) == 10015
    ticket = desk.done(**request).order
    desk.move(sign * 120)
    [row] = desk.working
    assert (row.ticket, row.type, row.price_open, row.price_stoplimit) == (ticket, type_ - 4, limit, 0.0)
    desk.move(-sign * 120)
    assert [row.identifier for row in desk.positions] == [ticket]


@pytest.mark.parametrize(
    ("type_time", "after_ms", "ends_ms"),
    [
        (c.ORDER_TIME_DAY, 0, 10 * HOUR_MS),  # it is 14:00 at the server
        (c.ORDER_TIME_SPECIFIED, HOUR_MS, HOUR_MS),
        (c.ORDER_TIME_SPECIFIED_DAY, 24 * HOUR_MS, 34 * HOUR_MS),
    ],
)
def test_an_order_expires_at_its_time_in_the_servers_clock(
    desk: Desk, type_time: int, after_ms: int, ends_ms: int
) -> None:
    """[R40] [R54]"""
    server_s = (desk.clock.ms + 7_200_000 + after_ms) // 1000
    expiration = server_s if after_ms else 0
    ticket = desk.done(**place(desk, 2, -3000, "ask", type_time=type_time, expiration=expiration)).order
    desk.wait(ends_ms - 1)
    assert len(desk.working) == 1
    desk.wait(1)
    order = desk.state.orders[ticket]
    assert (desk.working, order.state, order.volume_current) == ([], c.ORDER_STATE_EXPIRED, 0.01)
    assert order.time_done * 1000 == desk.clock.ms + 7_200_000


def test_an_order_without_expiration_stays_and_a_symbol_may_not_take_every_kind(desk: Desk) -> None:
    """[R40]"""
    desk.done(**place(desk, 2, -3000, "ask"))
    desk.wait(3 * DAY_MS)
    assert len(desk.working) == 1
    desk.define(expiration_mode=1)
    assert desk.check(**place(desk, 2, -3000, "ask", type_time=c.ORDER_TIME_DAY)) == 10022


def test_where_orders_are_kept_for_a_day_only_all_of_them_expire_at_midnight(desk: Desk) -> None:
    """[R40]"""
    desk.define(gtc_mode=c.SYMBOL_ORDERS_DAILY)
    ticket = desk.done(**place(desk, 2, -3000, "ask")).order
    desk.wait(10 * HOUR_MS)
    assert desk.state.orders[ticket].state == c.ORDER_STATE_EXPIRED


@pytest.mark.parametrize("type_", [0, 1])
@pytest.mark.parametrize(("stop", "reason"), [("sl", c.DEAL_REASON_SL), ("tp", c.DEAL_REASON_TP)])
def test_a_stop_closes_its_position_by_an_order_of_its_own(desk: Desk, type_: int, stop: str, reason: int) -> None:
    """[R41]"""
    worse = -1 if type_ == 0 else 1
    away = worse * 100 if stop == "sl" else -worse * 100
    side = "bid" if type_ == 0 else "ask"
    ticket = desk.done(type=type_, magic=9, **{stop: desk.price(away, side=side)}).order
    desk.move(away // 2)
    assert len(desk.positions) == 1
    desk.move(away)
    closing = desk.deals[-1]
    order = desk.state.orders[closing.order]
    assert desk.positions == []
    assert (closing.reason, closing.entry, closing.position_id, closing.magic) == (reason, 1, ticket, 9)
    assert closing.order != ticket
    assert closing.comment == order.comment == f"[{stop} {getattr(desk.state.orders[ticket], stop):.5f}]"
    assert (closing.profit > 0) == (stop == "tp")


def test_stops_of_a_pending_order_are_judged_by_its_price_and_pass_to_the_position(desk: Desk) -> None:
    """[R37] [R41]"""
    request = place(desk, 2, -500, "ask")
    near, far = round(request["price"] - 0.00009, 5), round(request["price"] - 0.001, 5)
    assert desk.check(**request, sl=near) == 10016
    desk.done(**request, sl=far)
    desk.move(-550)
    assert desk.positions[0].sl == far


def test_a_pending_order_is_modified_and_removed(desk: Desk) -> None:
    """[R43]"""
    ticket = desk.done(**place(desk, 2, -500, "ask")).order
    change = {"action": 7, "order": ticket, "price": desk.price(-600), "sl": desk.price(-900), "type_time": 1}
    assert desk.done(**change).order == ticket
    [row] = desk.working
    assert (row.price_open, row.sl, row.type_time) == (change["price"], change["sl"], 1)
    assert row.time_expiration > 0
    assert desk.send(**change).retcode == 10025
    assert desk.done(action=8, order=ticket).order == ticket
    assert desk.state.orders[ticket].state == c.ORDER_STATE_CANCELED
    assert desk.send(action=8, order=ticket).retcode == 10023


def test_sl_and_tp_of_a_position_can_be_changed_and_taken_away(desk: Desk) -> None:
    """[R43]"""
    ticket = desk.done().order
    desk.done(action=6, position=ticket, sl=1.0, tp=1.2)
    assert (desk.positions[0].sl, desk.positions[0].tp) == (1.0, 1.2)
    desk.done(action=6, position=ticket)
    desk.move(-5000)
    assert len(desk.positions) == 1
    assert desk.check(action=6, position=4711, sl=1.0) == 10036


def test_within_the_freeze_level_nothing_can_be_changed(desk: Desk) -> None:
    """[R44]"""
    order = desk.done(**place(desk, 2, -40, "ask")).order
    ticket = desk.done(tp=desk.price(40)).order
    desk.define(freeze_level=50)
    for request in (
        {"action": 7, "order": order, "price": 1.0},
        {"action": 8, "order": order},
        {"action": 6, "position": ticket},
        {"type": 1, "position": ticket},
    ):
        assert desk.check(**request) == 10029
    desk.define(freeze_level=30)
    assert desk.check(type=1, position=ticket) == 0


def test_an_order_that_has_no_money_when_its_price_comes_is_rejected(desk: Desk) -> None:
    """[R53]"""
    ticket = desk.done(**place(desk, 2, -100, "ask")).order
    desk.broker.control.do("transfer", {"amount": -9_999_999.0})
    desk.move(-150)
    assert desk.positions == []
    assert desk.state.orders[ticket].state == c.ORDER_STATE_REJECTED


def test_a_filling_that_the_symbol_does_not_offer_is_refused_and_boc_waits_in_the_book(desk: Desk) -> None:
    """[R32]"""
    request = place(desk, 2, -100, "ask", type_filling=3)
    assert desk.check(**request) == 10030
    desk.define(filling_mode=1 | 4)
    assert desk.check(**request) == 0
    assert desk.check(**request | {"type": 4, "price": desk.price(100, side="ask")}) == 10030
    assert desk.check(type_filling=1) == 10030
    desk.define(filling_mode=0, exemode=c.SYMBOL_TRADE_EXECUTION_INSTANT)
    assert desk.check(type_filling=1, price=desk.price(side="ask")) == 0


def test_a_kind_of_order_the_symbol_does_not_take_is_refused(desk: Desk) -> None:
    """[R47]"""
    desk.define(order_mode=2)
    assert desk.check() == 10035
    assert desk.check(**place(desk, 2, -100, "ask")) == 0
    assert desk.check(**place(desk, 4, 100, "ask")) == 10035
    assert desk.check(**place(desk, 2, -100, "ask", sl=1.0)) == 10016


def test_what_happens_does_not_depend_on_when_the_broker_is_asked(tmp_path: Path) -> None:
    """[R38]"""
    ends = []
    for steps in (1, 7, 400):
        desk = Desk(tmp_path / str(steps))
        for type_, (side, off, _) in PENDING.items():
            desk.done(**place(desk, type_, off // 5, side, sl=0.0))
        desk.done(sl=desk.price(-30), tp=desk.price(30))
        for _ in range(steps):
            desk.wait(2 * HOUR_MS // steps)
        desk.wait(2 * HOUR_MS - 2 * HOUR_MS // steps * steps)
        ends.append([(deal.time_msc, deal.price, deal.order, deal.reason) for deal in desk.deals])
        desk.close()
    assert ends[0] == ends[1] == ends[2]
    assert len(ends[0]) > 3
