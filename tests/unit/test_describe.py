"""Events in words: those of every day by their own, all others by their fields."""

from datetime import UTC, datetime
from decimal import Decimal

import msgspec
import pytest

from gateway.describe import describe, targeted_by, targets_of
from ledger.facts import Fact, OrderRequest, Raw
from ledger.order_events import (
    BrokerAnswered,
    ConflictReceived,
    OrderPlaced,
    OrderRefused,
    OrderRequested,
    OutcomeResolved,
    SendStarted,
)
from ledger.trade import ACTION_CLOSE_BY, ACTION_REMOVE, TYPE_SELL, Position, TradeRequest, TradeResult
from tests.history import full_fill, partial_fill
from tests.make_frozen_events import EXAMPLES

RAW = Raw(size=9, sha256="0" * 64)


def requested(**fields: object) -> OrderRequested:
    return OrderRequested(request=OrderRequest(order_id="a", **fields), content="c", raw=RAW)


class Invented(Fact, frozen=True, kw_only=True, tag="order.invented"):
    """An event of a version to come."""

    price: Decimal
    not_before: datetime
    reasons: tuple[str, ...] = ()
    position: Position | None = None
    positions: tuple[Position, ...] = ()
    by: str = ""
    note: str = ""
    raw: Raw = RAW
    retriable: bool = False
    settings: dict[str, str] = msgspec.field(default_factory=dict)


@pytest.mark.parametrize("topic", EXAMPLES)
def test_every_event_has_words_on_one_printable_line(topic):
    told = describe(EXAMPLES[topic].data)
    assert told
    assert told.isprintable()


def test_an_event_without_words_of_its_own_is_told_by_its_fields():
    event = Invented(
        price=Decimal("1.10"),
        not_before=datetime(2026, 3, 1, tzinfo=UTC),
        reasons=("market closed", "late"),
        position=Position(ticket=7, volume=Decimal("0.1")),
        positions=(Position(ticket=7), Position(ticket=8)),
        retriable=True,
        settings={"a": "1"},
    )
    assert describe(event) == (
        "price 1.10, not before 2026-03-01T00:00:00.000000Z, reasons market closed; late, "
        "position (ticket 7, volume 0.1), positions (2), retriable yes, settings a=1"
    )


def test_an_order_is_told_with_its_terms():
    event = requested(
        symbol="EURUSD", order_type="buy", volume=Decimal("0.02"), price=Decimal("1.1"), sl=Decimal("1.05")
    )
    assert describe(event) == "buy 0.02 EURUSD price 1.1 sl 1.05"


def test_an_intent_and_its_answer_name_attempt_prices_tickets_and_return_code():
    request = TradeRequest(
        action=1, type=TYPE_SELL, symbol="EURUSD", volume=Decimal("0.3"), price=Decimal("1.1"), magic=5
    )
    assert describe(SendStarted(attempt=2, request=request)).startswith("attempt 2: sell 0.3 EURUSD at 1.1, magic 5")
    result = TradeResult(retcode=10009, order=900, deal=7, volume=Decimal("0.3"), price=Decimal("1.09"))
    answered = BrokerAnswered(
        attempt=2, result=result, retcode_name="DONE", verdict="success", latency_s=Decimal("0.0016")
    )
    assert describe(answered) == "attempt 2: 10009 DONE (success), order 900, deal 7, 0.3 at 1.09, 1.6 ms"


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (TradeRequest(action=ACTION_CLOSE_BY, position=7, position_by=8), "close by position 7 position by 8"),
        (TradeRequest(action=ACTION_REMOVE, order=9), "remove order 9"),
        (TradeRequest(action=99, type=42), "action 99"),
    ],
)
def test_a_request_that_opens_nothing_names_what_it_acts_on(request_, told):
    assert describe(SendStarted(attempt=1, request=request_)) == f"attempt 1: {told}"


def test_a_working_order_is_told_as_it_was_asked_for():
    placed = OrderPlaced(
        symbol="EURUSD",
        side="buy",
        order_ticket=900,
        order_type="buy_limit",
        volume=Decimal("0.1"),
        price=Decimal("1.07"),
        sl=Decimal("1.06"),
    )
    assert describe(placed) == "buy limit 0.1 EURUSD at 1.07 sl 1.06, order 900"


def test_a_fill_names_what_is_left_and_what_it_cost():
    assert describe(partial_fill(7)).endswith("deal 7, position 900, commission -0.35, 0.2 left")
    assert describe(full_fill(8, provisional=True)).endswith("deal 8, position 900, commission -0.35, provisional")


def test_text_from_outside_cannot_steer_the_terminal():
    event = OrderRefused(reasons=("bad \x1b[2J\nthing",), category="malformed")
    assert describe(event) == "malformed: bad \\x1b[2J\\x0athing"


def test_what_a_request_acts_on_is_named_by_order_and_by_ticket():
    event = requested(action="close", target_order_id="ord_0", position_id=7)
    assert list(targets_of(event)) == ["order ord_0", "position 7"]
    assert list(targets_of(ConflictReceived(content="c", raw=RAW))) == []


def test_who_acted_on_an_order_is_an_order_and_not_a_probe():
    by = Invented(price=Decimal(1), not_before=datetime(2026, 3, 1, tzinfo=UTC), by="ord_2")
    assert targeted_by(by) == "ord_2"
    assert targeted_by(OutcomeResolved(attempt=1, resolution="absent", by="probe", evidence="e")) == ""


def test_a_field_without_effect_is_told_with_the_request():
    known = describe(requested(order_type="buy", symbol="EURUSD"))
    misspelt = msgspec.structs.replace(requested(order_type="buy", symbol="EURUSD"), ignored=("stoploss",))
    assert describe(misspelt) == f"{known}; no field of an order: stoploss"
