from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.book import Book
from ledger.events import Envelope, Recorded, decode, encode
from ledger.order_events import OrderFilled, OrderPartiallyFilled
from projections.rows import order_event_row, rows_of, slippage_of, slippage_points_of
from projections.tables import ORDER_EVENTS, TABLES, block
from projections.units import fit, microseconds
from tests.history import BEGINNING, History, full_fill, partial_fill
from tests.make_frozen_events import EXAMPLES, path_of, topic_of, version_of

BY_NAME = {table.name: table for table in TABLES}
Rows = dict[str, list[dict[str, Any]]]


def recorded(event: OrderFilled | OrderPartiallyFilled) -> tuple[Recorded, Envelope]:
    envelope = Envelope(
        seq=7, event_id="led:7", schema_version=1, recorded_at=BEGINNING, account="5001", actor="broker", data=event
    )
    return Recorded(7, "order/ord_1", 4, event.topic(), encode(envelope)), envelope


def named(*batch: tuple[Recorded, Envelope]) -> Rows:
    """The rows of some events, by table and column."""
    return {
        name: [dict(zip(BY_NAME[name].columns, row, strict=True)) for row in rows]
        for name, rows in rows_of(batch, Book().take(batch)).items()
    }


def execution(event: OrderFilled | OrderPartiallyFilled) -> dict[str, Any]:
    (row,) = named(recorded(event))["executions"]
    return row


def of_history(history: History) -> Rows:
    return named(*[(one, decode(one)) for one in history.records])


def test_a_buy_that_paid_more_than_asked_has_positive_slippage() -> None:
    assert slippage_of(partial_fill(side="buy", price=Decimal("1.10007"))) == Decimal("0.00007")
    assert slippage_of(partial_fill(side="buy", price=Decimal("1.09990"))) == Decimal("-0.0001")


def test_a_sell_that_got_less_than_asked_has_positive_slippage() -> None:
    assert slippage_of(partial_fill(side="sell", price=Decimal("1.09990"))) == Decimal("0.0001")
    assert slippage_points_of(partial_fill(side="sell", price=Decimal("1.09990"))) == 10


def test_without_a_requested_price_there_is_no_slippage() -> None:
    row = execution(partial_fill(requested_price=None))
    assert (row["requested_price"], row["slippage"], row["slippage_points"]) == (None, 0, None)


def test_without_a_known_point_the_slippage_has_no_points() -> None:
    row = execution(partial_fill(point=None))
    assert row["slippage"] == 2_000
    assert row["slippage_points"] is None


def test_an_execution_is_named_by_its_event() -> None:
    row = execution(full_fill())
    assert (row["execution_id"], row["ledger_id"], row["order_id"]) == ("led:7", "led", "ord_1")
    assert (row["account"], row["stream_version"], row["seq"]) == ("5001", 4, 7)


def test_the_execution_time_is_the_brokers_in_utc_and_ours_where_it_gave_none() -> None:
    late = BEGINNING.replace(hour=13)
    assert execution(full_fill(broker_time=late))["execution_timestamp"] == microseconds(late)
    assert execution(full_fill(broker_time=None))["execution_timestamp"] == microseconds(BEGINNING)


def test_only_deals_make_executions() -> None:
    assert len(of_history(History().orders(1))["executions"]) == 2


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_every_stored_event_of_every_version_makes_rows_that_fit_their_tables(name: str) -> None:
    topic = topic_of(name)
    stream = "order/ord_1" if topic.startswith("order.") else "account/5001"
    one = Recorded(42, stream, 5, topic, path_of(name).read_bytes())
    rows = named((one, decode(one)))
    (row,) = rows["order_events"]
    assert (row["event"], row["schema_version"], row["data"]) == (topic, version_of(name), one.state)
    assert ("orders" in rows) is topic.startswith("order.")
    made = topic in ("order.filled", "order.partially_filled", "account.external_deal_observed")
    assert ("executions" in rows) is made
    for table, found in rows_of([(one, decode(one))], Book().take([(one, decode(one))])).items():
        assert block(BY_NAME[table], found)


def test_every_event_makes_a_row_with_its_bytes_verbatim() -> None:
    for one in History().orders(3).records:
        row = dict(zip(ORDER_EVENTS.columns, order_event_row(one, decode(one)), strict=True))
        assert row["data"] is one.state
        assert (row["seq"], row["stream"], row["stream_version"], row["event"]) == (
            one.seq,
            one.stream,
            one.version,
            one.topic,
        )


def test_only_order_streams_name_an_order() -> None:
    rows = [
        dict(zip(ORDER_EVENTS.columns, order_event_row(one, decode(one)), strict=True)) for one in History().records
    ]
    assert {row["order_id"] for row in rows} == {""}


@pytest.mark.parametrize(
    ("value", "fits", "stored"),
    [
        ("9999999999.99999999", True, "9999999999.99999999"),
        ("10000000000", False, "9999999999.99999999"),
        ("-10000000000", False, "-9999999999.99999999"),
        ("9999999999.999999999", False, "9999999999.99999999"),
        ("0.000000005", False, "0"),
        ("0.000000015", False, "0.00000002"),
        ("1.100000000", True, "1.1"),
        ("1E+400000", False, "9999999999.99999999"),
        ("NaN", False, "0"),
        ("-Infinity", False, "-9999999999.99999999"),
    ],
)
def test_what_does_not_fit_a_column_is_bounded_and_said(value: str, fits: bool, stored: str) -> None:
    assert fit(Decimal(value)) == (fits, Decimal(stored) * 10**8)


def test_a_row_names_the_columns_that_are_not_exact() -> None:
    row = execution(full_fill(profit=Decimal("1e11"), swap=Decimal("0.123456789")))
    assert row["inexact"] == ["swap", "profit"]
    assert row["profit"] == 999_999_999_999_999_999


@given(st.decimals(allow_nan=True, allow_infinity=True))
def test_every_number_ends_within_the_bounds_of_its_column(value: Decimal) -> None:
    exact, units = fit(value)
    assert abs(units) < 10**18
    assert exact == (value.is_finite() and Decimal(units).scaleb(-8) == value)


@given(st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2299, 1, 1)))
def test_microseconds_are_exact(moment: datetime) -> None:
    there = moment.replace(tzinfo=UTC)
    back = datetime.fromtimestamp(microseconds(there) // 1_000_000, UTC)
    assert back.replace(microsecond=microseconds(there) % 1_000_000) == there


def test_the_same_events_always_give_the_same_rows() -> None:
    assert of_history(History().orders(2)) == of_history(History().orders(2))


def test_a_row_survives_a_new_field_in_the_event() -> None:
    one, _ = recorded(full_fill())
    newer = msgspec.structs.replace(one, state=one.state.replace(b'"symbol"', b'"from_the_future":1,"symbol"'))
    assert named((newer, decode(newer)))["executions"][0]["symbol"] == "EURUSD"


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**12), max_value=10**12))
def test_an_amount_that_was_seen_before_gives_the_same_row(price: Decimal) -> None:
    first, again = (execution(partial_fill(price=price)) for _ in range(2))
    exact, units = fit(price)
    assert first == again
    assert (first["fill_price"], "fill_price" in first["inexact"]) == (units, not exact)
