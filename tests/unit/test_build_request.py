"""The trade request of an attempt: what MetaTrader is asked for an order of ours."""

from decimal import Decimal

import msgspec
import pytest

from gateway.broker import Symbol
from gateway.requests import Facts, Refusal, build_request
from ledger.facts import OrderRequest
from ledger.order import Order
from ledger.trade import BrokerOrder, Position, TargetImage, TradeRequest
from ledger.values import comment_of, magic_of
from tests.broker_fake import EURUSD as ANY_SYMBOL

D = Decimal
EURUSD = msgspec.structs.replace(ANY_SYMBOL, volume_max=D(100), trade_stops_level=0)
LONG = Position(ticket=71, identifier=70, type=0, volume=D("0.5"), sl=D("1.05"), tp=D("1.2"), symbol="EURUSD")
SHORT = Position(ticket=81, identifier=80, type=1, volume=D("0.3"), symbol="EURUSD")
WORKING = BrokerOrder(
    ticket=90, type=2, price_open=D("1.05"), sl=D("1.04"), tp=D("1.1"), symbol="EURUSD", type_time=1, time_expiration=0
)


def opening(**fields) -> Order:
    request = OrderRequest(**{"order_id": "o-1", "symbol": "EURUSD", "order_type": "buy", "volume": D("0.1")} | fields)
    return Order(order_id="o-1", symbol="EURUSD", request=request)


def asking(action: str, **fields) -> Order:
    return Order(order_id="o-1", request=OrderRequest(order_id="o-1", action=action, **fields))


def built(
    order: Order, attempt: int = 1, symbol: Symbol = EURUSD, offset_s: int | None = 7200, **facts
) -> TradeRequest:
    bid, ask = facts.pop("bid", symbol.bid), facts.pop("ask", symbol.ask)
    request = build_request(order, attempt, Facts(symbol, bid, ask, 20, offset_s, **facts))
    assert isinstance(request, TradeRequest), request
    return request


def refused(order: Order, attempt: int = 1, symbol: Symbol = EURUSD, offset_s: int | None = 7200, **facts) -> str:
    bid, ask = facts.pop("bid", symbol.bid), facts.pop("ask", symbol.ask)
    request = build_request(order, attempt, Facts(symbol, bid, ask, 20, offset_s, **facts))
    assert isinstance(request, Refusal), request
    return "; ".join(request.reasons)


def priced(mode: int) -> Symbol:
    return msgspec.structs.replace(EURUSD, trade_exemode=mode)


# --- opening ----------------------------------------------------------------------------------------------------


def test_it_carries_the_order_and_the_marks_by_which_it_is_found_again():
    request = built(opening(sl=D("1.07")), 2)
    assert (request.action, request.type, request.volume, request.sl) == (1, 0, D("0.1"), D("1.07"))
    assert (request.magic, request.comment) == (magic_of("o-1", 2), comment_of("o-1", 2))


@pytest.mark.parametrize(("side", "price"), [("buy", "1.0801"), ("sell", "1.08")])
def test_without_a_price_the_market_is_taken(side, price):
    assert built(opening(order_type=side)).price == D(price)


def test_a_reference_price_is_sent_as_given():
    assert built(opening(price=D("1.2"))).price == D("1.2")


@pytest.mark.parametrize(
    ("side", "market", "sent", "deviation"),
    [
        ("buy", "1.08010", "1.08010", 20),
        ("buy", "1.08005", "1.08005", 20),  # better than asked for
        ("buy", "1.08025", "1.08025", 5),  # 15 points worse: 5 are left
        ("sell", "1.08000", "1.08000", 10),
    ],
)
def test_another_attempt_takes_the_price_of_now_and_what_is_left_of_the_deviation(side, market, sent, deviation):
    request = built(opening(order_type=side, price=D("1.0801")), 2, bid=D(market), ask=D(market))
    assert (request.price, request.deviation) == (D(sent), deviation)


def test_another_attempt_beyond_the_deviation_is_refused_where_the_server_does_not_look_at_the_price():
    reasons = refused(opening(price=D("1.0801")), 2, ask=D("1.0804"))
    assert "30 points worse than the 1.0801 asked for, more than the deviation of 20" in reasons


@pytest.mark.parametrize("mode", [0, 1])
def test_where_the_server_looks_at_the_price_another_attempt_never_asks_for_a_worse_one_than_allowed(mode):
    request = built(opening(price=D("1.0801")), 2, symbol=priced(mode), ask=D("1.0804"))
    assert (request.price, request.deviation) == (D("1.0803"), 0)


@pytest.mark.parametrize(
    ("exemode", "flags", "filling"),
    [(2, 1, 0), (2, 2, 1), (2, 3, 0), (2, 0, 2), (3, 2, 1), (1, 0, 0), (0, 2, 0)],
)
def test_the_filling_is_chosen_from_what_the_symbol_allows(exemode, flags, filling):
    symbol = msgspec.structs.replace(EURUSD, trade_exemode=exemode, filling_mode=flags)
    assert built(opening(), symbol=symbol).type_filling == filling


@pytest.mark.parametrize(("given_filling", "sent"), [("fok", 0), ("ioc", 1), ("return", 2), ("boc", 3)])
@pytest.mark.parametrize("order_type", ["buy", "sell_limit"])
def test_a_given_filling_is_never_changed(order_type, given_filling, sent):
    order = opening(order_type=order_type, price=D("1.1"), filling=given_filling)
    assert built(order, symbol=msgspec.structs.replace(EURUSD, filling_mode=0)).type_filling == sent


def test_a_given_deviation_is_kept_also_when_it_is_zero():
    assert built(opening(deviation=0)).deviation == 0
    assert built(opening()).deviation == 20


@pytest.mark.parametrize(
    ("order_type", "kind"),
    [
        ("buy_limit", 2),
        ("sell_limit", 3),
        ("buy_stop", 4),
        ("sell_stop", 5),
        ("buy_stop_limit", 6),
        ("sell_stop_limit", 7),
    ],
)
def test_a_pending_order_is_placed_at_its_price_and_stays_with_its_rest(order_type, kind):
    order = opening(order_type=order_type, price=D("1.1"), stop_limit_price=D("1.09"), tp=D("1.3"))
    request = built(order, 3)
    assert (request.action, request.type, request.price, request.stoplimit) == (5, kind, D("1.1"), D("1.09"))
    assert (request.type_filling, request.type_time, request.expiration, request.tp) == (2, 0, 0, D("1.3"))
    assert request.magic == magic_of("o-1", 3)


@pytest.mark.parametrize(
    ("fields", "type_time", "expiration"),
    [
        ({}, 0, 0),
        ({"time_in_force": "day"}, 1, 0),
        ({"expires_at": "2026-03-01T12:00:00Z"}, 2, 1_772_366_400 + 7200),
        ({"expires_at": "2026-03-01T12:00:00Z", "time_in_force": "specified_day"}, 3, 1_772_366_400 + 7200),
    ],
)
def test_an_expiration_is_told_in_seconds_of_the_servers_clock(fields, type_time, expiration):
    request = built(opening(order_type="buy_limit", price=D("1.05"), **fields))
    assert (request.type_time, request.expiration) == (type_time, expiration)


def test_while_the_servers_clock_is_unknown_no_expiration_is_guessed():
    order = opening(order_type="buy_limit", price=D("1.05"), expires_at="2026-03-01T12:00:00Z")
    assert "time zone is not known" in refused(order, offset_s=None)


def test_without_a_time_in_force_one_that_the_symbol_allows_is_chosen():
    symbol = msgspec.structs.replace(EURUSD, expiration_mode=2)
    assert built(opening(order_type="buy_limit", price=D("1.05")), symbol=symbol).type_time == 1


# --- closing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("position", "side", "price"), [(LONG, 1, "1.08"), (SHORT, 0, "1.0801")])
def test_a_close_is_the_opposite_deal_on_the_position_by_its_ticket(position, side, price):
    request = built(asking("close", position_id=position.identifier), image=TargetImage(position=position))
    assert (request.action, request.type, request.price) == (1, side, D(price))
    assert (request.position, request.volume, request.symbol) == (position.ticket, position.volume, "EURUSD")
    assert request.magic == magic_of("o-1", 1)


@pytest.mark.parametrize(
    ("asked", "cap", "volume"),
    [(None, None, "0.5"), ("0.2", None, "0.2"), ("0.7", None, "0.5"), (None, "0.1", "0.1"), ("0.4", "0.1", "0.1")],
)
def test_a_close_never_asks_for_more_than_there_is_or_than_its_order_opened(asked, cap, volume):
    order = asking("close", position_id=70, volume=D(asked) if asked else None)
    request = built(order, image=TargetImage(position=LONG), cap=D(cap) if cap else None)
    assert request.volume == D(volume)


def test_what_is_not_open_is_not_closed():
    assert refused(asking("close", position_id=70), image=TargetImage()) == "position 70 is not open"


def test_a_close_by_names_both_tickets():
    order = asking("close_by", position_id=70, position_by_id=80)
    request = built(order, image=TargetImage(position=LONG, position_by=SHORT))
    assert (request.action, request.position, request.position_by) == (10, 71, 81)


def test_a_close_by_that_cannot_be_says_every_reason():
    order = asking("close_by", position_id=70, position_by_id=80)
    assert refused(order) == "position 70 is not open; position 80 is not open"
    assert "same side" in refused(order, image=TargetImage(position=LONG, position_by=LONG))
    other = msgspec.structs.replace(SHORT, symbol="GBPUSD")
    assert "EURUSD, 80 in GBPUSD" in refused(order, image=TargetImage(position=LONG, position_by=other))


# --- changing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "sl", "tp"),
    [
        ({"sl": D("1.06")}, "1.06", "1.2"),
        ({"tp": D("1.3")}, "1.05", "1.3"),
        ({"sl": D(0)}, "0", "1.2"),
        ({"sl": D("1.06"), "tp": D(0)}, "1.06", "0"),
    ],
)
def test_stops_that_are_not_named_stay_and_a_zero_takes_one_away(fields, sl, tp):
    request = built(asking("modify", position_id=70, **fields), image=TargetImage(position=LONG))
    assert (request.action, request.position, request.sl, request.tp) == (6, 71, D(sl), D(tp))


def test_a_position_has_no_price_to_change():
    order = asking("modify", target_order_id="o-0", price=D("1.1"), expires_at="2026-03-01T12:00:00Z")
    reasons = refused(order, image=TargetImage(position=LONG))
    assert "price does not belong" in reasons
    assert "expires_at does not belong" in reasons


def test_a_change_of_a_working_order_keeps_what_is_not_named():
    request = built(asking("modify", order_ticket=90, price=D("1.051")), image=TargetImage(order=WORKING))
    assert (request.action, request.order, request.price) == (7, 90, D("1.051"))
    assert (request.sl, request.tp, request.type_time) == (D("1.04"), D("1.1"), 1)


def test_a_working_order_gets_another_expiration():
    order = asking("modify", order_ticket=90, expires_at="2026-03-01T12:00:00Z")
    request = built(order, image=TargetImage(order=WORKING))
    assert (request.price, request.type_time, request.expiration) == (D("1.05"), 2, 1_772_366_400 + 7200)


def test_a_cancel_removes_the_working_order():
    request = built(asking("cancel", order_ticket=90), image=TargetImage(order=WORKING))
    assert (request.action, request.order, request.symbol) == (8, 90, "EURUSD")
    assert refused(asking("cancel", order_ticket=91), image=TargetImage()) == "order 91 is not working"
