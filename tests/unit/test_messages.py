"""What goes out on NATS for each event: subject, fields, and what upstream may rely on."""

from datetime import UTC, datetime
from decimal import Decimal

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.messages import encode, iso, outgoing, repeated
from ledger.account_events import MessageRejected
from ledger.events import Envelope, Recorded
from ledger.facts import OrderRequest
from ledger.intake import raw_of
from ledger.order_events import (
    ConflictReceived,
    DuplicateReceived,
    OrderChecked,
    OrderFailed,
    OrderFilled,
    OrderPartiallyFilled,
    OrderRefused,
    OrderRejected,
    OrderRequested,
    OrderStale,
    OutcomeUnknown,
)

AT = datetime(2026, 11, 22, 12, 0, 0, 5, tzinfo=UTC)
FILL = OrderFilled(
    symbol="EURUSD",
    side="buy",
    order_ticket=7,
    deal=8,
    position_id=9,
    volume=Decimal("0.01"),
    price=Decimal("1.0813"),
    filled_volume=Decimal("0.01"),
    remaining_volume=Decimal(0),
    requested_price=Decimal("1.08125"),
    point=Decimal("0.00001"),
    commission=Decimal("-0.04"),
)


def told(event, stream="order/o-1", version=5, seq=12):
    recorded = Recorded(seq, stream, version, event.topic(), b"")
    envelope = Envelope(
        seq=seq, event_id=f"L:{seq}", schema_version=1, recorded_at=AT, account="1", correlation_id="c", data=event
    )
    made = outgoing(recorded, envelope)
    return (made.subject, orjson.loads(encode(made.message))) if made else None


def test_a_fill_carries_the_stated_fields_and_ours():
    subject, body = told(FILL)
    assert subject == "broker.fill.EURUSD"
    for name in ("order_id", "ticket", "symbol", "volume", "price", "timestamp", "commission", "swap", "fee", "profit"):
        assert name in body
    assert body["event_id"] == "L:12"
    assert (body["stream_version"], body["seq"], body["status"], body["final"]) == (5, 12, "FILLED", True)
    assert body["recorded_at"] == "2026-11-22T12:00:00.000005Z"


def test_numbers_are_json_numbers_with_exact_digits():
    made = outgoing(
        Recorded(1, "order/o", 1, "order.filled", b""),
        Envelope(seq=1, event_id="L:1", schema_version=1, recorded_at=AT, data=FILL),
    )
    assert b'"price":1.0813,' in encode(made.message)
    assert b'"volume":0.01,' in encode(made.message)


@pytest.mark.parametrize(
    ("side", "price", "slippage", "points"),
    [("buy", "1.0813", 0.00005, 5), ("buy", "1.0812", -0.00005, -5), ("sell", "1.0812", 0.00005, 5)],
)
def test_slippage_is_positive_when_it_went_against_us(side, price, slippage, points):
    import msgspec

    _, body = told(msgspec.structs.replace(FILL, side=side, price=Decimal(price)))
    assert (body["slippage"], body["slippage_points"]) == (slippage, points)


def test_a_partial_fill_is_not_final():
    fields = {name: getattr(FILL, name) for name in FILL.__struct_fields__}
    partial = OrderPartiallyFilled(**fields | {"remaining_volume": Decimal("0.02")})
    _, body = told(partial)
    assert (body["status"], body["final"], body["remaining_volume"]) == ("PARTIALLY_FILLED", False, 0.02)


ERRORS = [
    (OrderRefused(reasons=("a", "b"), category="refused", symbol="EURUSD"), "refused", True),
    (OrderStale(age_s=Decimal(31), limit_s=Decimal(30), symbol="EURUSD"), "stale", True),
    (ConflictReceived(content="x", raw=raw_of(b"{}"), symbol="EURUSD"), "conflict", True),
    (
        OrderRejected(
            symbol="EURUSD",
            retcode=10019,
            retcode_name="NO_MONEY",
            category="fatal",
            description="No money",
            attempts=1,
        ),
        "fatal",
        True,
    ),
    (OrderFailed(symbol="EURUSD", category="fatal", reason="proven absent"), "fatal", True),
]


@pytest.mark.parametrize(("event", "category", "final"), ERRORS, ids=lambda x: getattr(x, "topic", lambda: str(x))())
def test_an_error_has_a_category_and_is_final(event, category, final):
    subject, body = told(event)
    assert (subject, body["category"], body["final"]) == ("broker.error.EURUSD", category, final)
    assert body["description"]
    assert body["retriable"] is False


def test_a_message_without_an_order_goes_to_the_invalid_subject():
    event = MessageRejected(reasons=("order_id is missing",), raw=raw_of(b"x"))
    subject, body = told(event, stream="inbox/2026-11-22")
    assert subject == "broker.error._invalid"
    assert "order_id" not in body


def test_an_unknown_outcome_is_told_but_not_as_an_end():
    subject, body = told(OutcomeUnknown(attempt=1, code=10012, reason="timeout", symbol="EURUSD"))
    assert (subject, body["category"], body["final"], body["retcode_name"]) == (
        "broker.order.EURUSD",
        "unknown",
        False,
        "TIMEOUT",
    )


def test_an_accepted_order_is_pending_and_a_refused_one_is_not_told_twice():
    request = OrderRequest(order_id="o", symbol="EURUSD", order_type="buy", volume=Decimal(1))
    accepted = OrderRequested(request=request, content="x", raw=raw_of(b"{}"), symbol="EURUSD")
    refused = OrderRequested(request=request, content="x", raw=raw_of(b"{}"), symbol="EURUSD", accepted=False)
    assert told(accepted)[1]["status"] == "PENDING"
    assert told(refused) is None


def test_what_concerns_nobody_upstream_is_not_told():
    assert told(OrderChecked(passed=True)) is None


def test_a_duplicate_is_answered_with_the_standing_outcome_under_its_own_id():
    standing = outgoing(
        Recorded(12, "order/o-1", 5, "order.filled", b""),
        Envelope(seq=12, event_id="L:12", schema_version=1, recorded_at=AT, data=FILL),
    )
    again = DuplicateReceived(number=1, standing_version=5, standing_topic="order.filled", status="filled")
    recorded = Recorded(20, "order/o-1", 6, "order.duplicate_received", b"")
    envelope = Envelope(seq=20, event_id="L:20", schema_version=1, recorded_at=AT, data=again)
    answer = repeated(recorded, envelope, standing)
    assert answer.subject == "broker.fill.EURUSD"
    assert (answer.message.duplicate, answer.message.event_id, answer.message.deal) == (True, "L:20", 8)


@given(st.text(max_size=80))
def test_whatever_the_symbol_the_subject_is_one_nats_takes(symbol):
    subject, _ = told(OrderRefused(reasons=("r",), category="refused", symbol=symbol))
    token = subject.removeprefix("broker.error.")
    assert 1 <= len(token) <= 32
    assert all(c.isascii() and (c.isalnum() or c in "_-") for c in token)


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_are_utc_with_microseconds(when):
    assert iso(when).endswith("Z")
    assert len(iso(when)) == 27
    assert datetime.fromisoformat(iso(when)) == when
