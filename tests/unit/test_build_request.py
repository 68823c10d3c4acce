"""The trade request of an attempt: what MetaTrader is asked for an order of ours."""

from decimal import Decimal

import msgspec
import pytest

from gateway.broker import Symbol
from gateway.submit import build_request
from ledger.facts import OrderRequest
from ledger.order import Order
from ledger.values import comment_of, magic_of

EURUSD = Symbol(
    name="EURUSD",
    digits=5,
    point=Decimal("0.00001"),
    trade_tick_size=Decimal("0.00001"),
    trade_contract_size=Decimal(100000),
    volume_min=Decimal("0.01"),
    volume_max=Decimal(100),
    volume_step=Decimal("0.01"),
    trade_stops_level=0,
    trade_freeze_level=0,
    trade_mode=4,
    trade_exemode=2,
    filling_mode=3,
    expiration_mode=15,
    order_mode=127,
    bid=Decimal("1.08"),
    ask=Decimal("1.0801"),
)


def order(**fields) -> Order:
    request = OrderRequest(
        **{"order_id": "o-1", "symbol": "EURUSD", "order_type": "buy", "volume": Decimal("0.1")} | fields
    )
    return Order(order_id="o-1", symbol="EURUSD", request=request)


def test_it_carries_the_order_and_the_marks_by_which_it_is_found_again():
    request = build_request(order(sl=Decimal("1.07")), 2, EURUSD, 20)
    assert (request.action, request.type, request.volume, request.sl) == (1, 0, Decimal("0.1"), Decimal("1.07"))
    assert (request.magic, request.comment) == (magic_of("o-1", 2), comment_of("o-1", 2))


@pytest.mark.parametrize(("side", "price"), [("buy", "1.0801"), ("sell", "1.08")])
def test_without_a_price_the_market_is_taken(side, price):
    assert build_request(order(order_type=side), 1, EURUSD, 20).price == Decimal(price)


def test_a_reference_price_is_sent_as_given():
    assert build_request(order(price=Decimal("1.2")), 1, EURUSD, 20).price == Decimal("1.2")


@pytest.mark.parametrize(
    ("exemode", "flags", "filling"),
    [(2, 1, 0), (2, 2, 1), (2, 3, 0), (2, 0, 2), (3, 2, 1), (1, 0, 0), (0, 2, 0)],
)
def test_the_filling_is_chosen_from_what_the_symbol_allows(exemode, flags, filling):
    symbol = msgspec.structs.replace(EURUSD, trade_exemode=exemode, filling_mode=flags)
    assert build_request(order(), 1, symbol, 20).type_filling == filling


@pytest.mark.parametrize(("given_filling", "sent"), [("fok", 0), ("ioc", 1), ("return", 2), ("boc", 3)])
def test_a_given_filling_is_never_changed(given_filling, sent):
    assert build_request(order(filling=given_filling), 1, EURUSD, 20).type_filling == sent


def test_a_given_deviation_is_kept_also_when_it_is_zero():
    assert build_request(order(deviation=0), 1, EURUSD, 20).deviation == 0
    assert build_request(order(), 1, EURUSD, 20).deviation == 20
