"""Validation before the broker: every reason at once, and the firm's own limits."""

from datetime import UTC, datetime
from decimal import Decimal as D

import msgspec
import pytest

from gateway.broker import Symbol, Tick
from gateway.validate import Limits, View, validate
from ledger.trade import BrokerOrder, Position, TargetImage, TradeRequest
from tests.broker_fake import EURUSD

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
NOW_S = int(NOW.timestamp())
OFFSET_S = 7200
TICK = Tick(time_msc=(NOW_S + OFFSET_S) * 1000, bid=D("1.08000"), ask=D("1.08010"))
VIEW = View(server_utc_offset_s=OFFSET_S)
NONE = Limits()
DEAL, PENDING, SLTP, MODIFY, REMOVE, CLOSE_BY = 1, 5, 6, 7, 8, 10
BUY, SELL, BUY_LIMIT, SELL_LIMIT, BUY_STOP, SELL_STOP, BUY_STOP_LIMIT, SELL_STOP_LIMIT = range(8)


def request(action: int = DEAL, **fields) -> TradeRequest:
    return TradeRequest(**({"action": action, "symbol": "EURUSD", "volume": D("0.1")} | fields))


def reasons(asked: TradeRequest, *, symbol=EURUSD, tick=TICK, view=VIEW, limits=NONE) -> tuple[str, ...]:
    return validate(asked, symbol, tick, view, limits, NOW)


def changed(**fields) -> Symbol:
    return msgspec.structs.replace(EURUSD, **fields)


def seen(**target) -> View:
    return msgspec.structs.replace(VIEW, target=TargetImage(**target))


def position(**fields) -> Position:
    return Position(**({"ticket": 9, "identifier": 9, "volume": D("0.5"), "symbol": "EURUSD"} | fields))


def test_a_sound_order_has_no_reason_against_it():
    assert reasons(request(price=D("1.0801"), sl=D("1.07"), tp=D("1.09"))) == ()


def test_all_reasons_are_told_at_once():
    asked = request(volume=D("70.005"), sl=D("1.09"), tp=D("1.070001"), type_filling=3)
    assert reasons(asked, limits=Limits(symbols=("GBP*",), max_volume=D(1))) == (
        "volume 70.005 is outside 0.01 to 50 lots of EURUSD",
        "volume 70.005 is not a multiple of 0.01 lots",
        "EURUSD does not allow filling boc for this order",
        "sl 1.09 must be at least 0.0001 below 1.08",
        "tp 1.070001 is not a multiple of the tick size 0.00001",
        "tp 1.070001 must be at least 0.0001 above 1.08",
        "limit: EURUSD is none of the symbols allowed",
        "limit: volume 70.005 is more than 1 lots",
    )


def test_a_symbol_nobody_knows_is_one_clear_reason():
    assert reasons(request(symbol="EUR/USD"), symbol=None) == ("symbol 'EUR/USD' is not known to the broker",)


@pytest.mark.parametrize(
    ("change", "asked", "reason"),
    [
        ({"select": False}, request(), "symbol EURUSD is not selected in the terminal's Market Watch"),
        ({"trade_mode": 1}, request(type=SELL), "only long positions of EURUSD are allowed"),
        ({"trade_mode": 2}, request(type=BUY), "only short positions of EURUSD are allowed"),
        ({"trade_mode": 3}, request(), "positions of EURUSD may only be closed"),
        ({"order_mode": 126}, request(), "EURUSD takes no buy orders"),
        ({"order_mode": 111}, request(sl=D("1.07")), "EURUSD takes no sl"),
        ({"filling_mode": 1}, request(type_filling=1), "EURUSD does not allow filling ioc for this order"),
        ({"trade_exemode": 1}, request(), "EURUSD is dealt at a stated price, and there is none"),
    ],
)
def test_what_the_symbol_does_not_allow_is_refused(change, asked, reason):
    assert reasons(asked, symbol=changed(**change)) == (reason,)


@pytest.mark.parametrize("mode", [1, 2, 3])
def test_a_position_may_be_closed_whatever_may_not_be_opened(mode):
    close = request(type=SELL, position=9)
    assert reasons(close, symbol=changed(trade_mode=mode), view=seen(position=position())) == ()


# Ten points of stops level on a market of 1.08000 / 1.08010: the last price allowed, and the first that is not.
@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (BUY_LIMIT, "1.08000", "1.08001"),
        (SELL_LIMIT, "1.08010", "1.08009"),
        (BUY_STOP, "1.08020", "1.08019"),
        (SELL_STOP, "1.07990", "1.07991"),
        (BUY_STOP_LIMIT, "1.08020", "1.08019"),
        (SELL_STOP_LIMIT, "1.07990", "1.07991"),
    ],
)
def test_a_pending_order_waits_on_its_side_of_the_market(kind, good, bad):
    limit = {"stoplimit": D("1.05") if kind == BUY_STOP_LIMIT else D("1.11")} if kind > SELL_STOP else {}
    assert reasons(request(PENDING, type=kind, price=D(good), **limit)) == ()
    assert len(reasons(request(PENDING, type=kind, price=D(bad), **limit))) == 1


@pytest.mark.parametrize(
    ("kind", "sl", "tp"),
    [(BUY, "1.07990", "1.08010"), (SELL, "1.08020", "1.08000")],
)
def test_stops_keep_the_stops_level_from_the_price_a_position_would_be_closed_at(kind, sl, tp):
    inwards = D("0.00001") if kind == BUY else D("-0.00001")
    assert reasons(request(type=kind, sl=D(sl), tp=D(tp))) == ()
    assert len(reasons(request(type=kind, sl=D(sl) + inwards, tp=D(tp) - inwards))) == 2


def test_the_limit_of_a_stop_limit_order_lies_on_the_better_side_of_its_stop():
    asked = request(PENDING, type=BUY_STOP_LIMIT, price=D("1.09"), stoplimit=D("1.09"))
    assert reasons(asked) == ("stop_limit_price 1.09 must be below the price 1.09",)


@pytest.mark.parametrize(
    ("expiry", "reason"),
    [
        ({"type_time": 2, "expiration": NOW_S + OFFSET_S + 1}, None),
        ({"type_time": 2, "expiration": NOW_S + OFFSET_S}, "expires_at 2026-03-02T12:00:00Z is not in the future"),
        ({"type_time": 3, "expiration": NOW_S + OFFSET_S - 60}, None),  # the end of that day
        ({"type_time": 2}, "expires_at 1969-12-31T22:00:00Z is not in the future"),
    ],
)
def test_an_expiration_lies_in_the_future_by_the_clock_of_the_server(expiry, reason):
    asked = request(PENDING, type=BUY_LIMIT, price=D("1.07"), **expiry)
    assert reasons(asked) == ((reason,) if reason else ())


def test_a_time_in_force_must_be_one_the_symbol_allows():
    asked = request(PENDING, type=BUY_LIMIT, price=D("1.07"), type_time=1)
    assert reasons(asked, symbol=changed(expiration_mode=1)) == ("EURUSD does not allow time_in_force day",)


def test_a_target_that_is_gone_is_told():
    assert reasons(request(type=SELL, position=9), view=seen()) == ("position 9 is not open",)
    assert reasons(request(REMOVE, order=5), view=seen()) == ("order 5 is not working",)
    assert reasons(request(SLTP, position=9), view=seen()) == ("position 9 is not open",)
    assert reasons(request(CLOSE_BY, position=9, position_by=8), view=seen(position=position())) == (
        "position 8 is not open",
    )


def test_no_more_is_closed_than_is_open():
    asked = request(type=SELL, position=9, volume=D("0.6"))
    assert reasons(asked, view=seen(position=position())) == ("volume 0.6 is more than the 0.5 lots of the position",)


def test_stops_of_a_position_are_judged_by_its_own_side():
    asked = request(SLTP, position=9, sl=D("1.09"))
    assert reasons(asked, view=seen(position=position(type=SELL))) == ()
    assert len(reasons(asked, view=seen(position=position(type=BUY)))) == 1


def test_what_may_pass_by_itself_refuses_nothing_alone_but_is_told_beside_other_reasons():
    frozen = changed(trade_freeze_level=20)
    order = seen(order=BrokerOrder(ticket=5, type=BUY_LIMIT, price_open=D("1.07995")))
    assert reasons(request(REMOVE, order=5), symbol=frozen, view=order) == ()
    told = reasons(request(MODIFY, order=5, price=D("1.2")), symbol=frozen, view=order)
    assert told[0] == "order 5 is frozen: the market is too near its price 1.07995"
    assert len(told) == 2
    disabled = changed(trade_mode=0)
    assert reasons(request(), symbol=disabled) == ()
    assert reasons(request(volume=D(0)), symbol=disabled)[0] == "trading of EURUSD is disabled"
    closed = Limits(max_quote_age_s=60)
    old = msgspec.structs.replace(TICK, time_msc=TICK.time_msc - 61_000)
    assert reasons(request(), tick=old, limits=closed) == ()
    assert reasons(request(volume=D(0)), tick=old, limits=closed)[0] == (
        "the market of EURUSD is closed: its last price is 61 s old"
    )


def test_without_a_price_nothing_that_depends_on_it_is_judged():
    assert reasons(request(sl=D("2.0")), tick=None) == ()


@pytest.mark.parametrize(
    ("limits", "view", "reason"),
    [
        ({"symbols": ("XAU*", "GBPUSD")}, {}, "limit: EURUSD is none of the symbols allowed"),
        ({"min_volume": D("0.2")}, {}, "limit: volume 0.1 is less than 0.2 lots"),
        ({"max_volume": D("0.05")}, {}, "limit: volume 0.1 is more than 0.05 lots"),
        ({"open_positions": 5}, {"open_positions": 5}, "limit: 5 positions are open or under way, 5 allowed"),
        ({"open_positions": 5}, {}, "limit: how many positions are open is not known now"),
        ({"orders_per_minute": 3}, {"orders_last_minute": 3}, "limit: 3 orders within a minute, 3 allowed"),
        ({"require_sl": True}, {}, "limit: an order needs a stop loss (sl)"),
        ({"require_tp": True}, {}, "limit: an order needs a take profit (tp)"),
        ({"daily_loss": D(500)}, {"daily_loss": D("500.01")}, "limit: today's loss 500.01 has reached 500"),
        ({"daily_loss": D(500)}, {}, "limit: today's loss is not known now"),
    ],
)
def test_each_limit_refuses_what_would_exceed_it(limits, view, reason):
    seen_so = msgspec.structs.replace(VIEW, **view)
    assert reasons(request(), view=seen_so, limits=Limits(**limits)) == (reason,)


def test_limits_do_not_keep_a_position_from_being_closed():
    all_on = Limits(
        symbols=("XAU*",), min_volume=D(1), max_volume=D("0.01"), open_positions=1, orders_per_minute=1,
        require_sl=True, require_tp=True, daily_loss=D(1), price_collar_percent=D("0.01"),
    )  # fmt: skip
    view = msgspec.structs.replace(seen(position=position()), open_positions=9, orders_last_minute=9, daily_loss=D(99))
    assert reasons(request(type=SELL, position=9), view=view, limits=all_on) == ()


def test_a_required_stop_loss_cannot_be_taken_away_again():
    view = seen(position=position(sl=D("1.07")))
    assert reasons(request(SLTP, position=9), view=view, limits=Limits(require_sl=True)) == (
        "limit: an order needs a stop loss (sl)",
    )


@pytest.mark.parametrize(
    ("asked", "ok"),
    [
        (request(price=D("1.0909")), True),  # 1 % of 1.0801 is 0.010801
        (request(price=D("1.0910")), False),
        (request(price=D("10.81")), False),
        (request(PENDING, type=BUY_LIMIT, price=D("0.0108")), False),
        (request(), True),
    ],
)
def test_a_price_far_off_the_market_is_a_typing_error(asked, ok):
    assert bool(reasons(asked, limits=Limits(price_collar_percent=D(1)))) is not ok


def test_on_an_account_that_nets_the_other_side_closes_first():
    view = msgspec.structs.replace(seen(position=position(volume=D("0.5"))), margin_mode=0)
    closing = changed(trade_mode=3)
    assert reasons(request(type=SELL, volume=D("0.5")), symbol=closing, view=view) == ()
    assert reasons(request(type=SELL, volume=D("0.6")), symbol=closing, view=view) == (
        "positions of EURUSD may only be closed",
    )
